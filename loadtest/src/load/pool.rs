//! The connections of one client: as many as it has exchanges at once, kept and used again.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::client::conn::http2;
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use crate::client::{Connection, ExchangeError, Reply};
use crate::scenario::Protocol;

/// Streams on one HTTP/2 connection; what servers commonly allow.
const STREAMS_MAX: usize = 100;
/// How long no connection is tried after one has failed: at first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// Connections to one target.
pub(crate) struct Pool {
    address: SocketAddr,
    protocol: Protocol,
    outage: Rc<Outage>,
    idle: RefCell<Vec<Connection>>,
    multiplexed: Mutex<Vec<Rc<Multiplexed>>>,
}

/// An HTTP/2 connection and the streams on it.
struct Multiplexed {
    sender: http2::SendRequest<Full<Bytes>>,
    streams: Cell<usize>,
}

/// What is known of a target that cannot be reached. All pools of a run share it: a dead target is not to be hammered.
#[derive(Default)]
pub(crate) struct Outage {
    failures: Cell<u32>,
    not_before: Cell<Option<Instant>>,
}

/// Runs hyper's tasks on the generator's own thread.
#[derive(Clone, Copy)]
struct Here;

// ===== impl Pool =====

impl Pool {
    pub(crate) fn new(address: SocketAddr, protocol: Protocol, outage: Rc<Outage>) -> Pool {
        Pool { address, protocol, outage, idle: RefCell::default(), multiplexed: Mutex::default() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Sends the request and reads the answer to its end. Dropped, it gives up the exchange: the connection, or with
    /// HTTP/2 the stream.
    pub(crate) async fn exchange(
        &self,
        request: &Request<Full<Bytes>>,
    ) -> Result<Reply, ExchangeError> {
        match self.protocol {
            Protocol::Http1 => self.exclusive(request).await,
            Protocol::Http2 => self.stream(request).await,
        }
    }

    async fn exclusive(&self, request: &Request<Full<Bytes>>) -> Result<Reply, ExchangeError> {
        let kept = self.idle.borrow_mut().pop();
        if let Some(mut connection) = kept {
            match connection.exchange(request.clone()).await {
                Ok(reply) => {
                    self.keep(connection, &reply);
                    return Ok(reply);
                }
                // As every client does: nothing was sent, so nothing is sent twice.
                Err(error) if error.is_stale() => {}
                Err(error) => return Err(error),
            }
        }
        let mut connection =
            self.outage.guard(self.address, Connection::open(self.address)).await?;
        let reply = connection.exchange(request.clone()).await?;
        self.keep(connection, &reply);
        Ok(reply)
    }

    fn keep(&self, connection: Connection, reply: &Reply) {
        if reply.keep && connection.is_open() {
            self.idle.borrow_mut().push(connection);
        }
    }

    async fn stream(&self, request: &Request<Full<Bytes>>) -> Result<Reply, ExchangeError> {
        let connection = self.with_room().await?;
        let _place = Place::take(&connection);
        let mut sender = connection.sender.clone();
        Reply::read(sender.send_request(request.clone()).await?).await
    }

    /// A connection that has room for a stream. One at a time looks for it, so that a burst opens no more than it needs.
    async fn with_room(&self) -> Result<Rc<Multiplexed>, ExchangeError> {
        let mut connections = self.multiplexed.lock().await;
        connections.retain(|connection| !connection.sender.is_closed());
        let room = |connection: &&Rc<Multiplexed>| connection.streams.get() < STREAMS_MAX;
        if let Some(connection) = connections.iter().find(room) {
            return Ok(Rc::clone(connection));
        }
        let sender = self.outage.guard(self.address, multiplex(self.address)).await?;
        let connection = Rc::new(Multiplexed { sender, streams: Cell::new(0) });
        connections.push(Rc::clone(&connection));
        Ok(connection)
    }
}

async fn multiplex(address: SocketAddr) -> Result<http2::SendRequest<Full<Bytes>>, ExchangeError> {
    let failed = |error| ExchangeError::Connect(address, error);
    let stream = TcpStream::connect(address).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let (sender, driver) = http2::handshake(Here, TokioIo::new(stream)).await?;
    tokio::task::spawn_local(driver);
    Ok(sender)
}

/// A stream that is counted while it lives.
struct Place<'a>(&'a Multiplexed);

impl<'a> Place<'a> {
    fn take(connection: &'a Multiplexed) -> Place<'a> {
        connection.streams.set(connection.streams.get() + 1);
        Place(connection)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get().saturating_sub(1));
    }
}

impl<F: Future<Output: 'static> + 'static> Executor<F> for Here {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

// ===== impl Outage =====

impl Outage {
    /// Connects, or says at once that it has just failed.
    async fn guard<T>(
        &self,
        address: SocketAddr,
        connect: impl Future<Output = Result<T, ExchangeError>>,
    ) -> Result<T, ExchangeError> {
        if self.not_before.get().is_some_and(|moment| Instant::now() < moment) {
            return Err(ExchangeError::Down(address));
        }
        let connected = connect.await;
        if connected.is_ok() {
            self.failures.set(0);
            self.not_before.set(None);
        } else {
            self.failures.set(self.failures.get().saturating_add(1));
            self.not_before.set(Some(Instant::now() + backoff(self.failures.get())));
        }
        connected
    }
}

fn backoff(failures: u32) -> Duration {
    let (first, most) = BACKOFF;
    first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::scripted;
    use tokio::task::LocalSet;

    fn request() -> Request<Full<Bytes>> {
        Request::post("/").header("host", "x").body(Full::new(Bytes::from_static(b"end"))).unwrap()
    }

    fn pool(address: SocketAddr) -> Pool {
        Pool::new(address, Protocol::Http1, Rc::default())
    }

    #[tokio::test]
    async fn a_connection_is_used_again_and_one_that_was_closed_is_replaced() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec();
        let pool = pool(scripted(answer, b"end", 2).await);
        pool.exchange(&request()).await.unwrap();
        assert_eq!(pool.idle.borrow().len(), 1);
        for _ in 0..5 {
            assert_eq!(pool.exchange(&request()).await.unwrap().body, b"ok"[..]);
            assert!(pool.idle.borrow().len() <= 1);
        }
    }

    #[tokio::test]
    async fn a_connection_that_the_server_closes_is_not_kept() {
        let answer = b"HTTP/1.1 503 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_vec();
        let pool = pool(scripted(answer, b"end", 1).await);
        pool.exchange(&request()).await.unwrap();
        assert!(pool.idle.borrow().is_empty());
    }

    #[tokio::test]
    async fn a_dead_target_is_left_alone_for_a_while() {
        let pool = pool("127.0.0.1:1".parse().unwrap());
        assert_eq!(pool.exchange(&request()).await.unwrap_err().kind(), "refused");
        assert_eq!(pool.exchange(&request()).await.unwrap_err().kind(), "down");
        tokio::time::sleep(BACKOFF.0 * 2).await;
        assert_eq!(pool.exchange(&request()).await.unwrap_err().kind(), "refused");
    }

    #[test]
    fn backing_off_has_an_end() {
        let milliseconds: Vec<_> =
            [1, 2, 3, 7, 100].map(|failures| backoff(failures).as_millis()).to_vec();
        assert_eq!(milliseconds, [10, 20, 40, 500, 500]);
    }

    #[tokio::test]
    async fn streams_share_a_connection() {
        let address = crate::noop::serve().unwrap();
        let pool = Rc::new(Pool::new(address, Protocol::Http2, Rc::default()));
        let local = LocalSet::new();
        let asking = (0..150).map(|_| {
            let pool = Rc::clone(&pool);
            local.spawn_local(async move { pool.exchange(&request()).await.unwrap().status })
        });
        let asking: Vec<_> = asking.collect();
        local
            .run_until(async {
                for asked in asking {
                    assert_eq!(asked.await.unwrap(), 200);
                }
            })
            .await;
        let connections = pool.multiplexed.lock().await;
        assert!((1..=2).contains(&connections.len()));
        assert!(connections.iter().all(|connection| connection.streams.get() == 0));
    }
}
