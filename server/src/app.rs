//! The wiring: from a configuration to a server that runs and ends in order.
//!
//! [`App::build`] opens everything that can fail (library, repository), on sockets that are bound already; [`App::run`]
//! serves until it is told to stop. Probes are answered from the first moment: by a management port of its own, or by the
//! supervisor, which is told everything.

use crate::banner;
use crate::config::Config;
use crate::ending::{Ending, Endings, Told};
use crate::exit::Exit;
use crate::healing;
use crate::health::Health;
use crate::host::Host;
use crate::http::{self, BodyPace, Bound, HttpMetrics, ListenError, Listening, Sockets, Stage};
use crate::library;
use crate::logs::LogError;
use crate::management::{Management, ManagementHandle};
use crate::memory::MemoryLimit;
use crate::pulse::Pulse;
use crate::worker::{Worker, WorkerError};
use balm_inference::admission::{Gate, GateLimits};
use balm_inference::effective::ModelDefaults;
use balm_inference::engine::onnx::OnnxEngine;
use balm_inference::engine::rehearsal::{Faults, RehearsalEngine};
use balm_inference::engine::starting::StartingEngine;
use balm_inference::engine::{Engine, EngineError, EngineInfo};
use balm_inference::metrics::Metrics;
use balm_inference::models::{Models, ModelsOptions};
use balm_inference::repository::{Repository, RepositoryError};
use balm_probes::ServerPhase;
use prometheus::process_collector::ProcessCollector;
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Threads that decode large bodies. Loads have threads of their own.
const BLOCKING_THREADS_MAX: usize = 16;

/// Clients of a worker that died wait in the backlog while the next one loads, which is better than a refusal when it is
/// short. From this time on, the default deadline of a request, they are told that the models load.
const LOADED_WAIT_MAX: Duration = Duration::from_secs(1);
/// How often it is looked whether they have.
const LOADED_GLANCE: Duration = Duration::from_millis(2);

/// What is said of requests that crash the server where nobody outlives it.
const UNRECORDED: &str = "requests are not remembered across crashes: there is no supervisor, or it has no memory to share";

/// The server could not be put together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppError {
    /// No runtime to compute with.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// No models.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// No data port.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// No management port.
    #[error("cannot listen on {addr} (management.addr): {source}")]
    Management {
        /// The address.
        addr: std::net::SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// No threads.
    #[error("a thread or runtime could not be started: {0}")]
    Thread(#[source] io::Error),
    /// No signals.
    #[error("signals cannot be received: {0}")]
    Signals(#[source] io::Error),
    /// No log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Sockets of the service manager that are none.
    #[error("sockets of the service manager (LISTEN_FDS): {0}")]
    Inherited(#[source] io::Error),
    /// No supervisor.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// A mistake in the metrics.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Sets the engine to start, on a thread of its own. It takes longer than all else that a start needs, so it comes first.
///
/// # Errors
/// [`AppError::Engine`] where there is no library, [`AppError::Thread`].
pub fn start_engine(config: &Config) -> Result<StartingEngine, AppError> {
    let library = library::find(config.onnxruntime.library.as_deref());
    OnnxEngine::look(&library)?;
    let level = config.onnxruntime.log_level;
    StartingEngine::spawn(move || OnnxEngine::start(&library, level)).map_err(AppError::Thread)
}

/// Engine, repository and metrics: everything but sockets. `balm check` needs no more.
pub struct Core {
    /// The models, none loaded yet.
    pub models: Models,
    engine: Arc<StartingEngine>,
    /// Where all metrics are registered.
    pub registry: Registry,
}

impl Core {
    /// Opens the repository; models can be read while the engine starts. With `faults` it fails on command.
    ///
    /// # Errors
    /// [`AppError`].
    pub fn build(
        config: &Config,
        engine: StartingEngine,
        faults: Option<Arc<Faults>>,
    ) -> Result<Self, AppError> {
        let repository = Repository::open(&config.repository.path)?;
        let engine = Arc::new(engine);
        let registry = Registry::new();
        let metrics = Metrics::register(&registry, config.management.triton_metrics)?;
        let gate = Arc::new(Gate::new(GateLimits {
            in_flight: config.admission.max_in_flight as u64,
            bytes: config.admission.max_bytes_in_flight,
        }));
        let serving = Arc::clone(&engine) as Arc<dyn Engine>;
        let serving = match faults {
            Some(faults) => Arc::new(RehearsalEngine::new(serving, faults)),
            None => serving,
        };
        let models = Models::new(serving, repository, options(config), gate, metrics);
        Ok(Core { models, engine, registry })
    }

    /// Waits until the engine runs.
    ///
    /// # Errors
    /// [`AppError::Engine`].
    pub fn started(&self) -> Result<EngineInfo, AppError> {
        let info = self.engine.started()?.info();
        register_infos(&self.registry, &info)?;
        Ok(info)
    }
}

fn options(config: &Config) -> ModelsOptions {
    let defaults = &config.defaults;
    ModelsOptions {
        defaults: ModelDefaults {
            lanes: defaults.parallelism.lanes as usize,
            threads: defaults.parallelism.threads as usize,
            providers: defaults.providers.clone(),
            fallback_to_cpu: defaults.fallback.is_some(),
            default_deadline: defaults.deadline,
            max_deadline: defaults.max_deadline,
            max_batch_rows: defaults.max_batch_rows,
            max_in_flight: config.admission.max_in_flight_per_model as u64,
            max_body_bytes: config.http.max_body_bytes as u64,
        },
        integrity: config.repository.integrity,
        max_file_bytes: config.repository.max_file_bytes,
        parallel_loads: defaults.parallelism.lanes as usize,
        load_limit: config.repository.load_timeout,
    }
}

fn sockets(config: &Config) -> Sockets {
    /// A frame must fit, and more than this makes no connection faster.
    const H2_WINDOW: RangeInclusive<u64> = 64 * 1024..=1024 * 1024;
    let http = &config.http;
    // Bytes that came and were not yet read are in nobody's count, so all connections together may hold no more of them
    // than requests may.
    let window = config.admission.max_bytes_in_flight / http.max_connections.max(1) as u64;
    let window = window.clamp(*H2_WINDOW.start(), *H2_WINDOW.end());
    Sockets {
        connections: http.max_connections,
        header_timeout: http.header_timeout,
        idle_timeout: http.idle_timeout,
        write_timeout: http.write_timeout,
        pace: BodyPace { timeout: http.body_timeout, min_bytes_per_s: http.min_body_bytes_per_s },
        h2_window: u32::try_from(window).unwrap_or(u32::MAX >> 1),
    }
}

/// Facts that never change, as gauges of value 1 with the fact in a label.
fn register_infos(registry: &Registry, engine: &EngineInfo) -> prometheus::Result<()> {
    let info =
        |name: &str, help: &str, labels: &[&str], values: &[&str]| -> prometheus::Result<()> {
            let family = IntGaugeVec::new(Opts::new(name, help), labels)?;
            family.with_label_values(values).set(1);
            registry.register(Box::new(family))
        };
    info("balm_build_info", "Version of Balm.", &["version"], &[env!("CARGO_PKG_VERSION")])?;
    info(
        "balm_onnxruntime_info",
        "Version of the ONNX Runtime library that was loaded.",
        &["version"],
        &[&engine.version],
    )?;
    registry.register(Box::new(ProcessCollector::for_self()))
}

/// What the process makes of its share of the machine. Lanes and their threads are counted per model.
fn register_threads(registry: &Registry, host: &Host, http: usize) -> prometheus::Result<()> {
    let gauge = |name: &str, help: &str, value: i64| -> prometheus::Result<()> {
        let gauge = IntGauge::new(name, help)?;
        gauge.set(value);
        registry.register(Box::new(gauge))
    };
    let cores = "Cores that may be kept busy: the CPU quota rounded up, or the affinity where that is less.";
    gauge("balm_cores", cores, i64::from(host.cores.value))?;
    let threads = i64::try_from(http).unwrap_or(i64::MAX);
    gauge("balm_http_threads", "Threads of the HTTP runtime.", threads)
}

/// A server with everything open and nothing served yet.
pub struct App {
    config: Config,
    core: Core,
    runtime: Runtime,
    bound: Bound,
    front: Front,
    health: Arc<Health>,
    pulse: Arc<Pulse>,
    loader: Loader,
}

/// Who answers for the server's health.
pub enum Front {
    /// Itself, at a port of its own.
    Management(Management),
    /// Its supervisor.
    Supervisor(Arc<Worker>),
}

impl App {
    /// Opens everything that can fail. With `faults` it fails on command, later.
    ///
    /// # Errors
    /// [`AppError`], the first thing that could not be opened.
    pub fn build(
        config: Config,
        host: &Host,
        engine: StartingEngine,
        bound: Bound,
        front: Front,
        faults: Option<Arc<Faults>>,
    ) -> Result<Self, AppError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.http.threads)
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(AppError::Thread)?;
        let pulse = match &front {
            Front::Management(_) => Pulse::start().map_err(AppError::Thread)?,
            Front::Supervisor(worker) => worker.pulse(),
        };
        let core = Core::build(&config, engine, faults)?;
        let health = Arc::new(Health::new(
            core.models.clone(),
            Arc::clone(&pulse),
            config.repository.readiness.clone(),
            core.registry.clone(),
        ));
        let worker = match &front {
            Front::Management(_) => None,
            Front::Supervisor(worker) => Some(Arc::clone(worker)),
        };
        match worker.as_ref().and_then(Worker::recorder) {
            Some(recorder) => core.models.record(recorder),
            None => core.models.describe("poison", UNRECORDED.to_owned()),
        }
        if let Some(worker) = &worker {
            worker.attach(&core.models, &health);
        }
        log_start(&config, host);
        let loader = Loader::start(&core.models)?;
        let memory = config.admission.memory_limit_bytes;
        if let Some(limit) = MemoryLimit::find(memory, host.memory_bytes.as_ref()) {
            core.models.set_memory_limit(limit.bytes());
            limit.watch(core.models.clone(), &pulse, worker.clone()).map_err(AppError::Thread)?;
        }
        register_threads(&core.registry, host, config.http.threads)?;
        healing::start(core.models.clone(), &pulse, worker).map_err(AppError::Thread)?;
        let engine = core.started()?;
        describe(&core.models, engine);
        Ok(App { config, core, runtime, bound, front, health, pulse, loader })
    }

    /// Serves until it is told to end, then drains.
    pub fn run(self) -> Exit {
        let App { config, core, runtime, bound, front, health, pulse, loader } = self;
        let Core { models, registry, .. } = core;
        let exit = runtime.block_on(async {
            tokio::spawn(pulse.beat());
            let served = Served::start(&config, models, &registry, bound, front, health, loader);
            match served {
                Ok(served) => served.until_told(&config).await,
                Err(error) => {
                    let _ = writeln!(io::stderr(), "balm: {error}");
                    Exit::Io
                }
            }
        });
        // Loads under way are not waited for; nothing they do outlives the process.
        runtime.shutdown_background();
        exit
    }
}

/// Loads what the repository holds, from the first moment on, while the engine starts and the server listens.
struct Loader(mpsc::SyncSender<Listening>);

impl Loader {
    fn start(models: &Models) -> Result<Self, AppError> {
        let (sender, listening) = mpsc::sync_channel(1);
        let models = models.clone();
        std::thread::Builder::new()
            .name("loader".to_owned())
            .spawn(move || {
                if let Err(error) = models.load_all() {
                    tracing::error!(%error, "repository not read");
                }
                models.enter(ServerPhase::Running);
                // Nobody announces anything when the server could not be put together.
                let Ok(listening) = listening.recv() else { return };
                banner::print(&banner::models(&models.report()));
                if let Some(line) = banner::try_it(&models, &listening) {
                    banner::print(&line);
                }
            })
            .map_err(AppError::Thread)?;
        Ok(Loader(sender))
    }

    /// Says where the server listens: from now on it may be told how the models came out.
    fn announce(self, listening: Listening) {
        let _ = self.0.send(listening);
    }
}

/// The server at work.
struct Served {
    models: Models,
    stage: watch::Sender<Stage>,
    data: tokio::task::JoinHandle<Result<usize, ListenError>>,
    told: Told,
    _management: Option<ManagementHandle>,
}

impl Served {
    fn start(
        config: &Config,
        models: Models,
        registry: &Registry,
        bound: Bound,
        front: Front,
        health: Arc<Health>,
        loader: Loader,
    ) -> Result<Self, AppError> {
        let http_metrics = HttpMetrics::register(registry)?;
        let state = http::State::new(
            models.clone(),
            http_metrics.clone(),
            config.repository.readiness.clone(),
            config.repository.control,
            &config.http,
            config.admission.client_header.clone(),
        );
        let port = http::DataPort::new(state, config.http.noop_route);
        let listening = bound.listening()?;
        let (endings, worker, management) = match front {
            Front::Management(management) => {
                let management = management.start(health).map_err(AppError::Thread)?;
                banner::print(&banner::addresses(&listening, management.local_addr()));
                (Endings::default(), None, Some(management))
            }
            Front::Supervisor(worker) => (worker.endings(), Some(worker), None),
        };
        // A supervisor tells, and tells again, by itself; a signal that reaches its worker as well says nothing new.
        let again = if worker.is_some() { Ending::Drain } else { Ending::AtOnce };
        heed_signals(&endings, again)?;
        let first = worker.as_ref().is_none_or(|worker| worker.is_first());
        // People look at the first start.
        if first {
            loader.announce(listening);
        }
        let (stage, stages) = watch::channel(Stage::Open);
        let sockets = sockets(config);
        let drain = config.lifecycle.drain_timeout;
        let closed = move || {
            if let Some(worker) = worker {
                worker.closed();
            }
        };
        let (loading, mut told) = (models.clone(), endings.hear());
        let data = tokio::spawn(async move {
            if !first {
                tokio::select! {
                    () = loaded(&loading) => {}
                    () = told.at_least(Ending::Drain) => {}
                }
            }
            bound.serve(port, sockets, http_metrics, stages, drain, closed).await
        });
        Ok(Served { models, stage, data, told: endings.hear(), _management: management })
    }

    /// Waits to be told, then ends in order: not ready at once, still serving while load balancers learn of it, then
    /// no new connections, then the end when what was inside has finished.
    async fn until_told(self, config: &Config) -> Exit {
        let Served { models, stage, mut data, mut told, _management } = self;
        tokio::select! {
            () = told.at_least(Ending::Drain) => {}
            // It ends by itself only when it could not even begin.
            ended = &mut data => {
                if let Ok(Err(error)) = ended {
                    let _ = writeln!(io::stderr(), "balm: {error}");
                }
                return Exit::Io;
            }
        }
        tracing::info!(
            drain_delay_ms = config.lifecycle.drain_delay.as_millis(),
            "draining: not ready from now on, still serving"
        );
        models.enter(ServerPhase::Draining);
        let _ = stage.send(Stage::Leaving);
        tokio::select! {
            () = tokio::time::sleep(config.lifecycle.drain_delay) => {}
            () = told.at_least(Ending::DrainNow) => {}
        }
        tracing::info!("taking no new connections");
        let _ = stage.send(Stage::Stopping);
        let cut = tokio::select! {
            // First, so that nothing that comes is served by somebody who must not.
            biased;
            () = told.at_least(Ending::AtOnce) => {
                tracing::warn!("told again, ending at once");
                return Exit::Interrupted;
            }
            cut = &mut data => cut.ok().and_then(Result::ok).unwrap_or(0),
        };
        models.enter(ServerPhase::Stopped);
        if cut > 0 {
            tracing::warn!(connections = cut, "connections cut: they did not finish in time");
            return Exit::Interrupted;
        }
        tracing::info!("drained");
        Exit::Drained
    }
}

/// Waits until what the repository holds is loaded or refused, or for as long as clients can be left waiting for it.
async fn loaded(models: &Models) {
    let all = async {
        while models.report().server == ServerPhase::Starting {
            tokio::time::sleep(LOADED_GLANCE).await;
        }
    };
    let _ = tokio::time::timeout(LOADED_WAIT_MAX, all).await;
}

/// Tells `endings` of SIGTERM and SIGINT from now on: the first is a drain, each further one `again`.
fn heed_signals(endings: &Endings, again: Ending) -> Result<(), AppError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(AppError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AppError::Signals)?;
    let endings = endings.clone();
    tokio::spawn(async move {
        loop {
            let signal = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            tracing::info!(signal, "told to end");
            if !endings.tell(Ending::Drain) {
                endings.tell(again);
            }
        }
    });
    Ok(())
}

fn log_start(config: &Config, host: &Host) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        cores = host.cores.value,
        cores_by = host.cores.source,
        http_threads = config.http.threads,
        lanes = config.defaults.parallelism.lanes,
        threads = config.defaults.parallelism.threads,
        repository = %config.repository.path.display(),
        "starting"
    );
    if let Some(warning) = host.too_many_connections(config.http.max_connections as u64) {
        tracing::warn!("{warning}");
    }
}

fn describe(models: &Models, engine: EngineInfo) {
    tracing::info!(version = engine.version, library = engine.library, "ONNX Runtime started");
    models.describe("version", env!("CARGO_PKG_VERSION").to_owned());
    models.describe("onnxruntime", engine.version);
    models.describe("onnxruntime_library", engine.library);
}
