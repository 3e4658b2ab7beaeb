//! The figures of a run by name, which of them a scenario can have, and what is expected of them.
//!
//! A figure of a phase is `PHASE.FIGURE`, one of a client in a phase is `PHASE.CLIENT.FIGURE`; the others are listed in
//! [`CAPACITY`], [`GENERATOR`] and by probe in [`PROBE`].

mod expression;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::kubelet::Settings as ProbeSettings;
use crate::nearest::hint;
use crate::scenario::{Client, Phase};
use expression::Expression;

/// What no phase may be called.
pub(crate) const RESERVED: [&str; 3] = ["capacity", "probes", "generator"];

/// Figures of a phase, and of a client in a phase. `status_NNN` counts answers of that status.
pub(crate) const PHASE: [&str; 23] = [
    // Arrivals of the plan, sent or not.
    "offered_per_s",
    // Attempts, retries among them.
    "sent_per_s",
    // Good answers within the phase: 2xx, in time where there is a deadline, of the right size.
    "goodput_per_s",
    // The same beside the capacity.
    "goodput_ratio",
    // Requests of the phase that had a good answer in the end, beside its arrivals.
    "success_ratio",
    // From the intended moment of the attempt to the last byte of a 2xx.
    "accepted_p50_ms",
    "accepted_p99_ms",
    "accepted_p999_ms",
    "accepted_max_ms",
    // To the last byte of any other answer.
    "rejected_p50_ms",
    "rejected_p99_ms",
    "rejected_p999_ms",
    "rejected_max_ms",
    "offered",
    "sent",
    "accepted",
    "rejected",
    // 2xx after the client's deadline.
    "late",
    // 2xx of another size than the recorded answer.
    "wrong",
    // No answer: refused, reset, or not within the client's timeout.
    "transport_errors",
    // Dropped by the client on purpose.
    "abandoned",
    // Not sent since as many as may be were in flight.
    "not_sent",
    // Had no good answer, and no attempt was left.
    "failed",
];

const RECOVERY: &str = "recovery_s";

/// `capacity.…`
pub(crate) const CAPACITY: [&str; 4] = ["per_s", "p50_ms", "p99_ms", "again_ratio"];

/// `generator.…`
pub(crate) const GENERATOR: [&str; 6] =
    ["lag_p99_ms", "lag_max_ms", "cores_max", "ceiling_per_s", "cpu_us_per_request", "stalls"];

/// `probes.live_…` and so on, for every probe that is polled.
pub(crate) const PROBE: [&str; 6] = ["p50_ms", "p99_ms", "p999_ms", "max_ms", "failures", "polls"];

/// `probes.…`: times that a container would have been restarted, and times that readiness went from true to false.
pub(crate) const PROBES: [&str; 2] = ["restarts", "ready_false"];

/// The figures of a run. One that was not measured is not there.
pub(crate) type Figures = BTreeMap<String, f64>;

/// Which figures a scenario has.
pub(crate) struct Catalog {
    names: Vec<String>,
    /// `PHASE.` and `PHASE.CLIENT.`, for statuses.
    prefixes: Vec<String>,
}

/// On which side of its bound a figure has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Limit {
    AtMost,
    AtLeast,
    Equals,
}

/// What a figure should be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expectation {
    figure: String,
    limit: Limit,
    text: String,
    bound: Expression,
}

/// An expectation and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Judged {
    pub(crate) figure: String,
    pub(crate) limit: Limit,
    /// The bound as the scenario has it.
    pub(crate) bound: String,
    /// What that is.
    pub(crate) bound_value: Option<f64>,
    /// None where it was not measured, which is a failure.
    pub(crate) found: Option<f64>,
    pub(crate) passed: bool,
}

// ===== impl Catalog =====

impl Catalog {
    /// The figures that a run with these has.
    pub(crate) fn new(phases: &[Phase], clients: &[Client], probes: &[ProbeSettings]) -> Catalog {
        let mut names = Vec::new();
        let mut prefixes = Vec::new();
        for phase in phases {
            prefixes.push(format!("{}.", phase.name));
            for (client, _) in &phase.arrivals {
                if let Some(client) = clients.get(*client) {
                    prefixes.push(format!("{}.{}.", phase.name, client.name));
                }
            }
            if phase.recovery.is_some() {
                names.push(format!("{}.{RECOVERY}", phase.name));
            }
        }
        for prefix in &prefixes {
            names.extend(PHASE.map(|figure| format!("{prefix}{figure}")));
        }
        names.extend(CAPACITY.map(|figure| format!("capacity.{figure}")));
        names.extend(GENERATOR.map(|figure| format!("generator.{figure}")));
        for probe in probes {
            let kind = probe.kind.name();
            names.extend(PROBE.map(|figure| format!("probes.{kind}_{figure}")));
        }
        if !probes.is_empty() {
            names.extend(PROBES.map(|figure| format!("probes.{figure}")));
        }
        Catalog { names, prefixes }
    }

    /// Whether there is such a figure, or what is wrong with the name.
    pub(crate) fn check(&self, name: &str) -> Result<(), String> {
        let is_status = self.prefixes.iter().any(|prefix| {
            let status =
                name.strip_prefix(prefix.as_str()).and_then(|rest| rest.strip_prefix("status_"));
            status
                .and_then(|digits| digits.parse::<u16>().ok())
                .is_some_and(|status| (100..600).contains(&status))
        });
        if is_status || self.names.iter().any(|known| known == name) {
            return Ok(());
        }
        let meant = hint(name, self.names.iter().map(String::as_str));
        let remedy = if meant.is_empty() {
            "; a figure is PHASE.FIGURE, PHASE.CLIENT.FIGURE, capacity.…, generator.… or probes.…"
        } else {
            ""
        };
        Err(format!("there is no figure {name:?} in this scenario{meant}{remedy}"))
    }
}

// ===== impl Expectation =====

impl Expectation {
    /// Of the figure; `bound` is a number, or sums and products of numbers and figures.
    pub(crate) fn new(
        figure: &str,
        limit: Limit,
        bound: &str,
        catalog: &Catalog,
    ) -> Result<Expectation, String> {
        let expression = Expression::parse(bound)?;
        for name in expression.figures() {
            catalog.check(name)?;
        }
        Ok(Expectation {
            figure: figure.to_owned(),
            limit,
            text: bound.to_owned(),
            bound: expression,
        })
    }

    /// What came of it. What was not measured has not passed.
    pub(crate) fn judge(&self, figures: &Figures) -> Judged {
        let (found, bound) = (self.value(&self.figure, figures), self.bound.value(figures));
        let passed = match (found, bound) {
            (Some(found), Some(bound)) => match self.limit {
                Limit::AtMost => found <= bound,
                Limit::AtLeast => found >= bound,
                Limit::Equals => (found - bound).abs() <= 1e-9 * bound.abs().max(1.0),
            },
            _ => false,
        };
        Judged {
            figure: self.figure.clone(),
            limit: self.limit,
            bound: self.text.clone(),
            bound_value: bound,
            found,
            passed,
        }
    }

    fn value(&self, name: &str, figures: &Figures) -> Option<f64> {
        expression::lookup(name, figures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;

    fn catalog() -> Catalog {
        let scenario = Scenario::parse("a.toml", crate::scenario::SAMPLE).unwrap();
        Catalog::new(&scenario.phases, &scenario.clients, &scenario.probes)
    }

    #[test]
    fn names_are_checked_before_the_run() {
        let catalog = catalog();
        for name in [
            "base.goodput_ratio",
            "base.noisy.accepted_p99_ms",
            "base.noisy.status_429",
            "base.status_503",
            "after.recovery_s",
            "capacity.per_s",
            "probes.live_p999_ms",
            "probes.ready_false",
            "generator.lag_p99_ms",
        ] {
            assert_eq!(catalog.check(name), Ok(()), "{name}");
        }
        for (name, meant) in [
            ("base.godput_ratio", "base.goodput_ratio"),
            ("base.nosy.accepted_p99_ms", "base.noisy.accepted_p99_ms"),
            ("probes.life_p999_ms", "probes.live_p999_ms"),
        ] {
            let error = catalog.check(name).unwrap_err();
            assert!(error.ends_with(&format!("did you mean {meant}?")), "{error}");
        }
        for name in ["base.status_42", "base.status_x", "base.recovery_s", "nowhere", ""] {
            assert!(catalog.check(name).is_err(), "{name}");
        }
    }

    #[test]
    fn expectations_are_judged() {
        let figures: Figures = [("base.accepted_p99_ms", 10.0), ("after.accepted_p99_ms", 12.5)]
            .map(|(name, value)| (name.to_owned(), value))
            .into();
        let judged = |figure: &str, limit, bound: &str| {
            Expectation::new(figure, limit, bound, &catalog()).unwrap().judge(&figures)
        };
        for (figure, limit, bound, passed) in [
            ("after.accepted_p99_ms", Limit::AtMost, "base.accepted_p99_ms * 1.3", true),
            ("after.accepted_p99_ms", Limit::AtMost, "base.accepted_p99_ms * 1.2", false),
            ("after.accepted_p99_ms", Limit::AtLeast, "12.5", true),
            ("after.accepted_p99_ms", Limit::AtLeast, "13", false),
            ("after.accepted_p99_ms", Limit::Equals, "12.5", true),
            ("after.accepted_p99_ms", Limit::Equals, "12", false),
            // Nothing of that status was counted: that is zero, and no missing figure.
            ("base.status_500", Limit::Equals, "0", true),
            ("base.accepted_p50_ms", Limit::AtMost, "1000", false),
            ("after.accepted_p99_ms", Limit::AtMost, "after.recovery_s", false),
        ] {
            let judged = judged(figure, limit, bound);
            assert_eq!(judged.passed, passed, "{judged:?}");
        }
        let error =
            Expectation::new("base.offered", Limit::AtMost, "bas.offered", &catalog()).unwrap_err();
        assert!(error.contains("did you mean base.offered?"), "{error}");
    }
}
