//! Loads that do not end, under a scripted engine: told to end, tried once more, left to themselves, and nobody waits behind them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by panicking")]

mod scripted;

use balm_inference::predict::PredictError;
use balm_probes::{ModelState, Reason, Rung, ServerPhase};
use scripted::{ECHO, House, Script};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Long enough for a load that does not hang, on a machine that is busy; each test waits for some of them.
const LIMIT: Duration = Duration::from_millis(1_500);

/// A house whose model `hangs` hangs at its load, before `m` is loaded.
fn hanging(heeds_cancel: bool, limit: Duration) -> House {
    let script = Script { load_limit: Some(limit), one_loader: true, ..Script::default() };
    let house = House::made(1, "", script);
    // It comes first by its name.
    scripted::add_version(house.repository.path(), "hangs", 1, "digits");
    let file = house.repository.path().join("hangs/1/model.onnx");
    let size = std::fs::metadata(file).unwrap().len();
    house.script.hang_size.store(size, Ordering::SeqCst);
    house.script.heeds_cancel.store(heeds_cancel, Ordering::SeqCst);
    house
}

fn state(house: &House) -> (ModelState, String) {
    let report = house.models.report();
    let version = report.model("hangs").unwrap().version(1).unwrap().clone();
    (version.state, version.reason.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_hangs_is_told_to_end_and_tried_once_more() {
    let house = hanging(true, LIMIT);
    house.load_all();
    let (state, reason) = state(&house);
    assert_eq!(state, ModelState::Failed);
    assert_eq!(
        reason,
        "its load takes longer than 1500 ms; tried 2 times (repository.load_timeout_ms)"
    );
    assert_eq!(house.script.builds.load(Ordering::SeqCst), 3, "two of it, one of the other");
    assert!(house.ask(ECHO).await.is_ok(), "the other model serves");
    assert_eq!(house.metric("balm_loads_abandoned", &[]), 0.0);
    assert_eq!(house.metric("balm_heal_actions_total", &["cancel", "load_overdue"]), 2.0);
    let report = house.models.report();
    let [incident] = report.incidents.as_slice() else { panic!("{:?}", report.incidents) };
    assert_eq!((incident.reason, incident.seen), (Reason::LoadOverdue, 2));
    assert!(incident.deeds.iter().all(|deed| deed.rung == Rung::Cancel));
    assert!(house.models.worker_verdict().is_none(), "the others go on");
    let refused = house.models.model("hangs").unwrap().serving(None).err().unwrap();
    assert!(matches!(refused, PredictError::NotReady { .. }), "{refused:?}");
    // Somebody asks for it again when it no longer hangs.
    house.script.hang_size.store(0, Ordering::SeqCst);
    house.models.load("hangs").unwrap();
    let report = house.models.report();
    assert!(report.incidents[0].healed_after_ms.is_some() && house.ready());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_try_may_succeed() {
    let house = hanging(true, LIMIT * 4);
    std::thread::scope(|scope| {
        scope.spawn(|| house.load_all());
        house.until("it hangs", |house| house.script.builds.load(Ordering::SeqCst) >= 1);
        house.script.hang_size.store(0, Ordering::SeqCst);
    });
    assert_eq!(state(&house), (ModelState::Ready, String::new()));
    assert!(house.ready());
    assert!(house.models.report().incidents[0].healed_after_ms.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_heeds_nothing_is_left_to_itself_and_nothing_of_it_is_seen() {
    let house = hanging(false, LIMIT);
    std::thread::scope(|scope| {
        scope.spawn(|| house.load_all());
        // Long before the other is given up.
        house.until("the other serves", |house| {
            house.models.model("m").is_ok_and(|model| model.serving(None).is_ok())
        });
        assert_eq!(house.models.report().server, ServerPhase::Starting);
    });
    let (found, reason) = state(&house);
    assert_eq!(found, ModelState::Failed);
    assert!(reason.contains("and does not end when it is told to; tried 2 times"), "{reason}");
    assert_eq!(house.metric("balm_loads_abandoned", &[]), 2.0);
    let error = house.models.load("hangs").unwrap_err().to_string();
    assert!(error.contains("2 loads of it, and 2 of all models, hang"), "{error}");
    assert_eq!(house.script.builds.load(Ordering::SeqCst), 3, "not even tried");
    // They come back after all, and bring nothing.
    house.script.let_go();
    house.until("gone", |house| house.metric("balm_loads_abandoned", &[]) == 0.0);
    assert_eq!(state(&house).0, ModelState::Failed);
    house.script.hang_size.store(0, Ordering::SeqCst);
    house.models.load("hangs").unwrap();
    assert!(house.ready());
}

/// What serves goes on while its reload hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_hangs_costs_nothing() {
    let house = hanging(true, LIMIT);
    let size = house.script.hang_size.swap(0, Ordering::SeqCst);
    house.load_all();
    scripted::add_version(house.repository.path(), "hangs", 2, "digits");
    house.script.hang_size.store(size, Ordering::SeqCst);
    house.models.load("hangs").unwrap_err();
    let serving = house.models.model("hangs").unwrap().serving(None).unwrap();
    assert_eq!(serving.version, 1);
    assert!(house.ready());
}
