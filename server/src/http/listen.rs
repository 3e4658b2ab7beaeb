//! Sockets of the data port: TCP or a unix socket, bounded connections, and an orderly end.

use super::metrics::HttpMetrics;
use crate::config::ListenAddr;
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::sync::watch;

/// Streams of one HTTP/2 connection that may be open at once.
const H2_STREAMS_MAX: u32 = 100;
/// An HTTP/2 connection is asked this often whether it is still there,
const H2_PING_EVERY: Duration = Duration::from_secs(20);
/// and has this long to say so.
const H2_PING_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept, for example for want of file descriptors, the next try waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What a connection beyond the bound gets: a whole answer, so that its client need not wait in the backlog.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nx-shed-reason: connections\r\nconnection: close\r\ncontent-length: 86\r\n\r\n{\"error\":\"the server has as many connections as it may open\",\"code\":\"too_many_conns\"}\n";

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

/// Bounds of the sockets.
#[derive(Clone, Copy, Debug)]
pub struct Sockets {
    /// Connections that may be open at once.
    pub connections: usize,
    /// Time that a client has for the head of a request, from the opening of the connection or the answer before.
    pub header_timeout: Duration,
}

impl Bound {
    /// Binds `addr`. A stale unix socket, on which nobody listens, is replaced.
    ///
    /// # Errors
    /// [`ListenError`], for example when the address is in use.
    pub async fn bind(addr: &ListenAddr) -> Result<Self, ListenError> {
        let failed = |source| ListenError { addr: addr.to_string(), source };
        let socket = match addr {
            ListenAddr::Tcp(addr) => Socket::Tcp(TcpListener::bind(addr).await.map_err(failed)?),
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
        router: Router,
        sockets: Sockets,
        metrics: HttpMetrics,
        mut stop: watch::Receiver<bool>,
        drain_timeout: Duration,
    ) -> usize {
        let server = Server::new(router, sockets, metrics, stop.clone());
        loop {
            tokio::select! {
                () = server.accept(&self.socket) => {}
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

/// The file of a unix socket that this process has bound.
struct OwnFile {
    path: PathBuf,
    id: Option<(u64, u64)>,
}

impl OwnFile {
    fn of(path: &Path) -> Self {
        OwnFile { path: path.to_owned(), id: file_id(path) }
    }

    /// Removes the file, unless another process has put its own in the place.
    fn remove(&self) {
        if self.id.is_some() && file_id(&self.path) == self.id {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn file_id(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// A socket file that a dead process left is in the way of the next one; a live one is not touched.
async fn remove_stale(path: &PathBuf) -> io::Result<()> {
    match UnixStream::connect(path).await {
        // Nobody listens: the one answer that says so. (A full backlog, for one, is an error, too.)
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another process listens there, or something else is there",
            ));
        }
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
            std::fs::remove_file(path)
        }
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path is not a socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// A connection, of either kind.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Waits for the first byte, or the end.
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;
}

impl Stream for TcpStream {
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send {
        TcpStream::readable(self)
    }
}

impl Stream for UnixStream {
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send {
        UnixStream::readable(self)
    }
}

struct Server {
    service: TowerToHyperService<Router>,
    builder: auto::Builder<TokioExecutor>,
    connections: Arc<Semaphore>,
    metrics: HttpMetrics,
    graceful: GracefulShutdown,
    sockets: Sockets,
    stop: watch::Receiver<bool>,
}

impl Server {
    fn new(
        router: Router,
        sockets: Sockets,
        metrics: HttpMetrics,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(sockets.header_timeout)
            .pipeline_flush(true);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS_MAX)
            // A peer that is gone without a word is found by its silence.
            .keep_alive_interval(H2_PING_EVERY)
            .keep_alive_timeout(H2_PING_TIMEOUT);
        Server {
            service: TowerToHyperService::new(router),
            builder,
            connections: Arc::new(Semaphore::new(sockets.connections)),
            metrics,
            graceful: GracefulShutdown::new(),
            sockets,
            stop,
        }
    }

    async fn accept(&self, socket: &Socket) {
        let accepted = match socket {
            Socket::Tcp(listener) => match listener.accept().await {
                Ok((stream, _peer)) => {
                    // Small answers must not wait for a delayed acknowledgement.
                    let _ = stream.set_nodelay(true);
                    self.connection(stream);
                    Ok(())
                }
                Err(error) => Err(error),
            },
            Socket::Unix(listener, _) => match listener.accept().await {
                Ok((stream, _peer)) => {
                    self.connection(stream);
                    Ok(())
                }
                Err(error) => Err(error),
            },
        };
        if let Err(error) = accepted {
            tracing::warn!(%error, "connection not accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }

    fn connection<S: Stream>(&self, mut stream: S) {
        let Ok(place) = Arc::clone(&self.connections).try_acquire_owned() else {
            self.metrics.connections_refused.inc();
            tokio::spawn(async move {
                let refuse = async {
                    let _ = stream.write_all(FULL).await;
                    let _ = stream.shutdown().await;
                };
                let _ = tokio::time::timeout(Duration::from_millis(250), refuse).await;
            });
            return;
        };
        let open = OpenConnection::new(&self.metrics);
        let (builder, service) = (self.builder.clone(), self.service.clone());
        let (watcher, mut stop) = (self.graceful.watcher(), self.stop.clone());
        let patience = self.sockets.header_timeout;
        tokio::spawn(async move {
            // hyper starts its clock with the first byte; who sends none would hold a place for ever.
            let speaks = tokio::select! {
                ready = tokio::time::timeout(patience, stream.readable()) => matches!(ready, Ok(Ok(()))),
                _ = stop.wait_for(|stop| *stop) => false,
            };
            if speaks {
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                // A client that breaks off is not an event for the log.
                if let Err(error) = watcher.watch(connection.into_owned()).await {
                    tracing::debug!(error = %error, "connection ended with an error");
                }
            }
            drop(open);
            drop(place);
        });
    }

    async fn finish(self, drain_timeout: Duration) -> usize {
        let metrics = self.metrics.clone();
        match tokio::time::timeout(drain_timeout, self.graceful.shutdown()).await {
            Ok(()) => 0,
            Err(_elapsed) => usize::try_from(metrics.connections.get()).unwrap_or(0),
        }
    }
}

/// Counts a connection for as long as it lives.
struct OpenConnection(prometheus::IntGauge);

impl OpenConnection {
    fn new(metrics: &HttpMetrics) -> Self {
        metrics.connections.inc();
        OpenConnection(metrics.connections.clone())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}
