//! One try to load a version, as whoever waits for it sees it: how far it is, when its time is over, and what then.
//!
//! A load runs on a thread of its own, which may hang in a read or in foreign code. Then it is told to end, and where it does not,
//! left to itself: nothing that it still does is seen by anybody ([`Attempt::unless_given_up`]). Time is the waiter's own ticks,
//! so that a pause of the process is nobody's hang.

use super::candidate::{Candidate, Refusal};
use super::{Inner, Model};
use crate::engine::LoadToken;
use crate::healing::Changing;
use crate::integrity::Progress;
use crate::settings::ModelSettings;
use crate::version::Version;
use balm_probes::watchdog::{LoadVerdict, TICK, TickClock, judge_load, makes_way_after_ms};
use parking_lot::Mutex;
use std::sync::{Arc, Weak, mpsc};
use std::thread;
use std::time::Instant;

/// A load that takes longer says so this often, milliseconds.
const STILL_LOADING_EVERY_MS: u64 = 10_000;

/// Who wants a load.
pub(super) struct Order<'a> {
    /// Whether somebody asked for it: then also a version is tried that did harm before.
    pub(super) is_asked_for: bool,
    /// Is called once it takes so long that nobody should wait behind it.
    pub(super) makes_way: &'a mut dyn FnMut(),
}

/// What the thread of a load and whoever waits for it share.
pub(crate) struct Attempt {
    pub(super) token: LoadToken,
    pub(super) progress: Progress,
    stage: Mutex<Stage>,
    /// Until its last session is built, or it is given up.
    changing: Mutex<Option<Changing>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    UnderWay,
    /// What it brought serves.
    Serves,
    GivenUp,
}

/// How a try ended.
pub(super) enum Tried {
    /// The version serves, or the reason why not.
    Ended(Result<(), Refusal>),
    /// It did not end in its time.
    Overdue {
        /// Of its thread, where it does not end either.
        life: Option<Weak<Attempt>>,
    },
}

impl Attempt {
    fn new(changing: Changing) -> Self {
        Attempt {
            token: LoadToken::default(),
            progress: Progress::default(),
            stage: Mutex::new(Stage::UnderWay),
            changing: Mutex::new(Some(changing)),
        }
    }

    /// Does what others see of a load, unless it was given up.
    pub(super) fn unless_given_up<T>(&self, deed: impl FnOnce() -> T) -> Result<T, Refusal> {
        let stage = self.stage.lock();
        if *stage == Stage::GivenUp {
            return Err(Refusal::failed("it was told to end"));
        }
        Ok(deed())
    }

    /// Puts what was loaded in its place, unless it was given up.
    pub(super) fn serves(&self, deed: impl FnOnce() -> Result<(), Refusal>) -> Result<(), Refusal> {
        let mut stage = self.stage.lock();
        if *stage == Stage::GivenUp {
            return Err(Refusal::failed("it was told to end"));
        }
        deed()?;
        *stage = Stage::Serves;
        Ok(())
    }

    /// Nothing of it is seen any more. False when it serves already.
    fn give_up(&self) -> bool {
        let mut stage = self.stage.lock();
        if *stage == Stage::UnderWay {
            *stage = Stage::GivenUp;
            self.changing.lock().take();
        }
        *stage == Stage::GivenUp
    }
}

impl Inner {
    /// Loads a version once, on a thread of its own, and waits for it: no longer than `limit_ms` and the time that it has to
    /// end once it was told to. Where it takes long, others need not wait behind it.
    pub(super) fn try_version(
        self: &Arc<Self>,
        model: &Arc<Model>,
        version: &Arc<Version>,
        settings: &ModelSettings,
        limit_ms: u64,
        order: &mut Order<'_>,
    ) -> Tried {
        let attempt = Arc::new(Attempt::new(self.healing.memory_changes()));
        let (sender, receiver) = mpsc::sync_channel(1);
        let name = format!("load-{}", model.name).chars().take(15).collect();
        let spawned = thread::Builder::new().name(name).spawn({
            let (inner, model, version) =
                (Arc::clone(self), Arc::clone(model), Arc::clone(version));
            let (settings, attempt) = (settings.clone(), Arc::clone(&attempt));
            let is_asked_for = order.is_asked_for;
            move || {
                let _until_the_end = Arc::clone(&attempt);
                let candidate =
                    Candidate { inner, model, version, settings, attempt, is_asked_for };
                let (result, more) = match candidate.load() {
                    Ok(more) => (Ok(()), more),
                    Err(refusal) => (Err(refusal), None),
                };
                // Whoever waits goes on as soon as one lane serves.
                let _ = sender.send(result);
                if let Some(more) = more {
                    more.build();
                }
            }
        });
        if let Err(error) = spawned {
            let reason = format!("its loading thread did not start: {error}");
            return Tried::Ended(Err(Refusal::failed(reason)));
        }
        let mut waiting = Waiting { clock: TickClock::default(), cancelled_at: None, notices: 0 };
        let mut looked_at = Instant::now();
        let mut may_make_way = true;
        loop {
            match receiver.recv_timeout(TICK) {
                // What it says after it was told to end is that it was.
                Ok(Err(_told)) if waiting.cancelled_at.is_some() => {
                    return Tried::Overdue { life: None };
                }
                Ok(result) => return Tried::Ended(result),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Tried::Ended(Err(Refusal::failed("its loading thread panicked")));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            let age_ms = waiting.clock.tick(looked_at.elapsed());
            looked_at = Instant::now();
            if age_ms >= makes_way_after_ms(limit_ms) && std::mem::take(&mut may_make_way) {
                (order.makes_way)();
            }
            waiting.tell(age_ms, model, version, &attempt.progress);
            match judge_load(age_ms, limit_ms, waiting.cancelled_at.map(|at| age_ms - at)) {
                LoadVerdict::Nothing => {}
                LoadVerdict::Cancel => {
                    tracing::warn!(model = %model.name, version = version.number, limit_ms, "load told to end");
                    waiting.cancelled_at = Some(age_ms);
                    attempt.progress.stop();
                    attempt.token.cancel();
                }
                // It may have come to its end just before; then it says so in a moment.
                LoadVerdict::Hung if !attempt.give_up() => {}
                LoadVerdict::Hung => {
                    tracing::error!(model = %model.name, version = version.number, "load left to itself: it does not end");
                    return Tried::Overdue { life: Some(Arc::downgrade(&attempt)) };
                }
            }
        }
    }
}

/// Who waits for a load. Times on its own clock, milliseconds.
struct Waiting {
    clock: TickClock,
    /// When the load was told to end.
    cancelled_at: Option<u64>,
    /// How often it was said that it still loads.
    notices: u64,
}

impl Waiting {
    fn tell(&mut self, age_ms: u64, model: &Model, version: &Version, progress: &Progress) {
        if age_ms / STILL_LOADING_EVERY_MS <= self.notices {
            return;
        }
        self.notices += 1;
        tracing::info!(
            model = %model.name,
            version = version.number,
            phase = version.state().as_str(),
            read_bytes = progress.bytes_done(),
            of_bytes = progress.bytes_total(),
            elapsed_s = age_ms / 1_000,
            "still loading"
        );
    }
}
