//! Versions that did harm: not tried again, and the one before serves. Under a scripted engine.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by panicking")]

mod scripted;

use balm_inference::predict::PredictError;
use balm_probes::{ModelState, Quarantined, Reason, Rung};
use scripted::{ECHO, FAIL, House, Script};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// With version 1 in the repository, and 2 with other bytes, if it is there.
fn house(newer: bool) -> House {
    let house = House::made(1, "", Script::default());
    if newer {
        scripted::add_version(house.repository.path(), "m", 2, "digits");
    }
    house
}

fn digest(house: &House, version: u64) -> String {
    house.models.report().models[0].version(version).unwrap().digest.clone().unwrap()
}

fn serves(house: &House) -> Option<u64> {
    house.models.model("m").unwrap().serving(None).ok().map(|serving| serving.version)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_did_harm_before_is_tried_only_when_somebody_asks() {
    let before = house(true).settled(1);
    let digest = digest(&before, 2);
    let house = house(true);
    house.models.quarantine(vec![Quarantined {
        model: "m".to_owned(),
        version: 2,
        digest,
        reason: "the worker crashed 3 times while it was loaded".to_owned(),
        at_ms: 7,
    }]);
    house.load_all();
    assert_eq!(serves(&house), Some(1));
    assert_eq!(house.state(2), ModelState::Quarantined);
    assert_eq!(
        house.reason(2),
        "the worker crashed 3 times while it was loaded; not tried again until its files change or somebody asks for its load"
    );
    assert_eq!(house.script.builds.load(Ordering::SeqCst), 1, "not even built");
    assert!(house.ready());
    house.models.load("m").unwrap();
    assert_eq!(serves(&house), Some(2), "asked for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_bytes_are_another_version() {
    let house = house(true);
    house.models.quarantine(vec![Quarantined {
        model: "m".to_owned(),
        version: 2,
        digest: "0".repeat(64),
        reason: String::new(),
        at_ms: 7,
    }]);
    house.load_all();
    assert_eq!(serves(&house), Some(2));
}

/// Rung L4: half of the runs of a version fail that took over lately; the one before takes over again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_that_mostly_fails_makes_way_for_the_one_before() {
    let house = house(false).settled(1);
    scripted::add_version(house.repository.path(), "m", 2, "digits");
    house.models.load("m").unwrap();
    assert_eq!(serves(&house), Some(2));
    for _ in 0..20 {
        let error = house.ask(FAIL).await.unwrap_err();
        assert!(matches!(error, PredictError::Runtime(_)), "{error:?}");
    }
    house.pass(balm_probes::watchdog::TICK);
    house.until("the one before serves", |house| serves(house) == Some(1));
    house.until("told", |house| {
        house.models.report().incidents.iter().all(|incident| incident.healed_after_ms.is_some())
    });
    let report = house.models.report();
    let [incident] = report.incidents.as_slice() else { panic!("{:?}", report.incidents) };
    assert_eq!((incident.reason, incident.deeds[0].rung), (Reason::VersionHarmful, Rung::Version));
    assert_eq!(house.state(2), ModelState::Quarantined);
    assert!(house.reason(2).starts_with("half of its runs failed"), "{}", house.reason(2));
    assert_eq!(house.metric("balm_heal_actions_total", &["version", "version_harmful"]), 1.0);
    // The door opens with the canary of the one that serves now.
    house.until("answered", |house| {
        house.pass(balm_probes::watchdog::TICK);
        house.submit(ECHO, Duration::from_secs(20)).is_ok()
    });
    assert!(house.ready() && house.models.worker_verdict().is_none());
}

/// A version that has served from the start is not sent away for what may be its clients' doing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_did_not_take_over_is_the_breakers_business_alone() {
    let house = house(true).settled(1);
    for _ in 0..20 {
        house.ask(FAIL).await.unwrap_err();
    }
    house.pass(Duration::from_secs(1));
    assert_eq!(serves(&house), Some(2));
    assert!(house.models.report().incidents.is_empty());
}
