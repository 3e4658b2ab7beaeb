//! Lanes that hang, under a scripted engine: seen in time, replaced within the budget, and told as one story.
//!
//! The watchdog's clock is its ticks, so the seconds of its grace pass here in no time. The numbers T12 to T15 are those of the
//! acceptance tests that the fault catalogue names.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by panicking")]

mod scripted;

use balm_inference::admission::ShedReason;
use balm_inference::predict::PredictError;
use balm_probes::breaker::BreakerState;
use balm_probes::{ModelState, Reason, Rung};
use scripted::{DEAF, ECHO, FAIL, HANG, House, PANIC, SPIN, STICKY};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const GRACE: Duration = Duration::from_secs(2);

fn ticks(count: u32) -> Duration {
    balm_probes::watchdog::TICK * count
}

/// T12: what heeds its cancel is back at once, and no session is built anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_heeds_its_cancel_costs_no_lane() {
    let house = House::loaded(1);
    let pending = house.submit(HANG, Duration::from_millis(500)).unwrap();
    house.until("running", |house| house.runs() == 1);
    let error = pending.wait().await.unwrap_err();
    assert_eq!(error, PredictError::Deadline { deadline_ms: 500, phase: "ran" });
    let begun = Instant::now();
    assert!(house.ask(ECHO).await.is_ok());
    assert!(begun.elapsed() < Duration::from_secs(1), "the lane was back late");
    house.pass(GRACE * 3);
    assert_eq!(house.script.builds.load(Ordering::SeqCst), 1);
    assert_eq!(house.metric("balm_heal_actions_total", &["cancel", "deadline"]), 1.0);
    assert_eq!(house.metric("balm_heal_actions_total", &["lane", "hung_blocked"]), 0.0);
    assert!(house.models.report().incidents.is_empty(), "a deadline is no incident");
    assert!(house.idle());
}

/// T13: a lane that heeds no cancel is hung after the grace; another comes, those beside it go on, and readiness stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_heeds_no_cancel_is_replaced() {
    let house = House::loaded(2);
    house.hang(DEAF);
    // The first tick sees the cancel; the grace counts from there.
    house.pass(GRACE);
    assert_eq!(house.healthy(), 2, "a moment too early");
    assert_eq!(house.models.gate().in_flight(), 1, "it still holds what it was let in with");
    house.pass(ticks(1));
    assert!(house.idle(), "what it held was given back in its place");
    assert!(house.ready(), "another lane lives");
    assert!(house.ask(ECHO).await.is_ok());
    house.until("replaced", |house| house.healthy() == 2);
    assert_eq!(house.script.builds.load(Ordering::SeqCst), 3);
    assert_eq!(house.reason(1), "", "a healed lane leaves no complaint behind");
    assert_eq!(house.metric("balm_heal_actions_total", &["lane", "hung_blocked"]), 1.0);
    assert_eq!(house.metric("balm_heal_detect_seconds", &[]), 1.0);
    assert_eq!(house.metric("balm_heal_repair_seconds", &[]), 1.0);
    assert_eq!(house.metric("balm_lanes_abandoned", &[]), 1.0);
    let report = house.models.report();
    let [incident] = report.incidents.as_slice() else { panic!("{:?}", report.incidents) };
    assert_eq!((incident.reason, incident.detected_after_ms), (Reason::HungBlocked, 2_000));
    assert_eq!(incident.deeds.iter().map(|deed| deed.rung).collect::<Vec<_>>(), [Rung::Lane]);
    assert!(incident.healed_after_ms.is_some());
    let story = "of model \"m\" version 1: a run ignored its cancel and is blocked, seen after 2.0 s; then the lane was replaced; well again";
    assert!(incident.story.contains(story), "{}", incident.story);
    // When it comes back after all, it takes nothing with it.
    house.script.let_go();
    house.until("it ended", |house| house.metric("balm_lanes_abandoned", &[]) == 0.0);
    for _ in 0..20 {
        assert!(house.ask(ECHO).await.is_ok());
    }
    assert_eq!((house.healthy(), house.idle()), (2, true));
    assert!(house.models.worker_verdict().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_spins_is_told_from_one_that_is_blocked() {
    let house = House::loaded(1);
    house.hang(SPIN);
    house.pass(ticks(1));
    // Processor time is the one thing here that ticks cannot make up: it must be more than half of the time on that clock.
    std::thread::sleep(GRACE * 3 / 4);
    house.pass(GRACE);
    house.until("replaced", |house| house.healthy() == 1);
    let reasons: Vec<Reason> =
        house.models.report().incidents.iter().map(|incident| incident.reason).collect();
    // Where others took the processor it may have had less than half of it; it was not blocked in any case.
    assert!(matches!(reasons[..], [Reason::HungSpinning | Reason::HungBetween]), "{reasons:?}");
}

/// T14: while all lanes hang nobody is sent here; afterwards it serves again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_all_lanes_hung_it_is_not_ready_until_one_is_back() {
    let house = House::loaded(2);
    house.script.build_ms.store(150, Ordering::SeqCst);
    house.hang(DEAF);
    house.hang(DEAF);
    house.pass(GRACE + ticks(1));
    assert!(!house.ready(), "{:?}", house.models.report());
    assert!(house.idle());
    house.until("ready", House::ready);
    assert!(house.ask(ECHO).await.is_ok());
    house.until("both", |house| house.healthy() == 2);
    assert_eq!(house.state(1), ModelState::Ready);
    assert!(house.models.worker_verdict().is_none());
}

/// T15: five hangs in a minute: two lanes are replaced, then the worker has to be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hangs_escalate_exactly_at_their_budget() {
    let house = House::loaded(3);
    for count in 1..=2 {
        house.hang(DEAF);
        house.pass(GRACE + ticks(1));
        house.until("replaced", |house| house.healthy() == 3);
        assert!(house.models.worker_verdict().is_none(), "{count}");
    }
    for count in 3..=5 {
        house.hang(DEAF);
        house.pass(GRACE + ticks(1));
        let verdict = house.models.worker_verdict().unwrap();
        assert_eq!(
            (verdict.decision.rung, verdict.decision.reason),
            (Rung::Worker, Reason::LaneBudget)
        );
        assert!(
            verdict
                .sentence()
                .contains("the worker has to be replaced; lanes hung too often: lane")
        );
        assert_eq!(house.healthy(), 5 - count, "it is not replaced");
    }
    assert_eq!(house.metric("balm_lanes_abandoned", &[]), 2.0);
    assert_eq!(house.metric("balm_heal_actions_total", &["lane", "hung_blocked"]), 2.0);
    assert_eq!(house.script.builds.load(Ordering::SeqCst), 5);
    assert!(house.idle() && !house.ready());
    assert_eq!(house.state(1), ModelState::Failed);
    let open =
        house.models.report().incidents.iter().filter(|i| i.healed_after_ms.is_none()).count();
    assert_eq!(open, 3);
}

/// Lanes that were abandoned hold their models: of a memory limit they may hold a part and no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lane_is_abandoned_where_memory_is_short() {
    let house = House::loaded(1);
    house.models.set_memory_limit(100);
    house.hang(DEAF);
    house.pass(GRACE + ticks(1));
    assert!(house.models.worker_verdict().is_some());
    assert!(!house.ready());
}

/// T18: a process that was stopped finds nothing hung when it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_of_the_process_hangs_nobody() {
    let house = House::loaded(1);
    house.hang(DEAF);
    house.pass(ticks(1));
    for _ in 0..9 {
        house.models.tick(Duration::from_secs(3600));
    }
    assert_eq!(house.healthy(), 1, "nine ticks, whatever they took");
    house.pass(ticks(2));
    assert!(house.models.report().incidents.len() == 1, "two seconds of ticks are two seconds");
}

/// The deadline is kept although whoever should keep it does not come to it: the HTTP runtime hangs, say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_watchdog_cancels_where_nobody_else_does() {
    let house = House::loaded(1);
    let pending = house.submit(HANG, Duration::from_millis(250)).unwrap();
    house.until("running", |house| house.runs() == 1);
    house.pass(ticks(1));
    assert_eq!(house.models.gate().in_flight(), 1, "in time");
    house.pass(ticks(3));
    house.until("told to end", House::idle);
    assert_eq!(house.healthy(), 1);
    drop(pending);
}

/// A panic takes the same way: one lane, one story.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_is_told_as_well() {
    let house = House::loaded(1);
    assert_eq!(house.ask(PANIC).await.unwrap_err(), PredictError::LaneLost);
    house.until("replaced", |house| house.healthy() == 1);
    let report = house.models.report();
    let [incident] = report.incidents.as_slice() else { panic!("{:?}", report.incidents) };
    assert_eq!((incident.reason, incident.deeds.len()), (Reason::Panic, 1));
    assert!(incident.healed_after_ms.is_some());
    assert_eq!(house.metric("balm_heal_actions_total", &["lane", "panic"]), 1.0);
}

/// Those who were in a run together and wait for their turn alone are not lost with the lane that hangs in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_neighbour_harms_nobody() {
    let house = House::loaded(1);
    let hanging = house.submit(HANG, Duration::from_secs(20)).unwrap();
    house.until("running", |house| house.runs() == 1);
    let deaf = house.submit(DEAF, Duration::from_millis(200)).unwrap();
    let waiting: Vec<_> =
        (0..4).map(|_| house.submit(ECHO, Duration::from_secs(20)).unwrap()).collect();
    drop(hanging);
    assert!(matches!(deaf.wait().await, Err(PredictError::Deadline { .. })));
    house.pass(GRACE + ticks(1));
    for pending in waiting {
        assert!(pending.wait().await.is_ok(), "answered by the lane that came");
    }
    house.until("idle", House::idle);
}

/// An unload does not wait for a lane that hangs, nor does the lane hold what waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_on_its_way_out_leaves_no_permit_behind() {
    let house = House::loaded(1);
    house.hang(DEAF);
    let waits = house.submit(ECHO, Duration::from_secs(20)).unwrap();
    house.models.unload("m").unwrap();
    house.pass(GRACE + ticks(1));
    assert_eq!(waits.wait().await.unwrap_err(), PredictError::LaneLost);
    assert!(house.idle());
    assert_eq!(house.script.builds.load(Ordering::SeqCst), 1, "nobody needs another");
}

#[tokio::test]
async fn a_wedged_event_loop_is_told() {
    let house = House::loaded(1);
    for (late_ms, incidents, open) in [
        (0, 0, 0),
        (100, 0, 0),
        (300, 0, 0),
        (10_000, 0, 0),
        (10_100, 1, 1),
        (12_000, 1, 1),
        (0, 1, 0),
    ] {
        house.models.event_loop_lags(Duration::from_millis(late_ms));
        let report = house.models.report();
        let is_open = report.incidents.iter().filter(|i| i.healed_after_ms.is_none()).count();
        assert_eq!((report.incidents.len(), is_open), (incidents, open), "{late_ms}");
        let gauge = house.metric("balm_event_loop_lag_seconds", &[]);
        assert_eq!(gauge, late_ms as f64 / 1000.0);
    }
    assert!(house.models.worker_verdict().is_none(), "liveness has the same heartbeat");
}

/// The net under it all: nothing ends anywhere although runs were told to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hung_lanes_that_are_replaced_are_no_stall() {
    let house = House::loaded(1);
    house.script.build_ms.store(300, Ordering::SeqCst);
    house.hang(DEAF);
    // Seconds, on its clock, while the new lane is built: nothing runs, so nothing stalls.
    house.pass(GRACE + Duration::from_secs(9));
    assert!(house.models.worker_verdict().is_none());
    house.until("replaced", |house| house.healthy() == 1);
}

/// A session that is never built in place of a lost one is not waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_is_not_built_in_time_is_the_workers_end() {
    let house = House::loaded(1);
    house.script.build_ms.store(500, Ordering::SeqCst);
    house.hang(DEAF);
    house.pass(GRACE + ticks(1));
    house.pass(Duration::from_secs(10) - ticks(1));
    assert!(house.models.worker_verdict().is_none(), "a moment too early");
    house.pass(ticks(3));
    let verdict = house.models.worker_verdict().unwrap();
    assert_eq!(verdict.decision.reason, Reason::LaneBuild);
    assert_eq!(house.metric("balm_heal_actions_total", &["worker", "lane_build"]), 1.0);
    house.until("built after all", |house| house.healthy() == 1);
}

// ===== the breaker =====

/// Whether a request is turned away by the breaker.
async fn is_refused(house: &House) -> bool {
    match house.ask(ECHO).await {
        Ok(_) => false,
        Err(PredictError::Shed(shed)) => {
            assert_eq!(shed.reason, ShedReason::BreakerOpen);
            assert!(shed.retry_after_s >= 1);
            true
        }
        Err(other) => panic!("{other:?}"),
    }
}

fn breaker(house: &House) -> BreakerState {
    house.models.model("m").unwrap().gate().breaker()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_mostly_fails_is_closed_off_and_tried_again() {
    let house = House::loaded(1);
    for count in 0..20 {
        assert_eq!(breaker(&house), BreakerState::Accepting, "{count}");
        let error = house.ask(FAIL).await.unwrap_err();
        assert_eq!(error, PredictError::Runtime("scripted failure".to_owned()));
    }
    assert!(is_refused(&house).await);
    assert_eq!(house.metric("balm_breaker_state", &["m", "refusing"]), 1.0);
    assert!(
        house.ready(),
        "what fails is no reason to send people elsewhere: others of it fail as well"
    );
    // Its second is one of the wall; the canary that ends it is the watchdog's. Then five at once, and no more.
    let runs = house.runs();
    until_ticking(&house, "the canary flies", |_| breaker(&house) == BreakerState::Trying);
    let mut hanging = Vec::new();
    until_ticking(&house, "people may try", |house| {
        hanging.extend(house.submit(HANG, Duration::from_secs(20)));
        !hanging.is_empty()
    });
    assert!(house.runs() > runs && house.metric("balm_canaries_total", &["answered"]) >= 1.0);
    hanging.extend((0..4).map(|_| house.submit(HANG, Duration::from_secs(20)).unwrap()));
    assert!(is_refused(&house).await);
    // They leave without a result, and others may try in their place.
    drop(hanging);
    house.until("left", House::idle);
    for count in 0..5 {
        assert_eq!(breaker(&house), BreakerState::Trying, "{count}");
        assert!(!is_refused(&house).await);
    }
    assert_eq!(breaker(&house), BreakerState::Accepting);
    assert!(house.idle());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_that_fails_keeps_it_closed() {
    let house = House::loaded(1);
    house.script.errors_percent.store(100, Ordering::SeqCst);
    for _ in 0..20 {
        house.ask(ECHO).await.unwrap_err();
    }
    house.until("the canary has failed", |house| {
        house.pass(ticks(1));
        house.script.errors_percent.load(Ordering::SeqCst) > 0
            && house.metric("balm_canaries_total", &["failed"]) == 1.0
    });
    assert_eq!(breaker(&house), BreakerState::Refusing);
    assert!(is_refused(&house).await, "nobody was sacrificed");
}

/// What is the client's mistake, or late, or turned away, is none of the model's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_breaker_minds_the_servers_own_errors_only() {
    let house = House::loaded(1);
    for _ in 0..30 {
        house.hang(HANG);
        house.until("idle", House::idle);
    }
    assert_eq!(breaker(&house), BreakerState::Accepting);
    house.script.errors_percent.store(40, Ordering::SeqCst);
    for _ in 0..100 {
        let _ = house.ask(ECHO).await;
    }
    assert_eq!(breaker(&house), BreakerState::Accepting, "four of ten are not half");
}

// ===== the canary =====

const GOLDEN: &str = r#"{"cases": [{"name": "five",
    "inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [5]}],
    "outputs": [{"name": "y", "datatype": "INT64", "shape": [1], "data": [5]}]}]}"#;

fn golden(lanes: usize) -> House {
    let house = House::new(lanes);
    std::fs::write(house.repository.path().join("m/1/golden.json"), GOLDEN).unwrap();
    house.settled(lanes)
}

/// Lets the watchdog tick until `reached`.
fn until_ticking(house: &House, what: &str, mut reached: impl FnMut(&House) -> bool) {
    house.until(what, |house| {
        house.pass(ticks(1));
        reached(house)
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_flies_where_nobody_asks() {
    for (name, house) in [("golden", golden(1)), ("made up", House::loaded(1))] {
        house.pass(Duration::from_secs(30));
        assert_eq!(house.runs(), 0, "{name}");
        until_ticking(&house, "it is back", |house| {
            house.metric("balm_canaries_total", &["answered"]) == 1.0
        });
        assert_eq!(house.runs(), 1);
        let asked = if name == "golden" { 5 } else { ECHO };
        assert_eq!(house.script.batches.lock().unwrap().as_slice(), [[asked]]);
        // A real success replaces it.
        house.pass(Duration::from_secs(20));
        assert!(house.ask(ECHO).await.is_ok());
        house.pass(Duration::from_secs(29));
        assert_eq!(house.runs(), 2, "{name}");
        let serving = house.models.model("m").unwrap().serving(None).unwrap();
        let statistics = serving.statistics();
        assert_eq!((statistics.execution_count, statistics.success.count), (1, 1), "of clients");
        assert!(house.idle() && house.ready());
        assert!(house.models.report().incidents.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_models_are_not_busy_all_at_once() {
    let house = House::new(1);
    for version in 2..=6 {
        scripted::add_version(house.repository.path(), "m", version, "iris");
    }
    let settings = "versions = \"all\"\n[limits]\nmax_wait_ms = 60000\n";
    std::fs::write(house.repository.path().join("m/model.toml"), settings).unwrap();
    let house = house.settled(1);
    house.until("all six", |house| house.models.model("m").unwrap().all_serving().len() == 6);
    let before = house.script.runs.load(Ordering::SeqCst);
    house.pass(Duration::from_secs(30));
    for count in 1..=6 {
        house.pass(ticks(1));
        house.until("it runs", |house| house.script.runs.load(Ordering::SeqCst) - before == count);
    }
}

/// Answers that are no longer right: nobody is answered from then on, whoever asks; it is loaded anew, and where that does not
/// help, the worker's end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_answers_are_seen_and_healed() {
    let house = golden(2);
    house.pass(Duration::from_secs(30));
    house.script.wrong.store(true, Ordering::SeqCst);
    until_ticking(&house, "it is called sick", |house| !house.ready());
    for version in [None, Some("1")] {
        let refused = house.submit_to(version, ECHO, GRACE).err();
        assert!(matches!(refused, Some(PredictError::NotReady { .. })), "{version:?}: {refused:?}");
    }
    assert!(house.metric("balm_canaries_total", &["failed"]) >= 2.0);
    assert!(house.reason(1).contains("golden case \"five\""), "{}", house.reason(1));
    // The load that was to heal it is refused for the same reason; that was the first of two.
    until_ticking(&house, "it is the worker's turn", |house| {
        house.models.worker_verdict().is_some()
    });
    let verdict = house.models.worker_verdict().unwrap();
    assert_eq!(verdict.decision.reason, Reason::LaneBudget);
    assert_eq!(house.metric("balm_heal_actions_total", &["lane", "canary"]), 2.0);
    // It does not come back by itself, however right its answers are; a load with all its proofs brings it.
    house.script.wrong.store(false, Ordering::SeqCst);
    house.pass(Duration::from_secs(40));
    assert!(!house.ready() && house.submit(ECHO, GRACE).is_err());
    house.models.load("m").unwrap();
    assert!(house.ready() && house.ask(ECHO).await.is_ok());
}

/// What waits and what is being computed when it comes out is refused like what comes then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_answered_by_what_cannot_be_vouched_for() {
    let house = golden(2);
    house.pass(Duration::from_secs(30));
    let runs = house.runs();
    let running = house.submit(DEAF, Duration::from_secs(20)).unwrap();
    house.until("it runs", |house| house.runs() > runs);
    house.script.wrong.store(true, Ordering::SeqCst);
    until_ticking(&house, "it is called sick", |house| !house.ready());
    house.script.wrong.store(false, Ordering::SeqCst);
    house.script.let_go();
    let error = running.wait().await.unwrap_err();
    let PredictError::NotReady { model, reason } = &error else { panic!("{error:?}") };
    assert_eq!(model, "m");
    assert!(reason.starts_with("version 1 answers nobody: golden requests fail: "), "{reason}");
    house.until("given back", House::idle);
}

/// A version that answers wrongly and is refused when it is loaded anew makes way for the one before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_version_before_takes_over_from_one_that_answers_wrongly() {
    let house = House::new(1);
    scripted::add_version(house.repository.path(), "m", 2, "iris");
    std::fs::write(house.repository.path().join("m/2/golden.json"), GOLDEN).unwrap();
    let house = house.settled(1);
    house.pass(Duration::from_secs(30));
    house.script.wrong.store(true, Ordering::SeqCst);
    until_ticking(&house, "the one before serves", |house| {
        house.models.model("m").unwrap().serving(None).is_ok_and(|serving| serving.version == 1)
    });
    house.script.wrong.store(false, Ordering::SeqCst);
    assert!(house.ready() && house.ask(ECHO).await.is_ok());
    assert!(house.submit_to(Some("2"), ECHO, GRACE).is_err());
    house.until("told", |house| {
        house.metric("balm_heal_actions_total", &["version", "canary"]) == 1.0
    });
    assert!(house.models.worker_verdict().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_went_wrong_is_healed_by_a_load() {
    let house = golden(1);
    house.pass(Duration::from_secs(30));
    house.script.wrong_builds.store(1, Ordering::SeqCst);
    until_ticking(&house, "it is called sick", |house| !house.ready());
    until_ticking(&house, "healed", House::ready);
    house.until("told", |house| {
        house.models.report().incidents.iter().all(|incident| incident.healed_after_ms.is_some())
    });
    assert_eq!(house.script.builds.load(Ordering::SeqCst), 2);
    assert!(house.models.worker_verdict().is_none());
    let report = house.models.report();
    let [incident] = report.incidents.as_slice() else { panic!("{:?}", report.incidents) };
    assert_eq!(incident.reason, Reason::Canary);
    assert!(incident.healed_after_ms.is_some(), "{incident:?}");
    assert_eq!((house.state(1), house.reason(1).as_str()), (ModelState::Ready, ""));
}

// ===== the provider =====

/// T23: an error after which every call fails is not tried again here: nobody is answered by it, and the worker has to go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_that_only_another_process_heals_is_the_workers_end() {
    let house = House::loaded(2);
    assert!(house.ask(ECHO).await.is_ok());
    let runs = house.runs();
    let error = house.ask(STICKY).await.unwrap_err();
    let PredictError::NotReady { reason, .. } = &error else { panic!("{error:?}") };
    assert!(reason.contains("its execution provider is lost to this process"), "{reason}");
    assert!(!house.ready(), "{:?}", house.models.report());
    let verdict = house.models.worker_verdict().unwrap();
    assert_eq!(
        (verdict.decision.rung, verdict.decision.reason),
        (Rung::Worker, Reason::ProviderSticky)
    );
    assert!(matches!(house.ask(ECHO).await, Err(PredictError::NotReady { .. })));
    house.pass(Duration::from_secs(60));
    assert_eq!(house.runs(), runs + 1, "nothing was tried again, no canary either");
    assert_eq!(house.metric("balm_heal_actions_total", &["worker", "provider_sticky"]), 1.0);
    assert!(house.idle());
}
