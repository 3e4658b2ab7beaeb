//! The stream under HTTP: tells its [`Activity`] what happens on it, and closes so that the last answer is read.

use super::activity::Activity;
use super::linger::Linger;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A connection, of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Sends what can be sent at once.
    fn try_send(&self, bytes: &[u8]) -> io::Result<usize>;

    /// The address at the other end, where there is one.
    fn peer(&self) -> Option<IpAddr>;

    /// Has the kernel forget, with the stream, what was not delivered. It would go on trying for minutes.
    fn forget_unsent(&self);
}

impl Stream for TcpStream {
    fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write(bytes)
    }

    fn peer(&self) -> Option<IpAddr> {
        self.peer_addr().ok().map(|addr| addr.ip().to_canonical())
    }

    fn forget_unsent(&self) {
        let _ = self.set_zero_linger();
    }
}

impl Stream for UnixStream {
    fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write(bytes)
    }

    /// Everybody on a unix socket is on this machine.
    fn peer(&self) -> Option<IpAddr> {
        None
    }

    /// The bytes are gone with the socket.
    fn forget_unsent(&self) {}
}

/// See the module.
pub(super) struct Socket<S: Stream> {
    stream: S,
    activity: Arc<Activity>,
    /// How many may linger at once.
    closers: Arc<Semaphore>,
    closing: Option<Closing>,
}

struct Closing {
    linger: Linger,
    /// `None` when the client is not waited for.
    place: Option<OwnedSemaphorePermit>,
}

impl<S: Stream> Socket<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>, closers: Arc<Semaphore>) -> Self {
        Socket { stream, activity, closers, closing: None }
    }
}

impl<S: Stream> Drop for Socket<S> {
    fn drop(&mut self) {
        if self.activity.is_given_up() {
            self.stream.forget_unsent();
        }
    }
}

impl<S: Stream> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let room = buffer.remaining() > 0;
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let new = buffer.filled().get(before..).unwrap_or_default();
        if !new.is_empty() {
            self.activity.received(new);
        } else if room {
            self.activity.client_left();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Stream> AsyncWrite for Socket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.activity.wrote(written.is_ready());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.activity.wrote(written.is_ready());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// Lingers, so that a client that is still sending reads the answer. The time for it is the connection's to keep.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Socket { stream, activity, closers, closing } = self.get_mut();
        let closing = closing.get_or_insert_with(|| {
            let waits = activity.closing();
            // Where many linger already, one more is closed on: clients that are slow must not add up.
            let place = waits.then(|| Arc::clone(closers).try_acquire_owned().ok()).flatten();
            Closing { linger: Linger::new(), place }
        });
        match closing.place {
            None => closing.linger.poll_half_close(stream, context),
            Some(_) => closing.linger.poll(stream, context),
        }
    }
}
