use super::*;
use crate::report::{LaneCounts, ModelReport};
use proptest::prelude::*;

/// A report of one model `m`: version, digest, state.
fn report(versions: &[(u64, &str, ModelState)]) -> HealthReport {
    let versions = versions.iter().map(|(number, digest, state)| {
        let mut version = VersionReport::new(*number, *state);
        version.digest = Some((*digest).to_owned());
        version.reason = (*state == ModelState::Quarantined).then(|| "wrong".to_owned());
        version.lanes = LaneCounts { wanted: 1, healthy: u32::from(state.serves()) };
        version
    });
    let model = ModelReport { name: "m".to_owned(), declared: true, versions: versions.collect() };
    HealthReport { models: vec![model], ..HealthReport::default() }
}

fn digests(quarantine: &Quarantine) -> Vec<&str> {
    quarantine.all().iter().map(|one| one.digest.as_str()).collect()
}

use ModelState::{Degraded, Failed, Loading, Probing, Ready, Verifying, Warming};

#[test]
fn what_a_worker_quarantines_is_remembered_once_and_until_it_serves() {
    let mut quarantine = Quarantine::default();
    let bad = report(&[(1, "old", Ready), (2, "bad", ModelState::Quarantined)]);
    assert!(quarantine.saw(&bad, 0, 77));
    assert!(!quarantine.saw(&bad, 1, 78), "once");
    let [one] = quarantine.all() else { panic!("{:?}", quarantine.all()) };
    assert!(one.is("m", "bad") && !one.is("m", "old") && !one.is("n", "bad"));
    assert_eq!((one.version, one.reason.as_str(), one.at_ms), (2, "wrong", 77));
    assert!(!quarantine.saw(&report(&[(2, "bad", Loading)]), 2, 79), "on its way is not there");
    let mut lame = report(&[(2, "bad", Degraded)]);
    lame.models[0].versions[0].lanes.healthy = 0;
    assert!(!quarantine.saw(&lame, 2, 79), "nor is one that answers nobody");
    assert!(quarantine.saw(&report(&[(2, "bad", Ready)]), 3, 80), "somebody asked for it");
    assert!(quarantine.all().is_empty());
    assert_eq!(Quarantine::new(vec![one_of(1); 70]).all().len(), QUARANTINED_MAX);
    let long = Quarantined { reason: "é".repeat(1_000), ..one_of(1) };
    let known = Quarantine::new(vec![long]);
    assert_eq!(known.all()[0].reason.chars().count(), REASON_CHARS_MAX);
}

fn one_of(at_ms: u64) -> Quarantined {
    Quarantined {
        model: "m".to_owned(),
        version: 1,
        digest: "d".to_owned(),
        reason: String::new(),
        at_ms,
    }
}

#[test]
fn three_crashes_at_its_load_are_enough() {
    for state in [Loading, Warming, Probing] {
        let mut quarantine = Quarantine::default();
        let loading = report(&[(1, "old", Ready), (2, "new", state)]);
        for count in 1..=2 {
            assert!(quarantine.crashed(&loading, Cause::Segv, count, 0).is_empty());
            quarantine.saw(&loading, count, 0);
        }
        let found = quarantine.crashed(&loading, Cause::Abort, 3, 9);
        assert_eq!(found, quarantine.all());
        assert_eq!(found[0].reason, "the worker crashed 3 times while it was loaded");
        assert_eq!(digests(&quarantine), ["new"], "and not what served beside it");
    }
}

#[test]
fn who_took_over_is_on_trial_for_ten_minutes_and_nobody_else() {
    let first = report(&[(1, "old", Ready)]);
    let both = report(&[(2, "new", Ready)]);
    // From the start there is nothing to compare with.
    let mut alone = Quarantine::default();
    alone.saw(&first, 0, 0);
    for _ in 0..10 {
        assert!(alone.crashed(&first, Cause::Segv, 1, 0).is_empty());
    }
    for (third, found) in [(TRIAL_MS - 1, 1), (TRIAL_MS, 0)] {
        let mut quarantine = Quarantine::default();
        quarantine.saw(&first, 0, 0);
        quarantine.saw(&both, 0, 0);
        quarantine.saw(&both, 5_000, 0);
        quarantine.crashed(&both, Cause::Killed, 1, 0);
        quarantine.crashed(&both, Cause::Gpu, 2, 0);
        assert_eq!(quarantine.crashed(&both, Cause::Signal, third, 0).len(), found, "{third}");
    }
    // Whoever has stood it is trusted from then on.
    let mut quarantine = Quarantine::default();
    quarantine.saw(&first, 0, 0);
    quarantine.saw(&both, 0, 0);
    quarantine.crashed(&both, Cause::Segv, 1, 0);
    quarantine.crashed(&both, Cause::Segv, 2, 0);
    quarantine.saw(&both, TRIAL_MS, 0);
    for _ in 0..10 {
        assert!(quarantine.crashed(&both, Cause::Segv, TRIAL_MS + 1, 0).is_empty());
    }
    // And who serves again after another is no newcomer.
    quarantine.saw(&first, TRIAL_MS + 2, 0);
    for _ in 0..10 {
        assert!(quarantine.crashed(&first, Cause::Segv, TRIAL_MS + 3, 0).is_empty());
    }
}

#[test]
fn only_crashes_count_and_only_whose_bytes_are_known() {
    use Cause::*;
    for cause in Cause::ALL {
        let mut quarantine = Quarantine::default();
        let loading = report(&[(1, "new", Loading)]);
        let found = (0..3).map(|_| quarantine.crashed(&loading, cause, 0, 0).len()).sum::<usize>();
        let counts = matches!(cause, Segv | Abort | Killed | Signal | Gpu);
        assert_eq!(found, usize::from(counts), "{cause:?}");
    }
    let mut quarantine = Quarantine::default();
    let mut unread = report(&[(1, "x", Verifying), (2, "y", Failed)]);
    unread.models[0].versions[0].digest = None;
    for _ in 0..5 {
        assert!(quarantine.crashed(&unread, Segv, 0, 0).is_empty());
    }
}

proptest! {
    /// Whatever is reported: bounded, nothing twice, and nothing that serves.
    #[test]
    fn what_is_remembered_is_bounded_and_never_serves(
        events in proptest::collection::vec((0u64..90, 0u8..11, any::<bool>(), 0u64..400_000), 1..300),
    ) {
        let mut quarantine = Quarantine::default();
        let mut now = 0;
        for (digest, state, crash, gap) in events {
            now += gap;
            let state = ModelState::from_u8(state).unwrap();
            let digest = digest.to_string();
            let report = report(&[(1, &digest, state)]);
            quarantine.saw(&report, now, now);
            if state.serves() {
                prop_assert!(!digests(&quarantine).contains(&digest.as_str()));
            }
            if crash {
                quarantine.crashed(&report, Cause::Segv, now, now);
            }
            let mut all = digests(&quarantine);
            prop_assert!(all.len() <= QUARANTINED_MAX);
            all.sort_unstable();
            all.dedup();
            prop_assert_eq!(all.len(), quarantine.all().len());
        }
    }
}
