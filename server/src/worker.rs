//! The worker's end of the line to its supervisor.
//!
//! A thread of its own speaks: the heartbeat every 100 ms, the health report whenever it changes, metrics when they are
//! asked for. It listens, too: when to end. Load does not reach it, so its silence means that the process does not run.
//! When the line breaks the supervisor is gone, and nobody would restart what fails here or tell when to end: the worker
//! finishes what it has and leaves.

use crate::ending::{Ending, Endings};
use crate::exit::Exit;
use crate::health::Health;
use crate::http::{Bound, ListenError};
use crate::link::{
    FrameError, HandoverError, Incoming, Outgoing, Received, SocketKind, Tick, ToSupervisor,
    ToWorker, receive,
};
use crate::management::ManagementSource;
use crate::pulse::{Pulse, TICK};
use balm_inference::models::Models;
use balm_inference::recorder::Recorder;
use balm_probes::{Cause, HealthReport, Quarantined};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// Questions for metrics that may wait. The supervisor asks one after the other, and gives up on those that take long.
const QUESTIONS_MAX: usize = 4;
/// While so many bytes wait for a supervisor that does not read, it is told no further ticks.
const WAITING_MAX: usize = 1 << 20;
/// A report that is longer is not sent at each change, but with the next tick.
const PROMPT_BYTES_MAX: usize = 256 * 1024;
/// How long an end without a supervisor may take beyond `lifecycle.drain_timeout_ms`.
const ORPHAN_GRACE: Duration = Duration::from_secs(5);

/// This process is no worker.
#[derive(Debug, thiserror::Error)]
#[error("--worker is how balm starts itself: {source}")]
pub struct WorkerError {
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// See the module.
pub struct Worker {
    stream: UnixStream,
    outgoing: Mutex<Outgoing>,
    /// Wakes the thread that speaks, for what could not be sent at once.
    waker: UnixStream,
    pulse: Arc<Pulse>,
    endings: Endings,
    generation: u64,
    quarantine: Vec<Quarantined>,
    serving: OnceLock<Serving>,
    /// Where it is to be written what runs, until somebody does.
    memory: Mutex<Option<OwnedFd>>,
    /// There is a report that the supervisor does not have.
    owes_report: AtomicBool,
    /// Bytes of the last report.
    report_bytes: AtomicUsize,
}

struct Serving {
    models: Models,
    health: Arc<Health>,
}

fn no_worker(source: impl std::error::Error + Send + Sync + 'static) -> WorkerError {
    WorkerError { source: Box::new(source) }
}

impl From<HandoverError> for WorkerError {
    fn from(error: HandoverError) -> Self {
        no_worker(error)
    }
}

impl From<ListenError> for WorkerError {
    fn from(error: ListenError) -> Self {
        no_worker(error)
    }
}

impl From<io::Error> for WorkerError {
    fn from(error: io::Error) -> Self {
        no_worker(error)
    }
}

// ===== impl Worker =====

impl Worker {
    /// Takes what the supervisor hands over on standard input, and begins to tick.
    ///
    /// # Errors
    /// [`WorkerError`], when standard input is no supervisor.
    pub fn begin(drain_timeout: Duration) -> Result<(Arc<Self>, Bound), WorkerError> {
        // Balm is started by the path of its file, and would be called by that path's last part.
        let _ = rustix::thread::set_name(c"balm-worker");
        let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        Worker::begin_on(stream, drain_timeout)
    }

    /// The same on any line.
    pub(crate) fn begin_on(
        stream: UnixStream,
        drain_timeout: Duration,
    ) -> Result<(Arc<Self>, Bound), WorkerError> {
        let Received { hello, socket, memory, incoming } = receive(&stream)?;
        stream.set_nonblocking(true)?;
        let bound = match hello.socket {
            SocketKind::Tcp => Bound::tcp(socket)?,
            SocketKind::Unix(path) => Bound::unix(socket, path)?,
        };
        let (waker, wakened) = UnixStream::pair()?;
        waker.set_nonblocking(true)?;
        wakened.set_nonblocking(true)?;
        let worker = Arc::new(Worker {
            stream,
            outgoing: Mutex::default(),
            waker,
            pulse: Pulse::start()?,
            endings: Endings::default(),
            generation: hello.generation,
            quarantine: hello.quarantine,
            serving: OnceLock::new(),
            memory: Mutex::new(memory),
            owes_report: AtomicBool::new(false),
            report_bytes: AtomicUsize::new(0),
        });
        let (questions, asked) = sync_channel(QUESTIONS_MAX);
        thread::Builder::new().name("balm-gather".to_owned()).spawn({
            let worker = Arc::clone(&worker);
            move || worker.gather(&asked)
        })?;
        thread::Builder::new().name("balm-link".to_owned()).spawn({
            let worker = Arc::clone(&worker);
            let patience = drain_timeout + ORPHAN_GRACE;
            move || {
                let broken = worker.speak(incoming, &wakened, &questions);
                worker.orphaned(&broken, patience);
            }
        })?;
        Ok((worker, bound))
    }

    /// The heartbeat that the supervisor is told.
    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    /// Where the supervisor says when to end.
    pub fn endings(&self) -> Endings {
        self.endings.clone()
    }

    /// Whether no worker came before this one.
    pub fn is_first(&self) -> bool {
        self.generation == 1
    }

    /// What writes down what runs, for the supervisor to read should this process die of it; once.
    pub fn recorder(self: &Arc<Self>) -> Option<Recorder> {
        let memory = File::from(self.memory.lock().take()?);
        let worker = Arc::downgrade(self);
        let survived = move |hash| {
            if let Some(worker) = worker.upgrade() {
                worker.say(&ToSupervisor::Survived { hash });
            }
        };
        Recorder::open(memory, survived)
            .inspect_err(|error| tracing::error!(%error, "what runs is not recorded"))
            .ok()
    }

    /// From now on `models` do not try what did harm before, and the supervisor is told how they stand, before whoever changed it
    /// goes on.
    pub fn attach(self: &Arc<Self>, models: &Models, health: &Arc<Health>) {
        let serving = Serving { models: models.clone(), health: Arc::clone(health) };
        let _ = self.serving.set(serving);
        // The models would otherwise hold themselves.
        let worker = Arc::downgrade(self);
        models.quarantine(self.quarantine.clone());
        models.on_report(move |report| {
            if let Some(worker) = worker.upgrade() {
                worker.report(report);
            }
        });
        self.report(&models.report());
    }

    /// Tells that no connection is taken any more.
    pub fn closed(&self) {
        self.say(&ToSupervisor::Closed);
    }

    /// Asks to be replaced, for a reason that this process cannot mend. It is killed at once, but where the cause
    /// [is orderly](Cause::is_orderly): then it is told to finish what it has, or to stay.
    pub fn replace_me(&self, cause: Cause, detail: String) {
        tracing::error!(cause = cause.as_str(), detail, "asking to be replaced");
        self.say(&ToSupervisor::Replace { cause, detail });
    }

    fn report(&self, report: &Arc<HealthReport>) {
        let long = self.report_bytes.load(Ordering::Relaxed) > PROMPT_BYTES_MAX;
        if long || self.outgoing.lock().waiting() > WAITING_MAX {
            self.owes_report.store(true, Ordering::Release);
            return;
        }
        self.send_report(report, None);
    }

    fn send_report(&self, report: &Arc<HealthReport>, question: Option<u64>) {
        let report = HealthReport::clone(report);
        let bytes = self.say(&ToSupervisor::Report { question, report });
        self.report_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Sends a message as far as it can be sent at once; the thread that speaks sends the rest. Gives its length in bytes.
    fn say(&self, message: &ToSupervisor) -> usize {
        let mut outgoing = self.outgoing.lock();
        let before = outgoing.waiting();
        if let Err(error) = outgoing.push(message) {
            tracing::error!(%error, "not told the supervisor");
        }
        let bytes = outgoing.waiting() - before;
        // A line that is broken is found by the thread that listens.
        let _ = outgoing.flush(&self.stream);
        if outgoing.waiting() > 0 {
            let _ = (&self.waker).write(&[1]);
        }
        bytes
    }

    fn tick(&self) {
        if self.outgoing.lock().waiting() > WAITING_MAX {
            return;
        }
        let in_flight = self.serving.get().map_or(0, |serving| serving.models.gate().in_flight());
        let (ticks, lag_ticks) = (self.pulse.ticks(), self.pulse.lag_ticks());
        self.say(&ToSupervisor::Tick(Tick { ticks, lag_ticks, in_flight }));
        if self.owes_report.swap(false, Ordering::AcqRel)
            && let Some(serving) = self.serving.get()
        {
            self.send_report(&serving.models.report(), None);
        }
    }

    /// Until the line breaks. Says how it did.
    fn speak(
        &self,
        mut incoming: Incoming,
        mut wakened: &UnixStream,
        questions: &SyncSender<u64>,
    ) -> String {
        let mut next_tick = Instant::now();
        loop {
            loop {
                match incoming.next() {
                    Ok(Some(message)) => self.heed(message, questions),
                    Ok(None) => break,
                    Err(error) => return FrameError::to_string(&error),
                }
            }
            let now = Instant::now();
            if now >= next_tick {
                next_tick = now + TICK;
                self.tick();
            }
            let mut interest = PollFlags::IN;
            if self.outgoing.lock().waiting() > 0 {
                interest |= PollFlags::OUT;
            }
            let mut watched =
                [PollFd::new(&self.stream, interest), PollFd::new(wakened, PollFlags::IN)];
            let sleep = next_tick.saturating_duration_since(Instant::now());
            let sleep = Timespec::try_from(sleep).unwrap_or_default();
            if poll(&mut watched, Some(&sleep)).is_err() {
                continue;
            }
            let [stream, woken] = watched.map(|watched| watched.revents());
            if !woken.is_empty() {
                let mut bytes = [0; 64];
                // Emptied, so that the next turn can sleep; its contents say nothing.
                while matches!(wakened.read(&mut bytes), Ok(count) if count == bytes.len()) {}
            }
            if stream.contains(PollFlags::OUT) {
                let _ = self.outgoing.lock().flush(&self.stream);
            }
            if stream.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                match incoming.read(&self.stream) {
                    Ok(true) => {}
                    Ok(false) => return "it has ended".to_owned(),
                    Err(error) => return error.to_string(),
                }
            }
        }
    }

    fn heed(&self, message: ToWorker, questions: &SyncSender<u64>) {
        match message {
            ToWorker::Hello(_) => tracing::warn!("greeted twice"),
            ToWorker::Drain => {
                self.endings.tell(Ending::Drain);
            }
            ToWorker::DrainAtOnce => {
                self.endings.tell(Ending::AtOnce);
            }
            ToWorker::Recycle => {
                self.endings.tell(Ending::DrainNow);
            }
            ToWorker::Stay => {
                tracing::warn!("not replaced: that was done too often lately");
                if let Some(serving) = self.serving.get() {
                    serving.models.memory_not_healed();
                }
            }
            // Who asks does not wait for long; a question that finds no place is given up there.
            ToWorker::Metrics { question } => drop(questions.try_send(question)),
            ToWorker::Status { question } => {
                if let Some(serving) = self.serving.get() {
                    self.send_report(&serving.models.report(), Some(question));
                }
            }
        }
    }

    fn gather(&self, asked: &Receiver<u64>) {
        for question in asked {
            let Some(serving) = self.serving.get() else { continue };
            let text = String::from_utf8_lossy(&serving.health.metrics()).into_owned();
            self.say(&ToSupervisor::Metrics { question, text });
        }
    }

    /// Ends in order, and out of order when that takes too long.
    fn orphaned(&self, broken: &str, patience: Duration) {
        tracing::error!(
            broken,
            "the supervisor is gone: finishing what is under way, then leaving"
        );
        self.endings.tell(Ending::DrainNow);
        thread::sleep(patience);
        tracing::error!("what is under way does not end; leaving");
        signal_hook::low_level::exit(i32::from(Exit::Interrupted.code()));
    }
}
