use super::*;
use proptest::prelude::*;

fn gate(in_flight: u64, bytes: u64) -> Arc<Gate> {
    Arc::new(Gate::new(GateLimits { in_flight, bytes }))
}

fn backlog() -> Arc<Backlog> {
    let patience = Patience { fixed: None, default_deadline: Duration::from_secs(1) };
    Arc::new(Backlog::new(patience))
}

fn ask(bytes: u64) -> Ask {
    let now = Instant::now();
    Ask { class: Class::Default, client: 1, bytes, deadline: now + Duration::from_secs(1), now }
}

#[test]
fn each_bound_has_its_reason() {
    let server = gate(2, 100);
    let (model, other) = (Arc::new(ModelGate::new(1)), Arc::new(ModelGate::new(10)));
    let line = backlog();
    let admit = |model: &Arc<ModelGate>, bytes| {
        server.admit(model, &line, &ask(bytes)).map_err(|shed| shed.reason)
    };
    let first = admit(&model, 60).unwrap();
    assert_eq!(admit(&model, 1).unwrap_err(), ShedReason::ModelInFlight);
    assert_eq!(admit(&other, 41).unwrap_err(), ShedReason::Bytes);
    let second = admit(&other, 40).unwrap();
    assert_eq!(admit(&other, 0).unwrap_err(), ShedReason::ServerInFlight);
    assert_eq!((server.in_flight(), server.bytes_in_flight()), (2, 100));
    drop(first);
    drop(second);
    server.close();
    assert_eq!(admit(&other, 0).unwrap_err(), ShedReason::Draining);
    assert_eq!((server.in_flight(), server.bytes_in_flight()), (0, 0));
    assert_eq!((model.in_flight(), other.in_flight()), (0, 0));
}

#[test]
fn memory_that_runs_out_closes_the_door_step_by_step() {
    let steps: Vec<MemoryPressure> =
        [84, 85, 91, 92, 94, 95, 200].map(|used| MemoryPressure::of(used, 100)).to_vec();
    use MemoryPressure as P;
    let expected = [P::None, P::High, P::High, P::Severe, P::Severe, P::Critical, P::Critical];
    assert_eq!(steps, expected);
    let server = gate(10, 100);
    let (model, line) = (Arc::new(ModelGate::new(10)), backlog());
    let admit = |class, bytes| {
        let ask = Ask { class, ..ask(bytes) };
        server.admit(&model, &line, &ask).map(drop).map_err(|shed| shed.reason)
    };
    server.press(P::High);
    assert_eq!(admit(Class::BestEffort, 50), Ok(()));
    assert_eq!(admit(Class::Critical, 51), Err(ShedReason::Bytes));
    server.press(P::Severe);
    assert_eq!(admit(Class::Sheddable, 1), Err(ShedReason::Memory));
    assert_eq!(admit(Class::Default, 1), Ok(()));
    server.press(P::Critical);
    assert_eq!(admit(Class::Critical, 1), Err(ShedReason::Memory));
    server.press(P::None);
    assert_eq!(admit(Class::BestEffort, 100), Ok(()));
}

#[derive(Clone, Debug)]
enum Step {
    Admit { model: usize, bytes: u64, class: usize, client: u64 },
    Reserve { nth: usize, bytes: u64 },
    Change { nth: usize, class: usize, price_us: u64 },
    Ran { nth: usize, run_us: u64 },
    Drop { nth: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..3usize, 0..60u64, 0..4usize, 0..3u64)
            .prop_map(|(model, bytes, class, client)| Step::Admit { model, bytes, class, client }),
        (0..8usize, 0..60u64).prop_map(|(nth, bytes)| Step::Reserve { nth, bytes }),
        (0..8usize, 0..4usize, 0..100_000u64).prop_map(|(nth, class, price_us)| Step::Change {
            nth,
            class,
            price_us
        }),
        (0..8usize, 0..100_000u64).prop_map(|(nth, run_us)| Step::Ran { nth, run_us }),
        (0..8usize).prop_map(|nth| Step::Drop { nth }),
    ]
}

proptest! {
    /// Whatever is admitted, refused, grown, priced anew or dropped: the counters are the sum of the permits that live, and
    /// nothing is left when they are gone.
    #[test]
    fn permits_are_conserved(steps in proptest::collection::vec(step(), 0..200)) {
        let server = gate(5, 200);
        let models: Vec<_> = (0..3).map(|_| Arc::new(ModelGate::new(3))).collect();
        let line = backlog();
        let mut held: Vec<(usize, Permit)> = Vec::new();
        for step in steps {
            match step {
                Step::Admit { model, bytes, class, client } => {
                    let ask = Ask { class: Class::ALL[class], client, ..ask(bytes) };
                    if let Ok(permit) = server.admit(&models[model], &line, &ask) {
                        held.push((model, permit));
                    }
                }
                Step::Reserve { nth, bytes } => {
                    if let Some((_, permit)) = held.get_mut(nth) {
                        let _ = permit.reserve(bytes);
                    }
                }
                Step::Change { nth, class, price_us } => {
                    if let Some((_, permit)) = held.get_mut(nth) {
                        let price = (price_us % 2 == 0).then(|| Duration::from_micros(price_us));
                        permit.change(Class::ALL[class], price);
                    }
                }
                Step::Ran { nth, run_us } => {
                    if let Some((_, permit)) = held.get(nth) {
                        let run = Duration::from_micros(run_us);
                        permit.ran(run / 2, run, Instant::now());
                        line.learn_run(run);
                    }
                }
                Step::Drop { nth } if nth < held.len() => drop(held.swap_remove(nth)),
                Step::Drop { .. } => {}
            }
            prop_assert_eq!(server.in_flight(), held.len() as u64);
            prop_assert!(held.len() <= 5);
            let bytes: u64 = held.iter().map(|(_, permit)| permit.bytes()).sum();
            prop_assert_eq!(server.bytes_in_flight(), bytes);
            prop_assert!(bytes <= 200);
            let prices: u64 = held.iter().map(|(_, permit)| permit.entry.price_ns()).sum();
            prop_assert_eq!(line.total_ns(), prices);
            for (index, model) in models.iter().enumerate() {
                let count = held.iter().filter(|(of, _)| *of == index).count();
                prop_assert_eq!(model.in_flight(), count as u64);
                prop_assert!(count <= 3);
            }
        }
        held.clear();
        prop_assert_eq!(line.total_ns(), 0);
        prop_assert_eq!(line.wait(Class::BestEffort), Duration::ZERO);
    }
}

#[test]
fn threads_never_exceed_the_bound() {
    let server = gate(4, 1_000_000);
    let (model, line) = (Arc::new(ModelGate::new(u64::MAX)), backlog());
    let inside = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    if let Ok(permit) = server.admit(&model, &line, &ask(10)) {
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < 4);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(permit);
                    }
                }
            });
        }
    });
    assert_eq!((server.in_flight(), server.bytes_in_flight(), model.in_flight()), (0, 0, 0));
    assert_eq!(line.total_ns(), 0);
}
