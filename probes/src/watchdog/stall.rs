//! Nothing gets done anywhere: the net under the judgement of single lanes.

/// The least time without a run that ended, milliseconds.
const STALL_MIN_MS: u64 = 10_000;
/// How many times the grace of a single run it is.
const STALL_GRACES: u64 = 4;

/// Whether anything gets done, over all lanes. Times in milliseconds of a [`TickClock`](super::TickClock).
#[derive(Clone, Debug, Default)]
pub struct Stall {
    completed: u64,
    /// Since when nothing ended although something was in flight.
    since_ms: Option<u64>,
    /// Whether a run was told to end since then.
    cancelled: bool,
}

impl Stall {
    /// `completed` runs have ended since the start, `in_flight` requests are inside, `cancels` runs were told to end and have
    /// not. True when nothing has ended for the longer of ten seconds and four times `grace_ms`, although some run was told to.
    pub fn observe(
        &mut self,
        completed: u64,
        in_flight: u64,
        cancels: u64,
        now_ms: u64,
        grace_ms: u64,
    ) -> bool {
        if in_flight == 0 || completed != self.completed {
            *self = Stall { completed, since_ms: None, cancelled: false };
        }
        if in_flight == 0 {
            return false;
        }
        let since_ms = *self.since_ms.get_or_insert(now_ms);
        self.cancelled |= cancels > 0;
        let limit_ms = grace_ms.saturating_mul(STALL_GRACES).max(STALL_MIN_MS);
        self.cancelled && now_ms.saturating_sub(since_ms) >= limit_ms
    }
}
