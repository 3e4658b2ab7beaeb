//! The cards: what is rehearsed, what must come of it, and what it means when it does not. Data, and nothing else.

use serde::Serialize;
use std::time::Duration;

/// A card, by the name that `--cards` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Name {
    /// Eleven times what a model can carry.
    Overload,
    /// A run that waits and heeds no cancel.
    HungLane,
    /// A run that computes and heeds no cancel.
    SpinningLane,
    /// A run that panics.
    Panic,
    /// SIGSEGV in a run.
    Crash,
    /// One byte of a model changed on disk, then a load.
    CorruptedModel,
    /// A version that takes seconds to load.
    SlowLoad,
    /// Nothing can be written where the server writes.
    FullDisk,
    /// The worker is stopped, as by a debugger.
    Stop,
    /// Workers that die at their start.
    CrashLoop,
    /// Each run keeps memory.
    MemoryLeak,
}

/// What is expected of a card. Each bound is one that a broken server misses, and a busy machine does not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bounds {
    /// How long the server may take to notice; none where there is nothing to be noticed.
    pub(super) detected: Option<Duration>,
    /// How long until answers are right, the server is ready and nothing is amiss any more.
    pub(super) healed: Duration,
    /// Workers that are replaced, at least and at most.
    pub(super) workers: (u64, u64),
    /// Requests that may be lost: those under way on a worker that was killed.
    pub(super) lost: u64,
    /// Whether `/ready` has to stay true all the time.
    pub(super) stays_ready: bool,
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Card {
    pub(super) name: Name,
    /// In a few words.
    pub(super) title: &'static str,
    /// What is done to the server, and what is expected of it.
    pub(super) about: &'static str,
    pub(super) bounds: Bounds,
    /// How long it is watched at most.
    pub(super) patience: Duration,
    /// What it means when it fails.
    pub(super) meaning: &'static str,
    /// And what to do then.
    pub(super) remedy: &'static str,
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Requests that may be under way on one worker under the drill's light load.
const UNDER_WAY: u64 = 16;
const LANE: Bounds = Bounds {
    detected: Some(seconds(10)),
    healed: seconds(15),
    workers: (0, 0),
    lost: 0,
    stays_ready: false,
};
const WORKER: Bounds = Bounds {
    detected: Some(seconds(5)),
    healed: seconds(15),
    workers: (1, 1),
    lost: UNDER_WAY,
    stays_ready: false,
};

/// Every card, in the order in which they are played.
pub(super) const CARDS: &[Card] = &[
    Card {
        name: Name::Overload,
        title: "eleven times the load",
        about: "One model is asked eleven times as often as it can answer. Most requests are turned away at once; those that are let in \
                are answered as if nothing were, and no probe notices.",
        bounds: Bounds {
            detected: Some(seconds(5)),
            healed: seconds(5),
            workers: (0, 0),
            lost: 0,
            stays_ready: true,
        },
        patience: seconds(40),
        meaning: "Under overload this server gives up work that it could do, or is taken for dead.",
        remedy: "Look at the model's limits (max_wait_ms, max_in_flight) and at admission in the configuration: docs/overload.md.",
    },
    Card {
        name: Name::HungLane,
        title: "a lane hangs",
        about: "A run waits for ever and heeds no cancel. Its request is answered 504 at its deadline, the lane is given up and another comes.",
        bounds: LANE,
        patience: seconds(40),
        meaning: "A run that never returns costs this server a lane for good.",
        remedy: "Look at the story in /status and at the model's deadlines: a grace is four of the longest usual runs. See docs/runbook.md.",
    },
    Card {
        name: Name::SpinningLane,
        title: "a lane spins",
        about: "The same, but the run computes for ever: it takes a core from the others.",
        bounds: LANE,
        patience: seconds(40),
        meaning: "A run that never ends costs this server a lane for good.",
        remedy: "As for a lane that hangs; and see that the server has more than one core.",
    },
    Card {
        name: Name::Panic,
        title: "a run panics",
        about: "A run panics. Its request is answered with an error, and a new lane comes.",
        bounds: LANE,
        patience: seconds(30),
        meaning: "A panic costs this server more than the request that it happened to.",
        remedy: "Look for `panicked` in the log, and at the lanes in /status.",
    },
    Card {
        name: Name::Crash,
        title: "the worker crashes",
        about: "SIGSEGV in a run, as a fault of a native library. Nobody is refused: connections wait for the next worker.",
        bounds: WORKER,
        patience: seconds(40),
        meaning: "A crash of a native library takes the server down, or for long.",
        remedy: "Look at `supervisor` in /status and at how long the models take to load: a new worker loads all of them.",
    },
    Card {
        name: Name::CorruptedModel,
        title: "a model is damaged on disk",
        about: "One byte of a model changes on disk, and it is loaded anew. The load is refused, and the version that serves goes on.",
        bounds: Bounds {
            detected: Some(seconds(10)),
            healed: seconds(5),
            workers: (0, 0),
            lost: 0,
            stays_ready: true,
        },
        patience: seconds(30),
        meaning: "Bytes that nobody vouches for would be served.",
        remedy: "Write a manifest (`balm manifest`), and see that repository.integrity is not off.",
    },
    Card {
        name: Name::SlowLoad,
        title: "a version loads slowly",
        about: "A further version takes three seconds longer to load. The one that serves goes on, and hands over when the other has proved itself.",
        bounds: Bounds {
            detected: None,
            healed: seconds(20),
            workers: (0, 0),
            lost: 0,
            stays_ready: true,
        },
        patience: seconds(60),
        meaning: "A load disturbs those who are served meanwhile.",
        remedy: "Look at the lanes and threads of the models: loads compete with runs for cores.",
    },
    Card {
        name: Name::FullDisk,
        title: "the disk is full",
        about: "Neither log nor journal nor termination log can be written, and the worker crashes. Serving goes on as if they could.",
        bounds: WORKER,
        patience: seconds(40),
        meaning: "A full disk stops the server.",
        remedy: "Look at what the server writes (log, lifecycle.crash_journal, lifecycle.termination_log), and report it.",
    },
    Card {
        name: Name::Stop,
        title: "the worker is stopped",
        about: "SIGSTOP: the worker is there and does nothing. Not ready within seconds, replaced after ten.",
        bounds: Bounds {
            detected: Some(seconds(6)),
            healed: seconds(25),
            workers: (1, 1),
            lost: UNDER_WAY,
            stays_ready: false,
        },
        patience: seconds(60),
        meaning: "A worker that stands still is taken for one that works.",
        remedy: "Look at `supervisor` in /status; the supervisor itself may get too little of the processor.",
    },
    Card {
        name: Name::CrashLoop,
        title: "workers die at their start",
        about: "The worker is killed, and the next two end at their start. Each waits longer for its turn; the one that can, serves.",
        bounds: Bounds {
            detected: Some(seconds(5)),
            healed: seconds(20),
            workers: (3, 3),
            lost: UNDER_WAY,
            stays_ready: false,
        },
        patience: seconds(60),
        meaning: "A fault that passes is not survived, or is tried again without a pause.",
        remedy: "Look at balm_worker_restarts_total and at the pauses in the log.",
    },
    Card {
        name: Name::MemoryLeak,
        title: "memory leaks",
        about: "Each run keeps some memory, 25 MiB a second, beneath a limit that is half a GiB above what the models need. Before it is \
                reached the worker is replaced in order, and no request is lost.",
        bounds: Bounds {
            detected: Some(seconds(60)),
            healed: seconds(70),
            workers: (1, 1),
            lost: 0,
            stays_ready: false,
        },
        patience: seconds(90),
        meaning: "A leak ends with the kernel's kill, which may take the whole container.",
        remedy: "Look at admission.memory_limit_bytes, or at the limit of the container: without one nobody knows what is too much.",
    },
];

impl Name {
    /// As `--cards` and the JSON write it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Name::Overload => "overload",
            Name::HungLane => "hung-lane",
            Name::SpinningLane => "spinning-lane",
            Name::Panic => "panic",
            Name::Crash => "crash",
            Name::CorruptedModel => "corrupted-model",
            Name::SlowLoad => "slow-load",
            Name::FullDisk => "full-disk",
            Name::Stop => "stop",
            Name::CrashLoop => "crash-loop",
            Name::MemoryLeak => "memory-leak",
        }
    }
}

/// The cards of these names, in the order in which they are played; all where none is named.
///
/// # Errors
/// A sentence that names what there is.
pub(super) fn chosen(names: &[String]) -> Result<Vec<&'static Card>, String> {
    let known = || CARDS.iter().map(|card| card.name.as_str());
    if let Some(unknown) = names.iter().find(|name| !known().any(|known| known == name.as_str())) {
        let all: Vec<&str> = known().collect();
        return Err(format!("--cards: there is no card {unknown:?}; there are {}", all.join(", ")));
    }
    let wanted =
        |card: &&Card| names.is_empty() || names.iter().any(|name| name == card.name.as_str());
    Ok(CARDS.iter().filter(wanted).collect())
}
