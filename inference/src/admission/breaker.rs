//! The breaker at the door of a model: judged by `balm-probes`, asked by every request.
//!
//! While everybody is let in, as nearly always, a request costs two atomics: one to look, one to be counted when it was
//! answered. Errors, and all requests while the breaker is not accepting, take a lock.

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use balm_probes::breaker::{Breaker, BreakerResult, BreakerState, Pass};
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// The breaker of one model.
#[derive(Debug)]
pub(super) struct BreakerGate {
    accepting: AtomicBool,
    /// Requests that were answered and that the breaker has not been told of.
    answered: AtomicU64,
    breaker: Mutex<Breaker>,
    born: Instant,
}

impl BreakerGate {
    pub(super) fn new() -> Self {
        BreakerGate {
            accepting: AtomicBool::new(true),
            answered: AtomicU64::new(0),
            breaker: Mutex::default(),
            born: Instant::now(),
        }
    }

    /// Lets a request in, or says how long it lets nobody in.
    pub(super) fn admit(&self, now: Instant) -> Result<Pass, Duration> {
        if self.accepting.load(Ordering::Acquire) {
            return Ok(Pass::FREE);
        }
        self.with(now, |breaker, now_ms| breaker.admit(now_ms)).map_err(Duration::from_millis)
    }

    /// A request that was let in has ended.
    pub(super) fn ended(&self, pass: Pass, result: BreakerResult) {
        match result {
            BreakerResult::Answered if pass == Pass::FREE => {
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
            BreakerResult::Neither if pass == Pass::FREE => {}
            result => {
                self.with(Instant::now(), |breaker, now_ms| breaker.ended(pass, result, now_ms));
            }
        }
    }

    /// Whether a canary is to be sent now. To be asked often: answers are counted in their time by it.
    pub(super) fn wants_canary(&self, now: Instant) -> bool {
        self.with(now, |breaker, now_ms| breaker.wants_canary(now_ms))
    }

    /// The canary came back.
    pub(super) fn canary(&self, result: BreakerResult, now: Instant) {
        self.with(now, |breaker, now_ms| breaker.canary(result, now_ms));
    }

    pub(super) fn state(&self) -> BreakerState {
        self.breaker.lock().state()
    }

    fn with<R>(&self, now: Instant, act: impl FnOnce(&mut Breaker, u64) -> R) -> R {
        let since = now.saturating_duration_since(self.born).as_millis();
        let now_ms = u64::try_from(since).unwrap_or(u64::MAX);
        let mut breaker = self.breaker.lock();
        let answered = self.answered.swap(0, Ordering::Relaxed);
        if answered > 0 {
            breaker.answered(answered, now_ms);
        }
        let result = act(&mut breaker, now_ms);
        self.accepting.store(breaker.state() == BreakerState::Accepting, Ordering::Release);
        result
    }
}
