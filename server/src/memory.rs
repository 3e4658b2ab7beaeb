//! Watches how much of the memory is used, and tells the door: before the kernel ends the whole container, fewer are let in. And
//! the judge of what grows: where it finds a leak, the worker asks to be replaced before it comes to that.
//!
//! What counts against the limit is the working set, as the kubelet counts it: what the control group uses, less the page cache
//! that the kernel can take back at once. The supervisor is in there, and whatever else runs in the container. What would be given
//! back by a new worker is what this process holds, so whether it grows is judged by that. Where a limit was configured, both are
//! what this process holds.

use crate::host::Fact;
use crate::pulse::Pulse;
use crate::worker::Worker;
use balm_inference::admission::MemoryPressure;
use balm_inference::models::Models;
use balm_probes::{Cause, Usage};
use std::fs;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How often it is looked at. Reading two small files takes some ten microseconds.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Where usage can be read, and what it may come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    bytes: u64,
    counted: Counted,
}

/// Where it is read what counts.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Counted {
    /// Files of the control group: what is used, and the line of the statistics that counts the cache that is inactive.
    Group { current: String, stat: String, inactive: &'static str },
    /// This process.
    Process,
}

impl MemoryLimit {
    /// The configured limit, or that of the control group by which `memory` was found. `None` when there is neither: the memory
    /// of a machine is everybody's.
    pub fn find(configured: Option<u64>, memory: Option<&Fact<u64>>) -> Option<Self> {
        if let Some(bytes) = configured {
            return Some(MemoryLimit { bytes, counted: Counted::Process });
        }
        let memory = memory?;
        let group = |folder: &str, current: &str, inactive| Counted::Group {
            current: format!("{folder}/{current}"),
            stat: format!("{folder}/memory.stat"),
            inactive,
        };
        let counted = if let Some(folder) = memory.source.strip_suffix("/memory.max") {
            group(folder, "memory.current", "inactive_file")
        } else {
            let folder = memory.source.strip_suffix("/memory.limit_in_bytes")?;
            group(folder, "memory.usage_in_bytes", "total_inactive_file")
        };
        Some(MemoryLimit { bytes: memory.value, counted })
    }

    /// What usage may come to, bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What is used now; `None` when it cannot be read.
    fn usage(&self, read: &dyn Fn(&str) -> Option<String>) -> Option<Usage> {
        let own = resident(&read("/proc/self/status")?)?;
        let used = match &self.counted {
            Counted::Group { current, stat, inactive } => {
                let current: u64 = read(current)?.trim().parse().ok()?;
                let inactive = read(stat).and_then(|text| {
                    text.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse().ok())
                });
                current.saturating_sub(inactive.unwrap_or(0))
            }
            Counted::Process => own,
        };
        Some(Usage { used, own, limit: self.bytes })
    }

    /// Tells the door of `models` and their judge from now on, and `worker`, where there is one, what follows. The thread ends
    /// with the process, or when nobody holds the pulse any more.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn watch(
        self,
        models: Models,
        pulse: &Arc<Pulse>,
        worker: Option<Arc<Worker>>,
    ) -> io::Result<()> {
        let pulse = Arc::downgrade(pulse);
        let read = |path: &str| fs::read_to_string(path).ok();
        thread::Builder::new().name("memory".to_owned()).spawn(move || {
            let begun = Instant::now();
            while pulse.strong_count() > 0 {
                if let Some(usage) = self.usage(&read) {
                    press(&models, usage);
                    let now_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                    let verdict = models.memory_used(usage, now_ms);
                    if let (Some(verdict), Some(worker)) = (verdict, &worker) {
                        worker.replace_me(Cause::Memory, verdict.sentence());
                    }
                }
                thread::sleep(LOOK_EVERY);
            }
        })?;
        Ok(())
    }
}

/// Tells the door.
fn press(models: &Models, usage: Usage) {
    let Usage { used, limit, .. } = usage;
    let gate = models.gate();
    let (before, now) = (gate.pressure(), MemoryPressure::of(used, limit));
    if before != now {
        tracing::warn!(from = ?before, to = ?now, used, limit, "memory pressure");
        gate.press(now);
    }
}

/// What a process holds, bytes, by its `/proc/PID/status`.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn fact(source: &str) -> Fact<u64> {
        Fact { value: 1000, source: source.to_owned() }
    }

    #[test]
    fn the_working_set_leaves_out_what_can_be_taken_back() {
        let files = BTreeMap::from([
            ("/g/memory.current", "900\n"),
            ("/g/memory.stat", "anon 100\ninactive_file 250\nactive_file 7\n"),
            ("/h/memory.usage_in_bytes", "800\n"),
            ("/h/memory.stat", "inactive_file 1\ntotal_inactive_file 300\n"),
            ("/proc/self/status", "Name:\tbalm\nVmRSS:\t      12 kB\n"),
        ]);
        let read = |path: &str| files.get(path).map(|text| (*text).to_owned());
        let used = |configured, source: &str| {
            MemoryLimit::find(configured, Some(&fact(source))).map(|limit| limit.usage(&read))
        };
        let (own, limit) = (12 * 1024, 1000);
        assert_eq!(used(None, "/g/memory.max"), Some(Some(Usage { used: 650, own, limit })));
        let older = used(None, "/h/memory.limit_in_bytes");
        assert_eq!(older, Some(Some(Usage { used: 500, own, limit })));
        let configured = Usage { used: own, own, limit: 5 };
        assert_eq!(used(Some(5), "/g/memory.max"), Some(Some(configured)));
        assert_eq!(used(None, "/elsewhere/memory.max"), Some(None));
        assert_eq!(used(None, "/proc/meminfo"), None, "the memory of a machine is everybody's");
        assert_eq!(MemoryLimit::find(None, None), None);
    }
}
