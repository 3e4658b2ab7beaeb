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
pub use server::Sockets;

use super::DataPort;
use super::metrics::HttpMetrics;
use crate::config::ListenAddr;
use server::Server;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
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

/// A socket that is bound and not yet served.
pub struct Bound {
    socket: Socket,
    addr: ListenAddr,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, OwnFile),
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
    pub async fn bind(addr: &ListenAddr) -> Result<Self, ListenError> {
        let failed = |source| ListenError { addr: addr.to_string(), source };
        let socket = match addr {
            ListenAddr::Tcp(addr) => {
                let listener = TcpListener::bind(addr).await.map_err(failed)?;
                rustix::net::listen(&listener, BACKLOG).map_err(|error| failed(error.into()))?;
                Socket::Tcp(listener)
            }
            ListenAddr::Unix(path) => {
                remove_stale(path).await.map_err(failed)?;
                let listener = UnixListener::bind(path).map_err(failed)?;
                Socket::Unix(listener, OwnFile::of(path))
            }
        };
        Ok(Bound { socket, addr: addr.clone() })
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
            Socket::Unix(_, file) => Ok(Listening::Unix(file.path.clone())),
        }
    }

    /// Serves until `stop` turns true, then lets what is inside finish for `drain_timeout` at most.
    /// Gives the number of connections that had to be cut.
    pub async fn serve(
        self,
        port: DataPort,
        sockets: Sockets,
        metrics: HttpMetrics,
        mut stop: watch::Receiver<bool>,
        drain_timeout: Duration,
    ) -> usize {
        let server = Server::new(port, sockets, metrics, stop.clone());
        loop {
            tokio::select! {
                () = accept(&self.socket, &server) => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        if let Socket::Unix(_, file) = &self.socket {
            file.remove();
        }
        drop(self.socket);
        server.finish(drain_timeout).await
    }
}

/// Takes the next connection.
async fn accept(socket: &Socket, server: &Server) {
    let accepted = match socket {
        Socket::Tcp(listener) => listener.accept().await.map(|(stream, _peer)| {
            // Small answers must not wait for a delayed acknowledgement.
            let _ = stream.set_nodelay(true);
            server.take(stream);
        }),
        Socket::Unix(listener, _) => {
            listener.accept().await.map(|(stream, _peer)| server.take(stream))
        }
    };
    if let Err(error) = accepted {
        tracing::warn!(%error, "connection not accepted");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}
