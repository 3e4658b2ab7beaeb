//! The breaker of a model: while most of what it answers are its own errors, requests are turned away at the door.
//!
//! Only errors inside the server count: what was shed, refused as the client's mistake or late says nothing about the model.
//! After a while a canary tries first, so that no client is sacrificed; then five real requests, no more at once whatever the
//! concurrency; then everybody. The states say what they do, because "open" and "closed" are read both ways.
//!
//! Every pass carries the number of the trial it belongs to, so that a late result of an older one changes nothing.

use serde::{Deserialize, Serialize};

/// Results are judged over this time, milliseconds.
pub const WINDOW_MS: u64 = 10_000;
/// Fewer results than this say nothing.
pub const RESULTS_MIN: u64 = 20;
/// So many of them errors of the server's own, percent, and the model is closed off.
pub const ERRORS_PERCENT: u64 = 50;
/// How long it refuses the first time, milliseconds; twice as long each further time …
pub const REFUSE_MIN_MS: u64 = 1_000;
/// … but no longer than this.
pub const REFUSE_MAX_MS: u64 = 60_000;
/// Real requests that have to be answered in a trial.
pub const TRIAL_REQUESTS: u32 = 5;

/// Parts of the window; results leave it a part at a time.
const PARTS: usize = 10;
const PART_MS: u64 = WINDOW_MS / PARTS as u64;

/// What the breaker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BreakerState {
    /// Everybody is let in.
    Accepting,
    /// Nobody is.
    Refusing,
    /// A canary, then a few.
    Trying,
}

impl BreakerState {
    /// Every state.
    pub const ALL: [BreakerState; 3] =
        [BreakerState::Accepting, BreakerState::Refusing, BreakerState::Trying];

    /// Name in lower case: the label of metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            BreakerState::Accepting => "accepting",
            BreakerState::Refusing => "refusing",
            BreakerState::Trying => "trying",
        }
    }
}

/// Leave to come in. Its result belongs to the time in which it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// The trial it is part of; `None` where everybody is let in.
    trial: Option<u64>,
}

impl Pass {
    /// Of a time in which everybody is let in.
    pub const FREE: Pass = Pass { trial: None };
}

/// How a request that was let in ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerResult {
    /// Outputs.
    Answered,
    /// An error of the server's own.
    Failed,
    /// Shed, refused as the client's mistake, late or given up: says nothing about the model.
    Neither,
}

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    number: u64,
    results: u64,
    errors: u64,
}

impl Part {
    /// Number of the part that a moment is in.
    fn at(now_ms: u64) -> u64 {
        now_ms / PART_MS
    }
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Accepting,
    Refusing { until_ms: u64 },
    Canary,
    Requests { out: u32, answered: u32 },
}

/// The breaker of one model. Times in milliseconds of one monotonic clock.
#[derive(Clone, Debug)]
pub struct Breaker {
    phase: Phase,
    window: [Part; PARTS],
    /// How long the next refusal takes.
    refuse_ms: u64,
    /// Counts the trials.
    trial: u64,
}

impl Default for Breaker {
    fn default() -> Self {
        Breaker {
            phase: Phase::Accepting,
            window: [Part::default(); PARTS],
            refuse_ms: REFUSE_MIN_MS,
            trial: 0,
        }
    }
}

impl Breaker {
    /// What it does now.
    pub fn state(&self) -> BreakerState {
        match self.phase {
            Phase::Accepting => BreakerState::Accepting,
            Phase::Refusing { .. } => BreakerState::Refusing,
            Phase::Canary | Phase::Requests { .. } => BreakerState::Trying,
        }
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// When it does not: milliseconds after which it is worth trying again.
    pub fn admit(&mut self, now_ms: u64) -> Result<Pass, u64> {
        match &mut self.phase {
            Phase::Accepting => Ok(Pass::FREE),
            Phase::Refusing { until_ms } => Err(until_ms.saturating_sub(now_ms)),
            Phase::Canary => Err(0),
            Phase::Requests { out, answered } => {
                if *out + *answered >= TRIAL_REQUESTS {
                    return Err(0);
                }
                *out += 1;
                Ok(Pass { trial: Some(self.trial) })
            }
        }
    }

    /// A request that was let in with `pass` has ended.
    pub fn ended(&mut self, pass: Pass, result: BreakerResult, now_ms: u64) {
        let Some(trial) = pass.trial else {
            match result {
                BreakerResult::Answered => self.answered(1, now_ms),
                BreakerResult::Failed => self.failed(now_ms),
                BreakerResult::Neither => {}
            }
            return;
        };
        let Phase::Requests { out, answered } = &mut self.phase else { return };
        if trial != self.trial {
            return;
        }
        *out = out.saturating_sub(1);
        match result {
            BreakerResult::Answered => *answered += 1,
            BreakerResult::Failed => return self.refuse(now_ms),
            // Its place in the trial is another's.
            BreakerResult::Neither => {}
        }
        if *answered >= TRIAL_REQUESTS {
            *self = Breaker { trial: self.trial, ..Breaker::default() };
        }
    }

    /// `count` requests that were let in freely were answered.
    pub fn answered(&mut self, count: u64, now_ms: u64) {
        let part = self.part(now_ms);
        part.results = part.results.saturating_add(count);
    }

    /// One that was let in freely failed. What is left of a time before the breaker refused changes nothing.
    fn failed(&mut self, now_ms: u64) {
        let part = self.part(now_ms);
        part.results = part.results.saturating_add(1);
        part.errors = part.errors.saturating_add(1);
        if !matches!(self.phase, Phase::Accepting) {
            return;
        }
        let newest = Part::at(now_ms);
        let (results, errors) = self
            .window
            .iter()
            .filter(|part| newest.saturating_sub(part.number) / PARTS as u64 == 0)
            .fold((0u64, 0u64), |(results, errors), part| {
                (results.saturating_add(part.results), errors.saturating_add(part.errors))
            });
        let enough = results >= RESULTS_MIN;
        if enough && u128::from(errors) * 100 >= u128::from(results) * u128::from(ERRORS_PERCENT) {
            self.refuse(now_ms);
        }
    }

    /// Whether a canary is to be sent now. It is asked for once; then [`Breaker::canary`] is waited for.
    pub fn wants_canary(&mut self, now_ms: u64) -> bool {
        let Phase::Refusing { until_ms } = self.phase else { return false };
        if now_ms < until_ms {
            return false;
        }
        self.phase = Phase::Canary;
        true
    }

    /// The canary that was asked for came back. Where nobody waits for one, nothing changes.
    pub fn canary(&mut self, result: BreakerResult, now_ms: u64) {
        if !matches!(self.phase, Phase::Canary) {
            return;
        }
        match result {
            BreakerResult::Answered => {
                self.trial += 1;
                self.phase = Phase::Requests { out: 0, answered: 0 };
            }
            BreakerResult::Failed => self.refuse(now_ms),
            // It was turned away by something else: another at once.
            BreakerResult::Neither => self.phase = Phase::Refusing { until_ms: now_ms },
        }
    }

    fn refuse(&mut self, now_ms: u64) {
        self.phase = Phase::Refusing { until_ms: now_ms.saturating_add(self.refuse_ms) };
        self.refuse_ms = (self.refuse_ms * 2).min(REFUSE_MAX_MS);
        // Errors of a time that is over do not close what has been tried anew.
        self.window = [Part::default(); PARTS];
    }

    fn part(&mut self, now_ms: u64) -> &mut Part {
        let number = Part::at(now_ms);
        let part = &mut self.window[(number % PARTS as u64) as usize];
        if part.number != number {
            *part = Part { number, ..Part::default() };
        }
        part
    }
}

#[cfg(test)]
mod tests;
