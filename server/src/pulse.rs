//! The heartbeat of the data plane, and the watchdog that counts its own ticks.
//!
//! A std thread ticks; a task on the HTTP runtime answers each tick as soon as the runtime lets it. Who judges compares
//! ticks with ticks, never with the wall clock: while the whole process is stopped or throttled, neither moves.

use balm_probes::{Liveness, liveness};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// One tick of the watchdog.
pub const TICK: Duration = Duration::from_millis(100);
/// A runtime that has not answered for this many ticks, 10 s, is beyond repair from within.
const LIMIT_TICKS: u64 = 100;

/// Shared by the watchdog thread, the runtime and the probes.
#[derive(Debug, Default)]
pub struct Pulse {
    ticks: AtomicU64,
    beat: AtomicU64,
    /// Whether there was a first answer. Before it there is nothing to be late.
    beats: AtomicBool,
}

impl Pulse {
    /// Starts the watchdog thread. It ends with the process, or when nobody holds the pulse any more.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start() -> io::Result<Arc<Self>> {
        let pulse = Arc::new(Pulse::default());
        let watched = Arc::downgrade(&pulse);
        thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            while let Some(pulse) = watched.upgrade() {
                pulse.ticks.fetch_add(1, Ordering::AcqRel);
                drop(pulse);
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
            self.answer();
        }
    }

    /// Answers the watchdog once. For loops that are no async runtime.
    pub fn answer(&self) {
        self.beat.store(self.ticks(), Ordering::Release);
        self.beats.store(true, Ordering::Release);
    }

    /// Ticks so far.
    pub fn ticks(&self) -> u64 {
        self.ticks.load(Ordering::Acquire)
    }

    /// Ticks since the last answer; none before the first.
    pub fn lag_ticks(&self) -> u64 {
        let beat = self.beat.load(Ordering::Acquire);
        let late = self.ticks().saturating_sub(beat);
        if self.beats.load(Ordering::Acquire) { late } else { 0 }
    }

    /// Whether the runtime still answers.
    pub fn verdict(&self) -> Liveness {
        liveness(self.lag_ticks(), 0, LIMIT_TICKS)
    }
}
