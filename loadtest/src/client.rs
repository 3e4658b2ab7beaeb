//! One HTTP/1 connection, driven by whoever asks on it.
//!
//! hyper wants a connection to be polled beside the exchange. That happens here within the same task: an answer then
//! costs no wake-up of a second one, and the generator takes less of the cores that it shares with its target.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::CONNECTION;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::oip::HEADER_LENGTH;

/// This machine has no port left to connect from.
pub(crate) const OUT_OF_PORTS: &str = "out_of_ports";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error("no connection to {0}")]
    Connect(SocketAddr, #[source] io::Error),
    #[error("the connection failed")]
    Http(#[from] hyper::Error),
    #[error("the server has closed the connection")]
    Closed,
    /// Not tried: it has just been tried in vain.
    #[error("no connection to {0} a moment ago")]
    Down(SocketAddr),
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    /// How many bytes of the body are JSON, where the answer says so.
    pub(crate) header_length: Option<usize>,
    pub(crate) body: Bytes,
    /// The server goes on with this connection.
    pub(crate) keep: bool,
}

/// An open connection on which one exchange follows the other.
pub(crate) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// `None` when the server has closed it.
    driver: Option<Driver>,
}

type Driver = Pin<Box<http1::Connection<TokioIo<TcpStream>, Full<Bytes>>>>;

// ===== impl ExchangeError =====

impl ExchangeError {
    /// The request was never written: the server had closed the connection while nobody used it.
    pub(crate) fn is_stale(&self) -> bool {
        match self {
            ExchangeError::Closed => true,
            ExchangeError::Http(error) => error.is_canceled(),
            ExchangeError::Connect(..) | ExchangeError::Down(_) => false,
        }
    }

    /// In a word, for counting.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            ExchangeError::Connect(_, error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => "refused",
                io::ErrorKind::ConnectionReset => "reset",
                // No port, or no file descriptor, is left: that is this side's fault.
                io::ErrorKind::AddrNotAvailable => OUT_OF_PORTS,
                _ => "connect",
            },
            ExchangeError::Http(error) if error.is_incomplete_message() => "cut_off",
            ExchangeError::Http(_) => "reset",
            ExchangeError::Closed => "closed",
            ExchangeError::Down(_) => "down",
        }
    }
}

// ===== impl Connection =====

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Result<Self, ExchangeError> {
        let failed = |error| ExchangeError::Connect(address, error);
        let stream = TcpStream::connect(address).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        Ok(Connection { sender, driver: Some(Box::pin(driver)) })
    }

    /// Whether the server may still answer on it.
    pub(crate) fn is_open(&self) -> bool {
        self.driver.is_some()
    }

    /// Sends the request and reads the answer to its end.
    pub(crate) async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Reply, ExchangeError> {
        let driver = self.driver.as_mut().ok_or(ExchangeError::Closed)?;
        let sender = &mut self.sender;
        let whole = async { Reply::read(sender.send_request(request).await?).await };
        tokio::pin!(whole);
        tokio::select! {
            biased;
            reply = &mut whole => reply,
            ended = driver => {
                self.driver = None;
                ended?;
                // The server has answered and hung up, or hung up: what has arrived says which.
                whole.await
            }
        }
    }
}

impl Reply {
    /// Reads the answer to its end.
    pub(crate) async fn read(response: Response<Incoming>) -> Result<Reply, ExchangeError> {
        let (head, body) = response.into_parts();
        let header_length = head.headers.get(HEADER_LENGTH);
        let closes = head.headers.get(CONNECTION).is_some_and(|value| value == "close");
        Ok(Reply {
            status: head.status,
            header_length: header_length.and_then(|value| value.to_str().ok()?.parse().ok()),
            keep: !closes && head.version == Version::HTTP_11,
            body: body.collect().await?.to_bytes(),
        })
    }

    /// The status, and the beginning of the body if that is text.
    pub(crate) fn excerpt(&self) -> String {
        let start = &self.body[..self.body.len().min(300)];
        match std::str::from_utf8(start) {
            Ok(text) if !text.is_empty() => format!("{} {text}", self.status),
            _ => self.status.to_string(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    /// A server on loopback that answers every request on every connection with the same bytes, `answers` times a
    /// connection, and then hangs up. Requests are told apart by their end, which must be `end`.
    pub(crate) async fn scripted(
        answer: Vec<u8>,
        end: &'static [u8],
        answers: usize,
    ) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let answer = answer.clone();
                tokio::spawn(async move {
                    let mut seen = Vec::new();
                    for _ in 0..answers {
                        while !seen.ends_with(end) {
                            if stream.read_buf(&mut seen).await.unwrap() == 0 {
                                return;
                            }
                        }
                        seen.clear();
                        stream.write_all(&answer).await.unwrap();
                    }
                });
            }
        });
        address
    }

    fn request() -> Request<Full<Bytes>> {
        Request::post("/").header("host", "x").body(Full::new(Bytes::from_static(b"end"))).unwrap()
    }

    #[tokio::test]
    async fn exchanges_follow_each_other_until_the_server_hangs_up() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nInference-Header-Content-Length: 2\r\n\r\n{}123";
        let address = scripted(answer.to_vec(), b"end", 2).await;
        let mut connection = Connection::open(address).await.unwrap();
        for _ in 0..2 {
            let reply = connection.exchange(request()).await.unwrap();
            assert_eq!((reply.status, reply.header_length), (StatusCode::OK, Some(2)));
            assert_eq!(reply.body, b"{}123"[..]);
        }
        connection.exchange(request()).await.unwrap_err();
    }

    #[tokio::test]
    async fn an_answer_that_ends_with_the_connection_is_whole() {
        let answer = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\r\nshed".to_vec();
        let address = scripted(answer, b"end", 1).await;
        let mut connection = Connection::open(address).await.unwrap();
        let reply = connection.exchange(request()).await.unwrap();
        assert_eq!(reply.excerpt(), "503 Service Unavailable shed");
        assert!(connection.exchange(request()).await.is_err());
    }

    #[tokio::test]
    async fn half_an_answer_is_none() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{}".to_vec();
        let address = scripted(answer, b"end", 1).await;
        let mut connection = Connection::open(address).await.unwrap();
        assert!(connection.exchange(request()).await.is_err());
    }
}
