//! An engine that starts beside other work.
//!
//! Loading ONNX Runtime takes tens of milliseconds of one core, reading and hashing a model takes another: whoever starts a
//! server waits for the longer of the two and not for both.

use super::{
    BuildError, Engine, EngineError, EngineInfo, LoadToken, ModelBytes, Session, SessionOptions,
};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::thread;

/// What a start on another thread came to, once it did.
type Started = OnceLock<Result<Box<dyn Engine>, EngineError>>;

/// An engine that may still be starting. Its methods wait for it.
pub struct StartingEngine(Arc<Started>);

impl StartingEngine {
    /// Starts an engine on a thread of its own.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn<E: Engine>(
        start: impl FnOnce() -> Result<E, EngineError> + Send + 'static,
    ) -> io::Result<Self> {
        let started = Arc::new(Started::new());
        let cell = Arc::clone(&started);
        thread::Builder::new().name("engine".to_owned()).spawn(move || {
            // Whoever waits must hear of a panic, too.
            let outcome = catch_unwind(AssertUnwindSafe(start)).unwrap_or_else(|_panic| {
                Err(EngineError::Start {
                    path: "the engine".to_owned(),
                    reason: "its start panicked".to_owned(),
                })
            });
            let _first_and_only = cell.set(outcome.map(|engine| Box::new(engine) as Box<_>));
        })?;
        Ok(StartingEngine(started))
    }

    /// Waits until the engine runs.
    ///
    /// # Errors
    /// Why it does not.
    pub fn started(&self) -> Result<&dyn Engine, EngineError> {
        match self.0.wait() {
            Ok(engine) => Ok(engine.as_ref()),
            Err(error) => Err(error.clone()),
        }
    }
}

impl Engine for StartingEngine {
    fn info(&self) -> EngineInfo {
        match self.started() {
            Ok(engine) => engine.info(),
            Err(error) => EngineInfo {
                name: "none",
                version: "unknown".to_owned(),
                build: error.to_string(),
                library: String::new(),
            },
        }
    }

    fn build(
        &self,
        bytes: ModelBytes<'_>,
        options: &SessionOptions,
        token: &LoadToken,
    ) -> Result<Box<dyn Session>, BuildError> {
        match self.started() {
            Ok(engine) => engine.build(bytes, options, token),
            Err(error) => Err(BuildError::Graph(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::onnx::OnnxEngine;

    #[test]
    fn a_start_that_fails_or_panics_is_heard_of() {
        let failed = EngineError::Start { path: "lib".to_owned(), reason: "no".to_owned() };
        let error = failed.clone();
        let engine = StartingEngine::spawn::<OnnxEngine>(move || Err(error)).unwrap();
        assert_eq!(engine.started().err(), Some(failed.clone()));
        assert_eq!(engine.info().build, failed.to_string());
        let engine = StartingEngine::spawn::<OnnxEngine>(|| panic!("at once")).unwrap();
        let error = engine.started().err().unwrap().to_string();
        assert!(error.contains("panicked"), "{error}");
    }
}
