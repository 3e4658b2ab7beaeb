use super::*;
use crate::datatype::Datatype;
use balm_probes::flight::{BYTES, in_flight};
use balm_probes::poison::Remembered;
use bytes::Bytes;
use std::sync::atomic::AtomicU64;

/// A recorder whose owner remembers this.
fn recorder(seed: u64, remembered: Vec<Remembered>) -> (Recorder, File, Arc<AtomicU64>) {
    let memory = tempfile::tempfile().unwrap();
    memory.set_len(BYTES as u64).unwrap();
    memory.write_all_at(&Head { seed, remembered }.to_bytes(), 0).unwrap();
    let last = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&last);
    let mine = memory.try_clone().unwrap();
    let recorder = Recorder::open(mine, move |hash| told.store(hash, Ordering::SeqCst)).unwrap();
    (recorder, memory, last)
}

fn read(memory: &File) -> Vec<flight::InFlight> {
    let mut bytes = vec![0; BYTES];
    memory.read_exact_at(&mut bytes, 0).unwrap();
    in_flight(&bytes)
}

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::raw(Datatype::Fp32, shape.to_vec(), bytes.into()).unwrap()
}

fn texts(texts: &[&'static str]) -> Tensor {
    let elements = texts.iter().map(|text| Bytes::from_static(text.as_bytes())).collect();
    Tensor::strings(vec![texts.len()], elements).unwrap()
}

#[test]
fn what_runs_is_in_the_memory_of_the_other_process() {
    let (recorder, memory, _) = recorder(1, Vec::new());
    let seat = recorder.seat("iris", 2, identity("abc")).unwrap();
    let other = recorder.seat("other", 1, 0).unwrap();
    assert_eq!(read(&memory), []);
    seat.begin([5, 6].into_iter());
    other.begin([7].into_iter());
    other.hangs();
    let all = read(&memory);
    assert_eq!((all[0].model.as_str(), all[0].version, all[0].hangs), ("iris", 2, false));
    assert_eq!(all[0].hashes, [5, 6]);
    assert_eq!((all[1].model.as_str(), all[1].hangs), ("other", true));
    seat.end();
    drop(other);
    assert_eq!(read(&memory), []);
    // The blocks are used again, and there are no more of them than there are.
    let seats: Vec<Seat> = (0..flight::LANES_MAX).map_while(|_| recorder.seat("m", 1, 0)).collect();
    assert_eq!(seats.len(), flight::LANES_MAX - 1);
}

#[test]
fn a_hash_is_of_everything_that_a_run_reads() {
    let (first, _, _) = recorder(1, Vec::new());
    let (another, _, _) = recorder(2, Vec::new());
    let seat = first.seat("m", 1, identity("a")).unwrap();
    let a = [floats(&[2, 1], &[1.0, 2.0])];
    let hash = seat.hash(&a);
    assert_eq!(hash, first.seat("m", 1, identity("a")).unwrap().hash(&a), "whichever lane");
    assert_ne!(hash, first.seat("m", 1, identity("b")).unwrap().hash(&a), "another model");
    assert_ne!(
        hash,
        another.seat("m", 1, identity("a")).unwrap().hash(&a),
        "nobody can foresee it"
    );
    let raw = Tensor::raw(Datatype::Int32, vec![2, 1], Bytes::from_static(&[0; 8])).unwrap();
    let same = Tensor::raw(Datatype::Fp32, vec![2, 1], Bytes::from_static(&[0; 8])).unwrap();
    let mut all = vec![
        hash,
        seat.hash(&[floats(&[1, 2], &[1.0, 2.0])]),
        seat.hash(&[floats(&[2, 1], &[2.0, 1.0])]),
        seat.hash(&[floats(&[2, 1], &[1.0, 2.0]), floats(&[1], &[0.0])]),
        seat.hash(&[floats(&[1], &[0.0]), floats(&[2, 1], &[1.0, 2.0])]),
        seat.hash(&[raw]),
        seat.hash(&[same]),
        seat.hash(&[texts(&["ab", "c"])]),
        seat.hash(&[texts(&["a", "bc"])]),
        seat.hash(&[texts(&["abc"])]),
        seat.hash(&[texts(&["", "abc"])]),
        seat.hash(&[]),
    ];
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 12);
}

#[test]
fn what_is_remembered_is_known_until_it_survives() {
    let told = |hash, crashes| Remembered { hash, crashes, left_ms: 3_000_000 };
    let (known, _, last) = recorder(1, vec![told(7, 1), told(8, 2)]);
    let seat = known.seat("m", 1, 0).unwrap();
    assert!(!seat.knows_nothing());
    let standings = [7, 8, 9].map(|hash| seat.standing(hash));
    assert_eq!(standings, [Standing::Suspect, Standing::Refused, Standing::Clear]);
    seat.survived(9);
    seat.survived(8);
    assert_eq!(last.load(Ordering::SeqCst), 0, "they are no suspects");
    seat.survived(7);
    assert_eq!((last.load(Ordering::SeqCst), seat.standing(7)), (7, Standing::Clear));
    assert!(!seat.knows_nothing(), "one is refused");
    let (known, _, _) = recorder(1, vec![told(7, 1)]);
    let seat = known.seat("m", 1, 0).unwrap();
    seat.survived(7);
    assert!(seat.knows_nothing());
}

#[test]
fn strange_memory_is_refused() {
    let memory = tempfile::tempfile().unwrap();
    let open = |memory: &File| Recorder::open(memory.try_clone().unwrap(), |_| {}).err();
    assert!(matches!(open(&memory), Some(RecorderError::Read(_))));
    memory.set_len(BYTES as u64).unwrap();
    assert!(matches!(open(&memory), Some(RecorderError::Strange)));
}
