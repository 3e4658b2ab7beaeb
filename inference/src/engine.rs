//! The seam to the runtime that computes.
//!
//! Everything above speaks of [`Engine`] and [`Session`]; [`onnx`] is the one that serves, and the only
//! place that names ONNX Runtime. Tests put a scripted engine here to panic, hang and fail on demand.

pub mod onnx;
pub mod rehearsal;
pub mod starting;
mod token;

pub use token::LoadToken;

use crate::contract::Contract;
use crate::provider::Provider;
use crate::settings::GraphOptimization;
use crate::tensor::Tensor;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// The bytes of a model, verified, as they were read once.
#[derive(Clone, Copy, Debug)]
pub struct ModelBytes<'a> {
    /// The model's name, which says nothing about the bytes.
    pub name: &'a str,
    /// `model.onnx`.
    pub model: &'a [u8],
    /// External data files: the location as the model writes it, and the file's bytes.
    pub external: &'a [(String, Arc<[u8]>)],
    /// Inputs and outputs whose rank the model leaves open, which the runtime cannot tell from scalars.
    pub unranked: &'a BTreeSet<String>,
}

/// What a session is built with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Threads inside one run (intra-op). 1 keeps the whole run on the lane's own thread.
    pub threads: usize,
    /// Execution providers in the order of preference; never empty.
    pub providers: Vec<Provider>,
    /// Whether a provider that cannot be had may be replaced by the CPU, visibly.
    pub fallback_to_cpu: bool,
    /// Graph rewriting.
    pub optimization: GraphOptimization,
}

/// What really runs, for `/status`, metrics and the start-up lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Providers in force, in order.
    pub providers: Vec<Provider>,
    /// Why these are not the ones that were asked for; `None` when they are.
    pub degraded: Option<String>,
}

impl Placement {
    /// Whether what computes is not the processor, so that lanes are no measure of how much runs at once there.
    pub fn is_on_a_device(&self) -> bool {
        self.providers.first().is_some_and(|provider| *provider != Provider::Cpu)
    }
}

/// From which level on the runtime's own messages are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuntimeLogLevel {
    /// Everything.
    Verbose,
    /// What it does.
    Info,
    /// What may be wrong.
    Warning,
    /// What failed. Runs that fail on their inputs are among it, one line for each.
    Error,
    /// What ends the process.
    Fatal,
}

/// Name and version of the runtime library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineInfo {
    /// For example `onnxruntime`.
    pub name: &'static str,
    /// Version in the library's file name, for example `1.31.1`.
    pub version: String,
    /// Build text of the library: commit, flags.
    pub build: String,
    /// File that was loaded.
    pub library: String,
}

/// The runtime cannot be used at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The shared library was not found or is not one.
    #[error(
        "ONNX Runtime is missing: {path} cannot be loaded ({reason}); `make ort` brings it, or set ORT_DYLIB_PATH"
    )]
    Library {
        /// Where it was looked for.
        path: String,
        /// What the loader said.
        reason: String,
    },
    /// The library is there and refused to start.
    #[error("ONNX Runtime in {path} did not start: {reason}")]
    Start {
        /// Which library.
        path: String,
        /// What it said.
        reason: String,
    },
}

/// A session could not be built from verified bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The runtime refused the graph.
    #[error("ONNX Runtime refuses the model: {0}")]
    Graph(String),
    /// An execution provider that was asked for cannot be had.
    #[error(
        "execution provider {provider} cannot be used: {reason}; bring what it needs, or allow `fallback = \"cpu\"` in model.toml"
    )]
    Provider {
        /// Which one.
        provider: Provider,
        /// What is missing, in the runtime's words.
        reason: String,
    },
    /// An input or output that the protocol has no form for.
    #[error("{field} is {found}; Balm serves tensors of the protocol's datatypes only{hint}")]
    Unsupported {
        /// For example `output "probabilities"`.
        field: String,
        /// The type in the runtime's words.
        found: String,
        /// What to do about it, with a leading separator; may be empty.
        hint: &'static str,
    },
    /// It was told to end before it was built.
    #[error("it was told to end")]
    Cancelled,
}

/// A run that brought no outputs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The graph cannot be computed on these inputs: the client's to mend.
    #[error("the model cannot compute these inputs: {0}")]
    InvalidInput(String),
    /// The run was told to stop.
    #[error("the run was stopped")]
    Terminated,
    /// The runtime or a provider failed.
    #[error("ONNX Runtime failed: {0}")]
    Runtime(String),
}

/// Outputs of one run, with the time of its parts.
#[derive(Debug)]
pub struct RunOutput {
    /// The outputs that were asked for, in that order.
    pub outputs: Vec<Tensor>,
    /// Handing the inputs to the runtime.
    pub input_time: Duration,
    /// The run itself.
    pub infer_time: Duration,
    /// Taking the outputs from the runtime.
    pub output_time: Duration,
}

/// Builds sessions.
pub trait Engine: Send + Sync + 'static {
    /// What computes here.
    fn info(&self) -> EngineInfo;

    /// Builds a session; blocks for as long as the model needs to load, or until `token` is told to end and the engine looks.
    ///
    /// # Errors
    /// [`BuildError`], with the missing piece named.
    fn build(
        &self,
        bytes: ModelBytes<'_>,
        options: &SessionOptions,
        token: &LoadToken,
    ) -> Result<Box<dyn Session>, BuildError>;
}

/// A loaded model that computes for one thread at a time.
pub trait Session: Send {
    /// Inputs and outputs, as the graph declares them.
    fn contract(&self) -> &Contract;

    /// Where it really runs.
    fn placement(&self) -> &Placement;

    /// A handle that stops the run in progress from another thread.
    fn canceller(&self) -> Arc<dyn Cancel>;

    /// Forgets an earlier cancel. To be called *before* the next run can be cancelled, or that cancel is lost.
    fn rearm(&mut self);

    /// Computes. `inputs` in the graph's order and within the contract; `outputs` are indices into the contract's.
    ///
    /// # Errors
    /// [`RunError`].
    fn run(&mut self, inputs: &[Tensor], outputs: &[usize]) -> Result<RunOutput, RunError>;
}

/// Stops a run, or the building of a session.
pub trait Cancel: Send + Sync {
    /// Asks what is in progress to end. Returns at once; it ends when the runtime next looks.
    fn cancel(&self);
}
