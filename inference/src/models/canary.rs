//! The canary of a version: a request of the watchdog's own, through the real door, queue and lane.
//!
//! Asked where nobody else asks, and by a breaker that wants to know whether it is worth letting people in again. A golden request
//! must be answered as recorded; where a model has none, one of zeros is made up, which must only be answered, and counts for
//! nothing until it was once.

use super::Model;
use super::proof;
use crate::admission::{Ask, Class, Gate};
use crate::contract::Contract;
use crate::golden::GoldenCase;
use crate::metrics::CanaryResult;
use crate::predict::{Pending, PredictError, Prediction};
use crate::tensor::{NamedTensor, Tensor};
use crate::version::Serving;
use balm_probes::breaker::BreakerResult;
use balm_probes::watchdog::Canary;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Who canaries are to the shares of clients: nobody else.
const CLIENT: u64 = u64::MAX;

/// What is asked, and what is known to be right.
struct Question {
    inputs: Vec<Tensor>,
    outputs: Vec<usize>,
    bytes: u64,
    /// `None` where it was made up.
    golden: Option<GoldenCase>,
}

/// One that is under way.
struct Flight {
    pending: Pending,
    /// On the clock of the watchdog, milliseconds.
    deadline_ms: u64,
    /// Whether the breaker waits for it.
    for_breaker: bool,
}

/// The canary of one version, in the hands of the watchdog.
pub(crate) struct CanaryWatch {
    question: Option<Question>,
    /// From the first tick on.
    canary: Option<Canary>,
    flight: Option<Flight>,
    /// Requests that were answered when it was last looked.
    answered: u64,
    /// Whether a request that was made up has ever been answered.
    proved: bool,
}

/// What a look at the canary says of the version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// Nothing new.
    Same,
    /// Golden requests are no longer answered as recorded; why.
    Sick(String),
}

impl CanaryWatch {
    /// With the first golden request, or one that is made up. Where neither can be had there is no canary.
    pub(super) fn new(golden: Option<&GoldenCase>, contract: &Contract) -> Self {
        CanaryWatch {
            question: golden
                .and_then(|case| Question::golden(case, contract))
                .or_else(|| Question::made_up(contract)),
            canary: None,
            flight: None,
            answered: 0,
            proved: false,
        }
    }

    /// Looks after the one that is under way, and sends one if it is time and one may be sent. `now_ms` is the watchdog's. What
    /// the look says, and whether one was sent.
    pub(super) fn tick(
        &mut self,
        model: &Model,
        serving: &Serving,
        gate: &Arc<Gate>,
        now_ms: u64,
        may_send: bool,
    ) -> (Health, bool) {
        if self.flight.is_none() && may_send {
            self.note_answers(serving, now_ms);
            self.send(model, serving, gate, now_ms);
            return (Health::Same, self.flight.is_some());
        }
        (self.look(model, serving, now_ms), false)
    }

    /// What others were answered makes a canary needless.
    fn note_answers(&mut self, serving: &Serving, now_ms: u64) {
        let answered = serving.answered();
        let canary = self.canary.get_or_insert_with(|| Canary::new(now_ms));
        if answered != self.answered {
            self.answered = answered;
            canary.answered(now_ms);
        }
    }

    fn look(&mut self, model: &Model, serving: &Serving, now_ms: u64) -> Health {
        self.note_answers(serving, now_ms);
        let Some(canary) = &mut self.canary else { return Health::Same };
        let mut why = String::new();
        if let Some(flight) = &mut self.flight {
            let result = match flight.pending.poll() {
                Some(result) => result,
                None if now_ms >= flight.deadline_ms => Err(flight.pending.deadline.error("ran")),
                None => return Health::Same,
            };
            let for_breaker = flight.for_breaker;
            // Dropped, and so cancelled, if it has not ended.
            self.flight = None;
            canary.came_back();
            let verdict = self.question.as_ref().map_or(Ok(()), |question| question.judge(result));
            let result = match verdict {
                Ok(()) => {
                    self.proved = true;
                    canary.succeeded(now_ms);
                    CanaryResult::Answered
                }
                Err(Failed::TurnedAway) => {
                    canary.turned_away(now_ms);
                    CanaryResult::TurnedAway
                }
                Err(Failed::Wrong(reason)) => {
                    why = reason;
                    canary.failed(now_ms);
                    CanaryResult::Failed
                }
            };
            serving.metrics().canary(result);
            if for_breaker {
                model.gate.canary(result.into(), Instant::now());
            }
            let made_up = self.question.as_ref().is_some_and(|question| question.golden.is_none());
            if result == CanaryResult::Failed && made_up && !self.proved {
                // A model that computes nothing of zeros is not sick for that.
                self.question = None;
                return Health::Same;
            }
        }
        let sick = self.canary.as_ref().is_some_and(Canary::is_sick);
        if sick && !why.is_empty() { Health::Sick(why) } else { Health::Same }
    }

    fn send(&mut self, model: &Model, serving: &Serving, gate: &Arc<Gate>, now_ms: u64) {
        let now = Instant::now();
        let for_breaker = model.gate.wants_canary(now);
        let Some(question) = &self.question else {
            if for_breaker {
                // Nothing can be asked beforehand, so people try.
                model.gate.canary(BreakerResult::Answered, now);
            }
            return;
        };
        let due = self.canary.as_mut().is_some_and(|canary| canary.send(now_ms));
        if !for_breaker && !due {
            return;
        }
        // The longest that anybody may ask for: whether answers come late is not what is asked here.
        let deadline = serving.deadline(now, Some(Duration::MAX), now);
        let ask = Ask {
            class: Class::Critical,
            client: CLIENT,
            bytes: question.bytes,
            deadline: deadline.at,
            now,
        };
        let sent = gate
            .admit_canary(&model.gate, serving.backlog(), &ask)
            .map_err(PredictError::from)
            .and_then(|permit| {
                let (inputs, outputs) = (question.inputs.clone(), question.outputs.clone());
                serving.submit(inputs, outputs, deadline, None, permit)
            });
        match sent {
            Ok(pending) => {
                let deadline_ms = now_ms.saturating_add(deadline.allowance_ms);
                self.flight = Some(Flight { pending, deadline_ms, for_breaker });
            }
            Err(_turned_away) => {
                if let Some(canary) = &mut self.canary {
                    canary.came_back();
                    canary.turned_away(now_ms);
                }
                if for_breaker {
                    model.gate.canary(BreakerResult::Neither, now);
                }
            }
        }
    }
}

/// Why a canary did not come back well.
enum Failed {
    /// It was not run, or its lane was lost: that is seen elsewhere.
    TurnedAway,
    /// It was answered wrongly, late or by an error; a sentence.
    Wrong(String),
}

impl Question {
    fn golden(case: &GoldenCase, contract: &Contract) -> Option<Self> {
        let inputs = contract.accept(case.inputs.clone(), usize::MAX).ok()?;
        let names = case.outputs.iter().map(|output| output.name.as_str());
        let outputs = contract.select_outputs(names).ok()?;
        Some(Question { bytes: bytes(&inputs), inputs, outputs, golden: Some(case.clone()) })
    }

    fn made_up(contract: &Contract) -> Option<Self> {
        let inputs = proof::zeros(contract)?;
        let outputs = (0..contract.outputs.len()).collect();
        Some(Question { bytes: bytes(&inputs), inputs, outputs, golden: None })
    }

    fn judge(&self, result: Result<Prediction, PredictError>) -> Result<(), Failed> {
        match (result, &self.golden) {
            (Ok(prediction), Some(golden)) => {
                let outputs = golden.outputs.iter().zip(prediction.outputs);
                let named: Vec<NamedTensor> = outputs
                    .map(|(expected, tensor)| NamedTensor { name: expected.name.clone(), tensor })
                    .collect();
                let checked = golden.check(&named);
                checked.map_err(|mismatch| {
                    Failed::Wrong(format!("golden case {:?}: {mismatch}", golden.name))
                })
            }
            // A model that refuses zeros works.
            (Ok(_) | Err(PredictError::InvalidInput(_)), None) => Ok(()),
            (
                Err(PredictError::Shed(_) | PredictError::NotReady { .. } | PredictError::LaneLost),
                _,
            ) => Err(Failed::TurnedAway),
            (Err(error), _) => Err(Failed::Wrong(error.to_string())),
        }
    }
}

fn bytes(inputs: &[Tensor]) -> u64 {
    inputs.iter().map(|tensor| tensor.byte_size() as u64).sum()
}

impl From<CanaryResult> for BreakerResult {
    fn from(result: CanaryResult) -> Self {
        match result {
            CanaryResult::Answered => BreakerResult::Answered,
            CanaryResult::Failed => BreakerResult::Failed,
            CanaryResult::TurnedAway => BreakerResult::Neither,
        }
    }
}
