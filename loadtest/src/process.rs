//! What processes use of the machine: cores and memory, as the kernel accounts for them.
//!
//! A target may be a tree of processes, and the generator runs on the same cores. A figure is worth something only
//! beside who had the cores while it was taken.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Cores in use over a time: 1.0 is one core, all the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Cores {
    /// This program.
    pub(crate) generator: f64,
    /// The target and its children.
    pub(crate) target: f64,
    /// Everything else on the machine, and what the hypervisor took.
    pub(crate) others: f64,
}

/// Memory of a process and its children.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Memory {
    /// Resident bytes; shared pages count once for each process.
    pub(crate) rss_bytes: u64,
    /// Resident bytes; a shared page counts in parts.
    pub(crate) pss_bytes: u64,
}

/// Processor time of a set of processes that was looked up once.
pub(crate) struct Usage {
    target: BTreeSet<u32>,
}

/// Processor time used up to a moment, in seconds.
pub(crate) struct Reading {
    at: Instant,
    generator: f64,
    target: f64,
    machine: f64,
}

/// Processor seconds that the calling thread has used.
pub(crate) fn thread_seconds() -> f64 {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

// ===== impl Usage, Reading =====

impl Usage {
    /// Watches the process and those that it has now begotten.
    pub(crate) fn watch(process: u32) -> Result<Usage> {
        Ok(Usage { target: family(process)? })
    }

    pub(crate) fn now(&self) -> Result<Reading> {
        let tick = 1.0 / rustix::param::clock_ticks_per_second() as f64;
        let own = clock_gettime(ClockId::ProcessCPUTime);
        let mut target = 0;
        for process in &self.target {
            // A child may have ended in the meantime.
            let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            target += Stat::parse(&text).map_or(0, |stat| stat.ticks);
        }
        let machine = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        Ok(Reading {
            at: Instant::now(),
            generator: own.tv_sec as f64 + own.tv_nsec as f64 / 1e9,
            target: target as f64 * tick,
            machine: busy_ticks(&machine).context("/proc/stat has no such line")? as f64 * tick,
        })
    }
}

impl Reading {
    /// What was used since an earlier reading.
    pub(crate) fn since(&self, from: &Reading) -> Cores {
        let seconds = (self.at - from.at).as_secs_f64().max(1e-3);
        let generator = (self.generator - from.generator) / seconds;
        let target = (self.target - from.target) / seconds;
        let machine = (self.machine - from.machine) / seconds;
        Cores { generator, target, others: (machine - generator - target).max(0.0) }
    }
}

// ===== impl Memory =====

impl Memory {
    /// Of the process and its children.
    pub(crate) fn of_family(process: u32) -> Result<Memory> {
        let mut sum = Memory::default();
        for process in family(process)? {
            let path = format!("/proc/{process}/smaps_rollup");
            let text = fs::read_to_string(&path).with_context(|| path.clone())?;
            let memory = Memory::parse(&text).with_context(|| format!("{path}: no Rss or Pss"))?;
            sum.rss_bytes += memory.rss_bytes;
            sum.pss_bytes += memory.pss_bytes;
        }
        Ok(sum)
    }

    fn parse(smaps_rollup: &str) -> Option<Memory> {
        let bytes = |label: &str| {
            let line = smaps_rollup.lines().find_map(|line| line.strip_prefix(label))?;
            line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
        };
        Some(Memory { rss_bytes: bytes("Rss:")?, pss_bytes: bytes("Pss:")? })
    }
}

/// The process and its descendants.
fn family(process: u32) -> Result<BTreeSet<u32>> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let name = entry.context("/proc")?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // Processes come and go while they are listed.
        let text = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        if let Some(stat) = Stat::parse(&text) {
            parents.insert(id, stat.parent);
        }
    }
    Ok(descendants(process, &parents))
}

fn descendants(process: u32, parents: &BTreeMap<u32, u32>) -> BTreeSet<u32> {
    let mut family = BTreeSet::from([process]);
    loop {
        let children: Vec<u32> = parents
            .iter()
            .filter(|(child, parent)| family.contains(parent) && !family.contains(child))
            .map(|(child, _)| *child)
            .collect();
        if children.is_empty() {
            return family;
        }
        family.extend(children);
    }
}

/// What matters in `/proc/PID/stat`.
#[derive(Debug, PartialEq)]
struct Stat {
    parent: u32,
    ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // The second field is the name in parentheses, which may hold both spaces and parentheses.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks: ticks(11)? + ticks(12)? })
    }
}

/// Ticks in which a core did anything, or was taken away, from the first line of `/proc/stat`.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; what follows is counted in the first two already.
    let [user, nice, system, _idle, _iowait, irq, softirq, steal] =
        ticks.get(..8)?.try_into().ok()?;
    Some(user + nice + system + irq + softirq + steal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_of_a_process_with_a_wicked_name() {
        let text = "42 (a) S 1 (b c) S 7 42 42 0 -1 4194560 93 0 1 0 21 13 0 0 20 0 1 0 5 6 7";
        assert_eq!(Stat::parse(text), Some(Stat { parent: 7, ticks: 34 }));
        assert_eq!(Stat::parse(""), None);
        assert_eq!(Stat::parse("42 (a) S"), None);
    }

    #[test]
    fn children_of_children_belong() {
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 3), (5, 1), (9, 9)]);
        assert_eq!(descendants(2, &parents), BTreeSet::from([2, 3, 4]));
        assert_eq!(descendants(9, &parents), BTreeSet::from([9]));
        assert_eq!(descendants(8, &parents), BTreeSet::from([8]));
    }

    #[test]
    fn memory_is_given_in_kibibytes() {
        let text = "7f00-7fff ---p 00:00 0 [rollup]\nRss:                8 kB\nPss:        3 kB\nPss_Anon: 1 kB\n";
        assert_eq!(Memory::parse(text), Some(Memory { rss_bytes: 8192, pss_bytes: 3072 }));
        assert_eq!(Memory::parse("Rss: 8 kB"), None);
    }

    #[test]
    fn idle_time_is_not_busy() {
        let text = "cpu  1 2 4 1000 2000 8 16 32 64 128\ncpu0 9 9 9 9 9 9 9 9 9 9\n";
        assert_eq!(busy_ticks(text), Some(63));
        assert_eq!(busy_ticks("cpu 1 2"), None);
    }

    #[test]
    fn others_is_what_is_left() {
        let at = Instant::now();
        let reading = |seconds, generator, target, machine| Reading {
            at: at + std::time::Duration::from_secs(seconds),
            generator,
            target,
            machine,
        };
        let cores = reading(2, 1.5, 2.0, 9.0).since(&reading(0, 0.5, 0.0, 5.0));
        assert_eq!(cores, Cores { generator: 0.5, target: 1.0, others: 0.5 });
    }

    #[test]
    fn this_process_can_be_read() {
        let usage = Usage::watch(std::process::id()).unwrap();
        let before = usage.now().unwrap();
        let after = usage.now().unwrap();
        assert!(after.generator >= before.generator && after.machine >= before.machine);
        let memory = Memory::of_family(std::process::id()).unwrap();
        assert!(memory.rss_bytes >= memory.pss_bytes && memory.pss_bytes > 0);
    }
}
