//! When a worker asks to be replaced for its memory: at the first verdict, again every half a minute while it lasts, and not for
//! every breath that it takes in between.
//!
//! The worker asks; whether it is replaced is decided by who knows how often that was done ([`crate::respawn`]). A verdict comes
//! and goes with the traffic that feeds a leak, so it is over only when there was none for a minute.

use crate::ladder::Trouble;
use crate::slope::{MemoryVerdict, Slope, Usage};

/// While the trouble lasts it is asked again after this time, milliseconds.
pub const ASK_AGAIN_MS: u64 = 30_000;
/// Without a verdict for so long it is over, milliseconds.
pub const CALM_MS: u64 = 60_000;

/// What follows from a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MemoryStep {
    /// Nothing.
    Nothing,
    /// To ask for another worker.
    Ask {
        /// What is wrong, for the ladder.
        trouble: Trouble,
        /// Whether it is new, and was not asked for before.
        first: bool,
        /// When 85 % of the limit will be used, milliseconds; `None` where that is past.
        in_ms: Option<u64>,
    },
    /// What was wrong is over.
    Calm,
}

/// The memory of one worker. Times in milliseconds of one monotonic clock.
#[derive(Clone, Debug, Default)]
pub struct MemoryWatch {
    slope: Slope,
    trouble: Option<Lasting>,
}

#[derive(Clone, Copy, Debug)]
struct Lasting {
    asked_ms: u64,
    seen_ms: u64,
}

impl MemoryWatch {
    /// Takes a sample at `now_ms`.
    pub fn observe(&mut self, usage: Usage, now_ms: u64) -> MemoryStep {
        let (trouble, in_ms) = match self.slope.observe(usage, now_ms) {
            MemoryVerdict::Fine => return self.fine(now_ms),
            MemoryVerdict::Leaks { in_ms } => (Trouble::MemoryLeak, Some(in_ms)),
            MemoryVerdict::High => (Trouble::MemoryHigh, None),
        };
        let Some(lasting) = &mut self.trouble else {
            self.trouble = Some(Lasting { asked_ms: now_ms, seen_ms: now_ms });
            return MemoryStep::Ask { trouble, first: true, in_ms };
        };
        lasting.seen_ms = now_ms;
        if now_ms.saturating_sub(lasting.asked_ms) < ASK_AGAIN_MS {
            return MemoryStep::Nothing;
        }
        lasting.asked_ms = now_ms;
        MemoryStep::Ask { trouble, first: false, in_ms }
    }

    fn fine(&mut self, now_ms: u64) -> MemoryStep {
        let over = |lasting: &mut Lasting| now_ms.saturating_sub(lasting.seen_ms) >= CALM_MS;
        match self.trouble.take_if(over) {
            Some(_over) => MemoryStep::Calm,
            None => MemoryStep::Nothing,
        }
    }

    /// Models are loaded or unloaded, and memory changes for a reason: what was sampled says nothing any more.
    pub fn reset(&mut self) {
        self.slope.reset();
    }
}

#[cfg(test)]
mod tests;
