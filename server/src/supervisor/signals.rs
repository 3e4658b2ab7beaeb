//! Signals as bytes in sockets, so that one `poll` waits for them and for everything else.

use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;

/// The signals that the supervisor heeds.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: UnixStream,
    interrupt: UnixStream,
    child: UnixStream,
}

impl Signals {
    /// Heeds them from now on.
    ///
    /// # Errors
    /// When the system does not give a pair of sockets.
    pub(crate) fn heed() -> io::Result<Signals> {
        Ok(Signals {
            terminate: wakened_by(SIGTERM)?,
            interrupt: wakened_by(SIGINT)?,
            child: wakened_by(SIGCHLD)?,
        })
    }

    /// What is to be polled for input.
    pub(super) fn sockets(&self) -> [&UnixStream; 3] {
        [&self.terminate, &self.interrupt, &self.child]
    }

    /// The signals to end that came since it was last asked, by name, each as often as it came.
    pub(super) fn take(&self) -> Vec<&'static str> {
        count(&self.child);
        let mut found = vec!["SIGTERM"; count(&self.terminate)];
        found.extend(vec!["SIGINT"; count(&self.interrupt)]);
        found
    }
}

fn wakened_by(signal: i32) -> io::Result<UnixStream> {
    let (wakened, waker) = UnixStream::pair()?;
    wakened.set_nonblocking(true)?;
    pipe::register(signal, waker)?;
    Ok(wakened)
}

fn count(mut socket: &UnixStream) -> usize {
    let mut bytes = [0; 64];
    socket.read(&mut bytes).unwrap_or(0)
}
