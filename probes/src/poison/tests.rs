use proptest::prelude::*;

use super::*;
use Standing::{Clear, Refused, Suspect};

#[test]
fn two_crashes_refuse_for_an_hour() {
    let mut poison = Poison::default();
    assert!(poison.is_empty());
    assert_eq!(poison.standing(7, 0), Clear);
    poison.crashed(&[7, 8], 0);
    assert_eq!((poison.standing(7, 0), poison.standing(9, 0)), (Suspect, Clear));
    poison.crashed(&[7], 1_000);
    assert_eq!((poison.standing(7, 1_000), poison.standing(8, 1_000)), (Refused, Suspect));
    assert_eq!(poison.standing(7, 1_000 + REFUSED_MS - 1), Refused);
    assert_eq!(poison.standing(7, 1_000 + REFUSED_MS), Clear);
    assert_eq!(poison.standing(8, REFUSED_MS), Clear);
    assert_eq!((poison.len(), poison.is_empty()), (2, false));
    poison.crashed(&[], 1_000 + REFUSED_MS);
    assert!(poison.is_empty(), "what is over is let go");
}

#[test]
fn a_first_crash_is_forgotten_after_an_hour() {
    let mut poison = Poison::default();
    poison.crashed(&[7], 0);
    poison.crashed(&[7], REFUSED_MS);
    assert_eq!(poison.standing(7, REFUSED_MS), Suspect);
    poison.crashed(&[7], 2 * REFUSED_MS - 1);
    assert_eq!(poison.standing(7, 2 * REFUSED_MS - 1), Refused);
    poison.crashed(&[7], 2 * REFUSED_MS);
    assert_eq!(poison.standing(7, 3 * REFUSED_MS - 1), Refused, "a third one prolongs it");
}

#[test]
fn a_request_that_is_there_twice_counts_once_a_crash() {
    let mut poison = Poison::default();
    poison.crashed(&[7, 7, 7], 0);
    assert_eq!(poison.standing(7, 0), Suspect);
    assert_eq!(poison.len(), 1);
}

#[test]
fn the_oldest_make_way() {
    let mut poison = Poison::default();
    poison.crashed(&[1_000_000], 0);
    let many: Vec<u64> = (0..REMEMBERED_MAX as u64).collect();
    poison.crashed(&many[1..], 1);
    assert_eq!((poison.len(), poison.standing(1_000_000, 1)), (REMEMBERED_MAX, Suspect));
    poison.crashed(&[0], 2);
    assert_eq!((poison.len(), poison.standing(1_000_000, 2)), (REMEMBERED_MAX, Clear));
    assert_eq!(poison.standing(0, 2), Suspect);
    let text = serde_json::to_string(&poison).unwrap();
    assert_eq!(serde_json::from_str::<Poison>(&text).unwrap(), poison);
}

#[test]
fn whoever_survives_by_itself_is_no_suspect() {
    let mut poison = Poison::default();
    poison.crashed(&[7, 8], 0);
    assert!(poison.survived(7));
    assert!(!poison.survived(7), "it is none already");
    assert_eq!((poison.standing(7, 0), poison.standing(8, 0)), (Clear, Suspect));
    poison.crashed(&[7, 8], 1);
    assert_eq!((poison.standing(7, 1), poison.standing(8, 1)), (Suspect, Refused));
    assert!(!poison.survived(8), "what is proved is not taken back");
    assert_eq!(poison.counts(1), (1, 1));
    assert_eq!(poison.counts(1 + REFUSED_MS), (0, 0));
    assert_eq!(
        (poison.crashes(8, 1), poison.crashes(8, 1 + REFUSED_MS), poison.crashes(9, 1)),
        (2, 0, 0)
    );
}

#[test]
fn another_process_forgets_at_the_same_moment() {
    let mut poison = Poison::default();
    poison.crashed(&[7], 1_000);
    poison.crashed(&[7, 8], 61_000);
    poison.crashed(&[9], 62_000);
    let told = poison.remembered(161_000);
    let left = |hash, crashes, left_ms| Remembered { hash, crashes, left_ms };
    let hour = REFUSED_MS;
    assert_eq!(
        told,
        [left(7, 2, hour - 100_000), left(8, 1, hour - 100_000), left(9, 1, hour - 99_000)]
    );
    let there = Poison::of(&told);
    for after in [0, hour - 100_001, hour - 100_000, hour - 99_001, hour - 99_000] {
        for hash in 6..10 {
            let (here, there) =
                (poison.standing(hash, 161_000 + after), there.standing(hash, hour + after));
            assert_eq!(here, there, "{hash} after {after}");
        }
    }
    assert_eq!(poison.remembered(62_000 + hour), []);
}

proptest! {
    /// Beside a model that remembers everything: the same answers as long as the bound is not reached, and never more than it.
    #[test]
    fn as_one_that_counts_by_hand(
        crashes in proptest::collection::vec((proptest::collection::vec(0u64..12, 0..6), 0u64..REFUSED_MS / 2), 0..60),
    ) {
        let mut poison = Poison::default();
        let mut by_hand: std::collections::BTreeMap<u64, (u32, u64)> = Default::default();
        let mut now = 0;
        for (hashes, gap) in crashes {
            now += gap;
            poison.crashed(&hashes, now);
            let mut unique = hashes.clone();
            unique.sort_unstable();
            unique.dedup();
            for hash in unique {
                let entry = by_hand.entry(hash).or_insert((0, now));
                if now - entry.1 >= REFUSED_MS {
                    entry.0 = 0;
                }
                *entry = (entry.0 + 1, now);
            }
            prop_assert!(poison.len() <= REMEMBERED_MAX);
            let alike = |standing| (0..12).filter(|hash| poison.standing(*hash, now) == standing).count();
            prop_assert_eq!(poison.counts(now), (alike(Suspect), alike(Refused)));
            for hash in 0..12 {
                let expected = match by_hand.get(&hash) {
                    Some((_, last)) if now - last >= REFUSED_MS => Clear,
                    Some((1, _)) => Suspect,
                    Some(_) => Refused,
                    None => Clear,
                };
                prop_assert_eq!(poison.standing(hash, now), expected);
            }
        }
    }
}
