use proptest::prelude::*;

use super::*;

fn hung(alive: u32) -> Trouble {
    Trouble::LaneHung {
        kind: HungKind::Blocked,
        abandoned: Abandoned { alive, ..Abandoned::default() },
    }
}

fn ladder() -> Ladder {
    Ladder::new(Means::default())
}

#[test]
fn each_trouble_has_its_rung() {
    let table = [
        (Trouble::PastDeadline, Rung::Cancel, Reason::Deadline),
        (hung(0), Rung::Lane, Reason::HungBlocked),
        (Trouble::CanaryFailed, Rung::Lane, Reason::Canary),
        (Trouble::ProviderFailed { sticky: true }, Rung::Worker, Reason::ProviderSticky),
        (Trouble::ProviderFailed { sticky: false }, Rung::Worker, Reason::ProviderBudget),
        (Trouble::VersionHarmful, Rung::Worker, Reason::VersionHarmful),
        (Trouble::LaneNotBuilt, Rung::Worker, Reason::LaneBuild),
        (Trouble::Stalled, Rung::Worker, Reason::Stall),
        (Trouble::RuntimeWedged, Rung::Worker, Reason::RuntimeWedged),
        (Trouble::WorkerSilent, Rung::Worker, Reason::WorkerSilent),
        (Trouble::WorkerDied, Rung::Worker, Reason::WorkerDied),
        (Trouble::MemoryLeak, Rung::Worker, Reason::MemoryLeak),
        (Trouble::MemoryHigh, Rung::Worker, Reason::MemoryHigh),
        (Trouble::Unkillable, Rung::Exit, Reason::Unkillable),
    ];
    for (trouble, rung, reason) in table {
        let decision = ladder().decide(trouble, 7, 0.0);
        assert_eq!(decision, Decision { rung, reason, delay_ms: 0 }, "{trouble:?}");
    }
    let able = Means { provider: true, version: true };
    let mut ladder = Ladder::new(able);
    let mut decide = |trouble, now| ladder.decide(trouble, now, 0.0);
    let fails = Trouble::ProviderFailed { sticky: false };
    assert_eq!(decide(fails, 0).rung, Rung::Provider);
    assert_eq!(decide(fails, 599_999), Decision::at_once(Rung::Worker, Reason::ProviderBudget));
    assert_eq!(decide(fails, 600_000).rung, Rung::Provider);
    assert_eq!(decide(Trouble::VersionHarmful, 1).rung, Rung::Version);
}

/// T15: a lane that hangs five times in a minute.
#[test]
fn lanes_escalate_exactly_at_their_budget() {
    let mut ladder = ladder();
    let rungs: Vec<Rung> =
        (0..5).map(|count| ladder.decide(hung(0), count * 12_000, 0.0).rung).collect();
    assert_eq!(rungs, [Rung::Lane, Rung::Lane, Rung::Worker, Rung::Worker, Rung::Worker]);
    assert_eq!(ladder.decide(hung(0), 60_000, 0.0).rung, Rung::Lane, "the first has aged");
}

#[test]
fn the_canary_spends_what_hung_lanes_spend() {
    let mut ladder = ladder();
    assert_eq!(ladder.decide(Trouble::CanaryFailed, 0, 0.0).rung, Rung::Lane);
    assert_eq!(ladder.decide(hung(0), 0, 0.0).rung, Rung::Lane);
    let third = ladder.decide(Trouble::CanaryFailed, 59_999, 0.0);
    assert_eq!(third, Decision::at_once(Rung::Worker, Reason::LaneBudget));
}

#[test]
fn abandoned_lanes_need_room() {
    let table = [
        (0, 0, None, true),
        (1, u64::MAX, None, true),
        (2, 0, None, false),
        (0, 30, Some(100), true),
        (0, 31, Some(100), false),
        (1, 30, Some(100), true),
        (2, 30, Some(100), false),
        (0, 1, Some(0), false),
        (0, u64::MAX, Some(u64::MAX), false),
    ];
    for (alive, bytes, limit_bytes, room) in table {
        let abandoned = Abandoned { alive, bytes, limit_bytes };
        assert_eq!(abandoned.has_room(), room, "{abandoned:?}");
        let mut ladder = ladder();
        let trouble = Trouble::LaneHung { kind: HungKind::Spinning, abandoned };
        let rung = ladder.decide(trouble, 0, 0.0).rung;
        assert_eq!(rung, if room { Rung::Lane } else { Rung::Worker });
        // What was not done was not spent.
        assert_eq!(ladder.lanes.spent(0), usize::from(room));
    }
}

/// T17: 0, 0.2, 1, 5, 15 s, then the end.
#[test]
fn workers_wait_longer_each_time_and_then_it_ends() {
    let mut ladder = ladder();
    let waits: Vec<u64> = (0..5)
        .map(|count| {
            let decision = ladder.decide(Trouble::WorkerDied, count * 1_000, 0.0);
            assert_eq!(decision.rung, Rung::Worker);
            decision.delay_ms
        })
        .collect();
    assert_eq!(waits, [0, 200, 1_000, 5_000, 15_000]);
    let sixth = ladder.decide(Trouble::WorkerDied, 299_999, 0.0);
    assert_eq!(sixth, Decision::at_once(Rung::Exit, Reason::WorkerBudget));
    let aged = ladder.decide(Trouble::WorkerDied, 300_000, 0.0);
    assert_eq!((aged.rung, aged.delay_ms), (Rung::Worker, 15_000), "four are left in the window");
}

#[test]
fn waits_are_spread_by_a_fifth() {
    let table = [
        (1_000, -1.0, 800),
        (1_000, 0.0, 1_000),
        (1_000, 1.0, 1_200),
        (1_000, 9.0, 1_200),
        (1_000, -9.0, 800),
        (1_000, 0.5, 1_100),
        (1_000, f64::NAN, 1_000),
        (1_000, f64::INFINITY, 1_200),
        (0, 1.0, 0),
    ];
    for (wait, jitter, spread_ms) in table {
        assert_eq!(spread(wait, jitter), spread_ms, "{wait} {jitter}");
    }
}

#[test]
fn names_are_the_labels() {
    let mut names: Vec<&str> = Reason::ALL.map(Reason::as_str).to_vec();
    for reason in Reason::ALL {
        assert_eq!(serde_json::to_string(&reason).unwrap(), format!("\"{}\"", reason.as_str()));
        assert!(!reason.sentence().is_empty() && !reason.sentence().ends_with('.'));
    }
    names.dedup();
    assert_eq!(names.len(), Reason::ALL.len());
    for (place, rung) in Rung::ALL.into_iter().enumerate() {
        assert_eq!(rung as usize, place);
        assert_eq!(serde_json::to_string(&rung).unwrap(), format!("\"{}\"", rung.as_str()));
        assert!(!rung.deed().is_empty());
    }
    assert!(Rung::ALL.is_sorted());
    use HungKind::*;
    let kinds = [Spinning, Blocked, Between].map(Reason::hung);
    assert_eq!(kinds, [Reason::HungSpinning, Reason::HungBlocked, Reason::HungBetween]);
}

const MINUTE: u64 = 60_000;

fn journal(entries: &[(u64, Reason, &str)]) -> FatalJournal {
    let mut journal = FatalJournal::default();
    for &(at_ms, reason, fingerprint) in entries {
        journal.record(FatalEntry { at_ms, reason, fingerprint: fingerprint.to_owned() });
    }
    journal
}

#[test]
fn three_ends_for_one_reason_in_half_an_hour_park_the_server() {
    use Reason::{Unkillable, WorkerBudget};
    let same =
        [(0, WorkerBudget, "a"), (MINUTE, WorkerBudget, "a"), (2 * MINUTE, WorkerBudget, "a")];
    let parked = Some(Decision { rung: Rung::Park, reason: WorkerBudget, delay_ms: 0 });
    let table = [
        ("none", journal(&[]), 0, None),
        ("two", journal(&same[..2]), 2 * MINUTE, None),
        ("three", journal(&same), 2 * MINUTE, parked),
        ("just within", journal(&same), 30 * MINUTE - 1, parked),
        ("the first is too old", journal(&same), 30 * MINUTE, None),
        ("the clock was set back", journal(&same), 0, parked),
        (
            "two reasons",
            journal(&[same[0], (1, Unkillable, "a"), same[1], (2, Unkillable, "a")]),
            2 * MINUTE,
            None,
        ),
        (
            "something was changed in between",
            journal(&[same[0], (1, WorkerBudget, "b"), same[1]]),
            2 * MINUTE,
            None,
        ),
    ];
    for (name, journal, now, decision) in table {
        assert_eq!(journal.judge(now, "a"), decision, "{name}");
    }
    assert_eq!(journal(&same).judge(2 * MINUTE, "b"), None, "something was changed since");
}

#[test]
fn the_journal_is_bounded_and_survives_being_written() {
    let mut journal = FatalJournal::default();
    assert!(journal.is_empty());
    for at_ms in 0..100 {
        journal.record(FatalEntry {
            at_ms,
            reason: Reason::WorkerDied,
            fingerprint: String::new(),
        });
        assert!(journal.len() <= 16 && !journal.is_empty());
    }
    assert_eq!(journal.len(), 16);
    let text = serde_json::to_string(&journal).unwrap();
    let read: FatalJournal = serde_json::from_str(&text).unwrap();
    assert_eq!(read, journal);
    assert!(text.contains("\"at_ms\":84,") && !text.contains("\"at_ms\":83,"), "{text}");
}

fn any_trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        (0u32..4).prop_map(hung),
        Just(Trouble::CanaryFailed),
        Just(Trouble::WorkerDied),
        Just(Trouble::MemoryLeak),
        Just(Trouble::PastDeadline),
    ]
}

proptest! {
    /// In no window is any rung used more than its budget, and a milder rung with budget left is never passed over.
    #[test]
    fn budgets_hold_and_nothing_escalates_early(
        events in proptest::collection::vec((any_trouble(), 0u64..40_000, -1.0f64..1.0), 1..200),
    ) {
        let mut ladder = ladder();
        let mut now = 0;
        let (mut lanes, mut workers) = (Vec::new(), Vec::new());
        let within = |times: &[u64], window: u64, now: u64| {
            times.iter().filter(|at| now - **at < window).count()
        };
        for (trouble, gap, jitter) in events {
            now += gap;
            let decision = ladder.decide(trouble, now, jitter);
            let lanes_left = within(&lanes, LANE_WINDOW_MS, now) < LANE_REPAIRS;
            let workers_left = within(&workers, WORKER_WINDOW_MS, now) < WORKER_REPAIRS;
            let mild = match trouble {
                Trouble::LaneHung { abandoned, .. } => lanes_left && abandoned.alive < ABANDONED_MAX,
                Trouble::CanaryFailed => lanes_left,
                _ => false,
            };
            match decision.rung {
                Rung::Cancel => prop_assert_eq!(trouble, Trouble::PastDeadline),
                Rung::Lane => {
                    prop_assert!(mild);
                    lanes.push(now);
                }
                Rung::Worker => {
                    prop_assert!(!mild && workers_left);
                    prop_assert!(decision.delay_ms <= 18_000);
                    workers.push(now);
                }
                Rung::Exit => prop_assert!(!mild && !workers_left),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
