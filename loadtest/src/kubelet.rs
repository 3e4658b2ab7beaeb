//! What a kubelet would make of the answers to its probes: pure, no clock, no sockets.
//!
//! Follows the worker of `pkg/kubelet/prober`: readiness begins as a failure, liveness as a success, startup as
//! unknown; a state changes only after so many equal results in a row; until startup has succeeded the others are not
//! polled; after a liveness or startup failure the worker is on hold until there is a new container. Nothing here
//! restarts anything, so a container that would have been killed stays on hold, and is counted once per probe.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Live,
    Ready,
    Startup,
}

/// How a probe is polled, with the meaning that Kubernetes gives to each.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) kind: Kind,
    pub(crate) path: String,
    pub(crate) period: Duration,
    pub(crate) timeout: Duration,
    pub(crate) failure_threshold: u32,
    pub(crate) success_threshold: u32,
    pub(crate) initial_delay: Duration,
}

/// What a change means to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event {
    /// The container counts as started: the other probes begin, readiness at once.
    Started,
    /// Traffic is sent from here on.
    BecameReady,
    /// And no more.
    BecameUnready,
    /// The container would be killed.
    Restart,
}

/// One container and its probes.
#[derive(Debug)]
pub(crate) struct Kubelet {
    workers: Vec<Worker>,
    started: bool,
    ready: bool,
    restarts: u32,
}

/// One probe's goroutine.
#[derive(Debug)]
struct Worker {
    settings: Settings,
    /// What is believed; unknown before startup has said anything.
    state: Option<bool>,
    last: Option<bool>,
    run: u32,
    on_hold: bool,
}

// ===== impl Kind, Settings =====

impl Kind {
    pub(crate) const ALL: [Kind; 3] = [Kind::Live, Kind::Ready, Kind::Startup];

    /// As scenarios and figures write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Live => "live",
            Kind::Ready => "ready",
            Kind::Startup => "startup",
        }
    }

    /// The kind of that name.
    pub(crate) fn parse(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl Settings {
    /// What Kubernetes does when nothing is said.
    pub(crate) fn new(kind: Kind) -> Settings {
        Settings {
            kind,
            path: format!("/{}", kind.name()),
            period: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            failure_threshold: 3,
            success_threshold: 1,
            initial_delay: Duration::ZERO,
        }
    }
}

// ===== impl Kubelet =====

impl Kubelet {
    /// A container that has just been started.
    pub(crate) fn new(probes: Vec<Settings>) -> Kubelet {
        let started = !probes.iter().any(|probe| probe.kind == Kind::Startup);
        let worker = |settings: Settings| Worker {
            state: match settings.kind {
                Kind::Live => Some(true),
                Kind::Ready => Some(false),
                Kind::Startup => None,
            },
            settings,
            last: None,
            run: 0,
            on_hold: false,
        };
        // Without a readiness probe a started container is ready.
        let ready = started && !probes.iter().any(|probe| probe.kind == Kind::Ready);
        Kubelet { workers: probes.into_iter().map(worker).collect(), started, ready, restarts: 0 }
    }

    /// Whether a tick of that probe, so long after the container's start, polls the container at all.
    pub(crate) fn polls(&self, kind: Kind, since_start: Duration) -> bool {
        let Some(worker) = self.worker(kind) else { return false };
        // The kubelet compares whole seconds.
        !worker.on_hold
            && since_start.as_secs() >= worker.settings.initial_delay.as_secs()
            && (kind == Kind::Startup) != self.started
    }

    /// Takes note of a result; what follows from it.
    pub(crate) fn observe(&mut self, kind: Kind, success: bool) -> Option<Event> {
        let worker = self.workers.iter_mut().find(|worker| worker.settings.kind == kind)?;
        if worker.on_hold {
            return None;
        }
        worker.run = if worker.last == Some(success) { worker.run.saturating_add(1) } else { 1 };
        worker.last = Some(success);
        let threshold = if success {
            worker.settings.success_threshold
        } else {
            worker.settings.failure_threshold
        };
        if worker.run < threshold {
            return None;
        }
        let before = worker.state.replace(success);
        match (kind, success) {
            (Kind::Live | Kind::Startup, false) => {
                worker.on_hold = true;
                worker.run = 0;
                self.restarts += 1;
                Some(Event::Restart)
            }
            (Kind::Startup, true) => {
                self.started = true;
                self.ready |= self.worker(Kind::Ready).is_none();
                Some(Event::Started)
            }
            (Kind::Ready, _) if before != Some(success) => {
                self.ready = success;
                Some(if success { Event::BecameReady } else { Event::BecameUnready })
            }
            (Kind::Ready | Kind::Live, _) => None,
        }
    }

    /// Times that a container would have been killed.
    pub(crate) fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Whether a Service would send traffic.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready
    }

    fn worker(&self, kind: Kind) -> Option<&Worker> {
        self.workers.iter().find(|worker| worker.settings.kind == kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Event::{BecameReady, BecameUnready, Restart, Started};

    const SECOND: Duration = Duration::from_secs(1);

    fn settings(kind: Kind, failures: u32, successes: u32) -> Settings {
        Settings {
            failure_threshold: failures,
            success_threshold: successes,
            ..Settings::new(kind)
        }
    }

    /// Feeds results, `+` for a success, and collects what follows from each.
    fn feed(kubelet: &mut Kubelet, kind: Kind, results: &str) -> Vec<Option<Event>> {
        results.chars().map(|result| kubelet.observe(kind, result == '+')).collect()
    }

    #[test]
    fn states_change_after_so_many_in_a_row() {
        let none = None;
        for (kind, failures, successes, results, events) in [
            // Readiness begins as a failure: more of them are no change.
            (Kind::Ready, 3, 1, "---", vec![none, none, none]),
            (Kind::Ready, 3, 1, "+", vec![Some(BecameReady)]),
            (Kind::Ready, 3, 2, "++", vec![none, Some(BecameReady)]),
            (Kind::Ready, 3, 2, "+-++", vec![none, none, none, Some(BecameReady)]),
            (
                Kind::Ready,
                2,
                1,
                "+-+--+",
                vec![Some(BecameReady), none, none, none, Some(BecameUnready), Some(BecameReady)],
            ),
            (
                Kind::Ready,
                2,
                1,
                "+----",
                vec![Some(BecameReady), none, Some(BecameUnready), none, none],
            ),
            // Liveness begins as a success and is over after one failure of its threshold.
            (Kind::Live, 3, 1, "--+--", vec![none; 5]),
            (Kind::Live, 3, 1, "--+---", vec![none, none, none, none, none, Some(Restart)]),
            (Kind::Live, 1, 1, "-", vec![Some(Restart)]),
            (Kind::Live, 1, 1, "---+", vec![Some(Restart), none, none, none]),
            (Kind::Startup, 3, 1, "--+", vec![none, none, Some(Started)]),
            (Kind::Startup, 2, 1, "--+", vec![none, Some(Restart), none]),
        ] {
            let mut kubelet = Kubelet::new(vec![settings(kind, failures, successes)]);
            assert_eq!(feed(&mut kubelet, kind, results), events, "{kind:?} {results}");
        }
    }

    #[test]
    fn startup_suspends_the_others() {
        let mut kubelet = Kubelet::new(Kind::ALL.map(Settings::new).to_vec());
        let polled = |kubelet: &Kubelet| Kind::ALL.map(|kind| kubelet.polls(kind, SECOND));
        assert_eq!(polled(&kubelet), [false, false, true]);
        assert_eq!(feed(&mut kubelet, Kind::Startup, "--"), [None, None]);
        assert_eq!(polled(&kubelet), [false, false, true]);
        assert_eq!(feed(&mut kubelet, Kind::Startup, "+"), [Some(Started)]);
        assert_eq!(polled(&kubelet), [true, true, false]);
        assert!(!kubelet.is_ready());
    }

    #[test]
    fn without_a_startup_probe_the_others_begin_at_once() {
        let kubelet = Kubelet::new(vec![Settings::new(Kind::Live)]);
        assert!(kubelet.polls(Kind::Live, Duration::ZERO) && kubelet.is_ready());
        assert!(!kubelet.polls(Kind::Ready, SECOND) && !kubelet.polls(Kind::Startup, SECOND));
        let mut kubelet = Kubelet::new(vec![Settings::new(Kind::Startup)]);
        assert!(!kubelet.is_ready());
        kubelet.observe(Kind::Startup, true);
        assert!(kubelet.is_ready());
    }

    #[test]
    fn the_initial_delay_is_in_whole_seconds() {
        let delayed =
            Settings { initial_delay: Duration::from_millis(2900), ..Settings::new(Kind::Live) };
        let kubelet = Kubelet::new(vec![delayed]);
        assert!(!kubelet.polls(Kind::Live, Duration::from_millis(1999)));
        assert!(kubelet.polls(Kind::Live, Duration::from_millis(2000)));
    }

    #[test]
    fn on_hold_after_a_failure_readiness_goes_on() {
        let mut kubelet =
            Kubelet::new(vec![settings(Kind::Live, 1, 1), settings(Kind::Ready, 1, 1)]);
        kubelet.observe(Kind::Ready, true);
        assert_eq!(kubelet.observe(Kind::Live, false), Some(Restart));
        assert!(!kubelet.polls(Kind::Live, SECOND) && kubelet.polls(Kind::Ready, SECOND));
        assert_eq!(kubelet.observe(Kind::Ready, false), Some(BecameUnready));
        assert_eq!((kubelet.restarts(), kubelet.is_ready()), (1, false));
    }
}
