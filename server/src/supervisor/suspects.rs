//! Requests that were in a run when a worker died: remembered here, because the supervisor is who outlives them.
//!
//! For each worker there is memory without a name (`memfd_create(2)`). Its head is written before the worker starts, and tells it
//! what is remembered; into the rest the worker writes what it runs (`balm_probes::flight`). It is read when the worker has died,
//! and goes with it.

use balm_probes::End;
use balm_probes::flight::{self, BYTES, Head, Involved};
use balm_probes::poison::Poison;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Instant;

/// Requests that are named of one crash, those with the most crashes first.
const NAMED_MAX: usize = 4;

/// What is remembered.
pub(crate) struct Suspects {
    seed: u64,
    poison: Poison,
    born: Instant,
}

/// What a death has added to it.
#[derive(Debug, Default)]
pub(super) struct Death {
    /// Requests that it is held against.
    pub(super) requests: usize,
    /// Some of them.
    pub(super) involved: Vec<Involved>,
}

impl Suspects {
    /// Nothing is remembered.
    pub(crate) fn new() -> Self {
        // Whoever knew what hashes begin with could have another's request taken for one of his own.
        let seed = RandomState::new().hash_one("seed");
        Suspects { seed, poison: Poison::default(), born: Instant::now() }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Memory for a worker, with what is remembered.
    ///
    /// # Errors
    /// When the system gives none.
    pub(super) fn memory(&self) -> io::Result<File> {
        let memory = File::from(memfd_create("balm-flight", MemfdFlags::CLOEXEC)?);
        memory.set_len(u64::try_from(BYTES).unwrap_or(u64::MAX))?;
        let head = Head { seed: self.seed, remembered: self.poison.remembered(self.now_ms()) };
        memory.write_all_at(&head.to_bytes(), 0)?;
        Ok(memory)
    }

    /// A worker has died, `ours` where this process has killed it or told it to end: remembers what it died of.
    pub(super) fn died(&mut self, memory: &File, end: End, ours: bool) -> Death {
        let mut bytes = vec![0; BYTES];
        if let Err(error) = memory.read_exact_at(&mut bytes, 0) {
            tracing::error!(%error, "what the worker was at is not known");
            return Death::default();
        }
        let flights = flight::blamed(flight::in_flight(&bytes), end, ours);
        if flights.is_empty() {
            return Death::default();
        }
        let hashes: Vec<u64> = flights.iter().flat_map(|flight| flight.hashes.clone()).collect();
        let now_ms = self.now_ms();
        self.poison.crashed(&hashes, now_ms);
        Death {
            requests: flights.iter().map(|flight| flight.requests).sum(),
            involved: flight::involved(&flights, &self.poison, now_ms, NAMED_MAX),
        }
    }

    /// A suspect was run by itself, and nobody died.
    pub(super) fn survived(&mut self, hash: u64) {
        if self.poison.survived(hash) {
            tracing::info!(hash = format!("{hash:016x}"), "ran by itself: no suspect any more");
        }
    }

    /// Suspects, and requests that are refused.
    pub(super) fn counts(&self) -> (usize, usize) {
        self.poison.counts(self.now_ms())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use balm_probes::flight::{HEAD_BYTES, block_at, lane_begins, run_at, run_begins};

    #[test]
    fn what_one_worker_died_of_the_next_one_knows() {
        let mut suspects = Suspects::new();
        let crash = End::Signal(11);
        for (requests, crashes) in [(vec![7, 8, 9], 1), (vec![7], 2)] {
            let memory = suspects.memory().unwrap();
            // The worker's end is another file of the same memory, and is gone before it is read.
            let worker = memory.try_clone().unwrap();
            let at = block_at(3).unwrap();
            worker.write_all_at(&lane_begins("iris", 1), at).unwrap();
            worker.write_all_at(&run_begins(requests.iter().copied()), run_at(at)).unwrap();
            drop(worker);
            let death = suspects.died(&memory, crash, false);
            assert_eq!(death.requests, requests.len());
            let first = death.involved.first().unwrap();
            assert_eq!((first.model.as_str(), first.crashes), ("iris", crashes));
            assert_eq!(first.hash, format!("{:016x}", 7));
        }
        suspects.survived(8);
        assert_eq!(suspects.counts(), (1, 1));
        let memory = suspects.memory().unwrap();
        let mut head = vec![0; HEAD_BYTES];
        memory.read_exact_at(&mut head, 0).unwrap();
        let head = Head::of_bytes(&head).unwrap();
        let known: Vec<_> = head.remembered.iter().map(|one| (one.hash, one.crashes)).collect();
        assert_eq!((head.seed, known), (suspects.seed, vec![(9, 1), (7, 2)]));
        let nothing = suspects.died(&memory, crash, false);
        assert_eq!((nothing.requests, nothing.involved), (0, vec![]), "nothing was in a run");
    }
}
