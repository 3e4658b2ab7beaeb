//! The probe thread: one `poll` over the listener and all connections.

use std::io::Read;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::connection::{Connection, Reply};
use super::gather::{Answer, Question, Topic};
use super::request::{Request, Route};
use super::{CONNECTIONS_MAX, ManagementSource, response};

/// Connections accepted in one turn, before those that are open get theirs.
const ACCEPTS_PER_TURN: usize = 64;
/// Descriptors kept in reserve, to be able to accept when the rest of the process has used up all others.
const SPARES: usize = 4;
/// How long nothing is accepted after that has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Longest sleep, so that a lost wake-up cannot last.
const TURN_MAX: Duration = Duration::from_secs(1);

/// Everything the probe thread owns.
pub(super) struct Port {
    listener: TcpListener,
    wakened: UnixStream,
    desk: Desk,
    answers: Receiver<Answer>,
    connections: Vec<Connection>,
    connections_made: u64,
    spares: Vec<UnixStream>,
    accept_after: Option<Instant>,
}

/// Where requests become replies.
struct Desk {
    source: Arc<dyn ManagementSource>,
    questions: SyncSender<Question>,
}

// ===== impl Port =====

impl Port {
    pub(super) fn new(
        listener: TcpListener,
        wakened: UnixStream,
        source: Arc<dyn ManagementSource>,
        questions: SyncSender<Question>,
        answers: Receiver<Answer>,
    ) -> Port {
        Port {
            listener,
            wakened,
            desk: Desk { source, questions },
            answers,
            connections: Vec::with_capacity(CONNECTIONS_MAX),
            connections_made: 0,
            spares: Vec::with_capacity(SPARES),
            accept_after: None,
        }
    }

    /// Turns until told to stop.
    pub(super) fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            // A source that panics is caught at the desk. What is caught here is a mistake of this module, and
            // must not end the probes either.
            if catch_unwind(AssertUnwindSafe(|| self.turn())).is_err() {
                tracing::error!("the management port panicked and starts anew");
                self.connections.clear();
            }
        }
    }

    fn turn(&mut self) {
        self.keep_spares();
        let acceptable = match self.wait() {
            Ok(acceptable) => acceptable,
            Err(Errno::INTR) => return,
            Err(_) => return thread::sleep(ACCEPT_PAUSE),
        };
        self.take_answers();
        if acceptable {
            self.accept();
        }
        let now = Instant::now();
        let Port { connections, desk, .. } = self;
        for connection in connections.iter_mut().filter(|connection| connection.deadline <= now) {
            connection.expire(now);
            connection.advance(now, &mut |number, request| desk.reply(number, request));
        }
        connections.retain(|connection| !connection.is_done());
    }

    /// Sleeps until something can be done, advances the connections that can, and tells whether a client waits at
    /// the door.
    fn wait(&mut self) -> Result<bool, Errno> {
        let now = Instant::now();
        self.accept_after = self.accept_after.filter(|after| *after > now);
        let door = if self.accept_after.is_some() { PollFlags::empty() } else { PollFlags::IN };
        let deadlines = self.connections.iter().map(|connection| connection.deadline);
        let next = deadlines.chain(self.accept_after).min();
        let sleep = next.map_or(TURN_MAX, |next| next.saturating_duration_since(now).min(TURN_MAX));
        let mut watched = Vec::with_capacity(2 + self.connections.len());
        watched.push(PollFd::new(&self.listener, door));
        watched.push(PollFd::new(&self.wakened, PollFlags::IN));
        for connection in &self.connections {
            watched.push(PollFd::new(&connection.stream, connection.interest()));
        }
        let timeout = Timespec::try_from(sleep).map_err(|_| Errno::INVAL)?;
        poll(&mut watched, Some(&timeout))?;
        let seen: Vec<PollFlags> = watched.iter().map(PollFd::revents).collect();

        let now = Instant::now();
        let Port { connections, desk, .. } = self;
        for (connection, flags) in connections.iter_mut().zip(&seen[2..]) {
            if flags.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
                connection.hung_up();
            }
            if !flags.is_empty() {
                connection.advance(now, &mut |number, request| desk.reply(number, request));
            }
        }
        connections.retain(|connection| !connection.is_done());
        if seen[1].contains(PollFlags::IN) {
            let mut bytes = [0; 64];
            // Emptied, so that the next turn can sleep; its contents say nothing.
            while matches!(self.wakened.read(&mut bytes), Ok(count) if count == bytes.len()) {}
        }
        Ok(seen[0].contains(PollFlags::IN))
    }

    fn take_answers(&mut self) {
        let now = Instant::now();
        while let Ok(Answer { connection: number, bytes }) = self.answers.try_recv() {
            let Port { connections, desk, .. } = self;
            // Whoever asked may have left.
            if let Some(asker) =
                connections.iter_mut().find(|connection| connection.number == number)
            {
                asker.answer(now, bytes);
                asker.advance(now, &mut |number, request| desk.reply(number, request));
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN) => return,
                    // The client left before it was let in, or the network fails for it alone.
                    Some(Errno::INTR | Errno::CONNABORTED | Errno::NETDOWN | Errno::NETUNREACH) => {
                        continue;
                    }
                    Some(Errno::MFILE | Errno::NFILE) if self.free_descriptor() => continue,
                    _ => {
                        self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
                        return;
                    }
                },
            };
            if self.connections.len() >= CONNECTIONS_MAX {
                self.give_up_one();
            }
            let now = Instant::now();
            self.connections_made += 1;
            let Ok(mut connection) = Connection::new(self.connections_made, stream, now) else {
                continue;
            };
            // The request of a probe is mostly there already.
            let desk = &self.desk;
            connection.advance(now, &mut |number, request| desk.reply(number, request));
            if !connection.is_done() {
                self.connections.push(connection);
            }
        }
    }

    /// Closes the connection that is worth the least: the oldest of those that were answered, else the oldest idle.
    fn give_up_one(&mut self) -> bool {
        let least = (0..self.connections.len()).min_by_key(|&at| self.connections[at].worth());
        least.map(|at| self.connections.swap_remove(at)).is_some()
    }

    /// Makes room for one more descriptor.
    fn free_descriptor(&mut self) -> bool {
        self.spares.pop().is_some() || self.give_up_one()
    }

    fn keep_spares(&mut self) {
        while self.spares.len() < SPARES {
            match self.wakened.try_clone() {
                Ok(spare) => self.spares.push(spare),
                Err(_) => return,
            }
        }
    }
}

// ===== impl Desk =====

impl Desk {
    fn reply(&self, connection: u64, request: Request) -> Reply {
        let head_only = request.head_only;
        let route = match request.outcome {
            Ok(route) => route,
            Err(refusal) => return Reply::Now(response::refusal(refusal, head_only)),
        };
        let source = &*self.source;
        let answer = catch_unwind(AssertUnwindSafe(|| match route {
            Route::Startup => Ok(source.startup()),
            Route::Live => Ok(source.live()),
            Route::Ready => Ok(source.ready()),
            Route::Status => Err(Topic::Status),
            Route::Metrics => Err(Topic::Metrics),
        }));
        match answer {
            Ok(Ok(answer)) => Reply::Now(response::probe(&answer, head_only)),
            Ok(Err(topic)) => {
                let asked = Instant::now();
                match self.questions.try_send(Question { connection, topic, head_only, asked }) {
                    Ok(()) => Reply::Later,
                    Err(_) => Reply::Now(response::busy(head_only)),
                }
            }
            Err(_) => {
                tracing::error!(?route, "a probe's source panicked");
                Reply::Now(response::panicked(head_only))
            }
        }
    }
}
