//! A time for each run of a load, so that none holds it for ever: the longest deadline that any client could ask for.

use crate::engine::{Cancel, RunOutput, Session};
use crate::tensor::Tensor;
use parking_lot::{Condvar, Mutex};
use std::cell::OnceCell;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// See the module. One thread keeps it for all runs of a session, one after the other.
pub(super) struct RunLimit {
    limit: Duration,
    guard: OnceCell<Guard>,
}

struct Guard {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    watched: Mutex<Watched>,
    changed: Condvar,
}

#[derive(Default)]
struct Watched {
    /// When the run in progress is over its time, and what stops it.
    run: Option<(Instant, Arc<dyn Cancel>)>,
    /// The guard has stopped a run.
    late: bool,
    /// There will be no further run.
    over: bool,
}

impl RunLimit {
    /// So much time for each run.
    pub(super) fn new(limit: Duration) -> Self {
        RunLimit { limit, guard: OnceCell::new() }
    }

    /// One run, which is told to stop when it takes longer.
    ///
    /// # Errors
    /// In a sentence for people: it failed, it was told to stop, or nobody could be found who would tell it.
    pub(super) fn run(
        &self,
        session: &mut dyn Session,
        inputs: &[Tensor],
        outputs: &[usize],
    ) -> Result<RunOutput, String> {
        session.rearm();
        let run = (Instant::now() + self.limit, session.canceller());
        let shared =
            self.watch(run).map_err(|error| format!("its guard did not start: {error}"))?;
        let found = session.run(inputs, outputs).map_err(|error| error.to_string());
        let mut watched = shared.watched.lock();
        watched.run = None;
        if std::mem::take(&mut watched.late) {
            return Err(format!(
                "it was not answered within {} ms, the longest deadline (max_deadline_ms)",
                self.limit.as_millis()
            ));
        }
        found
    }

    fn watch(&self, run: (Instant, Arc<dyn Cancel>)) -> io::Result<&Shared> {
        if let Some(guard) = self.guard.get() {
            // It need not be woken: it looks again before the time of this run is over.
            guard.shared.watched.lock().run = Some(run);
            return Ok(&guard.shared);
        }
        let watched = Watched { run: Some(run), ..Watched::default() };
        let shared = Arc::new(Shared { watched: Mutex::new(watched), changed: Condvar::new() });
        let thread = thread::Builder::new().name("run-limit".to_owned()).spawn({
            let (shared, limit) = (Arc::clone(&shared), self.limit);
            move || shared.keep(limit)
        })?;
        Ok(&self.guard.get_or_init(|| Guard { shared, thread: Some(thread) }).shared)
    }
}

impl Shared {
    fn keep(&self, limit: Duration) {
        let mut watched = self.watched.lock();
        while !watched.over {
            match &watched.run {
                Some((until, canceller)) if Instant::now() >= *until => {
                    canceller.cancel();
                    watched.run = None;
                    watched.late = true;
                }
                Some((until, _)) => {
                    let until = *until;
                    self.changed.wait_until(&mut watched, until);
                }
                // A run that begins meanwhile is over its time no earlier than this.
                None => {
                    self.changed.wait_for(&mut watched, limit);
                }
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.watched.lock().over = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
