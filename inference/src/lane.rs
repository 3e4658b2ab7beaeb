//! Lanes: one OS thread and one session each, pulling jobs from the queue of their model version.
//!
//! A panic inside a run is an answer to one request and a new lane: the thread ends, its session goes with it,
//! and a replacement builds its own from verified bytes, within a budget.

mod condition;
mod longest;
mod post;
mod repair;
mod run;
mod thread_time;
mod turnstile;

pub(crate) use condition::Condition;
pub(crate) use repair::Watched;

use crate::adaptive::Ran;
use crate::admission::{Backlog, Patience};
use crate::batch::{CostTable, Padding};
use crate::engine::Session;
use crate::healing::Healing;
use crate::metrics::VersionMetrics;
use crate::predict::{Job, PredictError};
use crate::queue::Queue;
use crate::statistics::Statistics;
use balm_probes::RepairBudget;
use longest::Longest;
use parking_lot::Mutex;
use post::Post;
use run::Ran as RunEnded;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use turnstile::{Place, Turnstile};

/// A lane that dies more often than this is not repaired but reported.
const RESTARTS_MAX: usize = 5;
const RESTARTS_WINDOW_MS: u64 = 60_000;

/// How far lanes stand back behind the threads that speak to clients, when cores are short.
const LANE_NICENESS: i32 = 5;

/// What the names of their threads begin with, and those of no others.
pub(crate) const THREAD_PREFIX: &str = "lane";

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
    /// Version that they serve.
    pub(crate) version: u64,
    /// Of the bytes that its sessions are built from, for the recorder of what runs.
    pub(crate) identity: u64,
    /// What a session holds at the least: the files that it was built from, bytes.
    pub(crate) bytes: u64,
    /// How long the load took, from the first byte that was read.
    pub(crate) load: Duration,
    /// How long all its runs took.
    pub(crate) load_runs: Duration,
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
    /// Whether nothing that they answer can be vouched for; the reason is in the condition.
    distrusted: AtomicBool,
    rebuild: Box<Rebuild>,
    changed: Box<LanesChanged>,
    budget: Mutex<RepairBudget>,
    healing: Arc<Healing>,
    /// The lanes whose threads are there and were not abandoned.
    posts: Mutex<Vec<Arc<Post>>>,
    /// Lanes that are built in place of lost ones, and since when, on the watchdog's clock, milliseconds; none before it looked.
    builds: Mutex<Vec<(u32, Option<u64>)>>,
    /// Runs that have returned.
    ended: AtomicU64,
    longest: Longest,
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
        healing: Arc<Healing>,
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
            distrusted: AtomicBool::new(false),
            rebuild,
            changed,
            budget: Mutex::new(RepairBudget::new(RESTARTS_MAX, RESTARTS_WINDOW_MS)),
            healing,
            posts: Mutex::default(),
            builds: Mutex::default(),
            ended: AtomicU64::new(0),
            longest: Longest::of(settings.load_runs),
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

    /// Nothing that they answer can be vouched for any more: nobody is answered from now on, neither who waits nor who is being
    /// computed for, and the lanes end. There is no way back; another load brings other lanes.
    pub(crate) fn distrust(&self, why: String) {
        self.condition.lock().suspect = Some(why);
        self.distrusted.store(true, Ordering::Release);
        self.close();
        self.answer_who_waits();
        (self.changed)();
    }

    /// Whether what they answer can be vouched for.
    pub(crate) fn is_trusted(&self) -> bool {
        !self.distrusted.load(Ordering::Acquire)
    }

    /// Why nobody is taken any more.
    pub(crate) fn refusal(&self) -> PredictError {
        let version = self.settings.version;
        let reason = match self.condition.lock().suspect.clone() {
            Some(why) => format!("version {version} answers nobody: {why}"),
            None => format!("version {version} has no lane left or was unloaded"),
        };
        PredictError::NotReady { model: self.label.clone(), reason }
    }

    /// A lane that was coming is there: starts its thread. False when that could not be started; then it is lost.
    pub(crate) fn join(self: &Arc<Self>, index: u32, session: Box<dyn Session>) -> bool {
        // Counted before the thread runs: the version is called ready on the strength of it.
        self.arrived(index, session.as_ref());
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

    fn arrived(&self, index: u32, session: &dyn Session) {
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
        self.healing.healed(&self.subject(index));
        (self.changed)();
    }

    fn spawn(&self, index: u32, body: impl FnOnce() + Send + 'static) -> bool {
        // Linux cuts thread names at 15 bytes; the index matters more than the model's name.
        let name: String =
            format!("{THREAD_PREFIX}{index}-{}", self.label).chars().take(15).collect();
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
        let LaneSettings { version, identity, .. } = self.settings;
        let seat = self.healing.seat(&self.label, version, identity);
        let post = Arc::new(Post::new(index, seat));
        post.enter();
        self.posts.lock().push(Arc::clone(&post));
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
            match self.run(session.as_mut(), &canceller, &post, &mut batch) {
                RunEnded::Answered => drop(turn),
                RunEnded::Panicked(culprit) => {
                    drop((turn, queue, place));
                    self.posts.lock().retain(|other| !Arc::ptr_eq(other, &post));
                    self.panicked(index);
                    if let Some(culprit) = culprit {
                        // Only now: who asks again on hearing this must find the lanes as they are.
                        culprit.answer(Err(PredictError::LaneLost));
                    }
                    return;
                }
                RunEnded::Abandoned => {
                    // Whoever abandoned this lane has given back what it held.
                    queue.was_lost();
                    if let Some(place) = place.as_mut() {
                        place.was_lost();
                    }
                    if let Some(turn) = turn {
                        turn.was_lost();
                    }
                    tracing::warn!(model = %self.label, lane = index, "an abandoned lane came back and ends");
                    return;
                }
            }
        }
        self.posts.lock().retain(|other| !Arc::ptr_eq(other, &post));
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
}
