//! ONNX Runtime, through `ort`. The only file that names it.
//!
//! The library is loaded at run time: one binary, and CPU or GPU is a question of which library it finds.

mod provider;
mod value;

use super::{
    BuildError, Cancel, Engine, EngineError, EngineInfo, LoadToken, ModelBytes, Placement,
    RunError, RunOutput, RuntimeLogLevel, SessionOptions,
};
use crate::contract::{Contract, Dimension, TensorSpec};
use crate::provider::Provider;
use crate::settings::GraphOptimization;
use crate::tensor::Tensor;
use ort::environment::Environment;
use ort::error::ErrorCode;
use ort::logging::LogLevel;
use ort::session::builder::{GraphOptimizationLevel, LoadCanceler, SessionBuilder};
use ort::session::{NoSelectedOutputs, RunOptions};
use ort::value::{Outlet, ValueType};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// ONNX Runtime. One per process: the library allows a single environment.
pub struct OnnxEngine {
    environment: Environment,
    info: EngineInfo,
}

impl OnnxEngine {
    /// Loads the shared library at `library` and starts it, telemetry off, its own messages logged from `log` on.
    ///
    /// # Errors
    /// [`EngineError::Library`] when there is no such library, [`EngineError::Start`] when it does not start.
    pub fn start(library: &Path, log: RuntimeLogLevel) -> Result<Self, EngineError> {
        Self::look(library)?;
        let path = library.display().to_string();
        let builder = ort::init_from(library).map_err(|error| EngineError::Library {
            path: path.clone(),
            reason: one_line(&error.to_string()),
        })?;
        let environment = builder
            .with_name("balm")
            .with_telemetry(false)
            // The library logs the making of the environment before it can be told a level, so the level is held here.
            .with_logger(Arc::new(
                move |level, category: &str, _: &str, location: &str, message: &str| {
                    if severity(level) >= log {
                        log_line(level, category, location, message);
                    }
                },
            ))
            .build()
            .map_err(|error| EngineError::Start {
                path: path.clone(),
                reason: one_line(error.message()),
            })?;
        environment.set_log_level(match log {
            RuntimeLogLevel::Verbose => LogLevel::Verbose,
            RuntimeLogLevel::Info => LogLevel::Info,
            RuntimeLogLevel::Warning => LogLevel::Warning,
            RuntimeLogLevel::Error => LogLevel::Error,
            RuntimeLogLevel::Fatal => LogLevel::Fatal,
        });
        let build = ort::info().to_owned();
        Ok(OnnxEngine {
            environment,
            info: EngineInfo {
                name: "onnxruntime",
                version: version_in(library).unwrap_or_else(|| "unknown".to_owned()),
                build,
                library: path,
            },
        })
    }

    /// Whether there is such a library at all.
    ///
    /// # Errors
    /// [`EngineError::Library`].
    pub fn look(library: &Path) -> Result<(), EngineError> {
        if library.is_file() {
            return Ok(());
        }
        let path = library.display().to_string();
        Err(EngineError::Library { path, reason: "no such file".to_owned() })
    }

    fn builder(&self, options: &SessionOptions) -> Result<SessionBuilder, BuildError> {
        let level = match options.optimization {
            GraphOptimization::Disable => GraphOptimizationLevel::Disable,
            GraphOptimization::Basic => GraphOptimizationLevel::Level1,
            GraphOptimization::Extended => GraphOptimizationLevel::Level2,
            GraphOptimization::All => GraphOptimizationLevel::All,
        };
        let builder = SessionBuilder::new(&self.environment)
            .map_err(|error| BuildError::Graph(one_line(error.message())))?
            .with_no_environment_execution_providers()?
            .with_intra_threads(options.threads)?
            .with_inter_threads(1)?
            // Spinning threads take the cores from the other lanes and from HTTP: intra-op 2 was once seen to fall
            // from 19 to 1.8 runs a second beside other work.
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?
            .with_optimization_level(level)?;
        Ok(builder)
    }

    fn commit(
        &self,
        bytes: ModelBytes<'_>,
        options: &SessionOptions,
        providers: &[Provider],
        token: &LoadToken,
    ) -> Result<ort::session::Session, BuildError> {
        let mut builder = provider::register(self.builder(options)?, providers)?;
        for (location, data) in bytes.external {
            builder =
                builder.with_external_initializer_file_in_memory(location, Arc::clone(data))?;
        }
        token.heed(Arc::new(OnnxLoadCancel(builder.canceler())));
        builder.commit_from_memory(bytes.model).map_err(|error| {
            // However the library words it: who told it to end knows why.
            if token.is_cancelled() {
                return BuildError::Cancelled;
            }
            provider::classify(error.message(), providers)
        })
    }
}

impl Engine for OnnxEngine {
    fn info(&self) -> EngineInfo {
        self.info.clone()
    }

    fn build(
        &self,
        bytes: ModelBytes<'_>,
        options: &SessionOptions,
        token: &LoadToken,
    ) -> Result<Box<dyn super::Session>, BuildError> {
        let (session, placement) = match self.commit(bytes, options, &options.providers, token) {
            Ok(session) => {
                (session, Placement { providers: options.providers.clone(), degraded: None })
            }
            Err(error @ BuildError::Provider { .. }) if options.fallback_to_cpu => {
                let session = self.commit(bytes, options, &[Provider::Cpu], token)?;
                let degraded = Some(error.to_string());
                (session, Placement { providers: vec![Provider::Cpu], degraded })
            }
            Err(error) => return Err(error),
        };
        let contract = Contract {
            inputs: specs("input", session.inputs(), bytes.unranked)?,
            outputs: specs("output", session.outputs(), bytes.unranked)?,
        };
        let options = new_run_options()?;
        Ok(Box::new(OnnxSession { session, contract, placement, options }))
    }
}

/// An option that the library does not take is told as the graph's trouble: options come from `model.toml`.
impl From<ort::Error<SessionBuilder>> for BuildError {
    fn from(error: ort::Error<SessionBuilder>) -> Self {
        BuildError::Graph(one_line(error.message()))
    }
}

struct OnnxSession {
    session: ort::session::Session,
    contract: Contract,
    placement: Placement,
    options: Arc<RunOptions<NoSelectedOutputs>>,
}

impl super::Session for OnnxSession {
    fn contract(&self) -> &Contract {
        &self.contract
    }

    fn placement(&self) -> &Placement {
        &self.placement
    }

    fn canceller(&self) -> Arc<dyn Cancel> {
        Arc::new(OnnxCancel(Arc::clone(&self.options)))
    }

    fn rearm(&mut self) {
        // Fails only on a null pointer inside ort, which cannot be here; the next run would report it anyway.
        let _ = self.options.unterminate();
    }

    fn run(&mut self, inputs: &[Tensor], outputs: &[usize]) -> Result<RunOutput, RunError> {
        let start = Instant::now();
        let values = inputs
            .iter()
            .map(value::from_tensor)
            .collect::<ort::Result<Vec<_>>>()
            .map_err(|error| RunError::Runtime(one_line(error.message())))?;
        let prepared = Instant::now();
        let found = self
            .session
            .run_with_options(values.as_slice(), &self.options)
            .map_err(|error| run_error(&error))?;
        let computed = Instant::now();
        let outputs = outputs
            .iter()
            .map(|index| {
                let spec = &self.contract.outputs[*index];
                value::to_tensor(&found[*index], spec)
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(RunOutput {
            outputs,
            input_time: prepared - start,
            infer_time: computed - prepared,
            output_time: computed.elapsed(),
        })
    }
}

struct OnnxCancel(Arc<RunOptions<NoSelectedOutputs>>);

impl Cancel for OnnxCancel {
    fn cancel(&self) {
        if let Err(error) = self.0.terminate() {
            tracing::warn!(error = %error, "run could not be told to stop");
        }
    }
}

struct OnnxLoadCancel(LoadCanceler);

impl Cancel for OnnxLoadCancel {
    fn cancel(&self) {
        if let Err(error) = self.0.cancel() {
            tracing::warn!(error = %error, "load could not be told to stop");
        }
    }
}

fn new_run_options() -> Result<Arc<RunOptions<NoSelectedOutputs>>, BuildError> {
    RunOptions::new().map(Arc::new).map_err(|error| BuildError::Graph(one_line(error.message())))
}

fn run_error(error: &ort::Error) -> RunError {
    let message = one_line(error.message());
    // ONNX Runtime has no error code of its own for a run that was told to stop, only this text.
    if message.contains("terminate flag") {
        return RunError::Terminated;
    }
    match error.code() {
        ErrorCode::InvalidArgument => RunError::InvalidInput(message),
        ErrorCode::GenericFailure | ErrorCode::RuntimeException if blames_inputs(&message) => {
            RunError::InvalidInput(message)
        }
        _ => RunError::Runtime(message),
    }
}

/// Whether a node failed on what it was given, such as sizes that do not broadcast.
///
/// The library has no code for it: a kernel's complaint about its inputs and a device's about itself are both FAIL. So a
/// node's failure is the input's unless its text speaks of memory or of a device. The model as such has been proved by its
/// golden requests.
fn blames_inputs(message: &str) -> bool {
    const OURS: [&str; 10] = [
        "alloc", "memory", "CUDA", "cuda", "CUBLAS", "CUDNN", "TensorRT", "OpenVINO", "HIP",
        "device",
    ];
    message.contains("while running") && !OURS.iter().any(|sign| message.contains(sign))
}

fn specs(
    side: &str,
    outlets: &[Outlet],
    unranked: &BTreeSet<String>,
) -> Result<Vec<TensorSpec>, BuildError> {
    outlets
        .iter()
        .map(|outlet| {
            let mut spec = spec(side, outlet)?;
            // Shape inference may have found what the file leaves open; an empty shape then still means "unknown".
            if spec.shape.as_ref().is_some_and(Vec::is_empty) && unranked.contains(&spec.name) {
                spec.shape = None;
            }
            Ok(spec)
        })
        .collect()
}

fn spec(side: &str, outlet: &Outlet) -> Result<TensorSpec, BuildError> {
    let field = || format!("{side} {:?}", outlet.name());
    let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
        return Err(BuildError::Unsupported {
            field: field(),
            found: outlet.dtype().to_string(),
            hint: " (scikit-learn models: convert with `zipmap=False`)",
        });
    };
    let Some(datatype) = value::datatype(*ty) else {
        return Err(BuildError::Unsupported { field: field(), found: ty.to_string(), hint: "" });
    };
    let shape = shape
        .iter()
        .enumerate()
        .map(|(axis, size)| match usize::try_from(*size) {
            Ok(size) => Dimension::Fixed(size),
            Err(_) => Dimension::Dynamic(
                dimension_symbols.get(axis).filter(|symbol| !symbol.is_empty()).cloned(),
            ),
        })
        .collect();
    Ok(TensorSpec { name: outlet.name().to_owned(), datatype, shape: Some(shape) })
}

fn severity(level: LogLevel) -> RuntimeLogLevel {
    match level {
        LogLevel::Verbose => RuntimeLogLevel::Verbose,
        LogLevel::Info => RuntimeLogLevel::Info,
        LogLevel::Warning => RuntimeLogLevel::Warning,
        LogLevel::Error => RuntimeLogLevel::Error,
        LogLevel::Fatal => RuntimeLogLevel::Fatal,
    }
}

/// Forwards the runtime's own log.
fn log_line(level: LogLevel, category: &str, location: &str, message: &str) {
    match level {
        LogLevel::Error | LogLevel::Fatal => {
            tracing::error!(target: "onnxruntime", category, location, "{message}");
        }
        LogLevel::Warning => {
            tracing::warn!(target: "onnxruntime", category, location, "{message}");
        }
        LogLevel::Info => tracing::info!(target: "onnxruntime", category, location, "{message}"),
        LogLevel::Verbose => {
            tracing::debug!(target: "onnxruntime", category, location, "{message}");
        }
    }
}

/// The library's version, out of the file name that the symbolic link leads to.
fn version_in(library: &Path) -> Option<String> {
    let real = library.canonicalize().ok()?;
    let name = real.file_name()?.to_str()?;
    let (_, version) = name.split_once(".so.")?;
    Some(version.to_owned())
}

/// The runtime writes messages with line breaks and trailing spaces; a log line and a JSON field want neither.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
