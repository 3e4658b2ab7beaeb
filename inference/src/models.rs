//! The models of this server: which there are, which serve, and how one comes and goes.
//!
//! Look-ups on the request path read atomic snapshots and never wait for a load. Loads of one model exclude each
//! other; loads of different models do not. A version that fails is refused with its own reason, and nothing else
//! changes: the version that served before goes on, and so do all other models.

mod attempt;
mod canary;
mod candidate;
mod heal;
mod load;
mod observe;
mod probe;
mod proof;
mod run_limit;
mod sharing;

pub(crate) use attempt::Attempt;
pub(crate) use canary::CanaryWatch;
pub use proof::zeros;

use crate::admission::{Gate, ModelGate};
use crate::clip::clipped;
use crate::effective::ModelDefaults;
use crate::engine::Engine;
use crate::healing::Healing;
use crate::integrity::Policy;
use crate::metrics::{Metrics, ShedCounters};
use crate::predict::PredictError;
use crate::repository::{Repository, parse_version};
use crate::version::{Serving, Version, unix_ms};
use arc_swap::{ArcSwap, ArcSwapOption};
use balm_probes::breaker::BreakerState;
use balm_probes::{HealthReport, Incident, ModelReport, Quarantined, ServerPhase};
use parking_lot::Mutex;
use prometheus::IntCounter;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// What the models are served under.
#[derive(Clone, Debug)]
pub struct ModelsOptions {
    /// For models that say nothing themselves.
    pub defaults: ModelDefaults,
    /// What a manifest means; a model may only be stricter.
    pub integrity: Policy,
    /// Largest file that is read, bytes.
    pub max_file_bytes: u64,
    /// Models that are loaded at once at the start.
    pub parallel_loads: usize,
    /// How long the load of a version may take.
    pub load_limit: Duration,
}

/// The models of this server. Cheap to clone.
#[derive(Clone)]
pub struct Models(Arc<Inner>);

struct Inner {
    engine: Arc<dyn Engine>,
    repository: Repository,
    options: ModelsOptions,
    gate: Arc<Gate>,
    metrics: Metrics,
    healing: Arc<Healing>,
    /// What is not to be tried unless somebody asks for it.
    quarantined: Mutex<Vec<Quarantined>>,
    table: ArcSwap<HashMap<String, Arc<Model>>>,
    /// Held while the table or the report is rebuilt, so that no change is lost between two writers.
    changing: Mutex<Server>,
    report: ArcSwap<HealthReport>,
    listener: OnceLock<ReportListener>,
}

/// Is told each report before whoever caused it goes on.
type ReportListener = Box<dyn Fn(&Arc<HealthReport>) + Send + Sync>;

#[derive(Clone, Debug)]
struct Server {
    phase: ServerPhase,
    since_ms: u64,
    details: BTreeMap<String, String>,
}

/// One model: the door in front of it and its versions.
pub struct Model {
    name: String,
    gate: Arc<ModelGate>,
    shed: ShedCounters,
    not_ready: IntCounter,
    declared: AtomicBool,
    /// Unloaded by request, and not loaded again since.
    withdrawn: AtomicBool,
    /// Ascending by number.
    versions: ArcSwap<Vec<Arc<Version>>>,
    /// The version that answers when a request names none.
    current: ArcSwapOption<Serving>,
    /// One load or unload of this model at a time.
    control: Mutex<()>,
    /// What the breaker did when it was last looked at.
    breaker: Mutex<BreakerState>,
}

/// A load or unload that was asked for and did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The repository has no such model.
    #[error("the repository has no model {0:?}")]
    UnknownModel(String),
    /// No version could be brought to serve.
    #[error("model {model:?} was not loaded: {reason}")]
    Load {
        /// Which model.
        model: String,
        /// Why, version by version.
        reason: String,
    },
    /// The repository itself cannot be read.
    #[error("{0}")]
    Repository(String),
}

impl Models {
    /// The models of `repository`, none of them loaded. [`Models::load_all`] does that.
    pub fn new(
        engine: Arc<dyn Engine>,
        repository: Repository,
        options: ModelsOptions,
        gate: Arc<Gate>,
        metrics: Metrics,
    ) -> Self {
        let server =
            Server { phase: ServerPhase::Starting, since_ms: unix_ms(), details: BTreeMap::new() };
        let report = ArcSwap::from_pointee(report_of(&server, &HashMap::new(), Vec::new()));
        let healing = Arc::new(Healing::new(metrics.heal().clone()));
        Models(Arc::new(Inner {
            engine,
            repository,
            options,
            gate,
            metrics,
            healing,
            quarantined: Mutex::default(),
            table: ArcSwap::default(),
            changing: Mutex::new(server),
            report,
            listener: OnceLock::new(),
        }))
    }

    /// The model of that name.
    ///
    /// # Errors
    /// [`PredictError::UnknownModel`]; `NotReady` while the repository may not have been read.
    pub fn model(&self, name: &str) -> Result<Arc<Model>, PredictError> {
        let table = self.0.table.load();
        table.get(name).cloned().ok_or_else(|| {
            if self.0.report.load().server == ServerPhase::Starting {
                // It may well be there in a moment.
                return PredictError::NotReady {
                    model: clipped(name),
                    reason: "the server is starting".to_owned(),
                };
            }
            let mut known: Vec<&str> = table.keys().map(String::as_str).collect();
            known.sort_unstable();
            PredictError::UnknownModel { name: clipped(name), known: list(&known) }
        })
    }

    /// Every model, by name.
    pub fn all(&self) -> Vec<Arc<Model>> {
        let mut models: Vec<_> = self.0.table.load().values().cloned().collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }

    /// How everything stands, as probes and `/status` see it.
    pub fn report(&self) -> Arc<HealthReport> {
        self.0.report.load_full()
    }

    /// Has `listener` told of each new report from now on, in their order, before whoever caused it goes on: it must not
    /// wait. Only the first one that is given listens.
    pub fn on_report(&self, listener: impl Fn(&Arc<HealthReport>) + Send + Sync + 'static) {
        let _changing = self.0.changing.lock();
        let _ = self.0.listener.set(Box::new(listener));
    }

    /// The door of the server.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.0.gate
    }

    /// The server enters `phase`. Phases only go forward, so that a load that ends late does not undo a drain. A stopped
    /// server admits nobody.
    pub fn enter(&self, phase: ServerPhase) {
        if matches!(phase, ServerPhase::Stopped) {
            self.0.gate.close();
        }
        let mut server = self.0.changing.lock();
        if server.phase < phase {
            server.phase = phase;
            server.since_ms = unix_ms();
        }
        self.0.publish(&server);
    }

    /// Says which versions did harm before, in this process or another: they are not tried unless somebody asks for their load.
    /// To be told before the first load; as many as whoever tells remembers.
    pub fn quarantine(&self, versions: Vec<Quarantined>) {
        *self.0.quarantined.lock() = versions;
    }

    /// Adds a fact about the server to the report, for people.
    pub fn describe(&self, name: &str, text: String) {
        let mut server = self.0.changing.lock();
        server.details.insert(name.to_owned(), text);
        self.0.publish(&server);
    }
}

impl Inner {
    /// Rebuilds the report after any change of state.
    fn changed(&self) {
        self.publish(&self.changing.lock());
    }

    fn publish(&self, server: &Server) {
        let incidents = self.healing.incidents();
        let report = Arc::new(report_of(server, &self.table.load(), incidents));
        self.report.store(Arc::clone(&report));
        if let Some(listener) = self.listener.get() {
            listener(&report);
        }
    }

    /// The entry of a model, made when it is not there yet.
    fn entry(&self, name: &str, declared: bool) -> Arc<Model> {
        let server = self.changing.lock();
        let table = self.table.load();
        if let Some(model) = table.get(name) {
            return Arc::clone(model);
        }
        let model = Arc::new(Model {
            name: name.to_owned(),
            gate: Arc::new(ModelGate::new(0)),
            shed: self.metrics.shed(name),
            not_ready: self.metrics.not_ready(name),
            declared: AtomicBool::new(declared),
            withdrawn: AtomicBool::new(false),
            versions: ArcSwap::default(),
            current: ArcSwapOption::empty(),
            control: Mutex::new(()),
            breaker: Mutex::new(BreakerState::Accepting),
        });
        let mut next = HashMap::clone(&table);
        next.insert(name.to_owned(), Arc::clone(&model));
        self.table.store(Arc::new(next));
        self.publish(&server);
        model
    }
}

impl Model {
    /// Name, as in the repository.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The door in front of the model.
    pub fn gate(&self) -> &Arc<ModelGate> {
        &self.gate
    }

    /// Counters of requests turned away.
    pub fn shed(&self) -> &ShedCounters {
        &self.shed
    }

    /// Whether readiness is judged by this model: it was there at the start and was not unloaded since.
    pub fn declared(&self) -> bool {
        self.declared.load(Ordering::Acquire) && !self.withdrawn.load(Ordering::Acquire)
    }

    /// What answers for `version`, or for the current one when none is named.
    ///
    /// # Errors
    /// [`PredictError::UnknownVersion`], [`PredictError::NotReady`].
    pub fn serving(&self, version: Option<&str>) -> Result<Arc<Serving>, PredictError> {
        let Some(asked) = version else {
            return self.current.load_full().ok_or_else(|| self.not_ready());
        };
        let versions = self.versions.load();
        let found = parse_version(asked)
            .and_then(|number| versions.iter().find(|candidate| candidate.number == number));
        let Some(version) = found else {
            let known: Vec<String> =
                versions.iter().map(|version| version.number.to_string()).collect();
            return Err(PredictError::UnknownVersion {
                model: self.name.clone(),
                version: clipped(asked),
                known: if known.is_empty() { "none".to_owned() } else { known.join(", ") },
            });
        };
        version.serving().filter(|serving| serving.is_trusted()).ok_or_else(|| {
            PredictError::NotReady { model: self.name.clone(), reason: version.excuse() }
        })
    }

    /// Counts a request that found no version to answer it.
    pub fn count_not_ready(&self) {
        self.not_ready.inc();
    }

    /// Everything of this model that serves, by version.
    pub fn all_serving(&self) -> Vec<Arc<Serving>> {
        self.loaded().into_iter().filter(|serving| serving.is_trusted()).collect()
    }

    /// Everything of this model that is loaded, by version: what serves, and what answers nobody until it is loaded anew.
    fn loaded(&self) -> Vec<Arc<Serving>> {
        self.versions.load().iter().filter_map(|version| version.serving()).collect()
    }

    fn not_ready(&self) -> PredictError {
        let versions = self.versions.load();
        // What has served until now says more than what never did.
        let served = versions.iter().rev().find(|version| version.serving().is_some());
        let reason = match served.or(versions.last()) {
            Some(version) => version.excuse(),
            None => "it has no version folder with a model.onnx".to_owned(),
        };
        PredictError::NotReady { model: self.name.clone(), reason }
    }

    /// Chooses again which version answers when none is named: the newest that serves, with a lane if there is one. None where
    /// nothing that a version answers can be vouched for.
    fn elect(&self) {
        let serving = self.all_serving();
        let healthy = serving.iter().rev().find(|serving| serving.lane_counts().healthy > 0);
        self.current.store(healthy.or(serving.last()).cloned());
    }

    fn report(&self) -> ModelReport {
        ModelReport {
            name: self.name.clone(),
            declared: self.declared(),
            versions: self.versions.load().iter().map(|version| version.report()).collect(),
        }
    }
}

fn report_of(
    server: &Server,
    table: &HashMap<String, Arc<Model>>,
    incidents: Vec<Incident>,
) -> HealthReport {
    let mut models: Vec<ModelReport> = table.values().map(|model| model.report()).collect();
    models.sort_by(|a, b| a.name.cmp(&b.name));
    HealthReport {
        server: server.phase,
        since_ms: server.since_ms,
        at_ms: unix_ms(),
        models,
        incidents,
        details: server.details.clone(),
    }
}

fn list(names: &[&str]) -> String {
    if names.is_empty() {
        return "no models".to_owned();
    }
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}
