//! Requests that were in flight when a worker died, remembered across its death.
//!
//! One crash may be anybody's. A request that is there at two is refused for an hour: else its client, which asks again, takes
//! down one worker after the other. Requests are known by a hash of model and inputs; who was there once is a suspect, and is
//! run by itself: either it takes a worker down again, and was the one, or it survives, and nothing is held against it any more.
//! So no innocent one is there at a second crash, however often its client asks the same.

use serde::{Deserialize, Serialize};

/// Crashes at which a request is refused.
pub const CRASHES_MAX: u32 = 2;
/// For so long, milliseconds; a first crash is forgotten after the same time.
pub const REFUSED_MS: u64 = 3_600_000;
/// Requests that are remembered at most.
pub const REMEMBERED_MAX: usize = 1_024;

/// What is known of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing.
    Clear,
    /// It was there at one crash.
    Suspect,
    /// It was there at two: not to be run.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    hash: u64,
    crashes: u32,
    last_ms: u64,
}

/// A request that is remembered, as one process tells another, whose clock begins elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Which.
    pub hash: u64,
    /// Crashes at which it was there.
    pub crashes: u32,
    /// Milliseconds until it is forgotten.
    pub left_ms: u64,
}

/// The requests that are remembered. Times in milliseconds of a clock that outlives workers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Poison {
    /// By the time of their last crash, the latest at the end.
    records: Vec<Record>,
}

impl Poison {
    /// A worker died at `now_ms` while requests with these hashes were in flight. One hash counts once, however often it was
    /// there. Where too many are remembered, those go whose last crash is longest ago.
    pub fn crashed(&mut self, in_flight: &[u64], now_ms: u64) {
        self.records.retain(|record| !is_over(record, now_ms));
        let mut hashes = in_flight.to_vec();
        hashes.sort_unstable();
        hashes.dedup();
        for hash in hashes {
            let before = self.records.iter().position(|record| record.hash == hash);
            let crashes = before.map_or(0, |place| self.records.remove(place).crashes);
            self.records.push(Record { hash, crashes: crashes.saturating_add(1), last_ms: now_ms });
        }
        let surplus = self.records.len().saturating_sub(REMEMBERED_MAX);
        self.records.drain(..surplus);
    }

    /// A suspect was run by itself, and nobody died: it is none any more. Gives whether it was one.
    pub fn survived(&mut self, hash: u64) -> bool {
        let before = self.records.len();
        self.records.retain(|record| record.hash != hash || record.crashes >= CRASHES_MAX);
        self.records.len() < before
    }

    /// Crashes at which the request with this hash was there, as remembered at `now_ms`.
    pub fn crashes(&self, hash: u64, now_ms: u64) -> u32 {
        let known = self.records.iter().find(|record| record.hash == hash);
        known.filter(|record| !is_over(record, now_ms)).map_or(0, |record| record.crashes)
    }

    /// All that is remembered at `now_ms`, for a process with another clock.
    pub fn remembered(&self, now_ms: u64) -> Vec<Remembered> {
        let told = |record: &Record| Remembered {
            hash: record.hash,
            crashes: record.crashes,
            left_ms: REFUSED_MS - now_ms.saturating_sub(record.last_ms),
        };
        self.records.iter().filter(|record| !is_over(record, now_ms)).map(told).collect()
    }

    /// What another process remembers, on a clock that stands at [`REFUSED_MS`] now: it is forgotten at the same moment.
    pub fn of(remembered: &[Remembered]) -> Self {
        let mut records: Vec<Record> = remembered
            .iter()
            .map(|told| Record {
                hash: told.hash,
                crashes: told.crashes,
                last_ms: told.left_ms.min(REFUSED_MS),
            })
            .collect();
        records.sort_by_key(|record| record.last_ms);
        Poison { records }
    }

    /// Suspects, and those that are refused, at `now_ms`.
    pub fn counts(&self, now_ms: u64) -> (usize, usize) {
        let there = || self.records.iter().filter(|record| !is_over(record, now_ms));
        let refused = there().filter(|record| record.crashes >= CRASHES_MAX).count();
        (there().count() - refused, refused)
    }

    /// What is known of the request with this hash at `now_ms`.
    pub fn standing(&self, hash: u64, now_ms: u64) -> Standing {
        match self.crashes(hash, now_ms) {
            0 => Standing::Clear,
            CRASHES_MAX.. => Standing::Refused,
            _ => Standing::Suspect,
        }
    }

    /// Whether nothing is remembered, so that nobody needs to be hashed.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.records.len()
    }
}

fn is_over(record: &Record, now_ms: u64) -> bool {
    now_ms.saturating_sub(record.last_ms) >= REFUSED_MS
}

#[cfg(test)]
mod tests;
