//! A load that does not end: when it is told to, when it is given up, and whether it is tried again.
//!
//! A first load has no usual time, so its limit is set by people, generously: what is slow is not to be called hung. A load that
//! is told to end does so where it next looks (a read between two chunks, ONNX Runtime between two of its passes). One that
//! looks nowhere keeps its thread and what it has read; that is bounded by refusing further loads.

use super::{GRACE_MIN_MS, build_limit_ms};

/// How often a version is loaded before it has failed, where a load does not end.
const LOAD_TRIES: u32 = 2;
/// Loads of one version that may hang at once.
const HANGING_OF_VERSION_MAX: u32 = 2;
/// Loads of all versions that may hang at once.
const HANGING_MAX: u32 = 16;
/// Others need not wait behind a load that takes longer than this, milliseconds, or than [`MAKES_WAY_PART`] of its limit.
const MAKES_WAY_MS: u64 = 60_000;
/// See [`MAKES_WAY_MS`].
const MAKES_WAY_PART: u64 = 10;

/// Loads that were told to end, did not, and were left to themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HangingLoads {
    /// Those of the version in question.
    pub of_version: u32,
    /// Those of all versions.
    pub of_all: u32,
}

/// How long a load may take, milliseconds: three times what it took before, at least ten seconds, where this version was loaded
/// before; never more than `configured_ms`.
pub fn load_limit_ms(before_ms: Option<u64>, configured_ms: u64) -> u64 {
    before_ms.map_or(configured_ms, |before_ms| build_limit_ms(before_ms).min(configured_ms))
}

/// After how long a load of this limit holds up no other that waits for its place, milliseconds.
pub fn makes_way_after_ms(limit_ms: u64) -> u64 {
    (limit_ms / MAKES_WAY_PART).min(MAKES_WAY_MS)
}

/// What is to be done about a load in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadVerdict {
    /// Nothing.
    Nothing,
    /// Its time is over: tell it to end.
    Cancel,
    /// It was told to end and did not: leave it to itself.
    Hung,
}

/// Judges a load that began `age_ms` ago and was told to end `cancelled_ms` ago, if it was. All in milliseconds of a
/// [`TickClock`](super::TickClock).
pub fn judge_load(age_ms: u64, limit_ms: u64, cancelled_ms: Option<u64>) -> LoadVerdict {
    match cancelled_ms {
        Some(since_ms) if since_ms >= GRACE_MIN_MS => LoadVerdict::Hung,
        Some(_) => LoadVerdict::Nothing,
        None if age_ms >= limit_ms => LoadVerdict::Cancel,
        None => LoadVerdict::Nothing,
    }
}

/// Whether a version may be loaded while these hang.
pub fn may_load(hanging: HangingLoads) -> bool {
    hanging.of_version < HANGING_OF_VERSION_MAX && hanging.of_all < HANGING_MAX
}

/// Whether a version is loaded once more after so many loads that did not end in their time.
pub fn loads_again(tries: u32, hanging: HangingLoads) -> bool {
    tries < LOAD_TRIES && may_load(hanging)
}
