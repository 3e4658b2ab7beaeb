//! One connection: read a request, answer it, see the client off. Never waits for the client.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use rustix::event::PollFlags;

use super::request::{Refusal, Request};
use super::{CONNECTION_DEADLINE, GATHER_DEADLINE, HEAD_BYTES_MAX, response};

/// Bytes that are read and thrown away after the answer, so that closing does not reset the connection before the
/// client has read it.
const LINGER_BYTES_MAX: usize = 64 * 1024;

/// What the port does with a request.
pub(super) enum Reply {
    /// These bytes are the answer.
    Now(Vec<u8>),
    /// The answer will be brought to [`Connection::answer`].
    Later,
}

/// A client and how far it has come.
pub(super) struct Connection {
    /// Never used twice, so that a late answer cannot reach another client.
    pub(super) number: u64,
    pub(super) stream: TcpStream,
    pub(super) deadline: Instant,
    phase: Phase,
}

enum Phase {
    /// The head is arriving.
    Reading(Vec<u8>),
    /// The gather thread has the question.
    Gathering { head_only: bool },
    /// The answer is leaving.
    Writing { bytes: Vec<u8>, written: usize },
    /// The answer has left; waiting for the client to close.
    Lingering { thrown_away: usize },
    /// Nothing more to do.
    Done,
}

// ===== impl Connection =====

impl Connection {
    /// # Errors
    /// When the socket does not take its settings; it is not worth keeping then.
    pub(super) fn new(number: u64, stream: TcpStream, now: Instant) -> io::Result<Connection> {
        stream.set_nonblocking(true)?;
        let deadline = now + CONNECTION_DEADLINE;
        Ok(Connection { number, stream, deadline, phase: Phase::Reading(Vec::new()) })
    }

    /// What is to be waited for. Nothing still means errors and hang-ups.
    pub(super) fn interest(&self) -> PollFlags {
        match self.phase {
            Phase::Reading(_) | Phase::Lingering { .. } => PollFlags::IN,
            Phase::Writing { .. } => PollFlags::OUT,
            Phase::Gathering { .. } | Phase::Done => PollFlags::empty(),
        }
    }

    /// How gladly the connection is given up when there are too many: the lower, the sooner.
    pub(super) fn worth(&self) -> (u8, u64) {
        let rank = match self.phase {
            Phase::Done | Phase::Lingering { .. } => 0,
            Phase::Reading(_) => 1,
            Phase::Writing { .. } => 2,
            Phase::Gathering { .. } => 3,
        };
        (rank, self.number)
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    /// Goes as far as is possible without waiting.
    pub(super) fn advance(&mut self, now: Instant, reply: &mut dyn FnMut(u64, Request) -> Reply) {
        loop {
            let step = match &mut self.phase {
                Phase::Reading(_) => self.read(now, reply),
                Phase::Writing { .. } => self.write(now),
                Phase::Lingering { .. } => self.linger(),
                Phase::Gathering { .. } | Phase::Done => return,
            };
            match step {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The client went away; there is nobody to tell.
                Err(_) => self.phase = Phase::Done,
            }
        }
    }

    /// The kernel reports an error or a hang-up. In other phases than these, reading and writing find it out.
    pub(super) fn hung_up(&mut self) {
        if let Phase::Gathering { .. } = self.phase {
            self.phase = Phase::Done;
        }
    }

    /// Brings the answer that was promised with [`Reply::Later`].
    pub(super) fn answer(&mut self, now: Instant, bytes: Vec<u8>) {
        if let Phase::Gathering { .. } = self.phase {
            self.start_writing(bytes, now + GATHER_DEADLINE);
        }
    }

    /// The deadline has passed.
    pub(super) fn expire(&mut self, now: Instant) {
        match &self.phase {
            Phase::Reading(bytes) if !bytes.is_empty() => {
                let bytes = response::refusal(Refusal::TooSlow, false);
                self.start_writing(bytes, now + CONNECTION_DEADLINE);
            }
            Phase::Gathering { head_only } => {
                let bytes = response::busy(*head_only);
                self.start_writing(bytes, now + CONNECTION_DEADLINE);
            }
            Phase::Reading(_) | Phase::Writing { .. } | Phase::Lingering { .. } | Phase::Done => {
                self.phase = Phase::Done;
            }
        }
    }

    fn start_writing(&mut self, bytes: Vec<u8>, deadline: Instant) {
        self.phase = Phase::Writing { bytes, written: 0 };
        self.deadline = deadline;
    }

    fn read(
        &mut self,
        now: Instant,
        reply: &mut dyn FnMut(u64, Request) -> Reply,
    ) -> io::Result<()> {
        let Phase::Reading(bytes) = &mut self.phase else { return Ok(()) };
        let mut chunk = [0; 2048];
        // One byte more than allowed is enough to know that it is too much.
        let room = chunk.len().min(HEAD_BYTES_MAX + 1 - bytes.len().min(HEAD_BYTES_MAX));
        let count = self.stream.read(&mut chunk[..room])?;
        if count == 0 {
            self.phase = Phase::Done;
            return Ok(());
        }
        bytes.extend_from_slice(&chunk[..count]);
        if let Some(request) = Request::parse(bytes) {
            match reply(self.number, request) {
                Reply::Now(bytes) => self.start_writing(bytes, now + CONNECTION_DEADLINE),
                Reply::Later => {
                    self.phase = Phase::Gathering { head_only: request.head_only };
                    self.deadline = now + GATHER_DEADLINE;
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, now: Instant) -> io::Result<()> {
        let Phase::Writing { bytes, written } = &mut self.phase else { return Ok(()) };
        if *written < bytes.len() {
            *written += self.stream.write(&bytes[*written..])?;
            return Ok(());
        }
        self.stream.shutdown(Shutdown::Write)?;
        self.phase = Phase::Lingering { thrown_away: 0 };
        self.deadline = now + CONNECTION_DEADLINE;
        Ok(())
    }

    fn linger(&mut self) -> io::Result<()> {
        let Phase::Lingering { thrown_away } = &mut self.phase else { return Ok(()) };
        let mut chunk = [0; 8192];
        let count = self.stream.read(&mut chunk)?;
        *thrown_away += count;
        if count == 0 || *thrown_away > LINGER_BYTES_MAX {
            self.phase = Phase::Done;
        }
        Ok(())
    }
}
