//! Metrics of repairs.

use balm_probes::{Reason, Rung};
use prometheus::core::Collector;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts};

/// From a tenth of a second, the tick of the watchdog, to five minutes, the window of the last budget.
const SECONDS_BUCKETS: [f64; 12] =
    [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0];

/// Repairs that this process makes or asks for: they are there before the first event.
const ACTIONS: [(Rung, Reason); 16] = [
    (Rung::Cancel, Reason::Deadline),
    (Rung::Cancel, Reason::LoadOverdue),
    (Rung::Lane, Reason::HungSpinning),
    (Rung::Lane, Reason::HungBlocked),
    (Rung::Lane, Reason::HungBetween),
    (Rung::Lane, Reason::Panic),
    (Rung::Lane, Reason::Canary),
    (Rung::Version, Reason::Canary),
    (Rung::Version, Reason::VersionHarmful),
    (Rung::Worker, Reason::LaneBudget),
    (Rung::Worker, Reason::LaneBuild),
    (Rung::Worker, Reason::Stall),
    (Rung::Worker, Reason::MemoryLeak),
    (Rung::Worker, Reason::MemoryHigh),
    (Rung::Shed, Reason::MemoryBudget),
    (Rung::Worker, Reason::ProviderSticky),
];

/// How a canary came back. The label values of `balm_canaries_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CanaryResult {
    /// Answered as it should be.
    Answered,
    /// Answered wrongly, late, or by an error of the server's own.
    Failed,
    /// Not run.
    TurnedAway,
}

impl CanaryResult {
    /// Every result.
    pub(crate) const ALL: [CanaryResult; 3] =
        [CanaryResult::Answered, CanaryResult::Failed, CanaryResult::TurnedAway];

    /// Label value.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            CanaryResult::Answered => "answered",
            CanaryResult::Failed => "failed",
            CanaryResult::TurnedAway => "turned_away",
        }
    }
}

/// What is counted of repairs.
#[derive(Clone, Debug)]
pub(crate) struct HealMetrics {
    actions: IntCounterVec,
    /// From the moment that something went wrong until it was seen, seconds.
    pub(crate) detect_seconds: Histogram,
    /// From the moment that it was seen until it was well again, seconds.
    pub(crate) repair_seconds: Histogram,
    /// Threads that hang and were left to themselves.
    pub(crate) abandoned: IntGauge,
    /// Loads that hang and were left to themselves.
    pub(crate) hanging_loads: IntGauge,
    /// How late the event loop is, seconds.
    pub(crate) event_loop_lag: Gauge,
}

impl HealMetrics {
    pub(super) fn new() -> prometheus::Result<Self> {
        let histogram = |name: &str, help: &str| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(SECONDS_BUCKETS.to_vec()))
        };
        let metrics = HealMetrics {
            actions: super::counters(
                "balm_heal_actions_total",
                "Repairs, by the rung of the ladder and by reason.",
                &["rung", "reason"],
            )?,
            detect_seconds: histogram(
                "balm_heal_detect_seconds",
                "Time from when something was wrong until it was seen, of each incident.",
            )?,
            repair_seconds: histogram(
                "balm_heal_repair_seconds",
                "Time from when something was seen to be wrong until it was well again, of each incident.",
            )?,
            abandoned: IntGauge::with_opts(Opts::new(
                "balm_lanes_abandoned",
                "Lanes that hang, were left to themselves and still hold a thread and a session.",
            ))?,
            hanging_loads: IntGauge::with_opts(Opts::new(
                "balm_loads_abandoned",
                "Loads that did not end when they were told to, were left to themselves and still hold a thread.",
            ))?,
            event_loop_lag: Gauge::with_opts(Opts::new(
                "balm_event_loop_lag_seconds",
                "How late the event loop of the data port is with its answer to the watchdog, in whole ticks of a tenth of a second.",
            ))?,
        };
        for (rung, reason) in ACTIONS {
            metrics.actions.with_label_values(&[rung.as_str(), reason.as_str()]);
        }
        Ok(metrics)
    }

    pub(super) fn families(&self) -> Vec<Box<dyn Collector>> {
        vec![
            Box::new(self.actions.clone()),
            Box::new(self.detect_seconds.clone()),
            Box::new(self.repair_seconds.clone()),
            Box::new(self.abandoned.clone()),
            Box::new(self.hanging_loads.clone()),
            Box::new(self.event_loop_lag.clone()),
        ]
    }

    /// A repair was made, or asked for.
    pub(crate) fn count(&self, rung: Rung, reason: Reason) {
        self.actions.with_label_values(&[rung.as_str(), reason.as_str()]).inc();
    }
}
