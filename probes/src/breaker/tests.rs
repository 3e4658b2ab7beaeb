use proptest::prelude::*;

use super::*;
use BreakerResult::{Answered, Failed, Neither};
use BreakerState::{Accepting, Refusing, Trying};

fn feed(breaker: &mut Breaker, answered: u64, failed: u64, now_ms: u64) {
    breaker.answered(answered, now_ms);
    for _ in 0..failed {
        breaker.ended(Pass::FREE, Failed, now_ms);
    }
}

/// One that refuses since 0 ms, for a second.
fn refusing() -> Breaker {
    let mut breaker = Breaker::default();
    feed(&mut breaker, 10, 10, 0);
    assert_eq!(breaker.state(), Refusing);
    breaker
}

/// One whose canary came back well at 1 s.
fn trying() -> Breaker {
    let mut breaker = refusing();
    assert!(breaker.wants_canary(1_000));
    breaker.canary(Answered, 1_000);
    breaker
}

#[test]
fn it_closes_off_at_half_of_twenty() {
    let table = [
        (0, 19, Accepting, "too few"),
        (0, 20, Refusing, "all"),
        (10, 10, Refusing, "half of twenty"),
        (10, 9, Accepting, "nineteen"),
        (11, 10, Accepting, "less than half"),
        (100, 99, Accepting, "just less than half"),
        (100, 100, Refusing, "half of many"),
    ];
    for (answered, failed, state, name) in table {
        let mut breaker = Breaker::default();
        feed(&mut breaker, answered, failed, 500);
        assert_eq!(breaker.state(), state, "{name}");
        assert_eq!(breaker.admit(500).is_ok(), state == Accepting, "{name}");
    }
}

#[test]
fn only_the_servers_own_errors_count() {
    let mut breaker = Breaker::default();
    for _ in 0..1_000 {
        breaker.ended(Pass::FREE, Neither, 0);
    }
    feed(&mut breaker, 0, 19, 0);
    assert_eq!(breaker.state(), Accepting);
    breaker.ended(Pass::FREE, Answered, 0);
    assert_eq!(breaker.state(), Accepting, "an answer closes nothing off");
    breaker.ended(Pass::FREE, Failed, 0);
    assert_eq!(breaker.state(), Refusing);
}

#[test]
fn results_leave_the_window_after_ten_seconds() {
    let mut breaker = Breaker::default();
    feed(&mut breaker, 0, 19, 999);
    feed(&mut breaker, 0, 1, 10_000);
    assert_eq!(breaker.state(), Accepting, "ten parts later the first are gone");
    let mut breaker = Breaker::default();
    feed(&mut breaker, 0, 19, 999);
    feed(&mut breaker, 0, 1, 9_999);
    assert_eq!(breaker.state(), Refusing, "nine parts later they are not");
    let mut breaker = Breaker::default();
    feed(&mut breaker, 100, 0, 0);
    feed(&mut breaker, 0, 20, 9_999);
    assert_eq!(breaker.state(), Accepting, "answers weigh as long");
    // Half a minute later their places are others', whatever they are.
    let mut breaker = Breaker::default();
    feed(&mut breaker, 100, 0, 3_500);
    feed(&mut breaker, 0, 19, 33_000);
    assert_eq!(breaker.state(), Accepting);
    feed(&mut breaker, 0, 1, 34_999);
    assert_eq!(breaker.state(), Refusing);
}

#[test]
fn it_refuses_for_twice_as_long_each_time_up_to_a_minute() {
    let mut breaker = refusing();
    let mut now = 0;
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
        assert_eq!(breaker.admit(now), Err(seconds * 1_000));
        assert!(!breaker.wants_canary(now + seconds * 1_000 - 1));
        now += seconds * 1_000;
        assert_eq!(breaker.admit(now), Err(0), "a canary goes first");
        assert!(breaker.wants_canary(now));
        assert!(!breaker.wants_canary(now), "one");
        assert_eq!((breaker.state(), breaker.admit(now)), (Trying, Err(0)));
        breaker.canary(Failed, now);
        assert_eq!(breaker.state(), Refusing);
    }
}

#[test]
fn a_trial_is_a_canary_and_five_requests() {
    let mut breaker = trying();
    let passes: Vec<Pass> = (0..5).map(|_| breaker.admit(1_001).unwrap()).collect();
    assert_eq!(breaker.admit(1_001), Err(0), "no sixth, however many come at once");
    for (count, pass) in passes.into_iter().enumerate() {
        assert_eq!(breaker.state(), Trying, "{count} answered");
        breaker.ended(pass, Answered, 1_002);
        assert_eq!(breaker.admit(1_002).is_ok(), count == 4, "answered ones give no place back");
    }
    assert_eq!(breaker.state(), Accepting);
    // All is forgotten: it takes as much again, and refuses as short as the first time.
    feed(&mut breaker, 0, 19, 1_003);
    assert_eq!(breaker.state(), Accepting);
    feed(&mut breaker, 0, 1, 1_003);
    assert_eq!(breaker.admit(1_003), Err(1_000));
}

#[test]
fn trials_are_told_apart_for_good() {
    let mut breaker = trying();
    let stale = breaker.admit(1_001).unwrap();
    for _ in 0..5 {
        breaker.ended(stale, Neither, 1_001);
        let pass = breaker.admit(1_001).unwrap();
        breaker.ended(pass, Answered, 1_001);
    }
    assert_eq!(breaker.state(), Accepting);
    feed(&mut breaker, 0, 20, 2_000);
    assert!(breaker.wants_canary(3_000));
    breaker.canary(Answered, 3_000);
    breaker.ended(stale, Failed, 3_001);
    assert_eq!(breaker.state(), Trying, "a result of the first trial, in the second");
}

#[test]
fn one_failure_ends_a_trial() {
    let mut breaker = trying();
    let (first, second) = (breaker.admit(1_001).unwrap(), breaker.admit(1_001).unwrap());
    breaker.ended(first, Failed, 1_002);
    assert_eq!((breaker.state(), breaker.admit(1_002)), (Refusing, Err(2_000)));
    breaker.ended(second, Failed, 1_003);
    assert_eq!(breaker.admit(1_002), Err(2_000), "the second of the same trial adds nothing");
    assert!(breaker.wants_canary(3_002));
    breaker.canary(Answered, 3_002);
    breaker.ended(second, Failed, 3_003);
    assert_eq!(breaker.state(), Trying, "nor does a late one of the trial before");
    for _ in 0..5 {
        let pass = breaker.admit(3_004).unwrap();
        breaker.ended(second, Answered, 3_004);
        breaker.ended(pass, Answered, 3_004);
    }
    assert_eq!(breaker.state(), Accepting);
}

#[test]
fn who_leaves_a_trial_makes_room() {
    let mut breaker = trying();
    for _ in 0..100 {
        let pass = breaker.admit(1_001).unwrap();
        breaker.ended(pass, Neither, 1_001);
    }
    assert_eq!(breaker.state(), Trying);
    let mut canary = refusing();
    assert!(canary.wants_canary(1_000));
    canary.canary(Neither, 1_005);
    assert_eq!(canary.state(), Refusing);
    assert!(canary.wants_canary(1_005), "another at once, for the same wait");
    canary.canary(Failed, 1_010);
    assert_eq!(canary.admit(1_010), Err(2_000));
}

#[test]
fn what_comes_late_changes_nothing() {
    let mut breaker = refusing();
    feed(&mut breaker, 0, 100, 10);
    assert_eq!(breaker.admit(10), Err(990));
    breaker.canary(Failed, 20);
    breaker.canary(Answered, 20);
    assert_eq!(breaker.admit(20), Err(980), "a canary that nobody waits for");
    let mut accepting = Breaker::default();
    assert!(!accepting.wants_canary(1 << 40));
    accepting.canary(Failed, 0);
    assert_eq!(accepting.state(), Accepting);
    let mut trying = trying();
    feed(&mut trying, 0, 100, 1_000);
    assert_eq!(trying.state(), Trying, "free passes of before");
}

#[test]
fn names_are_the_labels() {
    for state in BreakerState::ALL {
        assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{}\"", state.as_str()));
    }
    assert_eq!(BreakerState::ALL.map(BreakerState::as_str), ["accepting", "refusing", "trying"]);
}

proptest! {
    /// Whatever happens in whatever order: never more than five in a trial, nobody while it refuses, and every refusal ends.
    #[test]
    fn trials_hold_under_any_order(events in proptest::collection::vec((0u8..7, 0u64..2_000), 1..400)) {
        let mut breaker = Breaker::default();
        let mut now = 0;
        let mut out: Vec<Pass> = Vec::new();
        for (event, gap) in events {
            now += gap;
            let before = breaker.state();
            match event {
                0 | 1 => match breaker.admit(now) {
                    Ok(pass) => {
                        prop_assert!(before != Refusing);
                        out.push(pass);
                    }
                    Err(wait) => {
                        prop_assert!(before != Accepting);
                        prop_assert!(wait <= REFUSE_MAX_MS);
                    }
                },
                2 | 3 if !out.is_empty() => {
                    let pass = out.swap_remove(now as usize % out.len());
                    let result = [Answered, Failed, Failed, Neither][now as usize % 4];
                    breaker.ended(pass, result, now);
                }
                4 => feed(&mut breaker, 0, 7, now),
                _ => {
                    if breaker.wants_canary(now) {
                        prop_assert_eq!(before, Refusing);
                        breaker.canary([Answered, Failed, Neither][now as usize % 3], now);
                    }
                }
            }
            let trial = breaker.trial;
            let in_trial = out.iter().filter(|pass| pass.trial == Some(trial)).count();
            if breaker.state() == Trying {
                prop_assert!(in_trial <= TRIAL_REQUESTS as usize);
            }
        }
        // Let everything go well from here, and it accepts.
        out.clear();
        for _ in 0..4 {
            now += REFUSE_MAX_MS;
            if breaker.wants_canary(now) {
                breaker.canary(Answered, now);
            }
        }
        if let Phase::Requests { out, .. } = &mut breaker.phase {
            // Those that were inside have left.
            *out = 0;
        }
        for _ in 0..TRIAL_REQUESTS {
            if let Ok(pass) = breaker.admit(now) {
                breaker.ended(pass, Answered, now);
            }
        }
        prop_assert_eq!(breaker.state(), Accepting);
    }
}
