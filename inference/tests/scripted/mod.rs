//! A server without sockets, over an engine that panics, hangs and fails on demand.

#![allow(dead_code, reason = "each of the test programs needs a part of it")]

use balm_inference::admission::{Ask, Class, Gate, GateLimits};
use balm_inference::contract::{Contract, Dimension, TensorSpec};
use balm_inference::datatype::Datatype;
use balm_inference::effective::ModelDefaults;
use balm_inference::engine::{
    BuildError, Cancel, Engine, EngineInfo, LoadToken, ModelBytes, Placement, RunError, RunOutput,
    Session, SessionOptions,
};
use balm_inference::integrity::Policy;
use balm_inference::metrics::Metrics;
use balm_inference::models::{Models, ModelsOptions};
use balm_inference::predict::{Pending, PredictError, Prediction};
use balm_inference::provider::Provider;
use balm_inference::repository::Repository;
use balm_inference::tensor::{Tensor, TensorData};
use balm_probes::watchdog::TICK;
use balm_probes::{ModelState, ReadinessPolicy, ServerPhase, readiness};
use bytes::Bytes;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

// ===== the scripted engine =====

/// What the first element of a request makes the engine do.
pub(crate) const ECHO: i64 = 0;
// None of them is 1: that is what requests are made of that are made up at a load.
pub(crate) const PANIC: i64 = 11;
pub(crate) const HANG: i64 = 12;
pub(crate) const FAIL: i64 = 13;
pub(crate) const ONE_ROW: i64 = 14;
/// Waits, whoever cancels it, until the house is gone or lets go.
pub(crate) const DEAF: i64 = 15;
/// Computes, whoever cancels it, until the house is gone or lets go.
pub(crate) const SPIN: i64 = 16;
/// Fails as a GPU does that needs another process.
pub(crate) const STICKY: i64 = 17;

/// A run of a device that is not crowded.
const DEVICE_RUN: Duration = Duration::from_millis(3);

#[derive(Default)]
pub(crate) struct Script {
    pub(crate) runs: AtomicU64,
    /// The rows of each run.
    pub(crate) batches: Mutex<Vec<Vec<i64>>>,
    pub(crate) builds: AtomicU64,
    /// Builds fail for model files of this size.
    pub(crate) refuse_size: AtomicU64,
    /// Builds hang for model files of this size,
    pub(crate) hang_size: AtomicU64,
    /// until they are told to end; else until the house is gone or lets go.
    pub(crate) heeds_cancel: AtomicBool,
    pub(crate) degraded: AtomicBool,
    /// Sessions after this many are degraded; 0: none.
    pub(crate) degrade_after: AtomicU64,
    /// Whether rows are of any length, which input and output share.
    pub(crate) lengths: bool,
    /// Whether what comes out depends on how long what went in was.
    pub(crate) minds_length: bool,
    /// Runs that a device does at once in [`DEVICE_RUN`]; more of them take longer in proportion. 0: no device.
    pub(crate) slots: AtomicU64,
    /// Runs in progress on the device, and the most that ever were.
    pub(crate) running: AtomicU64,
    pub(crate) running_max: AtomicU64,
    /// Inputs of each run: rows and length.
    pub(crate) shapes: Mutex<Vec<Vec<usize>>>,
    /// So many of a hundred runs fail, evenly spread.
    pub(crate) errors_percent: AtomicU64,
    /// Outputs are one more than they should be.
    pub(crate) wrong: AtomicBool,
    /// So are those of the first so many sessions.
    pub(crate) wrong_builds: AtomicU64,
    /// How long a load may take; `None`: for as long as a busy machine could need.
    pub(crate) load_limit: Option<Duration>,
    /// Whether one model is loaded after the other.
    pub(crate) one_loader: bool,
    /// How long a session takes to build, milliseconds.
    pub(crate) build_ms: AtomicU64,
    /// Lets go of the runs that heed no cancel.
    pub(crate) let_go: Mutex<bool>,
    pub(crate) let_go_bell: Condvar,
}

impl Script {
    /// Ends the runs that heed no cancel, those to come as well.
    pub(crate) fn let_go(&self) {
        *self.let_go.lock().unwrap() = true;
        self.let_go_bell.notify_all();
    }

    fn block(&self) {
        let gone = self.let_go.lock().unwrap();
        drop(self.let_go_bell.wait_while(gone, |gone| !*gone).unwrap());
    }

    fn spin(&self) {
        while !*self.let_go.lock().unwrap() {
            std::hint::black_box((0..10_000u64).sum::<u64>());
        }
    }

    /// Whether this run is one of those that fail.
    fn fails(&self, run: u64) -> bool {
        let percent = self.errors_percent.load(Ordering::SeqCst);
        (run + 1) * percent / 100 > run * percent / 100
    }

    /// A run on the device, if there is one: what it took.
    fn device(&self) -> Duration {
        let slots = self.slots.load(Ordering::SeqCst);
        if slots == 0 {
            return Duration::from_micros(10);
        }
        let begun = Instant::now();
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.running_max.fetch_max(running, Ordering::SeqCst);
        std::thread::sleep(DEVICE_RUN.mul_f64((running as f64 / slots as f64).max(1.0)));
        self.running.fetch_sub(1, Ordering::SeqCst);
        begun.elapsed()
    }
}

struct ScriptedEngine(Arc<Script>);

impl Engine for ScriptedEngine {
    fn info(&self) -> EngineInfo {
        EngineInfo {
            name: "scripted",
            version: "0".to_owned(),
            build: String::new(),
            library: String::new(),
        }
    }

    fn build(
        &self,
        bytes: ModelBytes<'_>,
        options: &SessionOptions,
        token: &LoadToken,
    ) -> Result<Box<dyn Session>, BuildError> {
        let before = self.0.builds.fetch_add(1, Ordering::SeqCst);
        match self.0.hang_size.load(Ordering::SeqCst) {
            size if size != bytes.model.len() as u64 => {}
            _ if self.0.heeds_cancel.load(Ordering::SeqCst) => {
                let stop = Arc::new(Stop::default());
                token.heed(Arc::clone(&stop) as Arc<dyn Cancel>);
                let told = stop.told.lock().unwrap();
                drop(stop.bell.wait_while(told, |told| !*told).unwrap());
                return Err(BuildError::Cancelled);
            }
            _ => self.0.block(),
        }
        std::thread::sleep(Duration::from_millis(self.0.build_ms.load(Ordering::SeqCst)));
        if bytes.model.len() as u64 == self.0.refuse_size.load(Ordering::SeqCst) {
            return Err(BuildError::Graph("scripted refusal".to_owned()));
        }
        let mut shape = vec![Dimension::Dynamic(None)];
        if self.0.lengths {
            shape.push(Dimension::Dynamic(Some("length".to_owned())));
        }
        let spec = |name: &str| TensorSpec {
            name: name.to_owned(),
            datatype: Datatype::Int64,
            shape: Some(shape.clone()),
        };
        let after = self.0.degrade_after.load(Ordering::SeqCst);
        let degraded = self.0.degraded.load(Ordering::SeqCst) || (after > 0 && before >= after);
        Ok(Box::new(ScriptedSession {
            script: Arc::clone(&self.0),
            contract: Contract { inputs: vec![spec("x")], outputs: vec![spec("y")] },
            placement: Placement {
                providers: options.providers.clone(),
                degraded: degraded.then(|| "scripted".to_owned()),
            },
            stop: Arc::new(Stop::default()),
            number: before,
        }))
    }
}

#[derive(Default)]
struct Stop {
    told: Mutex<bool>,
    bell: Condvar,
}

impl Cancel for Stop {
    fn cancel(&self) {
        *self.told.lock().unwrap() = true;
        self.bell.notify_all();
    }
}

struct ScriptedSession {
    script: Arc<Script>,
    contract: Contract,
    placement: Placement,
    stop: Arc<Stop>,
    /// Counts the sessions.
    number: u64,
}

impl Session for ScriptedSession {
    fn contract(&self) -> &Contract {
        &self.contract
    }

    fn placement(&self) -> &Placement {
        &self.placement
    }

    fn canceller(&self) -> Arc<dyn Cancel> {
        self.stop.clone()
    }

    fn rearm(&mut self) {
        *self.stop.told.lock().unwrap() = false;
    }

    fn run(&mut self, inputs: &[Tensor], _outputs: &[usize]) -> Result<RunOutput, RunError> {
        let run = self.script.runs.fetch_add(1, Ordering::SeqCst);
        let TensorData::Raw(raw) = inputs[0].data() else { unreachable!() };
        let rows: Vec<i64> =
            raw.chunks_exact(8).map(|row| i64::from_le_bytes(row.try_into().unwrap())).collect();
        self.script.batches.lock().unwrap().push(rows.clone());
        self.script.shapes.lock().unwrap().push(inputs[0].shape().to_vec());
        if self.script.minds_length {
            let length = *inputs[0].shape().last().unwrap() as i64;
            let data: Vec<u8> = rows.iter().flat_map(|row| (row + length).to_le_bytes()).collect();
            let shape = inputs[0].shape().to_vec();
            return Ok(RunOutput {
                outputs: vec![Tensor::raw(Datatype::Int64, shape, data.into()).unwrap()],
                input_time: Duration::ZERO,
                infer_time: Duration::from_micros(10),
                output_time: Duration::ZERO,
            });
        }
        let infer_time = self.script.device();
        if self.script.fails(run) {
            return Err(RunError::Runtime("scripted failure".to_owned()));
        }
        let wrong = self.number < self.script.wrong_builds.load(Ordering::SeqCst);
        if wrong || self.script.wrong.load(Ordering::SeqCst) {
            let data: Vec<u8> = rows.iter().flat_map(|row| (row + 1).to_le_bytes()).collect();
            return Ok(RunOutput {
                outputs: vec![
                    Tensor::raw(Datatype::Int64, inputs[0].shape().to_vec(), data.into()).unwrap(),
                ],
                input_time: Duration::ZERO,
                infer_time,
                output_time: Duration::ZERO,
            });
        }
        // One row that does something does it to the whole run.
        match rows.into_iter().max().unwrap_or(ECHO) {
            PANIC => panic!("scripted panic"),
            HANG => {
                let told = self.stop.told.lock().unwrap();
                let (told, timeout) = self
                    .stop
                    .bell
                    .wait_timeout_while(told, Duration::from_secs(20), |told| !*told)
                    .unwrap();
                drop(told);
                assert!(!timeout.timed_out(), "nobody cancelled the run");
                Err(RunError::Terminated)
            }
            heedless @ (DEAF | SPIN) => {
                if heedless == DEAF {
                    self.script.block()
                } else {
                    self.script.spin()
                }
                Err(RunError::Terminated)
            }
            STICKY => Err(RunError::Runtime(
                "CUDA failure 700: an illegal memory access was encountered ; GPU=0".to_owned(),
            )),
            FAIL => Err(RunError::Runtime("scripted failure".to_owned())),
            // As a graph without a row for each does it.
            ONE_ROW => Ok(RunOutput {
                outputs: vec![Tensor::raw(Datatype::Int64, vec![1], raw.slice(..8)).unwrap()],
                input_time: Duration::ZERO,
                infer_time: Duration::ZERO,
                output_time: Duration::ZERO,
            }),
            // A run costs the same, whatever its rows.
            _ => Ok(RunOutput {
                outputs: vec![inputs[0].clone()],
                input_time: Duration::ZERO,
                infer_time,
                output_time: Duration::ZERO,
            }),
        }
    }
}

// ===== a server without sockets =====

pub(crate) struct House {
    pub(crate) script: Arc<Script>,
    pub(crate) models: Models,
    pub(crate) registry: prometheus::Registry,
    pub(crate) repository: tempfile::TempDir,
    /// Runs that the load took, to prove the model.
    pub(crate) load_runs: u64,
}

pub(crate) const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models");

/// Threads that hang on purpose must not outlive the test.
impl Drop for House {
    fn drop(&mut self) {
        self.script.let_go();
    }
}

impl House {
    /// The watchdog ticks for so long on its clock, which takes no time.
    pub(crate) fn pass(&self, time: Duration) {
        for _ in 0..time.as_millis() / TICK.as_millis() {
            self.models.tick(TICK);
        }
    }

    /// Sends a request that hangs, and leaves when it runs: it is cancelled from then on.
    pub(crate) fn hang(&self, command: i64) {
        let runs = self.runs();
        let pending = self.submit(command, Duration::from_secs(20)).unwrap();
        self.until("running", |house| house.runs() > runs);
        drop(pending);
    }

    pub(crate) fn new(lanes: usize) -> Self {
        // What waits behind a run that hangs is to wait for as long as a test likes.
        House::made(lanes, "[limits]\nmax_wait_ms = 60000\n", Script::default())
    }

    /// With this text in `model.toml`.
    pub(crate) fn made(lanes: usize, settings: &str, script: Script) -> Self {
        House::behind(lanes, settings, script, |engine| engine)
    }

    /// With something in front of the engine.
    pub(crate) fn behind(
        lanes: usize,
        settings: &str,
        script: Script,
        front: impl FnOnce(Arc<dyn Engine>) -> Arc<dyn Engine>,
    ) -> Self {
        let repository = tempfile::tempdir().unwrap();
        add_version(repository.path(), "m", 1, "iris");
        std::fs::write(repository.path().join("m/model.toml"), settings).unwrap();
        let script = Arc::new(script);
        let options = ModelsOptions {
            defaults: ModelDefaults {
                lanes,
                threads: 1,
                providers: vec![Provider::Cpu],
                fallback_to_cpu: false,
                default_deadline: Duration::from_secs(20),
                max_deadline: Duration::from_secs(20),
                max_batch_rows: 1024,
                max_in_flight: 64,
                max_body_bytes: 1 << 20,
            },
            integrity: Policy::Digest,
            max_file_bytes: 1 << 30,
            parallel_loads: if script.one_loader { 1 } else { 2 },
            load_limit: script.load_limit.unwrap_or(Duration::from_secs(120)),
        };
        let gate = Arc::new(Gate::new(GateLimits { in_flight: 100, bytes: 1 << 20 }));
        let registry = prometheus::Registry::new();
        let models = Models::new(
            front(Arc::new(ScriptedEngine(Arc::clone(&script)))),
            Repository::open(repository.path()).unwrap(),
            options,
            gate,
            Metrics::register(&registry, false).unwrap(),
        );
        House { script, models, registry, repository, load_runs: 0 }
    }

    pub(crate) fn loaded(lanes: usize) -> Self {
        House::new(lanes).settled(lanes)
    }

    /// Loads, and waits for all lanes.
    pub(crate) fn settled(mut self, lanes: usize) -> Self {
        self.load_all();
        self.until("all lanes healthy", |house| house.healthy() as usize == lanes);
        self.load_runs = self.runs();
        self.script.batches.lock().unwrap().clear();
        self.script.shapes.lock().unwrap().clear();
        self
    }

    pub(crate) fn load_all(&self) {
        self.models.load_all().unwrap();
        self.models.enter(ServerPhase::Running);
    }

    pub(crate) fn submit(
        &self,
        command: i64,
        allowance: Duration,
    ) -> Result<Pending, PredictError> {
        self.submit_to(None, command, allowance)
    }

    pub(crate) fn submit_to(
        &self,
        version: Option<&str>,
        command: i64,
        allowance: Duration,
    ) -> Result<Pending, PredictError> {
        let data = Bytes::copy_from_slice(&command.to_le_bytes());
        let input = Tensor::raw(Datatype::Int64, vec![1], data).unwrap();
        self.submit_tensor(version, input, allowance)
    }

    pub(crate) fn submit_tensor(
        &self,
        version: Option<&str>,
        input: Tensor,
        allowance: Duration,
    ) -> Result<Pending, PredictError> {
        let model = self.models.model("m")?;
        let serving = model.serving(version)?;
        let now = Instant::now();
        let deadline = serving.deadline(now, Some(allowance), now);
        let ask = Ask {
            class: Class::Default,
            client: 1,
            bytes: 8,
            deadline: deadline.at,
            now: Instant::now(),
        };
        let permit = self.models.gate().admit(model.gate(), serving.backlog(), &ask)?;
        serving.submit(vec![input], vec![0], deadline, None, permit)
    }

    pub(crate) async fn ask(&self, command: i64) -> Result<Prediction, PredictError> {
        self.submit(command, Duration::from_secs(20))?.wait().await
    }

    /// The value of a counter or gauge, or the count of a histogram, whose labels are all of `labels`.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        self.models.refresh_metrics();
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        let of = family.get_metric().iter().find(|metric| {
            let values: Vec<&str> = metric.get_label().iter().map(|pair| pair.value()).collect();
            labels.iter().all(|label| values.contains(label))
        });
        let Some(metric) = of else { return 0.0 };
        metric.get_counter().get_value()
            + metric.get_gauge().get_value()
            + metric.get_histogram().get_sample_count() as f64
    }

    pub(crate) fn healthy(&self) -> u32 {
        self.models.report().models[0].versions.last().map_or(0, |version| version.lanes.healthy)
    }

    pub(crate) fn state(&self, version: u64) -> ModelState {
        self.models.report().models[0].version(version).unwrap().state
    }

    pub(crate) fn reason(&self, version: u64) -> String {
        let report = self.models.report();
        report.models[0].version(version).unwrap().reason.clone().unwrap_or_default()
    }

    pub(crate) fn ready(&self) -> bool {
        readiness(&self.models.report(), &ReadinessPolicy::All).ready
    }

    pub(crate) fn runs(&self) -> u64 {
        self.script.runs.load(Ordering::SeqCst) - self.load_runs
    }

    pub(crate) fn idle(&self) -> bool {
        self.models.gate().in_flight() == 0 && self.models.gate().bytes_in_flight() == 0
    }

    /// Waits for a state, never for a time.
    pub(crate) fn until(&self, what: &str, mut reached: impl FnMut(&House) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !reached(self) {
            assert!(Instant::now() < end, "not reached: {what}; {:?}", self.models.report());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

pub(crate) fn add_version(repository: &Path, model: &str, version: u64, source: &str) {
    let folder = repository.join(model).join(version.to_string());
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(Path::new(SHIPPED).join(source).join("1/model.onnx"), folder.join("model.onnx"))
        .unwrap();
}
