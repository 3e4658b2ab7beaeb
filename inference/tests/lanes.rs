//! Lanes, loads and cancels under a scripted engine: what must hold whatever the runtime does.
//!
//! The real runtime is tested by the black-box suite in `server/tests/clients`; here it panics, hangs and fails on demand.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by panicking")]

mod scripted;

use balm_inference::predict::{Pending, PredictError, Prediction};
use balm_inference::tensor::TensorData;
use balm_probes::{ModelState, ServerPhase};
use scripted::{ECHO, FAIL, HANG, House, ONE_ROW, PANIC, SHIPPED, add_version};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

// ===== lanes =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_is_an_answer_to_one_request_and_a_new_lane() {
    let house = House::loaded(1);
    assert_eq!(house.ask(PANIC).await.unwrap_err(), PredictError::LaneLost);
    // Asked while the lane is being replaced: waits for the new one.
    assert_eq!(house.ask(ECHO).await.unwrap().outputs.len(), 1);
    house.until("lane replaced", |house| house.healthy() == 1);
    assert_eq!(house.state(1), ModelState::Ready);
    assert_eq!(house.reason(1), "", "a healed lane leaves no complaint behind");
    assert_eq!(house.script.builds.load(Ordering::SeqCst), 2);
    assert!(house.idle());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_keeps_dying_is_given_up_and_told() {
    let house = House::loaded(1);
    for _ in 0..6 {
        assert_eq!(house.ask(PANIC).await.unwrap_err(), PredictError::LaneLost);
    }
    house.until("not ready", |house| !house.ready());
    assert!(house.reason(1).contains("died more than 5 times"), "{}", house.reason(1));
    let error = house.ask(ECHO).await.unwrap_err();
    assert!(matches!(error, PredictError::NotReady { .. }), "{error:?}");
    assert!(house.idle());
    // A load makes it whole again.
    house.models.load("m").unwrap();
    assert!(house.ask(ECHO).await.is_ok());
    house.until("ready", House::ready);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_stops_the_run_and_frees_the_lane() {
    let house = House::loaded(1);
    let begun = Instant::now();
    let error = house.submit(HANG, Duration::from_millis(60)).unwrap().wait().await.unwrap_err();
    assert_eq!(error, PredictError::Deadline { deadline_ms: 60, phase: "ran" });
    assert!(begun.elapsed() >= Duration::from_millis(60));
    assert!(house.ask(ECHO).await.is_ok(), "the same lane serves on");
    assert_eq!(house.script.builds.load(Ordering::SeqCst), 1, "no session was rebuilt");
    house.until("idle", House::idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_past_the_deadline_is_never_run() {
    let house = House::loaded(1);
    let hanging = house.submit(HANG, Duration::from_secs(20)).unwrap();
    house.until("running", |house| house.runs() == 1);
    let error = house.submit(ECHO, Duration::from_millis(30)).unwrap().wait().await.unwrap_err();
    assert_eq!(error, PredictError::Deadline { deadline_ms: 30, phase: "waited" });
    drop(hanging);
    house.until("idle", House::idle);
    assert!(house.ask(ECHO).await.is_ok());
    assert_eq!(house.runs(), 2, "the one that hung and the last one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_left_is_not_computed_for_and_stops_nobody_else() {
    let house = House::loaded(1);
    let hanging = house.submit(HANG, Duration::from_secs(20)).unwrap();
    house.until("running", |house| house.runs() == 1);
    let left = house.submit(ECHO, Duration::from_secs(20)).unwrap();
    let stays = house.submit(ECHO, Duration::from_secs(20)).unwrap();
    drop(left);
    assert_eq!(house.models.gate().in_flight(), 3, "a place is free when the lane says so");
    drop(hanging);
    assert!(stays.wait().await.is_ok());
    house.until("idle", House::idle);
    assert_eq!(house.runs(), 2, "the one that left was never run");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_hanging_lane_leaves_the_other_serving() {
    let house = House::loaded(2);
    let hanging = house.submit(HANG, Duration::from_secs(20)).unwrap();
    house.until("running", |house| house.runs() == 1);
    for _ in 0..20 {
        assert!(house.ask(ECHO).await.is_ok());
    }
    drop(hanging);
    house.until("idle", House::idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancels_and_runs_never_hit_the_wrong_one() {
    let house = Arc::new(House::loaded(2));
    let mut tasks = Vec::new();
    for worker in 0..8u64 {
        let house = Arc::clone(&house);
        tasks.push(tokio::spawn(async move {
            for round in 0..200u64 {
                if (worker + round) % 4 == 0 {
                    // Comes and goes: its cancel lands before, during or after the run.
                    let pending = house.submit(ECHO, Duration::from_secs(20)).unwrap();
                    if round % 3 == 0 {
                        tokio::task::yield_now().await;
                    }
                    drop(pending);
                } else {
                    let answer = house.ask(ECHO).await;
                    assert!(answer.is_ok(), "a bystander was stopped: {answer:?}");
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    house.until("idle", |house| house.idle());
}

#[tokio::test]
async fn a_failed_run_is_told_and_costs_no_lane() {
    let house = House::loaded(1);
    let error = house.ask(FAIL).await.unwrap_err();
    assert_eq!(error, PredictError::Runtime("scripted failure".to_owned()));
    assert!(house.ask(ECHO).await.is_ok());
    assert_eq!(house.healthy(), 1);
}

// ===== requests that share runs =====

/// A request whose client leaves when it is dropped.
struct Hanging(tokio::task::JoinHandle<Result<Prediction, PredictError>>);

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl House {
    /// Requests that wait behind one that hangs, so that they meet in the queue.
    fn behind_a_hanging_one(&self, commands: &[i64]) -> (Hanging, Vec<Pending>) {
        let before = self.runs();
        let hanging = self.submit(HANG, Duration::from_secs(20)).unwrap();
        let hanging = Hanging(tokio::spawn(hanging.wait()));
        self.until("running", |house| house.runs() == before + 1);
        let waiting = commands
            .iter()
            .map(|command| self.submit(*command, Duration::from_secs(20)).unwrap())
            .collect();
        (hanging, waiting)
    }

    fn batches(&self) -> Vec<Vec<i64>> {
        self.script.batches.lock().unwrap().clone()
    }

    /// Runs enough of them for the lanes to learn that rows are cheaper together.
    async fn learn_that_it_pays(&self) {
        for _ in 0..6 {
            let (hanging, waiting) = self.behind_a_hanging_one(&[ECHO; 32]);
            drop(hanging);
            for pending in waiting {
                pending.wait().await.unwrap();
            }
        }
        self.script.batches.lock().unwrap().clear();
    }
}

fn first(prediction: &Prediction) -> (usize, i64) {
    let TensorData::Raw(raw) = prediction.outputs[0].data() else { unreachable!() };
    (raw.len(), i64::from_le_bytes(raw[..8].try_into().unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_shares_a_run_and_each_gets_its_own_rows() {
    let house = House::loaded(1);
    house.learn_that_it_pays().await;
    let (hanging, waiting) = house.behind_a_hanging_one(&[2, 3, 4, 5]);
    drop(hanging);
    for (expected, pending) in (2..).zip(waiting) {
        assert_eq!(first(&pending.wait().await.unwrap()), (8, expected));
    }
    assert_eq!(house.batches(), [vec![HANG], vec![2, 3, 4, 5]]);
    house.until("idle", House::idle);
    let serving = house.models.model("m").unwrap().serving(None).unwrap();
    let statistics = serving.statistics();
    assert!(statistics.execution_count < statistics.inference_count);
    assert_eq!(statistics.batches[&4].infer.count, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_row_harms_no_neighbour() {
    for (bad, expected) in [
        (FAIL, PredictError::Runtime("scripted failure".to_owned())),
        (PANIC, PredictError::LaneLost),
    ] {
        let house = House::loaded(1);
        house.learn_that_it_pays().await;
        let (hanging, waiting) = house.behind_a_hanging_one(&[2, bad, 4]);
        drop(hanging);
        let mut answers = Vec::new();
        for pending in waiting {
            answers.push(pending.wait().await.map(|prediction| first(&prediction).1));
        }
        assert_eq!(answers, [Ok(2), Err(expected), Ok(4)]);
        assert_eq!(house.batches()[1..], [vec![2, bad, 4], vec![2], vec![bad], vec![4]]);
        house.until("idle", House::idle);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_without_a_row_for_each_end_the_sharing() {
    let house = House::loaded(1);
    house.learn_that_it_pays().await;
    let (hanging, waiting) = house.behind_a_hanging_one(&[2, ONE_ROW]);
    drop(hanging);
    for pending in waiting {
        assert!(pending.wait().await.is_ok(), "each has run by itself");
    }
    let (hanging, waiting) = house.behind_a_hanging_one(&[2, 3]);
    drop(hanging);
    for pending in waiting {
        assert!(pending.wait().await.is_ok());
    }
    assert!(house.batches().ends_with(&[vec![2], vec![3]]), "{:?}", house.batches());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_client_that_leaves_does_not_stop_the_run_of_the_others() {
    let house = Arc::new(House::loaded(1));
    house.learn_that_it_pays().await;
    let mut tasks = Vec::new();
    for worker in 0..8u64 {
        let house = Arc::clone(&house);
        tasks.push(tokio::spawn(async move {
            for round in 0..300u64 {
                let command = i64::try_from(worker).unwrap();
                let pending = house.submit(command % 8, Duration::from_secs(20)).unwrap();
                if (worker + round) % 3 == 0 {
                    tokio::task::yield_now().await;
                    drop(pending);
                } else {
                    assert_eq!(first(&pending.wait().await.unwrap()), (8, command % 8));
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert!(house.batches().iter().any(|rows| rows.len() > 1), "runs were shared");
    house.until("idle", |house| house.idle());
}

// ===== the route of a model =====

#[test]
fn a_refused_newest_version_leaves_the_older_one_serving() {
    let house = House::new(1);
    add_version(house.repository.path(), "m", 2, "digits");
    let size = std::fs::metadata(Path::new(SHIPPED).join("digits/1/model.onnx")).unwrap().len();
    house.script.refuse_size.store(size, Ordering::SeqCst);
    house.load_all();
    assert_eq!((house.state(1), house.state(2)), (ModelState::Ready, ModelState::Failed));
    assert!(house.reason(2).contains("scripted refusal"));
    let serving = house.models.model("m").unwrap().serving(None).unwrap();
    assert_eq!(serving.version, 1);
    assert!(house.ready());
}

#[test]
fn a_new_version_takes_over_and_the_old_one_goes() {
    let house = House::loaded(1);
    add_version(house.repository.path(), "m", 2, "digits");
    house.models.load("m").unwrap();
    assert_eq!((house.state(1), house.state(2)), (ModelState::Unloaded, ModelState::Ready));
    let model = house.models.model("m").unwrap();
    assert_eq!(model.serving(None).unwrap().version, 2);
    assert!(matches!(model.serving(Some("1")), Err(PredictError::NotReady { .. })));
    assert!(matches!(model.serving(Some("9")), Err(PredictError::UnknownVersion { .. })));
    assert!(house.ready());
}

#[test]
fn a_reload_of_the_same_bytes_builds_nothing() {
    let house = House::loaded(1);
    house.models.load("m").unwrap();
    assert_eq!(house.script.builds.load(Ordering::SeqCst), 1);
}

#[test]
fn a_reload_that_is_refused_leaves_the_old_bytes_serving() {
    let house = House::loaded(1);
    let file = house.repository.path().join("m/1/model.onnx");
    std::fs::write(&file, b"no model").unwrap();
    let error = house.models.load("m").unwrap_err().to_string();
    assert!(error.contains("version 1"), "{error}");
    assert_eq!(house.state(1), ModelState::Ready);
    assert!(house.reason(1).contains("a reload was refused"), "{}", house.reason(1));
    assert!(house.ready());
}

#[test]
fn a_wrong_golden_answer_is_quarantined() {
    let house = House::new(1);
    let golden = r#"{"cases":[{"name":"lie","tolerance":0,
        "inputs":[{"name":"x","datatype":"INT64","shape":[1],"data":[0]}],
        "outputs":[{"name":"y","datatype":"INT64","shape":[1],"data":[7]}]}]}"#;
    std::fs::write(house.repository.path().join("m/1/golden.json"), golden).unwrap();
    house.load_all();
    assert_eq!(house.state(1), ModelState::Quarantined);
    assert!(house.reason(1).contains("golden case \"lie\""), "{}", house.reason(1));
    assert!(!house.ready());
}

#[test]
fn a_golden_request_that_never_ends_holds_no_load() {
    let house = House::new(1);
    let golden = format!(
        r#"{{"cases":[{{"name":"endless","inputs":[{{"name":"x","datatype":"INT64","shape":[1],"data":[{HANG}]}}],
        "outputs":[{{"name":"y","datatype":"INT64","shape":[1],"data":[7]}}]}}]}}"#
    );
    std::fs::write(house.repository.path().join("m/1/golden.json"), golden).unwrap();
    let settings = "default_deadline_ms = 50\nmax_deadline_ms = 50\n";
    std::fs::write(house.repository.path().join("m/model.toml"), settings).unwrap();
    house.load_all();
    assert_eq!(house.state(1), ModelState::Quarantined);
    assert!(house.reason(1).contains("not answered within 50 ms"), "{}", house.reason(1));
}

#[test]
fn unloading_is_a_choice_and_an_empty_server_is_not_ready() {
    let house = House::loaded(1);
    add_version(house.repository.path(), "other", 1, "iris");
    house.models.load("other").unwrap();
    assert!(house.ready());
    house.models.unload("m").unwrap();
    assert!(!house.ready(), "what was loaded later was never declared");
    assert!(house.models.model("m").unwrap().serving(None).is_err());
    assert!(house.models.unload("nobody").is_err());
    house.models.load("m").unwrap();
    assert!(house.models.model("m").unwrap().serving(None).is_ok());
    assert!(house.ready(), "loaded again, it is declared again");
}

#[test]
fn the_first_model_of_an_empty_server_is_what_it_is_there_for() {
    let house = House::new(1);
    std::fs::remove_dir_all(house.repository.path().join("m")).unwrap();
    house.load_all();
    assert!(!house.ready(), "empty is not ready");
    add_version(house.repository.path(), "late", 1, "iris");
    house.models.load("late").unwrap();
    assert!(house.ready());
}

#[test]
fn another_provider_than_asked_for_is_degraded_and_serves() {
    let house = House::new(1);
    house.script.degraded.store(true, Ordering::SeqCst);
    house.load_all();
    assert_eq!(house.state(1), ModelState::Degraded);
    assert!(house.ready());
}

#[tokio::test]
async fn a_server_that_stops_admits_nobody() {
    let house = House::loaded(1);
    house.models.enter(ServerPhase::Draining);
    assert!(!house.ready(), "not ready at once");
    assert!(house.ask(ECHO).await.is_ok(), "and still serving");
    house.models.enter(ServerPhase::Stopped);
    assert!(matches!(house.ask(ECHO).await, Err(PredictError::Shed(_))));
}

#[test]
fn a_refused_reload_takes_nothing_down_under_any_policy() {
    for policy in ["\"all\"", "\"latest\"", "[1, 2]"] {
        let house = House::new(1);
        let folder = house.repository.path().join("m");
        std::fs::write(folder.join("model.toml"), format!("versions = {policy}\n")).unwrap();
        add_version(house.repository.path(), "m", 2, "digits");
        house.load_all();
        std::fs::write(folder.join("2/model.onnx"), b"no model").unwrap();
        let error = house.models.load("m").unwrap_err().to_string();
        assert!(error.contains("version 2: "), "{policy}: {error}");
        let serving = house.models.model("m").unwrap().serving(None).unwrap();
        assert_eq!(serving.version, 2, "{policy}: what served goes on");
        assert_eq!(house.state(2), ModelState::Ready, "{policy}");
        assert!(house.ready());
    }
}

#[test]
fn a_version_that_is_asked_for_and_absent_has_failed() {
    let house = House::new(1);
    let settings = house.repository.path().join("m/model.toml");
    std::fs::write(settings, "versions = [1, 7]\n").unwrap();
    house.load_all();
    assert_eq!((house.state(1), house.state(7)), (ModelState::Ready, ModelState::Failed));
    assert!(house.reason(7).contains("no such folder"), "{}", house.reason(7));
}

#[test]
fn a_first_load_that_fails_does_not_decide_what_an_empty_server_is_there_for() {
    let house = House::new(1);
    std::fs::remove_dir_all(house.repository.path().join("m")).unwrap();
    house.load_all();
    add_version(house.repository.path(), "bad", 1, "digits");
    let size = std::fs::metadata(Path::new(SHIPPED).join("digits/1/model.onnx")).unwrap().len();
    house.script.refuse_size.store(size, Ordering::SeqCst);
    assert!(house.models.load("bad").is_err());
    add_version(house.repository.path(), "good", 1, "iris");
    house.models.load("good").unwrap();
    assert!(house.ready());
}

#[test]
fn a_load_that_ends_late_does_not_undo_a_drain() {
    let house = House::loaded(1);
    house.models.enter(ServerPhase::Draining);
    house.models.enter(ServerPhase::Running);
    assert!(!house.ready());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_without_lanes_makes_way_for_an_older_one() {
    let house = House::new(1);
    let settings = house.repository.path().join("m/model.toml");
    std::fs::write(settings, "versions = \"all\"\n").unwrap();
    add_version(house.repository.path(), "m", 2, "digits");
    house.load_all();
    for _ in 0..6 {
        let pending = house.submit_to(Some("2"), PANIC, Duration::from_secs(20)).unwrap();
        assert_eq!(pending.wait().await.unwrap_err(), PredictError::LaneLost);
        // While its lane is being replaced, too.
        assert!(house.ask(ECHO).await.is_ok());
    }
    house.until("version 2 given up", |house| house.state(2) == ModelState::Failed);
    assert_eq!(house.models.model("m").unwrap().serving(None).unwrap().version, 1);
    assert!(house.ask(ECHO).await.is_ok());
    assert!(house.ready());
}

#[test]
fn a_further_lane_on_another_provider_is_seen() {
    let house = House::new(2);
    house.script.degrade_after.store(1, Ordering::SeqCst);
    house.load_all();
    house.until("degraded", |house| house.state(1) == ModelState::Degraded);
    assert!(house.ready());
}
