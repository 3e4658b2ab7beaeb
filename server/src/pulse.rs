//! The heartbeat of the data plane, and the watchdog that counts its own ticks.
//!
//! A std thread ticks; a task on the HTTP runtime answers each tick as soon as the runtime lets it. Who judges compares
//! ticks with ticks, never with the wall clock: while the whole process is stopped or throttled, neither moves.

use balm_probes::watchdog::TICK;
use balm_probes::{Liveness, liveness};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A runtime that has not answered for this many ticks, 10 s, is beyond repair from within.
const LIMIT_TICKS: u64 = 100;

/// Shared by the watchdog thread, the runtime and the probes.
#[derive(Debug, Default)]
pub struct Pulse {
    ticks: AtomicU64,
    beat: AtomicU64,
}

impl Pulse {
    /// Starts the watchdog thread, which calls `on_tick` with each tick: the time since the one before, and how late the
    /// runtime is. It ends with the process, or when nobody holds the pulse any more.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(on_tick: impl Fn(Duration, Duration) + Send + 'static) -> io::Result<Arc<Self>> {
        let pulse = Arc::new(Pulse::default());
        let watched = Arc::downgrade(&pulse);
        thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            let mut before = Instant::now();
            while let Some(pulse) = watched.upgrade() {
                let lag = pulse.lag();
                pulse.ticks.fetch_add(1, Ordering::AcqRel);
                drop(pulse);
                let now = Instant::now();
                on_tick(now - before, lag);
                before = now;
                thread::sleep(TICK);
            }
        })?;
        Ok(pulse)
    }

    /// Answers the watchdog for as long as the runtime lives. To be spawned on the runtime that is watched.
    pub async fn beat(self: Arc<Self>) {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.beat.store(self.ticks.load(Ordering::Acquire), Ordering::Release);
        }
    }

    /// How late the runtime is with its answer, in whole ticks: nothing as long as it answered the tick of the moment, or has not
    /// begun to answer.
    fn lag(&self) -> Duration {
        let beat = self.beat.load(Ordering::Acquire);
        let late = self.ticks.load(Ordering::Acquire).saturating_sub(beat);
        if beat == 0 { Duration::ZERO } else { TICK * u32::try_from(late).unwrap_or(u32::MAX) }
    }

    /// Whether the runtime still answers.
    pub fn verdict(&self) -> Liveness {
        let beat = self.beat.load(Ordering::Acquire);
        liveness(self.ticks.load(Ordering::Acquire), beat, LIMIT_TICKS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_what_the_runtime_owes() {
        let pulse = Pulse::default();
        pulse.ticks.store(500, Ordering::Release);
        assert_eq!(pulse.lag(), Duration::ZERO, "it has not begun");
        pulse.beat.store(500, Ordering::Release);
        assert_eq!(pulse.lag(), Duration::ZERO);
        pulse.beat.store(497, Ordering::Release);
        assert_eq!(pulse.lag(), 3 * TICK);
        pulse.beat.store(501, Ordering::Release);
        assert_eq!(pulse.lag(), Duration::ZERO, "a beat from the future");
    }
}
