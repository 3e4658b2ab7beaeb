//! Probe aliases on the data port. The management port is the one for Kubernetes: it answers when this one cannot.
//!
//! Clients compare the status with 200, KServe's also parse the body: so both are sent.

use super::State;
use super::error::{ApiError, Failed};
use super::extract::Target;
use super::observe::RequestId;
use axum::Extension;
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use balm_inference::predict::PredictError;
use balm_probes::{Readiness, model_ready as judge_model, readiness};
use serde_json::{Value, json};

/// Who can read this is talked to by a live runtime.
pub(super) async fn live() -> Response {
    Json(json!({"live": true})).into_response()
}

/// Whether a prediction would work now.
pub(super) async fn ready(
    axum::extract::State(state): axum::extract::State<State>,
    id: Option<Extension<RequestId>>,
) -> Response {
    let verdict = readiness(&state.0.models.report(), &state.0.readiness);
    if verdict.ready {
        return Json(json!({"ready": true})).into_response();
    }
    not_ready("server_not_ready", &verdict.reasons, id, json!({}))
}

/// 503 in the form of every error, with the reasons one by one and what else there is to say.
fn not_ready(
    code: &str,
    reasons: &[String],
    id: Option<Extension<RequestId>>,
    mut body: Value,
) -> Response {
    body["ready"] = json!(false);
    body["error"] = json!(reasons.join("; "));
    body["code"] = json!(code);
    body["reasons"] = json!(reasons);
    if let Some(Extension(id)) = id {
        body["request_id"] = json!(id.as_str());
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

/// Whether a prediction by this model, or this version of it, would work now.
pub(super) async fn model_ready(
    axum::extract::State(state): axum::extract::State<State>,
    id: Option<Extension<RequestId>>,
    target: Target,
) -> Result<Response, Failed> {
    let Target { model: name, version } = target;
    let verdict = judge(&state, &name, version.as_deref())
        .map_err(|error| Failed(error, id.clone().map(|id| id.0)))?;
    if verdict.ready {
        return Ok(Json(json!({"name": name, "ready": true})).into_response());
    }
    Ok(not_ready("model_not_ready", &verdict.reasons, id, json!({"name": name})))
}

fn judge(state: &State, name: &str, version: Option<&str>) -> Result<Readiness, ApiError> {
    let model = state.0.models.model(name)?;
    let unknown = || unknown_version(&model, version.unwrap_or_default());
    let number = version.map(str::parse::<u64>).transpose().map_err(|_| unknown())?;
    judge_model(&state.0.models.report(), name, number).ok_or_else(unknown)
}

/// The error that names the versions there are.
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
