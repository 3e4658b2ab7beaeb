//! Readiness: would a prediction work now?
//!
//! Judged by the models that were declared when the server started, or that the policy lists by name. A model
//! that an operator loads later changes nothing, be it good or bad. Overload is no input, on purpose: if
//! replicas left the load balancer because they are busy, the rest would be busier.

use serde::{Deserialize, Serialize};

use crate::report::{HealthReport, ModelReport, ServerPhase};

/// Which models must serve before the server calls itself ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadinessPolicy {
    /// Every declared model.
    #[default]
    All,
    /// At least one declared model.
    Any,
    /// Each of these. Listing a model declares it, so one that is not there makes the server not ready.
    Listed(Vec<String>),
}

/// The verdict, with what stands against it and what is worth a look although it is ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether traffic should be sent here.
    pub ready: bool,
    /// Why not: a sentence for each. Empty when ready.
    pub reasons: Vec<String>,
    /// What is amiss without standing in the way, such as a newer version that failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Judges the server.
///
/// A model serves when one of its versions is ready or degraded and has a healthy lane. With no model to judge
/// by, the server is not ready.
pub fn readiness(report: &HealthReport, policy: &ReadinessPolicy) -> Readiness {
    let mut reasons = Vec::new();
    let mut notes = Vec::new();
    if let Some(reason) = phase_objection(report.server) {
        reasons.push(reason.to_owned());
    }
    match policy {
        ReadinessPolicy::All => {
            let declared = declared(report);
            if declared.is_empty() {
                reasons.push(NO_MODEL.to_owned());
            }
            for model in declared {
                judge(model, &mut reasons, &mut notes);
            }
        }
        ReadinessPolicy::Any => {
            let declared = declared(report);
            if declared.is_empty() {
                reasons.push(NO_MODEL.to_owned());
            }
            let mut objections = Vec::new();
            for model in &declared {
                judge(model, &mut objections, &mut notes);
            }
            if objections.len() < declared.len() {
                notes.append(&mut objections);
            } else {
                reasons.append(&mut objections);
            }
        }
        ReadinessPolicy::Listed(names) => {
            if names.is_empty() {
                reasons.push("the list of models that readiness asks for is empty".to_owned());
            }
            for name in names {
                match report.model(name) {
                    Some(model) => judge(model, &mut reasons, &mut notes),
                    None => reasons.push(format!(
                        "model '{name}' is listed for readiness but is not in the repository"
                    )),
                }
            }
        }
    }
    Readiness { ready: reasons.is_empty(), reasons, notes }
}

/// Judges one model, or one of its versions. `None` when the report knows no such model or version.
///
/// A server that starts answers for the models which it already has; one that drains is not ready.
pub fn model_ready(report: &HealthReport, name: &str, version: Option<u64>) -> Option<Readiness> {
    let model = report.model(name)?;
    let mut reasons = Vec::new();
    let mut notes = Vec::new();
    match report.server {
        ServerPhase::Starting | ServerPhase::Running => {}
        ServerPhase::Draining | ServerPhase::Stopped => {
            reasons.extend(phase_objection(report.server).map(str::to_owned));
        }
    }
    match version {
        Some(version) => {
            let version = model.version(version)?;
            if !version.serves() {
                reasons.push(format!("model '{name}': {}", version.sentence()));
            }
        }
        None => judge(model, &mut reasons, &mut notes),
    }
    Some(Readiness { ready: reasons.is_empty(), reasons, notes })
}

const NO_MODEL: &str = "the repository holds no model";

fn declared(report: &HealthReport) -> Vec<&ModelReport> {
    report.models.iter().filter(|model| model.declared).collect()
}

fn phase_objection(phase: ServerPhase) -> Option<&'static str> {
    match phase {
        ServerPhase::Starting => Some("the server is starting"),
        ServerPhase::Running => None,
        ServerPhase::Draining => Some("the server is draining"),
        ServerPhase::Stopped => Some("the server has stopped"),
    }
}

/// Adds exactly one objection when no version serves, else a note for whatever is less than asked for.
fn judge(model: &ModelReport, objections: &mut Vec<String>, notes: &mut Vec<String>) {
    let name = &model.name;
    let Some(newest) = model.newest() else {
        objections.push(format!("model '{name}' has no version"));
        return;
    };
    match model.newest_serving() {
        None => objections.push(format!("model '{name}' serves no version: {}", newest.sentence())),
        Some(serving) if serving.version < newest.version => notes.push(format!(
            "model '{name}' serves version {}, for {}",
            serving.version,
            newest.sentence()
        )),
        Some(serving) if serving.state == crate::ModelState::Degraded => {
            notes.push(format!("model '{name}': {}", serving.sentence()));
        }
        Some(_) => {}
    }
}

#[cfg(test)]
mod tests;
