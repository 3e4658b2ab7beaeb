//! Healing: what the watchdog sees of the lanes, what the ladder decides about it, and the story that is told of it.
//!
//! Judgement is in `balm-probes`. Here is the edge: whoever ticks calls [`Models::tick`](crate::models::Models::tick), the lanes
//! are looked at, and what is decided is carried out by `lane/repair.rs`. What cannot be healed in this process is said by
//! [`WorkerVerdict`], for a supervisor to act on or for liveness to fail by.

mod memory;

use crate::lane::{Lanes, Watched};
use crate::metrics::HealMetrics;
use crate::models::Attempt;
use crate::recorder::{Recorder, Seat};
use crate::version::unix_ms;
use balm_probes::ladder::{Abandoned, Means};
use balm_probes::provider::{self, ProviderError};
use balm_probes::watchdog::{HangingLoads, Lag, Stall, TickClock, lag};
use balm_probes::{Decision, Incident, Incidents, Ladder, Reason, Rung, Sighting, Trouble};
pub(crate) use memory::Changing;
use memory::Memory;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

/// This process cannot heal itself: whoever can should end it and start another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerVerdict {
    /// Which rung was asked for, and why.
    pub decision: Decision,
    /// What it is about, for example `lane 0 of model "iris" version 1`.
    pub subject: String,
}

impl WorkerVerdict {
    /// One sentence for people, without its full stop.
    pub fn sentence(&self) -> String {
        format!(
            "{}; {}: {}",
            self.decision.rung.deed(),
            self.decision.reason.sentence(),
            self.subject
        )
    }
}

/// Watches the lanes of all models and keeps the books of their repairs.
pub(crate) struct Healing {
    state: Mutex<State>,
    watched: Mutex<Vec<Weak<Lanes>>>,
    /// Threads that were abandoned: their sign of life, and what they hold.
    abandoned: Mutex<Vec<(Weak<()>, u64)>>,
    /// Threads of loads that were abandoned: of which version, and their sign of life.
    hanging_loads: Mutex<Vec<(String, Weak<Attempt>)>>,
    /// The memory that the process may use, bytes; 0: nobody has set a limit.
    memory_limit: AtomicU64,
    verdict: OnceLock<WorkerVerdict>,
    memory: Memory,
    /// Where it is written what runs, where somebody can read it after this process.
    recorder: OnceLock<Recorder>,
    metrics: HealMetrics,
    born: Instant,
}

struct State {
    clock: TickClock,
    ladder: Ladder,
    incidents: Incidents,
    stall: Stall,
    lag: Lag,
}

impl Healing {
    pub(crate) fn new(metrics: HealMetrics) -> Self {
        Healing {
            state: Mutex::new(State {
                clock: TickClock::default(),
                ladder: Ladder::new(Means { version: true, ..Means::default() }),
                incidents: Incidents::default(),
                stall: Stall::default(),
                lag: Lag::Fine,
            }),
            watched: Mutex::default(),
            abandoned: Mutex::default(),
            hanging_loads: Mutex::default(),
            memory_limit: AtomicU64::new(0),
            verdict: OnceLock::new(),
            memory: Memory::default(),
            recorder: OnceLock::new(),
            metrics,
            born: Instant::now(),
        }
    }

    /// Looks at these lanes from now on, for as long as there are any.
    pub(crate) fn watch(&self, lanes: &Arc<Lanes>) {
        self.watched.lock().push(Arc::downgrade(lanes));
    }

    pub(crate) fn set_memory_limit(&self, bytes: u64) {
        self.memory_limit.store(bytes, Ordering::Relaxed);
    }

    /// The watchdog has ticked once more, after `measured`. Gives the time on its clock, milliseconds.
    pub(crate) fn tick(&self, measured: Duration) -> u64 {
        let now_ms = self.state.lock().clock.tick(measured);
        let lanes: Vec<Arc<Lanes>> = {
            let mut watched = self.watched.lock();
            watched.retain(|lanes| lanes.strong_count() > 0);
            watched.iter().filter_map(Weak::upgrade).collect()
        };
        let all =
            lanes.iter().map(|lanes| lanes.watch(now_ms)).fold(Watched::default(), |all, one| {
                Watched {
                    ended: all.ended.wrapping_add(one.ended),
                    running: all.running + one.running,
                    cancelled: all.cancelled + one.cancelled,
                    grace_ms: all.grace_ms.max(one.grace_ms),
                }
            });
        let Watched { ended, running, cancelled, grace_ms } = all;
        let stalled = self.state.lock().stall.observe(ended, running, cancelled, now_ms, grace_ms);
        if stalled && self.verdict.get().is_none() {
            let subject = "the lanes of all models".to_owned();
            self.see(Sighting { subject: subject.clone(), reason: Reason::Stall, after_ms: 0 });
            let decision = self.decide(Trouble::Stalled);
            self.did(&subject, decision.rung, decision.reason);
            self.give_up(decision, subject);
        }
        now_ms
    }

    /// The event loop is so late. Whether an incident came of it, or ended.
    pub(crate) fn event_loop_lags(&self, late: Duration) -> bool {
        const SUBJECT: &str = "the event loop";
        self.metrics.event_loop_lag.set(late.as_secs_f64());
        let lag_ms = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
        let now = lag(lag_ms);
        let before = std::mem::replace(&mut self.state.lock().lag, now);
        match (before, now) {
            (Lag::Fine, Lag::Late) => tracing::warn!(lag_ms, "the event loop is late"),
            (Lag::Fine | Lag::Late, Lag::Wedged) => {
                let subject = SUBJECT.to_owned();
                self.see(Sighting { subject, reason: Reason::RuntimeWedged, after_ms: lag_ms });
                return true;
            }
            (Lag::Wedged, Lag::Fine | Lag::Late) => {
                self.healed(SUBJECT);
                return true;
            }
            _ => {}
        }
        false
    }

    /// Lanes that come from now on write down what they run. Only the first recorder that is given does so.
    pub(crate) fn record(&self, recorder: Recorder) {
        let _ = self.recorder.set(recorder);
    }

    /// Where a lane of this version writes down what it runs, if that is done.
    pub(crate) fn seat(&self, model: &str, version: u64, identity: u64) -> Option<Seat> {
        self.recorder.get()?.seat(model, version, identity)
    }

    /// What is to be done about `trouble`.
    pub(crate) fn decide(&self, trouble: Trouble) -> Decision {
        let mut state = self.state.lock();
        let now_ms = state.clock.now_ms();
        // Nobody here waits before a worker is replaced, so there is nothing to spread.
        state.ladder.decide(trouble, now_ms)
    }

    /// The lanes that were abandoned and live, and one more that would hold `bytes`.
    pub(crate) fn abandoned_with(&self, bytes: u64) -> Abandoned {
        let mut abandoned = self.abandoned.lock();
        abandoned.retain(|(life, _)| life.strong_count() > 0);
        let limit = self.memory_limit.load(Ordering::Relaxed);
        Abandoned {
            alive: u32::try_from(abandoned.len()).unwrap_or(u32::MAX),
            bytes: abandoned.iter().fold(bytes, |sum, (_, held)| sum.saturating_add(*held)),
            limit_bytes: (limit > 0).then_some(limit),
        }
    }

    /// A thread with this sign of life was abandoned, and `bytes` with it.
    pub(crate) fn abandon(&self, life: Weak<()>, bytes: u64) {
        self.abandoned.lock().push((life, bytes));
    }

    /// Threads that were abandoned and still live.
    pub(crate) fn abandoned_alive(&self) -> u32 {
        self.abandoned_with(0).alive
    }

    /// A load of `subject` was abandoned; its thread lives as long as `life`.
    pub(crate) fn abandon_load(&self, subject: &str, life: Weak<Attempt>) {
        self.hanging_loads.lock().push((subject.to_owned(), life));
    }

    /// The loads that were abandoned and still hang.
    pub(crate) fn hanging_loads(&self, subject: &str) -> HangingLoads {
        let mut hanging = self.hanging_loads.lock();
        hanging.retain(|(_, life)| life.strong_count() > 0);
        let of = |subject: &str| hanging.iter().filter(|(other, _)| other == subject).count();
        HangingLoads {
            of_version: u32::try_from(of(subject)).unwrap_or(u32::MAX),
            of_all: u32::try_from(hanging.len()).unwrap_or(u32::MAX),
        }
    }

    /// Something is wrong.
    pub(crate) fn see(&self, sighting: Sighting) {
        let after_ms = sighting.after_ms;
        let incident = self.state.lock().incidents.see(sighting, self.now_ms(), unix_ms());
        if incident.seen == 1 {
            self.metrics.detect_seconds.observe(seconds(after_ms));
        }
        tracing::warn!(
            incident = incident.id,
            subject = incident.subject,
            reason = incident.reason.as_str(),
            detected_after_ms = after_ms,
            "incident: seen"
        );
    }

    /// Something was done about it, or about nothing that was seen: a run that ended at its deadline is no incident.
    pub(crate) fn did(&self, subject: &str, rung: Rung, reason: Reason) {
        self.metrics.count(rung, reason);
        let incident = self.state.lock().incidents.act(subject, rung, reason, self.now_ms());
        if let Some(incident) = incident {
            tracing::warn!(
                incident = incident.id,
                subject,
                rung = rung.as_str(),
                reason = reason.as_str(),
                "incident: acted"
            );
        }
    }

    /// An error of the runtime in `subject`. Where it means that every later call of this process fails too, that is said, and the
    /// answer is yes: nothing is to be tried again here.
    pub(crate) fn is_provider_lost(&self, subject: &str, error: &str) -> bool {
        if provider::classify(error) != Some(ProviderError::Sticky) {
            return false;
        }
        if self.verdict.get().is_none() {
            let (subject, reason) = (subject.to_owned(), Reason::ProviderSticky);
            self.see(Sighting { subject: subject.clone(), reason, after_ms: 0 });
            let decision = self.decide(Trouble::ProviderFailed { sticky: true });
            self.did(&subject, decision.rung, decision.reason);
            self.give_up(decision, subject);
        }
        true
    }

    /// A run was told to end because its deadline was over.
    pub(crate) fn cancelled(&self) {
        self.metrics.count(Rung::Cancel, Reason::Deadline);
    }

    /// It is well again, if it was not.
    pub(crate) fn healed(&self, subject: &str) {
        let incident = self.state.lock().incidents.heal(subject, self.now_ms());
        let Some(incident) = incident else { return };
        let healed_after_ms = incident.healed_after_ms.unwrap_or(0);
        self.metrics.repair_seconds.observe(seconds(healed_after_ms));
        tracing::info!(
            incident = incident.id,
            subject,
            healed_after_ms,
            story = %incident.story,
            "incident: closed"
        );
    }

    /// Nothing in this process helps any more. The first such verdict stays.
    pub(crate) fn give_up(&self, decision: Decision, subject: String) {
        let verdict = self.verdict.get_or_init(|| WorkerVerdict { decision, subject });
        tracing::error!(reason = verdict.decision.reason.as_str(), "{}", verdict.sentence());
    }

    pub(crate) fn verdict(&self) -> Option<&WorkerVerdict> {
        self.verdict.get()
    }

    pub(crate) fn incidents(&self) -> Vec<Incident> {
        self.state.lock().incidents.all()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}
