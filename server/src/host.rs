//! What this process may use of its machine: cores, memory, open files, each with where the figure comes from.
//!
//! ONNX Runtime and most libraries count the cores of the host, not those of the container, and are throttled
//! for it. Everything here is a pure function of the texts that the kernel shows; [`Host::detect`] reads them.

mod cgroup;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;

/// A figure and where it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact<T> {
    /// The figure.
    pub value: T,
    /// The file or call that gave it.
    pub source: String,
}

/// What this process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Cores that can be kept busy: the CPU quota rounded up, or the affinity where that is less; at least 1.
    pub cores: Fact<u32>,
    /// Bytes of memory: the limit of the control group, or all of the machine's where that is less.
    pub memory_bytes: Option<Fact<u64>>,
    /// Files that may be open at once (the soft limit).
    pub open_files: Option<Fact<u64>>,
}

/// Lanes of a model and threads within a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parallelism {
    /// Sessions that run side by side, each on a thread of its own.
    pub lanes: u32,
    /// Threads that the engine uses within one run.
    pub threads: u32,
}

/// Most lanes that a model gets unasked. Each lane holds its own session, so lanes cost memory.
pub const DEFAULT_LANES_MAX: u32 = 8;

/// Lanes and threads for a model on `cores` cores, where `lanes` and `threads` are what was asked for, if anything.
///
/// Unasked: one thread per lane and a lane per core, up to [`DEFAULT_LANES_MAX`]. Two lanes of one thread were
/// measured to carry at least as much as one lane of two threads, and a request that runs long then blocks one
/// lane instead of all. With one of the two given, the other fills the cores that are left.
pub fn parallelism(cores: u32, lanes: Option<u32>, threads: Option<u32>) -> Parallelism {
    let cores = cores.max(1);
    match (lanes, threads) {
        (Some(lanes), Some(threads)) => Parallelism { lanes, threads },
        (Some(lanes), None) => Parallelism { lanes, threads: (cores / lanes.max(1)).max(1) },
        (None, Some(threads)) => {
            let lanes = (cores / threads.max(1)).clamp(1, DEFAULT_LANES_MAX);
            Parallelism { lanes, threads }
        }
        (None, None) => default_parallelism(cores),
    }
}

/// Lanes and threads when nothing was asked for. See [`parallelism`].
pub fn default_parallelism(cores: u32) -> Parallelism {
    Parallelism { lanes: cores.clamp(1, DEFAULT_LANES_MAX), threads: 1 }
}

/// Open files that are not connections of the data port: models, libraries, the management port, and those connections
/// that are just being refused.
const FILES_RESERVED: u64 = 768;

// ===== impl Host =====

impl Host {
    /// Raises the limit of open files to what the system allows, as servers may: the low one that shells and container
    /// runtimes set is for programs that wait with `select(2)`, which Balm and its libraries do not.
    pub fn raise_open_files() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        if limit.current != limit.maximum {
            // Where it is forbidden, the lower one holds, and `max_connections` follows from it.
            let _ = setrlimit(
                Resource::Nofile,
                Rlimit { current: limit.maximum, maximum: limit.maximum },
            );
        }
    }

    /// Connections that the limit of open files leaves room for; none where it is not known.
    pub fn connections_by_files(&self) -> Option<u64> {
        let files = self.open_files.as_ref()?.value;
        Some(files.saturating_sub(FILES_RESERVED).max(files / 2).max(1))
    }

    /// What is wrong with that many connections, if they do not fit.
    pub fn too_many_connections(&self, wanted: u64) -> Option<String> {
        let fit = self.connections_by_files().filter(|fit| *fit < wanted)?;
        let files = self.open_files.as_ref().map_or(0, |files| files.value);
        Some(format!(
            "http.max_connections = {wanted} does not fit into {files} open files (RLIMIT_NOFILE), which leave room for {fit}: \
             more will not be accepted; raise the limit or lower the setting"
        ))
    }

    /// Reads the figures of this process. What cannot be read is left out, or taken as one core.
    pub fn detect() -> Host {
        let affinity =
            rustix::thread::sched_getaffinity(None).ok().map(|set| set.count()).or_else(|| {
                // More CPUs than the mask has room for; the standard library asks with a larger one.
                std::thread::available_parallelism().ok().and_then(|n| u32::try_from(n.get()).ok())
            });
        let open_files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        // Several limits are looked for by way of the same files, and a start counts in milliseconds.
        let seen = RefCell::new(BTreeMap::new());
        let read = |path: &str| {
            let mut seen = seen.borrow_mut();
            seen.entry(path.to_owned()).or_insert_with(|| fs::read_to_string(path).ok()).clone()
        };
        Host::from_readings(affinity, open_files, &read)
    }

    /// Judges from readings: cores of the affinity mask, limit of open files, and a way to read kernel files.
    pub fn from_readings(
        affinity: Option<u32>,
        open_files: Option<u64>,
        read: &dyn Fn(&str) -> Option<String>,
    ) -> Host {
        let affinity = affinity.filter(|&cores| cores > 0);
        let cores = match (affinity, cgroup::cpu_quota(read)) {
            (Some(affinity), Some(quota)) if quota.value < affinity => quota,
            (None, Some(quota)) => quota,
            (Some(affinity), _) => Fact { value: affinity, source: "sched_getaffinity".to_owned() },
            (None, None) => Fact { value: 1, source: "nothing could be read".to_owned() },
        };
        let total = read("/proc/meminfo")
            .and_then(|text| memory_total(&text))
            .map(|value| Fact { value, source: "/proc/meminfo".to_owned() });
        let memory_bytes = match (total, cgroup::memory_limit(read)) {
            (Some(total), Some(limit)) if limit.value < total.value => Some(limit),
            (Some(total), _) => Some(total),
            (None, limit) => limit,
        };
        let open_files = open_files.map(|value| Fact { value, source: "RLIMIT_NOFILE".to_owned() });
        Host { cores, memory_bytes, open_files }
    }
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(affinity: Option<u32>, files: &[(&str, &str)]) -> Host {
        let files: BTreeMap<&str, &str> = files.iter().copied().collect();
        Host::from_readings(affinity, Some(1024), &|path| {
            files.get(path).map(|text| (*text).to_owned())
        })
    }

    const V2: [(&str, &str); 2] = [
        ("/proc/self/cgroup", "0::/\n"),
        (
            "/proc/self/mountinfo",
            "30 23 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n",
        ),
    ];

    #[test]
    fn a_container_with_limits() {
        let mut files = V2.to_vec();
        files.extend([
            ("/sys/fs/cgroup/cpu.max", "150000 100000\n"),
            ("/sys/fs/cgroup/memory.max", "536870912\n"),
            ("/proc/meminfo", "MemTotal:       16000000 kB\nMemFree: 1 kB\n"),
        ]);
        let host = host(Some(16), &files);
        assert_eq!(host.cores, Fact { value: 2, source: "/sys/fs/cgroup/cpu.max".to_owned() });
        let memory = host.memory_bytes.unwrap();
        assert_eq!((memory.value, memory.source.as_str()), (1 << 29, "/sys/fs/cgroup/memory.max"));
        assert_eq!(host.open_files.unwrap().value, 1024);
    }

    #[test]
    fn the_lesser_figure_counts() {
        let mut files = V2.to_vec();
        files.extend([
            ("/sys/fs/cgroup/cpu.max", "800000 100000\n"),
            ("/sys/fs/cgroup/memory.max", "64000000000\n"),
            ("/proc/meminfo", "MemTotal:       16000000 kB\n"),
        ]);
        let host = host(Some(4), &files);
        assert_eq!(host.cores, Fact { value: 4, source: "sched_getaffinity".to_owned() });
        assert_eq!(host.memory_bytes.unwrap().source, "/proc/meminfo");
    }

    #[test]
    fn connections_that_do_not_fit_are_told() {
        let mut host = host(Some(1), &[]);
        assert_eq!(host.connections_by_files(), Some(512));
        assert_eq!(host.too_many_connections(512), None);
        let told = host.too_many_connections(513).unwrap();
        assert!(told.contains("max_connections = 513") && told.contains("room for 512"), "{told}");
        host.open_files = None;
        assert_eq!(host.too_many_connections(u64::MAX), None);
    }

    #[test]
    fn the_limit_of_open_files_is_raised_as_far_as_may_be() {
        Host::raise_open_files();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }

    #[test]
    fn nothing_to_read_is_one_core() {
        let host = host(None, &[]);
        assert_eq!(host.cores.value, 1);
        assert_eq!(host.memory_bytes, None);
    }

    #[test]
    fn memory_total_of_odd_texts() {
        let cases = [
            ("MemTotal:       24684096 kB\n", Some(24_684_096 * 1024)),
            ("MemFree: 1 kB\nMemTotal: 2 kB", Some(2048)),
            ("MemTotal: x kB", None),
            ("MemTotal: 18446744073709551615 kB", None),
            ("MemTotal: 5", None),
            ("", None),
        ];
        for (text, bytes) in cases {
            assert_eq!(memory_total(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn this_machine_has_a_core() {
        let host = Host::detect();
        assert!(host.cores.value >= 1);
        assert!(host.memory_bytes.is_some_and(|memory| memory.value > 0));
    }

    #[test]
    fn lanes_and_threads_fill_the_cores() {
        let cases = [
            (0, None, None, (1, 1)),
            (1, None, None, (1, 1)),
            (2, None, None, (2, 1)),
            (8, None, None, (8, 1)),
            (64, None, None, (8, 1)),
            (8, Some(2), None, (2, 4)),
            (2, Some(4), None, (4, 1)),
            (8, None, Some(4), (2, 4)),
            (2, None, Some(4), (1, 4)),
            (64, None, Some(2), (8, 2)),
            (2, Some(3), Some(5), (3, 5)),
        ];
        for (cores, lanes, threads, (want_lanes, want_threads)) in cases {
            assert_eq!(
                parallelism(cores, lanes, threads),
                Parallelism { lanes: want_lanes, threads: want_threads },
                "{cores} cores, lanes {lanes:?}, threads {threads:?}"
            );
        }
    }
}
