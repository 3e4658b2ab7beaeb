//! Hung or only busy? Judged in time that the watchdog itself has lived through.
//!
//! The clock of the watchdog is its own ticks, not the wall: a process that was stopped, throttled or moved did not tick
//! either, so the pause counts for nothing and no lane is called hung for it ([`TickClock`]).
//!
//! A run past its deadline is told to end. Only one that has not ended so much later that a run of its kind would have come
//! to a point where it looks is hung ([`judge_lane`]); the time that its thread spent on a processor tells spinning from
//! blocked. What no lane shows by itself is judged for all of them ([`Stall`]), for the event loop ([`lag`]), and by asking
//! where nothing happens at all ([`Canary`]).

use std::time::Duration;

use serde::{Deserialize, Serialize};

mod canary;
mod load;
mod stall;

pub use canary::Canary;
pub use load::{
    HangingLoads, LoadVerdict, judge_load, load_limit_ms, loads_again, makes_way_after_ms, may_load,
};
pub use stall::Stall;

/// One tick of the watchdog.
pub const TICK: Duration = Duration::from_millis(100);
/// A tick that took longer counts as this much: the rest is time in which the watchdog did not run.
const TICK_MAX: Duration = Duration::from_millis(200);

/// The least time that a run has to end after it was told to, milliseconds.
pub const GRACE_MIN_MS: u64 = 2_000;
/// How many of the longest usual runs it has.
const GRACE_RUNS: u64 = 4;

/// The least time that a session has to be built again, milliseconds.
const BUILD_MIN_MS: u64 = 10_000;
/// How many of its first loads it has.
const BUILD_LOADS: u64 = 3;

/// A thread that was on a processor for more than this part of the time spins, per mille.
const SPINNING_PERMILLE: u128 = 500;
/// A thread that was on a processor for less than this part of the time is blocked, per mille.
const BLOCKED_PERMILLE: u128 = 10;

/// An event loop that answers later than this is late, milliseconds.
pub const LAG_WARN_MS: u64 = 100;
/// An event loop that has not answered for longer than this is wedged, milliseconds.
pub const LAG_WEDGED_MS: u64 = 10_000;

/// The clock of the watchdog: how long it has run, by its own ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TickClock {
    lived: Duration,
}

impl TickClock {
    /// One more tick, which took `measured` on the wall. A tick that took longer than two counts as two.
    ///
    /// Gives the time since the clock was made, milliseconds.
    pub fn tick(&mut self, measured: Duration) -> u64 {
        self.lived = self.lived.saturating_add(measured.min(TICK_MAX));
        self.now_ms()
    }

    /// The time since the clock was made, milliseconds of ticks.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.lived.as_millis()).unwrap_or(u64::MAX)
    }
}

/// How long a run may go on after it was told to end: time for four of the longest usual runs, and no less than two seconds,
/// milliseconds. ONNX Runtime looks between nodes, so the longest node is what has to be waited for.
pub fn grace_ms(run_p99_ms: u64) -> u64 {
    run_p99_ms.saturating_mul(GRACE_RUNS).max(GRACE_MIN_MS)
}

/// How long a session that comes in place of a lost one may take to be built, where its first load took `load_ms`: three times
/// that, and no less than ten seconds; milliseconds.
pub fn build_limit_ms(load_ms: u64) -> u64 {
    load_ms.saturating_mul(BUILD_LOADS).max(BUILD_MIN_MS)
}

/// A run in progress, as the watchdog sees it. Times in milliseconds of a [`TickClock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunView {
    /// When the last of those who wait for it wants its answer.
    pub deadline_ms: u64,
    /// Since when it is known to have been told to end.
    pub cancelled_since_ms: Option<u64>,
    /// Time that its thread was on a processor since then. `None` where that cannot be known.
    pub cpu_since_cancel_ms: Option<u64>,
}

/// What a hung thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HungKind {
    /// It computes without an end.
    Spinning,
    /// It waits for something that does not come.
    Blocked,
    /// Something of both, or nobody can tell.
    Between,
}

impl HungKind {
    /// Name in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            HungKind::Spinning => "spinning",
            HungKind::Blocked => "blocked",
            HungKind::Between => "between",
        }
    }

    /// What a thread does that was on a processor for `cpu_ms` of `elapsed_ms`.
    pub fn of(cpu_ms: Option<u64>, elapsed_ms: u64) -> Self {
        let Some(cpu_ms) = cpu_ms else { return HungKind::Between };
        let (part, whole) = (u128::from(cpu_ms) * 1_000, u128::from(elapsed_ms));
        if part > whole * SPINNING_PERMILLE {
            HungKind::Spinning
        } else if part < whole * BLOCKED_PERMILLE {
            HungKind::Blocked
        } else {
            HungKind::Between
        }
    }
}

/// What is to be done about a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneVerdict {
    /// Nothing: it is idle, or busy as it may be.
    Nothing,
    /// Its run is past its deadline and nobody has told it to end.
    Cancel,
    /// It was told to end and did not: thread and session are lost.
    Hung(HungKind),
}

/// Judges a lane by the run that it has in progress, if any, at `now_ms`. `grace_ms` is that of [`grace_ms`].
pub fn judge_lane(run: Option<&RunView>, now_ms: u64, grace_ms: u64) -> LaneVerdict {
    let Some(run) = run else { return LaneVerdict::Nothing };
    match run.cancelled_since_ms {
        Some(since_ms) => {
            let elapsed_ms = now_ms.saturating_sub(since_ms);
            if elapsed_ms >= grace_ms {
                LaneVerdict::Hung(HungKind::of(run.cpu_since_cancel_ms, elapsed_ms))
            } else {
                LaneVerdict::Nothing
            }
        }
        None if now_ms >= run.deadline_ms => LaneVerdict::Cancel,
        None => LaneVerdict::Nothing,
    }
}

/// How an event loop keeps up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lag {
    /// It answers in time.
    Fine,
    /// It answers late: something computes or blocks on it.
    Late,
    /// It does not answer any more.
    Wedged,
}

/// Judges an event loop that took `lag_ms`, milliseconds of a [`TickClock`], to answer, or has not answered since.
pub fn lag(lag_ms: u64) -> Lag {
    if lag_ms > LAG_WEDGED_MS {
        Lag::Wedged
    } else if lag_ms > LAG_WARN_MS {
        Lag::Late
    } else {
        Lag::Fine
    }
}

#[cfg(test)]
mod tests;
