//! Whether requests share runs and are padded for it: what `model.toml` asks for, and what a session proves.

use super::proof;
use super::run_limit::RunLimit;
use crate::batch::Padding;
use crate::contract::Contract;
use crate::effective::EffectiveSettings;
use crate::engine::Session;
use crate::golden::GoldenCase;
use crate::lane::Lanes;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// What is asked for.
pub(super) struct Asked {
    /// Whether requests share runs; `None`: if that is right.
    batching: Option<bool>,
    /// How they are padded, if that is right.
    pub(super) padding: Option<Arc<Padding>>,
    /// Whether further sessions come, which can do the proving: the first one has work to do.
    later: bool,
}

/// Yes or no, and why.
type Answer = (bool, String);

/// What is known so far; `None` where it is still to be proved, or nobody asks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sharing {
    runs: Option<Answer>,
    padding: Option<Answer>,
}

impl Asked {
    /// What the settings ask of a model with this contract.
    ///
    /// # Errors
    /// Everything in them that this model cannot have.
    pub(super) fn of(settings: &EffectiveSettings, contract: &Contract) -> Result<Self, String> {
        let mut problems = Vec::new();
        if settings.batching == Some(true) && !contract.is_batched() {
            problems.push("batching.enabled is true, and not every input and output has a first dimension that varies".to_owned());
        }
        let padding = Padding::of(&settings.padding, contract).unwrap_or_else(|wrong| {
            problems.extend(wrong);
            None
        });
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        let padding = padding.map(Arc::new);
        Ok(Asked { batching: settings.batching, padding, later: settings.lanes > 1 })
    }

    /// What the first session is to find out.
    ///
    /// # Errors
    /// The session is not to be used any more.
    pub(super) fn first(
        &self,
        session: &mut dyn Session,
        golden: &[GoldenCase],
        limit: &RunLimit,
    ) -> Result<Sharing, String> {
        if !self.later {
            return self.all(session, golden, limit);
        }
        let runs = self.batching.map(told);
        let padding = self.padding.as_ref().filter(|_| self.batching == Some(false));
        Ok(Sharing { runs, padding: padding.map(|_| no_runs()) })
    }

    /// Tries everything that is to be proved.
    ///
    /// # Errors
    /// The session is not to be used any more.
    pub(super) fn all(
        &self,
        session: &mut dyn Session,
        golden: &[GoldenCase],
        limit: &RunLimit,
    ) -> Result<Sharing, String> {
        let runs = match self.batching {
            Some(enabled) => told(enabled),
            None => prove(|| proof::rows_are_independent(session, golden, limit))?,
        };
        let padding = match &self.padding {
            None => None,
            Some(_) if !runs.0 => Some(no_runs()),
            Some(padding) => {
                Some(prove(|| proof::padding_is_harmless(session, golden, padding, limit))?)
            }
        };
        Ok(Sharing { runs: Some(runs), padding })
    }

    /// Whether something is asked for that is not known yet.
    pub(super) fn leaves_open(&self, known: &Sharing) -> bool {
        known.runs.is_none() || known.padding.is_none() && self.padding.is_some()
    }
}

impl Sharing {
    /// Tells the lanes what is known.
    pub(super) fn tell(self, lanes: &Lanes) {
        if let Some((pads, why)) = self.padding {
            lanes.pad(pads, why);
        }
        if let Some((shares, why)) = self.runs {
            lanes.share(shares, why);
        }
    }
}

fn told(enabled: bool) -> Answer {
    (enabled, "model.toml says so".to_owned())
}

fn no_runs() -> Answer {
    (false, "requests share no runs".to_owned())
}

/// Tries it. An error means that the session is not to be used any more.
fn prove(proof: impl FnOnce() -> Result<(), String>) -> Result<Answer, String> {
    match catch_unwind(AssertUnwindSafe(proof)) {
        Ok(Ok(())) => Ok((true, "proved at load to be right".to_owned())),
        Ok(Err(reason)) => Ok((false, reason)),
        Err(_panic) => Err("trying two requests in one run panicked".to_owned()),
    }
}
