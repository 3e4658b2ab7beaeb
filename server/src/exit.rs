//! Exit codes: what a supervisor or a person learns from how `balm` ended.
//!
//! The numbers below 70 and 74 are those of BSD's `sysexits.h`; 70 to 72 are ours.

/// How `balm` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// 0: did what it was asked to, or drained after SIGTERM and left nothing unfinished.
    Drained,
    /// 1: a card of `balm drill` failed.
    Failed,
    /// 64: the command line or the configuration is wrong. A restart does not help.
    Usage,
    /// 65: the bytes of a model are not those of its manifest, and nothing is left to serve. Also the end of
    /// `balm check` when a model is refused.
    Integrity,
    /// 69: the ONNX Runtime library is missing or cannot be loaded.
    Library,
    /// 70: something hangs and could not be healed from within.
    Hang,
    /// 71: the GPU is in a state that only a new process leaves.
    Gpu,
    /// 72: memory is short and could not be given back.
    Memory,
    /// 74: a file or a socket could not be used, such as an address that is taken.
    Io,
    /// 143: the drain was cut short, by a second SIGTERM or because connections did not finish in time (128 + 15, as a
    /// shell tells it).
    Interrupted,
}

// ===== impl Exit =====

impl Exit {
    /// Every way to end.
    pub const ALL: [Exit; 10] = [
        Exit::Drained,
        Exit::Failed,
        Exit::Usage,
        Exit::Integrity,
        Exit::Library,
        Exit::Hang,
        Exit::Gpu,
        Exit::Memory,
        Exit::Io,
        Exit::Interrupted,
    ];

    /// The way to end that has this number.
    pub fn of_code(code: i32) -> Option<Exit> {
        Exit::ALL.into_iter().find(|exit| i32::from(exit.code()) == code)
    }

    /// The number that the parent process sees.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Drained => 0,
            Exit::Failed => 1,
            Exit::Usage => 64,
            Exit::Integrity => 65,
            Exit::Library => 69,
            Exit::Hang => 70,
            Exit::Gpu => 71,
            Exit::Memory => 72,
            Exit::Io => 74,
            Exit::Interrupted => 143,
        }
    }

    /// A word for logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Exit::Drained => "drained",
            Exit::Failed => "failed",
            Exit::Usage => "usage",
            Exit::Integrity => "integrity",
            Exit::Library => "library",
            Exit::Hang => "hang",
            Exit::Gpu => "gpu",
            Exit::Memory => "memory",
            Exit::Io => "io",
            Exit::Interrupted => "interrupted",
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct() {
        let mut codes: Vec<u8> = Exit::ALL.iter().map(|exit| exit.code()).collect();
        codes.dedup();
        assert_eq!(codes, [0, 1, 64, 65, 69, 70, 71, 72, 74, 143]);
        assert!(Exit::ALL.iter().all(|exit| Exit::of_code(exit.code().into()) == Some(*exit)));
        assert_eq!(Exit::of_code(2), None);
    }
}
