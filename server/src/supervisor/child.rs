//! The worker as a process: started, reaped, killed.

use super::suspects::Suspects;
use crate::environment::{self, NOT_INHERITED};
use crate::http::{Bound, Listening};
use crate::link::{HandoverError, Hello, PROTOCOL, SocketKind, hand_over};
use balm_probes::{End, Quarantined};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use std::env;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// This very program, though another one may lie under its name by now.
const PROGRAM: &str = "/proc/self/exe";

/// A worker that was started.
#[derive(Debug)]
pub(crate) struct Child {
    /// Its process.
    pub(super) pid: Pid,
    /// The line to it.
    pub(super) stream: UnixStream,
    /// Where it writes what it runs. None where the system has given no memory for it.
    pub(super) memory: Option<File>,
}

/// Starts a worker on the data port, which knows what is remembered of those before it and does not try the versions in
/// `quarantine`. It has the command line, the environment and the outputs of this process.
///
/// To be called on a thread that lives as long as the process.
///
/// # Errors
/// When the system does not give a process or a pair of sockets.
pub(crate) fn spawn(
    bound: &Bound,
    generation: u64,
    suspects: &Suspects,
    quarantine: &[Quarantined],
) -> io::Result<Child> {
    // Without it a server is better than none.
    let memory = suspects.memory();
    let memory = memory
        .inspect_err(|error| tracing::error!(%error, "what the worker runs is not recorded"))
        .ok();
    let (stream, theirs) = UnixStream::pair()?;
    let listening = bound.listening().map_err(io::Error::other)?;
    let socket = match listening {
        Listening::Tcp(_) => SocketKind::Tcp,
        Listening::Unix(path) => SocketKind::Unix(path),
    };
    // It finds the greeting when it looks for it; nobody waits for anybody.
    let quarantine = quarantine.to_vec();
    let hello = Hello { protocol: PROTOCOL, generation, socket, quarantine };
    let shared = memory.as_ref().map(AsFd::as_fd);
    hand_over(&stream, hello, bound.as_fd(), shared).map_err(|error| match error {
        HandoverError::Io(error) => error,
        other => io::Error::other(other),
    })?;
    stream.set_nonblocking(true)?;
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_else(|| "balm".into());
    let mut command = Command::new(PROGRAM);
    command.arg0(name).args(arguments).arg("--worker").stdin(OwnedFd::from(theirs));
    command.envs(environment::lacking());
    for variable in NOT_INHERITED {
        command.env_remove(variable);
    }
    // Reaped by number, with all others: see `reap`.
    let child = command.spawn()?;
    Ok(Child { pid: Pid::from_child(&child), stream, memory })
}

/// The next process that has ended, our own child or one that was left to us, as process 1 is.
pub(super) fn reap() -> Option<(Pid, End)> {
    loop {
        let (pid, status) = wait(WaitOptions::NOHANG).ok()??;
        let signal = status.terminating_signal().map(End::Signal);
        if let Some(end) = signal.or(status.exit_status().map(End::Code)) {
            return Some((pid, end));
        }
    }
}

impl Child {
    /// Kills it. It may have ended; it is not reaped yet, so the number is nobody else's.
    pub(super) fn kill(&self) {
        if let Err(error) = kill_process(self.pid, Signal::KILL) {
            tracing::warn!(%error, "worker not killed");
        }
    }
}
