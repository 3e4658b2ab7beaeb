//! What a request is going to take, guessed from the length that its head announces, and learned from those before it.
//!
//! The decision comes before the body, so the rows are not known yet. Bodies of one length mostly hold the same number of rows
//! of the same shape, and where they do not, the price is put right once the body was read.

use crate::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Lengths that are told apart: by the power of two below.
const LENGTHS: usize = if cfg!(feature = "loom") { 2 } else { 40 };
/// A lesson's share in what is known: 1/8, as in RFC 6298.
const LEARNING_SHIFT: u32 = 3;
/// A lesson's share in the deviation: 1/4.
const DEVIATION_SHIFT: u32 = 2;
/// Nothing learned yet.
const UNKNOWN: u64 = 0;

/// What was learned of requests, by announced length. Plain atomics: two lanes that learn at once may lose a lesson.
#[derive(Debug)]
pub(super) struct Estimates {
    by_length: Vec<Lessons>,
    /// Mean time of a run, whatever its requests.
    run_ns: AtomicU64,
}

#[derive(Debug, Default)]
struct Lessons {
    /// The request's part of its run, nanoseconds.
    price_ns: AtomicU64,
    /// The run that it was in: mean and mean deviation, nanoseconds.
    run_ns: AtomicU64,
    deviation_ns: AtomicU64,
    /// When it was last learned, milliseconds since the start.
    at_ms: AtomicU64,
}

/// The place of a length in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Length(u8);

impl Length {
    pub(super) fn of(bytes: u64) -> Self {
        Length(u8::try_from((bytes.max(1).ilog2() as usize).min(LENGTHS - 1)).unwrap_or(0))
    }
}

impl Default for Estimates {
    fn default() -> Self {
        Estimates {
            by_length: (0..LENGTHS).map(|_| Lessons::default()).collect(),
            run_ns: AtomicU64::new(UNKNOWN),
        }
    }
}

impl Estimates {
    /// A request of `length` took `price` of a run of `run`.
    pub(super) fn learn(&self, length: Length, price: Duration, run: Duration, now_ms: u64) {
        let lessons = &self.by_length[usize::from(length.0)];
        let (price, run) = (nanoseconds(price), nanoseconds(run));
        average(&lessons.price_ns, price, LEARNING_SHIFT);
        let mean = lessons.run_ns.load(Ordering::Relaxed);
        if mean != UNKNOWN {
            average(&lessons.deviation_ns, mean.abs_diff(run), DEVIATION_SHIFT);
        }
        average(&lessons.run_ns, run, LEARNING_SHIFT);
        lessons.at_ms.store(now_ms, Ordering::Relaxed);
    }

    /// A run took so long.
    pub(super) fn learn_run(&self, run: Duration) {
        average(&self.run_ns, nanoseconds(run), LEARNING_SHIFT);
    }

    /// What a request of `length` is going to take of a lane, nanoseconds. 0 before the first one ran. A length that was not
    /// seen yet is judged by the nearest one that was, in proportion.
    pub(super) fn price_ns(&self, length: Length) -> u64 {
        let at = usize::from(length.0);
        let known = |index: usize| {
            let price = self.by_length.get(index)?.price_ns.load(Ordering::Relaxed);
            (price != UNKNOWN).then_some(price)
        };
        for distance in 0..LENGTHS {
            if let Some(price) = at.checked_sub(distance).and_then(known) {
                return price.saturating_mul(1 << distance);
            }
            if let Some(price) = known(at + distance) {
                return (price >> distance).max(1);
            }
        }
        0
    }

    /// The run that a request of `length` is going to be in, at the 95th percentile or so: mean and twice the deviation.
    ///
    /// An old lesson counts for less with each second, down to nothing: a model that was slow once must not be refused for ever
    /// to clients that nobody lets try again.
    pub(super) fn run_p95(&self, length: Length, now_ms: u64) -> Duration {
        let lessons = &self.by_length[usize::from(length.0)];
        let mean = lessons.run_ns.load(Ordering::Relaxed);
        let p95 = mean.saturating_add(2 * lessons.deviation_ns.load(Ordering::Relaxed));
        let age_s = now_ms.saturating_sub(lessons.at_ms.load(Ordering::Relaxed)) / 1_000;
        Duration::from_nanos(p95.checked_shr(u32::try_from(age_s).unwrap_or(u32::MAX)).unwrap_or(0))
    }

    /// Mean time of a run; zero before the first.
    pub(super) fn run_mean(&self) -> Duration {
        Duration::from_nanos(self.run_ns.load(Ordering::Relaxed))
    }
}

fn average(cell: &AtomicU64, lesson: u64, shift: u32) {
    let before = cell.load(Ordering::Relaxed);
    let after = match before {
        UNKNOWN => lesson,
        known => known - (known >> shift) + (lesson >> shift),
    };
    cell.store(after.max(1), Ordering::Relaxed);
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1)
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn nothing_is_known_before_the_first() {
        let estimates = Estimates::default();
        assert_eq!(estimates.price_ns(Length::of(100)), 0);
        assert_eq!(estimates.run_p95(Length::of(100), 0), Duration::ZERO);
        assert_eq!(estimates.run_mean(), Duration::ZERO);
    }

    #[test]
    fn lengths_that_were_not_seen_are_judged_in_proportion() {
        let estimates = Estimates::default();
        estimates.learn(Length::of(1 << 10), 8 * MS, 8 * MS, 0);
        assert_eq!(estimates.price_ns(Length::of(1 << 10)), 8_000_000);
        assert_eq!(estimates.price_ns(Length::of(1 << 12)), 32_000_000);
        assert_eq!(estimates.price_ns(Length::of(1 << 9)), 4_000_000);
        estimates.learn(Length::of(1 << 12), 9 * MS, 9 * MS, 0);
        assert_eq!(estimates.price_ns(Length::of(1 << 12)), 9_000_000, "until they were seen");
        assert_eq!(Length::of(0), Length::of(1));
        assert_eq!(Length::of(u64::MAX), Length(39));
    }

    #[test]
    fn a_change_is_learned_within_some_runs() {
        let estimates = Estimates::default();
        let length = Length::of(100);
        for _ in 0..50 {
            estimates.learn(length, 10 * MS, 10 * MS, 0);
            estimates.learn_run(10 * MS);
        }
        assert!((9_900_000..=10_000_000).contains(&estimates.price_ns(length)));
        assert!(estimates.run_p95(length, 0) < 11 * MS);
        for _ in 0..20 {
            estimates.learn(length, 50 * MS, 50 * MS, 0);
            estimates.learn_run(50 * MS);
        }
        assert!(estimates.price_ns(length) > 45_000_000);
        assert!(estimates.run_mean() > 45 * MS);
    }

    #[test]
    fn old_lessons_fade() {
        let estimates = Estimates::default();
        let length = Length::of(100);
        estimates.learn(length, 80 * MS, 80 * MS, 5_000);
        assert_eq!(estimates.run_p95(length, 5_900), 80 * MS);
        assert_eq!(estimates.run_p95(length, 7_000), 20 * MS);
        assert_eq!(estimates.run_p95(length, 500_000), Duration::ZERO);
    }
}
