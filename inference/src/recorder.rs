//! The flight recorder: which requests are in a run, written where it outlives this process.
//!
//! A run in foreign code may take the process with it, at any moment and without a word. So each lane writes the hashes of its
//! requests before a run, and that there are none after it, into memory that the supervisor holds as well
//! ([`balm_probes::flight`] says where). A write is one system call, some 300 ns, and is whole whatever happens to the process.
//!
//! Requests that were there at a crash are known from the start: those that were there at two are refused, those that were there at
//! one are run by themselves, first of all other suspects, and where that takes no longer than a tenth of a second of all other
//! lanes as well. Whoever survives that is told of, and is a suspect no more.

use crate::tensor::{Tensor, TensorData};
use balm_probes::flight::{self, Head};
use balm_probes::poison::{Poison, REFUSED_MS, Standing};
use isolation::Isolation;
pub(crate) use isolation::Place;
use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use twox_hash::XxHash3_64;

mod isolation;

/// Memory that outlives this process, and what its owner remembers. Cheap to clone.
#[derive(Clone)]
pub struct Recorder(Arc<Inner>);

struct Inner {
    memory: File,
    seed: u64,
    born: Instant,
    known: Mutex<Poison>,
    /// Whether nothing is known, so that nobody has to be looked up.
    knows_nothing: AtomicBool,
    isolation: Arc<Isolation>,
    survived: Box<dyn Fn(u64) + Send + Sync>,
    /// Blocks that no lane has.
    free: Mutex<Vec<usize>>,
    /// Whether a write has failed, which is said once.
    failed: AtomicBool,
}

/// The memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    /// It cannot be read.
    #[error("memory that was handed over cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is another program's.
    #[error("memory that was handed over is not understood")]
    Strange,
}

/// A lane's block. It is given back when the lane ends; one that hangs keeps it.
pub(crate) struct Seat {
    recorder: Arc<Inner>,
    block: usize,
    /// Where it begins.
    at: u64,
    /// Hashes of its requests begin with it.
    seed: u64,
}

/// What the bytes of a model add to the hashes of its requests.
pub(crate) fn identity(digest: &str) -> u64 {
    XxHash3_64::oneshot(digest.as_bytes())
}

impl Recorder {
    /// Takes the memory, and reads what its owner remembers. `survived` is told of each suspect that is none any more; it must not
    /// wait.
    ///
    /// # Errors
    /// [`RecorderError`].
    pub fn open(
        memory: File,
        survived: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<Self, RecorderError> {
        let mut head = vec![0; flight::HEAD_BYTES];
        memory.read_exact_at(&mut head, 0)?;
        let Head { seed, remembered } = Head::of_bytes(&head).ok_or(RecorderError::Strange)?;
        Ok(Recorder(Arc::new(Inner {
            memory,
            seed,
            born: Instant::now(),
            knows_nothing: AtomicBool::new(remembered.is_empty()),
            known: Mutex::new(Poison::of(&remembered)),
            isolation: Arc::default(),
            survived: Box::new(survived),
            free: Mutex::new((0..flight::LANES_MAX).rev().collect()),
            failed: AtomicBool::new(false),
        })))
    }

    /// A block for a lane of this version, whose bytes are known by `identity`. `None` when all are taken.
    pub(crate) fn seat(&self, model: &str, version: u64, identity: u64) -> Option<Seat> {
        let block = self.0.free.lock().pop();
        let Some((block, at)) = block.and_then(|block| Some((block, flight::block_at(block)?)))
        else {
            tracing::warn!(
                model,
                version,
                "more lanes than can be recorded: a crash of this one names no request"
            );
            return None;
        };
        self.0.write(at, &flight::lane_begins(model, version));
        let seed = self.0.seed ^ identity;
        Some(Seat { recorder: Arc::clone(&self.0), block, at, seed })
    }
}

impl Inner {
    fn write(&self, at: u64, bytes: &[u8]) {
        if let Err(error) = self.memory.write_all_at(bytes, at)
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            tracing::error!(%error, "what runs is not recorded");
        }
    }

    /// The clock of what is known: it begins where [`Poison::of`] says.
    fn now_ms(&self) -> u64 {
        let since = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        since.saturating_add(REFUSED_MS)
    }
}

impl Seat {
    /// The hash of a request with these inputs, which [keep the contract](crate::contract) and are therefore in the graph's order.
    pub(crate) fn hash(&self, inputs: &[Tensor]) -> u64 {
        inputs.iter().fold(self.seed, |hash, input| {
            let shape =
                input.shape().iter().fold(hash ^ input.datatype() as u64, |hash, length| {
                    XxHash3_64::oneshot_with_seed(hash, &(*length as u64).to_le_bytes())
                });
            match input.data() {
                TensorData::Raw(bytes) => XxHash3_64::oneshot_with_seed(shape, bytes),
                TensorData::Strings(elements) => elements
                    .iter()
                    .fold(shape, |hash, element| XxHash3_64::oneshot_with_seed(hash, element)),
            }
        })
    }

    /// Whether every request is clear.
    pub(crate) fn knows_nothing(&self) -> bool {
        self.recorder.knows_nothing.load(Ordering::Relaxed)
    }

    /// What is known of the request with this hash.
    pub(crate) fn standing(&self, hash: u64) -> Standing {
        self.recorder.known.lock().standing(hash, self.recorder.now_ms())
    }

    /// For a run of requests that are clear: waits while a suspect runs, but not for long.
    pub(crate) fn beside_others(&self) -> Place {
        self.recorder.isolation.beside_others()
    }

    /// For the run of a suspect: waits for other suspects, until `end` at most, and a little for everybody else. `None` when the
    /// time was over.
    pub(crate) fn alone(&self, end: Instant) -> Option<Place> {
        self.recorder.isolation.alone(end)
    }

    /// A suspect has come back from its run.
    pub(crate) fn survived(&self, hash: u64) {
        let nothing = {
            let mut known = self.recorder.known.lock();
            if !known.survived(hash) {
                return;
            }
            known.is_empty()
        };
        self.recorder.knows_nothing.store(nothing, Ordering::Relaxed);
        (self.recorder.survived)(hash);
    }

    /// A run with these requests begins.
    pub(crate) fn begin(&self, hashes: impl ExactSizeIterator<Item = u64>) {
        self.recorder.write(flight::run_at(self.at), &flight::run_begins(hashes));
    }

    /// The run has returned.
    pub(crate) fn end(&self) {
        self.recorder.write(flight::run_at(self.at), &flight::RUN_ENDED);
    }

    /// The run is known to hang: should this process be ended for it, it is to blame.
    pub(crate) fn hangs(&self) {
        self.recorder.write(flight::run_at(self.at), &flight::RUN_HANGS);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.end();
        self.recorder.free.lock().push(self.block);
    }
}

#[cfg(test)]
mod tests;
