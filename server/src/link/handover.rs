//! Descriptors from one process to another: the first message carries the listening socket of the data port, and behind it the
//! memory in which the worker writes what it runs (`SCM_RIGHTS`, `unix(7)`).

use super::{FrameError, Hello, Incoming, Outgoing, PROTOCOL, ToWorker};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// The socket, and the memory.
const DESCRIPTORS_MAX: usize = 2;

/// The first message did not come as it must.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandoverError {
    /// No socket pair, or nobody at its other end.
    #[error("standard input is not a supervisor: {0}")]
    Io(#[from] io::Error),
    /// Not a message of ours.
    #[error("standard input is not a supervisor: {0}")]
    Frame(#[from] FrameError),
    /// Something else than the greeting, or no socket with it.
    #[error("the supervisor did not hand the data port over")]
    NoSocket,
    /// Another program.
    #[error(
        "the supervisor speaks version {0} of the protocol between processes, this program {PROTOCOL}"
    )]
    Protocol(u32),
}

/// What a worker starts with.
pub(crate) struct Received {
    /// The greeting.
    pub(crate) hello: Hello,
    /// The listening socket.
    pub(crate) socket: OwnedFd,
    /// Where it is to be written what runs, if it is.
    pub(crate) memory: Option<OwnedFd>,
    /// What came behind the greeting.
    pub(crate) incoming: Incoming,
}

/// Sends greeting, socket and memory. To a new pair of sockets, so that there is room.
///
/// # Errors
/// When the pair does not take them.
pub(crate) fn hand_over(
    stream: &UnixStream,
    hello: Hello,
    socket: BorrowedFd<'_>,
    memory: Option<BorrowedFd<'_>>,
) -> Result<(), HandoverError> {
    let mut greeting = Outgoing::default();
    greeting.push(&ToWorker::Hello(hello))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = [Some(socket), memory].into_iter().flatten().collect();
    let bytes = greeting.bytes();
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(HandoverError::NoSocket);
    }
    let sent = sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
        .map_err(io::Error::from)?;
    if sent < bytes.len() {
        return Err(io::Error::from(io::ErrorKind::WriteZero).into());
    }
    Ok(())
}

/// Takes greeting, socket and memory.
///
/// # Errors
/// [`HandoverError`], for example when a person started this program as a worker.
pub(crate) fn receive(stream: &UnixStream) -> Result<Received, HandoverError> {
    let mut bytes = [0; 8 * 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(io::Error::from)?;
    let mut descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten();
    let (socket, memory) = (descriptors.next(), descriptors.next());
    let mut incoming = Incoming::default();
    incoming.push(bytes.get(..received.bytes).unwrap_or_default());
    let mut greeting = incoming.next::<ToWorker>()?;
    // What is too long for one read was sent whole before this process began, so nobody waits for anybody.
    while greeting.is_none() && socket.is_some() {
        let count = Read::read(&mut &*stream, &mut bytes)?;
        if count == 0 {
            break;
        }
        incoming.push(bytes.get(..count).unwrap_or_default());
        greeting = incoming.next::<ToWorker>()?;
    }
    match (greeting, socket) {
        (Some(ToWorker::Hello(hello)), _) if hello.protocol != PROTOCOL => {
            Err(HandoverError::Protocol(hello.protocol))
        }
        (Some(ToWorker::Hello(hello)), Some(socket)) => {
            Ok(Received { hello, socket, memory, incoming })
        }
        _ => Err(HandoverError::NoSocket),
    }
}
