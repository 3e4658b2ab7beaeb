//! What a run has found: the JSON that it writes, and all that a report is made of.
//!
//! Times are milliseconds, rates are per second, moments are seconds from the first phase's begin unless a name says
//! otherwise. `schema` grows when a field changes its meaning or goes; new fields may come.

pub(crate) mod html;
pub(crate) mod plot;
pub(crate) mod table;

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::figures::{Figures, Judged};
use crate::kubelet::{Event, Kind};
use crate::machine::Machine;

/// The present form of the JSON.
pub(crate) const SCHEMA: u32 = 1;

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RunResult {
    /// [`SCHEMA`]; a reader refuses what it does not know.
    pub(crate) schema: u32,
    pub(crate) scenario: ScenarioFacts,
    pub(crate) target: TargetFacts,
    pub(crate) machine: Machine,
    /// When it began, RFC 3339.
    pub(crate) begun: String,
    /// How long the phases took.
    pub(crate) seconds: f64,
    pub(crate) verdict: Verdict,
    /// Why it ended early, if it did.
    pub(crate) partial: Option<String>,
    /// Why it proves nothing, if so.
    pub(crate) generator_limited: Vec<String>,
    /// What a reader of the figures should know.
    pub(crate) notes: Vec<String>,
    pub(crate) capacity: Option<Capacity>,
    pub(crate) phases: Vec<Phase>,
    pub(crate) timeline: Timeline,
    pub(crate) probes: Option<Probes>,
    pub(crate) generator: Generator,
    pub(crate) expectations: Vec<Judged>,
    /// Every figure that an expectation can name.
    pub(crate) figures: Figures,
}

/// What the run was to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ScenarioFacts {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) seed: u64,
    /// Phases took so many times as long as the scenario says.
    pub(crate) time_scale: f64,
}

/// Who was asked, and what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TargetFacts {
    pub(crate) address: String,
    /// Name and version from `GET /v2`, where the server says.
    pub(crate) server: Option<String>,
    pub(crate) model: String,
    pub(crate) version: Option<String>,
    pub(crate) protocol: String,
    pub(crate) encoding: String,
    pub(crate) request_bytes: usize,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// Every expectation was met.
    Passed,
    /// One was not.
    Failed,
    /// Nothing was expected.
    Measured,
    /// It ended early.
    Partial,
    /// The generator was the bottleneck: the run proves nothing.
    GeneratorLimited,
}

/// What the target carries.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Capacity {
    pub(crate) per_s: f64,
    /// Given on the command line or in the scenario, not measured.
    pub(crate) given: bool,
    /// Connections of the closed loop that found it.
    pub(crate) connections: Option<usize>,
    pub(crate) seconds: Option<f64>,
    pub(crate) latency: Option<Latencies>,
    /// Answers other than 2xx while it was measured.
    pub(crate) turned_away: u64,
    /// The same after the phases.
    pub(crate) again_per_s: Option<f64>,
}

/// A phase, in all and by client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Phase {
    pub(crate) name: String,
    pub(crate) start_s: f64,
    pub(crate) seconds: f64,
    pub(crate) total: Counts,
    pub(crate) clients: BTreeMap<String, Counts>,
    pub(crate) recovery: Option<Recovery>,
    /// How late requests were sent.
    pub(crate) lag: Option<Latencies>,
    /// Cores that the generator's thread took.
    pub(crate) generator_cores: Option<f64>,
}

/// When a phase was as good as another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Recovery {
    pub(crate) baseline: String,
    pub(crate) factor: f64,
    /// p99 of accepted answers that counts as recovered.
    pub(crate) limit_ms: Option<f64>,
    /// From the phase's begin; none if never.
    pub(crate) seconds: Option<f64>,
}

/// Counts and latencies. See `figures::PHASE` for what each means.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) offered: u64,
    pub(crate) sent: u64,
    pub(crate) not_sent: u64,
    pub(crate) accepted: u64,
    pub(crate) rejected: u64,
    pub(crate) late: u64,
    pub(crate) wrong: u64,
    pub(crate) abandoned: u64,
    pub(crate) transport_errors: u64,
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    /// Good answers while the phase lasted.
    pub(crate) good_within: u64,
    /// Neither answered nor failed when the run ended.
    pub(crate) unanswered: u64,
    pub(crate) statuses: BTreeMap<u16, u64>,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) accepted_latency: Option<Latencies>,
    pub(crate) rejected_latency: Option<Latencies>,
}

/// Percentiles in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latencies {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

/// What happened when: requests by when they were meant to go out or went out, answers by when they came.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Timeline {
    pub(crate) bucket_s: f64,
    pub(crate) buckets: Vec<Bucket>,
}

/// A piece of the timeline.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bucket {
    pub(crate) offered: u64,
    pub(crate) not_sent: u64,
    pub(crate) sent: u64,
    pub(crate) ok: u64,
    pub(crate) status_429: u64,
    pub(crate) status_503: u64,
    pub(crate) status_504: u64,
    /// Any other status.
    pub(crate) other: u64,
    /// No answer.
    pub(crate) errors: u64,
    pub(crate) abandoned: u64,
    pub(crate) accepted: Option<Latencies>,
    pub(crate) rejected: Option<Latencies>,
}

/// What a kubelet would have seen and done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Probes {
    pub(crate) address: String,
    pub(crate) seconds: f64,
    /// Times that the container would have been killed.
    pub(crate) restarts: u32,
    /// Times that readiness went from true to false.
    pub(crate) ready_false: u32,
    /// Whether it was ready at the end.
    pub(crate) ready: bool,
    pub(crate) events: Vec<ProbeEvent>,
    pub(crate) probes: Vec<Probe>,
}

/// A change of what a kubelet believes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProbeEvent {
    pub(crate) at_s: f64,
    pub(crate) probe: Kind,
    pub(crate) event: Event,
}

/// One probe.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Probe {
    pub(crate) kind: Kind,
    pub(crate) path: String,
    pub(crate) polls: u64,
    pub(crate) failures: u64,
    /// The last failures, in words.
    pub(crate) failed: Vec<ProbeFailure>,
    pub(crate) latency: Option<Latencies>,
    /// Moment and milliseconds of each poll, thinned out where there are many.
    pub(crate) points: Vec<(f64, f64)>,
}

/// A poll that failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProbeFailure {
    pub(crate) at_s: f64,
    pub(crate) why: String,
}

/// What the generator says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Generator {
    pub(crate) version: String,
    /// The greatest lag of any phase.
    pub(crate) lag_p99_ms: Option<f64>,
    pub(crate) lag_max_ms: Option<f64>,
    /// Cores that its thread took in the phase in which it took most; it has one.
    pub(crate) cores_max: Option<f64>,
    /// Its processor time for each attempt of the phases.
    pub(crate) cpu_us_per_request: Option<f64>,
    pub(crate) ceiling: Option<Ceiling>,
    /// Times that this program was not run though it wanted to.
    pub(crate) stalls: Vec<Stall>,
}

/// What the generator reaches when nothing holds it up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ceiling {
    /// The target's no-op route, or a target of this program's own that does nothing.
    pub(crate) against: String,
    pub(crate) per_s: f64,
    pub(crate) cpu_us_per_request: f64,
}

/// A time in which a thread that only sleeps was not run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stall {
    pub(crate) at_s: f64,
    pub(crate) ms: f64,
}

// ===== impl Latencies =====

impl Latencies {
    /// Of times in microseconds; none of nothing.
    pub(crate) fn of(times: &Histogram<u64>) -> Option<Latencies> {
        let at = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
        (!times.is_empty()).then(|| Latencies {
            p50: at(0.50),
            p90: at(0.90),
            p99: at(0.99),
            p999: at(0.999),
            max: times.max() as f64 / 1e3,
        })
    }
}

// ===== impl Verdict =====

impl Verdict {
    /// Of a run: that it proves nothing comes before what it seems to prove.
    pub(crate) fn of(partial: bool, limited: bool, expectations: &[Judged]) -> Verdict {
        if limited {
            Verdict::GeneratorLimited
        } else if partial {
            Verdict::Partial
        } else if expectations.is_empty() {
            Verdict::Measured
        } else if expectations.iter().all(|judged| judged.passed) {
            Verdict::Passed
        } else {
            Verdict::Failed
        }
    }

    /// The status that the program ends with: 2 is for what could not even begin.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Verdict::Passed | Verdict::Measured => 0,
            Verdict::Failed | Verdict::Partial => 1,
            Verdict::GeneratorLimited => 3,
        }
    }

    /// In words.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Failed => "FAILED",
            Verdict::Measured => "measured (nothing was expected)",
            Verdict::Partial => "PARTIAL: it ended early",
            Verdict::GeneratorLimited => "PROVES NOTHING: the generator was the bottleneck",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
