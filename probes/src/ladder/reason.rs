//! Why something was repaired: label values, and a few words for people.

use serde::{Deserialize, Serialize};

use crate::watchdog::HungKind;

/// Why a repair was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A run was past its deadline.
    Deadline,
    /// A lane that was told to end its run computes on without an end.
    HungSpinning,
    /// A lane that was told to end its run waits for something.
    HungBlocked,
    /// A lane that was told to end its run did not, and what it does is not known.
    HungBetween,
    /// A run panicked.
    Panic,
    /// Golden requests were no longer answered as recorded.
    Canary,
    /// An execution provider failed.
    Provider,
    /// An execution provider failed for the rest of the process's life.
    ProviderSticky,
    /// A provider would have had to be left too often.
    ProviderBudget,
    /// A version did harm.
    VersionHarmful,
    /// A session was not built in time.
    LaneBuild,
    /// The load of a version did not end in its time.
    LoadOverdue,
    /// Nothing got done in any lane.
    Stall,
    /// The event loop did not answer.
    RuntimeWedged,
    /// Lanes would have had to be replaced too often.
    LaneBudget,
    /// Memory was about to run out, by its slope.
    MemoryLeak,
    /// Memory was nearly used up for too long.
    MemoryHigh,
    /// The worker would have had to be replaced too often for its memory.
    MemoryBudget,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 18] = [
        Reason::Deadline,
        Reason::HungSpinning,
        Reason::HungBlocked,
        Reason::HungBetween,
        Reason::Panic,
        Reason::Canary,
        Reason::Provider,
        Reason::ProviderSticky,
        Reason::ProviderBudget,
        Reason::VersionHarmful,
        Reason::LaneBuild,
        Reason::LoadOverdue,
        Reason::Stall,
        Reason::RuntimeWedged,
        Reason::LaneBudget,
        Reason::MemoryLeak,
        Reason::MemoryHigh,
        Reason::MemoryBudget,
    ];

    /// That a lane is hung in this way.
    pub const fn hung(kind: HungKind) -> Self {
        match kind {
            HungKind::Spinning => Reason::HungSpinning,
            HungKind::Blocked => Reason::HungBlocked,
            HungKind::Between => Reason::HungBetween,
        }
    }

    /// Label value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Deadline => "deadline",
            Reason::HungSpinning => "hung_spinning",
            Reason::HungBlocked => "hung_blocked",
            Reason::HungBetween => "hung_between",
            Reason::Panic => "panic",
            Reason::Canary => "canary",
            Reason::Provider => "provider",
            Reason::ProviderSticky => "provider_sticky",
            Reason::ProviderBudget => "provider_budget",
            Reason::VersionHarmful => "version_harmful",
            Reason::LaneBuild => "lane_build",
            Reason::LoadOverdue => "load_overdue",
            Reason::Stall => "stall",
            Reason::RuntimeWedged => "runtime_wedged",
            Reason::LaneBudget => "lane_budget",
            Reason::MemoryLeak => "memory_leak",
            Reason::MemoryHigh => "memory_high",
            Reason::MemoryBudget => "memory_budget",
        }
    }

    /// What happened, as a sentence without its full stop.
    pub const fn sentence(self) -> &'static str {
        match self {
            Reason::Deadline => "a run was past its deadline",
            Reason::HungSpinning => "a run ignored its cancel and computes on",
            Reason::HungBlocked => "a run ignored its cancel and is blocked",
            Reason::HungBetween => "a run ignored its cancel",
            Reason::Panic => "a run panicked",
            Reason::Canary => "golden requests were not answered as recorded",
            Reason::Provider => "the execution provider failed",
            Reason::ProviderSticky => "the execution provider failed for good",
            Reason::ProviderBudget => "execution providers failed too often",
            Reason::VersionHarmful => "the version does harm",
            Reason::LaneBuild => "a session was not built in three times the time of its load",
            Reason::LoadOverdue => "a load did not end in its time",
            Reason::Stall => "no run ended in any lane",
            Reason::RuntimeWedged => "the event loop did not answer",
            Reason::LaneBudget => "lanes hung too often",
            Reason::MemoryLeak => "memory was about to run out",
            Reason::MemoryHigh => "memory was nearly used up",
            Reason::MemoryBudget => "the worker was replaced too often for its memory",
        }
    }
}
