//! Healing as whoever ticks and judges sees it: lanes, breakers and canaries, with each tick of the watchdog.

use super::canary::Health;
use super::{Model, Models};
use crate::healing::WorkerVerdict;
use crate::recorder::Recorder;
use crate::version::{Serving, unix_ms};
use balm_probes::breaker::BreakerState;
use balm_probes::quarantine::TRIAL_MS;
use balm_probes::{Quarantined, Reason, Rung, Sighting, Trouble, Usage};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// For so long a version that took over from another is new.
const TRIAL: Duration = Duration::from_millis(TRIAL_MS);
/// Between two loads of a version that answered wrongly: its files may be about to be replaced.
const LOAD_PAUSE: Duration = Duration::from_secs(1);

impl Models {
    /// The watchdog has ticked: looks at all lanes, tells runs past their deadline to end, and replaces lanes that hang; asks
    /// where nobody else asks, and heals what is no longer answered as recorded.
    ///
    /// `measured` is the time since the tick before, about [`TICK`](balm_probes::watchdog::TICK). Returns at once; what takes
    /// time is done on threads of its own. To be called by one thread.
    pub fn tick(&self, measured: Duration) {
        let now_ms = self.0.healing.tick(measured);
        // One a tick: where many models are idle, they are not to be busy all at once.
        let mut may_send = true;
        for model in self.0.table.load().values() {
            if model.look_at_breaker() == Some(BreakerState::Refusing) {
                self.judge_newcomer(model);
            }
            for serving in model.all_serving() {
                self.look_at_canary(model, &serving, now_ms, &mut may_send);
            }
        }
    }

    /// The event loop that feeds the models is so late with its answer to the watchdog, on that clock.
    ///
    /// What is told here is told only: whoever judges liveness by the same heartbeat is who acts.
    pub fn event_loop_lags(&self, lag: Duration) {
        if self.0.healing.event_loop_lags(lag) {
            self.0.changed();
        }
    }

    /// That this process cannot heal itself and should be replaced, once that is so. A supervisor ends it; where there is none,
    /// liveness fails by it.
    pub fn worker_verdict(&self) -> Option<&WorkerVerdict> {
        self.0.healing.verdict()
    }

    /// So much memory is used. Gives what to ask for because of it, at the first verdict and every half a minute while it lasts:
    /// whoever can should have this process finish what it has, and start another.
    ///
    /// To be called some four times a second, where there is a limit; `now_ms` is one monotonic clock's.
    pub fn memory_used(&self, usage: Usage, now_ms: u64) -> Option<WorkerVerdict> {
        let (news, verdict) = self.0.healing.memory(usage, now_ms);
        if news {
            self.0.changed();
        }
        verdict
    }

    /// What was asked for because of memory does not happen.
    pub fn memory_not_healed(&self) {
        if self.0.healing.memory_in_vain() {
            self.0.changed();
        }
    }

    /// Whether memory is judged now: it is not while something is loaded.
    pub fn memory_is_judged(&self) -> bool {
        !self.0.healing.is_memory_changing()
    }

    /// What is asked for because of memory, while that lasts.
    pub fn memory_verdict(&self) -> Option<WorkerVerdict> {
        self.0.healing.memory_verdict()
    }

    /// Has what runs written down by `recorder`, for whoever sees this process die. To be called before anything is loaded.
    pub fn record(&self, recorder: Recorder) {
        self.0.healing.record(recorder);
    }

    /// Says how much memory the process may use, bytes: lanes that hang may hold no more than a part of it.
    pub fn set_memory_limit(&self, bytes: u64) {
        self.0.healing.set_memory_limit(bytes);
    }

    fn look_at_canary(
        &self,
        model: &Arc<Model>,
        serving: &Arc<Serving>,
        now_ms: u64,
        may_send: &mut bool,
    ) {
        let mut canary = serving.canary.lock();
        let (health, sent) = canary.tick(model, serving, &self.0.gate, now_ms, *may_send);
        drop(canary);
        *may_send &= !sent;
        if let Health::Sick(why) = health {
            let subject = format!("model {:?} version {}", serving.model, serving.version);
            self.heal_version(model, serving, subject, why);
        }
    }

    /// What serves answers wrongly: nobody is answered by it any more, and it is loaded anew, with all its proofs.
    fn heal_version(&self, model: &Arc<Model>, serving: &Serving, subject: String, why: String) {
        tracing::error!(model = %serving.model, version = serving.version, why, "canary failed");
        serving.lanes.distrust(format!("golden requests fail: {why}"));
        let (reason, healing) = (Reason::Canary, &self.0.healing);
        healing.see(Sighting { subject: subject.clone(), reason, after_ms: 0 });
        let (models, model) = (self.clone(), Arc::clone(model));
        let name = model.name.clone();
        self.spawn_healer(&name, move || models.load_anew(&model, subject));
    }

    /// Loads what answered wrongly until it or another version of the model serves, as often as the ladder allows.
    fn load_anew(&self, model: &Model, subject: String) {
        let healing = &self.0.healing;
        for loads in 0.. {
            if model.withdrawn.load(Ordering::Acquire) {
                // Somebody has let it go meanwhile, and nothing is wrong with what is not there.
                break;
            }
            let decision = healing.decide(Trouble::CanaryFailed { loads });
            healing.did(&subject, decision.rung, decision.reason);
            self.0.changed();
            if decision.rung != Rung::Lane {
                return healing.give_up(decision, subject);
            }
            // What refuses it says so itself.
            let loaded = self.load_for(&model.name, false);
            if loaded.is_err() && model.serving(None).is_ok() {
                healing.did(&subject, Rung::Version, Reason::Canary);
            }
            if model.serving(None).is_ok() {
                break;
            }
            thread::sleep(LOAD_PAUSE);
        }
        healing.healed(&subject);
        self.0.changed();
    }
}

impl Models {
    /// Half of a model's results were the server's own errors. Where its version took over from another lately, that one takes over
    /// again, and this one is not tried any more.
    fn judge_newcomer(&self, model: &Arc<Model>) {
        let Some(serving) = model.current.load_full() else { return };
        let is_new = serving.took_over.is_some_and(|at| at.elapsed() < TRIAL);
        let has_another = model.versions.load().len() > 1;
        if !is_new || !has_another || !serving.is_trusted() {
            return;
        }
        let healing = &self.0.healing;
        let subject = format!("model {:?} version {}", serving.model, serving.version);
        let why = "half of its runs failed less than ten minutes after it took over".to_owned();
        tracing::error!(model = %serving.model, version = serving.version, why, "version does harm");
        let (reason, after_ms) = (Reason::VersionHarmful, 0);
        healing.see(Sighting { subject: subject.clone(), reason, after_ms });
        let decision = healing.decide(Trouble::VersionHarmful);
        healing.did(&subject, decision.rung, decision.reason);
        if decision.rung != Rung::Version {
            return healing.give_up(decision, subject);
        }
        self.0.did_harm(Quarantined {
            model: serving.model.clone(),
            version: serving.version,
            digest: serving.digest.clone(),
            reason: why.clone(),
            at_ms: unix_ms(),
        });
        serving.lanes.distrust(why);
        let (models, name) = (self.clone(), model.name.clone());
        self.spawn_healer(&model.name, move || {
            // The load of the version itself is refused, and says why; what counts is who serves then.
            let _refused = models.load_for(&name, false);
            if models.model(&name).is_ok_and(|model| model.serving(None).is_ok()) {
                models.0.healing.healed(&subject);
                models.0.changed();
            }
        });
    }

    fn spawn_healer(&self, model: &str, body: impl FnOnce() + Send + 'static) {
        let name: String = format!("heal-{model}").chars().take(15).collect();
        if let Err(error) = thread::Builder::new().name(name).spawn(body) {
            tracing::error!(%error, "healing thread not started");
        }
    }
}

impl Model {
    /// Says once when the breaker has come to do something else: what.
    fn look_at_breaker(&self) -> Option<BreakerState> {
        let now = self.gate.breaker();
        let before = std::mem::replace(&mut *self.breaker.lock(), now);
        if before != now {
            tracing::warn!(
                model = %self.name,
                from = before.as_str(),
                to = now.as_str(),
                "breaker"
            );
        }
        (before != now).then_some(now)
    }
}
