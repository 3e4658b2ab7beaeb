//! What a run does: the target, the clients, the phases, and what is expected of the figures. Every choice made.

mod check;
mod raw;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::arrivals::Pattern;
use crate::figures::Expectation;
use crate::kubelet::Settings as ProbeSettings;
use crate::payload::{Fill, TensorPlan};

#[cfg(test)]
pub(crate) use tests::SAMPLE;

/// A scenario file larger than this is none.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A whole scenario.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) seed: u64,
    /// Width of a bucket of the timeline; none leaves the choice to the run.
    pub(crate) bucket: Option<Duration>,
    /// Requests whose moments lie within this go out together: the generator is woken less often, and is later by as
    /// much. Where it shares its cores with the target, that leaves the target more of them.
    pub(crate) coalesce: Duration,
    pub(crate) target: Target,
    pub(crate) capacity: Capacity,
    pub(crate) clients: Vec<Client>,
    pub(crate) phases: Vec<Phase>,
    pub(crate) probes: Vec<ProbeSettings>,
    pub(crate) expectations: Vec<Expectation>,
}

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) model: String,
    pub(crate) version: Option<String>,
    pub(crate) protocol: Protocol,
    pub(crate) encoding: Encoding,
    pub(crate) input: Input,
    /// How long nothing at all may come back before the run ends.
    pub(crate) give_up: Duration,
}

/// How requests travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    /// In clear text, without an upgrade.
    Http2,
}

/// How tensors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Binary,
    Json,
}

/// Where the tensors come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Input {
    /// A recorded case of the model's repository.
    Case(String),
    /// As the scenario says.
    Tensors(Vec<TensorPlan>),
    /// What the model's metadata asks for.
    Metadata { rows: i64, dynamic: i64, fill: Fill },
}

/// How capacity is found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Capacity {
    pub(crate) connections: usize,
    pub(crate) length: Duration,
    /// Once more after the phases, to see drift.
    pub(crate) again: bool,
    /// Not found but known.
    pub(crate) rate: Option<f64>,
}

/// So many clients of one kind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Client {
    pub(crate) name: String,
    pub(crate) count: usize,
    pub(crate) key_header: String,
    pub(crate) class: Option<String>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) max_outstanding: usize,
    pub(crate) retries: u32,
    pub(crate) backoff: Duration,
    pub(crate) abandon_after: Option<Duration>,
    pub(crate) timeout: Duration,
    pub(crate) headers: Vec<(String, String)>,
}

/// A time with its own arrivals.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Phase {
    pub(crate) name: String,
    pub(crate) length: Duration,
    /// By index of the client.
    pub(crate) arrivals: Vec<(usize, Pattern<Rate>)>,
    pub(crate) recovery: Option<Recovery>,
}

/// Requests per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rate {
    PerSecond(f64),
    /// A multiple of the capacity.
    TimesCapacity(f64),
}

/// When a phase counts as recovered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Recovery {
    /// Name of the phase that is compared with.
    pub(crate) baseline: String,
    /// How much longer accepted requests may take than in it.
    pub(crate) factor: f64,
}

// ===== impl Scenario =====

impl Scenario {
    /// Reads and checks the file.
    pub(crate) fn load(path: &Path) -> Result<Scenario> {
        let file = path.display().to_string();
        let size = fs::metadata(path).with_context(|| file.clone())?.len();
        if size > FILE_BYTES_MAX {
            bail!("{file}: {size} bytes, a scenario has {FILE_BYTES_MAX} at most");
        }
        let text = fs::read_to_string(path).with_context(|| file.clone())?;
        Scenario::parse(&file, &text)
    }

    /// Checks the text of a file of that name.
    pub(crate) fn parse(file: &str, text: &str) -> Result<Scenario> {
        let raw = raw::parse(file, text).map_err(anyhow::Error::msg)?;
        check::check(raw).map_err(|problems| {
            let lines: Vec<String> =
                problems.iter().map(|problem| format!("{file}: {problem}")).collect();
            anyhow::Error::msg(lines.join("\n"))
        })
    }

    /// The same, `factor` times as long.
    pub(crate) fn scale_time(&mut self, factor: f64) {
        self.capacity.length = self.capacity.length.mul_f64(factor);
        for phase in &mut self.phases {
            phase.length = phase.length.mul_f64(factor);
            for (_, pattern) in &mut phase.arrivals {
                pattern.shape.scale_time(factor);
            }
        }
    }

    /// How long the phases take.
    pub(crate) fn length(&self) -> Duration {
        self.phases.iter().map(|phase| phase.length).sum()
    }

    /// Whether any rate is a multiple of capacity.
    pub(crate) fn needs_capacity(&self) -> bool {
        let patterns = self.phases.iter().flat_map(|phase| &phase.arrivals);
        patterns
            .flat_map(|(_, pattern)| pattern.shape.rates())
            .any(|rate| matches!(rate, Rate::TimesCapacity(_)))
    }
}

// ===== impl Rate =====

impl Rate {
    /// Requests per second at that capacity.
    pub(crate) fn at(self, capacity: f64) -> f64 {
        match self {
            Rate::PerSecond(rate) => rate,
            Rate::TimesCapacity(factor) => factor * capacity,
        }
    }
}
