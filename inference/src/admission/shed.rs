//! Being turned away: why, and when to come again.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Why a request was turned away. The names are label values and the `x-shed-reason` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShedReason {
    /// This model has as many requests in flight as it may.
    ModelInFlight,
    /// The server has as many requests in flight as it may.
    ServerInFlight,
    /// The bodies in flight would take more memory than they may.
    Bytes,
    /// The model's queue is full.
    QueueFull,
    /// The server is about to end.
    Draining,
    /// Those before it take longer than a request of its class may wait.
    Wait,
    /// Its client has more than its share of a queue that others wait in, too.
    ClientShare,
    /// Its deadline would be over before its answer.
    Infeasible,
    /// It waited longer than anybody was meant to: what is before it takes longer than it used to.
    Overdue,
    /// The memory of the container is nearly used up.
    Memory,
    /// Most of what the model answered lately were errors of the server's own.
    BreakerOpen,
}

impl ShedReason {
    /// Every reason, for metrics that are there before the first event.
    pub const ALL: [ShedReason; 11] = [
        ShedReason::ModelInFlight,
        ShedReason::ServerInFlight,
        ShedReason::Bytes,
        ShedReason::QueueFull,
        ShedReason::Draining,
        ShedReason::Wait,
        ShedReason::ClientShare,
        ShedReason::Infeasible,
        ShedReason::Overdue,
        ShedReason::Memory,
        ShedReason::BreakerOpen,
    ];

    /// Label value.
    pub const fn as_str(self) -> &'static str {
        match self {
            ShedReason::ModelInFlight => "model_in_flight",
            ShedReason::ServerInFlight => "server_in_flight",
            ShedReason::Bytes => "bytes_in_flight",
            ShedReason::QueueFull => "queue_full",
            ShedReason::Draining => "draining",
            ShedReason::Wait => "wait",
            ShedReason::ClientShare => "client_share",
            ShedReason::Infeasible => "infeasible",
            ShedReason::Overdue => "overdue",
            ShedReason::Memory => "memory",
            ShedReason::BreakerOpen => "breaker_open",
        }
    }

    /// A sentence for the client.
    pub const fn sentence(self) -> &'static str {
        match self {
            ShedReason::ModelInFlight => {
                "the model has as many requests in flight as it may (limits.max_in_flight)"
            }
            ShedReason::ServerInFlight => {
                "the server has as many requests in flight as it may (admission.max_in_flight)"
            }
            ShedReason::Bytes => {
                "the bodies in flight take as much memory as they may (admission.max_bytes_in_flight)"
            }
            ShedReason::QueueFull => "the model's queue is full",
            ShedReason::Draining => "the server is draining",
            ShedReason::Wait => "the requests before it take longer than one of its class may wait",
            ShedReason::ClientShare => {
                "this client has more than its share of the queue; others wait in it, too"
            }
            ShedReason::Infeasible => "its deadline would be over before its answer",
            ShedReason::Overdue => "it has waited longer than a request may wait",
            ShedReason::Memory => "the server's memory is nearly used up",
            ShedReason::BreakerOpen => {
                "most of what the model answered lately were errors of the server; it is tried again soon"
            }
        }
    }
}

impl fmt::Display for ShedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

/// A request that was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Shed {
    /// Why.
    pub reason: ShedReason,
    /// When it is worth trying again, seconds, 1 to [`RETRY_AFTER_MAX_S`].
    pub retry_after_s: u8,
}

/// The longest time that a client is sent away for, seconds.
pub const RETRY_AFTER_MAX_S: u8 = 30;
/// Clients that were turned away together are told so many different seconds, so that they do not come back together.
const JITTER_S: u64 = 3;

impl Shed {
    /// Turned away for a bound that has nothing to do with time.
    pub fn new(reason: ShedReason) -> Self {
        Shed::until(reason, Duration::ZERO)
    }

    /// Turned away until what is ahead is done, which takes `drain`.
    pub(super) fn until(reason: ShedReason, drain: Duration) -> Self {
        static TURNED_AWAY: AtomicU64 = AtomicU64::new(0);
        let count = TURNED_AWAY.fetch_add(1, Ordering::Relaxed);
        Shed { reason, retry_after_s: retry_after(drain, count) }
    }
}

/// Whole seconds until what is ahead is done, and up to two more, for the `count`th that is turned away.
fn retry_after(drain: Duration, count: u64) -> u8 {
    // Golden-ratio hashing: neighbours get different seconds, and in the long run each as many.
    let spread = count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let seconds = drain.as_millis().div_ceil(1000).max(1) + u128::from(spread % JITTER_S);
    u8::try_from(seconds).unwrap_or(u8::MAX).min(RETRY_AFTER_MAX_S)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn clients_are_sent_away_for_different_times() {
        let mut counts = BTreeMap::new();
        for count in 0..3000 {
            *counts.entry(retry_after(Duration::from_millis(200), count)).or_insert(0) += 1;
        }
        assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
        assert!(counts.values().all(|count| *count > 900), "{counts:?}");
        assert!(retry_after(Duration::from_millis(4_100), 0) >= 5);
        assert_eq!(retry_after(Duration::from_secs(1 << 40), 1), RETRY_AFTER_MAX_S);
    }

    #[test]
    fn discriminants_are_places() {
        for (index, reason) in ShedReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
