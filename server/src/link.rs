//! The line between supervisor and worker: a pair of unix sockets, frames of JSON, and the handing over of sockets.
//!
//! The worker's standard input is its end. Both ends are the same program, so there is one version of the messages; it is
//! compared all the same. Nothing on it is ever waited for: what cannot be sent at once is kept, within bounds.

mod frames;
mod handover;
mod messages;

pub(crate) use frames::{FrameError, Incoming, Outgoing};
pub(crate) use handover::{HandoverError, Received, hand_over, receive};
pub(crate) use messages::{Hello, PROTOCOL, SocketKind, Tick, ToSupervisor, ToWorker};

#[cfg(test)]
mod tests;
