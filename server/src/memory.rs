//! Watches how much of the memory is used, and tells the door: before the kernel ends the whole container, fewer are let in.
//!
//! What counts is the working set, as the kubelet counts it: what the control group uses, less the page cache that the kernel
//! can take back at once. Where a limit was configured, it is what this process holds.

use crate::host::Fact;
use balm_inference::admission::{Gate, MemoryPressure};
use std::fs;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// How often it is looked at. Reading two small files takes some ten microseconds.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Where usage can be read, and what it may come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    bytes: u64,
    usage: Usage,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Usage {
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
            return Some(MemoryLimit { bytes, usage: Usage::Process });
        }
        let memory = memory?;
        let group = |folder: &str, current: &str, inactive| Usage::Group {
            current: format!("{folder}/{current}"),
            stat: format!("{folder}/memory.stat"),
            inactive,
        };
        let usage = if let Some(folder) = memory.source.strip_suffix("/memory.max") {
            group(folder, "memory.current", "inactive_file")
        } else {
            let folder = memory.source.strip_suffix("/memory.limit_in_bytes")?;
            group(folder, "memory.usage_in_bytes", "total_inactive_file")
        };
        Some(MemoryLimit { bytes: memory.value, usage })
    }

    /// What usage may come to, bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What is used now, bytes; `None` when it cannot be read.
    fn used(&self, read: &dyn Fn(&str) -> Option<String>) -> Option<u64> {
        match &self.usage {
            Usage::Group { current, stat, inactive } => {
                let current: u64 = read(current)?.trim().parse().ok()?;
                let inactive = read(stat).and_then(|text| {
                    text.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse().ok())
                });
                Some(current.saturating_sub(inactive.unwrap_or(0)))
            }
            Usage::Process => {
                let text = read("/proc/self/status")?;
                let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
                let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
                kib.checked_mul(1024)
            }
        }
    }

    /// Tells `gate` from now on. The thread ends when nobody else holds the gate.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn watch(self, gate: &Arc<Gate>) -> io::Result<()> {
        let gate = Arc::downgrade(gate);
        let read = |path: &str| fs::read_to_string(path).ok();
        thread::Builder::new().name("memory".to_owned()).spawn(move || {
            while let Some(gate) = gate.upgrade() {
                if let Some(used) = self.used(&read) {
                    let (before, now) = (gate.pressure(), MemoryPressure::of(used, self.bytes));
                    if before != now {
                        tracing::warn!(from = ?before, to = ?now, used, limit = self.bytes, "memory pressure");
                        gate.press(now);
                    }
                }
                drop(gate);
                thread::sleep(LOOK_EVERY);
            }
        })?;
        Ok(())
    }
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
            MemoryLimit::find(configured, Some(&fact(source))).map(|limit| limit.used(&read))
        };
        assert_eq!(used(None, "/g/memory.max"), Some(Some(650)));
        assert_eq!(used(None, "/h/memory.limit_in_bytes"), Some(Some(500)));
        assert_eq!(used(Some(5), "/g/memory.max"), Some(Some(12 * 1024)));
        assert_eq!(used(None, "/elsewhere/memory.max"), Some(None));
        assert_eq!(used(None, "/proc/meminfo"), None, "the memory of a machine is everybody's");
        assert_eq!(MemoryLimit::find(None, None), None);
    }
}
