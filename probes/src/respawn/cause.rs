//! How workers end, and what that means.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a process ended, as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// It ended by itself with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// Why a worker has to be replaced: the label of the counter, and what is compared when ends are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// SIGSEGV.
    Segv,
    /// SIGABRT: an assertion of a library, or memory that `malloc` found destroyed.
    Abort,
    /// SIGKILL that was not ours. Mostly the kernel's, for memory.
    Killed,
    /// Another signal.
    Signal,
    /// It ended by itself.
    Exit,
    /// Its tick counter stood still.
    Hang,
    /// Its event loop did not answer.
    Wedged,
    /// It says that its lanes hang, or answer wrongly, and cannot be healed from within.
    Lanes,
    /// It says that its GPU is in a state which only a new process leaves (exit code 71).
    Gpu,
    /// It says that memory is short (exit code 72).
    Memory,
    /// It was killed and did not end.
    Unkillable,
    /// It could not be started.
    Start,
}

// ===== impl Cause =====

impl Cause {
    /// Every cause.
    pub const ALL: [Cause; 12] = [
        Cause::Segv,
        Cause::Abort,
        Cause::Killed,
        Cause::Signal,
        Cause::Exit,
        Cause::Hang,
        Cause::Wedged,
        Cause::Lanes,
        Cause::Gpu,
        Cause::Memory,
        Cause::Unkillable,
        Cause::Start,
    ];

    /// A word for labels and the journal.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::Segv => "segv",
            Cause::Abort => "abort",
            Cause::Killed => "killed",
            Cause::Signal => "signal",
            Cause::Exit => "exit",
            Cause::Hang => "hang",
            Cause::Wedged => "wedged",
            Cause::Lanes => "lanes",
            Cause::Gpu => "gpu",
            Cause::Memory => "memory",
            Cause::Unkillable => "unkillable",
            Cause::Start => "start",
        }
    }

    /// What it means, for people.
    pub const fn sentence(self) -> &'static str {
        match self {
            Cause::Segv => "the worker crashed (SIGSEGV)",
            Cause::Abort => "the worker aborted (SIGABRT)",
            Cause::Killed => "the worker was killed (SIGKILL), mostly by the kernel for memory",
            Cause::Signal => "a signal ended the worker",
            Cause::Exit => "the worker ended unasked",
            Cause::Hang => "the worker did not tick any more",
            Cause::Wedged => "the event loop of the worker did not answer any more",
            Cause::Lanes => "the lanes of the worker could not be healed from within",
            Cause::Gpu => "the GPU of the worker is in a state that only a new process leaves",
            Cause::Memory => "the worker was short of memory",
            Cause::Unkillable => "the worker was killed and did not end",
            Cause::Start => "the worker could not be started",
        }
    }

    /// Whether a worker that asks to be replaced for this can finish what it has first.
    pub const fn is_orderly(self) -> bool {
        matches!(self, Cause::Memory)
    }

    /// What an end that nobody brought about means.
    pub const fn of(end: End) -> Cause {
        match end {
            End::Signal(11) => Cause::Segv,
            End::Signal(6) => Cause::Abort,
            End::Signal(9) => Cause::Killed,
            End::Signal(_) => Cause::Signal,
            End::Code(70) => Cause::Hang,
            End::Code(71) => Cause::Gpu,
            End::Code(72) => Cause::Memory,
            End::Code(_) => Cause::Exit,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Code(code) => write!(f, "exit code {code}"),
            End::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}
