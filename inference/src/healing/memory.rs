//! The memory of this process: what follows from how it grows.
//!
//! Judgement is [`MemoryWatch`]'s. Loads and unloads change memory for a reason, so nothing is judged while one is under way, and
//! what was sampled before is forgotten.

use super::{Healing, WorkerVerdict};
use balm_probes::memory::{MemoryStep, MemoryWatch};
use balm_probes::{Reason, Rung, Sighting, Usage};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What incidents about memory are about.
const SUBJECT: &str = "the memory of the worker";
const MIB: u64 = 1 << 20;

/// What is known of the memory of this process.
#[derive(Default)]
pub(super) struct Memory {
    state: Mutex<State>,
    /// Sessions that are being built, and models that are being read.
    changing: AtomicUsize,
}

#[derive(Default)]
struct State {
    watch: MemoryWatch,
    /// What was asked for and is not over.
    verdict: Option<WorkerVerdict>,
    /// Whether that was told to be in vain.
    in_vain: bool,
}

/// For as long as it is there memory changes for a reason.
pub(crate) struct Changing(Arc<Healing>);

impl Drop for Changing {
    fn drop(&mut self) {
        self.0.memory_changed();
        self.0.memory.changing.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Healing {
    /// Memory changes for a reason from now on, until what this gives is dropped.
    pub(crate) fn memory_changes(self: &Arc<Self>) -> Changing {
        self.memory.changing.fetch_add(1, Ordering::AcqRel);
        Changing(Arc::clone(self))
    }

    /// Whether it does at the moment.
    pub(crate) fn is_memory_changing(&self) -> bool {
        self.memory.changing.load(Ordering::Acquire) > 0
    }

    /// Memory has changed, or is about to, for a reason.
    pub(crate) fn memory_changed(&self) {
        self.memory.state.lock().watch.reset();
    }

    /// So much memory is used at `now_ms` of one monotonic clock. Whether something came of it or is over, and what to ask for now, if anything.
    pub(crate) fn memory(&self, usage: Usage, now_ms: u64) -> (bool, Option<WorkerVerdict>) {
        let mut state = self.memory.state.lock();
        if self.is_memory_changing() {
            state.watch.reset();
            return (false, None);
        }
        let (trouble, first, in_ms) = match state.watch.observe(usage, now_ms) {
            MemoryStep::Nothing => return (false, None),
            MemoryStep::Calm => {
                (state.verdict, state.in_vain) = (None, false);
                drop(state);
                self.healed(SUBJECT);
                return (true, None);
            }
            MemoryStep::Ask { trouble, first, in_ms } => (trouble, first, in_ms),
        };
        let decision = self.decide(trouble);
        let verdict = WorkerVerdict { decision, subject: sentence(usage, in_ms) };
        state.verdict = Some(verdict.clone());
        drop(state);
        if first {
            let reason = decision.reason;
            self.see(Sighting { subject: SUBJECT.to_owned(), reason, after_ms: 0 });
            self.did(SUBJECT, decision.rung, reason);
        }
        (first, Some(verdict))
    }

    /// The worker was not replaced although it asked: the door of the server has to hold. Whether that is news.
    pub(crate) fn memory_in_vain(&self) -> bool {
        let news = {
            let mut state = self.memory.state.lock();
            state.verdict.is_some() && !std::mem::replace(&mut state.in_vain, true)
        };
        if news {
            self.did(SUBJECT, Rung::Shed, Reason::MemoryBudget);
        }
        news
    }

    /// What was asked for because of memory, while that lasts.
    pub(crate) fn memory_verdict(&self) -> Option<WorkerVerdict> {
        self.memory.state.lock().verdict.clone()
    }
}

fn sentence(usage: Usage, in_ms: Option<u64>) -> String {
    let Usage { used, own, limit } = usage;
    let (used, own, limit) = (used / MIB, own / MIB, limit / MIB);
    let when = match in_ms {
        Some(0) | None => String::new(),
        Some(ms) => format!(", 85 % of it in {} s", ms.div_ceil(1_000)),
    };
    format!("{used} of {limit} MiB are used{when}; the worker holds {own} MiB")
}
