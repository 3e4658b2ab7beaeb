//! Ending a job that is no longer wanted: its deadline is over, or its client has left.
//!
//! The danger is the late cancel: one that arrives when the lane has gone on to somebody else's run, and stops
//! that. A [`RunToken`] belongs to one job and knows whether *this* job is running; cancelling and finishing
//! exclude each other.

use crate::engine::Cancel;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

enum Phase {
    Waiting,
    Running(Arc<dyn Cancel>),
    Finished,
    /// Whether a lane had taken it up by then.
    Cancelled {
        begun: bool,
    },
}

/// Where one job stands, shared by the lane that runs it and the request that waits for it.
pub(crate) struct RunToken {
    phase: Mutex<Phase>,
}

impl RunToken {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(RunToken { phase: Mutex::new(Phase::Waiting) })
    }

    /// The lane is about to run the job. False when it was cancelled while waiting: then it must not run.
    pub(crate) fn begin(&self, canceller: &Arc<dyn Cancel>) -> bool {
        let mut phase = self.phase.lock();
        match *phase {
            Phase::Waiting => {
                *phase = Phase::Running(Arc::clone(canceller));
                true
            }
            Phase::Running(_) | Phase::Finished | Phase::Cancelled { .. } => false,
        }
    }

    /// The run has returned. After this, no cancel of this job can reach the lane. Whether somebody still waits for it.
    pub(crate) fn finish(&self) -> bool {
        let mut phase = self.phase.lock();
        if let Phase::Running(_) = *phase {
            *phase = Phase::Finished;
        }
        matches!(*phase, Phase::Finished)
    }

    /// The run has failed, and not by a cancel: the job waits again. False when it was cancelled meanwhile.
    pub(crate) fn again(&self) -> bool {
        let mut phase = self.phase.lock();
        if let Phase::Running(_) = *phase {
            *phase = Phase::Waiting;
        }
        matches!(*phase, Phase::Waiting)
    }

    /// The answer is not wanted any more: stops the run, or keeps it from beginning.
    ///
    /// True when the job lies in the queue still, for a lane to clear away.
    pub(crate) fn cancel(&self) -> bool {
        let mut phase = self.phase.lock();
        match &*phase {
            Phase::Waiting => {
                *phase = Phase::Cancelled { begun: false };
                true
            }
            Phase::Running(canceller) => {
                // Under the lock, so that `finish` waits and the lane cannot be at another job meanwhile.
                canceller.cancel();
                *phase = Phase::Cancelled { begun: true };
                false
            }
            Phase::Finished | Phase::Cancelled { .. } => false,
        }
    }

    /// Whether a lane has taken the job up.
    pub(crate) fn has_begun(&self) -> bool {
        matches!(
            *self.phase.lock(),
            Phase::Running(_) | Phase::Finished | Phase::Cancelled { begun: true }
        )
    }

    /// Whether the job was cancelled, before or while it ran.
    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(*self.phase.lock(), Phase::Cancelled { .. })
    }
}

/// Stops a run that computes for several, once none of them wants it.
pub(crate) struct SharedCancel {
    left: AtomicUsize,
    run: Arc<dyn Cancel>,
}

impl SharedCancel {
    /// Stops `run` when `jobs` have asked for it.
    pub(crate) fn new(jobs: usize, run: &Arc<dyn Cancel>) -> Arc<Self> {
        Arc::new(SharedCancel { left: AtomicUsize::new(jobs), run: Arc::clone(run) })
    }
}

impl Cancel for SharedCancel {
    fn cancel(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.run.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Cancel for Counter {
        fn cancel(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_cancel_reaches_its_own_run_and_no_other() {
        let lane = Arc::new(Counter::default());
        let canceller: Arc<dyn Cancel> = lane.clone();

        let waiting = RunToken::new();
        waiting.cancel();
        assert!(!waiting.begin(&canceller), "cancelled while waiting: must not run");
        assert_eq!(lane.0.load(Ordering::SeqCst), 0);
        assert!(!waiting.has_begun());

        let running = RunToken::new();
        assert!(running.begin(&canceller));
        running.cancel();
        running.cancel();
        assert_eq!(lane.0.load(Ordering::SeqCst), 1, "stopped once");
        running.finish();
        assert!(running.is_cancelled());
        // Whoever cancelled: the watchdog may have been a moment before the request itself.
        assert!(running.has_begun());

        let finished = RunToken::new();
        assert!(finished.begin(&canceller));
        finished.finish();
        finished.cancel();
        assert_eq!(lane.0.load(Ordering::SeqCst), 1, "a late cancel must not reach the lane");
        assert!(!finished.is_cancelled());
    }

    #[test]
    fn a_run_for_several_is_stopped_by_the_last_of_them() {
        let lane = Arc::new(Counter::default());
        let run: Arc<dyn Cancel> = lane.clone();
        let shared: Arc<dyn Cancel> = SharedCancel::new(3, &run);
        let tokens = [RunToken::new(), RunToken::new(), RunToken::new()];
        assert!(tokens.iter().all(|token| token.begin(&shared)));
        tokens[0].cancel();
        tokens[0].cancel();
        tokens[1].cancel();
        assert_eq!(lane.0.load(Ordering::SeqCst), 0, "somebody still waits");
        tokens[2].cancel();
        assert_eq!(lane.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_failed_run_may_be_tried_again_unless_nobody_waits() {
        let canceller: Arc<dyn Cancel> = Arc::new(Counter::default());
        let token = RunToken::new();
        assert!(token.begin(&canceller) && token.again() && token.begin(&canceller));
        token.cancel();
        assert!(!token.again() && !token.begin(&canceller));
    }
}
