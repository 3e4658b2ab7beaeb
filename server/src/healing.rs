//! Ticks for what heals the models: a thread of its own, so that nothing it does can hold up the pulse.

use crate::pulse::{Pulse, TICK};
use crate::worker::Worker;
use balm_inference::models::Models;
use balm_probes::{Cause, Reason};
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

/// A runtime that answers the tick before the last is in time.
const IN_TIME_TICKS: u64 = 1;

/// What the supervisor is to count it as.
fn cause(reason: Reason) -> Cause {
    match reason {
        Reason::ProviderSticky => Cause::Gpu,
        Reason::MemoryLeak | Reason::MemoryHigh => Cause::Memory,
        _ => Cause::Lanes,
    }
}

/// Has `models` looked after with each tick, and told how late the runtime behind `pulse` is. What cannot be healed from within is
/// told to the supervisor through `worker`, where there is one. The thread ends with the process, or when nobody holds the
/// pulse any more.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(models: Models, pulse: &Arc<Pulse>, worker: Option<Arc<Worker>>) -> io::Result<()> {
    let pulse = Arc::downgrade(pulse);
    let mut worker = worker;
    thread::Builder::new().name("healing".to_owned()).spawn(move || {
        let mut before = Instant::now();
        while let Some(pulse) = pulse.upgrade() {
            let late = pulse.lag_ticks().saturating_sub(IN_TIME_TICKS);
            drop(pulse);
            let now = Instant::now();
            models.tick(now - before);
            models.event_loop_lags(TICK * u32::try_from(late).unwrap_or(u32::MAX));
            before = now;
            if let Some(verdict) = models.worker_verdict()
                && let Some(worker) = worker.take()
            {
                worker.replace_me(cause(verdict.decision.reason), verdict.sentence());
            }
            thread::sleep(TICK);
        }
    })?;
    Ok(())
}
