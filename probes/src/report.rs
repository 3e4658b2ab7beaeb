//! What the server knows of its own health, as one value: the body of `/status` and the input of every
//! probe.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::incident::Incident;
use crate::state::ModelState;

/// Phase of the whole server.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum ServerPhase {
    /// Ports are being bound, models are loading.
    #[default]
    Starting,
    /// Takes requests.
    Running,
    /// Was asked to end: finishes what it has and wants no more.
    Draining,
    /// Takes nothing and runs nothing.
    Stopped,
}

/// Health of the server and of all its models at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HealthReport {
    /// Phase of the server.
    pub server: ServerPhase,
    /// When the phase began, in milliseconds of Unix time.
    pub since_ms: u64,
    /// When the report was put together, in milliseconds of Unix time.
    pub at_ms: u64,
    /// Models by name, each with its versions.
    pub models: Vec<ModelReport>,
    /// What went wrong lately, and what was done about it; the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incidents: Vec<Incident>,
    /// Further facts for people: version of the program, of ONNX Runtime, limits. No verdict reads them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
}

/// Health of one model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// Name: the folder in the repository.
    pub name: String,
    /// Whether the server was started with this model. Readiness is judged by declared models alone, so
    /// that a model loaded later can never take a server out of service.
    pub declared: bool,
    /// Versions, in any order.
    pub versions: Vec<VersionReport>,
}

/// Health of one version of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VersionReport {
    /// Number: the folder below the model's. The greatest is the newest.
    pub version: u64,
    /// State.
    pub state: ModelState,
    /// Why it is in this state, where that needs saying: one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When the state was entered, in milliseconds of Unix time.
    pub since_ms: u64,
    /// SHA-256 of what was loaded, in lower-case hex; none before it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Execution providers that were asked for, the preferred one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub providers: Vec<String>,
    /// The execution provider that really runs; none before there is a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Lanes, wanted and healthy.
    pub lanes: LaneCounts,
    /// Threads of the engine within one lane; 0 before there is a session.
    #[serde(default)]
    pub threads: u32,
    /// Further facts for people: load time, limits, deadline. No verdict reads them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
}

/// Lanes of one version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneCounts {
    /// As many as configured.
    pub wanted: u32,
    /// As many as would take a request now. A busy lane is healthy, a hung one is not.
    pub healthy: u32,
}

// ===== impl ServerPhase =====

impl ServerPhase {
    /// Name in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            ServerPhase::Starting => "starting",
            ServerPhase::Running => "running",
            ServerPhase::Draining => "draining",
            ServerPhase::Stopped => "stopped",
        }
    }
}

// ===== impl HealthReport =====

impl HealthReport {
    /// The model of that name.
    pub fn model(&self, name: &str) -> Option<&ModelReport> {
        self.models.iter().find(|model| model.name == name)
    }
}

// ===== impl ModelReport =====

impl ModelReport {
    /// The version of that number.
    pub fn version(&self, version: u64) -> Option<&VersionReport> {
        self.versions.iter().find(|candidate| candidate.version == version)
    }

    /// The version with the greatest number, whatever its state.
    pub fn newest(&self) -> Option<&VersionReport> {
        self.versions.iter().max_by_key(|version| version.version)
    }

    /// The version with the greatest number among those that serve.
    pub fn newest_serving(&self) -> Option<&VersionReport> {
        self.versions
            .iter()
            .filter(|version| version.serves())
            .max_by_key(|version| version.version)
    }
}

// ===== impl VersionReport =====

impl VersionReport {
    /// A version of which only number and state are known.
    pub fn new(version: u64, state: ModelState) -> VersionReport {
        VersionReport {
            version,
            state,
            reason: None,
            since_ms: 0,
            digest: None,
            providers: Vec::new(),
            provider: None,
            lanes: LaneCounts::default(),
            threads: 0,
            details: BTreeMap::new(),
        }
    }

    /// Whether a request for this version would be answered: a serving state and a healthy lane.
    pub fn serves(&self) -> bool {
        self.state.serves() && self.lanes.healthy >= 1
    }

    /// State and reason in a few words, for probe answers: `version 3 is failed: no such file`.
    pub fn sentence(&self) -> String {
        let VersionReport { version, state, reason, lanes, .. } = self;
        let no_lane = state.serves() && lanes.healthy == 0;
        match (reason, no_lane) {
            (Some(reason), false) => format!("version {version} is {state}: {reason}"),
            (None, false) => format!("version {version} is {state}"),
            (Some(reason), true) => {
                format!(
                    "version {version} has none of its {} lanes healthy: {reason}",
                    lanes.wanted
                )
            }
            (None, true) => {
                format!("version {version} has none of its {} lanes healthy", lanes.wanted)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_body_reads_as_it_is_documented() {
        let mut version = VersionReport::new(2, ModelState::Degraded);
        version.reason = Some("CUDA is not in this build; runs on cpu".to_owned());
        version.providers = vec!["cuda".to_owned(), "cpu".to_owned()];
        version.provider = Some("cpu".to_owned());
        version.lanes = LaneCounts { wanted: 2, healthy: 1 };
        let report = HealthReport {
            server: ServerPhase::Running,
            since_ms: 17,
            at_ms: 18,
            models: vec![ModelReport {
                name: "iris".to_owned(),
                declared: true,
                versions: vec![version],
            }],
            incidents: Vec::new(),
            details: BTreeMap::new(),
        };
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "server": "running", "since_ms": 17, "at_ms": 18,
                "models": [{"name": "iris", "declared": true, "versions": [{
                    "version": 2, "state": "degraded", "since_ms": 0,
                    "reason": "CUDA is not in this build; runs on cpu",
                    "providers": ["cuda", "cpu"], "provider": "cpu",
                    "lanes": {"wanted": 2, "healthy": 1}, "threads": 0,
                }]}],
            })
        );
        assert_eq!(serde_json::from_value::<HealthReport>(json).unwrap(), report);
    }

    #[test]
    fn phases_are_called_what_they_are_written_as() {
        use ServerPhase::*;
        for phase in [Starting, Running, Draining, Stopped] {
            let json = serde_json::to_string(&phase).unwrap();
            assert_eq!(json, format!("\"{}\"", phase.as_str()));
        }
    }

    #[test]
    fn newest_goes_by_number() {
        let mut serving = VersionReport::new(9, ModelState::Ready);
        serving.lanes = LaneCounts { wanted: 1, healthy: 1 };
        let model = ModelReport {
            name: "iris".to_owned(),
            declared: true,
            versions: vec![VersionReport::new(10, ModelState::Failed), serving],
        };
        assert_eq!(model.newest().map(|version| version.version), Some(10));
        assert_eq!(model.newest_serving().map(|version| version.version), Some(9));
        assert!(model.version(11).is_none());
    }

    #[test]
    fn a_sentence_tells_a_missing_lane_from_a_state() {
        let mut version = VersionReport::new(1, ModelState::Ready);
        version.lanes.wanted = 2;
        assert_eq!(version.sentence(), "version 1 has none of its 2 lanes healthy");
        version.state = ModelState::Failed;
        version.reason = Some("the file is empty".to_owned());
        assert_eq!(version.sentence(), "version 1 is failed: the file is empty");
    }
}
