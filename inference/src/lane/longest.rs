//! How long the longest usual runs of a version take.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// With each run the mark falls by this part of itself, 1/1024: it halves within some 700 runs.
const DECAY_SHIFT: u32 = 10;

/// A mark that rises to each run that is longer, and sinks slowly: the 99th percentile, from above.
///
/// What hangs on it is how long a run may go on after it was told to end, where too long costs a second and too short a lane.
#[derive(Debug, Default)]
pub(super) struct Longest(AtomicU64);

impl Longest {
    /// Runs took at most so long in the load.
    pub(super) fn of(time: Duration) -> Self {
        Longest(AtomicU64::new(nanoseconds(time)))
    }

    /// A run took so long. Of two lanes that learn at once one may lose its lesson.
    pub(super) fn learn(&self, time: Duration) {
        let before = self.0.load(Ordering::Relaxed);
        let sunk = before - (before >> DECAY_SHIFT);
        self.0.store(sunk.max(nanoseconds(time)), Ordering::Relaxed);
    }

    /// Milliseconds.
    pub(super) fn ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed) / 1_000_000
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_at_once_and_sinks_slowly() {
        let longest = Longest::of(Duration::from_millis(20));
        assert_eq!(longest.ms(), 20);
        longest.learn(Duration::from_millis(800));
        assert_eq!(longest.ms(), 800);
        for _ in 0..100 {
            longest.learn(Duration::from_millis(10));
        }
        assert!((700..800).contains(&longest.ms()), "{}", longest.ms());
        for _ in 0..20_000 {
            longest.learn(Duration::from_millis(10));
        }
        assert_eq!(longest.ms(), 10);
    }
}
