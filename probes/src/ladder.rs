//! The ladder of repairs: trouble becomes one action, the mildest that is still allowed.
//!
//! Each rung has a budget, as supervisors of OTP have: what must be repaired too often is not repaired again but handed to the
//! next rung. So nothing loops for ever, and whoever reads the log sees which rung did not help. All decisions are here; whoever
//! asks has to carry them out.
//!
//! Its last rung is that the worker has to be replaced. What becomes of that, how often, and what comes after, is decided by
//! [`crate::respawn`], in another process or by whoever started this one.

use serde::{Deserialize, Serialize};

use crate::budget::RepairBudget;
use crate::watchdog::HungKind;

mod reason;

pub use reason::Reason;

/// Lanes that may be replaced for a hang within [`LANE_WINDOW_MS`].
pub const LANE_REPAIRS: usize = 2;
/// Milliseconds.
pub const LANE_WINDOW_MS: u64 = 60_000;
/// Loads of a version that answers wrongly, before only another process may help.
pub const LOADS_MAX: u32 = 2;
/// Abandoned lanes that may be alive at once: each keeps a thread and a copy of its model.
pub const ABANDONED_MAX: u32 = 2;
/// Part of the memory limit that abandoned lanes may hold, percent.
pub const ABANDONED_MEMORY_PERCENT: u64 = 30;
/// Falls back to another provider within [`PROVIDER_WINDOW_MS`].
pub const PROVIDER_REPAIRS: usize = 1;
/// Milliseconds.
pub const PROVIDER_WINDOW_MS: u64 = 600_000;

/// The rungs, the mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rung {
    /// L0: turn away what is too much. Admission does so by itself; it is here to be counted.
    Shed,
    /// L1: tell a run, or a load, to end.
    Cancel,
    /// L2: abandon a lane, thread and session, and build another.
    Lane,
    /// L3: go on with another execution provider.
    Provider,
    /// L4: go back to the version that served before.
    Version,
    /// L5 and above: only another process helps.
    Worker,
}

impl Rung {
    /// Every rung, the mildest first.
    pub const ALL: [Rung; 6] =
        [Rung::Shed, Rung::Cancel, Rung::Lane, Rung::Provider, Rung::Version, Rung::Worker];

    /// Name in lower case: the label of metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Rung::Shed => "shed",
            Rung::Cancel => "cancel",
            Rung::Lane => "lane",
            Rung::Provider => "provider",
            Rung::Version => "version",
            Rung::Worker => "worker",
        }
    }

    /// What is done on it, after "then": `the lane was replaced`.
    pub const fn deed(self) -> &'static str {
        match self {
            Rung::Shed => "requests were turned away",
            Rung::Cancel => "it was told to end",
            Rung::Lane => "the lane was replaced",
            Rung::Provider => "another provider took over",
            Rung::Version => "the version before took over",
            Rung::Worker => "the worker has to be replaced",
        }
    }
}

/// The lanes that were abandoned and have not come back, and the one that would join them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abandoned {
    /// Those that are alive, without the one in question.
    pub alive: u32,
    /// What they hold together with the one in question, bytes.
    pub bytes: u64,
    /// The memory that the process may use, bytes. `None` where nobody has set a limit.
    pub limit_bytes: Option<u64>,
}

impl Abandoned {
    /// Whether one more may be abandoned.
    pub fn has_room(&self) -> bool {
        let fits = self.limit_bytes.is_none_or(|limit| {
            u128::from(self.bytes) * 100 <= u128::from(limit) * u128::from(ABANDONED_MEMORY_PERCENT)
        });
        self.alive < ABANDONED_MAX && fits
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A run is past its deadline.
    PastDeadline,
    /// A lane does not end its run although it was told to.
    LaneHung {
        /// What its thread does.
        kind: HungKind,
        /// The lanes that were abandoned before.
        abandoned: Abandoned,
    },
    /// Golden requests are no longer answered as recorded.
    CanaryFailed {
        /// How often the version was loaded anew for it already, and refused.
        loads: u32,
    },
    /// An execution provider fails.
    ProviderFailed {
        /// Whether every later call fails too, so that only another process helps.
        sticky: bool,
    },
    /// A version does harm that the one before did not.
    VersionHarmful,
    /// The session of a lane that is to come is not built although its time is over.
    LaneNotBuilt,
    /// Nothing gets done, in any lane.
    Stalled,
    /// Memory is about to run out, by its slope.
    MemoryLeak,
    /// Memory is nearly used up and stays so.
    MemoryHigh,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// On which rung.
    pub rung: Rung,
    /// Why.
    pub reason: Reason,
}

/// The rungs that can be carried out here beside those that always can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Means {
    /// Whether sessions can be moved to another provider (L3).
    pub provider: bool,
    /// Whether the version before can take over (L4).
    pub version: bool,
}

/// The budgets of all rungs. Times in milliseconds of one monotonic clock.
#[derive(Clone, Debug)]
pub struct Ladder {
    means: Means,
    lanes: RepairBudget,
    providers: RepairBudget,
}

impl Ladder {
    /// With nothing spent. Rungs that are not among `means` pass on to the next.
    pub fn new(means: Means) -> Self {
        let providers = if means.provider { PROVIDER_REPAIRS } else { 0 };
        Ladder {
            means,
            lanes: RepairBudget::new(LANE_REPAIRS, LANE_WINDOW_MS),
            providers: RepairBudget::new(providers, PROVIDER_WINDOW_MS),
        }
    }

    /// What is to be done about `trouble` at `now_ms`; spends the budget of that rung.
    pub fn decide(&mut self, trouble: Trouble, now_ms: u64) -> Decision {
        let decision = |rung, reason| Decision { rung, reason };
        match trouble {
            Trouble::PastDeadline => decision(Rung::Cancel, Reason::Deadline),
            Trouble::LaneHung { kind, abandoned } => {
                if abandoned.has_room() && self.lanes.try_spend(now_ms) {
                    decision(Rung::Lane, Reason::hung(kind))
                } else {
                    decision(Rung::Worker, Reason::LaneBudget)
                }
            }
            Trouble::CanaryFailed { loads } => {
                if loads < LOADS_MAX && self.lanes.try_spend(now_ms) {
                    decision(Rung::Lane, Reason::Canary)
                } else {
                    decision(Rung::Worker, Reason::LaneBudget)
                }
            }
            Trouble::ProviderFailed { sticky: true } => {
                decision(Rung::Worker, Reason::ProviderSticky)
            }
            Trouble::ProviderFailed { sticky: false } => {
                if self.providers.try_spend(now_ms) {
                    decision(Rung::Provider, Reason::Provider)
                } else {
                    decision(Rung::Worker, Reason::ProviderBudget)
                }
            }
            Trouble::VersionHarmful if self.means.version => {
                decision(Rung::Version, Reason::VersionHarmful)
            }
            Trouble::VersionHarmful => decision(Rung::Worker, Reason::VersionHarmful),
            Trouble::LaneNotBuilt => decision(Rung::Worker, Reason::LaneBuild),
            Trouble::Stalled => decision(Rung::Worker, Reason::Stall),
            Trouble::MemoryLeak => decision(Rung::Worker, Reason::MemoryLeak),
            Trouble::MemoryHigh => decision(Rung::Worker, Reason::MemoryHigh),
        }
    }
}

#[cfg(test)]
mod tests;
