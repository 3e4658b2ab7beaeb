//! Metadata, configuration, statistics, repository index, load and unload.

use super::error::{ApiError, Failed, method_not_allowed};
use super::extract::{Members, Target};
use super::observe::RequestId;
use super::{LOADS_MAX, State};
use crate::oip::metadata::{
    BatchStatistics, CODEC_EXTENSIONS, DurationStatistics, DynamicBatching, IndexEntry,
    InferenceStatistics, ModelConfig, ModelList, ModelMetadata, ModelStatistics, ServerMetadata,
    Statistics,
};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use balm_inference::models::{ControlError, Models};
use balm_inference::statistics::CountAndTime;
use balm_inference::version::Serving;
use balm_probes::IndexState;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Extensions beside those of the codec: what these routes serve.
const EXTENSIONS: [&str; 4] =
    ["model_repository", "schedule_policy", "model_configuration", "statistics"];

type Shared = axum::extract::State<State>;
type Id = Option<Extension<RequestId>>;
type Answer<T> = Result<Json<T>, Failed>;

fn failed(id: Id) -> impl FnOnce(ApiError) -> Failed {
    move |error| Failed(error, id.map(|id| id.0))
}

/// `GET /v2`
pub(super) async fn server_metadata() -> Json<ServerMetadata> {
    let mut extensions: Vec<&'static str> = EXTENSIONS.to_vec();
    extensions.extend(CODEC_EXTENSIONS);
    Json(ServerMetadata {
        name: "balm".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions,
    })
}

/// `GET /v2/models`
pub(super) async fn list_models(axum::extract::State(state): Shared) -> Json<ModelList> {
    let models = state
        .0
        .models
        .all()
        .iter()
        .filter(|model| !model.all_serving().is_empty())
        .map(|model| model.name().to_owned())
        .collect();
    Json(ModelList { models })
}

/// `GET /v2/models/{m}[/versions/{v}]`
pub(super) async fn model_metadata(
    axum::extract::State(state): Shared,
    id: Id,
    target: Target,
) -> Answer<ModelMetadata> {
    metadata(&state, &target).map(Json).map_err(failed(id))
}

fn metadata(state: &State, target: &Target) -> Result<ModelMetadata, ApiError> {
    let model = state.0.models.model(&target.model)?;
    let serving = model.serving(target.version.as_deref())?;
    let versions = model.all_serving().iter().map(|serving| serving.version.to_string()).collect();
    Ok(ModelMetadata::new(&target.model, versions, &serving.contract))
}

/// `GET /v2/models/{m}[/versions/{v}]/config`
pub(super) async fn model_config(
    axum::extract::State(state): Shared,
    id: Id,
    target: Target,
) -> Answer<ModelConfig> {
    config(&state, &target).map(Json).map_err(failed(id))
}

fn config(state: &State, target: &Target) -> Result<ModelConfig, ApiError> {
    let serving = state.0.models.model(&target.model)?.serving(target.version.as_deref())?;
    let batch = if serving.contract.is_batched() { serving.settings.max_batch_rows } else { 0 };
    // Labels stand in model.toml; the member tells clients only that there are some.
    let labels: BTreeMap<String, String> = serving
        .settings
        .labels
        .keys()
        .map(|output| (output.clone(), "model.toml".to_owned()))
        .collect();
    let batching = serving.batch_delay().map(|delay| DynamicBatching {
        max_queue_delay_microseconds: u64::try_from(delay.as_micros()).unwrap_or(u64::MAX),
    });
    Ok(ModelConfig::new(&target.model, &serving.contract, batch, &labels, batching))
}

/// `GET /v2/models/stats`
pub(super) async fn all_statistics(axum::extract::State(state): Shared) -> Json<Statistics> {
    let serving = state.0.models.all().into_iter().flat_map(|model| model.all_serving());
    Json(Statistics { model_stats: serving.map(|serving| statistics(&serving)).collect() })
}

/// `GET /v2/models/{m}[/versions/{v}]/stats`; without a version, of all that serve.
pub(super) async fn model_statistics(
    axum::extract::State(state): Shared,
    id: Id,
    target: Target,
) -> Answer<Statistics> {
    let read = || -> Result<Statistics, ApiError> {
        let model = state.0.models.model(&target.model)?;
        // Asks for the error when nothing serves.
        let one = model.serving(target.version.as_deref())?;
        let asked = if target.version.is_some() { vec![one] } else { model.all_serving() };
        Ok(Statistics { model_stats: asked.iter().map(|serving| statistics(serving)).collect() })
    };
    read().map(Json).map_err(failed(id))
}

fn statistics(serving: &Serving) -> ModelStatistics {
    let reading = serving.statistics();
    ModelStatistics {
        name: serving.model.clone(),
        version: serving.version.to_string(),
        last_inference: reading.last_inference_unix_ms,
        inference_count: reading.inference_count,
        execution_count: reading.execution_count,
        inference_stats: InferenceStatistics {
            success: duration(reading.success),
            fail: duration(reading.fail),
            queue: duration(reading.queue),
            compute_input: duration(reading.compute_input),
            compute_infer: duration(reading.compute_infer),
            compute_output: duration(reading.compute_output),
            // There is no response cache; the members must be there all the same.
            cache_hit: DurationStatistics::default(),
            cache_miss: DurationStatistics::default(),
        },
        batch_stats: reading
            .batches
            .iter()
            .map(|(size, batch)| BatchStatistics {
                batch_size: *size,
                compute_input: duration(batch.input),
                compute_infer: duration(batch.infer),
                compute_output: duration(batch.output),
            })
            .collect(),
        ..ModelStatistics::default()
    }
}

fn duration(total: CountAndTime) -> DurationStatistics {
    DurationStatistics { count: total.count, ns: total.ns }
}

/// `POST /v2/repository/index`; the body may be empty or `{"ready": true}`.
pub(super) async fn repository_index(
    axum::extract::State(state): Shared,
    id: Id,
    Members(request): Members,
) -> Answer<Vec<IndexEntry>> {
    let read = || -> Result<Vec<IndexEntry>, ApiError> {
        let only_ready = match request.get("ready") {
            None => false,
            Some(Value::Bool(ready)) => *ready,
            Some(_) => {
                return Err(ApiError::Field {
                    field: "ready".to_owned(),
                    problem: "expected true or false".to_owned(),
                });
            }
        };
        Ok(index(&state.0.models, only_ready))
    };
    read().map(Json).map_err(failed(id))
}

fn index(models: &Models, only_ready: bool) -> Vec<IndexEntry> {
    let report = models.report();
    let mut entries = Vec::new();
    for model in &report.models {
        for version in &model.versions {
            let state = version.state.index_state();
            if only_ready && state != IndexState::Ready {
                continue;
            }
            let word = version.state.as_str();
            let reason = match &version.reason {
                Some(reason) => format!("{word}: {reason}"),
                // Triton's clients expect no reason where all is well.
                None if state == IndexState::Ready => String::new(),
                None => word.to_owned(),
            };
            entries.push(IndexEntry {
                name: model.name.clone(),
                version: Some(version.version.to_string()),
                state,
                reason,
            });
        }
        if model.versions.is_empty() && !only_ready {
            entries.push(IndexEntry {
                name: model.name.clone(),
                version: None,
                state: IndexState::Unavailable,
                reason: "no version folder".to_owned(),
            });
        }
    }
    entries
}

/// `POST /v2/repository/models/{m}/load`: answers when the model serves, or with the reason why it does not.
pub(super) async fn load(
    axum::extract::State(state): Shared,
    id: Id,
    Target { model, .. }: Target,
    Members(request): Members,
) -> Answer<Value> {
    let result = match permitted(&state) {
        Err(error) => Err(error),
        Ok(()) if has_override(&request) => Err(ApiError::NotSupported(
            "parameters: a model's configuration and files come from the repository, where their digests are checked; \
             `config` and `file:…` are not taken here"
                .to_owned(),
        )),
        Ok(()) => blocking(&state, model.clone(), |models, name| models.load(name)).await,
    };
    result.map(|()| Json(json!({"name": model, "load": true}))).map_err(failed(id))
}

/// `POST /v2/repository/models/{m}/unload`: answers when no new request reaches the model.
pub(super) async fn unload(
    axum::extract::State(state): Shared,
    id: Id,
    Target { model, .. }: Target,
    // There is nothing to say in it, but it must be well-formed, and read.
    _members: Members,
) -> Answer<Value> {
    let result = match permitted(&state) {
        Err(error) => Err(error),
        Ok(()) => blocking(&state, model.clone(), |models, name| models.unload(name)).await,
    };
    result.map(|()| Json(json!({"name": model, "unload": true}))).map_err(failed(id))
}

/// Repositories are not named here; there is one.
pub(super) async fn named_repository(id: Id) -> (StatusCode, Failed) {
    let error = ApiError::NotSupported(
        "there is one repository and it has no name: use /v2/repository/index and /v2/repository/models/…".to_owned(),
    );
    (StatusCode::NOT_IMPLEMENTED, Failed(error, id.map(|id| id.0)))
}

fn permitted(state: &State) -> Result<(), ApiError> {
    if state.0.control { Ok(()) } else { Err(ApiError::ControlOff) }
}

fn has_override(request: &serde_json::Map<String, Value>) -> bool {
    request.get("parameters").and_then(Value::as_object).is_some_and(|parameters| {
        parameters.keys().any(|key| key == "config" || key.starts_with("file:"))
    })
}

/// Runs a load or unload on a thread of its own: it may take minutes, and the threads that decode bodies are not for that.
/// A client that leaves stops nothing, and keeps its place until the work is done.
async fn blocking(
    state: &State,
    model: String,
    work: impl FnOnce(&Models, &str) -> Result<(), ControlError> + Send + 'static,
) -> Result<(), ApiError> {
    let Ok(place) = Arc::clone(&state.0.loads).try_acquire_owned() else {
        return Err(ApiError::ControlBusy(LOADS_MAX));
    };
    let (sender, receiver) = oneshot::channel();
    let models = state.0.models.clone();
    let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        let result = work(&models, &model);
        drop(place);
        // Nobody may be listening any more.
        let _ = sender.send(result);
    });
    if thread.is_err() {
        return Err(ApiError::Internal("the thread of the load could not be started"));
    }
    match receiver.await {
        Ok(result) => Ok(result?),
        Err(_closed) => Err(ApiError::Internal("the load panicked")),
    }
}

/// `GET /v1/models/{m}`: the state of a model in the older dialect.
pub(super) async fn v1_status(
    axum::extract::State(state): Shared,
    id: Id,
    Target { model, .. }: Target,
) -> Response {
    if model.contains(':') {
        // The path of a verb, which is posted to.
        let mut response = method_not_allowed(id, Method::GET).await;
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    match state.0.models.model(&model) {
        Ok(found) => {
            Json(json!({"name": model, "ready": found.serving(None).is_ok()})).into_response()
        }
        Err(error) => failed(id)(error.into()).into_response(),
    }
}
