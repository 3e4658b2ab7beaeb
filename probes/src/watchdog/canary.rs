//! When nobody asks, the watchdog does: a golden request through the real queue.
//!
//! A heartbeat proves that a thread runs, not that a prediction would work. Under load real successes say so at no cost, so
//! the canary flies only where there were none.

/// So long without a success, and it is sent, milliseconds.
const IDLE_MS: u64 = 30_000;
/// After one that failed the next is sent this much later, milliseconds.
const AGAIN_MS: u64 = 1_000;
/// So many that fail in a row, and what serves is called sick.
const FAILURES_MAX: u32 = 2;

/// The canary of one version of a model. Times in milliseconds of a [`TickClock`](super::TickClock).
#[derive(Clone, Debug)]
pub struct Canary {
    /// When the next is due.
    due_ms: u64,
    under_way: bool,
    failures: u32,
}

impl Canary {
    /// For a version that serves since `now_ms`: it has just answered its golden requests.
    pub fn new(now_ms: u64) -> Self {
        Canary { due_ms: now_ms.saturating_add(IDLE_MS), under_way: false, failures: 0 }
    }

    /// Whether one is to be sent. Then it is under way, until [`Canary::came_back`] is told.
    pub fn send(&mut self, now_ms: u64) -> bool {
        let send = !self.under_way && now_ms >= self.due_ms;
        self.under_way |= send;
        send
    }

    /// Somebody's request was answered, which makes a canary needless. After one that failed it is needed all the same: an
    /// answer that nobody compares may be wrong.
    pub fn answered(&mut self, now_ms: u64) {
        if self.failures == 0 {
            self.due_ms = now_ms.saturating_add(IDLE_MS);
        }
    }

    /// The one that was sent was answered as it should be.
    pub fn succeeded(&mut self, now_ms: u64) {
        self.failures = 0;
        self.answered(now_ms);
    }

    /// The one that was under way is back, with or without an answer.
    pub fn came_back(&mut self) {
        self.under_way = false;
    }

    /// The one that was sent was answered wrongly, late or not at all.
    pub fn failed(&mut self, now_ms: u64) {
        self.failures = self.failures.saturating_add(1);
        self.due_ms = now_ms.saturating_add(AGAIN_MS);
    }

    /// The one that was sent was turned away or its lane was lost: that says nothing about answers. Another is sent soon.
    pub fn turned_away(&mut self, now_ms: u64) {
        self.due_ms = now_ms.saturating_add(AGAIN_MS);
    }

    /// Whether so many have failed in a row that what serves needs healing.
    pub fn is_sick(&self) -> bool {
        self.failures >= FAILURES_MAX
    }
}
