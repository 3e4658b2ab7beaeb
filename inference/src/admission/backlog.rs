//! Admission by time: what is ahead of a request, in nanoseconds of lanes, against the time that it may wait.
//!
//! A bound in requests protects nothing unless it equals a small amount of time, and how much time a request takes is known only
//! by having run others. So each request has a price, learned; the prices of those between admission and the end of their run
//! are the backlog; and backlog over lanes is the wait that one more would find.
//!
//! The decision itself, [`verdict`], is a pure function of a [`View`].

use super::class::Class;
use super::clients::{Client, Clients, share_ns};
use super::estimate::{Estimates, Length};
use super::shed::ShedReason;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The longest wait, in runs. With ten, a pool of 64 clients was refused by a model of 2.6 ms a run that serves each within 90 ms.
const RUNS: u32 = 128;
/// However short runs are, so long a wait is worth it: less is within what the scheduler of the system does to a thread.
const WAIT_MIN: Duration = Duration::from_millis(20);
/// The longest wait leaves the rest of the default deadline to run, and to try elsewhere.
const DEADLINE_PART: u32 = 4;
/// Shares are looked at when a queue is longer than this part of what it may be. Before, nobody is in anybody's way.
const FAIR_FROM_PART: u64 = 4;
/// What reading the body and sending the answer take, about.
const MARGIN: Duration = Duration::from_millis(2);
/// A queue that was empty within so many runs, and at least this time, is a burst and no standing queue (CoDel's interval).
const STANDING_RUNS: u32 = 4;
const STANDING_MIN: Duration = Duration::from_millis(100);

/// Whoever was turned away so lately says that requests are being turned away.
const SHEDDING_MS: u64 = 1_000;

/// What waits and runs for the lanes of one model version, as time.
#[derive(Debug)]
pub struct Backlog {
    by_class: [AtomicU64; Class::ALL.len()],
    requests: AtomicU64,
    lanes: AtomicU32,
    estimates: Estimates,
    clients: Clients,
    patience: Patience,
    born: Instant,
    /// When somebody was last turned away, ms from `born`, plus one; 0: nobody was.
    shed_at_ms: AtomicU64,
}

/// What bounds the wait.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The longest wait, where somebody has set it.
    pub fixed: Option<Duration>,
    /// Deadline of requests that name none.
    pub default_deadline: Duration,
}

impl Patience {
    /// The longest wait that a critical request may find, where a run takes `run`.
    fn bound(&self, run: Duration) -> Duration {
        self.fixed.unwrap_or_else(|| {
            (run * RUNS).max(WAIT_MIN).min(self.default_deadline / DEADLINE_PART)
        })
    }
}

/// What a decision is made of.
#[derive(Clone, Copy, Debug)]
struct View {
    class: Class,
    /// Prices of those that go before it.
    ahead_ns: u64,
    /// Those inside.
    requests: u64,
    lanes: u64,
    bound: Duration,
    price_ns: u64,
    run: Duration,
    run_p95: Duration,
    /// What its client has inside, and how many clients are here.
    client_ns: u64,
    here: u32,
    /// Until its deadline.
    remaining: Duration,
}

/// Whether one more comes in.
fn verdict(view: &View) -> Result<(), ShedReason> {
    let bound_ns = nanoseconds(view.bound);
    let ahead_ns = wait_ns(view.ahead_ns, view.requests, view.lanes, view.run);
    let client_ns = view.client_ns.saturating_add(view.price_ns) / view.lanes;
    if view.client_ns > 0
        && share_ns(bound_ns, view.here) < bound_ns
        && ahead_ns > bound_ns / FAIR_FROM_PART
        && client_ns > share_ns(bound_ns, view.here)
    {
        return Err(ShedReason::ClientShare);
    }
    if ahead_ns > bound_ns / 100 * view.class.patience_percent() {
        return Err(ShedReason::Wait);
    }
    let needed = Duration::from_nanos(ahead_ns) + view.run_p95 + MARGIN;
    if !view.run_p95.is_zero() && needed > view.remaining {
        return Err(ShedReason::Infeasible);
    }
    Ok(())
}

/// The wait behind `ahead_ns` of requests: a lane that is free is nobody's queue, and those that are not have half of a run behind
/// them on average.
fn wait_ns(ahead_ns: u64, requests: u64, lanes: u64, run: Duration) -> u64 {
    if requests < lanes {
        return 0;
    }
    (ahead_ns / lanes).saturating_sub(nanoseconds(run) / 2)
}

/// How long a request may have waited when a lane takes it up: CoDel's two time-outs (RFC 8289, in the form of "Fail at Scale").
///
/// The targets are not CoDel's 5 ms but what admission has promised: this catches the promises that could not be kept, because
/// runs have become slower or critical requests went first, and nothing else.
fn overdue_after(bound: Duration, run: Duration, standing: Duration) -> Duration {
    let interval = (run * STANDING_RUNS).max(STANDING_MIN);
    if standing > interval { bound + run } else { bound.max(interval) * 2 }
}

/// What a request holds of a backlog.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) class: Class,
    client: Client,
    length: Length,
    price_ns: u64,
}

impl Entry {
    pub(super) fn price_ns(&self) -> u64 {
        self.price_ns
    }
}

impl Backlog {
    /// Nothing waits, and one lane is there.
    pub fn new(patience: Patience) -> Self {
        Backlog {
            by_class: Class::ALL.map(|_| AtomicU64::new(0)),
            requests: AtomicU64::new(0),
            lanes: AtomicU32::new(1),
            estimates: Estimates::default(),
            clients: Clients::default(),
            patience,
            born: Instant::now(),
            shed_at_ms: AtomicU64::new(0),
        }
    }

    /// So many lanes take requests.
    pub(crate) fn set_lanes(&self, lanes: u32) {
        self.lanes.store(lanes.max(1), Ordering::Relaxed);
    }

    /// Lets a request in, or says why not.
    pub(super) fn enter(
        &self,
        class: Class,
        client: u64,
        bytes: u64,
        remaining: Duration,
        now: Instant,
    ) -> Result<Entry, ShedReason> {
        let now_ms = self.ms(now);
        let (client, length) = (Client::of(client), Length::of(bytes));
        let here = self.clients.asks(client, now_ms);
        let price_ns = self.estimates.price_ns(length);
        verdict(&View {
            class,
            ahead_ns: self.ahead_ns(class),
            requests: self.requests.load(Ordering::Relaxed),
            lanes: self.lanes(),
            bound: self.bound(),
            price_ns,
            run: self.estimates.run_mean(),
            run_p95: self.estimates.run_p95(length, now_ms),
            client_ns: self.clients.backlog_ns(client),
            here,
            remaining,
        })
        .inspect_err(|_| self.shed_at_ms.store(now_ms.saturating_add(1), Ordering::Relaxed))?;
        // Two that look at the same moment may both come in. They are as many as there are HTTP threads, and the next one sees both.
        let entry = Entry { class, client, length, price_ns };
        self.requests.fetch_add(1, Ordering::AcqRel);
        self.by_class[class.index()].fetch_add(price_ns, Ordering::AcqRel);
        self.clients.add(client, price_ns);
        Ok(entry)
    }

    /// The request has ended, or will not run.
    pub(super) fn leave(&self, entry: &Entry) {
        self.clients.take_off(entry.client, entry.price_ns);
        give_back(&self.by_class[entry.class.index()], entry.price_ns);
        give_back(&self.requests, 1);
    }

    /// The request costs something else, or is of another class, than its head let expect.
    pub(super) fn change(&self, entry: &mut Entry, class: Class, price_ns: u64) {
        // Added before it is taken off, so that it is never missing.
        self.by_class[class.index()].fetch_add(price_ns, Ordering::AcqRel);
        self.clients.add(entry.client, price_ns);
        self.clients.take_off(entry.client, entry.price_ns);
        give_back(&self.by_class[entry.class.index()], entry.price_ns);
        (entry.class, entry.price_ns) = (class, price_ns);
    }

    /// Whether a request that is inside, and whose body is known now, would be let in again.
    pub(super) fn still_feasible(
        &self,
        entry: &Entry,
        remaining: Duration,
        now: Instant,
    ) -> Result<(), ShedReason> {
        let run_p95 = self.estimates.run_p95(entry.length, self.ms(now));
        let others = self.requests.load(Ordering::Relaxed).saturating_sub(1);
        // Those of its own class that came later are counted, too; the difference is what was let in while its body was read.
        let ahead_ns = self.ahead_ns(entry.class).saturating_sub(entry.price_ns);
        let wait = wait_ns(ahead_ns, others, self.lanes(), self.estimates.run_mean());
        let needed = Duration::from_nanos(wait) + run_p95;
        if run_p95.is_zero() || needed <= remaining { Ok(()) } else { Err(ShedReason::Infeasible) }
    }

    /// A request took `price` of a run of `run`.
    pub(super) fn learn(&self, entry: &Entry, price: Duration, run: Duration, now: Instant) {
        self.estimates.learn(entry.length, price, run, self.ms(now));
    }

    /// A run took so long.
    pub(crate) fn learn_run(&self, run: Duration) {
        self.estimates.learn_run(run);
    }

    /// Whether requests are being turned away for the time that they would wait.
    pub(crate) fn is_shedding(&self, now: Instant) -> bool {
        match self.shed_at_ms.load(Ordering::Relaxed) {
            0 => false,
            at => self.ms(now) < at.saturating_add(SHEDDING_MS),
        }
    }

    /// How long a request may have waited when a lane takes it up, in a queue that was not empty for `standing`.
    pub(crate) fn overdue_after(&self, standing: Duration) -> Duration {
        overdue_after(self.bound(), self.estimates.run_mean(), standing)
    }

    /// The wait that a request of `class` would find.
    pub fn wait(&self, class: Class) -> Duration {
        let requests = self.requests.load(Ordering::Relaxed);
        let run = self.estimates.run_mean();
        Duration::from_nanos(wait_ns(self.ahead_ns(class), requests, self.lanes(), run))
    }

    /// The longest wait that a critical request may find.
    pub fn bound(&self) -> Duration {
        self.patience.bound(self.estimates.run_mean())
    }

    /// Nanoseconds of lanes that are asked for, in total.
    pub fn total_ns(&self) -> u64 {
        self.ahead_ns(Class::BestEffort)
    }

    fn ahead_ns(&self, class: Class) -> u64 {
        self.by_class[..=class.index()]
            .iter()
            .fold(0, |sum, ns| sum.saturating_add(ns.load(Ordering::Relaxed)))
    }

    fn lanes(&self) -> u64 {
        u64::from(self.lanes.load(Ordering::Relaxed)).max(1)
    }

    fn ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX)
    }
}

fn give_back(cell: &AtomicU64, amount: u64) {
    let before = cell.fetch_sub(amount, Ordering::AcqRel);
    debug_assert!(before >= amount, "a request left twice");
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Two lanes with 20 ms runs and as many requests as lanes, nobody's share in question.
    fn view() -> View {
        View {
            class: Class::Default,
            ahead_ns: 40 * MS,
            requests: 2,
            lanes: 2,
            bound: Duration::from_millis(200),
            price_ns: 20 * MS,
            run: Duration::from_millis(20),
            run_p95: Duration::from_millis(25),
            client_ns: 0,
            here: 1,
            remaining: Duration::from_secs(1),
        }
    }

    #[test]
    fn the_wait_decides_by_class() {
        let table = [
            // ms of lanes ahead, class → verdict
            (339, Class::Default, Ok(())),
            (341, Class::Default, Err(ShedReason::Wait)),
            (419, Class::Critical, Ok(())),
            (421, Class::Critical, Err(ShedReason::Wait)),
            (179, Class::Sheddable, Ok(())),
            (181, Class::Sheddable, Err(ShedReason::Wait)),
            (59, Class::BestEffort, Ok(())),
            (61, Class::BestEffort, Err(ShedReason::Wait)),
        ];
        for (ahead, class, expected) in table {
            let view = View { class, ahead_ns: ahead * MS, ..view() };
            assert_eq!(verdict(&view), expected, "{ahead} ms, {class}");
        }
    }

    #[test]
    fn a_free_lane_is_nobodys_queue() {
        let long = View { ahead_ns: 3_000 * MS, ..view() };
        assert_eq!(verdict(&View { requests: 1, ..long }), Ok(()));
        assert_eq!(verdict(&View { requests: 2, ..long }), Err(ShedReason::Wait));
    }

    #[test]
    fn a_deadline_that_cannot_be_kept_is_refused_at_once() {
        let of = |remaining_ms| View { remaining: Duration::from_millis(remaining_ms), ..view() };
        assert_eq!(verdict(&of(37)), Ok(()), "10 ms of waiting, 25 of running, 2 for the rest");
        assert_eq!(verdict(&of(36)), Err(ShedReason::Infeasible));
        assert_eq!(verdict(&View { run_p95: Duration::ZERO, ..of(1) }), Ok(()), "nothing known");
    }

    #[test]
    fn who_has_more_than_a_share_is_told_so() {
        // 200 ms of two lanes, eleven clients: 36 ms each.
        let crowd = View { here: 11, ahead_ns: 150 * MS, ..view() };
        assert_eq!(verdict(&View { client_ns: 40 * MS, ..crowd }), Ok(()));
        assert_eq!(verdict(&View { client_ns: 60 * MS, ..crowd }), Err(ShedReason::ClientShare));
        let first = View { client_ns: 0, price_ns: 500 * MS, ..crowd };
        assert_eq!(verdict(&first), Ok(()), "one request is everybody's");
        let short = View { ahead_ns: 90 * MS, client_ns: 80 * MS, ..crowd };
        assert_eq!(verdict(&short), Ok(()), "a short queue is nobody's trouble");
        for here in [1, 2] {
            let few = View { here, client_ns: 500 * MS, ..crowd };
            assert_eq!(verdict(&few), Ok(()), "the wait is bound enough for {here}");
        }
    }

    #[test]
    fn the_bound_follows_the_runs() {
        let patience = Patience { fixed: None, default_deadline: Duration::from_secs(1) };
        let table = [(0, 20), (1, 128), (2, 250), (30, 250), (5_000, 250)];
        for (run, bound) in table {
            let run = Duration::from_millis(run);
            assert_eq!(patience.bound(run), Duration::from_millis(bound), "{run:?}");
        }
        let fixed = Patience { fixed: Some(Duration::from_millis(7)), ..patience };
        assert_eq!(fixed.bound(Duration::from_secs(9)), Duration::from_millis(7));
        let hasty = Patience { default_deadline: Duration::from_millis(40), ..patience };
        assert_eq!(hasty.bound(Duration::from_secs(9)), Duration::from_millis(10));
    }

    #[test]
    fn promises_that_were_not_kept_are_given_up() {
        let ms = Duration::from_millis;
        assert_eq!(overdue_after(ms(200), ms(20), ms(50)), ms(400), "a burst");
        assert_eq!(overdue_after(ms(200), ms(20), ms(150)), ms(220), "a queue that stands");
        assert_eq!(overdue_after(ms(20), ms(1), ms(50)), ms(200));
        assert_eq!(overdue_after(ms(20), ms(1), ms(150)), ms(21));
    }

    #[test]
    fn what_enters_leaves() {
        let patience = Patience { fixed: None, default_deadline: Duration::from_secs(1) };
        let backlog = Backlog::new(patience);
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let enter = |class| backlog.enter(class, 7, 100, second, now);
        let mut first = enter(Class::Sheddable).unwrap();
        let run = Duration::from_millis(10);
        for _ in 0..20 {
            backlog.learn(&first, run, run, now);
            backlog.learn_run(run);
        }
        let second = enter(Class::Default).unwrap();
        assert_eq!(backlog.total_ns(), second.price_ns);
        backlog.change(&mut first, Class::Critical, 30 * MS);
        assert_eq!(backlog.ahead_ns(Class::Critical), 30 * MS);
        let ahead = 30 * MS + second.price_ns;
        let half = nanoseconds(backlog.estimates.run_mean()) / 2;
        assert_eq!(backlog.wait(Class::Default), Duration::from_nanos(ahead - half));
        backlog.leave(&first);
        backlog.leave(&second);
        assert_eq!((backlog.total_ns(), backlog.clients.backlog_ns(Client::of(7))), (0, 0));
        assert_eq!(backlog.wait(Class::BestEffort), Duration::ZERO);
    }
}
