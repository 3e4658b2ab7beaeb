//! Closing so that the client reads the last answer.
//!
//! A socket that is closed with unread bytes in it is reset, and a reset takes the answer from a client that is still
//! sending. So the server closes its own side, and throws away what comes for a while: bounded in bytes here, in time and
//! in number by who calls.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are thrown away at most: an image as binary tensor. Whoever sends more and does not listen is reset.
pub(super) const LINGER_BYTES_MAX: usize = 1 << 20;
/// Bytes that are read at once.
const PIECE: usize = 16 * 1024;

/// How far the closing has come.
#[derive(Debug)]
pub(super) struct Linger {
    half_closed: bool,
    left: usize,
}

impl Linger {
    pub(super) fn new() -> Self {
        Linger { half_closed: false, left: LINGER_BYTES_MAX }
    }

    /// Closes the server's side, and no more.
    pub(super) fn poll_half_close<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.half_closed {
            ready!(Pin::new(stream).poll_shutdown(context))?;
            self.half_closed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Closes the server's side and waits for the client to close its own, or to have sent too much.
    pub(super) fn poll<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_half_close(stream, context))?;
        loop {
            let mut space = [MaybeUninit::uninit(); PIECE];
            let mut piece = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut *stream).poll_read(context, &mut piece))?;
            let length = piece.filled().len();
            self.left = self.left.saturating_sub(length);
            if length == 0 || self.left == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn a_client_that_still_sends_reads_the_answer_first() {
        let (mut server, mut client) = duplex(64);
        let client = tokio::spawn(async move {
            client.write_all(&[0; 100_000]).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        });
        server.write_all(b"no").await.unwrap();
        let mut linger = Linger::new();
        poll_fn(|context| linger.poll(&mut server, context)).await.unwrap();
        assert_eq!(client.await.unwrap(), "no");
    }

    #[tokio::test]
    async fn a_client_that_never_stops_sending_is_not_listened_to_for_ever() {
        let (mut server, mut client) = duplex(4096);
        let client =
            tokio::spawn(async move { while client.write_all(&[0; 4096]).await.is_ok() {} });
        let mut linger = Linger::new();
        poll_fn(|context| linger.poll(&mut server, context)).await.unwrap();
        drop(server);
        client.await.unwrap();
    }
}
