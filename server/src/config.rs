//! Configuration: what was written, by whom, and what it means.
//!
//! Three sources, in rising weight: a TOML file, `BALM_*` variables, flags. Every key stands in one table,
//! [`KEYS`], and its variable is `BALM_` and the key in capitals, with an underscore for the dot: `http.addr` is
//! `BALM_HTTP_ADDR`. [`Config::resolve`] is a pure function of the sources and the [`Host`], and returns either a
//! configuration in which everything has been checked, or every problem there is, not the first alone.
//! Below this crate nobody sees the environment.

mod keys;
mod problem;
mod raw;
mod read;
mod resolve;
mod show;
mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use axum::http::HeaderName;
use balm_inference::engine::RuntimeLogLevel;
use balm_inference::integrity::Policy;
use balm_inference::provider::Provider;
use balm_probes::ReadinessPolicy;

pub use keys::{KEYS, Key};
pub use problem::{Origin, Problem, Problems};
pub use raw::{FileText, Flag, Sources, Variable};
pub use show::Setting;
pub use values::{ListenAddr, LogFormat};

use crate::host::{Host, Parallelism};

/// Everything the server is told from outside, checked and complete.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where models come from and what is demanded of them.
    pub repository: RepositoryConfig,
    /// The port that predictions come to.
    pub http: HttpConfig,
    /// The port of probes and metrics.
    pub management: ManagementConfig,
    /// What may be under way at once.
    pub admission: AdmissionConfig,
    /// What holds for a model that does not say otherwise itself.
    pub defaults: ModelDefaults,
    /// The engine's library.
    pub onnxruntime: OnnxRuntimeConfig,
    /// How the server ends.
    pub lifecycle: LifecycleConfig,
    /// What is logged, and how.
    pub log: LogConfig,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// Each key with its value and origin, in the order of [`KEYS`]: what `balm check` prints.
    pub settings: Vec<Setting>,
}

/// `[repository]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RepositoryConfig {
    /// Folder with one folder per model. Relative to the working directory. Whether it exists is not checked here.
    pub path: PathBuf,
    /// What is demanded of a model's bytes.
    pub integrity: Policy,
    /// Whether clients may load and unload models.
    pub control: bool,
    /// Which models must serve before the server is ready.
    pub readiness: ReadinessPolicy,
    /// Bytes that one file of a model may have.
    pub max_file_bytes: u64,
    /// How long the load of a version may take, from its first byte to its last golden request.
    pub load_timeout: Duration,
}

/// `[http]`.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpConfig {
    /// Where to listen.
    pub addr: ListenAddr,
    /// Threads of the HTTP runtime.
    pub threads: usize,
    /// Bytes that a request body may have, before and after decompression.
    pub max_body_bytes: usize,
    /// How long a client may take to send the head of a request, from its first byte.
    pub header_timeout: Duration,
    /// How long a client may take to send the body of a request.
    pub body_timeout: Duration,
    /// Bytes a second that a body must come with on average, after a few seconds' grace; 0 for any pace.
    pub min_body_bytes_per_s: u64,
    /// How long an answer may be stuck because its client does not read.
    pub write_timeout: Duration,
    /// How long a connection is kept without a request.
    pub idle_timeout: Duration,
    /// Connections at once.
    pub max_connections: usize,
    /// Whether each request is logged.
    pub access_log: bool,
    /// Whether `POST /noop` exists, which reads the body and answers nothing: the yardstick of `make bench`.
    pub noop_route: bool,
}

/// `[management]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ManagementConfig {
    /// Whether `/metrics` has Triton's names for what Balm measures, too. Off by default: their form is Triton's, and
    /// `promtool check metrics` advises against nearly each.
    pub triton_metrics: bool,
    /// Where to listen.
    pub addr: SocketAddr,
}

/// `[admission]`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdmissionConfig {
    /// Requests waiting or running at once, over all models.
    pub max_in_flight: usize,
    /// Requests waiting or running at once, for one model.
    pub max_in_flight_per_model: usize,
    /// Bytes of request bodies held at once; at least one body of the greatest size allowed.
    pub max_bytes_in_flight: u64,
    /// Header by which clients are told apart for their fair share; none means that their address does.
    pub client_header: Option<HeaderName>,
    /// Bytes that this process may hold; none means that the limit of the control group counts, for the whole of it.
    pub memory_limit_bytes: Option<u64>,
}

/// `[defaults]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDefaults {
    /// Lanes and threads per lane.
    pub parallelism: Parallelism,
    /// Execution providers, the preferred one first, at least one.
    pub providers: Vec<Provider>,
    /// Provider to serve with, visibly degraded, when those cannot be had; none means that the load fails.
    pub fallback: Option<Provider>,
    /// Deadline of a request that names none: waiting and running together.
    pub deadline: Duration,
    /// Longest deadline that a request may ask for.
    pub max_deadline: Duration,
    /// Rows that a batch may have, be it of one request or of several together.
    pub max_batch_rows: usize,
}

/// `[onnxruntime]`.
#[derive(Clone, Debug, PartialEq)]
pub struct OnnxRuntimeConfig {
    /// The library to load; none means that it is looked for.
    pub library: Option<PathBuf>,
    /// From which level on the library's own messages are logged.
    pub log_level: RuntimeLogLevel,
}

/// `[lifecycle]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LifecycleConfig {
    /// How long requests are still taken after SIGTERM, while load balancers learn of it.
    pub drain_delay: Duration,
    /// How long, after that, requests under way may take to finish.
    pub drain_timeout: Duration,
    /// Whether to serve without a supervisor.
    pub single_process: bool,
    /// Whether another container is started once `/startup` is 200: then a server that is parked before it ever served does not
    /// say so.
    pub sidecar: bool,
    /// File that remembers why servers gave up. Without one the server is never parked.
    pub crash_journal: Option<PathBuf>,
    /// File for the reason of an end, such as Kubernetes' `/dev/termination-log`.
    pub termination_log: Option<PathBuf>,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    /// How a line looks.
    pub format: LogFormat,
    /// Directives of `tracing_subscriber::EnvFilter`, such as `info` or `info,balm_server=debug`; known to parse.
    pub level: String,
}

// ===== impl Config =====

impl Config {
    /// Weighs the sources against each other and checks everything. Reads nothing and asks nobody.
    ///
    /// # Errors
    /// Every problem of every source: unknown keys, values of the wrong kind or out of range, values that
    /// contradict each other. A value that a weightier source replaces is not judged.
    pub fn resolve(sources: &Sources, host: &Host) -> Result<Config, Problems> {
        resolve::resolve(sources, host)
    }

    /// Reads the file (when one is named) and the environment of this process, and resolves them with the flags.
    ///
    /// # Errors
    /// As [`Config::resolve`], and when the file cannot be read.
    pub fn load(file: Option<&Path>, flags: Vec<Flag>, host: &Host) -> Result<Config, Problems> {
        let mut sources = Sources { file: None, environment: Vec::new(), flags };
        let mut problems = Vec::new();
        if let Some(path) = file {
            match fs::read_to_string(path) {
                Ok(text) => sources.file = Some(FileText { path: path.to_owned(), text }),
                Err(error) => problems.push(Problem {
                    key: "--config".to_owned(),
                    value: Some(path.display().to_string()),
                    origin: Origin::Flag("--config"),
                    message: format!("a readable TOML file; reading it failed: {error}"),
                }),
            }
        }
        sources.environment = env::vars_os()
            .filter_map(|(name, value)| Some(Variable { name: name.into_string().ok()?, value }))
            .collect();
        match Config::resolve(&sources, host) {
            Ok(config) if problems.is_empty() => Ok(config),
            Ok(_) => Err(Problems(problems)),
            Err(Problems(more)) => {
                problems.extend(more);
                Err(Problems(problems))
            }
        }
    }

    /// A table of every key: value, origin, and the variable that sets it.
    pub fn describe(&self) -> String {
        show::table(&self.settings)
    }
}

#[cfg(test)]
mod tests;
