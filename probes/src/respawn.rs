//! The life of the worker, decided: when it is declared dead, when the next one starts, when that is given up.
//!
//! [`Respawn::step`] is a function of what is known, what happened, and a clock that is made of the supervisor's own
//! ticks. Each tick adds what was measured, two ticks at most: while the whole group of processes is stopped or
//! throttled the clock stands still with the worker's, and nobody is declared dead for it.
//!
//! ```text
//! Running ─ended─▶ Waiting ─due─▶ Running          a worker that ended is replaced, after a pause that grows
//! Running ─verdict or request─▶ Killing ─ended─▶ Waiting
//! Running ─request, for its memory─▶ Recycling ─ended─▶ Running     in order: nothing in flight is lost, nobody waits longer than for a load
//! Waiting, Killing ─too often, or it cannot be killed─▶ Fatal ─▶ the process ends
//! Fatal ─for the third time for one cause─▶ Parked ─something changed─▶ Running
//! any ─told─▶ Draining ─ended─▶ the process ends
//! ```

mod cause;

pub use cause::{Cause, End};

use crate::budget::RepairBudget;

/// One tick of the supervisor, and of the worker, in milliseconds.
pub const TICK_MS: u64 = 100;

/// The figures of the decision. All times in milliseconds of the clock of ticks, unless it is said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RespawnPolicy {
    /// A worker whose tick counter stands still for longer is dead.
    pub silence_ms: u64,
    /// A worker whose event loop has not answered for longer is wedged.
    pub lag_ms: u64,
    /// From this much silence or lag on nothing is to be expected of the worker, and the server is not ready.
    pub doubt_ms: u64,
    /// Pauses before the next worker, by how many were started within the window. The last one stays.
    pub backoff_ms: [u64; 5],
    /// Workers that may be started within the window, the first of all not counted.
    pub restarts_max: usize,
    /// The window.
    pub window_ms: u64,
    /// Workers that may be replaced in order within the window. One more is asked for in vain.
    pub recycles_max: usize,
    /// A killed worker that has not ended after this time never will.
    pub unkillable_ms: u64,
    /// How long the end is seen by probes before it comes.
    pub fatal_linger_ms: u64,
    /// So many ends for the same cause
    pub park_after: usize,
    /// within this time, wall clock, park the server.
    pub park_window_ms: u64,
    /// How long a drain may take before the worker is killed.
    pub drain_ms: u64,
}

impl Default for RespawnPolicy {
    fn default() -> Self {
        RespawnPolicy {
            silence_ms: 10_000,
            lag_ms: 10_000,
            doubt_ms: 2_000,
            backoff_ms: [0, 200, 1_000, 5_000, 15_000],
            restarts_max: 5,
            window_ms: 5 * 60 * 1000,
            recycles_max: 5,
            unkillable_ms: 10_000,
            fatal_linger_ms: 1_000,
            park_after: 3,
            park_window_ms: 30 * 60 * 1000,
            drain_ms: 40_000,
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The supervisor looked around, so many milliseconds after it did so last.
    Tick {
        /// Measured with a monotonic clock.
        measured_ms: u64,
    },
    /// The worker said so: its tick counter, and for how many of its ticks its event loop has been silent.
    Heard {
        /// Its counter.
        ticks: u64,
        /// Its lag.
        lag_ticks: u64,
    },
    /// A prediction would have worked.
    Ready,
    /// The worker wants to be replaced.
    Asked(Cause),
    /// The worker has ended.
    Ended {
        /// How.
        end: End,
        /// Any number, to spread pauses.
        spread: u64,
    },
    /// The worker could not be started at all.
    NotStarted {
        /// Any number, to spread pauses.
        spread: u64,
    },
    /// Somebody wants the server to end.
    Told,
    /// Configuration or models are not what they were.
    Changed,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a worker.
    Spawn,
    /// Kill the worker, which cannot be asked.
    Kill,
    /// Ask the worker to drain.
    Drain,
    /// Ask the worker to finish what it has, for another takes its place.
    Recycle,
    /// Tell the worker that it stays: it asked too often.
    Stay(Cause),
    /// Ask the worker to end now.
    DrainAtOnce,
    /// Write down that the server gives up, for the next one.
    Record(Cause),
    /// End this process.
    Exit(Departure),
}

/// How the supervisor ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// As the worker did: with its exit code.
    AsWorker(i32),
    /// There was no worker to wait for.
    Drained,
    /// The drain was cut short.
    Interrupted,
    /// Given up.
    GaveUp(Cause),
}

/// Where the life of the worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A worker runs.
    Running,
    /// It was killed and has not ended yet.
    Killing {
        /// Why.
        cause: Cause,
        /// Since when.
        since_ms: u64,
    },
    /// It finishes what it has, for another takes its place.
    Recycling {
        /// Why.
        cause: Cause,
        /// When it is killed.
        until_ms: u64,
    },
    /// None runs. The next one starts when the pause is over.
    Waiting {
        /// Why the last one is gone.
        cause: Cause,
        /// When the pause is over.
        until_ms: u64,
    },
    /// Told to end, waiting for the worker to.
    Draining {
        /// When it is killed.
        until_ms: u64,
        /// Told a second time, or out of patience.
        cut: bool,
    },
    /// Stays up, without a worker, so that it can be asked why.
    Parked {
        /// What it gave up for.
        cause: Cause,
    },
    /// Beyond repair.
    Fatal {
        /// What for.
        cause: Cause,
        /// When the process ends.
        until_ms: u64,
    },
    /// Nothing follows.
    Over,
}

/// An end of the server for want of a worker that lives, as the journal remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fatality {
    /// What for.
    pub cause: Cause,
    /// How long ago, by the wall clock, when this supervisor began.
    pub age_ms: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Respawn {
    policy: RespawnPolicy,
    clock_ms: u64,
    stage: Stage,
    budget: RepairBudget,
    recycles: RepairBudget,
    fatalities: Vec<Fatality>,
    watch: Watch,
    was_ready: bool,
}

/// What is known of the worker's heartbeat.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    ticks: u64,
    changed_ms: u64,
    lag_ticks: u64,
}

/// Whether a start that ends like this would end like this again: wrong configuration, refused models, no library, no
/// files (see the exit codes of `balm`).
fn is_hopeless(end: End) -> bool {
    matches!(end, End::Code(64 | 65 | 69 | 74))
}

// ===== impl Watch =====

impl Watch {
    fn silence_ms(&self, clock_ms: u64) -> u64 {
        clock_ms.saturating_sub(self.changed_ms)
    }

    fn lag_ms(&self) -> u64 {
        self.lag_ticks.saturating_mul(TICK_MS)
    }

    fn verdict(&self, clock_ms: u64, policy: &RespawnPolicy) -> Option<Cause> {
        if self.silence_ms(clock_ms) > policy.silence_ms {
            Some(Cause::Hang)
        } else if self.lag_ms() > policy.lag_ms {
            Some(Cause::Wedged)
        } else {
            None
        }
    }
}

// ===== impl Respawn =====

impl Respawn {
    /// A worker is being started. `earlier` is what the journal knows of servers before this one.
    ///
    /// After as many ends as park a server the new one gets a single worker: it is parked when that fails, too.
    pub fn new(policy: RespawnPolicy, earlier: Vec<Fatality>) -> Self {
        let mut respawn = Respawn {
            policy,
            clock_ms: 0,
            stage: Stage::Running,
            budget: RepairBudget::new(policy.restarts_max, policy.window_ms),
            recycles: RepairBudget::new(policy.recycles_max, policy.window_ms),
            fatalities: earlier,
            watch: Watch::default(),
            was_ready: false,
        };
        let last_chance = Cause::ALL.iter().any(|cause| respawn.fatal(*cause) >= policy.park_after);
        if last_chance {
            respawn.budget = RepairBudget::new(0, policy.window_ms);
        }
        respawn
    }

    /// Where things stand.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The clock of ticks.
    pub fn clock_ms(&self) -> u64 {
        self.clock_ms
    }

    /// Takes note of what happened, and says what is to be done, in this order.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Tick { measured_ms } => {
                self.clock_ms = self.clock_ms.saturating_add(measured_ms.min(2 * TICK_MS));
                self.tick()
            }
            Event::Heard { ticks, lag_ticks } => {
                if ticks != self.watch.ticks {
                    self.watch.ticks = ticks;
                    self.watch.changed_ms = self.clock_ms;
                }
                self.watch.lag_ticks = lag_ticks;
                Vec::new()
            }
            Event::Ready => {
                self.was_ready = true;
                Vec::new()
            }
            Event::Asked(cause) => match self.stage {
                Stage::Running if cause.is_orderly() => self.recycle(cause),
                Stage::Running => self.kill(cause),
                _ => Vec::new(),
            },
            Event::Ended { end, spread } => self.ended(end, spread),
            Event::NotStarted { spread } => match self.stage {
                Stage::Running => self.replace(Cause::Start, spread),
                _ => Vec::new(),
            },
            Event::Told => self.told(),
            Event::Changed => match self.stage {
                Stage::Parked { .. } => {
                    self.fatalities.clear();
                    self.budget =
                        RepairBudget::new(self.policy.restarts_max, self.policy.window_ms);
                    self.spawn()
                }
                _ => Vec::new(),
            },
        }
    }

    /// How long nothing was heard of the worker, or of its event loop: by now that is how long it may have been broken,
    /// milliseconds.
    pub fn unheard_ms(&self) -> u64 {
        self.watch.silence_ms(self.clock_ms).max(self.watch.lag_ms())
    }

    /// What stands against the server's being ready, as far as the worker's own report cannot know it.
    pub fn objection(&self) -> Option<String> {
        match self.stage {
            Stage::Running => {
                let (silence, lag) = (self.watch.silence_ms(self.clock_ms), self.watch.lag_ms());
                if silence > self.policy.doubt_ms {
                    Some(format!("the worker has not been heard for {silence} ms"))
                } else if lag > self.policy.doubt_ms {
                    Some(format!("the event loop of the worker has not answered for {lag} ms"))
                } else {
                    None
                }
            }
            Stage::Killing { cause, .. } | Stage::Recycling { cause, .. } => {
                Some(format!("{}; it is being replaced", cause.sentence()))
            }
            Stage::Waiting { cause, until_ms } => {
                let pause = until_ms.saturating_sub(self.clock_ms);
                Some(format!("{}; the next one starts in {pause} ms", cause.sentence()))
            }
            Stage::Parked { cause } => Some(format!(
                "parked: {}, again and again; waiting for the configuration or the models to change",
                cause.sentence()
            )),
            Stage::Fatal { cause, .. } => Some(format!("beyond repair: {}", cause.sentence())),
            Stage::Draining { .. } | Stage::Over => None,
        }
    }

    fn tick(&mut self) -> Vec<Action> {
        let verdict = self.watch.verdict(self.clock_ms, &self.policy);
        match self.stage {
            Stage::Running => verdict.map_or_else(Vec::new, |cause| self.kill(cause)),
            Stage::Killing { since_ms, .. }
                if self.clock_ms.saturating_sub(since_ms) > self.policy.unkillable_ms =>
            {
                self.give_up(Cause::Unkillable)
            }
            Stage::Recycling { until_ms, cause } => match verdict {
                Some(cause) => self.kill(cause),
                None if self.clock_ms >= until_ms => self.kill(cause),
                None => Vec::new(),
            },
            Stage::Waiting { until_ms, .. } if self.clock_ms >= until_ms => self.spawn(),
            Stage::Draining { until_ms, cut: false }
                if self.clock_ms >= until_ms || verdict.is_some() =>
            {
                self.cut_short(Action::Kill)
            }
            // The worker cannot even be killed; the end does not wait for it.
            Stage::Draining { until_ms, cut: true } if self.clock_ms >= until_ms => {
                self.over(Departure::Interrupted)
            }
            Stage::Fatal { cause, until_ms } if self.clock_ms >= until_ms => {
                self.over(Departure::GaveUp(cause))
            }
            _ => Vec::new(),
        }
    }

    /// Why a worker that ended so is gone: what it was killed or replaced for, else what its end means.
    pub fn cause(&self, end: End) -> Cause {
        match (self.stage, end) {
            (Stage::Killing { cause, .. }, _) | (Stage::Recycling { cause, .. }, End::Code(_)) => {
                cause
            }
            _ => Cause::of(end),
        }
    }

    fn ended(&mut self, end: End, spread: u64) -> Vec<Action> {
        match self.stage {
            Stage::Running if !self.was_ready && is_hopeless(end) => {
                let End::Code(code) = end else { return Vec::new() };
                self.over(Departure::AsWorker(code))
            }
            // It was asked to end and did, so there is nothing to wait for.
            Stage::Recycling { .. } if matches!(end, End::Code(_)) => self.spawn(),
            Stage::Running | Stage::Killing { .. } | Stage::Recycling { .. } => {
                self.replace(self.cause(end), spread)
            }
            Stage::Draining { cut, .. } => {
                let departure = match end {
                    End::Code(code) => Departure::AsWorker(code),
                    // A manager that tells the whole group may tell the worker before it listens.
                    End::Signal(15 | 2) if !cut => Departure::Drained,
                    End::Signal(_) => Departure::Interrupted,
                };
                self.over(departure)
            }
            Stage::Waiting { .. } | Stage::Parked { .. } | Stage::Fatal { .. } | Stage::Over => {
                Vec::new()
            }
        }
    }

    fn told(&mut self) -> Vec<Action> {
        match self.stage {
            Stage::Running | Stage::Recycling { .. } => {
                let until_ms = self.clock_ms.saturating_add(self.policy.drain_ms);
                self.stage = Stage::Draining { until_ms, cut: false };
                vec![Action::Drain]
            }
            // It is dying already, and is waited for.
            Stage::Killing { .. } => self.cut_short(Action::Kill),
            Stage::Draining { cut: false, .. } => self.cut_short(Action::DrainAtOnce),
            Stage::Draining { cut: true, .. } => self.over(Departure::Interrupted),
            Stage::Waiting { .. } | Stage::Parked { .. } => self.over(Departure::Drained),
            Stage::Fatal { cause, .. } => self.over(Departure::GaveUp(cause)),
            Stage::Over => Vec::new(),
        }
    }

    fn spawn(&mut self) -> Vec<Action> {
        self.watch = Watch { changed_ms: self.clock_ms, ..Watch::default() };
        self.stage = Stage::Running;
        vec![Action::Spawn]
    }

    fn kill(&mut self, cause: Cause) -> Vec<Action> {
        self.stage = Stage::Killing { cause, since_ms: self.clock_ms };
        vec![Action::Kill]
    }

    /// Another worker in place of one that can still finish what it has, unless that was done too often.
    fn recycle(&mut self, cause: Cause) -> Vec<Action> {
        if !self.recycles.try_spend(self.clock_ms) {
            return vec![Action::Stay(cause)];
        }
        let until_ms = self.clock_ms.saturating_add(self.policy.drain_ms);
        self.stage = Stage::Recycling { cause, until_ms };
        vec![Action::Recycle]
    }

    /// The next worker, after a pause, unless there were too many.
    fn replace(&mut self, cause: Cause, spread: u64) -> Vec<Action> {
        let already = self.budget.spent(self.clock_ms);
        if !self.budget.try_spend(self.clock_ms) {
            return self.give_up(cause);
        }
        let last = self.policy.backoff_ms.len() - 1;
        let pause = self.policy.backoff_ms.get(already.min(last)).copied().unwrap_or_default();
        // 80 to 120 per cent, so that many servers that fail together do not come back together.
        let pause = pause.saturating_mul(800 + spread % 401) / 1000;
        if pause == 0 {
            return self.spawn();
        }
        self.stage = Stage::Waiting { cause, until_ms: self.clock_ms.saturating_add(pause) };
        Vec::new()
    }

    fn give_up(&mut self, cause: Cause) -> Vec<Action> {
        // Whoever was killed and does not end holds the sockets, so parking would serve nobody; a new container might.
        let may_park = cause != Cause::Unkillable;
        if may_park && self.fatal(cause) + 1 >= self.policy.park_after {
            self.stage = Stage::Parked { cause };
        } else {
            let until_ms = self.clock_ms.saturating_add(self.policy.fatal_linger_ms);
            self.stage = Stage::Fatal { cause, until_ms };
        }
        vec![Action::Record(cause)]
    }

    /// Earlier ends for this cause within the window.
    fn fatal(&self, cause: Cause) -> usize {
        let recent = |fatality: &&Fatality| {
            let age = fatality.age_ms.saturating_add(self.clock_ms);
            fatality.cause == cause && age < self.policy.park_window_ms
        };
        self.fatalities.iter().filter(recent).count()
    }

    fn cut_short(&mut self, action: Action) -> Vec<Action> {
        let until_ms = self.clock_ms.saturating_add(self.policy.unkillable_ms);
        self.stage = Stage::Draining { until_ms, cut: true };
        vec![action]
    }

    fn over(&mut self, departure: Departure) -> Vec<Action> {
        self.stage = Stage::Over;
        vec![Action::Exit(departure)]
    }
}

#[cfg(test)]
mod tests;
