//! Memory that grows, as whoever samples it sees it: what is asked for, told, and over.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by panicking")]

mod scripted;

use balm_inference::healing::WorkerVerdict;
use balm_probes::{Reason, Rung, Usage};
use scripted::House;

const MIB: u64 = 1 << 20;

/// Samples four times a second from `from_s` to `to_s`, in seconds of the sampler's clock, by what is used at each, MiB of a
/// thousand, all of it the worker's. What was asked for, and when.
fn sample(
    house: &House,
    (from_s, to_s): (u64, u64),
    used_mib: impl Fn(f64) -> f64,
) -> Vec<(u64, WorkerVerdict)> {
    (from_s * 4..to_s * 4)
        .filter_map(|quarter| {
            let used = (used_mib(quarter as f64 / 4.0) * MIB as f64) as u64;
            let usage = Usage { used, own: used, limit: 1_000 * MIB };
            let verdict = house.models.memory_used(usage, quarter * 250)?;
            Some((quarter / 4, verdict))
        })
        .collect()
}

/// A house whose memory is judged: the thread that loads may take a moment longer than the load.
fn loaded() -> House {
    let house = House::loaded(1);
    settled(&house);
    house
}

fn settled(house: &House) {
    house.until("memory is judged", |house| house.models.memory_is_judged());
}

/// Five megabytes a second.
fn leak(second: f64) -> f64 {
    450.0 + 5.0 * second
}

#[test]
fn a_leak_is_one_story_until_it_is_over() {
    let house = loaded();
    let asked = sample(&house, (0, 71), leak);
    let at: Vec<u64> = asked.iter().map(|(second, _)| *second).collect();
    assert_eq!(at, [40, 70], "at the first verdict, and half a minute later");
    let (_, verdict) = &asked[0];
    assert_eq!(
        (verdict.decision.rung, verdict.decision.reason),
        (Rung::Worker, Reason::MemoryLeak)
    );
    assert_eq!(
        verdict.subject,
        "650 of 1000 MiB are used, 85 % of it in 40 s; the worker holds 650 MiB"
    );
    assert_eq!(house.models.memory_verdict().as_ref(), Some(&asked[1].1));
    assert_eq!(house.models.worker_verdict(), None, "others are killed, this one finishes");
    let report = house.models.report();
    let [incident] = report.incidents.as_slice() else { panic!("{:?}", report.incidents) };
    assert_eq!((incident.subject.as_str(), incident.seen), ("the memory of the worker", 1));
    assert!(
        incident.story.contains("then the worker has to be replaced; not well yet"),
        "{incident}"
    );
    // It stops by itself, and a minute later that is believed.
    assert!(sample(&house, (71, 140), |_| 860.0).is_empty());
    assert_eq!(house.models.memory_verdict(), None);
    assert!(house.models.report().incidents[0].healed_after_ms.is_some());
    let actions = |reason| house.metric("balm_heal_actions_total", &["worker", reason]);
    assert_eq!((actions("memory_leak"), actions("memory_high")), (1.0, 0.0));
}

#[test]
fn a_worker_that_is_not_replaced_says_so_once() {
    let house = loaded();
    house.models.memory_not_healed();
    assert!(house.models.report().incidents.is_empty(), "it has not asked");
    sample(&house, (0, 41), leak);
    house.models.memory_not_healed();
    house.models.memory_not_healed();
    let story = house.models.report().incidents[0].story.clone();
    let told =
        "then requests were turned away because the worker was replaced too often for its memory";
    assert_eq!(story.matches(told).count(), 1, "{story}");
    assert_eq!(house.metric("balm_heal_actions_total", &["shed", "memory_budget"]), 1.0);
}

#[test]
fn what_a_load_or_an_unload_does_is_no_leak() {
    let house = loaded();
    assert!(sample(&house, (0, 39), leak).is_empty());
    // What was sampled before says nothing any more.
    house.models.load("m").unwrap();
    settled(&house);
    assert!(sample(&house, (39, 58), leak).is_empty());
    house.models.unload("m").unwrap();
    assert!(sample(&house, (58, 68), leak).is_empty());
    assert_eq!(sample(&house, (68, 71), leak).len(), 1);
}

#[test]
fn a_session_that_is_built_is_no_leak() {
    let house = House::loaded(2);
    // Its lane is replaced, which takes so long that nothing is judged meanwhile.
    house.script.build_ms.store(500, std::sync::atomic::Ordering::SeqCst);
    let begun = std::time::Instant::now();
    house.hang(scripted::DEAF);
    house.pass(std::time::Duration::from_secs(3));
    let asked = sample(&house, (0, 60), leak);
    // Only where the machine stood still for the whole of it has the session come before.
    assert!(
        asked.is_empty() || begun.elapsed() >= std::time::Duration::from_millis(500),
        "{asked:?}"
    );
    house.until("replaced", |house| house.healthy() == 2);
    settled(&house);
    assert_eq!(sample(&house, (60, 71), |second| second * 20.0 - 700.0).len(), 1);
}
