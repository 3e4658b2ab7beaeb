use proptest::prelude::*;

use super::*;

fn run(deadline_ms: u64, cancelled: Option<(u64, Option<u64>)>) -> RunView {
    RunView {
        deadline_ms,
        cancelled_since_ms: cancelled.map(|(since, _)| since),
        cpu_since_cancel_ms: cancelled.and_then(|(_, cpu)| cpu),
    }
}

#[test]
fn a_pause_of_the_watchdog_counts_as_two_ticks() {
    let mut clock = TickClock::default();
    assert_eq!(clock.now_ms(), 0);
    assert_eq!(clock.tick(TICK), 100);
    assert_eq!(clock.tick(Duration::from_millis(199)), 299);
    assert_eq!(clock.tick(Duration::from_millis(200)), 499);
    assert_eq!(clock.tick(Duration::from_millis(201)), 699);
    assert_eq!(clock.tick(Duration::from_secs(20)), 899, "SIGSTOP for 20 s");
    assert_eq!(clock.tick(Duration::from_micros(500)), 899);
    assert_eq!(clock.tick(Duration::from_micros(500)), 900, "parts of a millisecond are not lost");
    assert_eq!(clock.now_ms(), 900);
}

#[test]
fn the_grace_is_four_long_runs_and_two_seconds_at_least() {
    let table = [(0, 2_000), (499, 2_000), (500, 2_000), (501, 2_004), (u64::MAX / 2, u64::MAX)];
    for (p99, grace) in table {
        assert_eq!(grace_ms(p99), grace, "{p99}");
    }
}

#[test]
fn a_build_has_three_loads_and_ten_seconds_at_least() {
    let table =
        [(0, 10_000), (3_333, 10_000), (3_334, 10_002), (60_000, 180_000), (u64::MAX, u64::MAX)];
    for (load, limit) in table {
        assert_eq!(build_limit_ms(load), limit, "{load}");
    }
}

#[test]
fn lanes_are_judged_at_their_bounds() {
    use HungKind::*;
    use LaneVerdict::*;
    let table = [
        ("idle", None, 1_000_000, Nothing),
        ("in time", Some(run(1_000, None)), 999, Nothing),
        ("at the deadline", Some(run(1_000, None)), 1_000, Cancel),
        ("past it", Some(run(1_000, None)), 1_001, Cancel),
        ("told", Some(run(1_000, Some((1_000, Some(0))))), 1_000, Nothing),
        ("has time to end", Some(run(1_000, Some((1_000, Some(0))))), 2_999, Nothing),
        ("hung", Some(run(1_000, Some((1_000, Some(0))))), 3_000, Hung(Blocked)),
        (
            "told before the deadline",
            Some(run(9_000, Some((500, Some(2_000))))),
            2_500,
            Hung(Spinning),
        ),
        ("nobody can tell", Some(run(1_000, Some((1_000, None)))), 3_000, Hung(Between)),
        ("the clock of the cancel is ahead", Some(run(0, Some((5_000, None)))), 4_000, Nothing),
    ];
    for (name, run, now, verdict) in table {
        assert_eq!(judge_lane(run.as_ref(), now, 2_000), verdict, "{name}");
    }
}

#[test]
fn spinning_and_blocked_are_told_apart_by_the_processor() {
    use HungKind::*;
    let table = [
        (Some(0), 2_000, Blocked),
        (Some(19), 2_000, Blocked),
        (Some(20), 2_000, Between),
        (Some(1_000), 2_000, Between),
        (Some(1_001), 2_000, Spinning),
        (Some(2_000), 2_000, Spinning),
        // Of no time at all nothing can be said.
        (Some(0), 0, Between),
        (Some(1), 0, Spinning),
        (None, 2_000, Between),
        (Some(u64::MAX), u64::MAX, Spinning),
    ];
    for (cpu, elapsed, kind) in table {
        assert_eq!(HungKind::of(cpu, elapsed), kind, "{cpu:?} of {elapsed}");
    }
    assert_eq!(
        [Spinning, Blocked, Between].map(HungKind::as_str),
        ["spinning", "blocked", "between"]
    );
    assert_eq!(serde_json::to_string(&Spinning).unwrap(), "\"spinning\"");
}

#[test]
fn lag_has_two_limits() {
    let table = [
        (0, Lag::Fine),
        (100, Lag::Fine),
        (101, Lag::Late),
        (10_000, Lag::Late),
        (10_001, Lag::Wedged),
        (u64::MAX, Lag::Wedged),
    ];
    for (ms, verdict) in table {
        assert_eq!(lag(ms), verdict, "{ms}");
    }
}

#[test]
fn a_stall_needs_work_cancels_and_time() {
    // completed, in flight, cancels, now → stalled; grace 2 s, so the limit is ten seconds
    let mut stall = Stall::default();
    assert!(!stall.observe(5, 3, 1, 0, 2_000));
    assert!(!stall.observe(5, 3, 0, 9_999, 2_000), "a moment too early");
    assert!(stall.observe(5, 3, 0, 10_000, 2_000), "the cancel was seen before");
    assert!(stall.observe(5, 1, 0, 20_000, 2_000), "and goes on");
    assert!(!stall.observe(6, 1, 1, 20_100, 2_000), "one has ended");
    assert!(!stall.observe(6, 1, 1, 30_099, 2_000));
    assert!(stall.observe(6, 1, 1, 30_100, 2_000));
    assert!(!stall.observe(6, 0, 0, 30_200, 2_000), "nobody is inside");
    assert!(!stall.observe(6, 1, 1, 50_000, 2_000), "time alone is none of it");

    let mut long = Stall::default();
    assert!(!long.observe(0, 1, 1, 0, 2_501));
    assert!(!long.observe(0, 1, 1, 10_003, 2_501), "four graces are longer");
    assert!(long.observe(0, 1, 1, 10_004, 2_501));

    let mut busy = Stall::default();
    assert!(!busy.observe(0, 1, 0, 0, 2_000));
    assert!(!busy.observe(0, 1, 0, 60_000, 2_000), "long runs that nobody stops are no stall");
}

#[test]
fn the_canary_flies_when_there_was_no_success() {
    let mut canary = Canary::new(1_000);
    assert!(!canary.send(30_999));
    assert!(canary.send(31_000));
    assert!(!canary.send(99_000), "one at a time");
    canary.came_back();
    canary.succeeded(31_005);
    assert!(!canary.send(61_004));
    canary.answered(61_004);
    assert!(!canary.send(61_005), "real successes replace it");
    assert!(canary.send(91_004));

    canary.came_back();
    canary.failed(91_100);
    assert!(!canary.is_sick(), "once may be chance");
    canary.answered(91_101);
    assert!(!canary.send(92_099));
    assert!(canary.send(92_100), "soon, to know");
    canary.came_back();
    canary.failed(92_200);
    assert!(canary.is_sick());
    canary.answered(92_201);
    assert!(canary.is_sick(), "answers that nobody compares heal nothing");
    assert!(canary.send(93_200), "and again, to know when it is well");
    canary.came_back();
    canary.succeeded(93_300);
    assert!(!canary.is_sick());
}

#[test]
fn a_canary_that_was_turned_away_says_nothing() {
    let mut canary = Canary::new(0);
    assert!(canary.send(30_000));
    canary.came_back();
    canary.failed(30_000);
    assert!(canary.send(31_000));
    canary.came_back();
    canary.turned_away(31_000);
    assert!(!canary.is_sick());
    assert!(!canary.send(31_999));
    assert!(canary.send(32_000));
    canary.came_back();
    canary.failed(32_000);
    assert!(canary.is_sick(), "nor does it make one that failed forgotten");
}

proptest! {
    /// The clock never runs faster than the wall, nor than two ticks a tick.
    #[test]
    fn the_clock_is_bounded(ticks in proptest::collection::vec(0u64..5_000, 0..200)) {
        let mut clock = TickClock::default();
        let mut wall = 0;
        for (count, tick) in ticks.iter().enumerate() {
            let before = clock.now_ms();
            wall += tick;
            let now = clock.tick(Duration::from_millis(*tick));
            prop_assert!(now >= before && now <= wall && now <= 200 * (count as u64 + 1));
        }
    }

    /// Nobody is called hung before the grace is over, whatever the processor time says, nor left alone after it.
    #[test]
    fn hung_is_never_early_and_never_late(
        deadline in 0u64..10_000,
        since in proptest::option::of(0u64..10_000),
        cpu in proptest::option::of(0u64..10_000),
        now in 0u64..40_000,
        p99 in 0u64..3_000,
    ) {
        let grace = grace_ms(p99);
        let view = RunView { deadline_ms: deadline, cancelled_since_ms: since, cpu_since_cancel_ms: cpu };
        let verdict = judge_lane(Some(&view), now, grace);
        let over = since.is_some_and(|since| now >= since + grace);
        prop_assert_eq!(matches!(verdict, LaneVerdict::Hung(_)), over);
        prop_assert_eq!(verdict == LaneVerdict::Cancel, since.is_none() && now >= deadline);
    }

    /// A canary is under way at most once, and one success makes it well.
    #[test]
    fn canaries_are_one_at_a_time(events in proptest::collection::vec((0u8..4, 0u64..40_000), 0..100)) {
        let mut canary = Canary::new(0);
        let (mut now, mut out, mut failures) = (0, false, 0u32);
        for (event, gap) in events {
            now += gap;
            match event {
                0 => {
                    let sent = canary.send(now);
                    prop_assert!(!(sent && out));
                    out |= sent;
                }
                1 => {
                    canary.succeeded(now);
                    failures = 0;
                }
                2 if out => {
                    canary.came_back();
                    canary.failed(now);
                    (out, failures) = (false, failures + 1);
                }
                _ => {
                    canary.came_back();
                    out = false;
                }
            }
            prop_assert_eq!(canary.is_sick(), failures >= 2);
        }
    }
}

#[test]
fn a_load_has_the_time_that_it_took_before_or_that_people_gave_it() {
    let table = [
        (None, 600_000, 600_000),
        (None, 1, 1),
        (Some(1_000), 600_000, 10_000),
        (Some(60_000), 600_000, 180_000),
        (Some(300_000), 600_000, 600_000),
        (Some(u64::MAX), 7, 7),
    ];
    for (before, configured, limit) in table {
        assert_eq!(load_limit_ms(before, configured), limit, "{before:?} {configured}");
    }
    for (limit, way) in [(600_000, 60_000), (3_600_000, 60_000), (20_000, 2_000), (0, 0)] {
        assert_eq!(makes_way_after_ms(limit), way, "{limit}");
    }
}

#[test]
fn a_load_is_told_to_end_then_given_up_then_tried_once_more() {
    use LoadVerdict::{Cancel, Hung, Nothing};
    let table = [
        (0, 1, None, Nothing),
        (999, 1_000, None, Nothing),
        (1_000, 1_000, None, Cancel),
        (0, 0, None, Cancel),
        (9_999, 1_000, Some(0), Nothing),
        (9_999, 1_000, Some(GRACE_MIN_MS - 1), Nothing),
        (9_999, 1_000, Some(GRACE_MIN_MS), Hung),
    ];
    for (age, limit, cancelled, verdict) in table {
        assert_eq!(judge_load(age, limit, cancelled), verdict, "{age} {limit} {cancelled:?}");
    }
    for (tries, of_version, of_all, again) in [
        (1, 0, 0, true),
        (1, 1, 1, true),
        (1, 2, 2, false),
        (1, 1, 16, false),
        (1, 1, 15, true),
        (2, 0, 0, false),
    ] {
        let hanging = HangingLoads { of_version, of_all };
        assert_eq!(loads_again(tries, hanging), again, "{tries} {hanging:?}");
        assert_eq!(may_load(hanging), of_version < 2 && of_all < 16);
    }
}
