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

use crate::admission::Class;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// What waking a sleeping thread takes on a shared machine, about.
const WAKE_COST: Duration = Duration::from_micros(50);
/// Runs up to this long are short beside the waking of whoever waits for their answers.
const SHORT_RUN: Duration = Duration::from_micros(15);
/// A run's share in the learned time of runs: 1/8.
const LEARNING_SHIFT: u32 = 3;
/// Nothing learned yet: every entry wakes a lane.
const UNKNOWN_NS: u64 = u64::MAX;

/// How far down the queue a lane looks for entries that go with the first one. Those in between are not overtaken by much:
/// they are next.
const LOOK_MAX: usize = 256;

/// What the queue knows of an entry.
pub(crate) trait Entry {
    /// Whether `other` can be computed in the same run.
    fn joins(&self, other: &Self) -> bool;

    /// Rows that it adds to a run.
    fn rows(&self) -> usize;

    /// How critical it is.
    fn class(&self) -> Class;
}

/// Every so many runs begin with an entry of another class than the most critical that waits.
const OTHERS_EVERY: u32 = 20;

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

/// Entries by class, the most critical first.
struct Waiting<T> {
    lines: [VecDeque<T>; Class::ALL.len()],
    len: usize,
    taken: u32,
}

impl<T> Waiting<T> {
    fn new() -> Self {
        Waiting { lines: Class::ALL.map(|_| VecDeque::new()), len: 0, taken: 0 }
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn drain(&mut self) -> Vec<T> {
        self.len = 0;
        self.lines.iter_mut().flat_map(|line| line.drain(..)).collect()
    }
}

impl<T: Entry> Waiting<T> {
    fn push_back(&mut self, entry: T) {
        self.len += 1;
        self.lines[entry.class().index()].push_back(entry);
    }

    fn push_front(&mut self, entry: T) {
        self.len += 1;
        self.lines[entry.class().index()].push_front(entry);
    }

    /// The entry whose turn it is.
    fn pop_front(&mut self) -> Option<T> {
        let mut busy = (0..self.lines.len()).filter(|line| !self.lines[*line].is_empty());
        let first = busy.next()?;
        let mut turn = first;
        if let Some(second) = busy.next() {
            self.taken = self.taken.wrapping_add(1);
            if self.taken.is_multiple_of(OTHERS_EVERY) {
                // Each of the others has its turn in time.
                let others: Vec<usize> = std::iter::once(second).chain(busy).collect();
                turn = others[(self.taken / OTHERS_EVERY) as usize % others.len()];
            }
        }
        self.len -= 1;
        self.lines[turn].pop_front()
    }
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

/// Moves entries that go with the first of `batch` out of `waiting`: at most `count`, and no more than `rows_max` rows in all.
fn gather<T: Entry>(waiting: &mut Waiting<T>, batch: &mut Vec<T>, rows_max: usize, count: usize) {
    let mut rows: usize = batch.iter().map(Entry::rows).sum();
    let end = batch.len().saturating_add(count);
    let mut looked = 0;
    let Waiting { lines, len, .. } = waiting;
    for line in lines {
        let mut index = 0;
        while index < line.len() && looked < LOOK_MAX && batch.len() < end && rows < rows_max {
            looked += 1;
            let fits = line[index].rows().saturating_add(rows) <= rows_max;
            if !fits || !batch[0].joins(&line[index]) {
                index += 1;
                continue;
            }
            // At the front, where it is nearly always, this moves nothing.
            let Some(entry) = line.remove(index) else { return };
            *len -= 1;
            rows += entry.rows();
            batch.push(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Entries of a row each; those of the same hundred go together, the first hundred goes with nobody.
    impl Entry for u32 {
        fn joins(&self, other: &Self) -> bool {
            self / 100 == other / 100 && *self >= 100
        }

        fn rows(&self) -> usize {
            1
        }

        fn class(&self) -> Class {
            Class::ALL[*self as usize / 1000 % Class::ALL.len()]
        }
    }

    fn pop(reader: &mut Reader<'_, u32>) -> Option<u32> {
        let mut batch = Vec::new();
        reader.pop(&mut batch, |_| 1).then(|| batch[0])
    }

    fn waiting(reader: &mut Reader<'_, u32>, rows_max: usize) -> Vec<u32> {
        let mut batch = Vec::new();
        reader.pop(&mut batch, |_| rows_max);
        batch
    }

    #[test]
    fn what_goes_together_is_handed_out_together() {
        let queue = Queue::new(64);
        let mut reader = queue.reader();
        for entry in [100, 200, 101, 1, 102, 103, 201, 2] {
            queue.push(entry).unwrap();
        }
        assert_eq!(waiting(&mut reader, 3), [100, 101, 102], "as many rows as a run may have");
        assert_eq!(waiting(&mut reader, 8), [200, 201]);
        assert_eq!(waiting(&mut reader, 8), [1], "some go with nobody");
        queue.put_back([110, 111].into_iter());
        assert_eq!(waiting(&mut reader, 8), [110, 111, 103], "back to the front, in order");
        assert_eq!(waiting(&mut reader, 8), [2]);
        queue.close();
        assert_eq!(waiting(&mut reader, 8), [0; 0]);
    }

    #[test]
    fn critical_goes_first_and_the_others_now_and_then() {
        let queue = Queue::new(256);
        let mut reader = queue.reader();
        for round in 0..30 {
            for class in [3000, 1000, 0] {
                queue.push(class + round).unwrap();
            }
        }
        let order: Vec<u32> = (0..30).map(|_| waiting(&mut reader, 1)[0] / 1000).collect();
        assert_eq!(order.iter().filter(|class| **class == 0).count(), 29, "{order:?}");
        assert_ne!(order[19], 0, "{order:?}");
        let rest: Vec<u32> = (0..60).map(|_| waiting(&mut reader, 1)[0]).collect();
        assert_eq!(rest.len(), 60, "nothing is lost");
        assert!(rest.iter().position(|entry| *entry >= 3000) < Some(40));
    }

    #[test]
    fn a_queue_stands_since_it_was_empty() {
        let queue = Queue::new(8);
        let mut reader = queue.reader();
        let later = Instant::now() + Duration::from_secs(1);
        assert_eq!(queue.standing(later), Duration::ZERO);
        queue.push(1).unwrap();
        queue.push(2).unwrap();
        let standing = queue.standing(later);
        assert!(standing > Duration::from_millis(900) && standing <= Duration::from_secs(1));
        waiting(&mut reader, 1);
        assert!(queue.standing(later) >= standing, "one is left");
        waiting(&mut reader, 1);
        assert_eq!(queue.standing(later), Duration::ZERO);
    }

    #[test]
    fn lanes_that_sleep_get_their_part_of_long_runs() {
        for (run, expected) in [(Duration::from_millis(5), 3), (Duration::from_nanos(100), 9)] {
            let queue = Queue::new(64);
            queue.learn(run);
            let mut reader = queue.reader();
            for entry in 100..109 {
                queue.push(entry).unwrap();
            }
            // Two others are on their way.
            queue.state.lock().waking = 2;
            assert_eq!(waiting(&mut reader, 64).len(), expected, "{run:?}");
        }
    }

    #[test]
    fn lingering_ends_when_the_run_is_full_or_the_time_is_over() {
        let queue = Arc::new(Queue::new(64));
        let long = Duration::from_secs(20);
        for (learned, late) in [(Duration::ZERO, true), (long, true), (long, false)] {
            queue.learn(learned);
            queue.push(100).unwrap();
            let mut reader = queue.reader();
            let mut batch = waiting(&mut reader, 3);
            let pusher = std::thread::spawn({
                let queue = Arc::clone(&queue);
                move || {
                    for entry in (101..=102).filter(|_| late) {
                        queue.push(entry).unwrap();
                        queue.wake_for_burst();
                    }
                }
            });
            let limit = if late { long } else { Duration::from_millis(5) };
            let begun = Instant::now();
            reader.linger(&mut batch, 3, begun + limit);
            pusher.join().unwrap();
            assert_eq!(batch.len(), if late { 3 } else { 1 });
            assert_eq!(begun.elapsed() < limit, late);
            let state = queue.state.lock();
            assert_eq!((state.busy, state.waking, state.idle.len()), (1, 0, 0));
            drop(state);
            drop(reader);
        }
    }

    #[test]
    fn is_bounded_and_first_in_first_out() {
        let queue = Queue::new(2);
        let mut reader = queue.reader();
        assert_eq!(queue.push(1), Ok(()));
        assert_eq!(queue.push(2), Ok(()));
        assert_eq!(queue.push(3), Err(Refused::Full(3)));
        assert_eq!(pop(&mut reader), Some(1));
        queue.close();
        assert_eq!(queue.push(4), Err(Refused::Closed(4)));
        assert_eq!(pop(&mut reader), Some(2), "what waited is still handed out");
        assert_eq!(pop(&mut reader), None);
    }

    #[test]
    fn no_entry_is_lost_between_threads() {
        for run in [Duration::ZERO, Duration::from_secs(1)] {
            let queue = Arc::new(Queue::new(64));
            queue.learn(run);
            let sum = Arc::new(AtomicU64::new(0));
            let readers: Vec<_> = (0..3)
                .map(|_| {
                    let (queue, sum) = (Arc::clone(&queue), Arc::clone(&sum));
                    std::thread::spawn(move || {
                        let mut reader = queue.reader();
                        let mut batch = Vec::new();
                        while reader.pop(&mut batch, |_| 8) {
                            let taken: u32 = batch.drain(..).sum();
                            sum.fetch_add(taken.into(), Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            let mut expected = 0;
            for entry in 0..20_000u32 {
                let mut entry = entry;
                while let Err(Refused::Full(back)) = queue.push(entry) {
                    entry = back;
                    queue.wake_for_burst();
                    std::thread::yield_now();
                }
                expected += u64::from(entry);
            }
            queue.close();
            for reader in readers {
                reader.join().unwrap();
            }
            assert_eq!(sum.load(Ordering::Relaxed), expected);
        }
    }

    /// A reader thread that announces what it takes and goes on when it is told to.
    fn reader(queue: &Arc<Queue<u32>>, taken: &mpsc::SyncSender<u32>) -> mpsc::SyncSender<()> {
        let (go, gone) = mpsc::sync_channel(64);
        let (queue, taken) = (Arc::clone(queue), taken.clone());
        std::thread::spawn(move || {
            let mut reader = queue.reader();
            while let Some(entry) = pop(&mut reader) {
                taken.send(entry).unwrap();
                let _ = gone.recv();
            }
        });
        go
    }

    fn until_idle(queue: &Queue<u32>, readers: usize) {
        while queue.state.lock().idle.len() < readers {
            std::thread::yield_now();
        }
    }

    #[test]
    fn short_runs_wake_nobody_while_a_lane_is_awake_and_a_nudge_does() {
        let queue = Arc::new(Queue::new(64));
        queue.learn(Duration::from_micros(5));
        let (sender, taken) = mpsc::sync_channel(64);
        let goes = [reader(&queue, &sender), reader(&queue, &sender)];
        until_idle(&queue, 2);
        queue.push(0).unwrap();
        queue.push(1).unwrap();
        assert_eq!(queue.state.lock().idle.len(), 2, "nobody is woken in the middle of a burst");
        queue.wake_for_burst();
        queue.wake_for_burst();
        assert_eq!(taken.recv(), Ok(0));
        queue.push(2).unwrap();
        queue.wake_for_burst();
        assert_eq!(queue.state.lock().idle.len(), 1, "the other lane sleeps on");
        goes[0].send(()).unwrap();
        goes[1].send(()).unwrap();
        assert_eq!(taken.recv(), Ok(1));
        queue.nudge();
        assert_eq!(taken.recv(), Ok(2), "until somebody has waited too long");
        queue.close();
    }

    #[test]
    fn long_runs_wake_a_lane_for_each() {
        let queue = Arc::new(Queue::new(64));
        queue.learn(Duration::from_millis(10));
        let (sender, taken) = mpsc::sync_channel(64);
        let _goes = [reader(&queue, &sender), reader(&queue, &sender)];
        until_idle(&queue, 2);
        queue.push(1).unwrap();
        queue.push(2).unwrap();
        let mut both = [taken.recv().unwrap(), taken.recv().unwrap()];
        both.sort_unstable();
        assert_eq!(both, [1, 2]);
        queue.close();
    }

    #[test]
    fn a_lane_that_dies_hands_on_what_was_left_to_it() {
        let queue = Arc::new(Queue::new(64));
        queue.learn(Duration::from_micros(5));
        let (sender, taken) = mpsc::sync_channel(64);
        let go = reader(&queue, &sender);
        until_idle(&queue, 1);
        let mut dying = queue.reader();
        queue.push(1).unwrap();
        queue.wake_for_burst();
        assert_eq!(taken.recv(), Ok(1), "the sleeper was woken: nobody was awake");
        drop(go);
        until_idle(&queue, 1);
        // This thread takes the second before the sleeper can be told, then leaves with a third left to it.
        queue.state.lock().busy = 0;
        queue.state.lock().waiting.push_back(2);
        assert_eq!(pop(&mut dying), Some(2));
        queue.push(3).unwrap();
        queue.wake_for_burst();
        assert_eq!(queue.state.lock().idle.len(), 1, "left to the lane that is awake");
        drop(dying);
        assert_eq!(taken.recv(), Ok(3));
        queue.close();
    }
}
