use proptest::prelude::*;

use super::*;
use crate::report::{LaneCounts, VersionReport};
use crate::state::ModelState;

fn version(number: u64, state: ModelState, healthy: u32) -> VersionReport {
    let mut version = VersionReport::new(number, state);
    version.lanes = LaneCounts { wanted: 2, healthy };
    version
}

fn model(name: &str, declared: bool, versions: Vec<VersionReport>) -> ModelReport {
    ModelReport { name: name.to_owned(), declared, versions }
}

fn running(models: Vec<ModelReport>) -> HealthReport {
    HealthReport { server: ServerPhase::Running, models, ..HealthReport::default() }
}

fn listed(names: &[&str]) -> ReadinessPolicy {
    ReadinessPolicy::Listed(names.iter().map(|name| (*name).to_owned()).collect())
}

#[test]
fn the_table() {
    use ModelState::*;
    let good = |name: &str| model(name, true, vec![version(1, Ready, 2)]);
    let bad = |name: &str| model(name, true, vec![version(1, Failed, 0)]);
    let late = |state| model("late", false, vec![version(1, state, 1)]);
    let all = ReadinessPolicy::All;
    let any = ReadinessPolicy::Any;
    let cases: Vec<(&str, Vec<ModelReport>, ReadinessPolicy, bool)> = vec![
        ("empty repository", vec![], all.clone(), false),
        ("empty repository, any", vec![], any.clone(), false),
        ("one good", vec![good("a")], all.clone(), true),
        ("one of two", vec![good("a"), bad("b")], all.clone(), false),
        ("one of two, any", vec![good("a"), bad("b")], any.clone(), true),
        ("none of two, any", vec![bad("a"), bad("b")], any.clone(), false),
        ("the listed one of two", vec![good("a"), bad("b")], listed(&["a"]), true),
        ("the wrong one of two", vec![good("a"), bad("b")], listed(&["b"]), false),
        ("listed, not there", vec![good("a")], listed(&["a", "c"]), false),
        ("nothing listed", vec![good("a")], listed(&[]), false),
        ("listed and loaded later", vec![late(Ready)], listed(&["late"]), true),
        ("only an undeclared one", vec![late(Ready)], all.clone(), false),
        ("only an undeclared one, any", vec![late(Ready)], any.clone(), false),
        ("an undeclared one loads", vec![good("a"), late(Loading)], all.clone(), true),
        ("an undeclared one failed", vec![good("a"), late(Failed)], all.clone(), true),
        (
            "degraded serves",
            vec![model("a", true, vec![version(1, Degraded, 1)])],
            all.clone(),
            true,
        ),
        ("no lane left", vec![model("a", true, vec![version(1, Ready, 0)])], all.clone(), false),
        ("no version", vec![model("a", true, vec![])], all.clone(), false),
        (
            "the older version serves",
            vec![model("a", true, vec![version(1, Ready, 1), version(2, Failed, 0)])],
            all.clone(),
            true,
        ),
        (
            "the older version serves while the newer loads",
            vec![model("a", true, vec![version(2, Loading, 0), version(1, Ready, 1)])],
            all,
            true,
        ),
    ];
    for (name, models, policy, ready) in cases {
        let verdict = readiness(&running(models), &policy);
        assert_eq!(verdict.ready, ready, "{name}: {verdict:?}");
        assert_eq!(verdict.ready, verdict.reasons.is_empty(), "{name}: {verdict:?}");
    }
}

#[test]
fn only_one_phase_takes_traffic() {
    let models = vec![model("a", true, vec![version(1, ModelState::Ready, 1)])];
    let cases = [
        (ServerPhase::Starting, false, true),
        (ServerPhase::Running, true, true),
        (ServerPhase::Draining, false, false),
        (ServerPhase::Stopped, false, false),
    ];
    for (phase, server, model) in cases {
        let report = HealthReport { server: phase, ..running(models.clone()) };
        assert_eq!(readiness(&report, &ReadinessPolicy::All).ready, server, "{phase:?}");
        assert_eq!(model_ready(&report, "a", None).unwrap().ready, model, "{phase:?}");
    }
}

#[test]
fn the_reasons_are_sentences() {
    let mut failed = version(2, ModelState::Failed, 0);
    failed.reason = Some("SHA-256 of model.onnx is aa, SHA256SUMS says bb".to_owned());
    let old = model("a", true, vec![version(1, ModelState::Ready, 1), failed.clone()]);
    let only = model("b", true, vec![failed]);
    let verdict = readiness(&running(vec![old, only]), &ReadinessPolicy::All);
    assert_eq!(
        verdict.reasons,
        [
            "model 'b' serves no version: version 2 is failed: SHA-256 of model.onnx is aa, SHA256SUMS says bb"
        ]
    );
    assert_eq!(
        verdict.notes,
        [
            "model 'a' serves version 1, for version 2 is failed: SHA-256 of model.onnx is aa, SHA256SUMS says bb"
        ]
    );
}

#[test]
fn one_model_or_one_version() {
    let report = running(vec![model(
        "a",
        false,
        vec![version(1, ModelState::Ready, 1), version(2, ModelState::Failed, 0)],
    )]);
    assert!(model_ready(&report, "a", None).unwrap().ready);
    assert!(model_ready(&report, "a", Some(1)).unwrap().ready);
    assert!(!model_ready(&report, "a", Some(2)).unwrap().ready);
    assert_eq!(model_ready(&report, "a", Some(3)), None);
    assert_eq!(model_ready(&report, "b", None), None);
}

fn any_model(
    name: &'static str,
    declared: impl Strategy<Value = bool>,
) -> impl Strategy<Value = ModelReport> {
    let versions = proptest::collection::vec((1..4u64, 0..11u8, 0..3u32), 0..4);
    (declared, versions).prop_map(move |(declared, versions)| {
        let versions = versions.into_iter().map(|(number, state, healthy)| {
            version(number, ModelState::from_u8(state).unwrap(), healthy)
        });
        model(name, declared, versions.collect())
    })
}

fn any_report() -> impl Strategy<Value = HealthReport> {
    let phases = prop::sample::select(vec![
        ServerPhase::Starting,
        ServerPhase::Running,
        ServerPhase::Draining,
        ServerPhase::Stopped,
    ]);
    (phases, any_model("a", any::<bool>()), any_model("b", any::<bool>()), 0..3usize).prop_map(
        |(server, a, b, count)| HealthReport {
            server,
            models: [a, b].into_iter().take(count).collect(),
            ..HealthReport::default()
        },
    )
}

fn any_policy() -> impl Strategy<Value = ReadinessPolicy> {
    prop_oneof![
        Just(ReadinessPolicy::All),
        Just(ReadinessPolicy::Any),
        proptest::sample::subsequence(vec!["a", "b", "c"], 0..=3).prop_map(|names| listed(&names)),
    ]
}

#[test]
fn what_is_less_than_asked_for_is_noted() {
    use ModelState::*;
    let table = [
        ("as asked for", vec![version(1, Ready, 2)], 0),
        ("the newest of two", vec![version(1, Ready, 2), version(2, Ready, 2)], 0),
        ("the newest is on the way", vec![version(1, Ready, 2), version(2, Loading, 0)], 1),
        ("degraded", vec![version(1, Degraded, 2)], 1),
        ("the newest has no lane", vec![version(1, Degraded, 2), version(2, Ready, 0)], 1),
    ];
    for (name, versions, notes) in table {
        let verdict = readiness(&running(vec![model("a", true, versions)]), &ReadinessPolicy::All);
        assert!(verdict.ready, "{name}: {verdict:?}");
        assert_eq!(verdict.notes.len(), notes, "{name}: {verdict:?}");
    }
}

proptest! {
    #[test]
    fn an_undeclared_model_changes_nothing(
        report in any_report(),
        policy in any_policy(),
        later in any_model("later", Just(false)),
        at in 0..3usize,
    ) {
        let before = readiness(&report, &policy);
        let mut report = report;
        report.models.insert(at.min(report.models.len()), later);
        prop_assert_eq!(readiness(&report, &policy), before);
    }

    #[test]
    fn ready_means_that_a_prediction_would_work(report in any_report(), policy in any_policy()) {
        let verdict = readiness(&report, &policy);
        prop_assert_eq!(verdict.ready, verdict.reasons.is_empty());
        if verdict.ready {
            prop_assert_eq!(report.server, ServerPhase::Running);
            let serves = report.models.iter().any(|model| model_ready(&report, &model.name, None).unwrap().ready);
            prop_assert!(serves);
        }
    }

    #[test]
    fn all_is_stricter_than_any(report in any_report()) {
        let all = readiness(&report, &ReadinessPolicy::All).ready;
        let any = readiness(&report, &ReadinessPolicy::Any).ready;
        prop_assert!(!all || any);
    }

    #[test]
    fn a_further_serving_version_never_harms(report in any_report(), policy in any_policy(), number in 4..6u64) {
        let before = readiness(&report, &policy).ready;
        let mut report = report;
        for model in &mut report.models {
            model.versions.push(version(number, ModelState::Ready, 1));
        }
        prop_assert!(!before || readiness(&report, &policy).ready);
    }
}
