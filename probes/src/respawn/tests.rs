use proptest::prelude::*;

use super::*;

const POLICY: RespawnPolicy = RespawnPolicy {
    silence_ms: 10_000,
    lag_ms: 10_000,
    doubt_ms: 2_000,
    backoff_ms: [0, 200, 1_000, 5_000, 15_000],
    restarts_max: 5,
    window_ms: 300_000,
    recycles_max: 5,
    unkillable_ms: 10_000,
    fatal_linger_ms: 1_000,
    park_after: 3,
    park_window_ms: 1_800_000,
    drain_ms: 40_000,
};
/// The spread that leaves pauses as they are.
const MIDDLE: u64 = 200;

fn new() -> Respawn {
    Respawn::new(POLICY, Vec::new())
}

fn ended(end: End) -> Event {
    Event::Ended { end, spread: MIDDLE }
}

/// Ticks until something is to be done, at most for that long. The worker ticks along where `alive`.
fn run(respawn: &mut Respawn, for_ms: u64, alive: bool) -> Vec<Action> {
    let end = respawn.clock_ms() + for_ms;
    let mut ticks = respawn.watch.ticks;
    while respawn.clock_ms() < end {
        if alive {
            ticks += 1;
            assert_eq!(respawn.step(Event::Heard { ticks, lag_ticks: 0 }), []);
        }
        let actions = respawn.step(Event::Tick { measured_ms: TICK_MS });
        if !actions.is_empty() {
            return actions;
        }
    }
    Vec::new()
}

#[test]
fn the_default_is_what_is_tested() {
    assert_eq!(RespawnPolicy::default(), POLICY);
}

#[test]
fn a_worker_that_lives_is_left_alone() {
    let mut respawn = new();
    assert_eq!(run(&mut respawn, 3_600_000, true), []);
    assert_eq!((respawn.stage(), respawn.objection()), (Stage::Running, None));
}

#[test]
fn pauses_grow_then_it_is_given_up() {
    let mut respawn = new();
    respawn.step(Event::Ready);
    assert_eq!(respawn.step(ended(End::Signal(11))), [Action::Spawn], "the first at once");
    for pause in [200, 1_000, 5_000, 15_000] {
        assert_eq!(respawn.step(ended(End::Signal(11))), [], "{pause}");
        let before = respawn.clock_ms();
        assert!(respawn.objection().unwrap().contains("SIGSEGV"));
        assert_eq!(run(&mut respawn, 60_000, true), [Action::Spawn]);
        assert_eq!(respawn.clock_ms() - before, pause);
    }
    assert_eq!(respawn.step(ended(End::Signal(11))), [Action::Record(Cause::Segv)]);
    assert!(matches!(respawn.stage(), Stage::Fatal { cause: Cause::Segv, .. }));
    assert!(respawn.objection().unwrap().contains("beyond repair"));
    let departure = Departure::GaveUp(Cause::Segv);
    assert_eq!(run(&mut respawn, 1_000, false), [Action::Exit(departure)]);
    assert_eq!(respawn.stage(), Stage::Over);
}

#[test]
fn after_five_quiet_minutes_the_next_one_starts_at_once_again() {
    let mut respawn = new();
    for _ in 0..50 {
        assert_eq!(respawn.step(ended(End::Signal(9))), [Action::Spawn]);
        assert_eq!(run(&mut respawn, 300_000, true), []);
    }
}

#[test]
fn pauses_are_spread_by_a_fifth() {
    for (spread, pause) in
        [(0, 160), (400, 240), (401, 160), (u64::MAX, 160 + 200 * (u64::MAX % 401) / 1000)]
    {
        let mut respawn = new();
        respawn.step(Event::Ended { end: End::Code(1), spread });
        respawn.step(Event::Ended { end: End::Code(1), spread });
        let Stage::Waiting { until_ms, .. } = respawn.stage() else { panic!("{respawn:?}") };
        assert_eq!(until_ms, pause, "{spread}");
    }
}

#[test]
fn what_is_hopeless_at_the_start_is_told_as_it_is() {
    for code in [64, 65, 69, 74] {
        let mut respawn = new();
        let exit = [Action::Exit(Departure::AsWorker(code))];
        assert_eq!(respawn.step(ended(End::Code(code))), exit);
        // One that has served may find its library again.
        let mut respawn = new();
        respawn.step(Event::Ready);
        assert_eq!(respawn.step(ended(End::Code(code))), [Action::Spawn]);
    }
    for end in [End::Code(0), End::Code(70), End::Signal(6), End::Signal(64)] {
        assert_eq!(new().step(ended(end)), [Action::Spawn], "{end}");
    }
}

#[test]
fn causes_of_ends() {
    let cases = [
        (End::Signal(11), Cause::Segv),
        (End::Signal(6), Cause::Abort),
        (End::Signal(9), Cause::Killed),
        (End::Signal(7), Cause::Signal),
        (End::Code(70), Cause::Hang),
        (End::Code(71), Cause::Gpu),
        (End::Code(72), Cause::Memory),
        (End::Code(0), Cause::Exit),
        (End::Code(101), Cause::Exit),
    ];
    for (end, cause) in cases {
        assert_eq!(Cause::of(end), cause, "{end}");
    }
    let mut words: Vec<_> = Cause::ALL.iter().map(|cause| cause.as_str()).collect();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), Cause::ALL.len());
}

#[test]
fn a_worker_that_stands_still_is_doubted_then_killed() {
    let mut respawn = new();
    run(&mut respawn, 1_000, true);
    assert_eq!(run(&mut respawn, 1_900, false), []);
    assert_eq!(respawn.objection(), None);
    assert_eq!(run(&mut respawn, 100, false), []);
    assert!(respawn.objection().unwrap().contains("not been heard for 2"));
    // It comes back: nothing happened.
    assert_eq!(run(&mut respawn, 100, true), []);
    assert_eq!(respawn.objection(), None);
    let before = respawn.clock_ms();
    assert_eq!(run(&mut respawn, 60_000, false), [Action::Kill]);
    assert!((10_000..=10_200).contains(&(respawn.clock_ms() - before)));
    assert!(matches!(respawn.stage(), Stage::Killing { cause: Cause::Hang, .. }));
    // What the kernel says of a worker that was killed is not its cause.
    assert_eq!(respawn.step(ended(End::Signal(9))), [Action::Spawn]);
    assert_eq!(run(&mut respawn, 10_000, false), [], "the new one has its own time");
}

#[test]
fn a_wedged_event_loop_is_replaced() {
    let mut respawn = new();
    for (lag_ticks, doubted) in [(0, false), (20, false), (21, true), (100, true)] {
        respawn.step(Event::Heard { ticks: lag_ticks + 1, lag_ticks });
        assert_eq!(respawn.step(Event::Tick { measured_ms: 100 }), []);
        assert_eq!(respawn.objection().is_some(), doubted, "{lag_ticks}");
    }
    respawn.step(Event::Heard { ticks: 999, lag_ticks: 101 });
    assert_eq!(respawn.step(Event::Tick { measured_ms: 100 }), [Action::Kill]);
    assert!(matches!(respawn.stage(), Stage::Killing { cause: Cause::Wedged, .. }));
}

#[test]
fn a_pause_of_everybody_counts_for_nothing() {
    let mut respawn = new();
    run(&mut respawn, 1_000, true);
    for _ in 0..20 {
        // Twenty seconds in which nobody ran, then a tick of the supervisor before the worker's.
        assert_eq!(respawn.step(Event::Tick { measured_ms: 20_000 }), []);
        assert_eq!(respawn.objection(), None);
        assert_eq!(run(&mut respawn, 100, true), []);
    }
}

#[test]
fn a_worker_that_cannot_be_killed_is_not_waited_for() {
    let earlier = vec![Fatality { cause: Cause::Unkillable, age_ms: 0 }; 2];
    let mut respawn = Respawn::new(POLICY, earlier);
    assert_eq!(respawn.step(Event::Asked(Cause::Gpu)), [Action::Kill]);
    assert_eq!(run(&mut respawn, POLICY.unkillable_ms, false), [], "not a moment too soon");
    assert_eq!(run(&mut respawn, 60_000, false), [Action::Record(Cause::Unkillable)]);
    let departure = Departure::GaveUp(Cause::Unkillable);
    assert_eq!(run(&mut respawn, 1_000, false), [Action::Exit(departure)]);
}

#[test]
fn the_third_end_for_one_cause_parks() {
    let fatalities = |age_ms| vec![Fatality { cause: Cause::Abort, age_ms }; 2];
    let spent = |respawn: &mut Respawn| {
        respawn.step(ended(End::Signal(6)));
        for _ in 0..4 {
            respawn.step(ended(End::Signal(6)));
            run(respawn, 60_000, true);
        }
        respawn.step(ended(End::Signal(6)))
    };
    for (earlier, parks) in [
        (fatalities(0), true),
        (fatalities(1_700_000), true),
        (fatalities(1_800_000), false),
        (vec![Fatality { cause: Cause::Segv, age_ms: 0 }; 2], false),
        (vec![Fatality { cause: Cause::Abort, age_ms: 0 }], false),
    ] {
        let mut respawn = Respawn::new(POLICY, earlier.clone());
        assert_eq!(spent(&mut respawn), [Action::Record(Cause::Abort)]);
        let parked = matches!(respawn.stage(), Stage::Parked { .. });
        assert_eq!(parked, parks, "{earlier:?}");
    }
    let mut respawn = Respawn::new(POLICY, fatalities(0));
    spent(&mut respawn);
    assert_eq!(run(&mut respawn, 3_600_000, false), [], "looping would do no useful work");
    assert!(respawn.objection().unwrap().contains("parked"));
    assert_eq!(respawn.step(Event::Changed), [Action::Spawn]);
    assert_eq!(respawn.step(ended(End::Signal(6))), [Action::Spawn], "with a budget of its own");
}

#[test]
fn after_three_ends_the_next_server_gets_one_worker() {
    let earlier = vec![Fatality { cause: Cause::Abort, age_ms: 1_000 }; 3];
    let mut respawn = Respawn::new(POLICY, earlier);
    assert_eq!(respawn.stage(), Stage::Running, "it may be well now");
    assert_eq!(respawn.step(ended(End::Signal(6))), [Action::Record(Cause::Abort)]);
    assert_eq!(respawn.stage(), Stage::Parked { cause: Cause::Abort });
    assert_eq!(respawn.step(Event::Told), [Action::Exit(Departure::Drained)]);
}

#[test]
fn told_to_end() {
    // In order, with what runs finished.
    let mut respawn = new();
    assert_eq!(respawn.step(Event::Told), [Action::Drain]);
    assert_eq!(run(&mut respawn, 39_000, true), []);
    assert_eq!(respawn.step(ended(End::Code(0))), [Action::Exit(Departure::AsWorker(0))]);
    // A second time.
    let mut respawn = new();
    respawn.step(Event::Told);
    assert_eq!(respawn.step(Event::Told), [Action::DrainAtOnce]);
    assert_eq!(respawn.step(ended(End::Code(143))), [Action::Exit(Departure::AsWorker(143))]);
    // A third.
    let mut respawn = new();
    respawn.step(Event::Told);
    respawn.step(Event::Told);
    assert_eq!(respawn.step(Event::Told), [Action::Exit(Departure::Interrupted)]);
    // The worker does not end, or hangs, or crashes meanwhile.
    for (alive, after) in [(true, 40_000), (false, 10_100)] {
        let mut respawn = new();
        respawn.step(Event::Told);
        assert_eq!(run(&mut respawn, 60_000, alive), [Action::Kill]);
        assert_eq!(respawn.clock_ms(), after);
        assert_eq!(run(&mut respawn, 60_000, true), [Action::Exit(Departure::Interrupted)]);
    }
    let mut respawn = new();
    respawn.step(Event::Told);
    let crashed = respawn.step(ended(End::Signal(11)));
    assert_eq!(crashed, [Action::Exit(Departure::Interrupted)]);
    // The manager of services has told the worker, too, and it did not listen yet.
    let mut respawn = new();
    respawn.step(Event::Told);
    assert_eq!(respawn.step(ended(End::Signal(15))), [Action::Exit(Departure::Drained)]);
    // While there is none.
    let mut respawn = new();
    respawn.step(ended(End::Signal(9)));
    respawn.step(ended(End::Signal(9)));
    assert_eq!(respawn.step(Event::Told), [Action::Exit(Departure::Drained)]);
}

#[test]
fn for_its_memory_a_worker_is_replaced_in_order_and_not_too_often() {
    let mut respawn = new();
    run(&mut respawn, 1_000, true);
    for _ in 0..5 {
        assert_eq!(respawn.step(Event::Asked(Cause::Memory)), [Action::Recycle]);
        assert!(respawn.objection().unwrap().contains("short of memory; it is being replaced"));
        assert_eq!(respawn.step(Event::Asked(Cause::Memory)), [], "it is under way");
        assert_eq!(run(&mut respawn, 1_000, true), []);
        assert_eq!(respawn.cause(End::Code(0)), Cause::Memory);
        assert_eq!(respawn.step(ended(End::Code(0))), [Action::Spawn], "no pause");
    }
    let before = respawn.stage();
    let stay = [Action::Stay(Cause::Memory)];
    assert_eq!(respawn.step(Event::Asked(Cause::Memory)), stay);
    assert_eq!((respawn.stage(), respawn.objection()), (before, None), "it goes on");
    // Those that crash have a budget of their own.
    assert_eq!(respawn.step(ended(End::Signal(11))), [Action::Spawn]);
    // Five minutes after the first one.
    run(&mut respawn, 294_900, true);
    assert_eq!(respawn.step(Event::Asked(Cause::Memory)), stay);
    run(&mut respawn, 100, true);
    assert_eq!(respawn.step(Event::Asked(Cause::Memory)), [Action::Recycle]);
}

#[test]
fn a_worker_that_is_to_finish_and_does_not() {
    // It takes too long, hangs, or crashes; then it is one of those.
    for (alive, after_ms, cause) in [(true, 40_000, Cause::Memory), (false, 10_100, Cause::Hang)] {
        let mut respawn = new();
        respawn.step(Event::Asked(Cause::Memory));
        assert_eq!(run(&mut respawn, 60_000, alive), [Action::Kill]);
        assert_eq!(respawn.clock_ms(), after_ms);
        assert_eq!(respawn.cause(End::Signal(9)), cause);
        assert_eq!(respawn.step(ended(End::Signal(9))), [Action::Spawn]);
        assert_eq!(respawn.step(ended(End::Signal(9))), [], "a pause: the one before was spent");
    }
    let mut respawn = new();
    respawn.step(Event::Asked(Cause::Memory));
    assert_eq!(respawn.cause(End::Signal(9)), Cause::Killed);
    assert_eq!(respawn.step(ended(End::Signal(9))), [Action::Spawn]);
    assert_eq!(respawn.step(ended(End::Signal(9))), []);
    // Told to end meanwhile: nobody comes after it.
    let mut respawn = new();
    respawn.step(Event::Asked(Cause::Memory));
    assert_eq!(respawn.step(Event::Told), [Action::Drain]);
    assert_eq!(respawn.step(ended(End::Code(0))), [Action::Exit(Departure::AsWorker(0))]);
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        20 => (0u64..100_000).prop_map(|measured_ms| Event::Tick { measured_ms }),
        10 => (0u64..5, 0u64..200).prop_map(|(ticks, lag_ticks)| Event::Heard { ticks, lag_ticks }),
        1 => Just(Event::Ready),
        1 => Just(Event::Asked(Cause::Gpu)),
        3 => Just(Event::Asked(Cause::Memory)),
        10 => (0i32..80, any::<bool>(), any::<u64>()).prop_map(|(number, code, spread)| {
            let end = if code { End::Code(number) } else { End::Signal(number) };
            Event::Ended { end, spread }
        }),
        1 => any::<u64>().prop_map(|spread| Event::NotStarted { spread }),
        1 => Just(Event::Changed),
    ]
}

proptest! {
    /// Whatever happens: one worker at a time, never more starts than the budget allows, and an end that is one.
    #[test]
    fn one_worker_at_a_time_and_not_too_many(
        events in proptest::collection::vec(any_event(), 1..400),
        told_at in 0usize..800,
    ) {
        let mut respawn = new();
        let mut alive = true;
        let mut starts: Vec<u64> = Vec::new();
        for (at, event) in events.into_iter().enumerate() {
            let event = if at == told_at { Event::Told } else { event };
            // Ends come from workers that there are.
            if matches!(event, Event::Ended { .. } | Event::NotStarted { .. }) {
                let unborn = matches!(event, Event::NotStarted { .. });
                if !alive || unborn && respawn.stage() != Stage::Running {
                    continue;
                }
                alive = false;
            }
            let before = respawn.clock_ms();
            let over = respawn.stage() == Stage::Over;
            let changed = event == Event::Changed;
            let actions = respawn.step(event);
            prop_assert!(respawn.clock_ms() - before <= 2 * TICK_MS);
            prop_assert!(!over || actions.is_empty(), "{actions:?} after the end");
            for action in actions {
                match action {
                    Action::Spawn => {
                        prop_assert!(!alive, "two workers");
                        alive = true;
                        if changed {
                            starts.clear();
                        } else {
                            starts.push(respawn.clock_ms());
                        }
                    }
                    Action::Kill | Action::Drain | Action::DrainAtOnce => prop_assert!(alive),
                    Action::Recycle | Action::Stay(_) => prop_assert!(alive),
                    Action::Exit(_) => prop_assert_eq!(respawn.stage(), Stage::Over),
                    Action::Record(_) => {}
                }
            }
            let now = respawn.clock_ms();
            // Pauses lie between a death and the start, so a window of starts may reach a pause further back.
            let recent = starts.iter().filter(|start| now - **start < POLICY.window_ms - 18_000);
            prop_assert!(recent.count() <= POLICY.restarts_max + POLICY.recycles_max);
            prop_assert!(alive || respawn.stage() != Stage::Running, "nobody runs and nobody starts one");
        }
    }
}
