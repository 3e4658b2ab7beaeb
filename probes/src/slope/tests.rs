use proptest::prelude::*;

use super::*;
use MemoryVerdict::{Fine, High, Leaks};

const MB: u64 = 1 << 20;
const LIMIT: u64 = 1_000 * MB;

/// All that is used is the worker's.
fn alone(used: u64) -> Usage {
    Usage { used, own: used, limit: LIMIT }
}

/// Samples once a second, by what is used at each second. The first verdict that is not `Fine`, and its second.
fn first(used: impl Fn(u64) -> u64, seconds: u64) -> Option<(u64, MemoryVerdict)> {
    first_of(|second| alone(used(second)), seconds)
}

fn first_of(usage: impl Fn(u64) -> Usage, seconds: u64) -> Option<(u64, MemoryVerdict)> {
    let mut slope = Slope::default();
    (0..seconds)
        .map(|second| (second, slope.observe(usage(second), second * 1_000)))
        .find(|(_, verdict)| *verdict != Fine)
}

/// The same four times a second, by what is used at each millisecond.
fn first_ms(used: impl Fn(u64) -> u64, seconds: u64) -> Option<(u64, MemoryVerdict)> {
    let mut slope = Slope::default();
    (0..seconds * 1_000)
        .step_by(250)
        .map(|ms| (ms, slope.observe(alone(used(ms)), ms)))
        .find(|(_, verdict)| *verdict != Fine)
}

#[test]
fn a_fast_leak_is_seen_before_it_is_too_late() {
    // 20 MB a second: half of the limit is reached after 25 s, 85 % after 42.
    let (second, verdict) = first(|second| second * 20 * MB, 100).unwrap();
    assert_eq!(second, 26, "as soon as half of the limit is used");
    let Leaks { in_ms } = verdict else { panic!("{verdict:?}") };
    assert!((16_400..=16_600).contains(&in_ms), "{in_ms}");
}

#[test]
fn a_slow_leak_is_seen_five_minutes_ahead() {
    // 1 MB a second from 500 MB on: 850 MB are 350 s away, half of which have to be seen to look as far ahead.
    let (second, verdict) = first(|second| 500 * MB + second * MB, 400).unwrap();
    assert_eq!((second, verdict), (175, Leaks { in_ms: 175_000 }));
    // A tenth of that: five minutes are looked ahead, though ten are seen.
    let (second, verdict) = first(|second| 500 * MB + second * MB / 10, 4_000).unwrap();
    let Leaks { in_ms } = verdict else { panic!("{verdict:?}") };
    assert!(
        (3_190..3_210).contains(&second) && (290_000..=300_000).contains(&in_ms),
        "{second} {in_ms}"
    );
}

#[test]
fn what_rose_and_stays_is_no_leak() {
    // A load of 700 MB within seven seconds, then rest.
    assert_eq!(first(|second| (second * 100).min(700) * MB, 1_000), None);
    // A load in the middle of the rest.
    assert_eq!(first(|second| if second < 300 { 520 * MB } else { 700 * MB }, 1_000), None);
    // Up and down, as under load.
    assert_eq!(first(|second| 700 * MB + (second % 7) * 10 * MB, 1_000), None);
    assert_eq!(first(|second| (899 * MB).saturating_sub(second * MB), 400), None, "from above");
    assert_eq!(first(|second| (840 * MB).saturating_sub(second * MB), 400), None, "it shrinks");
    // Below half of the limit there is time.
    assert_eq!(first(|second| second * MB, 400), None);
}

#[test]
fn a_leak_too_fast_for_a_line_is_seen_above_eighty_percent() {
    // 100 MB a second, for which no line is long enough: 90 % is three seconds ahead from 60 % on, 80 % are waited for.
    let (ms, verdict) = first_ms(|ms| 100 * MB + ms * MB / 10, 100).unwrap();
    assert_eq!(ms, 7_250, "at 825 MB");
    assert_eq!(verdict, Leaks { in_ms: 250 });
    // 20 MB a second after a rest: above 84 %, before any line has its ten seconds.
    let late = |ms: u64| 700 * MB + ms.saturating_sub(100_000) * MB / 50;
    let (ms, _) = first_ms(late, 200).unwrap();
    assert!((107_000..108_000).contains(&ms), "{ms}");
    // Four samples of a step explain no more than 80 %, and a rise that ends is not called a leak below 80 %.
    assert_eq!(first_ms(|ms| if ms < 30_000 { 600 * MB } else { 880 * MB }, 60), None);
    assert_eq!(first_ms(|ms| (300 * MB + ms * MB / 10).min(790 * MB), 60), None);
    // Slow enough that 90 % is more than three seconds ahead: it is for the longer lines to say.
    assert_eq!(first_ms(|ms| 805 * MB + ms.min(5_000) * MB / 100, 60), None);
}

#[test]
fn above_ninety_percent_for_a_minute_is_too_much() {
    let mut slope = Slope::default();
    let mut at = |used: u64, ms: u64| slope.observe(alone(used * MB), ms);
    assert_eq!(at(850, 0), Fine, "what the models need");
    assert_eq!(at(930, 1_000), Fine);
    for second in 2..61 {
        // It falls, so that nothing is projected.
        assert_eq!(at(949 - second / 2, second * 1_000), Fine, "{second}");
    }
    assert_eq!(at(919, 60_999), Fine);
    assert_eq!(at(918, 61_000), High);
    assert_eq!(at(900, 61_001), Fine, "at ninety, not above");
    assert_eq!(at(901, 61_002), Fine, "the minute begins anew");
    assert_eq!(at(901, 121_001), Fine);
    assert_eq!(at(901, 121_002), High);
}

#[test]
fn where_the_door_is_shut_two_seconds_are_waited_for() {
    let mut slope = Slope::default();
    let mut at = |used: u64, ms: u64| slope.observe(alone(used * MB), ms);
    assert_eq!(at(800, 0), Fine);
    assert_eq!(at(960, 1_000), Fine);
    assert_eq!(at(955, 2_999), Fine);
    assert_eq!(at(950, 3_000), Fine, "at 95, not above");
    assert_eq!(at(955, 3_001), Fine);
    assert_eq!(at(955, 5_000), Fine);
    assert_eq!(at(955, 5_001), High);
}

#[test]
fn nobody_is_replaced_for_what_the_models_need() {
    // Models that fill 97 % of the limit, and traffic that adds a little less than a twentieth.
    let full = |second: u64| 930 * MB + (second % 50) * MB;
    assert_eq!(first(full, 1_000), None);
    // One more is worth it.
    let (second, verdict) = first(|second| 930 * MB + second.min(50) * MB, 1_000).unwrap();
    assert_eq!((second, verdict), (50, High));
}

#[test]
fn nobody_is_replaced_where_that_would_not_open_the_door() {
    // A limit below what the server needs to be there at all, and a tenth of growth.
    assert_eq!(first(|second| (960 + second.min(100)) * MB, 300), None);
    let (second, verdict) = first(|second| (950 + second.min(100)) * MB, 300).unwrap();
    assert_eq!((second, verdict), (50, High));
}

#[test]
fn nobody_is_replaced_for_what_others_use() {
    // Another process of the control group leaks.
    let other =
        |second: u64| Usage { used: 400 * MB + second * 5 * MB, own: 200 * MB, limit: LIMIT };
    assert_eq!(first_of(other, 200), None);
    // Both do: the worker's own slope counts, and what is left of the limit.
    let both = |second: u64| Usage {
        used: 400 * MB + second * 10 * MB,
        own: 100 * MB + second * 5 * MB,
        limit: LIMIT,
    };
    let (second, verdict) = first_of(both, 200).unwrap();
    assert_eq!((second, verdict), (30, Leaks { in_ms: 30_000 }));
}

#[test]
fn what_shrank_since_the_load_is_what_growth_is_measured_from() {
    // The model that was unloaded gives its memory back a while later; then 4 MB a second from 400 MB on.
    let used = |second: u64| if second < 20 { 700 * MB } else { (320 + second * 4) * MB };
    let (second, _) = first(used, 200).unwrap();
    assert!((46..110).contains(&second), "{second}");
}

#[test]
fn too_short_a_time_says_nothing() {
    let mut slope = Slope::default();
    let mut at = |second: u64| slope.observe(alone(510 * MB + second * 25 * MB), second * 1_000);
    for second in 0..10 {
        assert_eq!(at(second), Fine, "{second}");
    }
    assert!(matches!(at(10), Leaks { .. }));
    slope.reset();
    assert_eq!(slope.observe(alone(790 * MB), 11_000), Fine);
}

#[test]
fn samples_are_four_a_second_and_ten_minutes() {
    let mut slope = Slope::default();
    for ms in (0..2_000_000).step_by(50) {
        slope.observe(alone(MB), ms);
        assert!(slope.samples.len() <= 2_401);
    }
    assert_eq!(slope.samples.len(), 2_400);
    let gaps = slope.samples.iter().zip(slope.samples.iter().skip(1));
    assert!(gaps.into_iter().all(|((a, _), (b, _))| b - a == 250));
    // Those of before a long pause are gone.
    slope.observe(alone(MB), 9_000_000);
    assert_eq!(slope.samples.len(), 1);
    // A window after the first it still counts, a moment later it does not.
    slope.observe(alone(MB), 9_600_000);
    assert_eq!(slope.samples.len(), 2);
    slope.observe(alone(MB), 9_601_000);
    assert_eq!(slope.samples.len(), 2);
}

#[test]
fn a_line_is_one_of_least_squares() {
    // By hand: (0, 1), (4 s, 2), (8 s, 6): slope 5/8 bytes a second, 25/28 explained.
    let line = Line::through([(1_000, 1), (5_000, 2), (9_000, 6)].iter()).unwrap();
    assert!((line.bytes_per_ms - 0.000_625).abs() < 1e-12, "{line:?}");
    assert!((line.explained - 25.0 / 28.0).abs() < 1e-12, "{line:?}");
    assert_eq!(line.span_ms, 8_000);
    let later = [(1_000_001_000, 1), (1_000_005_000, 2), (1_000_009_000, 6)];
    let later = Line::through(later.iter()).unwrap();
    assert!((later.bytes_per_ms - line.bytes_per_ms).abs() < 1e-9, "after days {later:?}");
    let flat = Line::through([(0, 5), (8_000, 5)].iter()).unwrap();
    assert_eq!((flat.bytes_per_ms, flat.explained), (0.0, 0.0));
    assert_eq!(Line::through([(7, 5)].iter()), None);
    assert_eq!(Line::through([].iter()), None);
    let step = [(0, 1), (1, 1), (2, 1), (3, 9), (4, 9), (5, 9)];
    assert!(Line::through(step.iter()).unwrap().explained < EXPLAINED_MIN);
}

#[test]
fn a_leak_after_a_long_rest_is_seen_by_a_shorter_line() {
    // An hour of rest at 600 MB, then 2 MB a second: 85 % after 125 s.
    let leak = |second: u64| 600 * MB + second.saturating_sub(3_600) * 2 * MB;
    let (second, verdict) = first(leak, 3_800).unwrap();
    assert!((3_610..3_700).contains(&second), "{second} {verdict:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// What grows ever more slowly, and comes to rest within four fifths of the way to 85 %, replaces nobody.
    #[test]
    fn what_saturates_is_no_leak(start in 0u64..800, way in 0.0f64..0.8, tau_s in 1.0f64..150.0) {
        let end = (850 - start) as f64 * way;
        let used = |ms: u64| {
            let grown = end * (1.0 - (-(ms as f64) / 1_000.0 / tau_s).exp());
            start * MB + (grown * MB as f64) as u64
        };
        prop_assert_eq!(first_ms(used, 500), None);
    }
}

proptest! {
    /// A steady leak is seen before 85 % are reached; one that never gets there is not called one.
    #[test]
    fn steady_leaks_are_seen_in_time(start in 0u64..600, kb_per_s in 600u64..30_000, noise in 0u64..3) {
        let used = |second: u64| start * MB + second * kb_per_s * 1_024 + (second % 3) * noise * 1_024;
        // It lasts for as long as it takes from zero to 85 %, and ten samples at the least.
        let reached = (850 * MB).saturating_sub(start * MB) / (kb_per_s * 1_024);
        if reached > 15 {
            let found = first(used, reached + 1);
            prop_assert!(matches!(found, Some((second, Leaks { .. })) if second <= reached), "{found:?}");
        }
    }

    #[test]
    fn what_does_not_grow_is_fine(levels in proptest::collection::vec(0u64..849, 1..30)) {
        // Steps down only.
        let mut levels = levels;
        levels.sort_unstable_by(|a, b| b.cmp(a));
        prop_assert_eq!(first(|second| levels[(second as usize / 20).min(levels.len() - 1)] * MB, 700), None);
    }
}
