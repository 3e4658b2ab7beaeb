use proptest::prelude::*;

use super::*;

fn sighting(subject: &str) -> Sighting {
    Sighting { subject: subject.to_owned(), reason: Reason::HungBlocked, after_ms: 2_149 }
}

#[test]
fn a_story_from_end_to_end() {
    let mut incidents = Incidents::default();
    let lane = "lane 0 of model \"iris\" version 1";
    let opened = incidents.see(sighting(lane), 1_000, 5);
    assert_eq!(
        opened.story,
        "lane 0 of model \"iris\" version 1: a run ignored its cancel and is blocked, seen after 2.1 s; not well yet"
    );
    incidents.act(lane, Rung::Lane, Reason::HungBlocked, 1_010).unwrap();
    let healed = incidents.heal(lane, 1_350).unwrap();
    assert_eq!(
        healed.story,
        "lane 0 of model \"iris\" version 1: a run ignored its cancel and is blocked, seen after 2.1 s; then the lane was replaced; well again 0.4 s later"
    );
    let json = serde_json::to_value(&healed).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "id": 1, "subject": lane, "reason": "hung_blocked", "opened_at_ms": 5, "detected_after_ms": 2149, "seen": 1,
            "deeds": [{"rung": "lane", "reason": "hung_blocked", "after_ms": 10}], "healed_after_ms": 350,
            "story": healed.story,
        })
    );
    assert_eq!(serde_json::from_value::<Incident>(json).unwrap(), healed);
    assert_eq!(incidents.all(), [healed]);
    assert_eq!(incidents.heal(lane, 2_000), None, "once");
    assert_eq!(incidents.act(lane, Rung::Lane, Reason::Panic, 2_000), None);
    let again = incidents.see(sighting(lane), 3_000, 7);
    assert_eq!((again.id, again.opened_at_ms), (2, 7), "a new one");
}

#[test]
fn an_escalation_says_why() {
    let mut incidents = Incidents::default();
    incidents.see(sighting("a"), 0, 0);
    incidents.see(sighting("a"), 10, 10);
    let told = incidents.act("a", Rung::Worker, Reason::LaneBudget, 20).unwrap();
    assert_eq!(
        told.story,
        "a: a run ignored its cancel and is blocked, seen after 2.1 s, 2 times; then the worker has to be replaced because lanes hung too often; not well yet"
    );
    assert_eq!((told.seen, told.id), (2, 1));
}

#[test]
fn seconds_have_one_place() {
    let table = [
        (0, "0.0 s"),
        (49, "0.0 s"),
        (50, "0.1 s"),
        (949, "0.9 s"),
        (950, "1.0 s"),
        (61_000, "61.0 s"),
    ];
    for (ms, text) in table {
        assert_eq!(Seconds(ms).to_string(), text);
    }
}

#[test]
fn closed_ones_make_way_first() {
    let mut incidents = Incidents::default();
    for count in 0..INCIDENTS_MAX {
        incidents.see(sighting(&format!("s{count}")), 0, 0);
    }
    incidents.heal("s5", 1);
    incidents.see(sighting("new"), 2, 2);
    let kept: Vec<String> = incidents.all().into_iter().map(|incident| incident.subject).collect();
    assert_eq!(kept.len(), INCIDENTS_MAX);
    assert!(!kept.contains(&"s5".to_owned()) && kept.contains(&"s0".to_owned()));
    incidents.see(sighting("newer"), 3, 3);
    let kept: Vec<String> = incidents.all().into_iter().map(|incident| incident.subject).collect();
    assert!(!kept.contains(&"s0".to_owned()), "all are open: the oldest goes");
    for _ in 0..100 {
        incidents.act("new", Rung::Cancel, Reason::Deadline, 9);
    }
    let deeds = incidents.heal("new", 9).unwrap().deeds.len();
    assert_eq!(deeds, DEEDS_MAX);
}

proptest! {
    /// At most one open incident for a subject, never more than are kept, and numbers only grow.
    #[test]
    fn one_open_story_a_subject(events in proptest::collection::vec((0u8..3, 0u8..40), 0..300)) {
        let mut incidents = Incidents::default();
        for (now, (event, subject)) in events.into_iter().enumerate() {
            let (now, name) = (now as u64, format!("s{subject}"));
            let open = incidents.all().iter().any(|i| i.subject == name && i.healed_after_ms.is_none());
            match event {
                0 => {
                    incidents.see(sighting(&name), now, now);
                }
                1 => prop_assert_eq!(incidents.act(&name, Rung::Lane, Reason::Panic, now).is_some(), open),
                _ => prop_assert_eq!(incidents.heal(&name, now).is_some(), open),
            }
            let all = incidents.all();
            prop_assert!(all.len() <= INCIDENTS_MAX);
            prop_assert!(all.windows(2).all(|pair| pair[0].id < pair[1].id));
            for incident in &all {
                let same = |other: &&Incident| other.subject == incident.subject && other.healed_after_ms.is_none();
                prop_assert!(all.iter().filter(same).count() <= 1);
            }
        }
    }
}
