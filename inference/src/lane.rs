//! Lanes: one OS thread and one session each, pulling jobs from the queue of their model version.
//!
//! A panic inside a run is an answer to one request and a new lane: the thread ends, its session goes with it,
//! and a replacement builds its own from verified bytes, within a budget.

use crate::cancel::RunToken;
use crate::engine::{Cancel, RunError, RunOutput, Session};
use crate::metrics::VersionMetrics;
use crate::predict::{Job, PredictError, Prediction};
use crate::queue::Queue;
use crate::statistics::{Statistics, Timing};
use crate::version::unix_ms;
use balm_probes::RepairBudget;
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A lane that dies more often than this is not repaired but reported.
const RESTARTS_MAX: usize = 5;
const RESTARTS_WINDOW_MS: u64 = 60_000;

/// Builds a session of the same version in place of a dead one.
pub(crate) type Rebuild = dyn Fn() -> Result<Box<dyn Session>, String> + Send + Sync;

/// Hears that the number of healthy lanes has changed, with a reason where something went wrong.
pub(crate) type LanesChanged = dyn Fn(Option<String>) + Send + Sync;

/// What the lanes of one version share.
pub(crate) struct Lanes {
    pub(crate) label: String,
    pub(crate) wanted: u32,
    pub(crate) queue: Queue<Job>,
    pub(crate) statistics: Statistics,
    pub(crate) metrics: VersionMetrics,
    healthy: AtomicU32,
    rebuild: Box<Rebuild>,
    changed: Box<LanesChanged>,
    budget: Mutex<RepairBudget>,
    born: Instant,
}

impl Lanes {
    pub(crate) fn new(
        label: String,
        wanted: u32,
        queue_capacity: usize,
        metrics: VersionMetrics,
        rebuild: Box<Rebuild>,
        changed: Box<LanesChanged>,
    ) -> Self {
        Lanes {
            label,
            wanted,
            queue: Queue::new(queue_capacity),
            statistics: Statistics::default(),
            metrics,
            healthy: AtomicU32::new(0),
            rebuild,
            changed,
            budget: Mutex::new(RepairBudget::new(RESTARTS_MAX, RESTARTS_WINDOW_MS)),
            born: Instant::now(),
        }
    }

    /// Lanes that would take a job now. A busy lane is healthy.
    pub(crate) fn healthy(&self) -> u32 {
        self.healthy.load(Ordering::Acquire)
    }

    /// Starts a lane with a session that is there already.
    pub(crate) fn start(self: &Arc<Self>, index: u32, session: Box<dyn Session>) -> bool {
        // Counted before the thread runs: the version is about to be called ready on the strength of it.
        self.healthy.fetch_add(1, Ordering::AcqRel);
        let lanes = Arc::clone(self);
        let started = self.spawn(index, move || lanes.serve(index, session));
        if !started {
            self.healthy.fetch_sub(1, Ordering::AcqRel);
        }
        started
    }

    /// Starts a further lane, and tells that it is there.
    pub(crate) fn join(self: &Arc<Self>, index: u32, session: Box<dyn Session>) {
        if self.start(index, session) {
            (self.changed)(None);
        } else {
            self.lost(format!("lane {index} could not be started"));
        }
    }

    /// Starts a lane that builds its own session first.
    fn start_building(self: &Arc<Self>, index: u32) -> bool {
        let lanes = Arc::clone(self);
        self.spawn(index, move || match (lanes.rebuild)() {
            Ok(session) => {
                lanes.healthy.fetch_add(1, Ordering::AcqRel);
                (lanes.changed)(None);
                lanes.serve(index, session);
            }
            Err(reason) => lanes.lost(format!("lane {index} could not be built: {reason}")),
        })
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
        let canceller = session.canceller();
        let mut queue = self.queue.reader();
        while let Some(job) = queue.pop() {
            if let Run::Panicked = self.run(session.as_mut(), &canceller, job) {
                self.healthy.fetch_sub(1, Ordering::AcqRel);
                self.replace(index);
                return;
            }
        }
        self.healthy.fetch_sub(1, Ordering::AcqRel);
    }

    /// A panic may have left the session in any state, so thread and session go, and a new pair comes.
    fn replace(self: &Arc<Self>, index: u32) {
        self.metrics.lane_restarts.inc();
        let now_ms = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        if !self.budget.lock().try_spend(now_ms) {
            self.lost(format!(
                "lane {index} died more than {RESTARTS_MAX} times in {} s and is not replaced again",
                RESTARTS_WINDOW_MS / 1_000
            ));
            return;
        }
        tracing::error!(model = %self.label, lane = index, "lane panicked, replacing it");
        (self.changed)(Some(format!("lane {index} panicked and is being replaced")));
        if !self.start_building(index) {
            self.lost(format!("lane {index} could not be started again"));
        }
    }

    /// A lane is gone for good. With the last one, whoever waits is answered and nobody else is taken.
    pub(crate) fn lost(&self, reason: String) {
        tracing::error!(model = %self.label, reason, "lane lost");
        if self.healthy() == 0 {
            for job in self.queue.close_and_drain() {
                job.answer(Err(PredictError::LaneLost));
            }
        }
        (self.changed)(Some(reason));
    }

    fn run(&self, session: &mut dyn Session, canceller: &Arc<dyn Cancel>, job: Job) -> Run {
        let begun = Instant::now();
        let waited = begun - job.queued_at;
        if begun >= job.deadline.at {
            self.statistics.failed(waited);
            let error = job.deadline.error("waited");
            job.answer(Err(error));
            return Run::Answered;
        }
        session.rearm();
        if !job.token.begin(canceller) {
            // Nobody waits any more; the place becomes free and nothing is computed.
            self.statistics.failed(waited);
            return Run::Answered;
        }
        let result = catch_unwind(AssertUnwindSafe(|| session.run(&job.inputs, &job.outputs)));
        job.token.finish();
        let total = job.queued_at.elapsed();
        self.metrics.queue_seconds.observe(waited.as_secs_f64());
        match result {
            Ok(Ok(output)) => {
                self.queue.learn(output.input_time + output.infer_time + output.output_time);
                self.metrics.run_seconds.observe(output.infer_time.as_secs_f64());
                self.statistics.succeeded(total);
                let prediction = self.executed(&job, waited, output);
                job.answer(Ok(prediction));
                Run::Answered
            }
            Ok(Err(error)) => {
                self.statistics.failed(total);
                let error = run_error(error, &job, &job.token);
                job.answer(Err(error));
                Run::Answered
            }
            Err(_panic) => {
                self.statistics.failed(total);
                job.answer(Err(PredictError::LaneLost));
                Run::Panicked
            }
        }
    }

    fn executed(&self, job: &Job, waited: Duration, output: RunOutput) -> Prediction {
        let timing = Timing {
            queue: waited,
            input: output.input_time,
            infer: output.infer_time,
            output: output.output_time,
        };
        self.statistics.executed(job.rows, timing, unix_ms());
        Prediction { outputs: output.outputs, timing }
    }
}

enum Run {
    Answered,
    Panicked,
}

fn run_error(error: RunError, job: &Job, token: &RunToken) -> PredictError {
    match error {
        // Only its own request cancels a run, and that has either left or passed its deadline.
        RunError::Terminated if token.is_cancelled() => job.deadline.error("ran"),
        other => other.into(),
    }
}
