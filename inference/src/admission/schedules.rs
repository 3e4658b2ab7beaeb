//! The gate under every schedule of a few threads: `cargo test -p balm-inference --features loom --lib admission::schedules`.

use super::*;
use loom::thread;

fn patience() -> Patience {
    Patience { fixed: Some(Duration::from_secs(1)), default_deadline: Duration::from_secs(4) }
}

fn ask(now: Instant, client: u64, bytes: u64) -> Ask {
    Ask { class: Class::Default, client, bytes, deadline: now + Duration::from_secs(1), now }
}

/// Two clients at the door with one place: never both inside, and nothing is left when they have gone.
#[test]
fn one_place_is_given_to_one() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let now = Instant::now();
        let gate = Arc::new(Gate::new(GateLimits { in_flight: 1, bytes: 100 }));
        let (door, line) = (Arc::new(ModelGate::new(1)), Arc::new(Backlog::new(patience())));
        let other = {
            let (gate, door, line) = (Arc::clone(&gate), Arc::clone(&door), Arc::clone(&line));
            thread::spawn(move || {
                if let Ok(permit) = gate.admit(&door, &line, &ask(now, 1, 60)) {
                    assert_eq!(gate.in_flight(), 1);
                    drop(permit);
                }
            })
        };
        if let Ok(permit) = gate.admit(&door, &line, &ask(now, 2, 60)) {
            assert_eq!(gate.in_flight(), 1);
            drop(permit);
        }
        assert!(other.join().is_ok());
        assert_eq!((gate.in_flight(), gate.bytes_in_flight(), door.in_flight()), (0, 0, 0));
        assert_eq!(line.total_ns(), 0);
    });
}

/// A request is priced anew and leaves while another enters and learns: the backlog ends at nothing, and never wraps.
#[test]
fn prices_come_and_go_together() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let now = Instant::now();
        let gate = Arc::new(Gate::new(GateLimits { in_flight: 2, bytes: 100 }));
        let (door, line) = (Arc::new(ModelGate::new(2)), Arc::new(Backlog::new(patience())));
        let Ok(mut first) = gate.admit(&door, &line, &ask(now, 1, 10)) else { return };
        let lane = {
            let line = Arc::clone(&line);
            thread::spawn(move || {
                first.change(Class::Critical, Some(Duration::from_nanos(500)));
                first.ran(Duration::from_nanos(300), Duration::from_nanos(300), now);
                assert!(line.total_ns() < 1_000_000, "the backlog went below nothing");
                drop(first);
            })
        };
        let second = gate.admit(&door, &line, &ask(now, 2, 10));
        assert!(line.total_ns() < 1_000_000, "the backlog went below nothing");
        drop(second);
        assert!(lane.join().is_ok());
        assert_eq!((line.total_ns(), gate.in_flight(), gate.bytes_in_flight()), (0, 0, 0));
    });
}
