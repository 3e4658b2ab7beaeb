//! One version of a model: where it stands, and what answers for it while it serves.

use crate::admission::{Backlog, Class, Permit, Shed, ShedReason};
use crate::batch::{self, Shape};
use crate::cancel::RunToken;
use crate::contract::{Contract, ContractError};
use crate::effective::EffectiveSettings;
use crate::engine::Placement;
use crate::lane::Lanes;
use crate::metrics::VersionMetrics;
use crate::models::CanaryWatch;
use crate::predict::{Deadline, Job, Pending, PredictError};
use crate::queue::Refused;
use crate::statistics::{Statistics, StatisticsReading};
use crate::tensor::{NamedTensor, Tensor};
use arc_swap::ArcSwapOption;
use balm_probes::{LaneCounts, ModelState, VersionReport};
use bytes::Bytes;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;

/// A version of a model that the repository holds, serving or not.
pub(crate) struct Version {
    pub(crate) number: u64,
    model: String,
    status: Mutex<Status>,
    serving: ArcSwapOption<Serving>,
    /// The bytes that were read last, and whether they have ever come to serve in this process.
    identity: Mutex<(Option<String>, bool)>,
    /// How long the last load that brought it to serve took, milliseconds; 0 before.
    load_ms: AtomicU64,
}

#[derive(Clone, Debug)]
struct Status {
    state: ModelState,
    reason: Option<String>,
    since_ms: u64,
}

impl Version {
    pub(crate) fn new(model: &str, number: u64) -> Arc<Self> {
        Arc::new(Version {
            number,
            model: model.to_owned(),
            status: Mutex::new(Status {
                state: ModelState::Discovered,
                reason: None,
                since_ms: unix_ms(),
            }),
            serving: ArcSwapOption::empty(),
            identity: Mutex::default(),
            load_ms: AtomicU64::new(0),
        })
    }

    pub(crate) fn state(&self) -> ModelState {
        self.status.lock().state
    }

    /// Enters `state`. The time of entry changes only with the state, the reason always.
    pub(crate) fn enter(&self, state: ModelState, reason: Option<String>) {
        let mut status = self.status.lock();
        debug_assert!(
            status.state == state || status.state.may_become(state),
            "{:?} may not become {state:?}",
            status.state
        );
        if status.state != state {
            status.since_ms = unix_ms();
            tracing::info!(
                model = %self.model,
                version = self.number,
                from = status.state.as_str(),
                to = state.as_str(),
                reason,
                "state"
            );
        }
        status.state = state;
        status.reason = reason;
    }

    /// Notes something about the state that the version is in.
    pub(crate) fn note(&self, reason: Option<String>) {
        self.status.lock().reason = reason;
    }

    pub(crate) fn serving(&self) -> Option<Arc<Serving>> {
        self.serving.load_full()
    }

    /// Puts `serving` in place. Whoever served before ends when the last request that has looked it up is done.
    pub(crate) fn serve(&self, serving: Option<Arc<Serving>>) {
        self.serving.store(serving);
    }

    /// Its bytes have this digest. Whether they have come to serve before, in this process.
    pub(crate) fn is(&self, digest: &str) -> bool {
        let mut identity = self.identity.lock();
        if identity.0.as_deref() != Some(digest) {
            *identity = (Some(digest.to_owned()), false);
        }
        identity.1
    }

    /// The bytes that were read last serve.
    pub(crate) fn proved(&self) {
        self.identity.lock().1 = true;
    }

    /// How long the last load that brought it to serve took, milliseconds.
    pub(crate) fn load_ms(&self) -> Option<u64> {
        Some(self.load_ms.load(Ordering::Relaxed)).filter(|ms| *ms > 0)
    }

    /// A load that brought it to serve took so long.
    pub(crate) fn was_loaded_in(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.load_ms.store(ms.max(1), Ordering::Relaxed);
    }

    /// One sentence on why this version does not answer.
    pub(crate) fn excuse(&self) -> String {
        let status = self.status.lock();
        match &status.reason {
            Some(reason) => {
                format!("version {} is {}: {reason}", self.number, status.state.as_str())
            }
            None => format!("version {} is {}", self.number, status.state.as_str()),
        }
    }

    pub(crate) fn report(&self) -> VersionReport {
        let status = self.status.lock().clone();
        let mut report = VersionReport::new(self.number, status.state);
        report.reason = status.reason;
        report.since_ms = status.since_ms;
        report.digest = self.identity.lock().0.clone();
        if let Some(serving) = self.serving() {
            serving.describe(&mut report);
        }
        report
    }
}

/// What answers for a version: its contract, queue and lanes, under the settings in force.
pub struct Serving {
    /// Model name.
    pub model: String,
    /// Version number.
    pub version: u64,
    /// Inputs and outputs.
    pub contract: Contract,
    /// Where it really runs.
    pub placement: Placement,
    /// Digest that is the identity of the version, lower-case hex.
    pub digest: String,
    /// The first twelve digits of it, as every answer carries them.
    pub short_digest: Bytes,
    /// Whether the digest was compared with a manifest.
    pub verified: bool,
    /// When it took over from another version, if it did.
    pub(crate) took_over: Option<Instant>,
    /// Time of the load's phases.
    pub load: LoadTimes,
    /// Inputs of the first golden request, to show a person what to send.
    pub example: Option<Vec<NamedTensor>>,
    /// The settings in force: model.toml over the server's defaults.
    pub settings: EffectiveSettings,
    /// What the side of the protocol keeps with it: see [`Serving::beside`].
    pub(crate) beside: OnceLock<Box<dyn Any + Send + Sync>>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) canary: Mutex<CanaryWatch>,
}

/// The queue closes when nobody can put anything into it any more: not when a successor takes over, because requests that
/// have looked this one up are still reading their bodies. What waits is answered, then the lanes end.
impl Drop for Serving {
    fn drop(&mut self) {
        self.lanes.close();
    }
}

/// How long the phases of a load took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadTimes {
    /// Reading and hashing.
    pub read: Duration,
    /// Building the first session.
    pub build: Duration,
    /// Running the golden requests.
    pub probe: Duration,
}

impl Serving {
    /// Checks `inputs` against the contract and brings them into the graph's order.
    ///
    /// # Errors
    /// [`ContractError`], which names the field.
    pub fn accept(&self, inputs: Vec<NamedTensor>) -> Result<Vec<Tensor>, ContractError> {
        // Without a batch dimension the first one is no number of rows.
        let rows =
            if self.contract.is_batched() { self.settings.max_batch_rows } else { usize::MAX };
        self.contract.accept(inputs, rows)
    }

    /// What whoever speaks to clients keeps with this version for as long as it serves. Made when it is first asked for; one
    /// kind of thing only, and `None` for any other.
    pub fn beside<T: Default + Send + Sync + 'static>(&self) -> Option<&T> {
        self.beside.get_or_init(|| Box::<T>::default()).downcast_ref()
    }

    /// The deadline of a request whose head came at `arrived` and which asked for `requested`.
    ///
    /// What a client asks for counts from the head of its request and covers the upload; the model's default counts from
    /// `now`, for it was chosen without knowing how slow the client's line is.
    pub fn deadline(
        &self,
        arrived: Instant,
        requested: Option<Duration>,
        now: Instant,
    ) -> Deadline {
        let (from, allowance) = match requested {
            Some(requested) => (arrived, requested.min(self.settings.max_deadline)),
            None => (now, self.settings.default_deadline),
        };
        Deadline {
            at: from + allowance,
            allowance_ms: u64::try_from(allowance.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Puts a request that was admitted and checked into the queue, as one of `class` if the body names one.
    ///
    /// # Errors
    /// `Deadline` when it is over already, `Shed` when it cannot be kept or the queue is full, `NotReady` when the lanes have ended.
    pub fn submit(
        &self,
        inputs: Vec<Tensor>,
        outputs: impl Into<Arc<[usize]>>,
        deadline: Deadline,
        class: Option<Class>,
        mut permit: Permit,
    ) -> Result<Pending, PredictError> {
        let now = Instant::now();
        if now >= deadline.at {
            return Err(deadline.error("was read"));
        }
        let (sender, receiver) = oneshot::channel();
        let token = RunToken::new();
        let common = if self.contract.is_batched() { batch::rows(&inputs) } else { None };
        let rows = common.unwrap_or(1);
        let shape = Shape::of(&inputs, rows);
        // Only now it is known what the body holds.
        let row_ns = self.lanes.costs.row_ns(shape);
        let price = row_ns.map(|ns| Duration::from_nanos(ns.saturating_mul(rows as u64)));
        permit.change(class.unwrap_or(permit.class()), price);
        permit.feasible(deadline.at, now)?;
        let padding = self.lanes.padding.as_ref().filter(|padding| padding.takes(&inputs)).cloned();
        let job = Job {
            inputs,
            outputs: outputs.into(),
            rows,
            joins: common.is_some(),
            innocent: false,
            shape,
            hash: 0,
            padding,
            deadline,
            queued_at: now,
            token: Arc::clone(&token),
            answer: sender,
            permit,
        };
        match self.lanes.queue.push(job) {
            Ok(()) => {
                let lanes = Arc::clone(&self.lanes);
                Ok(Pending { lanes, answer: receiver, token, deadline, queued_at: now })
            }
            Err(Refused::Full(_)) => Err(PredictError::Shed(Shed::new(ShedReason::QueueFull))),
            Err(Refused::Closed(_)) => Err(self.lanes.refusal()),
        }
    }

    /// How long the first request of a run waits for others to join; `None` where requests share no runs.
    pub fn batch_delay(&self) -> Option<Duration> {
        self.lanes.shares_runs().then_some(self.settings.batch_delay)
    }

    /// What waits and runs for this version, as time.
    pub fn backlog(&self) -> &Arc<Backlog> {
        &self.lanes.backlog
    }

    /// Metrics of this version.
    pub fn metrics(&self) -> &VersionMetrics {
        &self.lanes.metrics
    }

    /// Totals since the load.
    pub fn statistics(&self) -> StatisticsReading {
        Statistics::read(&self.lanes.statistics)
    }

    /// Requests that were answered with outputs since the load.
    pub(crate) fn answered(&self) -> u64 {
        self.lanes.statistics.answered()
    }

    /// Requests that wait for a lane.
    pub fn queue_depth(&self) -> usize {
        self.lanes.queue.len()
    }

    /// Whether what it answers can be vouched for. Once it cannot, it answers nobody.
    pub fn is_trusted(&self) -> bool {
        self.lanes.is_trusted()
    }

    /// Lanes, wanted and healthy. Those that answer wrongly are not healthy.
    pub fn lane_counts(&self) -> LaneCounts {
        let condition = self.lanes.condition();
        LaneCounts { wanted: condition.wanted, healthy: condition.trusted() }
    }

    /// Runs that may be in progress at once: as many as lanes, or as turned out to be best.
    pub fn running_max(&self) -> u32 {
        self.lanes.running_max()
    }

    fn describe(&self, report: &mut VersionReport) {
        report.digest = Some(self.digest.clone());
        report.providers =
            self.settings.session.providers.iter().map(|provider| provider.to_string()).collect();
        report.provider = self.placement.providers.first().map(|provider| provider.to_string());
        report.lanes = self.lane_counts();
        report.threads = u32::try_from(self.settings.session.threads).unwrap_or(u32::MAX);
        report.details = BTreeMap::from([
            ("integrity".to_owned(), if self.verified { "verified" } else { "unverified" }.into()),
            ("batching".to_owned(), self.lanes.sharing()),
            ("read_ms".to_owned(), self.load.read.as_millis().to_string()),
            ("build_ms".to_owned(), self.load.build.as_millis().to_string()),
            ("probe_ms".to_owned(), self.load.probe.as_millis().to_string()),
            ("description".to_owned(), self.settings.description.clone().unwrap_or_default()),
            (
                "default_deadline_ms".to_owned(),
                self.settings.default_deadline.as_millis().to_string(),
            ),
            ("max_in_flight".to_owned(), self.settings.max_in_flight.to_string()),
        ]);
    }
}

pub(crate) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map(|since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
        .unwrap_or(0)
}
