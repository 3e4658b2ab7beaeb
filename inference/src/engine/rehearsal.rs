//! An engine that fails on command, for rehearsals: tests of the real program, and `balm drill`.
//!
//! It stands in front of another engine, and only where the server was started for it (`--rehearsal DIR`). The commands are
//! files in a private folder (`faults`): there is no socket, no setting and no variable by which a server that serves could
//! be told to fail.

mod act;
mod fault;
mod faults;
#[cfg(test)]
mod tests;

pub use faults::{Faults, RehearsalError};

use super::{
    BuildError, Cancel, Engine, EngineInfo, LoadToken, ModelBytes, Placement, RunError, RunOutput,
    Session, SessionOptions,
};
use crate::contract::Contract;
use crate::lane;
use crate::tensor::Tensor;
use act::Act;
use fault::{At, Place};
use std::sync::Arc;

/// What a run says that was told to fail.
const TOLD_TO_FAIL: &str = "rehearsal: told to fail";
/// As ONNX Runtime tells it that a GPU is in a state which only another process leaves.
const STICKY: &str =
    "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; rehearsal: told to fail";

/// See the module.
pub struct RehearsalEngine {
    engine: Arc<dyn Engine>,
    faults: Arc<Faults>,
}

impl RehearsalEngine {
    /// What `engine` does, but for the faults that are found.
    pub fn new(engine: Arc<dyn Engine>, faults: Arc<Faults>) -> Self {
        RehearsalEngine { engine, faults }
    }
}

impl Engine for RehearsalEngine {
    fn info(&self) -> EngineInfo {
        self.engine.info()
    }

    fn build(
        &self,
        bytes: ModelBytes<'_>,
        options: &SessionOptions,
        token: &LoadToken,
    ) -> Result<Box<dyn Session>, BuildError> {
        let place = Place { at: here(), model: bytes.name, inputs: &[] };
        for act in self.faults.claim(|fault| fault.is_for_build(&place)) {
            act.before_build(&self.faults);
        }
        let session = self.engine.build(bytes, options, token)?;
        let (model, faults) = (bytes.name.to_owned(), Arc::clone(&self.faults));
        Ok(Box::new(RehearsalSession { session, model, faults }))
    }
}

/// Lanes are where clients are answered; whatever else builds or runs is a load.
fn here() -> At {
    let thread = std::thread::current();
    match thread.name() {
        Some(name) if name.starts_with(lane::THREAD_PREFIX) => At::Lane,
        _ => At::Load,
    }
}

struct RehearsalSession {
    session: Box<dyn Session>,
    model: String,
    faults: Arc<Faults>,
}

impl Session for RehearsalSession {
    fn contract(&self) -> &Contract {
        self.session.contract()
    }

    fn placement(&self) -> &Placement {
        self.session.placement()
    }

    fn canceller(&self) -> Arc<dyn Cancel> {
        self.session.canceller()
    }

    fn rearm(&mut self) {
        self.session.rearm();
    }

    fn run(&mut self, inputs: &[Tensor], outputs: &[usize]) -> Result<RunOutput, RunError> {
        let place = Place { at: here(), model: &self.model, inputs };
        let acts = self.faults.claim(|fault| fault.is_for_run(&place));
        for act in &acts {
            act.before_run(&self.faults, inputs)?;
        }
        let mut output = self.session.run(inputs, outputs)?;
        if acts.iter().any(|act| matches!(act, Act::Wrong)) {
            output.outputs = output.outputs.iter().map(act::changed).collect();
        }
        Ok(output)
    }
}
