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
    /// Starts the watchdog thread, which calls `on_tick` with each tick and the time since the one before. It ends with the
    /// process, or when nobody holds the pulse any more.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(on_tick: impl Fn(Duration) + Send + 'static) -> io::Result<Arc<Self>> {
        let pulse = Arc::new(Pulse::default());
        let watched = Arc::downgrade(&pulse);
        thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            let mut before = Instant::now();
            while let Some(pulse) = watched.upgrade() {
                pulse.ticks.fetch_add(1, Ordering::AcqRel);
                drop(pulse);
                let now = Instant::now();
                on_tick(now - before);
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

    /// Whether the runtime still answers.
    pub fn verdict(&self) -> Liveness {
        let beat = self.beat.load(Ordering::Acquire);
        liveness(self.ticks.load(Ordering::Acquire), beat, LIMIT_TICKS)
    }
}
