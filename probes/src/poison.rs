//! Requests that were in flight when a worker died, remembered across its death.
//!
//! One crash may be anybody's. A request that is there at two is refused for an hour: else its client, which asks again, takes
//! down one worker after the other. Requests are known by a hash of model and inputs; who was there once is a suspect, and is
//! better run by itself, so that no innocent one is there at its second crash.

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

    /// What is known of the request with this hash at `now_ms`.
    pub fn standing(&self, hash: u64, now_ms: u64) -> Standing {
        let known = self.records.iter().find(|record| record.hash == hash);
        match known.filter(|record| !is_over(record, now_ms)) {
            None => Standing::Clear,
            Some(record) if record.crashes >= CRASHES_MAX => Standing::Refused,
            Some(_) => Standing::Suspect,
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
