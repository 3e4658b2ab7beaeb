//! The wiring: from a configuration to a server that runs and ends in order.
//!
//! [`App::build`] opens everything that can fail (library, repository, sockets); [`App::run`] serves until it is told to
//! stop. Sockets are bound before models are loaded, so that probes are answered from the first moment.

use crate::banner;
use crate::config::Config;
use crate::exit::Exit;
use crate::healing;
use crate::health::Health;
use crate::host::Host;
use crate::http::{self, BodyPace, Bound, HttpMetrics, ListenError, Listening, Sockets};
use crate::library;
use crate::management::{Management, ManagementHandle};
use crate::memory::MemoryLimit;
use crate::pulse::Pulse;
use balm_inference::admission::{Gate, GateLimits};
use balm_inference::effective::ModelDefaults;
use balm_inference::engine::onnx::OnnxEngine;
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
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Threads that decode large bodies. Loads have threads of their own.
const BLOCKING_THREADS_MAX: usize = 16;

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
    /// A mistake in the metrics.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
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
    /// Opens the repository and sets the engine to start; models can be read meanwhile.
    ///
    /// # Errors
    /// [`AppError`].
    pub fn build(config: &Config) -> Result<Self, AppError> {
        // The repository first: a wrong path is found in a millisecond, the library takes a hundred.
        let repository = Repository::open(&config.repository.path)?;
        let library = library::find(config.onnxruntime.library.as_deref());
        OnnxEngine::look(&library)?;
        let level = config.onnxruntime.log_level;
        let engine = StartingEngine::spawn(move || OnnxEngine::start(&library, level));
        let engine = Arc::new(engine.map_err(AppError::Thread)?);
        let registry = Registry::new();
        let metrics = Metrics::register(&registry, config.management.triton_metrics)?;
        let gate = Arc::new(Gate::new(GateLimits {
            in_flight: config.admission.max_in_flight as u64,
            bytes: config.admission.max_bytes_in_flight,
        }));
        let serving = Arc::clone(&engine) as Arc<dyn Engine>;
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
    management: Management,
    pulse: Arc<Pulse>,
    loader: Loader,
}

impl App {
    /// Opens everything that can fail.
    ///
    /// # Errors
    /// [`AppError`], the first thing that could not be opened.
    pub fn build(config: Config, host: &Host) -> Result<Self, AppError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.http.threads)
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(AppError::Thread)?;
        let addr = config.management.addr;
        let management =
            Management::bind(addr).map_err(|source| AppError::Management { addr, source })?;
        let bound = runtime.block_on(Bound::bind(&config.http.addr))?;
        let core = Core::build(&config)?;
        log_start(&config, host);
        let loader = Loader::start(&core.models)?;
        let memory = config.admission.memory_limit_bytes;
        if let Some(limit) = MemoryLimit::find(memory, host.memory_bytes.as_ref()) {
            core.models.set_memory_limit(limit.bytes());
            limit.watch(core.models.gate()).map_err(AppError::Thread)?;
        }
        let pulse = Pulse::start().map_err(AppError::Thread)?;
        register_threads(&core.registry, host, config.http.threads)?;
        healing::start(core.models.clone(), &pulse).map_err(AppError::Thread)?;
        let engine = core.started()?;
        describe(&core.models, engine);
        Ok(App { config, core, runtime, bound, management, pulse, loader })
    }

    /// Serves until SIGTERM or SIGINT, then drains.
    pub fn run(self) -> Exit {
        let App { config, core, runtime, bound, management, pulse, loader } = self;
        let Core { models, registry, .. } = core;
        let exit = runtime.block_on(async {
            tokio::spawn(Arc::clone(&pulse).beat());
            let health = Health::new(
                models.clone(),
                pulse,
                config.repository.readiness.clone(),
                registry.clone(),
            );
            let served = Served::start(&config, models, &registry, bound, management, health);
            match served {
                Ok((served, listening)) => {
                    loader.announce(listening);
                    served.until_told(&config).await
                }
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
    stop: watch::Sender<bool>,
    data: tokio::task::JoinHandle<usize>,
    _management: ManagementHandle,
}

impl Served {
    fn start(
        config: &Config,
        models: Models,
        registry: &Registry,
        bound: Bound,
        management: Management,
        health: Health,
    ) -> Result<(Self, Listening), AppError> {
        let http_metrics = HttpMetrics::register(registry)?;
        let state = http::State::new(
            models.clone(),
            http_metrics.clone(),
            config.repository.readiness.clone(),
            config.repository.control,
            &config.http,
            config.admission.client_header.clone(),
        );
        let router = http::router(state, config.http.noop_route);
        let listening = bound.listening()?;
        let management = management.start(Arc::new(health)).map_err(AppError::Thread)?;
        banner::print(&banner::addresses(&listening, management.local_addr()));
        let (stop, stopped) = watch::channel(false);
        let sockets = sockets(config);
        let drain = config.lifecycle.drain_timeout;
        let data = tokio::spawn(bound.serve(router, sockets, http_metrics, stopped, drain));
        let served = Served { models, stop, data, _management: management };
        Ok((served, listening))
    }

    /// Waits for a signal, then ends in order: not ready at once, still serving while load balancers learn of it, then
    /// no new connections, then the end when what was inside has finished. A second signal ends at once.
    async fn until_told(self, config: &Config) -> Exit {
        let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
        let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
            tracing::error!("signals cannot be received");
            return Exit::Io;
        };
        let mut told = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        let name = told().await;
        tracing::info!(
            signal = name,
            drain_delay_ms = config.lifecycle.drain_delay.as_millis(),
            "draining: not ready from now on, still serving"
        );
        self.models.enter(ServerPhase::Draining);
        let Served { models, stop, mut data, _management } = self;
        tokio::select! {
            () = tokio::time::sleep(config.lifecycle.drain_delay) => {}
            name = told() => return cut_short(name),
        }
        tracing::info!("taking no new connections");
        let _ = stop.send(true);
        let cut = tokio::select! {
            cut = &mut data => cut.unwrap_or(0),
            name = told() => return cut_short(name),
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

fn cut_short(signal: &str) -> Exit {
    tracing::warn!(signal, "second signal, ending at once");
    Exit::Interrupted
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
