//! Messages as frames: four bytes of length, little-endian, then JSON. Neither end trusts the other with its memory.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// Bytes that one message may have. The metrics of some thousand models fit.
pub(crate) const FRAME_BYTES_MAX: usize = 16 << 20;
/// Bytes that may wait to be sent. The metrics and a report or two.
const WAITING_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;
/// Bytes that are read in one go, so that a talkative peer holds nobody up.
const READ_BYTES_MAX: usize = 1 << 20;
const LENGTH_BYTES: usize = size_of::<u32>();

/// A message that cannot be sent or understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// Longer than is allowed.
    #[error("a message of {0} bytes")]
    TooLarge(usize),
    /// The peer does not read.
    #[error("{0} bytes wait to be sent")]
    Full(usize),
    /// Not JSON, or not of this protocol.
    #[error("not understood: {0}")]
    Json(#[from] serde_json::Error),
}

/// Bytes that have come and are not yet messages.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    bytes: Vec<u8>,
    /// How far messages have been taken out.
    taken: usize,
}

/// Bytes that are still to be sent.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

// ===== impl Incoming =====

impl Incoming {
    /// Bytes that came another way, before the rest.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Reads what is there. False when the peer is gone.
    ///
    /// # Errors
    /// When the socket fails.
    pub(crate) fn read(&mut self, mut stream: &UnixStream) -> io::Result<bool> {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        let mut chunk = [0; 16 * 1024];
        let mut read = 0;
        while read < READ_BYTES_MAX {
            match stream.read(&mut chunk) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    read += count;
                    self.bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// The next whole message.
    ///
    /// # Errors
    /// [`FrameError`]; nothing that comes after it can be trusted.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let waiting = self.bytes.get(self.taken..).unwrap_or_default();
        let Some((head, rest)) = waiting.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*head) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::TooLarge(length));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = serde_json::from_slice(body)?;
        self.taken += LENGTH_BYTES + length;
        Ok(Some(message))
    }
}

// ===== impl Outgoing =====

impl Outgoing {
    /// Adds a message to what is to be sent.
    ///
    /// # Errors
    /// [`FrameError`]: the message is not sent, and all others are.
    pub(crate) fn push<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        let body = serde_json::to_vec(message)?;
        let length = u32::try_from(body.len()).map_err(|_| FrameError::TooLarge(body.len()))?;
        if body.len() > FRAME_BYTES_MAX {
            return Err(FrameError::TooLarge(body.len()));
        }
        if self.waiting() + body.len() > WAITING_BYTES_MAX {
            return Err(FrameError::Full(self.waiting()));
        }
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(&body);
        Ok(())
    }

    /// Sends what can be sent at once.
    ///
    /// # Errors
    /// When the peer is gone.
    pub(crate) fn flush(&mut self, mut stream: &UnixStream) -> io::Result<()> {
        while self.waiting() > 0 {
            match stream.write(self.bytes.get(self.sent..).unwrap_or_default()) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.bytes.drain(..self.sent);
        self.sent = 0;
        Ok(())
    }

    /// What waits.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    /// Bytes that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
    }
}
