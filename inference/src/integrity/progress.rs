//! How far a read has come, for whoever watches from another thread.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

/// What a read is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadPhase {
    /// Not begun.
    Waiting,
    /// Lists files, reads the manifest, asks for sizes.
    Listing,
    /// Reads and hashes.
    Reading,
    /// Walks the model file for external data and limits.
    Inspecting,
    /// Ended well. After a failure the phase stays where the failure was.
    Done,
}

impl ReadPhase {
    /// A word for logs and `/status`.
    pub const fn name(self) -> &'static str {
        match self {
            ReadPhase::Waiting => "waiting",
            ReadPhase::Listing => "listing",
            ReadPhase::Reading => "reading",
            ReadPhase::Inspecting => "inspecting",
            ReadPhase::Done => "done",
        }
    }
}

/// Progress of one [`read_version`](super::read_version), shared by reference; reading it never waits.
#[derive(Debug, Default)]
pub struct Progress {
    phase: AtomicU8,
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
    stopped: AtomicBool,
}

impl Progress {
    /// What is being done now.
    pub fn phase(&self) -> ReadPhase {
        match self.phase.load(Relaxed) {
            0 => ReadPhase::Waiting,
            1 => ReadPhase::Listing,
            2 => ReadPhase::Reading,
            3 => ReadPhase::Inspecting,
            _ => ReadPhase::Done,
        }
    }

    /// Bytes read and hashed so far.
    pub fn bytes_done(&self) -> u64 {
        self.bytes_done.load(Relaxed)
    }

    /// Bytes to read, as far as they are known: without a manifest, external data joins once the model was read.
    pub fn bytes_total(&self) -> u64 {
        self.bytes_total.load(Relaxed)
    }

    /// Tells the read to end: it does after the chunk that it is at.
    pub fn stop(&self) {
        self.stopped.store(true, Relaxed);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }

    pub(super) fn enter(&self, phase: ReadPhase) {
        let code = match phase {
            ReadPhase::Waiting => 0,
            ReadPhase::Listing => 1,
            ReadPhase::Reading => 2,
            ReadPhase::Inspecting => 3,
            ReadPhase::Done => 4,
        };
        self.phase.store(code, Relaxed);
    }

    pub(super) fn expect_bytes(&self, bytes: u64) {
        self.bytes_total.fetch_add(bytes, Relaxed);
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Relaxed);
    }
}
