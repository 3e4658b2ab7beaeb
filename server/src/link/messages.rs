//! What supervisor and worker say to each other.

use balm_probes::{Cause, HealthReport, Quarantined};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Version of the messages.
pub(crate) const PROTOCOL: u32 = 2;

/// From the supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// The first message, with which the listening socket of the data port comes.
    Hello(Hello),
    /// End in order: not ready, still serving for the delay, then no new connections, then the end.
    Drain,
    /// End now.
    DrainAtOnce,
    /// Take nothing more, finish what is under way and end: another takes its place.
    Recycle,
    /// It asked to be replaced and is not: that was done too often.
    Stay,
    /// Render the metrics.
    Metrics {
        /// Number of the question, to be given back.
        question: u64,
    },
    /// Say how everything stands.
    Status {
        /// Number of the question, to be given back.
        question: u64,
    },
}

/// What a worker has to know at its start, beyond the configuration, which it reads itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// [`PROTOCOL`] of the supervisor.
    pub(crate) protocol: u32,
    /// Which worker of this supervisor it is, from 1.
    pub(crate) generation: u64,
    /// What the socket is.
    pub(crate) socket: SocketKind,
    /// Versions that did harm in workers before.
    #[serde(default)]
    pub(crate) quarantine: Vec<Quarantined>,
}

/// What the handed socket is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SocketKind {
    /// TCP.
    Tcp,
    /// A unix socket.
    Unix(PathBuf),
}

/// From the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum ToSupervisor {
    /// The heartbeat.
    Tick(Tick),
    /// How everything stands: when it has changed, and when it was asked for.
    Report {
        /// The question that it answers, if any.
        question: Option<u64>,
        /// The report.
        report: HealthReport,
    },
    /// The metrics that were asked for, in Prometheus' text format.
    Metrics {
        /// The question.
        question: u64,
        /// The text.
        text: String,
    },
    /// Takes no connections any more.
    Closed,
    /// A request that was there at a crash was run by itself, and did no harm.
    Survived {
        /// Which.
        hash: u64,
    },
    /// Must be replaced, for a reason that it cannot mend itself.
    Replace {
        /// Which.
        cause: Cause,
        /// One sentence more, for the log.
        detail: String,
    },
}

/// The heartbeat of the worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tick {
    /// Ticks of its watchdog.
    pub(crate) ticks: u64,
    /// For how many of them the event loop has not answered.
    pub(crate) lag_ticks: u64,
    /// Requests between admission and the end of their run: what is lost if it dies now.
    pub(crate) in_flight: u64,
}
