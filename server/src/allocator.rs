//! What glibc's allocator is told, so that a server does not hold for ever what a load has freed.
//!
//! Loading a model of 90 MB allocates and frees several times that. glibc raises its thresholds by itself after the first
//! large free, and then keeps such blocks in the heap, where they stay. With thresholds that are fixed, large blocks go back
//! to the system as soon as they are free (decision 8 has the figures). They can be set without `unsafe` only in the
//! environment, and are read at the start of a program.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

const VARIABLE: &str = "GLIBC_TUNABLES";
/// Blocks of a megabyte and more are mapped, and unmapped when they are freed; more than 16 MB at the end of the heap goes back.
/// Blocks of a request, which are up to some kilobytes, are kept at hand by each thread.
const TUNABLES: &str = "glibc.malloc.mmap_threshold=1048576:glibc.malloc.trim_threshold=16777216\
                        :glibc.malloc.tcache_max=16384:glibc.malloc.tcache_count=64";
/// Whoever has set one of these has thought about it, or it was us.
const SETTINGS: [&str; 3] = [VARIABLE, "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"];

/// Starts this program again under fixed thresholds, unless it runs under some. To be called before anything is opened.
///
/// The process stays the same (`exec`): id, parent, files, signals. Where that is not possible everything works as well, with
/// some more memory.
pub fn settle() {
    let Some((variable, tunables)) = setting() else { return };
    let mut arguments = env::args_os();
    let (Some(name), Ok(program)) = (arguments.next(), env::current_exe()) else { return };
    // Comes back only if it fails.
    let _error = Command::new(program).arg0(name).args(arguments).env(variable, tunables).exec();
}

/// The variable that a program is to be started with, unless somebody has set one that does the same.
pub fn setting() -> Option<(&'static str, &'static str)> {
    let is_set = SETTINGS.iter().any(|name| env::var_os(name).is_some());
    (!is_set).then_some((VARIABLE, TUNABLES))
}
