//! Probe aliases on the data port. The management port is the one for Kubernetes: it answers when this one cannot.
//!
//! Clients compare the status with 200, KServe's also parse the body: so both are sent.

use super::State;
use super::error::{ApiError, Failed};
use super::observe::RequestId;
use axum::Extension;
use axum::Json;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use balm_inference::predict::PredictError;
use balm_probes::{model_ready as judge_model, readiness};
use serde_json::json;

/// Who can read this is talked to by a live runtime.
pub(super) async fn live() -> Response {
    Json(json!({"live": true})).into_response()
}

/// Whether a prediction would work now.
pub(super) async fn ready(axum::extract::State(state): axum::extract::State<State>) -> Response {
    let verdict = readiness(&state.0.models.report(), &state.0.readiness);
    if verdict.ready {
        return Json(json!({"ready": true})).into_response();
    }
    let body = Json(json!({
        "ready": false,
        "error": verdict.reasons.join("; "),
        "reasons": verdict.reasons,
    }));
    (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
}

/// Whether a prediction by this model would work now.
pub(super) async fn model_ready(
    axum::extract::State(state): axum::extract::State<State>,
    id: Option<Extension<RequestId>>,
    Path(model): Path<String>,
) -> Result<Response, Failed> {
    of_model(&state, &model, None).map_err(|error| Failed(error, id.map(|id| id.0)))
}

/// Whether a prediction by this version would work now.
pub(super) async fn model_version_ready(
    axum::extract::State(state): axum::extract::State<State>,
    id: Option<Extension<RequestId>>,
    Path((model, version)): Path<(String, String)>,
) -> Result<Response, Failed> {
    of_model(&state, &model, Some(&version)).map_err(|error| Failed(error, id.map(|id| id.0)))
}

fn of_model(state: &State, name: &str, version: Option<&str>) -> Result<Response, ApiError> {
    let model = state.0.models.model(name)?;
    let number = match version {
        None => None,
        Some(text) => match text.parse::<u64>() {
            Ok(number) => Some(number),
            // Asks for the error that names the versions there are.
            Err(_) => return Err(unknown_version(&model, text)),
        },
    };
    let report = state.0.models.report();
    match judge_model(&report, name, number) {
        None => Err(unknown_version(&model, version.unwrap_or_default())),
        Some(verdict) if verdict.ready => {
            Ok(Json(json!({"name": name, "ready": true})).into_response())
        }
        Some(verdict) => {
            let body = Json(json!({
                "name": name,
                "ready": false,
                "error": verdict.reasons.join("; "),
                "code": "model_not_ready",
                "reasons": verdict.reasons,
            }));
            Ok((StatusCode::SERVICE_UNAVAILABLE, body).into_response())
        }
    }
}

fn unknown_version(model: &balm_inference::models::Model, version: &str) -> ApiError {
    match model.serving(Some(version)) {
        Err(error) => ApiError::Predict(error),
        Ok(_) => ApiError::Predict(PredictError::UnknownVersion {
            model: model.name().to_owned(),
            version: version.to_owned(),
            known: "others".to_owned(),
        }),
    }
}
