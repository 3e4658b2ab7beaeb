//! Polls the probes as a kubelet does, on threads of their own: the generator's load cannot delay them more than the
//! machine itself does.
//!
//! Every poll opens a connection of its own, and has its whole time for connecting, asking and reading.

mod poll;

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;

use crate::kubelet::{Event, Kind, Kubelet, Settings};
use crate::load::record::record;
use crate::result::{Latencies, Probe, ProbeEvent, ProbeFailure, Probes};

/// Changes and failures that are kept; they are counted beyond.
const KEPT_MAX: usize = 1000;
/// Points of a plot; beyond, every other is dropped.
const POINTS_MAX: usize = 4000;

/// The threads that poll.
pub(crate) struct Prober {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    address: SocketAddr,
}

struct Shared {
    state: Mutex<State>,
    /// Rung when a thread should look again: at the end, and when startup has succeeded.
    changed: Condvar,
    start: Instant,
}

struct State {
    kubelet: Kubelet,
    ended: bool,
    ready_false: u32,
    /// Readiness is to be polled at once, not at its next tick.
    triggered: bool,
    events: Vec<(Instant, Kind, Event)>,
    seen: Vec<Seen>,
}

/// What one probe has seen.
struct Seen {
    settings: Settings,
    polls: u64,
    failures: u64,
    failed: Vec<(Instant, String)>,
    times_us: Histogram<u64>,
    points: Vec<(Instant, Duration)>,
    /// Every so manieth poll becomes a point.
    stride: u64,
}

// ===== impl Prober =====

impl Prober {
    /// Starts polling; the container counts as started now.
    pub(crate) fn start(address: SocketAddr, probes: &[Settings]) -> Result<Prober> {
        let seen = probes.iter().map(|settings| {
            Ok(Seen {
                settings: settings.clone(),
                polls: 0,
                failures: 0,
                failed: Vec::new(),
                times_us: Histogram::new(3)?,
                points: Vec::new(),
                stride: 1,
            })
        });
        let state = State {
            kubelet: Kubelet::new(probes.to_vec()),
            ended: false,
            ready_false: 0,
            triggered: false,
            events: Vec::new(),
            seen: seen.collect::<Result<_>>()?,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            start: Instant::now(),
        });
        let mut prober = Prober { shared, threads: Vec::new(), address };
        for (index, settings) in probes.iter().enumerate() {
            let (shared, settings) = (Arc::clone(&prober.shared), settings.clone());
            let name = format!("probe-{}", settings.kind.name());
            let polling = move || shared.poll_until_ended(index, &settings, address);
            prober.threads.push(thread::Builder::new().name(name).spawn(polling)?);
        }
        Ok(prober)
    }

    /// Ends polling and says what was seen; moments count from `origin`.
    pub(crate) fn finish(mut self, origin: Instant) -> Probes {
        self.end();
        for thread in self.threads.drain(..) {
            // One that panicked has said so, and the others' figures stand.
            let _ = thread.join();
        }
        let state = self.shared.lock();
        let at = |moment: Instant| match moment.checked_duration_since(origin) {
            Some(after) => after.as_secs_f64(),
            None => -(origin - moment).as_secs_f64(),
        };
        let events = state.events.iter().map(|(moment, probe, event)| ProbeEvent {
            at_s: at(*moment),
            probe: *probe,
            event: *event,
        });
        Probes {
            address: self.address.to_string(),
            seconds: self.shared.start.elapsed().as_secs_f64(),
            restarts: state.kubelet.restarts(),
            ready_false: state.ready_false,
            ready: state.kubelet.is_ready(),
            events: events.collect(),
            probes: state.seen.iter().map(|seen| seen.summed_up(at)).collect(),
        }
    }

    fn end(&self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.end();
    }
}

// ===== impl Shared =====

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done in there.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_until_ended(&self, index: usize, settings: &Settings, address: SocketAddr) {
        let mut tick = self.start;
        while self.wait(settings.kind, tick) {
            let now = Instant::now();
            if self.lock().kubelet.polls(settings.kind, now - self.start) {
                let polled = poll::poll(address, &settings.path, settings.timeout);
                self.note(index, now, polled);
            }
            // A ticker drops the ticks that nobody had time for.
            while tick <= Instant::now() {
                tick += settings.period;
            }
        }
    }

    /// Waits for the next tick, or for startup to succeed; false when polling ends.
    fn wait(&self, kind: Kind, tick: Instant) -> bool {
        let mut state = self.lock();
        loop {
            if state.ended {
                return false;
            }
            if kind == Kind::Ready && std::mem::take(&mut state.triggered) {
                return true;
            }
            let left = tick.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn note(&self, index: usize, begun: Instant, polled: Result<(), String>) {
        let took = begun.elapsed();
        let mut state = self.lock();
        let success = polled.is_ok();
        let Some(seen) = state.seen.get_mut(index) else { return };
        seen.note(begun, took, polled);
        let kind = seen.settings.kind;
        if let Some(event) = state.kubelet.observe(kind, success) {
            state.ready_false += u32::from(event == Event::BecameUnready);
            if state.events.len() < KEPT_MAX {
                state.events.push((Instant::now(), kind, event));
            }
            if event == Event::Started {
                state.triggered = true;
                self.changed.notify_all();
            }
        }
    }
}

// ===== impl Seen =====

impl Seen {
    fn note(&mut self, begun: Instant, took: Duration, polled: Result<(), String>) {
        record(&mut self.times_us, took);
        if let Err(why) = polled {
            self.failures += 1;
            if self.failed.len() < KEPT_MAX {
                self.failed.push((begun, why));
            }
        }
        if self.polls.is_multiple_of(self.stride) {
            self.points.push((begun, took));
        }
        self.polls += 1;
        if self.points.len() >= POINTS_MAX {
            let mut keep = false;
            self.points.retain(|_| {
                keep = !keep;
                keep
            });
            self.stride *= 2;
        }
    }

    fn summed_up(&self, at: impl Fn(Instant) -> f64) -> Probe {
        let failed = |(moment, why): &(Instant, String)| ProbeFailure {
            at_s: at(*moment),
            why: why.clone(),
        };
        Probe {
            kind: self.settings.kind,
            path: self.settings.path.clone(),
            polls: self.polls,
            failures: self.failures,
            failed: self.failed.iter().map(failed).collect(),
            latency: Latencies::of(&self.times_us),
            points: self
                .points
                .iter()
                .map(|(moment, took)| (at(*moment), took.as_secs_f64() * 1e3))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests;
