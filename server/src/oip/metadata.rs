//! What the server and its models say about themselves: metadata, configuration, statistics, repository index.
//!
//! Serialize-only. The member names are the protocol's and Triton's, and clients read them by name.

use balm_inference::contract::{Contract, TensorSpec};
use balm_probes::IndexState;
use serde::Serialize;
use std::collections::BTreeMap;

/// The platform of every model here, as the protocol names it.
pub const PLATFORM: &str = "onnxruntime_onnx";

/// The backend of every model here, as Triton names it.
pub const BACKEND: &str = "onnxruntime";

/// Extensions that the codec carries. Whoever serves more routes lists theirs beside.
pub const CODEC_EXTENSIONS: [&str; 3] = ["classification", "binary_tensor_data", "parameters"];

/// Body of `GET /v2`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServerMetadata {
    /// Name of the server.
    pub name: String,
    /// Version of the server.
    pub version: String,
    /// Extensions that are really there; clients turn features on by these names.
    pub extensions: Vec<&'static str>,
}

/// Body of `GET /v2/models/M[/versions/V]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelMetadata {
    /// Name of the model.
    pub name: String,
    /// Versions that can be asked for.
    pub versions: Vec<String>,
    /// Always [`PLATFORM`].
    pub platform: &'static str,
    /// What a request must bring.
    pub inputs: Vec<TensorMetadata>,
    /// What an answer can hold.
    pub outputs: Vec<TensorMetadata>,
}

/// One tensor of [`ModelMetadata`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorMetadata {
    /// Name of the tensor.
    pub name: String,
    /// The protocol's name of the element type.
    pub datatype: &'static str,
    /// The whole shape, batch included; −1 for what varies. Empty where the model leaves the rank open.
    pub shape: Vec<i64>,
}

impl From<&TensorSpec> for TensorMetadata {
    fn from(spec: &TensorSpec) -> Self {
        TensorMetadata {
            name: spec.name.clone(),
            datatype: spec.datatype.name(),
            shape: spec.protocol_shape(),
        }
    }
}

impl ModelMetadata {
    /// Metadata of a model with this contract.
    pub fn new(name: &str, versions: Vec<String>, contract: &Contract) -> Self {
        ModelMetadata {
            name: name.to_owned(),
            versions,
            platform: PLATFORM,
            inputs: contract.inputs.iter().map(TensorMetadata::from).collect(),
            outputs: contract.outputs.iter().map(TensorMetadata::from).collect(),
        }
    }
}

/// Body of `GET /v2/models/M[/versions/V]/config`: the members that clients read of Triton's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelConfig {
    /// Name of the model.
    pub name: String,
    /// Always [`PLATFORM`].
    pub platform: &'static str,
    /// Always [`BACKEND`].
    pub backend: &'static str,
    /// Most rows of one request where the first dimension is the batch; 0 where there is no batch dimension.
    pub max_batch_size: usize,
    /// What a request must bring.
    pub input: Vec<ConfigTensor>,
    /// What an answer can hold.
    pub output: Vec<ConfigTensor>,
    /// One answer for one request, always.
    pub model_transaction_policy: TransactionPolicy,
    /// No answers are kept here.
    pub response_cache: ResponseCache,
    /// There where requests are batched together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynamic_batching: Option<DynamicBatching>,
}

/// One tensor of [`ModelConfig`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigTensor {
    /// Name of the tensor.
    pub name: String,
    /// For example `TYPE_FP32`.
    pub data_type: &'static str,
    /// The shape; without the batch dimension where `max_batch_size` > 0.
    pub dims: Vec<i64>,
    /// File with the names of the classes, for outputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_filename: Option<String>,
}

/// `model_transaction_policy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TransactionPolicy {
    /// Whether one request may have several answers.
    pub decoupled: bool,
}

/// `response_cache`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ResponseCache {
    /// Whether answers are kept.
    pub enable: bool,
}

/// `dynamic_batching`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DynamicBatching {
    /// Longest wait for company, in microseconds.
    pub max_queue_delay_microseconds: u64,
}

impl ModelConfig {
    /// Configuration of a model with this contract.
    ///
    /// `max_batch_size` > 0 says that the first dimension of every tensor is the batch. `labels` maps outputs to the
    /// files with their labels.
    pub fn new(
        name: &str,
        contract: &Contract,
        max_batch_size: usize,
        labels: &BTreeMap<String, String>,
        dynamic_batching: Option<DynamicBatching>,
    ) -> Self {
        let tensor = |spec: &TensorSpec| {
            let mut dims = spec.protocol_shape();
            if max_batch_size > 0 && !dims.is_empty() {
                dims.remove(0);
            }
            ConfigTensor {
                name: spec.name.clone(),
                data_type: spec.datatype.config_name(),
                dims,
                label_filename: None,
            }
        };
        let labelled = |spec: &TensorSpec| ConfigTensor {
            label_filename: labels.get(&spec.name).cloned(),
            ..tensor(spec)
        };
        ModelConfig {
            name: name.to_owned(),
            platform: PLATFORM,
            backend: BACKEND,
            max_batch_size,
            input: contract.inputs.iter().map(tensor).collect(),
            output: contract.outputs.iter().map(labelled).collect(),
            model_transaction_policy: TransactionPolicy::default(),
            response_cache: ResponseCache::default(),
            dynamic_batching,
        }
    }
}

/// Body of the statistics routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// One element per model version.
    pub model_stats: Vec<ModelStatistics>,
}

/// Statistics of one model version, since it was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ModelStatistics {
    /// Name of the model.
    pub name: String,
    /// Version of the model.
    pub version: String,
    /// When the last inference ended, in milliseconds since 1970; 0 before the first.
    pub last_inference: u64,
    /// Rows that were inferred.
    pub inference_count: u64,
    /// Runs of the model; fewer than rows where they are batched.
    pub execution_count: u64,
    /// Where the time went. perf_analyzer stumbles when one of the eight members is missing.
    pub inference_stats: InferenceStatistics,
    /// Per-response statistics of streaming models: none here.
    pub response_stats: BTreeMap<String, InferenceStatistics>,
    /// Runs by batch size.
    pub batch_stats: Vec<BatchStatistics>,
    /// Memory by device.
    pub memory_usage: Vec<MemoryUsage>,
}

/// How often, and how long in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DurationStatistics {
    /// How often.
    pub count: u64,
    /// Nanoseconds, summed.
    pub ns: u64,
}

/// Where the time of requests went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InferenceStatistics {
    /// Requests that succeeded, from arrival to answer.
    pub success: DurationStatistics,
    /// Requests that failed.
    pub fail: DurationStatistics,
    /// Waiting for a lane.
    pub queue: DurationStatistics,
    /// Preparing inputs.
    pub compute_input: DurationStatistics,
    /// Running the model.
    pub compute_infer: DurationStatistics,
    /// Taking outputs apart.
    pub compute_output: DurationStatistics,
    /// Answers out of the response cache: none here.
    pub cache_hit: DurationStatistics,
    /// Answers that the cache did not have: none here.
    pub cache_miss: DurationStatistics,
}

/// Runs of one batch size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BatchStatistics {
    /// Rows of the batch.
    pub batch_size: u64,
    /// Preparing inputs.
    pub compute_input: DurationStatistics,
    /// Running the model.
    pub compute_infer: DurationStatistics,
    /// Taking outputs apart.
    pub compute_output: DurationStatistics,
}

/// Memory that a model takes on one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryUsage {
    /// For example `CPU`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Number of the device.
    pub id: i64,
    /// Bytes.
    pub byte_size: u64,
}

/// One element of the repository index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IndexEntry {
    /// Name of the model.
    pub name: String,
    /// Version of the model; left out where no version is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// State as the protocol names it.
    pub state: IndexState,
    /// Our own state and reason, for a person.
    pub reason: String,
}

/// Body of `GET /v2/models`, which KServe adds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ModelList {
    /// Names of the models that serve.
    pub models: Vec<String>,
}
