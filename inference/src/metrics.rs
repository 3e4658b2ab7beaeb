//! Metrics of serving: declared here, registered into a registry that is handed down.
//!
//! Labels come from enums and from the repository's names, never from a request. The children of one model version
//! are resolved once, at load, so that a request pays for no look-up.

use crate::admission::{Class, ShedReason};
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

/// From 50 µs, where small models live, to 30 s, the longest deadline by default; about 2.5 steps a decade.
const LATENCY_BUCKETS: [f64; 18] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0,
];

/// As runs are told apart when their cost is learned, but coarser.
const ROWS_BUCKETS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 512.0];

/// How a predict request ended. The label values of `balm_predict_requests_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Outputs were sent.
    Ok,
    /// The request was refused as the client's mistake.
    BadRequest,
    /// Turned away for load.
    Shed,
    /// The model was not ready.
    NotReady,
    /// The deadline was over.
    Deadline,
    /// The client left before the answer.
    Cancelled,
    /// The server's own failure.
    Failed,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Outcome; 7] = [
        Outcome::Ok,
        Outcome::BadRequest,
        Outcome::Shed,
        Outcome::NotReady,
        Outcome::Deadline,
        Outcome::Cancelled,
        Outcome::Failed,
    ];

    /// Label value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::BadRequest => "bad_request",
            Outcome::Shed => "shed",
            Outcome::NotReady => "not_ready",
            Outcome::Deadline => "deadline",
            Outcome::Cancelled => "cancelled",
            Outcome::Failed => "failed",
        }
    }
}

/// The families of this crate.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: IntCounterVec,
    total_seconds: HistogramVec,
    queue_seconds: HistogramVec,
    run_seconds: HistogramVec,
    batch_rows: HistogramVec,
    shed: IntCounterVec,
    lane_restarts: IntCounterVec,
    poison_refused: IntCounterVec,
    canaries: IntCounterVec,
    breaker: IntGaugeVec,
    load_seconds: GaugeVec,
    loads: IntCounterVec,
    integrity: IntCounterVec,
    state: IntGaugeVec,
    lanes: IntGaugeVec,
    lane_threads: IntGaugeVec,
    adaptive_limit: IntGaugeVec,
    queue_depth: IntGaugeVec,
    wait_seconds: GaugeVec,
    wait_limit_seconds: GaugeVec,
    in_flight: IntGaugeVec,
    in_flight_total: IntGauge,
    in_flight_bytes: IntGauge,
    provider: IntGaugeVec,
    heal: HealMetrics,
    /// `None` when nobody asked for Triton's names.
    triton: Option<triton::TritonMetrics>,
}

mod heal;
mod observe;
mod triton;

pub(crate) use heal::{CanaryResult, HealMetrics};

/// What one model version counts while it serves.
#[derive(Clone, Debug)]
pub struct VersionMetrics {
    outcomes: [IntCounter; Outcome::ALL.len()],
    /// From the request's head to its answer, seconds.
    pub total_seconds: Histogram,
    /// Waiting for a lane, seconds.
    pub queue_seconds: Histogram,
    /// The run itself, seconds.
    pub run_seconds: Histogram,
    /// Rows of a run.
    pub batch_rows: Histogram,
    /// Lanes that died by a panic and were replaced.
    pub lane_restarts: IntCounter,
    /// Requests that were not run because they were there at crashes.
    pub poison_refused: IntCounter,
    canaries: [IntCounter; CanaryResult::ALL.len()],
}

impl VersionMetrics {
    /// Counts one request.
    pub fn count(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].inc();
    }

    /// Counts one canary.
    pub(crate) fn canary(&self, result: CanaryResult) {
        self.canaries[result as usize].inc();
    }
}

impl Metrics {
    /// Makes the families and registers them; with `triton_names` also Triton's names for some of them.
    ///
    /// # Errors
    /// When the registry has one of the names already.
    pub fn register(registry: &Registry, triton_names: bool) -> prometheus::Result<Self> {
        let metrics = Metrics {
            requests: counters(
                "balm_predict_requests_total",
                "Predict requests for a model that is known, by how they ended.",
                &["model", "version", "outcome"],
            )?,
            total_seconds: histograms(
                "balm_predict_seconds",
                "Time from the head of a predict request to its answer, of those answered with outputs.",
            )?,
            queue_seconds: histograms(
                "balm_predict_queue_seconds",
                "Time that a request waited for a lane.",
            )?,
            run_seconds: histograms("balm_predict_run_seconds", "Time that a run took.")?,
            batch_rows: HistogramVec::new(
                HistogramOpts::new(
                    "balm_batch_rows",
                    "Rows that were computed in one run, of one request or of several.",
                )
                .buckets(ROWS_BUCKETS.to_vec()),
                &["model", "version"],
            )?,
            shed: counters(
                "balm_shed_total",
                "Predict requests turned away for load, by the bound that was reached and by class.",
                &["model", "reason", "class"],
            )?,
            poison_refused: counters(
                "balm_poison_refused_total",
                "Requests that were not run because the server had crashed of them twice.",
                &["model", "version"],
            )?,
            lane_restarts: counters(
                "balm_lane_restarts_total",
                "Lanes that died by a panic.",
                &["model", "version"],
            )?,
            canaries: counters(
                "balm_canaries_total",
                "Requests of the watchdog's own, sent where there was no success for 30 s or a breaker wants to know, by how they came back.",
                &["model", "version", "result"],
            )?,
            breaker: gauges(
                "balm_breaker_state",
                "1 for what the breaker of a model does, 0 for the others.",
                &["model", "state"],
            )?,
            load_seconds: GaugeVec::new(
                Opts::new(
                    "balm_model_load_seconds",
                    "Time that the phases of the last load took: read (with hash), build, probe.",
                ),
                &["model", "version", "phase"],
            )?,
            loads: counters(
                "balm_model_loads_total",
                "Loads of a model version, by result.",
                &["model", "version", "result"],
            )?,
            integrity: counters(
                "balm_integrity_checks_total",
                "Model versions that were read, by result: verified, unverified (no manifest, or policy off), refused.",
                &["model", "result"],
            )?,
            state: gauges(
                "balm_model_state",
                "1 for the state in which a model version is, 0 for the others.",
                &["model", "version", "state"],
            )?,
            lanes: gauges(
                "balm_model_lanes",
                "Lanes of a model version: as configured, and as many as would take a request now.",
                &["model", "version", "kind"],
            )?,
            lane_threads: gauges(
                "balm_model_lane_threads",
                "Threads that the runtime uses within each lane of a model version.",
                &["model", "version"],
            )?,
            queue_depth: gauges(
                "balm_queue_depth",
                "Requests that wait for a lane.",
                &["model", "version"],
            )?,
            wait_seconds: GaugeVec::new(
                Opts::new(
                    "balm_admission_wait_seconds",
                    "Time that one more request of the default class would wait for a lane, as admission estimates it.",
                ),
                &["model", "version"],
            )?,
            wait_limit_seconds: GaugeVec::new(
                Opts::new(
                    "balm_admission_wait_limit_seconds",
                    "Time that a critical request may wait for a lane; beyond it requests are turned away.",
                ),
                &["model", "version"],
            )?,
            in_flight: gauges(
                "balm_model_in_flight_requests",
                "Requests of a model between admission and the end of their run.",
                &["model"],
            )?,
            in_flight_total: IntGauge::new(
                "balm_in_flight_requests",
                "Requests between admission and the end of their run.",
            )?,
            adaptive_limit: gauges(
                "balm_adaptive_limit",
                "Runs of a model version that may be in progress at once: learned where lanes feed a device or adaptive_lanes is true, else as many as lanes.",
                &["model", "version"],
            )?,
            in_flight_bytes: IntGauge::new(
                "balm_in_flight_bytes",
                "Bytes reserved for the bodies of requests in flight.",
            )?,
            provider: gauges(
                "balm_model_provider_info",
                "1 for each execution provider that really runs a model version; degraded says that it is not the one asked for.",
                &["model", "version", "provider", "degraded"],
            )?,
            heal: HealMetrics::new()?,
            triton: triton_names.then(|| triton::TritonMetrics::register(registry)).transpose()?,
        };
        for family in metrics.families() {
            registry.register(family)?;
        }
        Ok(metrics)
    }

    fn families(&self) -> Vec<Box<dyn prometheus::core::Collector>> {
        let families: Vec<Box<dyn prometheus::core::Collector>> = vec![
            Box::new(self.requests.clone()),
            Box::new(self.total_seconds.clone()),
            Box::new(self.queue_seconds.clone()),
            Box::new(self.run_seconds.clone()),
            Box::new(self.batch_rows.clone()),
            Box::new(self.shed.clone()),
            Box::new(self.lane_restarts.clone()),
            Box::new(self.poison_refused.clone()),
            Box::new(self.canaries.clone()),
            Box::new(self.breaker.clone()),
            Box::new(self.load_seconds.clone()),
            Box::new(self.loads.clone()),
            Box::new(self.integrity.clone()),
            Box::new(self.state.clone()),
            Box::new(self.lanes.clone()),
            Box::new(self.lane_threads.clone()),
            Box::new(self.adaptive_limit.clone()),
            Box::new(self.queue_depth.clone()),
            Box::new(self.wait_seconds.clone()),
            Box::new(self.wait_limit_seconds.clone()),
            Box::new(self.in_flight.clone()),
            Box::new(self.in_flight_total.clone()),
            Box::new(self.in_flight_bytes.clone()),
            Box::new(self.provider.clone()),
        ];
        families.into_iter().chain(self.heal.families()).collect()
    }

    /// What is counted of repairs.
    pub(crate) fn heal(&self) -> &HealMetrics {
        &self.heal
    }

    /// The children of one model version.
    pub fn version(&self, model: &str, version: u64) -> VersionMetrics {
        let version = version.to_string();
        let labels = [model, version.as_str()];
        VersionMetrics {
            outcomes: Outcome::ALL.map(|outcome| {
                self.requests.with_label_values(&[model, version.as_str(), outcome.as_str()])
            }),
            total_seconds: self.total_seconds.with_label_values(&labels),
            queue_seconds: self.queue_seconds.with_label_values(&labels),
            run_seconds: self.run_seconds.with_label_values(&labels),
            batch_rows: self.batch_rows.with_label_values(&labels),
            lane_restarts: self.lane_restarts.with_label_values(&labels),
            poison_refused: self.poison_refused.with_label_values(&labels),
            canaries: CanaryResult::ALL.map(|result| {
                self.canaries.with_label_values(&[model, version.as_str(), result.as_str()])
            }),
        }
    }

    /// The counter of requests that found no version to answer them, under version `none`.
    pub(crate) fn not_ready(&self, model: &str) -> IntCounter {
        self.requests.with_label_values(&[model, "none", Outcome::NotReady.as_str()])
    }

    /// The counters of turned-away requests of one model, by reason.
    pub fn shed(&self, model: &str) -> ShedCounters {
        ShedCounters(ShedReason::ALL.map(|reason| {
            Class::ALL
                .map(|class| self.shed.with_label_values(&[model, reason.as_str(), class.as_str()]))
        }))
    }

    /// A version was read: `result` is `verified`, `unverified` or `refused`.
    pub(crate) fn integrity(&self, model: &str, result: &'static str) {
        self.integrity.with_label_values(&[model, result]).inc();
    }

    /// A load ended.
    pub(crate) fn loaded(&self, model: &str, version: u64, ok: bool) {
        let result = if ok { "ok" } else { "failed" };
        self.loads.with_label_values(&[model, &version.to_string(), result]).inc();
    }

    /// A phase of a load took this long.
    pub(crate) fn load_phase(&self, model: &str, version: u64, phase: &'static str, seconds: f64) {
        let child: Gauge =
            self.load_seconds.with_label_values(&[model, &version.to_string(), phase]);
        child.set(seconds);
    }
}

/// Counters of turned-away requests of one model.
#[derive(Clone, Debug)]
pub struct ShedCounters([[IntCounter; Class::ALL.len()]; ShedReason::ALL.len()]);

impl ShedCounters {
    /// Counts one.
    pub fn count(&self, reason: ShedReason, class: Class) {
        self.0[reason as usize][class.index()].inc();
    }
}

fn counters(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn gauges(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
    IntGaugeVec::new(Opts::new(name, help), labels)
}

fn histograms(name: &str, help: &str) -> prometheus::Result<HistogramVec> {
    let options = HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec());
    HistogramVec::new(options, &["model", "version"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discriminants_index_the_children() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
        }
        for (index, reason) in ShedReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        for (index, result) in CanaryResult::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, index);
        }
    }

    #[test]
    fn two_servers_fit_in_one_test() {
        for _ in 0..2 {
            let metrics = Metrics::register(&Registry::new(), true).unwrap();
            metrics.version("iris", 1).count(Outcome::Ok);
            metrics.shed("iris").count(ShedReason::Bytes, Class::Default);
        }
    }
}
