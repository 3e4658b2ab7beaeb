//! What the environment of a process has to say that computes. It is read by libraries, when they or the program start, and
//! can be set without `unsafe` only for a process that is yet to be started.
//!
//! **The allocator's thresholds**, so that a server does not hold for ever what a load has freed. Loading a model of 90 MB
//! allocates and frees several times that. glibc raises its thresholds by itself after the first large free, and then keeps
//! such blocks in the heap, where they stay. With thresholds that are fixed, large blocks go back to the system as soon as
//! they are free (decision 8 has the figures).
//!
//! **No telemetry.** Since 1.29 the official library for Linux reports sessions, names and hashes of models to its vendor, and
//! keeps a database in the home folder. It begins when the environment is made, before `DisableTelemetryEvents` can be called
//! (decision 18).

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A variable and its value.
type Variable = (&'static str, &'static str);

/// Blocks of a megabyte and more are mapped, and unmapped when they are freed; more than 16 MB at the end of the heap goes back.
/// Blocks of a request, which are up to some kilobytes, are kept at hand by each thread.
const ALLOCATOR: Variable = (
    "GLIBC_TUNABLES",
    "glibc.malloc.mmap_threshold=1048576:glibc.malloc.trim_threshold=16777216\
     :glibc.malloc.tcache_max=16384:glibc.malloc.tcache_count=64",
);
/// Whoever has set one of these has thought about it, or it was us.
const ALLOCATOR_SETTINGS: [&str; 3] =
    [ALLOCATOR.0, "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"];

/// What a service manager tells this process, and what is not for those that it starts.
pub(crate) const NOT_INHERITED: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// Read by ONNX Runtime.
const NO_TELEMETRY: Variable = ("ORT_DISABLE_TELEMETRY", "1");

/// Starts this program again with what its environment lacks, if anything. To be called before anything is opened.
///
/// The process stays the same (`exec`): id, parent, files, signals. Where that is not possible everything works as well, with
/// some more memory and with ONNX Runtime's telemetry until it is told to leave off.
pub fn settle() {
    let lacking = lacking();
    let mut arguments = env::args_os();
    let (Some(name), Ok(program)) = (arguments.next(), env::current_exe()) else { return };
    if !lacking.is_empty() {
        // Comes back only if it fails.
        let _error = Command::new(program).arg0(name).args(arguments).envs(lacking).exec();
    }
}

/// The variables that a program is to be started with and that are not set: the allocator's unless somebody has set one that
/// does the same, and the one against telemetry in any case.
pub fn lacking() -> Vec<Variable> {
    let is_set = |name: &&str| env::var_os(name).is_some();
    let allocator = (!ALLOCATOR_SETTINGS.iter().any(is_set)).then_some(ALLOCATOR);
    let talks = env::var_os(NO_TELEMETRY.0).is_none_or(|value| value != NO_TELEMETRY.1);
    allocator.into_iter().chain(talks.then_some(NO_TELEMETRY)).collect()
}
