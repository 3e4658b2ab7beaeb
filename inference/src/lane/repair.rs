//! Lanes that are lost, by a panic or a hang, and those that come in their place.
//!
//! After a panic the thread has ended and its session with it. A thread that hangs in foreign code cannot be ended: it is left
//! to itself with its session, which is lost memory for as long as it hangs, and therefore bounded (`balm_probes::ladder`).
//! What it owed is done here in its place: answers, permits, its place among the readers of the queue.

use super::post::{Look, Post};
use super::{Lanes, RESTARTS_MAX, RESTARTS_WINDOW_MS};
use crate::predict::PredictError;
use balm_probes::watchdog::{HungKind, LaneVerdict, build_limit_ms, grace_ms};
use balm_probes::{Reason, Rung, Sighting, Trouble};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// What the watchdog saw at the lanes of a version.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Watched {
    /// Runs that ended since the load.
    pub(crate) ended: u64,
    /// Runs in progress.
    pub(crate) running: u64,
    /// Those of them that were told to end.
    pub(crate) cancelled: u64,
    /// How long one has to end, milliseconds.
    pub(crate) grace_ms: u64,
}

impl Lanes {
    /// Looks at all lanes at `now_ms` on the clock of the watchdog, and does what is due.
    pub(crate) fn watch(self: &Arc<Self>, now_ms: u64) -> Watched {
        let grace_ms = grace_ms(self.longest.ms());
        let ended = self.ended.load(Ordering::Relaxed);
        let mut watched = Watched { ended, grace_ms, ..Watched::default() };
        let posts = self.posts.lock().clone();
        for post in posts {
            let look = post.look(now_ms, grace_ms);
            watched.running += u64::from(look.is_running);
            watched.cancelled += u64::from(look.is_cancelled);
            match look.verdict {
                // Whoever waits cancels by itself at its deadline; this is for those who cannot, because their threads hang.
                LaneVerdict::Nothing | LaneVerdict::Cancel => {}
                LaneVerdict::Hung(kind) => self.hung(&post, &look, kind),
            }
        }
        self.watch_builds(now_ms);
        watched
    }

    /// A session that is not built in its time is not waited for: another process may build it.
    fn watch_builds(&self, now_ms: u64) {
        let load_ms = u64::try_from(self.settings.load.as_millis()).unwrap_or(u64::MAX);
        let limit_ms = build_limit_ms(load_ms);
        let overdue: Vec<u32> = {
            let mut builds = self.builds.lock();
            let is_over = |(_, since): &mut (u32, Option<u64>)| {
                now_ms.saturating_sub(*since.get_or_insert(now_ms)) >= limit_ms
            };
            builds.extract_if(.., is_over).map(|(index, _)| index).collect()
        };
        for index in overdue {
            let subject = self.subject(index);
            let reason = Reason::LaneBuild;
            self.healing.see(Sighting { subject: subject.clone(), reason, after_ms: limit_ms });
            let decision = self.healing.decide(Trouble::LaneNotBuilt);
            self.healing.did(&subject, decision.rung, decision.reason);
            self.healing.give_up(decision, subject);
            (self.changed)();
        }
    }

    /// What incidents about a lane are about.
    pub(super) fn subject(&self, index: u32) -> String {
        format!("lane {index} of model {:?} version {}", self.label, self.settings.version)
    }

    /// A run was told to end and did not: the lane is left to itself, and another comes if there may be one.
    fn hung(self: &Arc<Self>, post: &Arc<Post>, look: &Look, kind: HungKind) {
        let Some((jobs, next)) = post.abandon(look.run) else { return };
        let index = post.index;
        self.posts.lock().retain(|other| !Arc::ptr_eq(other, post));
        self.queue.reader_lost();
        if let Some(turnstile) = &self.turnstile {
            turnstile.lost();
        }
        let subject = self.subject(index);
        let reason = Reason::hung(kind);
        self.healing.see(Sighting { subject: subject.clone(), reason, after_ms: look.since_ms });
        self.leaves(format!("lane {index} hangs ({}) and is being replaced", kind.as_str()));
        // Before anything that takes time: whoever waits behind the run that hangs is another lane's now.
        self.queue.put_back(next.into_iter());
        if jobs.iter().all(|job| Instant::now() >= job.deadline.at) {
            self.healing.cancelled();
        }
        for job in jobs {
            self.count_failed(&job, Instant::now());
            let error = job.deadline.error("ran");
            job.answer(Err(error));
        }
        if self.queue.is_closed() {
            // Its version was replaced or unloaded; no other comes for this lane, and none may be left for those who wait.
            self.healing.abandon(post.life(), self.settings.bytes);
            self.healing.healed(&subject);
            if self.condition.lock().healthy == 0 {
                self.answer_who_waits();
            }
            return;
        }
        let abandoned = self.healing.abandoned_with(self.settings.bytes);
        let decision = self.healing.decide(Trouble::LaneHung { kind, abandoned });
        self.healing.did(&subject, decision.rung, decision.reason);
        if decision.rung == Rung::Lane {
            self.healing.abandon(post.life(), self.settings.bytes);
            (self.changed)();
            self.rebuild(index);
        } else {
            self.healing.give_up(decision, subject);
            self.lost(format!(
                "lane {index} hangs ({}) and is not replaced: {}",
                kind.as_str(),
                decision.reason.sentence()
            ));
        }
    }

    /// A panic may have left the session in any state, so thread and session go, and a new pair comes.
    pub(super) fn panicked(self: &Arc<Self>, index: u32) {
        self.metrics.lane_restarts.inc();
        self.leaves(format!("lane {index} panicked and is being replaced"));
        if self.queue.is_closed() {
            // Its version was replaced or unloaded; nobody waits for this lane.
            return;
        }
        let subject = self.subject(index);
        self.healing.see(Sighting { subject: subject.clone(), reason: Reason::Panic, after_ms: 0 });
        let now_ms = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        if !self.budget.lock().try_spend(now_ms) {
            self.lost(format!(
                "lane {index} died more than {RESTARTS_MAX} times in {} s and is not replaced again",
                RESTARTS_WINDOW_MS / 1_000
            ));
            return;
        }
        self.healing.did(&subject, Rung::Lane, Reason::Panic);
        (self.changed)();
        self.rebuild(index);
    }

    /// A lane that was healthy is not there any more; another is to come.
    fn leaves(&self, trouble: String) {
        let mut condition = self.condition.lock();
        condition.healthy -= 1;
        condition.coming += 1;
        self.backlog.set_lanes(condition.healthy.min(self.running_max()));
        condition.trouble = Some(trouble);
    }

    /// Builds a session on a new thread, which is then the lane.
    fn rebuild(self: &Arc<Self>, index: u32) {
        let lanes = Arc::clone(self);
        self.builds.lock().push((index, None));
        let changing = self.healing.memory_changes();
        let started = self.spawn(index, move || {
            let built = catch_unwind(AssertUnwindSafe(|| (lanes.rebuild)()))
                .unwrap_or_else(|_panic| Err("building it panicked".to_owned()));
            drop(changing);
            lanes.builds.lock().retain(|(other, _)| *other != index);
            match built {
                Ok(session) => {
                    lanes.arrived(index, session.as_ref());
                    lanes.serve(index, session);
                }
                Err(reason) => lanes.lost(format!("lane {index} could not be built: {reason}")),
            }
        });
        if !started {
            self.builds.lock().retain(|(other, _)| *other != index);
            self.lost(format!("lane {index} could not be started again"));
        }
    }

    /// A lane that was coming will not come. With the last one, whoever waits is answered and nobody else is taken.
    pub(crate) fn lost(&self, reason: String) {
        tracing::error!(model = %self.label, reason, "lane lost");
        let hopeless = {
            let mut condition = self.condition.lock();
            condition.coming -= 1;
            condition.trouble = Some(reason);
            condition.is_hopeless()
        };
        if hopeless {
            self.close();
            self.answer_who_waits();
        }
        (self.changed)();
    }

    /// No lane will come for those who wait.
    pub(super) fn answer_who_waits(&self) {
        for job in self.queue.close_and_drain() {
            let lost = self.is_trusted().then_some(PredictError::LaneLost);
            job.answer(Err(lost.unwrap_or_else(|| self.refusal())));
        }
    }
}
