//! When a phase was as good as another: pure.

use std::time::Duration;

use crate::load::record::Sample;

/// At a load that is not far from what can be carried, seconds differ by chance; five of them together less.
const WINDOW: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(100);

/// How long after the phase's begin accepted answers were within `limit` again: the first moment from which on the p99 of the
/// next five seconds is within it. Five seconds without any accepted answer are no recovery. None if that never came.
///
/// Later seconds are not looked at: what chance brings together then is no echo of what was before. Whether the phase as a whole
/// was good, its own figures tell.
pub(crate) fn recovered(samples: &[Sample], phase: Duration, limit: Duration) -> Option<Duration> {
    let mut from = Duration::ZERO;
    let window = WINDOW.min(phase);
    while from + window <= phase {
        let first = samples.partition_point(|(at, _)| *at < from);
        let next = samples.partition_point(|(at, _)| *at < from + window);
        if p99_within(&samples[first..next], limit) {
            return Some(from);
        }
        from += STEP;
    }
    None
}

/// Whether at most one in a hundred took longer.
fn p99_within(samples: &[Sample], limit: Duration) -> bool {
    let longer = samples.iter().filter(|(_, latency)| *latency > limit).count();
    !samples.is_empty() && longer * 100 <= samples.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(20);

    /// Ten answers a second; their latencies by the second.
    fn samples(seconds: &[u64]) -> Vec<Sample> {
        let ten = |(second, latency): (usize, &u64)| {
            let latency = Duration::from_millis(*latency);
            (0..10).map(move |tenth| {
                (Duration::from_millis(second as u64 * 1000 + tenth * 100 + 50), latency)
            })
        };
        seconds.iter().enumerate().flat_map(ten).collect()
    }

    fn seconds(samples: &[Sample], phase: u64) -> Option<f64> {
        recovered(samples, Duration::from_secs(phase), LIMIT).map(|found| found.as_secs_f64())
    }

    #[test]
    fn from_which_moment_on() {
        assert_eq!(seconds(&samples(&[10; 8]), 8), Some(0.0));
        assert_eq!(seconds(&samples(&[90, 90, 10, 10, 10, 10, 10]), 7), Some(2.0));
        assert_eq!(seconds(&samples(&[90; 6]), 6), None);
        assert_eq!(seconds(&samples(&[90, 10, 90, 10, 10, 10]), 6), None, "good for a moment");
        assert_eq!(seconds(&samples(&[90, 10, 10, 10, 10, 10, 90]), 7), Some(1.0), "chance");
    }

    #[test]
    fn silence_is_no_recovery() {
        assert_eq!(seconds(&[], 8), None);
        let late: Vec<Sample> =
            samples(&[10; 12]).into_iter().filter(|(at, _)| at.as_secs() >= 7).collect();
        // The first window with an answer in it.
        assert_eq!(seconds(&late, 12), Some(2.1));
    }

    #[test]
    fn one_in_a_hundred_may_be_slow() {
        let mut many: Vec<Sample> =
            (0..600).map(|at| (Duration::from_millis(at * 10 + 5), LIMIT / 2)).collect();
        for at in [10, 20, 30, 40, 50] {
            many[at].1 = 2 * LIMIT;
        }
        assert_eq!(seconds(&many, 6), Some(0.0), "five of five hundred");
        many[60].1 = 2 * LIMIT;
        assert_eq!(seconds(&many, 6), Some(0.2), "the first of six is left behind");
    }

    #[test]
    fn a_phase_shorter_than_the_window() {
        let found = recovered(&samples(&[10])[..5], Duration::from_millis(500), LIMIT);
        assert_eq!(found, Some(Duration::ZERO));
    }
}
