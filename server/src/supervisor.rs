//! The process that owns the sockets, answers for the server's health, and sees to it that there is a worker.
//!
//! No ONNX Runtime, no async runtime, no request: nothing that comes over the data port reaches this process. One thread
//! looks around every 100 ms, and whenever something happens: signals, the end of processes, what the worker says. What
//! follows from it is decided by [`balm_probes::respawn`]. The management port has its own threads. The listening socket
//! stays open here when a worker dies, so that connections wait for the next one in the kernel's backlog.

mod changes;
mod child;
mod desk;
mod journal;
mod metrics;
mod notify;
mod quarantine;
mod signals;
mod suspects;

pub(crate) use child::{Child, spawn};
pub(crate) use quarantine::Ward;
pub(crate) use signals::Signals;
pub(crate) use suspects::Suspects;

use crate::app::AppError;
use crate::banner;
use crate::config::Config;
use crate::exit::Exit;
use crate::http::{Bound, SocketFile};
use crate::link::ToWorker;
use crate::management::{Management, ManagementHandle};
use crate::pulse::{Pulse, TICK};
use balm_probes::flight::Involved;
use balm_probes::{Action, Cause, Departure, End, Event, Respawn, RespawnPolicy, Stage};
use changes::Changes;
use desk::{Desk, LastEnd, Standing, unix_ms};
use journal::{Journal, Reason};
use metrics::{Deed, SupervisorMetrics};
use notify::Notify;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use suspects::Death;

/// How much longer than its configured times a drain may take.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// What is kept of a worker's own words on its end. Kubernetes shows 4 KiB of a termination log.
const FAREWELL_CHARS_MAX: usize = 500;

/// See the module.
pub(crate) struct Supervisor {
    config: Config,
    /// Let go of when the end has begun and no other worker is to have it: the last who has it sees to those who have connected.
    bound: Option<Bound>,
    /// Removed when nobody is to be let in any more.
    file: Option<SocketFile>,
    respawn: Respawn,
    desk: Arc<Desk>,
    pulse: Arc<Pulse>,
    signals: Signals,
    journal: Journal,
    ward: Ward,
    changes: Changes,
    notify: Notify,
    worker: Option<Worker>,
    workers_started: u64,
    suspects: Suspects,
    last_end: Option<LastEnd>,
    /// When something was found to be wrong that is not healed yet.
    broken_at: Option<Instant>,
    looked_at: Instant,
    _management: ManagementHandle,
}

/// The worker of the moment.
struct Worker {
    pid: Pid,
    child: Child,
    /// To be polled; the desk reads it.
    line: Option<UnixStream>,
    in_flight: u64,
    /// What it said of its end.
    farewell: Option<String>,
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Supervisor {
    /// Takes the sockets and the first worker, which is under way already, and answers for both from now on.
    ///
    /// # Errors
    /// [`AppError`], when there are no threads or signals. The worker ends with the line to it.
    pub(crate) fn new(
        config: &Config,
        data: Bound,
        management: Management,
        signals: Signals,
        first: Child,
        suspects: Suspects,
        ward: Ward,
    ) -> Result<Self, AppError> {
        let pulse = Pulse::start().map_err(AppError::Thread)?;
        pulse.answer();
        let metrics = SupervisorMetrics::new()?;
        let policy = config.repository.readiness.clone();
        let desk = Arc::new(Desk::new(policy, Arc::clone(&pulse), metrics));
        let journal = Journal::open(config.lifecycle.crash_journal.clone());
        let drain = config.lifecycle.drain_delay + config.lifecycle.drain_timeout + DRAIN_GRACE;
        let policy = RespawnPolicy { drain_ms: milliseconds(drain), ..RespawnPolicy::default() };
        let respawn = Respawn::new(policy, journal.fatalities(unix_ms()));
        let now = Instant::now();
        let mut supervisor = Supervisor {
            config: config.clone(),
            respawn,
            pulse,
            signals,
            journal,
            ward,
            changes: Changes::new(config),
            notify: Notify::new(now),
            worker: None,
            workers_started: 0,
            suspects,
            last_end: None,
            broken_at: None,
            looked_at: now,
            _management: {
                let listening = data.listening()?;
                let source = Arc::clone(&desk);
                let management = management.start(source).map_err(AppError::Thread)?;
                banner::print(&banner::addresses(&listening, management.local_addr()));
                management
            },
            bound: Some(data),
            file: None,
            desk,
        };
        supervisor.adopt(first);
        supervisor.stand();
        Ok(supervisor)
    }

    /// Until the end.
    pub(crate) fn run(mut self) -> Exit {
        loop {
            self.wait();
            if let Some(departure) = self.turn(Instant::now()) {
                return self.leave(departure);
            }
        }
    }

    fn adopt(&mut self, child: Child) {
        let line = child.stream.try_clone().ok();
        self.desk.connect(child.stream.try_clone().ok());
        self.workers_started += 1;
        tracing::info!(
            pid = child.pid.as_raw_nonzero().get(),
            workers_started = self.workers_started,
            "worker under way"
        );
        self.worker = Some(Worker { pid: child.pid, child, line, in_flight: 0, farewell: None });
    }

    /// Until something happens, or the next tick.
    fn wait(&self) {
        let mut watched: Vec<PollFd<'_>> = Vec::with_capacity(4);
        for socket in self.signals.sockets() {
            watched.push(PollFd::new(socket, PollFlags::IN));
        }
        if let Some(line) = self.worker.as_ref().and_then(|worker| worker.line.as_ref()) {
            let sends = self.desk.wants_to_send();
            let out = if sends { PollFlags::OUT } else { PollFlags::empty() };
            watched.push(PollFd::new(line, PollFlags::IN | out));
        }
        let sleep = TICK.saturating_sub(self.looked_at.elapsed());
        let sleep = Timespec::try_from(sleep).unwrap_or_default();
        // Interrupted or not: whoever has something to say is asked in any case.
        let _ = poll(&mut watched, Some(&sleep));
    }

    /// Looks at everything once.
    fn turn(&mut self, now: Instant) -> Option<Departure> {
        for signal in self.signals.take() {
            tracing::info!(signal, "told to end: not ready from now on");
            if let departure @ Some(_) = self.happened(Event::Told) {
                return departure;
            }
        }
        if let departure @ Some(_) = self.listen().or_else(|| self.reap()) {
            return departure;
        }
        self.heal(now);
        let measured = now.saturating_duration_since(self.looked_at);
        if measured < TICK {
            return None;
        }
        self.looked_at = now;
        self.pulse.answer();
        let departure = self.happened(Event::Tick { measured_ms: milliseconds(measured) });
        if departure.is_some() {
            return departure;
        }
        if let Stage::Parked { .. } = self.respawn.stage()
            && self.changes.found(now)
        {
            tracing::info!("configuration or models have changed: trying again");
            return self.happened(Event::Changed);
        }
        self.observe(now)
    }

    /// What the worker said.
    fn listen(&mut self) -> Option<Departure> {
        let heard = self.desk.heard();
        let worker = self.worker.as_mut()?;
        if heard.broken {
            worker.line = None;
        }
        if let Some(tick) = heard.tick {
            worker.in_flight = tick.in_flight;
            self.desk
                .metrics
                .set_lag(TICK.saturating_mul(u32::try_from(tick.lag_ticks).unwrap_or(u32::MAX)));
            self.happened(Event::Heard { ticks: tick.ticks, lag_ticks: tick.lag_ticks });
        }
        for hash in heard.survived {
            self.suspects.survived(hash);
        }
        if heard.closed
            && let Stage::Draining { .. } = self.respawn.stage()
        {
            self.close();
        }
        let (cause, detail) = heard.replace?;
        if let Some(worker) = &mut self.worker {
            worker.farewell = Some(detail.chars().take(FAREWELL_CHARS_MAX).collect());
        }
        self.happened(Event::Asked(cause))
    }

    /// Processes that have ended.
    fn reap(&mut self) -> Option<Departure> {
        while let Some((pid, end)) = child::reap() {
            if self.worker.as_ref().is_none_or(|worker| worker.pid != pid) {
                self.desk.metrics.reaped(end);
                continue;
            }
            // Its last words.
            if let departure @ Some(_) = self.listen() {
                return departure;
            }
            if let departure @ Some(_) = self.ended(end) {
                return departure;
            }
        }
        None
    }

    fn ended(&mut self, end: End) -> Option<Departure> {
        // It may have become ready and died since the last look.
        if self.desk.started().started {
            self.respawn.step(Event::Ready);
        }
        let worker = self.worker.take()?;
        let how = match worker.farewell {
            Some(farewell) => format!("{end}: {farewell}"),
            None => end.to_string(),
        };
        let (before, cause) = (self.respawn.stage(), self.respawn.cause(end));
        let death = self.post_mortem(&worker.child, before, end);
        self.last_end = Some(LastEnd {
            reason: cause,
            how: how.clone(),
            at_ms: unix_ms(),
            requests: death.involved,
        });
        let now_ms = self.respawn.clock_ms();
        for _ in 0..self.ward.ended(&self.desk.report(), cause, now_ms) {
            self.desk.metrics.acted(Deed::Version, cause);
        }
        if before == Stage::Running {
            self.detected();
        }
        self.desk.connect(None);
        if let Stage::Running | Stage::Killing { .. } | Stage::Recycling { .. } = before {
            self.broken_at.get_or_insert_with(Instant::now);
            // It said so last a tick ago, and has finished since.
            let drained = matches!(before, Stage::Recycling { .. })
                && end == End::Code(i32::from(Exit::Drained.code()));
            let lost = if drained { 0 } else { worker.in_flight };
            self.desk.metrics.replaced(cause, lost);
            self.desk.metrics.acted(Deed::Worker, cause);
            if drained {
                tracing::warn!(reason = cause.as_str(), how, "worker finished, another comes");
            } else {
                tracing::error!(reason = cause.as_str(), how, lost, "worker ended");
            }
        }
        let spread = RandomState::new().hash_one(worker.pid);
        self.happened(Event::Ended { end, spread })
    }

    /// Remembers the requests that a worker died of, and says which.
    fn post_mortem(&mut self, child: &Child, before: Stage, end: End) -> Death {
        let ours = matches!(before, Stage::Killing { .. } | Stage::Draining { .. });
        let Some(memory) = &child.memory else { return Death::default() };
        let death = self.suspects.died(memory, end, ours);
        for Involved { model, version, hash, crashes } in &death.involved {
            tracing::error!(model, version, hash, crashes, "in a run when the worker died");
        }
        let unnamed = death.requests.saturating_sub(death.involved.len());
        if unnamed > 0 {
            tracing::error!(unnamed, "further requests were in a run when the worker died");
        }
        death
    }

    /// Decides what follows from an event, says so, and does it.
    fn happened(&mut self, event: Event) -> Option<Departure> {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let before = self.respawn.stage();
            let actions = self.respawn.step(event);
            let after = self.respawn.stage();
            if before != after {
                self.told(after);
            }
            // Probes first: nobody is sent to a worker that is about to be killed.
            self.stand();
            for action in actions {
                match action {
                    Action::Spawn => next = self.spawn(),
                    Action::Kill => self.kill(),
                    Action::Drain => self.desk.say(&ToWorker::Drain),
                    Action::DrainAtOnce => self.desk.say(&ToWorker::DrainAtOnce),
                    Action::Recycle => self.desk.say(&ToWorker::Recycle),
                    Action::Stay(cause) => self.stay(cause),
                    Action::Record(cause) => {
                        let end = self.last_end.as_ref();
                        let requests = end.map_or(&[][..], |end| &end.requests);
                        self.journal.record(cause, requests, unix_ms());
                    }
                    Action::Exit(departure) => return Some(departure),
                }
            }
        }
        None
    }

    /// Something was found to be wrong with the worker.
    fn detected(&self) {
        self.desk.metrics.detected(Duration::from_millis(self.respawn.unheard_ms()));
    }

    /// Logs a step that a person will look for.
    fn told(&mut self, stage: Stage) {
        match stage {
            Stage::Killing { cause, .. } => {
                self.detected();
                self.broken_at.get_or_insert_with(Instant::now);
                tracing::error!(
                    reason = cause.as_str(),
                    "killing the worker: {}",
                    cause.sentence()
                );
            }
            Stage::Recycling { cause, .. } => {
                self.broken_at.get_or_insert_with(Instant::now);
                let why = self.worker.as_ref().and_then(|worker| worker.farewell.as_deref());
                tracing::warn!(reason = cause.as_str(), why, "replacing the worker in order");
            }
            Stage::Waiting { until_ms, .. } => {
                let pause_ms = until_ms.saturating_sub(self.respawn.clock_ms());
                tracing::warn!(pause_ms, "the next worker waits");
            }
            Stage::Parked { cause } => {
                self.desk.metrics.acted(Deed::Park, cause);
                self.changes.remember();
                tracing::error!(
                    reason = cause.as_str(),
                    "parked: given up too often for the same reason"
                );
            }
            Stage::Fatal { cause, .. } => {
                if let (Cause::Unkillable, Some(worker)) = (cause, &self.worker) {
                    self.desk.metrics.replaced(cause, worker.in_flight);
                }
                self.desk.metrics.acted(Deed::Process, cause);
                tracing::error!(reason = cause.as_str(), "giving up: {}", cause.sentence());
            }
            Stage::Draining { .. } | Stage::Over => {
                self.notify.stopping();
                self.let_go();
            }
            Stage::Running => {}
        }
    }

    fn spawn(&mut self) -> Option<Event> {
        let started = self
            .bound
            .as_ref()
            .map(|bound| spawn(bound, self.workers_started + 1, &self.suspects, self.ward.all()));
        match started {
            Some(Ok(child)) => {
                self.adopt(child);
                self.stand();
                None
            }
            Some(Err(error)) => {
                tracing::error!(%error, "worker not started");
                let spread = RandomState::new().hash_one(self.respawn.clock_ms());
                self.desk.metrics.replaced(Cause::Start, 0);
                Some(Event::NotStarted { spread })
            }
            None => None,
        }
    }

    fn kill(&self) {
        if let Some(worker) = &self.worker {
            worker.child.kill();
        }
    }

    /// The worker asked to be replaced once too often.
    fn stay(&mut self, cause: Cause) {
        // It is not its last word.
        let why = self.worker.as_mut().and_then(|worker| worker.farewell.take());
        tracing::error!(reason = cause.as_str(), why, "not replaced: that was done too often");
        self.desk.metrics.stayed();
        self.desk.say(&ToWorker::Stay);
    }

    /// No other worker is going to have the socket.
    fn let_go(&mut self) {
        if let Some(bound) = self.bound.take() {
            self.file = Some(bound.let_go());
        }
    }

    /// Nobody connects any more.
    fn close(&mut self) {
        self.let_go();
        if let Some(file) = self.file.take() {
            file.remove();
        }
    }

    /// Publishes how it stands.
    fn stand(&self) {
        let stage = self.respawn.stage();
        let objection = self.respawn.objection();
        let (suspects, poison) = self.suspects.counts();
        let name = match stage {
            Stage::Running => "running",
            Stage::Killing { .. } => "killing",
            Stage::Recycling { .. } => "recycling",
            Stage::Waiting { .. } => "waiting",
            Stage::Draining { .. } => "draining",
            Stage::Parked { .. } => "parked",
            Stage::Fatal { .. } => "fatal",
            Stage::Over => "over",
        };
        self.desk.metrics.set_up(matches!(stage, Stage::Running) && objection.is_none());
        self.desk.stand(Standing {
            stage: name,
            worker_pid: self.worker.as_ref().map(|worker| worker.pid.as_raw_nonzero().get()),
            workers_started: self.workers_started,
            last_end: self.last_end.clone(),
            suspects,
            poison,
            fatal: match stage {
                Stage::Fatal { .. } => objection.clone(),
                _ => None,
            },
            objection,
            draining: matches!(stage, Stage::Draining { .. } | Stage::Over),
            parked: matches!(stage, Stage::Parked { .. }),
            sidecar: self.config.lifecycle.sidecar,
        });
    }

    /// With every tick: what has become of it.
    fn observe(&mut self, now: Instant) -> Option<Departure> {
        self.ward.saw(&self.desk.report(), self.respawn.clock_ms());
        self.desk.metrics.set_quarantined(self.ward.all().len());
        let started = self.desk.started().started;
        self.notify.turn(now, started, self.desk.liveness().live);
        if started { self.happened(Event::Ready) } else { None }
    }

    /// Whether what was broken works again.
    fn heal(&mut self, now: Instant) {
        if self.broken_at.is_some() && self.desk.readiness().ready {
            let after = self.broken_at.take().map(|at| now.saturating_duration_since(at));
            let after = after.unwrap_or_default();
            self.desk.metrics.healed(after);
            tracing::info!(after_ms = milliseconds(after), "healed: ready again");
        }
    }

    fn leave(mut self, departure: Departure) -> Exit {
        self.close();
        let (exit, reason) = match departure {
            Departure::Drained => (Exit::Drained, None),
            Departure::Interrupted => (Exit::Interrupted, None),
            Departure::AsWorker(code) => (Exit::of_code(code).unwrap_or(Exit::Hang), None),
            Departure::GaveUp(cause) => {
                let exit = match cause {
                    Cause::Gpu => Exit::Gpu,
                    Cause::Memory => Exit::Memory,
                    _ => Exit::Hang,
                };
                (exit, Some(cause))
            }
        };
        let last_worker = self.last_end.as_ref().map(|end| end.how.as_str());
        let told = Reason {
            exit: exit.as_str(),
            code: exit.code(),
            reason,
            last_worker,
            requests: self.last_end.as_ref().map_or(&[], |end| &end.requests),
            workers_started: self.workers_started,
            at_ms: unix_ms(),
        };
        journal::tell(self.config.lifecycle.termination_log.as_deref(), exit, &told);
        tracing::info!(exit = exit.as_str(), code = exit.code(), "the end");
        exit
    }
}
