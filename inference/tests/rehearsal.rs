//! An engine that fails on command: each kind of fault does to a lane what it is named after, as often as it was told to.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by panicking")]

mod scripted;

use balm_inference::engine::rehearsal::{Faults, RehearsalEngine};
use balm_inference::predict::PredictError;
use balm_inference::tensor::TensorData;
use balm_probes::ModelState;
use scripted::{ECHO, House, Script};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A server whose engine fails as a folder says.
struct Rehearsal {
    house: House,
    folder: TempDir,
}

fn rehearsal(lanes: usize) -> Rehearsal {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let faults = Arc::new(Faults::open(folder.path()).unwrap());
    let house =
        House::behind(lanes, "[limits]\nmax_wait_ms = 60000\n", Script::default(), |engine| {
            Arc::new(RehearsalEngine::new(engine, faults))
        });
    Rehearsal { house, folder }
}

impl Rehearsal {
    fn place(&self, name: &str, text: &str) {
        let new = self.folder.path().join(format!(".{name}.new"));
        fs::write(&new, text).unwrap();
        fs::rename(new, self.folder.path().join(format!("{name}.json"))).unwrap();
    }

    fn happened(&self) -> usize {
        fs::read_dir(self.folder.path().join("done")).unwrap().count()
    }

    async fn ask(&self) -> Result<i64, PredictError> {
        let prediction = self.house.ask(ECHO).await?;
        let TensorData::Raw(raw) = prediction.outputs[0].data() else { unreachable!() };
        Ok(i64::from_le_bytes(raw[..8].try_into().unwrap()))
    }
}

#[tokio::test]
async fn runs_fail_as_often_as_they_are_told_to() {
    let mut it = rehearsal(1);
    it.place("b", r#"{"kind": "error", "model": "m", "times": 2}"#);
    it.place("a", r#"{"kind": "error", "model": "another"}"#);
    it.house = it.house.settled(1);
    assert_eq!(it.happened(), 0, "a load is not what it was meant for");
    for _ in 0..2 {
        let error = it.ask().await.unwrap_err().to_string();
        assert!(error.contains("rehearsal: told to fail"), "{error}");
    }
    assert_eq!(it.ask().await.unwrap(), ECHO);
    it.place("c", r#"{"kind": "wrong"}"#);
    assert_ne!(it.ask().await.unwrap(), ECHO);
    assert_eq!(it.ask().await.unwrap(), ECHO);
    // The last: nothing serves in this process after it.
    it.place("d", r#"{"kind": "sticky"}"#);
    let error = it.ask().await.unwrap_err().to_string();
    assert!(
        error.contains("CUDA failure 700: an illegal memory access was encountered"),
        "{error}"
    );
    assert_eq!(it.happened(), 4);
}

#[tokio::test]
async fn runs_that_are_slow_are_answered() {
    let mut it = rehearsal(1);
    it.house = it.house.settled(1);
    for kind in ["slow_run", "spin", "block"] {
        it.place(kind, &format!(r#"{{"kind": "{kind}", "ms": 50}}"#));
        let begun = Instant::now();
        assert_eq!(it.ask().await.unwrap(), ECHO);
        assert!(begun.elapsed() >= Duration::from_millis(50), "{kind}");
    }
    assert_eq!(it.happened(), 3);
}

#[tokio::test]
async fn a_panic_costs_its_request_and_its_lane() {
    let mut it = rehearsal(1);
    it.house = it.house.settled(1);
    it.place("panic", r#"{"kind": "panic"}"#);
    assert!(matches!(it.ask().await, Err(PredictError::LaneLost)));
    assert_eq!(it.ask().await.unwrap(), ECHO);
    assert_eq!(it.happened(), 1);
}

#[tokio::test]
async fn a_lane_that_blocks_is_hung_and_replaced() {
    let mut it = rehearsal(1);
    it.house = it.house.settled(1);
    // It heeds no cancel, and its thread is still there when the test ends.
    it.place("block", r#"{"kind": "block", "ms": 20000}"#);
    let pending = it.house.submit(ECHO, Duration::from_secs(20)).unwrap();
    it.house.until("claimed", |_| it.happened() == 1);
    drop(pending);
    it.house.pass(Duration::from_secs(3));
    it.house.until("a new lane", |house| house.healthy() == 1 && house.idle());
    assert_eq!(it.ask().await.unwrap(), ECHO);
}

#[tokio::test]
async fn loads_are_slow_and_judged_wrong_where_they_are_told_to() {
    let it = rehearsal(1);
    it.place("slow", r#"{"kind": "slow_load", "ms": 60}"#);
    let begun = Instant::now();
    it.house.load_all();
    assert!(begun.elapsed() >= Duration::from_millis(60));
    assert_eq!(it.happened(), 1);
    assert_eq!(it.house.state(1), ModelState::Ready);
}
