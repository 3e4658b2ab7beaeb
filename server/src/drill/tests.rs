//! The judgement of cards, in tables; the report in all its forms.

use super::card::{Bounds, CARDS, chosen};
use super::judge::{Answer, Check, Seen, Sight, judge};
use super::play::Played;
use super::report::{CardReport, Report, html};
use balm_loadtest::steady::Fate;
use std::collections::BTreeSet;
use std::time::Duration;

const WELL: Sight = Sight { ready: true, whole: true, incidents: 0, workers: 1, version: 1 };
const UNREADY: Sight = Sight { ready: false, ..WELL };
const REPLACED: Sight = Sight { workers: 2, ..WELL };

const BOUNDS: Bounds = Bounds {
    detected: Some(Duration::from_secs(2)),
    healed: Duration::from_secs(5),
    workers: (1, 1),
    lost: 2,
    stays_ready: false,
};

fn answer(ended_s: f64, fate: Fate) -> Answer {
    Answer { question: 0, sent_s: ended_s - 0.01, ended_s, fate }
}

/// A right answer every tenth of a second, from a second before the fault on; looks at the same moments.
fn seen(until_s: f64, fate: impl Fn(f64) -> Fate, sight: impl Fn(f64) -> Sight) -> Seen {
    let moments = || (-10..).map(|tenth| f64::from(tenth) / 10.0).take_while(|at| *at < until_s);
    Seen {
        answers: moments().map(|at| answer(at, fate(at))).collect(),
        sights: moments().map(|at| (at, sight(at))).collect(),
        ..Seen::default()
    }
}

fn right(_: f64) -> Fate {
    Fate::Right
}

/// Not ready from half a second to a second and a half after the fault, and then another worker.
fn crash(at: f64) -> Sight {
    match at {
        at if at < 0.5 => WELL,
        at if at < 1.5 => UNREADY,
        _ => REPLACED,
    }
}

#[test]
fn what_is_noticed_and_healed() {
    let lost = |at: f64| if (0.2..0.4).contains(&at) { Fate::Lost("reset") } else { Fate::Right };
    let late = |at: f64| if at > 1.95 && at < 2.05 { Fate::Refused(503) } else { Fate::Right };
    let told = |at: f64| if at < 3.0 { WELL } else { Sight { incidents: 1, ..WELL } };
    let broken = |at: f64| if at < 1.0 { WELL } else { Sight { whole: false, ..WELL } };
    for (what, seen, detected, healed) in [
        ("a crash", seen(4.0, lost, crash), Some(0.5), Some(1.5)),
        ("an answer after it", seen(4.0, late, crash), Some(0.5), Some(2.0)),
        ("nothing", seen(4.0, right, |_| WELL), None, Some(0.0)),
        ("mended between two looks", seen(4.0, right, told), Some(3.0), Some(3.0)),
        ("never whole again", seen(4.0, right, broken), None, None),
        (
            "never right again",
            seen(4.0, |at| if at < 0.0 { Fate::Right } else { Fate::Wrong }, |_| WELL),
            None,
            None,
        ),
        (
            "never ready again",
            seen(4.0, right, |at| if at < 1.0 { WELL } else { UNREADY }),
            Some(1.0),
            None,
        ),
    ] {
        assert_eq!((seen.detected_s(), seen.healed_s()), (detected, healed), "{what}");
    }
}

#[test]
fn a_fault_that_lasts_is_healed_from_its_end_on() {
    let refused = |at: f64| if (0.0..2.0).contains(&at) { Fate::Refused(503) } else { Fate::Right };
    let mut seen = seen(4.0, refused, |_| WELL);
    seen.lasts_s = 1.5;
    assert!(seen.healed_s().is_some_and(|healed| (0.3..0.5).contains(&healed)));
    seen.lasts_s = 3.0;
    assert_eq!(seen.healed_s(), Some(0.0));
}

#[test]
fn each_bound_can_be_missed() {
    let good = seen(4.0, right, crash);
    assert!(judge(&BOUNDS, &good).passed, "{:?}", judge(&BOUNDS, &good).checks);
    let mut cases: Vec<(&str, Bounds, Seen)> = vec![
        ("noticed", Bounds { detected: Some(Duration::ZERO), ..BOUNDS }, good.clone()),
        ("noticed", BOUNDS, seen(4.0, right, |_| WELL)),
        ("well again", Bounds { healed: Duration::from_secs(1), ..BOUNDS }, good.clone()),
        ("workers replaced", Bounds { workers: (2, 2), ..BOUNDS }, good.clone()),
        ("workers replaced", Bounds { workers: (0, 0), ..BOUNDS }, good.clone()),
        ("times seen not ready", Bounds { stays_ready: true, ..BOUNDS }, good.clone()),
        ("restarts by a kubelet", BOUNDS, Seen { restarts: 1, ..good.clone() }),
        ("requests lost", BOUNDS, Seen { unanswered: 3, ..good.clone() }),
        (
            "the load",
            BOUNDS,
            Seen {
                further: vec![Check::holds("the load", "status 500", "refused", false)],
                ..good.clone()
            },
        ),
    ];
    for (what, fate) in
        [("answers that were wrong", Fate::Wrong), ("connections refused", Fate::NotConnected)]
    {
        let mut bad = good.clone();
        bad.answers.push(answer(1.0, fate));
        bad.answers.push(answer(3.9, Fate::Right));
        cases.push((what, BOUNDS, bad));
    }
    let mut bad = good.clone();
    bad.answers.extend([answer(1.0, Fate::Lost("reset")); 3]);
    cases.push(("requests lost", BOUNDS, bad));
    for (what, bounds, seen) in cases {
        let outcome = judge(&bounds, &seen);
        let failed: Vec<&str> =
            outcome.checks.iter().filter(|check| !check.passed).map(|c| c.what.as_str()).collect();
        assert!(!outcome.passed && failed.contains(&what), "{what}: {failed:?}");
    }
}

#[test]
fn it_is_over_when_all_has_been_well_for_a_while_and_not_before() {
    let crashed = |until| seen(until, right, crash);
    for (what, seen, now, over) in [
        ("before it was noticed", crashed(0.4), 0.4, false),
        ("not ready", crashed(1.2), 1.2, false),
        ("just healed", crashed(1.7), 1.7, false),
        ("settled", crashed(3.2), 3.2, true),
        (
            "no other worker came",
            seen(9.0, right, |at| if at < 1.0 { UNREADY } else { WELL }),
            9.0,
            false,
        ),
    ] {
        assert_eq!(seen.is_over(&BOUNDS, now, 1.5), over, "{what}");
    }
    let quiet = Bounds { detected: None, workers: (0, 0), ..BOUNDS };
    assert!(seen(2.0, right, |_| WELL).is_over(&quiet, 2.0, 1.5));
}

#[test]
fn moments_are_counted_from_the_fault() {
    let mut seen = seen(0.5, right, |_| WELL);
    let (first, sights) = (seen.answers[0].ended_s, seen.sights.len());
    seen.shift(0.3);
    assert!((seen.answers[0].ended_s - (first - 0.3)).abs() < 1e-9);
    assert!((seen.sights[0].0 - (first - 0.3)).abs() < 1e-9 && seen.sights.len() == sights);
    // What ended before the fault is not counted.
    let outcome = judge(&BOUNDS, &seen);
    assert_eq!(outcome.requests.asked, 2);
}

#[test]
fn a_card_is_told_in_a_sentence() {
    let mut broken = seen(4.0, right, crash);
    broken.answers.push(answer(0.3, Fate::Lost("reset")));
    broken.answers.push(answer(0.6, Fate::Refused(504)));
    let sentence = judge(&BOUNDS, &broken).sentence("the worker crashed");
    assert_eq!(
        sentence,
        "the worker crashed; noticed after 0.5 s; well again after 1.5 s; 40 of 42 requests answered rightly, 1 answered 504, 1 lost that was under way."
    );
    let quiet = judge(&BOUNDS, &seen(4.0, right, |_| WELL)).sentence("a load");
    assert_eq!(quiet, "a load; no client noticed; 40 of 40 requests answered rightly, none lost.");
}

#[test]
fn cards_are_found_by_their_names_and_stay_in_order() {
    let names: BTreeSet<&str> = CARDS.iter().map(|card| card.name.as_str()).collect();
    assert_eq!(names.len(), CARDS.len());
    for card in CARDS {
        // What the JSON says is what `--cards` takes.
        let json = serde_json::to_string(&card.name).unwrap();
        assert_eq!(json, format!("{:?}", card.name.as_str()));
        assert!(card.bounds.healed < card.patience, "{}", card.name.as_str());
    }
    let given = ["crash".to_owned(), "overload".to_owned()];
    let found: Vec<&str> = chosen(&given).unwrap().iter().map(|card| card.name.as_str()).collect();
    assert_eq!(found, ["overload", "crash"]);
    assert_eq!(chosen(&[]).unwrap().len(), CARDS.len());
    let error = chosen(&["crush".to_owned()]).unwrap_err();
    assert!(error.contains("no card \"crush\"") && error.contains("crash-loop"), "{error}");
}

fn report() -> Report {
    let mut report = Report::new("2026-01-01T00:00:00Z".to_owned(), 1, "<models>".to_owned());
    let card = chosen(&["crash".to_owned()]).unwrap()[0];
    let play = |seen: Seen| {
        let outcome = judge(&BOUNDS, &seen);
        Played::Judged { sentence: outcome.sentence("it crashed"), outcome, answers: seen.answers }
    };
    report.add(&CardReport::of(card, play(seen(4.0, right, crash)), 5.0));
    report.add(&CardReport::of(card, Played::Skipped("there is no manifest".to_owned()), 0.0));
    assert!(report.passed, "what was not played did not fail");
    let mut broken = report.clone();
    broken.add(&CardReport::of(card, Played::Broken("it does not listen".to_owned()), 0.0));
    assert!(!broken.passed && broken.text().contains("crash: it does not listen"));
    assert!(html::render(&broken).contains("it does not listen"));
    report.add(&CardReport::of(card, play(seen(4.0, |_| Fate::Wrong, crash)), 5.0));
    report
}

#[test]
fn a_failed_card_is_explained_wherever_it_is_told() {
    let report = report();
    assert!(!report.passed);
    let text = report.text();
    for piece in [
        "crash            passed     0.5 s    1.5 s      0      0         0",
        "crash            FAILED     0.5 s        -      0     40         0",
        "crash            skipped\n",
        "  NOT answers that were wrong: none (found 40)",
        "A crash of a native library takes the server down",
        "FAILED: 1 of 2 cards passed, 1 not played; 80 requests, 40 answered wrongly",
    ] {
        assert!(text.contains(piece), "{piece}\n{text}");
    }
    let json: serde_json::Value = serde_json::to_value(&report).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["cards"][0]["status"], "passed");
    assert_eq!(json["cards"][0]["detected_s"], 0.5);
    assert_eq!(json["cards"][1]["status"], "skipped");
    assert!(json["cards"][2]["advice"]["remedy"].is_string());
    assert!(json["cards"][0].get("advice").is_none());
}

#[test]
fn the_page_needs_nothing_else_and_escapes_what_it_is_given() {
    let page = html::render(&report());
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("&lt;models&gt;"));
    for foreign in ["http://", "https://", "<script", "url(", "@import"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    assert_eq!(page.matches("<svg").count(), 2, "what was not played has no picture");
    for piece in ["badge pass", "badge fail", "not played", "there is no manifest"] {
        assert!(page.contains(piece), "{piece}");
    }
}
