//! Requests of different lengths under a scripted engine: padded where that was proved to be right, and nowhere else.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by panicking")]

mod scripted;

use balm_inference::datatype::Datatype;
use balm_inference::predict::{Pending, Prediction};
use balm_inference::tensor::{Tensor, TensorData};
use balm_probes::ModelState;
use scripted::{FAIL, HANG, House, Script};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Critical requests may wait for long: what hangs here is meant to. Runs are as large as they can be.
const SETTINGS: &str =
    "[limits]\nmax_wait_ms = 20000\n[batching]\nmax_delay_ms = 1\n[batching.padding]\nx = -7\n";

fn row(values: &[i64]) -> Tensor {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::raw(Datatype::Int64, vec![1, values.len()], bytes.into()).unwrap()
}

fn values(prediction: &Prediction) -> (Vec<usize>, Vec<i64>) {
    let output = &prediction.outputs[0];
    let TensorData::Raw(raw) = output.data() else { unreachable!() };
    let values = raw.chunks_exact(8).map(|eight| i64::from_le_bytes(eight.try_into().unwrap()));
    (output.shape().to_vec(), values.collect())
}

fn house(lanes: usize, minds_length: bool) -> House {
    let script = Script { lengths: true, minds_length, ..Script::default() };
    let house = House::made(lanes, SETTINGS, script).settled(lanes);
    house.until("tried", |house| !batching(house).contains("not yet"));
    house.script.shapes.lock().unwrap().clear();
    house
}

fn batching(house: &House) -> String {
    house.models.report().models[0].versions[0].details["batching"].clone()
}

fn submit(house: &House, values: &[i64]) -> Pending {
    house.submit_tensor(None, row(values), Duration::from_secs(20)).unwrap()
}

/// A request that holds the one lane, so that others meet in the queue.
fn hanging(house: &House) -> JoinHandle<()> {
    let before = house.script.shapes.lock().unwrap().len();
    let pending = submit(house, &[HANG]);
    let task = tokio::spawn(async move { drop(pending.wait().await) });
    house.until("running", |house| house.script.shapes.lock().unwrap().len() == before + 1);
    task
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn different_lengths_share_a_run_and_each_gets_its_own() {
    let house = house(1, false);
    assert_eq!(
        batching(&house),
        "on: proved at load to be right; padding on: proved at load to be right"
    );
    let requests: [&[i64]; 4] = [&[1; 8], &[2; 9], &[3; 10], &[4; 30]];
    let hanging = hanging(&house);
    let waiting = requests.map(|values| submit(&house, values));
    hanging.abort();
    for (request, pending) in requests.iter().zip(waiting) {
        let answer = pending.wait().await.unwrap();
        assert_eq!(values(&answer), (vec![1, request.len()], request.to_vec()));
    }
    let shapes = house.script.shapes.lock().unwrap()[1..].to_vec();
    assert_eq!(shapes, [vec![3, 10], vec![1, 30]], "what is much longer runs by itself");
    house.until("idle", House::idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_row_among_padded_ones_harms_no_neighbour() {
    let house = house(1, false);
    let hanging = hanging(&house);
    let waiting = [&[1; 8][..], &[FAIL; 9], &[3; 10]].map(|values| submit(&house, values));
    hanging.abort();
    let mut answers = Vec::new();
    for pending in waiting {
        answers.push(pending.wait().await.map(|answer| values(&answer).1).ok());
    }
    assert_eq!(answers, [Some(vec![1; 8]), None, Some(vec![3; 10])]);
    let shapes = house.script.shapes.lock().unwrap()[1..].to_vec();
    assert_eq!(shapes, [vec![3, 10], vec![1, 8], vec![1, 9], vec![1, 10]], "unpadded when alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_minds_its_length_is_not_padded() {
    for lanes in [1, 2] {
        let house = house(lanes, true);
        let text = batching(&house);
        let expected = "on: proved at load to be right; padding off: padded they are answered otherwise: output \"y\", element 0";
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(house.state(1), ModelState::Ready, "it serves all the same");
        let answer = submit(&house, &[1; 8]).wait().await.unwrap();
        assert_eq!(values(&answer).1, [9; 8]);
    }
}

#[test]
fn padding_that_a_model_cannot_have_is_refused_with_the_key() {
    let table = [
        ("[batching.padding]\nz = 0", "batching.padding.z: the model has no such input; it has x"),
        ("[batching.padding]\nx = 0.5", "batching.padding.x must be an integer from"),
    ];
    for (settings, expected) in table {
        let house = House::made(1, settings, Script { lengths: true, ..Script::default() });
        house.load_all();
        assert_eq!(house.state(1), ModelState::Failed);
        assert!(house.reason(1).starts_with(expected), "{}", house.reason(1));
    }
    let house = House::made(1, "[batching.padding]\nx = 0", Script::default());
    house.load_all();
    assert!(house.reason(1).starts_with("batching.padding.x: the input has no dimension to pad"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_requests_share_no_runs_nothing_is_padded() {
    let settings = SETTINGS.replace("[batching]\n", "[batching]\nenabled = false\n");
    let house = House::made(1, &settings, Script { lengths: true, ..Script::default() }).settled(1);
    assert_eq!(batching(&house), "off: model.toml says so; padding off: requests share no runs");
    assert_eq!(values(&submit(&house, &[5, 6]).wait().await.unwrap()).1, [5, 6]);
}
