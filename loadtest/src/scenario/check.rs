//! From what is written to what is meant: every problem at once, each with its field and what would be right.

mod entry;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{
    Capacity, Client, Encoding, Input, Phase, Protocol, Rate, Recovery, Scenario, Target, raw,
};
use crate::arrivals::{Pattern, Shape};
use crate::figures::{Catalog, Expectation, Limit, RESERVED};
use crate::kubelet::{Kind, Settings as ProbeSettings};
use crate::nearest::hint;
use crate::payload::{Datatype, Fill, TensorPlan};

/// Phases, clients and the like are written by hand: more than this is a mistake.
const ENTRIES_MAX: usize = 64;
const DAY_S: f64 = 86_400.0;
const RATE_MAX: f64 = 1e6;
const TIMES_MAX: f64 = 1000.0;
/// Requests in flight, all clients together: each may be a connection.
const OUTSTANDING_MAX: usize = 20_000;

/// Collects problems and stands in for values that are wrong, so that the next one can be looked at.
#[derive(Default)]
pub(super) struct Checker {
    problems: Vec<String>,
}

/// Checks everything.
pub(super) fn check(raw: raw::Scenario) -> Result<Scenario, Vec<String>> {
    let mut checker = Checker::default();
    let scenario = checker.scenario(raw);
    if checker.problems.is_empty() { Ok(scenario) } else { Err(checker.problems) }
}

impl Checker {
    fn wrong(&mut self, problem: String) {
        self.problems.push(problem);
    }

    fn scenario(&mut self, raw: raw::Scenario) -> Scenario {
        for (what, count, least) in [
            ("client", raw.client.len(), 1),
            ("phase", raw.phase.len(), 1),
            ("probe", raw.probe.len(), 0),
            ("expect", raw.expect.len(), 0),
        ] {
            if !(least..=ENTRIES_MAX).contains(&count) {
                self.wrong(format!("{what}: {count} entries, expected {least} to {ENTRIES_MAX}"));
            }
        }
        let clients: Vec<Client> =
            raw.client.into_iter().map(|client| self.client(client)).collect();
        self.unique("client", clients.iter().map(|client| client.name.as_str()));
        let outstanding: usize = clients.iter().map(|client| client.max_outstanding).sum();
        if outstanding > OUTSTANDING_MAX {
            self.wrong(format!(
                "client.max_outstanding: {outstanding} in all, at most {OUTSTANDING_MAX} are allowed"
            ));
        }
        let names: Vec<String> = raw.phase.iter().map(|phase| phase.name.clone()).collect();
        self.unique("phase", names.iter().map(String::as_str));
        let phases: Vec<Phase> =
            raw.phase.into_iter().map(|phase| self.phase(phase, &clients, &names)).collect();
        let probes: Vec<ProbeSettings> =
            raw.probe.into_iter().filter_map(|probe| self.probe(probe)).collect();
        self.unique("probe", probes.iter().map(|probe| probe.kind.name()));
        let catalog = Catalog::new(&phases, &clients, &probes);
        let expectations =
            raw.expect.iter().filter_map(|expect| self.expectation(expect, &catalog)).collect();
        Scenario {
            name: raw.name,
            description: raw.description,
            seed: raw.seed,
            bucket: raw
                .bucket_ms
                .map(|ms| self.millis("bucket_ms", i64::try_from(ms).ok(), (50, 60_000), 1000)),
            coalesce: self.millis("coalesce_us", raw.coalesce_us, (0, 20_000), 0) / 1000,
            target: self.target(raw.target),
            capacity: self.capacity(&raw.capacity),
            clients,
            phases,
            probes,
            expectations,
        }
    }

    /// A name that can stand in a figure and in a header.
    fn name(&mut self, field: &str, name: &str) {
        let fits = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_');
        if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
            self.wrong(format!(
                "{field} = {name:?}: a name has 1 to 64 letters, digits, - or _ and nothing else"
            ));
        } else if name.parse::<f64>().is_ok() {
            self.wrong(format!("{field} = {name:?}: a name must not look like a number"));
        }
    }

    fn unique<'a>(&mut self, what: &str, names: impl Iterator<Item = &'a str>) {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name) {
                self.wrong(format!("{what}.{name}: there are two of that name"));
            }
        }
    }

    fn int(&mut self, field: &str, value: Option<i64>, range: (i64, i64), usual: i64) -> i64 {
        let (least, most) = range;
        match value {
            Some(value) if (least..=most).contains(&value) => value,
            Some(value) => {
                self.wrong(format!("{field} = {value}: expected {least} to {most}"));
                usual
            }
            None => usual,
        }
    }

    fn count(&mut self, field: &str, value: Option<i64>, range: (i64, i64), usual: i64) -> usize {
        usize::try_from(self.int(field, value, range, usual)).unwrap_or_default()
    }

    fn millis(
        &mut self,
        field: &str,
        value: Option<i64>,
        range: (i64, i64),
        usual: i64,
    ) -> Duration {
        Duration::from_millis(
            u64::try_from(self.int(field, value, range, usual)).unwrap_or_default(),
        )
    }

    fn float(&mut self, field: &str, value: Option<f64>, range: (f64, f64), usual: f64) -> f64 {
        let (least, most) = range;
        match value {
            Some(value) if (least..=most).contains(&value) => value,
            Some(value) => {
                self.wrong(format!("{field} = {value}: expected {least} to {most}"));
                usual
            }
            None => usual,
        }
    }

    fn one_of<T: Copy>(&mut self, field: &str, value: Option<&str>, known: &[(&str, T)]) -> T {
        let (_, usual) = known[0];
        let Some(value) = value else { return usual };
        if let Some((_, found)) = known.iter().find(|(name, _)| *name == value) {
            return *found;
        }
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let meant = hint(value, names.iter().copied());
        self.wrong(format!("{field} = {value:?}: expected {}{meant}", names.join(" or ")));
        usual
    }

    fn target(&mut self, raw: raw::Target) -> Target {
        if raw.model.is_empty() || raw.model.contains(['/', '?', '#', ' ', '%']) {
            self.wrong(format!("target.model = {:?}: that is no name of a model", raw.model));
        }
        let given = usize::from(raw.case.is_some())
            + usize::from(!raw.input.is_empty())
            + usize::from(raw.rows.is_some() || raw.dynamic.is_some());
        if given > 1 {
            self.wrong(
                "target: expected one of `case`, `[[target.input]]`, or `rows` and `dynamic`"
                    .to_owned(),
            );
        }
        let fill = self.fill("target.fill", raw.fill.as_deref());
        let input = if let Some(case) = raw.case {
            Input::Case(case)
        } else if raw.input.is_empty() {
            Input::Metadata {
                rows: self.int("target.rows", raw.rows, (1, 65_536), 1),
                dynamic: self.int("target.dynamic", raw.dynamic, (1, 65_536), 1),
                fill,
            }
        } else {
            Input::Tensors(raw.input.into_iter().filter_map(|input| self.input(input)).collect())
        };
        Target {
            model: raw.model,
            version: raw.version,
            protocol: self.one_of(
                "target.protocol",
                raw.protocol.as_deref(),
                &[("http1", Protocol::Http1), ("http2", Protocol::Http2)],
            ),
            encoding: self.one_of(
                "target.encoding",
                raw.encoding.as_deref(),
                &[("binary", Encoding::Binary), ("json", Encoding::Json)],
            ),
            input,
            give_up: Duration::from_secs_f64(self.float(
                "target.give_up_s",
                raw.give_up_s,
                (0.5, 3600.0),
                10.0,
            )),
        }
    }

    fn fill(&mut self, field: &str, value: Option<&str>) -> Fill {
        self.one_of(
            field,
            value,
            &[("ones", Fill::Ones), ("zeros", Fill::Zeros), ("random", Fill::Random)],
        )
    }

    fn input(&mut self, raw: raw::Input) -> Option<TensorPlan> {
        let field = format!("target.input.{}", raw.name);
        let fill = self.fill(&format!("{field}.fill"), raw.fill.as_deref());
        let Some(datatype) = Datatype::parse(&raw.datatype) else {
            self.wrong(format!(
                "{field}.datatype = {:?}: expected {}",
                raw.datatype,
                Datatype::names().join(", ")
            ));
            return None;
        };
        match TensorPlan::new(raw.name, datatype, raw.shape, fill) {
            Ok(plan) => Some(plan),
            Err(problem) => {
                self.wrong(format!("{field}.shape: {problem}"));
                None
            }
        }
    }

    fn capacity(&mut self, raw: &raw::Capacity) -> Capacity {
        if raw.rate.is_some() && (raw.connections.is_some() || raw.seconds.is_some() || raw.again) {
            self.wrong(
                "capacity.rate: a capacity that is given is not measured: drop the other keys"
                    .to_owned(),
            );
        }
        Capacity {
            connections: self.count("capacity.connections", raw.connections, (1, 4096), 16),
            length: Duration::from_secs_f64(self.float(
                "capacity.seconds",
                raw.seconds,
                (0.2, 3600.0),
                10.0,
            )),
            again: raw.again,
            rate: raw
                .rate
                .map(|rate| self.float("capacity.rate", Some(rate), (0.01, RATE_MAX), 1.0)),
        }
    }
}
