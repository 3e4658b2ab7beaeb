//! Healing as whoever ticks and judges sees it.

use super::Models;
use crate::healing::WorkerVerdict;
use std::time::Duration;

impl Models {
    /// The watchdog has ticked: looks at all lanes, tells runs past their deadline to end, and replaces lanes that hang.
    ///
    /// `measured` is the time since the tick before, about [`TICK`](balm_probes::watchdog::TICK). Returns at once; what takes
    /// time is done on threads of its own. To be called by one thread.
    pub fn tick(&self, measured: Duration) {
        self.0.healing.tick(measured);
    }

    /// That this process cannot heal itself and should be replaced, once that is so. A supervisor ends it; where there is none,
    /// liveness fails by it.
    pub fn worker_verdict(&self) -> Option<&WorkerVerdict> {
        self.0.healing.verdict()
    }

    /// Says how much memory the process may use, bytes: lanes that hang may hold no more than a part of it.
    pub fn set_memory_limit(&self, bytes: u64) {
        self.0.healing.set_memory_limit(bytes);
    }
}
