//! The bounded queue between the requests of a model version and its lanes.
//!
//! Lanes pull what waits, as many entries at a time as go together in one run ([`Entry::joins`]). The more critical class goes
//! first, but for every twentieth run, which the other classes have so that they do not starve; within a class it is the order of
//! arrival. No entry waits for another to come. A wake-up costs a system call and a task switch, more than a small model takes to run, so:
//!
//! - The lane that slept last is woken first: its weights are still in the caches. (Taking turns cost a model of 90 MB up
//!   to twice the time of a run.)
//! - Where runs are short, a push wakes nobody. The HTTP runtime pushes what a turn of its loop brings, and then wakes one
//!   lane for all of it ([`Queue::wake_for_burst`]).
//! - Nobody is woken for an entry that a lane which is awake will reach sooner than a sleeper would: the backlog times what
//!   a run takes is compared with [`WAKE_COST`]. What a run takes is learned, and may be wrong for once, so whoever waits
//!   calls [`Queue::nudge`] after a millisecond.

mod waiting;

use crate::admission::Class;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};
use waiting::{Waiting, gather};

/// What waking a sleeping thread takes on a shared machine, about.
const WAKE_COST: Duration = Duration::from_micros(50);
/// Runs up to this long are short beside the waking of whoever waits for their answers.
const SHORT_RUN: Duration = Duration::from_micros(15);
/// A run's share in the learned time of runs: 1/8.
const LEARNING_SHIFT: u32 = 3;
/// Nothing learned yet: every entry wakes a lane.
const UNKNOWN_NS: u64 = u64::MAX;

/// What the queue knows of an entry.
pub(crate) trait Entry {
    /// Whether `other` can be computed in the same run.
    fn joins(&self, other: &Self) -> bool;

    /// Rows that it adds to a run.
    fn rows(&self) -> usize;

    /// How critical it is.
    fn class(&self) -> Class;
}

/// A bounded first-in, first-out queue with blocking readers.
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    capacity: usize,
    run_ns: AtomicU64,
}

struct State<T> {
    waiting: Waiting<T>,
    /// When the queue was last empty.
    empty_at: Instant,
    /// Readers that sleep, the latest on top.
    idle: Vec<Arc<Sleeper>>,
    /// Readers that took an entry and have not come back for another.
    busy: usize,
    /// Readers that were woken and have not come yet.
    waking: usize,
    closed: bool,
}

struct Sleeper {
    thread: Thread,
    woken: AtomicBool,
}

impl Sleeper {
    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }

    /// Until it is woken, or `end`. Whether it was woken.
    fn sleep_until(&self, end: Instant) -> bool {
        while !self.woken.swap(false, Ordering::Acquire) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            std::thread::park_timeout(left);
        }
        true
    }

    fn sleep(&self) {
        while !self.woken.swap(false, Ordering::Acquire) {
            std::thread::park();
        }
    }
}

/// The entry was not taken; it comes back with the reason.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused<T> {
    Full(T),
    Closed(T),
}

/// A lane's end of the queue. Dropping it, also by a panic, says that this lane will not come back.
pub(crate) struct Reader<'a, T> {
    queue: &'a Queue<T>,
    sleeper: Arc<Sleeper>,
    busy: bool,
}

impl<T: Entry> Queue<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Queue {
            state: Mutex::new(State {
                waiting: Waiting::new(),
                empty_at: Instant::now(),
                idle: Vec::new(),
                busy: 0,
                waking: 0,
                closed: false,
            }),
            capacity,
            run_ns: AtomicU64::new(UNKNOWN_NS),
        }
    }

    /// Takes an entry, or gives it back.
    pub(crate) fn push(&self, entry: T) -> Result<(), Refused<T>> {
        let wake = {
            let mut state = self.state.lock();
            if state.closed {
                return Err(Refused::Closed(entry));
            }
            if state.waiting.len >= self.capacity {
                return Err(Refused::Full(entry));
            }
            if state.waiting.is_empty() {
                state.empty_at = Instant::now();
            }
            state.waiting.push_back(entry);
            // Where runs are short, whoever pushed calls `wake_for_burst` when it has nothing else to push.
            if self.runs_are_short() { None } else { self.to_wake(&mut state) }
        };
        if let Some(sleeper) = wake {
            sleeper.wake();
        }
        Ok(())
    }

    /// The second half of a push where runs are short: wakes a lane for everything that was pushed meanwhile, unless one that
    /// is awake gets there first.
    pub(crate) fn wake_for_burst(&self) {
        let wake = self.to_wake(&mut self.state.lock());
        if let Some(sleeper) = wake {
            sleeper.wake();
        }
    }

    /// The sleeper to wake for what waits, if one is needed.
    fn to_wake(&self, state: &mut State<T>) -> Option<Arc<Sleeper>> {
        let awake = state.busy + state.waking;
        if state.waiting.is_empty() || awake > 0 && self.backlog(state.waiting.len) <= WAKE_COST {
            return None;
        }
        let sleeper = state.idle.pop()?;
        state.waking += 1;
        Some(sleeper)
    }

    /// Takes the first entry and what goes with it.
    fn take(
        &self,
        state: &mut State<T>,
        batch: &mut Vec<T>,
        rows_max: impl FnOnce(&T) -> usize,
    ) -> bool {
        let Some(first) = state.waiting.pop_front() else { return false };
        let rows_max = rows_max(&first);
        batch.push(first);
        // Lanes that sleep take their part, unless the rest is done sooner than they are awake.
        let waiting = state.waiting.len;
        let shared = state.idle.len() + state.waking;
        let share = if shared == 0 || self.backlog(waiting) <= WAKE_COST {
            waiting
        } else {
            (waiting + 1).div_ceil(shared + 1) - 1
        };
        gather(&mut state.waiting, batch, rows_max, share);
        true
    }

    /// Puts entries back to where they came from, for the next lane. They have a place already, whatever the bound.
    pub(crate) fn put_back(&self, entries: impl DoubleEndedIterator<Item = T>) {
        let mut state = self.state.lock();
        for entry in entries.rev() {
            state.waiting.push_front(entry);
        }
    }
}

impl<T> Queue<T> {
    /// A reader that took an entry does not come back: what nobody was woken for, because it was to take it, is another's now.
    /// Should it come back after all, it says so by [`Reader::was_lost`].
    pub(crate) fn reader_lost(&self) {
        {
            let mut state = self.state.lock();
            state.busy = state.busy.saturating_sub(1);
        }
        self.nudge();
    }

    /// Wakes a lane if entries wait and one sleeps.
    pub(crate) fn nudge(&self) {
        let wake = {
            let mut state = self.state.lock();
            let wake = if state.waiting.is_empty() { None } else { state.idle.pop() };
            state.waking += usize::from(wake.is_some());
            wake
        };
        if let Some(sleeper) = wake {
            sleeper.wake();
        }
    }

    /// The calling thread's end. One for each thread.
    pub(crate) fn reader(&self) -> Reader<'_, T> {
        let sleeper = Sleeper { thread: std::thread::current(), woken: AtomicBool::new(false) };
        Reader { queue: self, sleeper: Arc::new(sleeper), busy: false }
    }

    /// Learns what a run takes.
    pub(crate) fn learn(&self, run: Duration) {
        let run = u64::try_from(run.as_nanos()).unwrap_or(UNKNOWN_NS - 1);
        let before = self.run_ns.load(Ordering::Relaxed);
        let after = match before {
            UNKNOWN_NS => run,
            // Two lanes may overwrite each other's lesson; the next run teaches it again.
            known => known - (known >> LEARNING_SHIFT) + (run >> LEARNING_SHIFT),
        };
        self.run_ns.store(after, Ordering::Relaxed);
    }

    /// Whether runs are so short that waking their clients one by one costs more.
    pub(crate) fn runs_are_short(&self) -> bool {
        self.backlog(1) <= SHORT_RUN
    }

    /// How long a lane that is awake takes for `entries`.
    fn backlog(&self, entries: usize) -> Duration {
        let entries = u64::try_from(entries).unwrap_or(u64::MAX);
        Duration::from_nanos(self.run_ns.load(Ordering::Relaxed).saturating_mul(entries))
    }

    /// Takes no more entries. What waits is still handed out.
    pub(crate) fn close(&self) {
        let sleepers = {
            let mut state = self.state.lock();
            state.closed = true;
            state.waking += state.idle.len();
            std::mem::take(&mut state.idle)
        };
        sleepers.iter().for_each(|sleeper| sleeper.wake());
    }

    /// Closes, and takes out everything that waits, for its owner to answer.
    pub(crate) fn close_and_drain(&self) -> Vec<T> {
        self.close();
        self.state.lock().waiting.drain()
    }

    /// Whether entries are taken no more.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Entries that wait.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().waiting.len
    }

    /// How long the queue has not been empty.
    pub(crate) fn standing(&self, now: Instant) -> Duration {
        let state = self.state.lock();
        if state.waiting.is_empty() {
            return Duration::ZERO;
        }
        now.saturating_duration_since(state.empty_at)
    }
}

impl<T: Entry> Reader<'_, T> {
    /// The oldest entry that waits, and those that go with it, into `batch`. `rows_max` says how many rows a run with the first
    /// entry may have; the first is taken whatever it has. Sleeps until there is one. False once the queue is closed and empty.
    pub(crate) fn pop(&mut self, batch: &mut Vec<T>, rows_max: impl Fn(&T) -> usize) -> bool {
        loop {
            {
                let mut state = self.queue.state.lock();
                if std::mem::take(&mut self.busy) {
                    state.busy -= 1;
                }
                if self.queue.take(&mut state, batch, &rows_max) {
                    self.busy = true;
                    state.busy += 1;
                    return true;
                }
                if state.closed {
                    return false;
                }
                state.idle.push(Arc::clone(&self.sleeper));
            }
            self.sleeper.sleep();
            self.queue.state.lock().waking -= 1;
        }
    }

    /// Adds to `batch` what goes with its first entry and comes until `end`, as long as the run has fewer than `rows_max` rows.
    pub(crate) fn linger(&mut self, batch: &mut Vec<T>, rows_max: usize, end: Instant) {
        loop {
            {
                let mut state = self.queue.state.lock();
                gather(&mut state.waiting, batch, rows_max, usize::MAX);
                let full = batch.iter().map(Entry::rows).sum::<usize>() >= rows_max;
                let now = Instant::now();
                if full || state.closed || now >= end {
                    return;
                }
                // Asleep for the moment, so that whoever pushes wakes it.
                state.busy -= 1;
                state.idle.push(Arc::clone(&self.sleeper));
            }
            let mut woken = self.sleeper.sleep_until(end);
            let mut state = self.queue.state.lock();
            if !woken {
                let before = state.idle.len();
                state.idle.retain(|sleeper| !Arc::ptr_eq(sleeper, &self.sleeper));
                if state.idle.len() == before {
                    // Somebody has taken it off to wake it, and is about to.
                    drop(state);
                    self.sleeper.sleep();
                    woken = true;
                    state = self.queue.state.lock();
                }
            }
            state.waking -= usize::from(woken);
            state.busy += 1;
        }
    }
}

impl<T> Reader<'_, T> {
    /// This reader was given up, and is counted no more: see [`Queue::reader_lost`].
    pub(crate) fn was_lost(&mut self) {
        self.busy = false;
    }

    /// This lane does not come back soon: what nobody was woken for, because it was to take it, is another's now.
    pub(crate) fn leave(&mut self) {
        if std::mem::take(&mut self.busy) {
            self.queue.state.lock().busy -= 1;
        }
        self.queue.nudge();
    }
}

impl<T> Drop for Reader<'_, T> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests;
