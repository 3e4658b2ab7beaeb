//! One prediction: from admitted and checked tensors to outputs, or to the one reason why not.

use crate::admission::{Class, Permit, Shed};
use crate::batch::{Padding, Shape, same_but_rows};
use crate::cancel::RunToken;
use crate::contract::ContractError;
use crate::engine::RunError;
use crate::lane::Lanes;
use crate::queue::Entry;
use crate::statistics::Timing;
use crate::tensor::Tensor;
use balm_probes::breaker::BreakerResult;
use balm_probes::poison::CRASHES_MAX;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::sleep_until;

/// Outputs of one request.
#[derive(Debug)]
pub struct Prediction {
    /// The outputs that were asked for, in that order.
    pub outputs: Vec<Tensor>,
    /// Time of the parts.
    pub timing: Timing,
    /// What it was computed from, on its way back: memory is given back fastest by the thread that has asked for it, and that
    /// is the one that waits for the answer. Empty from there on.
    pub(crate) inputs: Vec<Tensor>,
}

/// Whose matter an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request is wrong; sending it again changes nothing.
    Client,
    /// Too much at once; later or elsewhere it works.
    Overload,
    /// Balm, the model or the machine.
    Server,
}

/// Why there are no outputs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PredictError {
    /// No such model.
    #[error("unknown model {name:?}; this server has {known}")]
    UnknownModel {
        /// As it was asked for.
        name: String,
        /// The models that there are.
        known: String,
    },
    /// The model has no such version.
    #[error("model {model:?} has no version {version:?}; it has {known}")]
    UnknownVersion {
        /// The model.
        model: String,
        /// As it was asked for.
        version: String,
        /// The versions that there are.
        known: String,
    },
    /// The version is known and does not serve now.
    #[error("model {model:?} is not ready: {reason}")]
    NotReady {
        /// The model.
        model: String,
        /// Its state and why.
        reason: String,
    },
    /// The inputs are not what the model takes.
    #[error(transparent)]
    Contract(#[from] ContractError),
    /// The model cannot compute these inputs although they keep the contract, for example an index out of range.
    #[error("the model cannot compute these inputs: {0}")]
    InvalidInput(String),
    /// Turned away for load.
    #[error(transparent)]
    Shed(#[from] Shed),
    /// The deadline was over while the request waited or ran.
    #[error("the deadline of {deadline_ms} ms was over while the request {phase}")]
    Deadline {
        /// The deadline that applied, milliseconds.
        deadline_ms: u64,
        /// `was read`, `waited` or `ran`.
        phase: &'static str,
    },
    /// The lane died in this run.
    #[error("the run failed inside the server; the lane was replaced")]
    LaneLost,
    /// The runtime failed.
    #[error("ONNX Runtime failed: {0}")]
    Runtime(String),
    /// The server has crashed of this very request before.
    #[error(
        "this request (hash {hash:016x}) was in a run at {CRASHES_MAX} crashes of the server and is not run again for an hour; \
         another input may work"
    )]
    Poison {
        /// By which supervisor and journal know it.
        hash: u64,
    },
}

impl PredictError {
    /// Whose matter it is.
    pub fn fault(&self) -> Fault {
        match self {
            PredictError::UnknownModel { .. }
            | PredictError::UnknownVersion { .. }
            | PredictError::Contract(_)
            | PredictError::InvalidInput(_)
            | PredictError::Poison { .. } => Fault::Client,
            PredictError::Shed(_) | PredictError::Deadline { .. } => Fault::Overload,
            PredictError::NotReady { .. } | PredictError::LaneLost | PredictError::Runtime(_) => {
                Fault::Server
            }
        }
    }

    /// Whether the same request may succeed later, or on another replica.
    pub fn retryable(&self) -> bool {
        match self {
            PredictError::UnknownModel { .. }
            | PredictError::UnknownVersion { .. }
            | PredictError::Contract(_)
            | PredictError::InvalidInput(_)
            | PredictError::Poison { .. } => false,
            PredictError::Shed(_)
            | PredictError::Deadline { .. }
            | PredictError::NotReady { .. }
            | PredictError::LaneLost
            | PredictError::Runtime(_) => true,
        }
    }
}

impl From<RunError> for PredictError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::InvalidInput(reason) => PredictError::InvalidInput(reason),
            RunError::Terminated => PredictError::Runtime("the run was stopped".to_owned()),
            RunError::Runtime(reason) => PredictError::Runtime(reason),
        }
    }
}

/// The time by which a request wants its answer.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// The moment, monotonic.
    pub at: Instant,
    /// The allowance it was made of, milliseconds, for messages.
    pub allowance_ms: u64,
}

impl Deadline {
    /// The error of a request whose deadline was over while it … `phase`.
    pub fn error(&self, phase: &'static str) -> PredictError {
        PredictError::Deadline { deadline_ms: self.allowance_ms, phase }
    }
}

/// What lies in the queue.
pub(crate) struct Job {
    pub(crate) inputs: Vec<Tensor>,
    pub(crate) outputs: Arc<[usize]>,
    /// Rows that it adds to a run; 1 where there are no rows to speak of.
    pub(crate) rows: usize,
    /// Whether it may share a run.
    pub(crate) joins: bool,
    /// Whether it was in a run that died of another: then the wait since is not its fault.
    pub(crate) innocent: bool,
    pub(crate) shape: Shape,
    /// Of its model and inputs, once a lane has it and what runs is recorded; see [`crate::recorder`].
    pub(crate) hash: u64,
    /// How it may be padded, if it may.
    pub(crate) padding: Option<Arc<Padding>>,
    pub(crate) deadline: Deadline,
    pub(crate) queued_at: Instant,
    pub(crate) token: Arc<RunToken>,
    pub(crate) answer: oneshot::Sender<Result<Prediction, PredictError>>,
    /// Released with the job, which is when its run has returned.
    pub(crate) permit: Permit,
}

impl Entry for Job {
    fn joins(&self, other: &Self) -> bool {
        self.joins
            && other.joins
            && self.outputs == other.outputs
            && (same_but_rows(&self.inputs, &other.inputs) || self.joins_padded(other))
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn class(&self) -> Class {
        self.permit.class()
    }
}

impl Job {
    /// Whether the two can share a run if one of them is padded.
    fn joins_padded(&self, other: &Self) -> bool {
        let (Some(padding), Some(_)) = (&self.padding, &other.padding) else { return false };
        padding.joins(&self.inputs, &other.inputs)
    }

    /// Ends the job: its place becomes free, then its client hears.
    pub(crate) fn answer(mut self, answer: Result<Prediction, PredictError>) {
        self.permit.ended(match &answer {
            Ok(_) => BreakerResult::Answered,
            Err(PredictError::Runtime(_) | PredictError::LaneLost) => BreakerResult::Failed,
            Err(_) => BreakerResult::Neither,
        });
        drop(self.permit);
        // A client that left does not hear; nothing else hangs on the answer.
        let _ = self.answer.send(answer);
    }
}

/// After this long, who waits sees to it that no lane sleeps: see `Queue::nudge`.
const NUDGE_AFTER: Duration = Duration::from_millis(1);

/// A request that waits for its answer. Dropping it cancels the job, running or not.
pub struct Pending {
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) answer: oneshot::Receiver<Result<Prediction, PredictError>>,
    pub(crate) token: Arc<RunToken>,
    pub(crate) deadline: Deadline,
    pub(crate) queued_at: Instant,
}

impl Pending {
    /// The answer, if it has come, for who looks every so often and keeps the deadline itself.
    pub(crate) fn poll(&mut self) -> Option<Result<Prediction, PredictError>> {
        // Nobody else is going to wake a lane for it.
        self.lanes.queue.nudge();
        match self.answer.try_recv() {
            Ok(answer) => Some(answer),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Closed) => Some(Err(PredictError::LaneLost)),
        }
    }

    /// The outputs, or the reason why not, no later than the deadline.
    ///
    /// # Errors
    /// [`PredictError`]: of the run, or `Deadline`.
    pub async fn wait(mut self) -> Result<Prediction, PredictError> {
        if self.lanes.queue.runs_are_short() {
            // Lets the other requests that are ready push theirs first: one waking of a lane serves them all.
            tokio::task::yield_now().await;
            self.lanes.queue.wake_for_burst();
        }
        let nudge_at = (self.queued_at + NUDGE_AFTER).min(self.deadline.at);
        let mut timer = pin!(sleep_until(nudge_at.into()));
        loop {
            tokio::select! {
                biased;
                // Closed where the lane's thread ended without an answer.
                answer = &mut self.answer => {
                    let mut answer = answer.unwrap_or(Err(PredictError::LaneLost));
                    if let Ok(prediction) = &mut answer {
                        prediction.inputs = Vec::new();
                    }
                    return answer;
                }
                () = &mut timer => {
                    if Instant::now() >= self.deadline.at {
                        let phase = if self.token.has_begun() { "ran" } else { "waited" };
                        return Err(self.deadline.error(phase));
                    }
                    self.lanes.queue.nudge();
                    timer.as_mut().reset(self.deadline.at.into());
                }
            }
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.token.cancel() {
            // Its place is free only when a lane has come by.
            self.lanes.queue.nudge();
        }
    }
}
