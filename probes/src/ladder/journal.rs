//! Ends of the whole process, remembered across them, so that starting again in vain has an end.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Decision, Reason, Rung};

/// So many ends for the same reason …
const PARK_AT: usize = 3;
/// … within this time, milliseconds, and the next start does not try again.
const PARK_WINDOW_MS: u64 = 1_800_000;
/// Ends that are remembered.
const ENTRIES_MAX: usize = 16;

/// One end of the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FatalEntry {
    /// When, milliseconds of Unix time: no other clock outlives a process.
    pub at_ms: u64,
    /// Why.
    pub reason: Reason,
    /// What was served and how, as a digest: a change of it is a new try.
    pub fingerprint: String,
}

/// The ends that are remembered, to be kept in a file that outlives the container's process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FatalJournal {
    entries: VecDeque<FatalEntry>,
}

impl FatalJournal {
    /// The process is about to end. The oldest entry makes way where there are too many.
    pub fn record(&mut self, entry: FatalEntry) {
        while self.entries.len() >= ENTRIES_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }

    /// What a start at `now_ms`, Unix time, is to do: `None` to serve, else to stay up parked. An entry from the future, which a
    /// clock that was set back makes, counts as one of this moment.
    pub fn judge(&self, now_ms: u64, fingerprint: &str) -> Option<Decision> {
        let counts = |reason: Reason| {
            let alike = |entry: &&FatalEntry| {
                entry.reason == reason
                    && entry.fingerprint == fingerprint
                    && now_ms.saturating_sub(entry.at_ms) < PARK_WINDOW_MS
            };
            self.entries.iter().filter(alike).count() >= PARK_AT
        };
        let newest_first = self.entries.iter().rev().map(|entry| entry.reason);
        let reason = newest_first.into_iter().find(|reason| counts(*reason))?;
        Some(Decision { rung: Rung::Park, reason, delay_ms: 0 })
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
