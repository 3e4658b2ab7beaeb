//! What the figures were taken on.

use std::fs;
use std::thread;

use serde::{Deserialize, Serialize};

/// The machine, in words that a reader of the figures needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor, as it calls itself.
    pub processor: String,
    /// Cores at hand.
    pub cores: usize,
    /// Processes that wanted a core before the bench began, over the last minute.
    pub load: f64,
}

impl Machine {
    /// Reads what can be read.
    pub fn detect() -> Machine {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Machine {
            processor: processor(&read("/proc/cpuinfo")),
            cores: thread::available_parallelism().map_or(1, usize::from),
            load: load(&read("/proc/loadavg")).unwrap_or_default(),
        }
    }
}

fn processor(cpuinfo: &str) -> String {
    let named = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    let name = named.and_then(|rest| rest.split_once(':')).map(|(_, name)| name.trim());
    name.unwrap_or(std::env::consts::ARCH).to_owned()
}

fn load(loadavg: &str) -> Option<f64> {
    loadavg.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says() {
        let text = "processor\t: 0\nmodel name\t: A Fast One @ 3 GHz\nmodel name\t: other\n";
        assert_eq!(processor(text), "A Fast One @ 3 GHz");
        assert_eq!(processor(""), std::env::consts::ARCH);
        assert_eq!(load("1.25 0.5 0.1 1/200 77\n"), Some(1.25));
        assert_eq!(load(""), None);
    }
}
