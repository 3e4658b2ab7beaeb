//! What a lane is at, where the watchdog can see it, and take it away.
//!
//! While a run is in progress its jobs lie here and not with the thread: a thread that hangs in foreign code cannot answer
//! anybody or give anything back, and whoever finds it hung does both in its place.

use super::thread_time;
use crate::predict::Job;
use crate::recorder::{Place, Seat};
use balm_probes::watchdog::{LaneVerdict, RunView, judge_lane};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

/// Where one lane is seen.
pub(super) struct Post {
    pub(super) index: u32,
    /// Number of its thread in the system; 0 before it runs.
    thread: AtomicI32,
    /// Lives as long as the post: after a hang, as long as the thread.
    life: Arc<()>,
    /// Where it is written down what runs, if it is.
    seat: Option<Seat>,
    work: Mutex<Work>,
}

#[derive(Default)]
struct Work {
    /// Counts the runs.
    run: u64,
    /// Those that the run in progress computes for; empty between runs.
    jobs: Vec<Job>,
    /// Those that this lane is to run next, each by itself.
    next: VecDeque<Job>,
    /// Of the run in progress, where suspects are run by themselves.
    place: Option<Place>,
    /// The thread does not own anything any more.
    abandoned: bool,
    seen: Option<Seen>,
}

/// What the watchdog has seen of a run; times on its clock, milliseconds.
#[derive(Clone, Copy)]
struct Seen {
    run: u64,
    deadline_ms: u64,
    /// Since when it is known to be cancelled, and the processor time of its thread then.
    cancelled: Option<(u64, Option<u64>)>,
}

/// What there is to be done about a lane.
pub(super) struct Look {
    pub(super) verdict: LaneVerdict,
    /// The run that it is about.
    pub(super) run: u64,
    /// Whether there is one.
    pub(super) is_running: bool,
    /// Whether it was told to end and has not.
    pub(super) is_cancelled: bool,
    /// How long that is, milliseconds.
    pub(super) since_ms: u64,
}

impl Post {
    pub(super) fn new(index: u32, seat: Option<Seat>) -> Self {
        let (thread, life) = (AtomicI32::new(0), Arc::default());
        Post { index, thread, life, seat, work: Mutex::default() }
    }

    /// Where it is written down what runs, if it is.
    pub(super) fn seat(&self) -> Option<&Seat> {
        self.seat.as_ref()
    }

    /// A sign of life of the thread, once nobody else looks at the post.
    pub(super) fn life(&self) -> Weak<()> {
        Arc::downgrade(&self.life)
    }

    /// The calling thread is the lane's.
    pub(super) fn enter(&self) {
        self.thread.store(thread_time::current(), Ordering::Relaxed);
    }

    /// A run for `batch` begins; empties it.
    pub(super) fn begin(&self, batch: &mut Vec<Job>, place: Option<Place>) {
        if let Some(seat) = &self.seat {
            seat.begin(batch.iter().map(|job| job.hash));
        }
        let mut work = self.work.lock();
        work.run += 1;
        work.place = place;
        std::mem::swap(&mut work.jobs, batch);
    }

    /// The run has returned: gives its jobs back. False when the lane was abandoned meanwhile, and its jobs with it.
    pub(super) fn end(&self, batch: &mut Vec<Job>) -> bool {
        // First, so that nobody who is answered is held to have been there.
        if let Some(seat) = &self.seat {
            seat.end();
        }
        let mut work = self.work.lock();
        work.place = None;
        std::mem::swap(&mut work.jobs, batch);
        !work.abandoned
    }

    /// Puts jobs by that this lane runs next.
    pub(super) fn put_by(&self, jobs: impl Iterator<Item = Job>) {
        self.work.lock().next.extend(jobs);
    }

    /// The next of those that were put by.
    pub(super) fn next(&self) -> Option<Job> {
        self.work.lock().next.pop_front()
    }

    /// All that were put by and did not run.
    pub(super) fn left(&self) -> VecDeque<Job> {
        std::mem::take(&mut self.work.lock().next)
    }

    /// Judges the run in progress at `now_ms` on the clock of the watchdog, and tells it to end if that is due.
    pub(super) fn look(&self, now_ms: u64, grace_ms: u64) -> Look {
        let mut work = self.work.lock();
        let Work { run, jobs, seen, .. } = &mut *work;
        let run = *run;
        let Some(latest) = jobs.iter().map(|job| job.deadline.at).max() else {
            *seen = None;
            return Look {
                verdict: LaneVerdict::Nothing,
                run,
                is_running: false,
                is_cancelled: false,
                since_ms: 0,
            };
        };
        let thread = self.thread.load(Ordering::Relaxed);
        let seen = match seen {
            Some(seen) if seen.run == run => seen,
            // The deadline is put on the clock of the watchdog, on which a pause of the process does not count.
            _ => seen.insert(Seen {
                run,
                deadline_ms: now_ms.saturating_add(milliseconds_until(latest)),
                cancelled: None,
            }),
        };
        if seen.cancelled.is_none() && jobs.iter().all(|job| job.token.is_cancelled()) {
            seen.cancelled = Some((now_ms, thread_time::spent_ms(thread)));
        }
        let since_ms = seen.cancelled.map_or(0, |(at_ms, _)| now_ms.saturating_sub(at_ms));
        // The system is asked only when it matters.
        let spent = |before: Option<u64>| {
            (since_ms >= grace_ms)
                .then(|| Some(thread_time::spent_ms(thread)?.saturating_sub(before?)))
                .flatten()
        };
        let view = RunView {
            deadline_ms: seen.deadline_ms,
            cancelled_since_ms: seen.cancelled.map(|(at_ms, _)| at_ms),
            cpu_since_cancel_ms: seen.cancelled.and_then(|(_, before)| spent(before)),
        };
        let verdict = judge_lane(Some(&view), now_ms, grace_ms);
        if verdict == LaneVerdict::Cancel {
            for job in jobs.iter() {
                // It runs, so there is nothing in the queue to clear away.
                let _waits = job.token.cancel();
            }
            seen.cancelled = Some((now_ms, thread_time::spent_ms(thread)));
        }
        Look { verdict, run, is_running: true, is_cancelled: seen.cancelled.is_some(), since_ms }
    }

    /// Takes everything from the lane: the jobs of its run, and those put by. `None` when that run has just returned.
    pub(super) fn abandon(&self, run: u64) -> Option<(Vec<Job>, VecDeque<Job>)> {
        let mut work = self.work.lock();
        if work.run != run || work.jobs.is_empty() {
            return None;
        }
        work.abandoned = true;
        work.place = None;
        if let Some(seat) = &self.seat {
            seat.hangs();
        }
        Some((std::mem::take(&mut work.jobs), std::mem::take(&mut work.next)))
    }
}

/// Rounded up, so that nothing is told to end before its time.
fn milliseconds_until(end: Instant) -> u64 {
    let left = end.saturating_duration_since(Instant::now());
    u64::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
