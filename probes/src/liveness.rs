//! Liveness and startup: is the process beyond repair, and is its start over?
//!
//! Time is counted in ticks of the watchdog itself, not of the wall. A process that was stopped, throttled or
//! moved did not tick either, so the pause counts for nothing and nobody is killed for it.

use serde::{Deserialize, Serialize};

use crate::report::{HealthReport, ServerPhase};

/// Whether the process should be left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Liveness {
    /// False only when a restart is the one remedy left.
    pub live: bool,
    /// Why not: one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Whether the start is over, so that liveness and readiness may be asked from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Startup {
    /// Whether it is over.
    pub started: bool,
    /// What it waits for: a sentence for each. Empty when started.
    pub reasons: Vec<String>,
}

/// Judges by the age of the last heartbeat, all in ticks of the watchdog.
///
/// A beat exactly `limit_ticks` old is still good. A beat from the future, which two threads that read two
/// counters can produce, is fresh.
pub fn liveness(now_ticks: u64, last_beat_ticks: u64, limit_ticks: u64) -> Liveness {
    let age_ticks = now_ticks.saturating_sub(last_beat_ticks);
    if age_ticks <= limit_ticks {
        return Liveness { live: true, reason: None };
    }
    let reason = format!("no heartbeat for {age_ticks} ticks of the watchdog, limit {limit_ticks}");
    Liveness { live: false, reason: Some(reason) }
}

/// Judges whether the start is over: the server was ready once, or it runs, nothing declared is still on its
/// way and at least one declared model serves.
///
/// The second way is for the server with one bad model among good ones: it is not ready where the policy asks
/// for all, but no restart would mend it, and the startup probe must not ask for one. The caller remembers
/// `was_ready_once`; it is what keeps the answer from going back.
pub fn startup(report: &HealthReport, was_ready_once: bool) -> Startup {
    if was_ready_once {
        return Startup { started: true, reasons: Vec::new() };
    }
    let mut reasons = Vec::new();
    if report.server != ServerPhase::Running {
        reasons.push(format!("the server is {}", report.server.as_str()));
    }
    let mut serves = false;
    for model in report.models.iter().filter(|model| model.declared) {
        serves |= model.newest_serving().is_some();
        for version in &model.versions {
            if version.state.in_transit() {
                reasons.push(format!("model '{}': {}", model.name, version.sentence()));
            }
        }
    }
    if !serves {
        reasons.push("no declared model serves".to_owned());
    }
    Startup { started: reasons.is_empty(), reasons }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::{LaneCounts, ModelReport, VersionReport};
    use crate::state::ModelState;

    #[test]
    fn the_limit_is_included() {
        let cases = [
            (0, 0, 0, true),
            (100, 0, 100, true),
            (101, 0, 100, false),
            (5, 9, 0, true),
            (u64::MAX, 0, u64::MAX, true),
            (u64::MAX, 0, u64::MAX - 1, false),
        ];
        for (now, beat, limit, live) in cases {
            let verdict = liveness(now, beat, limit);
            assert_eq!(verdict.live, live, "now {now} beat {beat} limit {limit}");
            assert_eq!(verdict.reason.is_none(), live);
        }
    }

    fn report(server: ServerPhase, models: &[(bool, ModelState, u32)]) -> HealthReport {
        let models = models.iter().enumerate().map(|(index, &(declared, state, healthy))| {
            let mut version = VersionReport::new(1, state);
            version.lanes = LaneCounts { wanted: 1, healthy };
            ModelReport { name: format!("m{index}"), declared, versions: vec![version] }
        });
        HealthReport { server, models: models.collect(), ..HealthReport::default() }
    }

    #[test]
    fn the_start_is_over_when_nothing_moves_and_something_serves() {
        use ModelState::*;
        use ServerPhase::{Running, Starting};
        let cases: [(&str, HealthReport, bool); 8] = [
            ("empty", report(Running, &[]), false),
            ("serves", report(Running, &[(true, Ready, 1)]), true),
            ("not running yet", report(Starting, &[(true, Ready, 1)]), false),
            ("one still loads", report(Running, &[(true, Ready, 1), (true, Loading, 0)]), false),
            ("one failed", report(Running, &[(true, Ready, 1), (true, Failed, 0)]), true),
            ("all failed", report(Running, &[(true, Failed, 0)]), false),
            ("undeclared loads", report(Running, &[(true, Ready, 1), (false, Loading, 0)]), true),
            ("undeclared alone", report(Running, &[(false, Ready, 1)]), false),
        ];
        for (name, report, started) in cases {
            let verdict = startup(&report, false);
            assert_eq!(verdict.started, started, "{name}: {verdict:?}");
            assert_eq!(verdict.reasons.is_empty(), started, "{name}: {verdict:?}");
        }
    }

    proptest! {
        #[test]
        fn once_ready_is_started_for_good(
            states in proptest::collection::vec((any::<bool>(), 0..11u8, 0..2u32), 0..4),
        ) {
            let states: Vec<_> = states
                .into_iter()
                .map(|(declared, state, healthy)| (declared, ModelState::from_u8(state).unwrap(), healthy))
                .collect();
            for server in [ServerPhase::Starting, ServerPhase::Draining, ServerPhase::Stopped] {
                prop_assert!(startup(&report(server, &states), true).started);
            }
        }

        #[test]
        fn an_older_beat_is_never_livelier(now in any::<u64>(), a in any::<u64>(), b in any::<u64>(), limit in any::<u64>()) {
            let (older, newer) = (a.min(b), a.max(b));
            prop_assert!(!liveness(now, older, limit).live || liveness(now, newer, limit).live);
        }
    }
}
