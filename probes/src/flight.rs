//! What a worker is at, in memory that outlives it: which requests are in a run, so that they are known when it dies of one.
//!
//! The memory is a file without a name, made by the supervisor for each worker. Its head says what the supervisor remembers
//! ([`crate::poison`]); behind that each lane has a block, in which it writes its requests before a run, and of which it says that
//! there are none after it. Here is what the bytes mean; who writes and reads them is elsewhere. The two are the same program, and
//! yet nothing that is read is believed beyond its bounds: whoever wrote it may have died of writing anywhere.
//!
//! ```text
//! head, 20 KiB     magic, seed of the hashes, number of records; records: hash, crashes, milliseconds until it is forgotten
//! 256 blocks,      length of the model's name, the name (47 bytes at most), version,
//! 4 KiB each       flags (bit 0: it hangs), number of requests, their hashes (504 at most)
//! ```

use serde::{Deserialize, Serialize};

use crate::poison::{Poison, Remembered};
use crate::respawn::End;

/// Lanes that have a block. Those beyond are not recorded.
pub const LANES_MAX: usize = 256;
/// Requests of one run that are recorded. Those beyond are counted.
pub const REQUESTS_MAX: usize = 504;
/// Bytes of the whole.
pub const BYTES: usize = HEAD_BYTES + LANES_MAX * BLOCK_BYTES;
/// Bytes of the head.
pub const HEAD_BYTES: usize = 5 * 4096;

/// A page, so that no two lanes share one.
const BLOCK_BYTES: usize = 4096;
/// "balmfly" and the version of the layout.
const MAGIC: u64 = 0x6261_6c6d_666c_7901;
const NAME_BYTES: usize = 47;
const RUN_AT: usize = 1 + NAME_BYTES + 8;
const HASHES_AT: usize = RUN_AT + 8;
const HANGS: u32 = 1;

// A block holds what it is meant to, and the head, too.
const _: () = assert!(HASHES_AT + REQUESTS_MAX * 8 == BLOCK_BYTES);
const _: () = assert!(24 + crate::poison::REMEMBERED_MAX * 16 <= HEAD_BYTES);

/// What a worker is told at its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Hashes of requests begin with it: the same for all workers of a supervisor, and nobody else's.
    pub seed: u64,
    /// The requests that were there at crashes.
    pub remembered: Vec<Remembered>,
}

impl Head {
    /// As bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24 + self.remembered.len() * 16);
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend(self.seed.to_le_bytes());
        bytes.extend((self.remembered.len() as u64).to_le_bytes());
        for Remembered { hash, crashes, left_ms } in &self.remembered {
            bytes.extend(hash.to_le_bytes());
            bytes.extend(crashes.to_le_bytes());
            bytes.extend(u32::try_from(*left_ms).unwrap_or(u32::MAX).to_le_bytes());
        }
        bytes
    }

    /// Out of the first [`HEAD_BYTES`]; `None` when they are no head.
    pub fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let mut words = bytes.chunks_exact(8).map(|word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            u64::from_le_bytes(bytes)
        });
        let (magic, seed, count) = (words.next()?, words.next()?, words.next()?);
        if magic != MAGIC {
            return None;
        }
        let count =
            usize::try_from(count).ok().filter(|count| *count <= crate::poison::REMEMBERED_MAX)?;
        let remembered = (0..count)
            .map(|_| {
                let (hash, rest) = (words.next()?, words.next()?);
                let crashes = u32::try_from(rest & u64::from(u32::MAX)).ok()?;
                Some(Remembered { hash, crashes, left_ms: rest >> 32 })
            })
            .collect::<Option<Vec<_>>>()?;
        Some(Head { seed, remembered })
    }
}

/// Where the block of a lane begins; `None` beyond the last.
pub fn block_at(lane: usize) -> Option<u64> {
    let at = (lane < LANES_MAX).then(|| HEAD_BYTES + lane * BLOCK_BYTES)?;
    u64::try_from(at).ok()
}

/// Where in a block its run begins.
pub fn run_at(block_at: u64) -> u64 {
    block_at + RUN_AT as u64
}

/// What a lane of this model writes at the beginning of its block when it comes. No request is in a run.
pub fn lane_begins(model: &str, version: u64) -> Vec<u8> {
    let name = clipped(model);
    let mut bytes = vec![0; HASHES_AT];
    if let Some(length) = bytes.first_mut() {
        *length = u8::try_from(name.len()).unwrap_or_default();
    }
    if let Some(place) = bytes.get_mut(1..=name.len()) {
        place.copy_from_slice(name.as_bytes());
    }
    if let Some(place) = bytes.get_mut(1 + NAME_BYTES..RUN_AT) {
        place.copy_from_slice(&version.to_le_bytes());
    }
    bytes
}

/// As much of a name as there is room for.
fn clipped(name: &str) -> &str {
    let end = (0..=NAME_BYTES.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
    name.get(..end.unwrap_or(0)).unwrap_or_default()
}

/// What a lane writes at its run before it runs the requests with these hashes.
pub fn run_begins(hashes: impl ExactSizeIterator<Item = u64>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + 8 * hashes.len().min(REQUESTS_MAX));
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(u32::try_from(hashes.len()).unwrap_or(u32::MAX).to_le_bytes());
    for hash in hashes.take(REQUESTS_MAX) {
        bytes.extend(hash.to_le_bytes());
    }
    bytes
}

/// What it writes there when the run has returned.
pub const RUN_ENDED: [u8; 8] = [0; 8];

/// What is written there when the run is known to hang.
pub const RUN_HANGS: [u8; 4] = HANGS.to_le_bytes();

/// A run that was in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Of this model.
    pub model: String,
    /// Of this version.
    pub version: u64,
    /// Whether it was found to hang.
    pub hangs: bool,
    /// How many requests were in it.
    pub requests: usize,
    /// Hashes of those that were recorded.
    pub hashes: Vec<u64>,
}

/// The runs that were in progress, out of all [`BYTES`] or as many as there are.
pub fn in_flight(bytes: &[u8]) -> Vec<InFlight> {
    bytes
        .get(HEAD_BYTES..)
        .unwrap_or_default()
        .chunks_exact(BLOCK_BYTES)
        .filter_map(flight)
        .collect()
}

fn flight(block: &[u8]) -> Option<InFlight> {
    let (length, rest) = block.split_first()?;
    let (name, rest) = rest.split_at_checked(NAME_BYTES)?;
    let (version, rest) = rest.split_first_chunk::<8>()?;
    let (flags, rest) = rest.split_first_chunk::<4>()?;
    let (requests, hashes) = rest.split_first_chunk::<4>()?;
    let requests = usize::try_from(u32::from_le_bytes(*requests)).ok()?;
    let (hashes, _rest) = hashes.as_chunks::<8>();
    let name = name.get(..usize::from(*length)).unwrap_or(name);
    (requests > 0).then(|| InFlight {
        model: String::from_utf8_lossy(name).into_owned(),
        version: u64::from_le_bytes(*version),
        hangs: u32::from_le_bytes(*flags) & HANGS != 0,
        requests,
        hashes: hashes.iter().take(requests).map(|hash| u64::from_le_bytes(*hash)).collect(),
    })
}

/// Whether a process that ended so may have died of what it ran: by a signal that the kernel sends for what a program did
/// (SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS), or by SIGKILL, which is the kernel's for memory.
pub const fn is_crash(end: End) -> bool {
    matches!(end, End::Signal(4 | 5 | 6 | 7 | 8 | 9 | 11 | 31))
}

/// The runs that the end of a worker is held against. All of them where it crashed. Where it was `ours` to kill it, because it
/// hung or was told to end, only those that were found to hang: the others were there by chance.
pub fn blamed(flights: Vec<InFlight>, end: End, ours: bool) -> Vec<InFlight> {
    flights.into_iter().filter(|flight| if ours { flight.hangs } else { is_crash(end) }).collect()
}

/// A request that was there when a worker died, as people are told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Involved {
    /// Of this model.
    pub model: String,
    /// Of this version.
    pub version: u64,
    /// Its hash: sixteen hexadecimal digits.
    pub hash: String,
    /// Crashes at which it was there so far.
    pub crashes: u32,
}

/// The requests of these runs as `poison` knows them at `now_ms`, those with the most crashes first, `max` at most.
pub fn involved(flights: &[InFlight], poison: &Poison, now_ms: u64, max: usize) -> Vec<Involved> {
    let mut all: Vec<Involved> = flights
        .iter()
        .flat_map(|flight| flight.hashes.iter().map(move |hash| (flight, *hash)))
        .map(|(flight, hash)| Involved {
            model: flight.model.clone(),
            version: flight.version,
            hash: format!("{hash:016x}"),
            crashes: poison.crashes(hash, now_ms),
        })
        .collect();
    all.sort_by(|a, b| b.crashes.cmp(&a.crashes).then_with(|| a.hash.cmp(&b.hash)));
    all.dedup_by(|a, b| a.hash == b.hash);
    all.truncate(max);
    all
}

#[cfg(test)]
mod tests;
