//! Notices when the machine did not run this program: a thread that only sleeps, and looks how long it slept.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::result::Stall;

const NAP: Duration = Duration::from_millis(20);
/// A nap that takes this much longer is a stall.
const STALL: Duration = Duration::from_millis(100);
/// A machine that stalls more often is not to be measured on.
const STALLS_MAX: usize = 1000;

/// The thread, and what it has noticed. Dropped, it ends.
pub(crate) struct Stalls {
    seen: Arc<Mutex<Vec<(Instant, Duration)>>>,
    end: Arc<AtomicBool>,
}

impl Stalls {
    pub(crate) fn watch() -> Result<Stalls> {
        let stalls = Stalls { seen: Arc::default(), end: Arc::default() };
        let (seen, end) = (Arc::clone(&stalls.seen), Arc::clone(&stalls.end));
        thread::Builder::new().name("stalls".to_owned()).spawn(move || {
            let mut before = Instant::now();
            while !end.load(Ordering::Relaxed) {
                thread::sleep(NAP);
                let now = Instant::now();
                if let Some(stall) = stall(now - before) {
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    if seen.len() < STALLS_MAX {
                        seen.push((before, stall));
                    }
                }
                before = now;
            }
        })?;
        Ok(stalls)
    }

    /// Those from that moment on.
    pub(crate) fn since(&self, start: Instant) -> Vec<Stall> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |(at, stall): &(Instant, Duration)| Stall {
            at_s: at.saturating_duration_since(start).as_secs_f64(),
            ms: stall.as_secs_f64() * 1e3,
        };
        seen.iter().filter(|(at, stall)| *at + *stall >= start).map(of).collect()
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

/// How much too long a nap was, if it matters.
fn stall(slept: Duration) -> Option<Duration> {
    let over = slept.saturating_sub(NAP);
    (over >= STALL).then_some(over)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nap_may_be_a_little_longer() {
        assert_eq!(stall(NAP), None);
        assert_eq!(stall(NAP + STALL / 2), None);
        assert_eq!(stall(NAP + STALL * 3), Some(STALL * 3));
    }

    #[test]
    fn what_was_before_the_run_is_not_of_the_run() {
        let stalls = Stalls::watch().unwrap();
        let start = Instant::now() + Duration::from_secs(100);
        let half = Duration::from_millis(500);
        stalls.seen.lock().unwrap().extend([(start - 2 * half, half / 2), (start + half, half)]);
        assert_eq!(stalls.since(start), [Stall { at_s: 0.5, ms: 500.0 }]);
    }
}
