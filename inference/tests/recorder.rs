//! The flight recorder under a scripted engine: what runs is written down, and what was there at crashes is set apart or refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by panicking")]

mod scripted;

use balm_inference::predict::PredictError;
use balm_inference::recorder::Recorder;
use balm_probes::flight::{BYTES, Head, InFlight, block_at, in_flight, run_at};
use balm_probes::poison::Remembered;
use scripted::{DEAF, FAIL, HANG, House, PANIC, Script};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);
/// What waits shares a run, from the first one on.
const SHARED: &str = "[limits]\nmax_wait_ms = 60000\n[batching]\nmax_delay_ms = 1\n";

/// A house whose lanes write down what they run, and which remembers this much.
struct Recorded {
    house: House,
    memory: File,
    survived: Arc<Mutex<Vec<u64>>>,
}

impl Recorded {
    fn new(lanes: usize, remembered: &[(u64, u32)]) -> Self {
        let told = |(hash, crashes): &(u64, u32)| Remembered {
            hash: *hash,
            crashes: *crashes,
            left_ms: 3_000_000,
        };
        let head = Head { seed: 1, remembered: remembered.iter().map(told).collect() };
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(BYTES as u64).unwrap();
        memory.write_all_at(&head.to_bytes(), 0).unwrap();
        let survived = Arc::<Mutex<Vec<u64>>>::default();
        let list = Arc::clone(&survived);
        let mine = memory.try_clone().unwrap();
        let recorder = Recorder::open(mine, move |hash| list.lock().unwrap().push(hash)).unwrap();
        let house = House::made(lanes, SHARED, Script::default());
        house.models.record(recorder);
        Recorded { house: house.settled(lanes), memory, survived }
    }

    fn in_flight(&self) -> Vec<InFlight> {
        let mut bytes = vec![0; BYTES];
        self.memory.read_exact_at(&mut bytes, 0).unwrap();
        in_flight(&bytes)
    }

    fn batches(&self) -> Vec<Vec<i64>> {
        self.house.script.batches.lock().unwrap().clone()
    }

    fn survived(&self) -> Vec<u64> {
        self.survived.lock().unwrap().clone()
    }
}

/// The hash by which a request is known. It lies where the only lane wrote it, also when its run is over.
fn hash_of(command: i64) -> u64 {
    let recorded = Recorded::new(1, &[]);
    let _pending = recorded.house.submit(command, LONG).unwrap();
    let mut hash = [0; 8];
    recorded.house.until("written down", |_| {
        recorded.memory.read_exact_at(&mut hash, run_at(block_at(0).unwrap()) + 8).unwrap();
        hash != [0; 8]
    });
    u64::from_le_bytes(hash)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_is_written_down_until_it_has_returned() {
    let recorded = Recorded::new(1, &[]);
    assert_eq!(recorded.in_flight(), []);
    let hanging = recorded.house.submit(HANG, LONG).unwrap();
    recorded.house.until("running", |house| house.runs() == 1);
    let found = recorded.in_flight();
    let [run] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((run.model.as_str(), run.version, run.requests, run.hangs), ("m", 1, 1, false));
    drop(hanging);
    recorded.house.until("idle", House::idle);
    assert_eq!(recorded.in_flight(), []);
    // A lane that panics leaves nothing behind, either.
    assert!(recorded.house.ask(PANIC).await.is_err());
    assert!(recorded.house.ask(2).await.is_ok());
    assert_eq!(recorded.in_flight(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_hangs_is_written_down_as_one_for_as_long_as_it_does() {
    let recorded = Recorded::new(2, &[]);
    recorded.house.hang(DEAF);
    recorded.house.pass(Duration::from_secs(3));
    let found = recorded.in_flight();
    assert!(matches!(found.as_slice(), [InFlight { hangs: true, requests: 1, .. }]), "{found:?}");
    recorded.house.until("replaced", |house| house.healthy() == 2);
    assert!(recorded.house.ask(2).await.is_ok());
    assert!(recorded.in_flight().iter().all(|run| run.hangs), "the others are clear");
    recorded.house.script.let_go();
    recorded.house.until("it has come back", |_| recorded.in_flight().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_there_at_two_crashes_is_refused_and_nothing_else() {
    let hash = hash_of(FAIL);
    let recorded = Recorded::new(1, &[(hash, 2)]);
    for _ in 0..3 {
        assert_eq!(recorded.house.ask(FAIL).await.unwrap_err(), PredictError::Poison { hash });
    }
    assert_eq!(recorded.house.runs(), 0, "it is not run");
    assert!(recorded.house.ask(2).await.is_ok());
    assert_eq!(recorded.house.metric("balm_poison_refused_total", &["m"]), 3.0);
    assert!(recorded.house.idle());
    assert!(recorded.survived().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspect_is_run_by_itself_once() {
    let hash = hash_of(FAIL);
    let recorded = Recorded::new(1, &[(hash, 1)]);
    let house = &recorded.house;
    for (round, expected) in [
        // Beside nobody, though it came with others; then, a suspect no more, with them, which fails for all of them.
        (1, vec![vec![2, 3], vec![FAIL]]),
        (2, vec![vec![2, FAIL, 3], vec![2], vec![FAIL], vec![3]]),
    ] {
        let before = recorded.batches().len();
        // Asked for as a client does it: where runs were short, whoever asks is who wakes the lane.
        let hanging = tokio::spawn(house.submit(HANG, LONG).unwrap().wait());
        house.until("running", |_| recorded.batches().len() > before);
        let waiting: Vec<_> = [2, FAIL, 3].map(|one| house.submit(one, LONG).unwrap()).into();
        hanging.abort();
        let mut answers = Vec::new();
        for pending in waiting {
            answers.push(pending.wait().await.is_ok());
        }
        assert_eq!(answers, [true, false, true]);
        assert_eq!(recorded.batches()[before + 1..], expected, "{round}");
        assert_eq!(recorded.survived(), [hash], "told once");
    }
    house.until("idle", House::idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspect_that_hangs_holds_nobody_up_for_long() {
    let hash = hash_of(DEAF);
    let recorded = Recorded::new(2, &[(hash, 1)]);
    recorded.house.hang(DEAF);
    assert!(
        recorded.house.ask(2).await.is_ok(),
        "the other lane goes on, a tenth of a second later"
    );
    recorded.house.pass(Duration::from_secs(3));
    recorded.house.until("replaced", |house| house.healthy() == 2);
    assert!(recorded.house.ask(3).await.is_ok());
    assert!(recorded.survived().is_empty(), "it has not come back");
}
