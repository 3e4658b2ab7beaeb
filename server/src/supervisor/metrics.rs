//! What the supervisor counts itself. The worker's metrics begin anew with each worker; these do not.

use balm_probes::{Cause, End};
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};
use std::time::Duration;

/// From a crash that is healed in the time of a load to one that was given many tries.
const HEAL_BUCKETS: [f64; 9] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// What the supervisor does about a worker: rungs L4 to L7 of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// A version is quarantined, because workers crash with it.
    Version,
    /// The worker is replaced.
    Worker,
    /// The process ends.
    Process,
    /// The server is parked.
    Park,
}

impl Deed {
    const ALL: [Deed; 4] = [Deed::Version, Deed::Worker, Deed::Process, Deed::Park];

    const fn as_str(self) -> &'static str {
        match self {
            Deed::Version => "version",
            Deed::Worker => "worker",
            Deed::Process => "process",
            Deed::Park => "park",
        }
    }
}

/// The families of the supervisor.
pub(super) struct SupervisorMetrics {
    registry: Registry,
    up: IntGauge,
    parked: IntGauge,
    restarts: IntCounterVec,
    stays: IntCounter,
    remembered: IntGaugeVec,
    actions: IntCounterVec,
    detect: Histogram,
    heal: Histogram,
    quarantined: IntGauge,
    lost: IntCounter,
    lag: Gauge,
    scrape_failures: IntCounter,
    reaped: IntCounter,
}

impl SupervisorMetrics {
    /// # Errors
    /// A mistake in the names.
    pub(super) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let restarts = Opts::new(
            "balm_worker_restarts_total",
            "Workers that were replaced, or given up, by reason.",
        );
        let metrics = SupervisorMetrics {
            up: IntGauge::new("balm_worker_up", "Whether there is a worker that ticks.")?,
            parked: IntGauge::new(
                "balm_parked",
                "Whether the server has given up and only answers why.",
            )?,
            restarts: IntCounterVec::new(restarts, &["reason"])?,
            stays: IntCounter::new(
                "balm_worker_recycles_refused_total",
                "Times that a worker asked to be replaced for its memory and was not, because that was done too often.",
            )?,
            remembered: IntGaugeVec::new(
                Opts::new(
                    "balm_crash_requests",
                    "Requests that are remembered because they were in a run when a worker died: suspect after one crash, refused after two.",
                ),
                &["state"],
            )?,
            actions: IntCounterVec::new(
                Opts::new(
                    "balm_worker_actions_total",
                    "What the supervisor did about its worker, by rung (version, worker, process, park) and by reason.",
                ),
                &["rung", "reason"],
            )?,
            detect: Histogram::with_opts(
                HistogramOpts::new(
                    "balm_worker_detect_seconds",
                    "How long nothing had been heard of a worker, or of its event loop, when it was found to be broken or gone.",
                )
                .buckets(HEAL_BUCKETS.to_vec()),
            )?,
            quarantined: IntGauge::new(
                "balm_quarantined_versions",
                "Versions that no worker tries unless somebody asks for their load.",
            )?,
            heal: Histogram::with_opts(
                HistogramOpts::new(
                    "balm_worker_heal_seconds",
                    "From the verdict on a worker, or its end, to the next time the server was ready.",
                )
                .buckets(HEAL_BUCKETS.to_vec()),
            )?,
            lost: IntCounter::new(
                "balm_worker_lost_requests_total",
                "Requests in flight on workers that died, as of their last tick.",
            )?,
            lag: Gauge::new(
                "balm_worker_event_loop_lag_seconds",
                "For how long the event loop of the worker has not answered, in ticks of its watchdog.",
            )?,
            scrape_failures: IntCounter::new(
                "balm_worker_scrape_failures_total",
                "Scrapes that the worker did not answer in time, and that lack its metrics.",
            )?,
            reaped: IntCounter::new(
                "balm_reaped_processes_total",
                "Processes of others that ended and were left to the supervisor, as process 1 is.",
            )?,
            registry,
        };
        for cause in Cause::ALL {
            metrics.restarts.with_label_values(&[cause.as_str()]);
            for deed in Deed::ALL {
                metrics.actions.with_label_values(&[deed.as_str(), cause.as_str()]);
            }
        }
        metrics.register()?;
        Ok(metrics)
    }

    fn register(&self) -> prometheus::Result<()> {
        self.registry.register(Box::new(self.up.clone()))?;
        self.registry.register(Box::new(self.parked.clone()))?;
        self.registry.register(Box::new(self.restarts.clone()))?;
        self.registry.register(Box::new(self.stays.clone()))?;
        self.registry.register(Box::new(self.remembered.clone()))?;
        self.registry.register(Box::new(self.actions.clone()))?;
        self.registry.register(Box::new(self.detect.clone()))?;
        self.registry.register(Box::new(self.quarantined.clone()))?;
        self.registry.register(Box::new(self.heal.clone()))?;
        self.registry.register(Box::new(self.lost.clone()))?;
        self.registry.register(Box::new(self.lag.clone()))?;
        self.registry.register(Box::new(self.scrape_failures.clone()))?;
        self.registry.register(Box::new(self.reaped.clone()))
    }

    pub(super) fn set_up(&self, up: bool) {
        self.up.set(i64::from(up));
    }

    pub(super) fn set_parked(&self, parked: bool) {
        self.parked.set(i64::from(parked));
    }

    pub(super) fn set_remembered(&self, suspects: usize, refused: usize) {
        for (state, count) in [("suspect", suspects), ("refused", refused)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.remembered.with_label_values(&[state]).set(count);
        }
    }

    pub(super) fn set_lag(&self, lag: Duration) {
        self.lag.set(lag.as_secs_f64());
    }

    /// A worker is gone, for this cause, and with it what was inside.
    pub(super) fn replaced(&self, cause: Cause, in_flight: u64) {
        self.restarts.with_label_values(&[cause.as_str()]).inc();
        self.lost.inc_by(in_flight);
    }

    /// A worker asked to be replaced in vain.
    pub(super) fn stayed(&self) {
        self.stays.inc();
    }

    /// Something was done, for this cause.
    pub(super) fn acted(&self, deed: Deed, cause: Cause) {
        self.actions.with_label_values(&[deed.as_str(), cause.as_str()]).inc();
    }

    /// A worker was found to be broken or gone, of which nothing had been heard for so long.
    pub(super) fn detected(&self, unheard: Duration) {
        self.detect.observe(unheard.as_secs_f64());
    }

    pub(super) fn set_quarantined(&self, versions: usize) {
        self.quarantined.set(i64::try_from(versions).unwrap_or(i64::MAX));
    }

    pub(super) fn healed(&self, after: Duration) {
        self.heal.observe(after.as_secs_f64());
    }

    pub(super) fn scrape_failed(&self) {
        self.scrape_failures.inc();
    }

    /// A process was reaped that was not ours.
    pub(super) fn reaped(&self, _end: End) {
        self.reaped.inc();
    }

    /// All families, in Prometheus' text format.
    pub(super) fn render(&self, text: &mut Vec<u8>) {
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), text) {
            tracing::error!(%error, "metrics not rendered");
        }
    }
}
