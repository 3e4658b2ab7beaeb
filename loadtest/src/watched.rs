//! A server watched as a kubelet watches it, for a caller who wants to know what the kubelet would have done.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::kubelet::{Event, Kind, Settings};
use crate::prober::Prober;

/// How often it looks, and how long it waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Between two polls of a probe.
    pub period: Duration,
    /// For one poll.
    pub timeout: Duration,
    /// Failures of `/live` in a row that are a restart.
    pub failures: u32,
    /// Failures of `/startup` in a row that are a restart.
    pub startup_failures: u32,
}

/// Polls `/startup`, `/live` and `/ready` until it is dropped or finished.
pub struct Watched(Prober);

/// What the kubelet has seen, and would have done.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Times that it would have killed the container.
    pub restarts: u32,
    /// Polls that it made.
    pub polls: u64,
    /// The longest that `/live` took to answer, milliseconds.
    pub live_max_ms: Option<f64>,
    /// When it would have ceased to send traffic, or would have gone on: seconds from the origin, and whether it is ready.
    pub readiness: Vec<(f64, bool)>,
}

impl Watched {
    /// Starts to watch the management port at that address.
    ///
    /// # Errors
    /// When there are no threads.
    pub fn start(address: SocketAddr, pace: Pace) -> Result<Watched> {
        let settings = Kind::ALL.map(|kind| Settings {
            period: pace.period,
            timeout: pace.timeout,
            failure_threshold: if kind == Kind::Startup {
                pace.startup_failures
            } else {
                pace.failures
            },
            ..Settings::new(kind)
        });
        Prober::start(address, &settings).map(Watched)
    }

    /// Ceases to watch. Moments count from `origin`.
    pub fn finish(self, origin: Instant) -> Seen {
        let probes = self.0.finish(origin);
        let readiness = probes.events.iter().filter_map(|event| match event.event {
            Event::BecameReady => Some((event.at_s, true)),
            Event::BecameUnready => Some((event.at_s, false)),
            Event::Started | Event::Restart => None,
        });
        let live = probes.probes.iter().find(|probe| probe.kind == Kind::Live);
        Seen {
            restarts: probes.restarts,
            polls: probes.probes.iter().map(|probe| probe.polls).sum(),
            live_max_ms: live.and_then(|live| Some(live.latency?.max)),
            readiness: readiness.collect(),
        }
    }
}
