//! Lanes: one OS thread and one session each, pulling jobs from the queue of their model version.
//!
//! A panic inside a run is an answer to one request and a new lane: the thread ends, its session goes with it,
//! and a replacement builds its own from verified bytes, within a budget.

mod run;
mod turnstile;

use crate::adaptive::Ran;
use crate::admission::{Backlog, Patience};
use crate::batch::{CostTable, Padding};
use crate::engine::Session;
use crate::metrics::VersionMetrics;
use crate::predict::{Job, PredictError};
use crate::queue::Queue;
use crate::statistics::Statistics;
use balm_probes::{ModelState, RepairBudget};
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use turnstile::{Place, Turnstile};

/// A lane that dies more often than this is not repaired but reported.
const RESTARTS_MAX: usize = 5;
const RESTARTS_WINDOW_MS: u64 = 60_000;

/// How far lanes stand back behind the threads that speak to clients, when cores are short.
const LANE_NICENESS: i32 = 5;

/// Requests share a run as long as it takes no more than this part of the default deadline: an eighth of the longest wait. Runs
/// that were longer made the wait jump, and with it the door open and close (goodput 0.75 instead of 0.95 at 11 times the load).
const SHARED_RUN_PART: u32 = 32;
/// What is said of sharing and padding until a session has tried it.
const UNPROVED: &str = "off: not yet proved to be right";

/// Builds a session of the same version in place of a dead one.
pub(crate) type Rebuild = dyn Fn() -> Result<Box<dyn Session>, String> + Send + Sync;

/// Hears that the condition of the lanes has changed.
pub(crate) type LanesChanged = dyn Fn() + Send + Sync;

/// What bounds the queue of a version, and how requests share runs, where they do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneSettings {
    /// Lanes, none of which is there yet.
    pub(crate) wanted: u32,
    /// Requests that may wait.
    pub(crate) queue_capacity: usize,
    /// How long they may.
    pub(crate) patience: Patience,
    /// Rows of one run; a request that has more by itself runs alone.
    pub(crate) rows_max: usize,
    /// How long the first request of a run waits for others to join. Zero, unless somebody wants it otherwise.
    pub(crate) delay: Duration,
    /// Whether as many lanes run at once as turns out to be best, rather than all.
    pub(crate) adaptive: bool,
}

/// How the lanes of a version stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Condition {
    /// As many as configured.
    pub(crate) wanted: u32,
    /// As many as would take a job now. A busy lane is healthy.
    pub(crate) healthy: u32,
    /// As many as are being built, for the first time or in place of a dead one.
    pub(crate) coming: u32,
    /// Why a lane does not run where it was asked to.
    pub(crate) degraded: Option<String>,
    /// The latest trouble with a lane, until all are healthy again.
    pub(crate) trouble: Option<String>,
}

impl Condition {
    /// The state of a version that serves by these lanes, and why. Lanes that are coming for the first time are no lack.
    pub(crate) fn verdict(&self) -> (ModelState, Option<String>) {
        if self.is_hopeless() {
            return (ModelState::Failed, self.trouble.clone());
        }
        if self.degraded.is_some() {
            return (ModelState::Degraded, self.degraded.clone());
        }
        if self.healthy + self.coming < self.wanted {
            return (ModelState::Degraded, self.trouble.clone());
        }
        (ModelState::Ready, self.trouble.clone())
    }

    fn is_hopeless(&self) -> bool {
        self.healthy == 0 && self.coming == 0
    }
}

/// What the lanes of one version share.
pub(crate) struct Lanes {
    pub(crate) label: String,
    pub(crate) queue: Queue<Job>,
    pub(crate) statistics: Statistics,
    pub(crate) metrics: VersionMetrics,
    pub(crate) costs: CostTable,
    pub(crate) backlog: Arc<Backlog>,
    /// How requests of different lengths are made alike, where somebody has asked for it.
    pub(crate) padding: Option<Arc<Padding>>,
    /// Whether requests share runs.
    shares: AtomicBool,
    /// Why they do or do not, for people.
    sharing: Mutex<String>,
    /// Why they are padded for that or are not, for people.
    padded: Mutex<String>,
    settings: LaneSettings,
    /// Where not all lanes may run at once. One lane needs none.
    turnstile: Option<Turnstile>,
    condition: Mutex<Condition>,
    rebuild: Box<Rebuild>,
    changed: Box<LanesChanged>,
    budget: Mutex<RepairBudget>,
    born: Instant,
}

impl Lanes {
    /// No lane yet; as many as are wanted are coming.
    pub(crate) fn new(
        label: String,
        settings: LaneSettings,
        padding: Option<Arc<Padding>>,
        metrics: VersionMetrics,
        rebuild: Box<Rebuild>,
        changed: Box<LanesChanged>,
    ) -> Self {
        Lanes {
            label,
            queue: Queue::new(settings.queue_capacity),
            statistics: Statistics::default(),
            metrics,
            costs: CostTable::default(),
            backlog: Arc::new(Backlog::new(settings.patience)),
            padding,
            shares: AtomicBool::new(false),
            sharing: Mutex::new(UNPROVED.to_owned()),
            padded: Mutex::new(UNPROVED.to_owned()),
            settings,
            turnstile: (settings.adaptive && settings.wanted > 1)
                .then(|| Turnstile::new(settings.wanted)),
            condition: Mutex::new(Condition {
                wanted: settings.wanted,
                coming: settings.wanted,
                ..Condition::default()
            }),
            rebuild,
            changed,
            budget: Mutex::new(RepairBudget::new(RESTARTS_MAX, RESTARTS_WINDOW_MS)),
            born: Instant::now(),
        }
    }

    /// From now on requests share runs, or do not.
    pub(crate) fn share(&self, shares: bool, why: String) {
        tracing::info!(model = %self.label, shares, why, "requests that share runs");
        *self.sharing.lock() = format!("{}: {why}", if shares { "on" } else { "off" });
        self.shares.store(shares, Ordering::Relaxed);
    }

    /// Whether requests share runs.
    pub(crate) fn shares_runs(&self) -> bool {
        self.shares.load(Ordering::Relaxed)
    }

    /// From now on requests are padded to share runs, or are not.
    pub(crate) fn pad(&self, pads: bool, why: String) {
        let Some(padding) = &self.padding else { return };
        tracing::info!(model = %self.label, pads, why, "requests that are padded to share runs");
        *self.padded.lock() = format!("{}: {why}", if pads { "on" } else { "off" });
        padding.set(pads);
    }

    /// Whether requests share runs and are padded for it, and why.
    pub(crate) fn sharing(&self) -> String {
        let sharing = self.sharing.lock().clone();
        match &self.padding {
            Some(_) => format!("{sharing}; padding {}", self.padded.lock()),
            None => sharing,
        }
    }

    /// Runs that may be in progress at once.
    pub(crate) fn running_max(&self) -> u32 {
        self.turnstile.as_ref().map_or(self.settings.wanted, Turnstile::limit)
    }

    /// A run brought answers, which may say something about how many should be in progress.
    fn learn_limit(&self, ran: impl FnOnce() -> Ran) {
        let Some(turnstile) = &self.turnstile else { return };
        if let Some(limit) = turnstile.ran(&ran()) {
            self.backlog.set_lanes(limit.min(self.condition.lock().healthy));
        }
    }

    /// Takes no more requests. What waits is still answered, then the lanes end.
    pub(crate) fn close(&self) {
        self.queue.close();
        if let Some(turnstile) = &self.turnstile {
            turnstile.close();
        }
    }

    /// How the lanes stand.
    pub(crate) fn condition(&self) -> Condition {
        self.condition.lock().clone()
    }

    /// A lane that was coming is there: starts its thread. False when that could not be started; then it is lost.
    pub(crate) fn join(self: &Arc<Self>, index: u32, session: Box<dyn Session>) -> bool {
        // Counted before the thread runs: the version is called ready on the strength of it.
        self.arrived(session.as_ref());
        let lanes = Arc::clone(self);
        let started = self.spawn(index, move || lanes.serve(index, session));
        if !started {
            {
                let mut condition = self.condition.lock();
                condition.healthy -= 1;
                condition.coming += 1;
            }
            self.lost(format!("lane {index} could not be started"));
        }
        started
    }

    fn arrived(&self, session: &dyn Session) {
        {
            let mut condition = self.condition.lock();
            condition.coming -= 1;
            condition.healthy += 1;
            if let Some(reason) = &session.placement().degraded {
                condition.degraded = Some(reason.clone());
            }
            if condition.healthy == condition.wanted {
                condition.trouble = None;
            }
            self.backlog.set_lanes(condition.healthy.min(self.running_max()));
        }
        (self.changed)();
    }

    /// A lane that was coming will not come. With the last one, whoever waits is answered and nobody else is taken.
    pub(crate) fn lost(&self, reason: String) {
        tracing::error!(model = %self.label, reason, "lane lost");
        let hopeless = {
            let mut condition = self.condition.lock();
            condition.coming -= 1;
            condition.trouble = Some(reason);
            condition.is_hopeless()
        };
        if hopeless {
            self.close();
            for job in self.queue.close_and_drain() {
                job.answer(Err(PredictError::LaneLost));
            }
        }
        (self.changed)();
    }

    fn spawn(&self, index: u32, body: impl FnOnce() + Send + 'static) -> bool {
        // Linux cuts thread names at 15 bytes; the index matters more than the model's name.
        let name: String = format!("lane{index}-{}", self.label).chars().take(15).collect();
        match thread::Builder::new().name(name).spawn(body) {
            Ok(_detached) => true,
            Err(error) => {
                tracing::error!(model = %self.label, lane = index, %error, "lane thread not started");
                false
            }
        }
    }

    fn serve(self: &Arc<Self>, index: u32, mut session: Box<dyn Session>) {
        // Of this thread alone, on Linux: whoever turns requests away, or answers a probe, must not wait for those who compute.
        // Where it is not allowed, everything works as well, only less so under load.
        let _ = rustix::process::setpriority_process(None, LANE_NICENESS);
        let canceller = session.canceller();
        let mut queue = self.queue.reader();
        let mut batch = Vec::new();
        let rows_max = |first: &Job| self.rows_max(first);
        let mut place = self.turnstile.as_ref().map(Place::at);
        loop {
            if let Some(place) = place.as_mut()
                && !place.keeps()
            {
                queue.leave();
                place.take();
            }
            if !queue.pop(&mut batch, rows_max) {
                break;
            }
            let rows_max = self.rows_max(&batch[0]);
            if !self.settings.delay.is_zero() && rows_max > 1 {
                let end = batch[0].queued_at + self.settings.delay;
                queue.linger(&mut batch, rows_max, end);
            }
            let turn = place.as_ref().map(Place::turn);
            let culprit = self.run(session.as_mut(), &canceller, &mut batch);
            drop(turn);
            if let Some(culprit) = culprit {
                drop((queue, place));
                self.replace(index);
                // Only now: who asks again on hearing this must find the lanes as they are.
                culprit.answer(Err(PredictError::LaneLost));
                return;
            }
        }
        self.condition.lock().healthy -= 1;
    }

    /// Rows of a run that begins with `first`.
    fn rows_max(&self, first: &Job) -> usize {
        if !first.joins || !self.shares.load(Ordering::Relaxed) {
            return 1;
        }
        // Whoever waits on purpose wants runs as large as they can be.
        if self.settings.delay.is_zero() {
            let longest = self.settings.patience.default_deadline / SHARED_RUN_PART;
            self.costs.rows_max(first.shape, self.settings.rows_max, longest)
        } else {
            self.settings.rows_max
        }
    }

    /// A panic may have left the session in any state, so thread and session go, and a new pair comes.
    fn replace(self: &Arc<Self>, index: u32) {
        self.metrics.lane_restarts.inc();
        {
            let mut condition = self.condition.lock();
            condition.healthy -= 1;
            condition.coming += 1;
            self.backlog.set_lanes(condition.healthy.min(self.running_max()));
            condition.trouble = Some(format!("lane {index} panicked and is being replaced"));
        }
        if self.queue.is_closed() {
            // Its version was replaced or unloaded; nobody waits for this lane.
            return;
        }
        (self.changed)();
        let now_ms = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        if !self.budget.lock().try_spend(now_ms) {
            self.lost(format!(
                "lane {index} died more than {RESTARTS_MAX} times in {} s and is not replaced again",
                RESTARTS_WINDOW_MS / 1_000
            ));
            return;
        }
        tracing::error!(model = %self.label, lane = index, "lane panicked, replacing it");
        let lanes = Arc::clone(self);
        let started = self.spawn(index, move || {
            let built = catch_unwind(AssertUnwindSafe(|| (lanes.rebuild)()))
                .unwrap_or_else(|_panic| Err("building it panicked".to_owned()));
            match built {
                Ok(session) => {
                    lanes.arrived(session.as_ref());
                    lanes.serve(index, session);
                }
                Err(reason) => lanes.lost(format!("lane {index} could not be built: {reason}")),
            }
        });
        if !started {
            self.lost(format!("lane {index} could not be started again"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_follows_the_lanes() {
        let degraded = Some("on the cpu".to_owned());
        let table = [
            // wanted, healthy, coming, degraded → state
            ((2, 2, 0, None), ModelState::Ready),
            ((2, 1, 1, None), ModelState::Ready),
            ((2, 0, 1, None), ModelState::Degraded),
            ((2, 1, 0, None), ModelState::Degraded),
            ((2, 0, 0, None), ModelState::Failed),
            ((1, 0, 1, None), ModelState::Ready),
            ((2, 2, 0, degraded.clone()), ModelState::Degraded),
            ((2, 0, 0, degraded), ModelState::Failed),
        ];
        for ((wanted, healthy, coming, degraded), state) in table {
            let condition = Condition { wanted, healthy, coming, degraded, trouble: None };
            assert_eq!(condition.verdict().0, state, "{condition:?}");
        }
    }
}
