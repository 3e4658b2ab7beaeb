//! What the management port answers with: what the worker said last, and what the supervisor makes of it.
//!
//! Whatever the worker has said is read before a probe is answered, so that nobody who heard something on the data port
//! hears of older times here. That is a read without waiting, under a lock that is held for nothing longer.

use super::metrics::SupervisorMetrics;
use crate::link::{FrameError, Incoming, Outgoing, Tick, ToSupervisor, ToWorker};
use crate::management::{ManagementSource, ProbeAnswer};
use crate::pulse::Pulse;
use balm_probes::flight::Involved;
use balm_probes::poison::REMEMBERED_MAX;
use balm_probes::{
    Cause, HealthReport, Liveness, Readiness, ReadinessPolicy, ServerPhase, Startup, readiness,
    startup,
};
use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long the worker may take to render its metrics, or to say how it stands.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(250);

/// What supervisor and management port share.
pub(super) struct Desk {
    policy: ReadinessPolicy,
    pulse: Arc<Pulse>,
    pub(super) metrics: SupervisorMetrics,
    start_is_over: AtomicBool,
    standing: Mutex<Arc<Standing>>,
    line: Mutex<Line>,
    answered: Condvar,
}

/// How the supervisor itself sees it.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Standing {
    /// `running`, `killing`, `recycling`, `waiting`, `draining`, `parked`, `fatal`.
    pub(super) stage: &'static str,
    /// The process of the worker; none while there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) worker_pid: Option<i32>,
    /// Workers that were started so far.
    pub(super) workers_started: u64,
    /// Of the worker before this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_end: Option<LastEnd>,
    /// Requests that were there at a crash, and are run by themselves.
    pub(super) suspects: usize,
    /// Requests that were there at two, and are refused.
    pub(super) poison: usize,
    /// Why the process is beyond repair.
    #[serde(skip)]
    pub(super) fatal: Option<String>,
    /// Why it is not ready whatever the worker says.
    #[serde(skip)]
    pub(super) objection: Option<String>,
    #[serde(skip)]
    pub(super) draining: bool,
    #[serde(skip)]
    pub(super) parked: bool,
    /// Whether another container waits for the start of this one.
    #[serde(skip)]
    pub(super) sidecar: bool,
}

/// How a worker ended.
#[derive(Clone, Debug, Serialize)]
pub(super) struct LastEnd {
    /// Why it was replaced.
    pub(super) reason: Cause,
    /// The kernel's account, or what the worker said.
    pub(super) how: String,
    /// When, in milliseconds of Unix time.
    pub(super) at_ms: u64,
    /// Requests that it is held against, some of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) requests: Vec<Involved>,
}

/// What the worker said that is not for probes.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// The last heartbeat.
    pub(super) tick: Option<Tick>,
    /// It wants to be replaced.
    pub(super) replace: Option<(Cause, String)>,
    /// It takes no connections any more.
    pub(super) closed: bool,
    /// Requests that are suspects no more.
    pub(super) survived: Vec<u64>,
    /// The line is broken.
    pub(super) broken: bool,
}

struct Line {
    stream: Option<UnixStream>,
    incoming: Incoming,
    outgoing: Outgoing,
    report: Arc<HealthReport>,
    heard: Heard,
    /// The question that somebody waits for.
    question: u64,
    answer: Option<Answer>,
}

enum Answer {
    Status,
    Metrics(String),
}

#[derive(Serialize)]
struct Status<'a> {
    started: bool,
    live: bool,
    ready: bool,
    reasons: &'a [String],
    notes: &'a [String],
    #[serde(flatten)]
    report: &'a HealthReport,
    supervisor: &'a Standing,
}

/// Milliseconds of Unix time.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Of a worker that has said nothing yet.
fn blank() -> Arc<HealthReport> {
    let now = unix_ms();
    Arc::new(HealthReport { since_ms: now, at_ms: now, ..HealthReport::default() })
}

// ===== impl Desk =====

impl Desk {
    pub(super) fn new(
        policy: ReadinessPolicy,
        pulse: Arc<Pulse>,
        metrics: SupervisorMetrics,
    ) -> Self {
        Desk {
            policy,
            pulse,
            metrics,
            start_is_over: AtomicBool::new(false),
            standing: Mutex::default(),
            line: Mutex::new(Line {
                stream: None,
                incoming: Incoming::default(),
                outgoing: Outgoing::default(),
                report: blank(),
                heard: Heard::default(),
                question: 0,
                answer: None,
            }),
            answered: Condvar::new(),
        }
    }

    /// From now on this is how it stands.
    pub(super) fn stand(&self, standing: Standing) {
        self.metrics.set_parked(standing.parked);
        self.metrics.set_remembered(standing.suspects, standing.poison);
        *self.standing.lock() = Arc::new(standing);
    }

    pub(super) fn standing(&self) -> Arc<Standing> {
        Arc::clone(&self.standing.lock())
    }

    /// Listens to another worker, or to none. What the one before said counts for nothing any more.
    pub(super) fn connect(&self, stream: Option<UnixStream>) {
        let mut line = self.line.lock();
        let question = line.question;
        *line = Line {
            stream,
            incoming: Incoming::default(),
            outgoing: Outgoing::default(),
            report: blank(),
            heard: Heard::default(),
            question,
            answer: None,
        };
    }

    /// Reads what the worker has said, and sends what it could not take before.
    pub(super) fn pump(&self) {
        let mut line = self.line.lock();
        line.pump(&self.answered);
    }

    /// What was heard since this was asked last.
    pub(super) fn heard(&self) -> Heard {
        let mut line = self.line.lock();
        line.pump(&self.answered);
        std::mem::take(&mut line.heard)
    }

    /// Sends a message as far as it can be sent at once. [`Desk::pump`] sends the rest.
    pub(super) fn say(&self, message: &ToWorker) {
        let mut line = self.line.lock();
        line.say(message);
    }

    /// Whether there is something left to be sent.
    pub(super) fn wants_to_send(&self) -> bool {
        self.line.lock().outgoing.waiting() > 0
    }

    /// Asks the worker, and waits for its answer, or not longer than is fit.
    fn ask(&self, question: impl FnOnce(u64) -> ToWorker) -> Option<Answer> {
        let mut line = self.line.lock();
        line.question += 1;
        line.answer = None;
        let question = question(line.question);
        if !line.say(&question) {
            return None;
        }
        let until = Instant::now() + ANSWER_TIMEOUT;
        while line.answer.is_none() {
            if self.answered.wait_until(&mut line, until).timed_out() {
                return None;
            }
        }
        line.answer.take()
    }

    /// What the worker said last about how it stands.
    pub(super) fn report(&self) -> Arc<HealthReport> {
        self.pump();
        Arc::clone(&self.line.lock().report)
    }

    /// Whether a prediction would work now.
    pub(super) fn readiness(&self) -> Readiness {
        let report = self.report();
        self.judge(&report, &self.standing())
    }

    fn judge(&self, report: &HealthReport, standing: &Standing) -> Readiness {
        let mut verdict = readiness(report, &self.policy);
        if let Some(objection) = &standing.objection {
            // What the worker said does not matter then.
            verdict =
                Readiness { ready: false, reasons: vec![objection.clone()], notes: Vec::new() };
        } else if standing.draining && report.server < ServerPhase::Draining {
            verdict.ready = false;
            verdict.reasons.insert(0, "the server is draining".to_owned());
        }
        if verdict.ready {
            self.start_is_over.store(true, Ordering::Release);
        }
        verdict
    }

    /// Whether the start is over. It stays over, whatever becomes of the worker that was started then.
    pub(super) fn started(&self) -> Startup {
        self.judge_startup(&self.report(), &self.standing())
    }

    fn judge_startup(&self, report: &HealthReport, standing: &Standing) -> Startup {
        self.judge(report, standing);
        // A parked server has to be let live to be asked why. Who waits for a sidecar is not to be started without it.
        let parked = standing.parked && !standing.sidecar;
        let was_over = self.start_is_over.load(Ordering::Acquire) || parked;
        let mut verdict = startup(report, was_over);
        if verdict.started {
            self.start_is_over.store(true, Ordering::Release);
        } else if let Some(objection) = &standing.objection {
            verdict.reasons = vec![objection.clone()];
        }
        verdict
    }

    /// Whether the supervisor itself runs and has not given up.
    pub(super) fn liveness(&self) -> Liveness {
        match &self.standing().fatal {
            Some(reason) => Liveness { live: false, reason: Some(reason.clone()) },
            None => self.pulse.verdict(),
        }
    }
}

// ===== impl Line =====

impl Line {
    fn pump(&mut self, answered: &Condvar) {
        let Some(stream) = &self.stream else { return };
        let flushed = self.outgoing.flush(stream);
        let alive = flushed.is_ok() && matches!(self.incoming.read(stream), Ok(true));
        loop {
            match self.incoming.next() {
                Ok(Some(message)) => self.take(message, answered),
                Ok(None) => break,
                Err(error) => return self.break_off(&error),
            }
        }
        if !alive {
            self.stream = None;
            self.heard.broken = true;
        }
    }

    fn break_off(&mut self, error: &FrameError) {
        tracing::error!(%error, "what the worker says is not understood");
        self.stream = None;
        self.heard.broken = true;
    }

    fn take(&mut self, message: ToSupervisor, answered: &Condvar) {
        match message {
            ToSupervisor::Tick(tick) => self.heard.tick = Some(tick),
            ToSupervisor::Report { question, report } => {
                self.report = Arc::new(report);
                if question == Some(self.question) {
                    self.answer = Some(Answer::Status);
                    answered.notify_all();
                }
            }
            ToSupervisor::Metrics { question, text } => {
                if question == self.question {
                    self.answer = Some(Answer::Metrics(text));
                    answered.notify_all();
                }
            }
            ToSupervisor::Closed => self.heard.closed = true,
            // Each was remembered before, so there are not more of them than that.
            ToSupervisor::Survived { hash } => {
                if self.heard.survived.len() < REMEMBERED_MAX {
                    self.heard.survived.push(hash);
                }
            }
            ToSupervisor::Replace { cause, detail } => self.heard.replace = Some((cause, detail)),
        }
    }

    /// False when nobody will hear it.
    fn say(&mut self, message: &ToWorker) -> bool {
        let Some(stream) = &self.stream else { return false };
        if let Err(error) = self.outgoing.push(message) {
            tracing::error!(%error, "not told the worker");
            return false;
        }
        self.outgoing.flush(stream).is_ok()
    }
}

#[cfg(test)]
mod tests;

impl ManagementSource for Desk {
    fn startup(&self) -> ProbeAnswer {
        ProbeAnswer::startup(&self.started())
    }

    fn live(&self) -> ProbeAnswer {
        ProbeAnswer::live(&self.liveness())
    }

    fn ready(&self) -> ProbeAnswer {
        ProbeAnswer::ready(&self.readiness())
    }

    fn status(&self) -> Vec<u8> {
        let _fresh = self.ask(|question| ToWorker::Status { question });
        let (mut report, standing) = (self.report(), self.standing());
        let verdict = self.judge(&report, &standing);
        let started = self.judge_startup(&report, &standing).started;
        if standing.draining && report.server < ServerPhase::Draining {
            Arc::make_mut(&mut report).server = ServerPhase::Draining;
        }
        let status = Status {
            started,
            live: self.liveness().live,
            ready: verdict.ready,
            reasons: &verdict.reasons,
            notes: &verdict.notes,
            report: &report,
            supervisor: &standing,
        };
        serde_json::to_vec_pretty(&status)
            .unwrap_or_else(|error| format!("{{\"error\":{:?}}}", error.to_string()).into_bytes())
    }

    fn metrics(&self) -> Vec<u8> {
        let mut text = match self.ask(|question| ToWorker::Metrics { question }) {
            Some(Answer::Metrics(text)) => text.into_bytes(),
            Some(Answer::Status) | None => {
                self.metrics.scrape_failed();
                Vec::new()
            }
        };
        self.metrics.render(&mut text);
        text
    }
}
