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
        (Trouble::CanaryFailed { loads: 0 }, Rung::Lane, Reason::Canary),
        (Trouble::ProviderFailed { sticky: true }, Rung::Worker, Reason::ProviderSticky),
        (Trouble::ProviderFailed { sticky: false }, Rung::Worker, Reason::ProviderBudget),
        (Trouble::VersionHarmful, Rung::Worker, Reason::VersionHarmful),
        (Trouble::LaneNotBuilt, Rung::Worker, Reason::LaneBuild),
        (Trouble::Stalled, Rung::Worker, Reason::Stall),
        (Trouble::MemoryLeak, Rung::Worker, Reason::MemoryLeak),
        (Trouble::MemoryHigh, Rung::Worker, Reason::MemoryHigh),
    ];
    for (trouble, rung, reason) in table {
        let decision = ladder().decide(trouble, 7);
        assert_eq!(decision, Decision { rung, reason }, "{trouble:?}");
    }
    let able = Means { provider: true, version: true };
    let mut ladder = Ladder::new(able);
    let mut decide = |trouble, now| ladder.decide(trouble, now);
    let fails = Trouble::ProviderFailed { sticky: false };
    assert_eq!(decide(fails, 0).rung, Rung::Provider);
    assert_eq!(
        decide(fails, 599_999),
        Decision { rung: Rung::Worker, reason: Reason::ProviderBudget }
    );
    assert_eq!(decide(fails, 600_000).rung, Rung::Provider);
    assert_eq!(decide(Trouble::VersionHarmful, 1).rung, Rung::Version);
}

/// T15: a lane that hangs five times in a minute.
#[test]
fn lanes_escalate_exactly_at_their_budget() {
    let mut ladder = ladder();
    let rungs: Vec<Rung> =
        (0..5).map(|count| ladder.decide(hung(0), count * 12_000).rung).collect();
    assert_eq!(rungs, [Rung::Lane, Rung::Lane, Rung::Worker, Rung::Worker, Rung::Worker]);
    assert_eq!(ladder.decide(hung(0), 60_000).rung, Rung::Lane, "the first has aged");
}

#[test]
fn the_canary_spends_what_hung_lanes_spend() {
    let mut ladder = ladder();
    assert_eq!(ladder.decide(Trouble::CanaryFailed { loads: 0 }, 0).rung, Rung::Lane);
    assert_eq!(ladder.decide(hung(0), 0).rung, Rung::Lane);
    let third = ladder.decide(Trouble::CanaryFailed { loads: 0 }, 59_999);
    assert_eq!(third, Decision { rung: Rung::Worker, reason: Reason::LaneBudget });
    // Loads that take longer than the window come to an end as well.
    let rungs: Vec<Rung> = (0..4)
        .map(|loads| {
            ladder.decide(Trouble::CanaryFailed { loads }, 1_000_000 * u64::from(loads + 1)).rung
        })
        .collect();
    assert_eq!(rungs, [Rung::Lane, Rung::Lane, Rung::Worker, Rung::Worker]);
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
        let rung = ladder.decide(trouble, 0).rung;
        assert_eq!(rung, if room { Rung::Lane } else { Rung::Worker });
        // What was not done was not spent.
        assert_eq!(ladder.lanes.spent(0), usize::from(room));
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

fn any_trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        (0u32..4).prop_map(hung),
        (0u32..4).prop_map(|loads| Trouble::CanaryFailed { loads }),
        Just(Trouble::Stalled),
        Just(Trouble::MemoryLeak),
        Just(Trouble::PastDeadline),
    ]
}

proptest! {
    /// In no window is a rung used more than its budget, and a milder rung with budget left is never passed over.
    #[test]
    fn budgets_hold_and_nothing_escalates_early(
        events in proptest::collection::vec((any_trouble(), 0u64..40_000), 1..200),
    ) {
        let mut ladder = ladder();
        let mut now = 0;
        let mut lanes = Vec::new();
        for (trouble, gap) in events {
            now += gap;
            let spent = lanes.iter().filter(|at| now - **at < LANE_WINDOW_MS).count();
            let left = spent < LANE_REPAIRS;
            let mild = match trouble {
                Trouble::LaneHung { abandoned, .. } => left && abandoned.alive < ABANDONED_MAX,
                Trouble::CanaryFailed { loads } => left && loads < LOADS_MAX,
                _ => false,
            };
            match ladder.decide(trouble, now).rung {
                Rung::Cancel => prop_assert_eq!(trouble, Trouble::PastDeadline),
                Rung::Lane => {
                    prop_assert!(mild);
                    lanes.push(now);
                }
                Rung::Worker => prop_assert!(!mild),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
