//! Sockets of the data port: TCP or a unix socket, bounded connections, and an orderly end.
//!
//! Every state that a connection can be in has a bound: of number (places), of time
//! ([`activity`]: what is due; [`patience`]: the timer; [`request`]: bodies), of bytes (`server.rs`, [`linger`]).

mod activity;
mod linger;
mod patience;
mod request;
mod server;
mod socket;
mod unix;

pub(super) use activity::Reason;
pub(super) use request::BodyFault;
pub use request::BodyPace;
pub use server::{Sockets, Stage};

use super::DataPort;
use super::metrics::HttpMetrics;
use crate::config::ListenAddr;
use server::Server;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use unix::{OwnFile, remove_stale};

/// Connections that the kernel keeps until they are accepted, where it allows as many. One that it drops is tried again
/// by its client only after a second.
const BACKLOG: i32 = 4096;
/// After a failed accept, for example for want of file descriptors, the next try waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The data port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr} (http.addr): {source}")]
pub struct ListenError {
    addr: String,
    source: io::Error,
}

/// A socket that is bound and not yet served. Its file, where it has one, goes with its [`SocketFile`] or at the end of
/// [`Bound::serve`].
#[derive(Debug)]
pub struct Bound {
    socket: Socket,
    addr: ListenAddr,
}

/// The file of a socket that was let go of, if it has one that is ours.
#[derive(Debug)]
pub struct SocketFile(Option<OwnFile>);

impl SocketFile {
    /// Removes it, if this process has made it and it is still there.
    pub fn remove(&self) {
        if let Some(file) = &self.0 {
            file.remove();
        }
    }
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    /// The file is not ours where another process has bound the socket.
    Unix(UnixListener, PathBuf, Option<OwnFile>),
}

/// The same, in the runtime.
enum Door {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

/// Where the data port can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listening {
    /// By TCP.
    Tcp(SocketAddr),
    /// By a unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listening::Tcp(addr) => write!(f, "http://{addr}"),
            Listening::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Bound {
    /// Binds `addr`. A stale unix socket, on which nobody listens, is replaced.
    ///
    /// # Errors
    /// [`ListenError`], for example when the address is in use.
    pub fn bind(addr: &ListenAddr) -> Result<Self, ListenError> {
        let failed = |source| ListenError { addr: addr.to_string(), source };
        let socket = match addr {
            ListenAddr::Tcp(addr) => {
                let listener = TcpListener::bind(addr).map_err(failed)?;
                rustix::net::listen(&listener, BACKLOG).map_err(|error| failed(error.into()))?;
                listener.set_nonblocking(true).map_err(failed)?;
                Socket::Tcp(listener)
            }
            ListenAddr::Unix(path) => {
                remove_stale(path).map_err(failed)?;
                let listener = UnixListener::bind(path).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Socket::Unix(listener, path.clone(), Some(OwnFile::of(path)))
            }
        };
        Ok(Bound { socket, addr: addr.clone() })
    }

    /// Takes a listening socket of TCP that another process has bound.
    ///
    /// # Errors
    /// [`ListenError`], when it is none.
    pub fn tcp(listener: impl Into<OwnedFd>) -> Result<Self, ListenError> {
        let listener = TcpListener::from(listener.into());
        let unknown =
            |source| ListenError { addr: "the socket that was handed over".to_owned(), source };
        listener.set_nonblocking(true).map_err(unknown)?;
        let addr = ListenAddr::Tcp(listener.local_addr().map_err(unknown)?);
        Ok(Bound { socket: Socket::Tcp(listener), addr })
    }

    /// Takes a listening unix socket at `path` that another process has bound, and whose file is that one's.
    ///
    /// # Errors
    /// [`ListenError`], when it is none.
    pub fn unix(listener: impl Into<OwnedFd>, path: PathBuf) -> Result<Self, ListenError> {
        let listener = UnixListener::from(listener.into());
        let addr = ListenAddr::Unix(path.clone());
        let failed = |source| ListenError { addr: addr.to_string(), source };
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Bound { socket: Socket::Unix(listener, path, None), addr })
    }

    /// The socket, to be handed to another process.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_fd(),
            Socket::Unix(listener, ..) => listener.as_fd(),
        }
    }

    /// Removes the file of a unix socket, if this process has made it and it is still there.
    fn remove_file(&self) {
        if let Socket::Unix(_, _, Some(file)) = &self.socket {
            file.remove();
        }
    }

    /// Closes the socket here, and leaves its file, which others need who have the socket too.
    pub fn let_go(self) -> SocketFile {
        match self.socket {
            Socket::Unix(_, _, file) => SocketFile(file),
            Socket::Tcp(_) => SocketFile(None),
        }
    }

    /// Where it listens; the port is the real one when 0 was asked for.
    ///
    /// # Errors
    /// When the socket has no address any more.
    pub fn listening(&self) -> Result<Listening, ListenError> {
        match &self.socket {
            Socket::Tcp(listener) => listener
                .local_addr()
                .map(Listening::Tcp)
                .map_err(|source| ListenError { addr: self.addr.to_string(), source }),
            Socket::Unix(_, path, _) => Ok(Listening::Unix(path.clone())),
        }
    }

    /// Serves until the last stage, then lets what is inside finish for `drain_timeout` at most. `closed` is called when
    /// no new connection is taken any more.
    /// Gives the number of connections that had to be cut.
    ///
    /// # Errors
    /// [`ListenError`], when the runtime does not take the socket.
    pub async fn serve(
        self,
        port: DataPort,
        sockets: Sockets,
        metrics: HttpMetrics,
        mut stage: watch::Receiver<Stage>,
        drain_timeout: Duration,
        closed: impl FnOnce(),
    ) -> Result<usize, ListenError> {
        let door = self.door()?;
        let server = Server::new(port, sockets, metrics, stage.clone(), drain_timeout);
        loop {
            tokio::select! {
                () = accept(&door, &server) => {}
                _ = stage.wait_for(|stage| *stage == Stage::Stopping) => break,
            }
        }
        self.remove_file();
        self.take_the_rest(&server);
        drop((door, self));
        closed();
        Ok(server.finish(drain_timeout).await)
    }

    /// Takes those that have connected already: with the socket the kernel would reset them, whatever they have asked.
    fn take_the_rest(&self, server: &Server) {
        for _ in 0..BACKLOG {
            let taken = match &self.socket {
                Socket::Tcp(listener) => listener.accept().and_then(|(stream, _peer)| {
                    stream.set_nonblocking(true)?;
                    take_tcp(server, TcpStream::from_std(stream)?);
                    Ok(())
                }),
                Socket::Unix(listener, ..) => listener.accept().and_then(|(stream, _peer)| {
                    stream.set_nonblocking(true)?;
                    server.take(UnixStream::from_std(stream)?);
                    Ok(())
                }),
            };
            // Mostly that there is none.
            if taken.is_err() {
                return;
            }
        }
    }

    fn door(&self) -> Result<Door, ListenError> {
        let taken = match &self.socket {
            Socket::Tcp(listener) => {
                listener.try_clone().and_then(tokio::net::TcpListener::from_std).map(Door::Tcp)
            }
            Socket::Unix(listener, ..) => {
                listener.try_clone().and_then(tokio::net::UnixListener::from_std).map(Door::Unix)
            }
        };
        taken.map_err(|source| ListenError { addr: self.addr.to_string(), source })
    }
}

/// Takes the next connection.
async fn accept(door: &Door, server: &Server) {
    let accepted = match door {
        Door::Tcp(listener) => listener.accept().await.map(|(stream, _peer)| {
            take_tcp(server, stream);
        }),
        Door::Unix(listener) => listener.accept().await.map(|(stream, _peer)| server.take(stream)),
    };
    if let Err(error) = accepted {
        tracing::warn!(%error, "connection not accepted");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

fn take_tcp(server: &Server, stream: TcpStream) {
    // Small answers must not wait for a delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    server.take(stream);
}
