use proptest::prelude::*;

use super::*;
use MemoryStep::{Ask, Calm, Nothing};

const MB: u64 = 1 << 20;

/// `used` megabytes of a thousand, all of them the worker's.
fn of_thousand(used: u64) -> Usage {
    Usage { used: used * MB, own: used * MB, limit: 1_000 * MB }
}

#[test]
fn it_asks_once_then_again_and_says_when_it_is_over() {
    let mut watch = MemoryWatch::default();
    let mut asks = Vec::new();
    // Ten megabytes a second up to 84 %, then rest.
    for second in 0..200 {
        let used = (400 + second * 10).min(840);
        match watch.observe(of_thousand(used), second * 1_000) {
            Nothing => {}
            step => asks.push((second, step)),
        }
    }
    let first = Ask { trouble: Trouble::MemoryLeak, first: true, in_ms: Some(22_000) };
    // The last three seconds of the rise end at second 46, and the minute of calm with it.
    assert_eq!(asks, [(23, first), (106, Calm)]);
}

#[test]
fn it_asks_again_after_half_a_minute_and_no_sooner() {
    let mut watch = MemoryWatch::default();
    let used = |second: u64| of_thousand((500 + second * 5).min(980));
    let asked: Vec<u64> = (0..100)
        .filter(|second| matches!(watch.observe(used(*second), second * 1_000), Ask { .. }))
        .collect();
    let pauses: Vec<u64> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.len() >= 2 && pauses.iter().all(|pause| *pause == 30), "{asked:?}");
}

#[test]
fn a_breath_between_two_verdicts_is_the_same_trouble() {
    let mut watch = MemoryWatch::default();
    let mut steps = Vec::new();
    for second in 0..600 {
        // Five megabytes, every sixth second.
        let step = watch.observe(of_thousand(400 + second / 6 * 5), second * 1_000);
        steps.extend((step != Nothing).then_some(step));
    }
    let firsts = steps.iter().filter(|step| matches!(step, Ask { first: true, .. })).count();
    assert_eq!((firsts, steps.contains(&Calm)), (1, false), "{steps:?}");
}

#[test]
fn a_load_forgets_the_line_and_not_the_trouble() {
    let mut watch = MemoryWatch::default();
    let asked = (0..20).filter(|second| {
        matches!(watch.observe(of_thousand(500 + second * 10), second * 1_000), Ask { .. })
    });
    assert_eq!(asked.count(), 1);
    watch.reset();
    assert_eq!(watch.observe(of_thousand(900), 20_000), Nothing);
    let calm = (21..100).find(|second| watch.observe(of_thousand(300), second * 1_000) == Calm);
    assert_eq!(calm, Some(79), "a minute after the last verdict");
}

proptest! {
    /// However memory goes: never asked twice within half a minute, and each trouble begins with a first.
    #[test]
    fn it_never_asks_too_often(levels in proptest::collection::vec((0u64..1_000, 1u64..120), 1..40)) {
        let mut watch = MemoryWatch::default();
        let (mut now_ms, mut asked_ms, mut in_trouble) = (0, None, false);
        for (level, seconds) in levels {
            for second in 0..seconds {
                now_ms += 1_000;
                // Towards the level, up to ten megabytes a second.
                let used = level.saturating_sub(10 * (seconds - second));
                match watch.observe(of_thousand(used), now_ms) {
                    Nothing => {}
                    Calm => {
                        prop_assert!(in_trouble);
                        in_trouble = false;
                    }
                    Ask { first, .. } => {
                        prop_assert_eq!(first, !in_trouble);
                        let since = asked_ms.map_or(u64::MAX, |asked_ms| now_ms - asked_ms);
                        prop_assert!(since >= ASK_AGAIN_MS);
                        (asked_ms, in_trouble) = (Some(now_ms), true);
                    }
                }
            }
        }
    }
}
