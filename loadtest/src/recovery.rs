//! When a phase was as good as another: pure.

use std::time::Duration;

use crate::load::record::Sample;

const WINDOW: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(100);

/// How long after the phase's begin accepted answers were within `limit` again, for good: the first moment from which
/// on the p99 of the next second and the p99 of all that follows are within it. A second without any accepted answer is
/// no recovery. None if that never came.
pub(crate) fn recovered(samples: &[Sample], phase: Duration, limit: Duration) -> Option<Duration> {
    let mut from = Duration::ZERO;
    let window = WINDOW.min(phase);
    while from + window <= phase {
        let first = samples.partition_point(|(at, _)| *at < from);
        let next = samples.partition_point(|(at, _)| *at < from + window);
        if p99_within(&samples[first..next], limit) && p99_within(&samples[first..], limit) {
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
        assert_eq!(seconds(&samples(&[90, 90, 10, 10, 10, 10]), 6), Some(2.0));
        assert_eq!(seconds(&samples(&[90; 6]), 6), None);
        // Good for a while is not recovered.
        assert_eq!(seconds(&samples(&[90, 10, 90, 10, 10]), 5), Some(3.0));
        assert_eq!(seconds(&samples(&[90, 10, 10, 90]), 4), None);
    }

    #[test]
    fn silence_is_no_recovery() {
        assert_eq!(seconds(&[], 3), None);
        let late: Vec<Sample> =
            samples(&[10; 6]).into_iter().filter(|(at, _)| at.as_secs() >= 3).collect();
        // The first window with an answer in it.
        assert_eq!(seconds(&late, 6), Some(2.1));
    }

    #[test]
    fn one_in_a_hundred_may_be_slow() {
        let mut many = samples(&[10; 20]);
        many[150].1 = Duration::from_millis(90);
        // By itself, the slow one's second is too slow; the phase as a whole is not.
        assert_eq!(seconds(&many, 20), Some(0.0));
        many[151].1 = Duration::from_millis(90);
        many[152].1 = Duration::from_millis(90);
        assert_eq!(seconds(&many, 20), Some(15.3));
    }

    #[test]
    fn a_phase_shorter_than_the_window() {
        let found = recovered(&samples(&[10])[..5], Duration::from_millis(500), LIMIT);
        assert_eq!(found, Some(Duration::ZERO));
    }
}
