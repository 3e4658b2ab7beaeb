//! What a fault does once it was claimed.

use super::fault::rows;
use super::faults::Faults;
use super::{STICKY, TOLD_TO_FAIL};
use crate::datatype::Datatype;
use crate::engine::RunError;
use crate::tensor::{Tensor, TensorData};
use bytes::Bytes;
use rustix::process::{Signal, getpid, kill_process};
use serde::Deserialize;
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

/// The kernel may take a moment to deliver a signal; the run is not to end before.
const DELIVERY: Duration = Duration::from_millis(20);
/// How much is computed between two looks at the clock.
const SPIN_STEP: u64 = 10_000;

/// Signals that a process can send itself here, by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[allow(clippy::upper_case_acronyms, reason = "the names that everybody knows them by")]
pub(super) enum Fatal {
    SIGSEGV,
    SIGABRT,
    SIGKILL,
    SIGSTOP,
}

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Act {
    /// Waits, whoever cancels.
    Sleep(Duration),
    /// Waits so long for each row of the run, whoever cancels.
    SleepPerRow(Duration),
    /// Computes, whoever cancels.
    Spin(Duration),
    /// Fails.
    Error,
    /// Fails as a GPU does that needs another process.
    Sticky,
    /// Answers something else.
    Wrong,
    /// Keeps so many bytes for ever.
    Leak(usize),
    /// Sends this process a signal.
    Signal(Fatal),
    /// Panics.
    Panic,
    /// Ends this process with a code.
    End(u8),
}

impl Act {
    /// Does what precedes a run.
    ///
    /// # Errors
    /// The one that was ordered.
    pub(super) fn before_run(&self, faults: &Faults, inputs: &[Tensor]) -> Result<(), RunError> {
        match self {
            Act::SleepPerRow(time) => {
                let rows = inputs.iter().map(rows).max().unwrap_or(1);
                thread::sleep(time.saturating_mul(u32::try_from(rows).unwrap_or(u32::MAX)));
            }
            Act::Sleep(time) => thread::sleep(*time),
            Act::Spin(time) => spin(*time),
            Act::Error => return Err(RunError::Runtime(TOLD_TO_FAIL.to_owned())),
            Act::Sticky => return Err(RunError::Runtime(STICKY.to_owned())),
            Act::Leak(bytes) => faults.keep(*bytes),
            Act::Signal(signal) => send(*signal),
            Act::Panic => panics(),
            // The one is what happens to the answer, the other no run.
            Act::Wrong | Act::End(_) => {}
        }
        Ok(())
    }

    /// Does what precedes the building of a session.
    pub(super) fn before_build(&self, faults: &Faults) {
        // A build has no error of ours to tell.
        let _ = self.before_run(faults, &[]);
    }
}

#[expect(clippy::panic, reason = "it is what was ordered")]
fn panics() {
    panic!("{TOLD_TO_FAIL}");
}

fn spin(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        black_box((0..black_box(SPIN_STEP)).fold(0u64, |sum, term| sum ^ term));
    }
}

fn send(signal: Fatal) {
    let signal = match signal {
        Fatal::SIGSEGV => Signal::SEGV,
        Fatal::SIGABRT => Signal::ABORT,
        Fatal::SIGKILL => Signal::KILL,
        Fatal::SIGSTOP => Signal::STOP,
    };
    // Rust's own handler for stack overflows swallows the first SIGSEGV that is sent; a real one comes again.
    let sent = if signal == Signal::SEGV { 2 } else { 1 };
    for _ in 0..sent {
        if let Err(error) = kill_process(getpid(), signal) {
            tracing::error!(%error, "rehearsal: signal not sent");
        }
        thread::sleep(DELIVERY);
    }
}

/// The same tensor with other elements: each is one more than it was.
pub(super) fn changed(tensor: &Tensor) -> Tensor {
    let (datatype, shape) = (tensor.datatype(), tensor.shape().to_vec());
    let other = match (tensor.data(), datatype.element_size()) {
        (TensorData::Raw(raw), Some(size)) => {
            let elements = raw.chunks_exact(size).flat_map(|element| one_more(datatype, element));
            Tensor::raw(datatype, shape, elements.collect::<Vec<u8>>().into())
        }
        (TensorData::Strings(texts), _) => {
            let longer = |text: &Bytes| [text.as_ref(), b"!"].concat().into();
            Tensor::strings(shape, texts.iter().map(longer).collect())
        }
        (TensorData::Raw(_), None) => return tensor.clone(),
    };
    // As many elements of the same size as before: there is nothing that could not agree.
    other.unwrap_or_else(|_| tensor.clone())
}

fn one_more(datatype: Datatype, element: &[u8]) -> Vec<u8> {
    let mut bytes = element.to_vec();
    match (datatype, element) {
        (Datatype::Fp32, &[a, b, c, d]) => {
            bytes = (f32::from_le_bytes([a, b, c, d]) + 1.0).to_le_bytes().to_vec();
        }
        (Datatype::Fp64, element) => {
            if let Ok(eight) = element.try_into() {
                bytes = (f64::from_le_bytes(eight) + 1.0).to_le_bytes().to_vec();
            }
        }
        (Datatype::Fp16, &[a, b]) => {
            let more = half::f16::from_le_bytes([a, b]) + half::f16::ONE;
            bytes = more.to_le_bytes().to_vec();
        }
        (Datatype::Bf16, &[a, b]) => {
            let more = half::bf16::from_le_bytes([a, b]) + half::bf16::ONE;
            bytes = more.to_le_bytes().to_vec();
        }
        (Datatype::Bool, _) => bytes[0] ^= 1,
        _ => bytes[0] = bytes[0].wrapping_add(1),
    }
    bytes
}
