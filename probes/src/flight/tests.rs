use proptest::prelude::*;

use super::*;

/// The memory of a worker, written as its lanes write it.
struct Memory(Vec<u8>);

impl Memory {
    fn new() -> Self {
        Memory(vec![0; BYTES])
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let at = usize::try_from(at).unwrap();
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

fn run(model: &str, hashes: &[u64]) -> InFlight {
    InFlight {
        model: model.to_owned(),
        version: 3,
        hangs: false,
        requests: hashes.len(),
        hashes: hashes.to_vec(),
    }
}

#[test]
fn what_is_in_a_run_is_read_until_it_has_returned() {
    let mut memory = Memory::new();
    assert_eq!(in_flight(&memory.0), []);
    let (first, last) = (block_at(0).unwrap(), block_at(LANES_MAX - 1).unwrap());
    assert_eq!(block_at(LANES_MAX), None);
    memory.write(first, &lane_begins("iris", 3));
    memory.write(last, &lane_begins("größe", 3));
    assert_eq!(in_flight(&memory.0), [], "no request yet");
    memory.write(run_at(first), &run_begins([7, 8, 9].into_iter()));
    memory.write(run_at(last), &run_begins([u64::MAX].into_iter()));
    assert_eq!(in_flight(&memory.0), [run("iris", &[7, 8, 9]), run("größe", &[u64::MAX])]);
    // A shorter run leaves nothing of the longer one before it.
    memory.write(run_at(first), &RUN_ENDED);
    assert_eq!(in_flight(&memory.0), [run("größe", &[u64::MAX])]);
    memory.write(run_at(first), &run_begins([1].into_iter()));
    memory.write(run_at(last), &RUN_HANGS);
    let hung = InFlight { hangs: true, ..run("größe", &[u64::MAX]) };
    assert_eq!(in_flight(&memory.0), [run("iris", &[1]), hung]);
    memory.write(run_at(last), &run_begins([2].into_iter()));
    assert_eq!(in_flight(&memory.0)[1], run("größe", &[2]), "the next run does not hang");
}

#[test]
fn there_is_room_for_what_fits_and_the_rest_is_counted() {
    let mut memory = Memory::new();
    let at = block_at(1).unwrap();
    memory.write(at, &lane_begins(&"m".repeat(100), 1));
    memory.write(run_at(at), &run_begins((0..1_000usize).map(|hash| hash as u64)));
    let all = in_flight(&memory.0);
    assert_eq!(all.len(), 1, "no other block is touched");
    assert_eq!((all[0].requests, all[0].hashes.len()), (1_000, REQUESTS_MAX));
    assert_eq!(all[0].model, "m".repeat(NAME_BYTES));
    // A name is cut between letters.
    memory.write(at, &lane_begins(&"ö".repeat(30), 1));
    memory.write(run_at(at), &run_begins([0].into_iter()));
    assert_eq!(in_flight(&memory.0)[0].model, "ö".repeat(23));
}

#[test]
fn crashes_are_held_against_all_that_ran_and_our_own_kills_against_what_hung() {
    let hung = InFlight { hangs: true, ..run("b", &[2]) };
    let all = vec![run("a", &[1]), hung.clone()];
    for signal in [4, 5, 6, 7, 8, 9, 11, 31] {
        assert_eq!(blamed(all.clone(), End::Signal(signal), false), all, "{signal}");
        assert_eq!(blamed(all.clone(), End::Signal(signal), true), std::slice::from_ref(&hung));
    }
    for end in [
        End::Signal(15),
        End::Signal(2),
        End::Signal(1),
        End::Code(0),
        End::Code(70),
        End::Code(139),
    ] {
        assert_eq!(blamed(all.clone(), end, false), [], "{end}");
    }
}

#[test]
fn people_are_told_the_worst_first() {
    let mut poison = Poison::default();
    poison.crashed(&[1, 2, 3], 0);
    poison.crashed(&[3], 1);
    let flights = [run("a", &[1, 2]), run("b", &[3, 1])];
    let told = involved(&flights, &poison, 1, 2);
    let of = |model: &str, hash: u64, crashes| Involved {
        model: model.to_owned(),
        version: 3,
        hash: format!("{hash:016x}"),
        crashes,
    };
    assert_eq!(told, [of("b", 3, 2), of("a", 1, 1)]);
    assert_eq!(involved(&flights, &poison, 1, 9).len(), 3);
    let json = serde_json::to_string(&told[0]).unwrap();
    assert_eq!(json, r#"{"model":"b","version":3,"hash":"0000000000000003","crashes":2}"#);
}

fn any_remembered() -> impl Strategy<Value = Remembered> {
    (any::<u64>(), any::<u32>(), 0..u64::from(u32::MAX))
        .prop_map(|(hash, crashes, left_ms)| Remembered { hash, crashes, left_ms })
}

proptest! {
    #[test]
    fn a_head_is_read_as_it_was_written(
        seed in any::<u64>(),
        remembered in proptest::collection::vec(any_remembered(), 0..1_025),
    ) {
        let head = Head { seed, remembered };
        let mut bytes = head.to_bytes();
        let read = Head::of_bytes(&bytes);
        prop_assert_eq!(read.as_ref(), (head.remembered.len() <= 1_024).then_some(&head));
        bytes.resize(BYTES, 0);
        prop_assert_eq!(Head::of_bytes(&bytes), read);
        bytes[0] ^= 1;
        prop_assert_eq!(Head::of_bytes(&bytes), None);
    }

    /// Whatever lies there: no panic, and no more than there is room for.
    #[test]
    fn noise_is_survived(noise in proptest::collection::vec(any::<u8>(), 0..20_000), at in 0usize..30_000) {
        let mut bytes = vec![0xff; at];
        bytes.extend(noise);
        Head::of_bytes(&bytes);
        for flight in in_flight(&bytes) {
            prop_assert!(flight.hashes.len() <= REQUESTS_MAX && flight.hashes.len() <= flight.requests);
        }
    }
}
