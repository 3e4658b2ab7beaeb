//! The management port: probes, status and metrics, answered whatever happens to the rest of the server.
//!
//! Two threads of the standard library, no async runtime. The *probe thread* owns the listener and all
//! connections, none of which it ever waits for, and answers probes from what the [`ManagementSource`] has at
//! hand. The *gather thread* renders `/status` and `/metrics`, which may take a while; the probe thread hands it
//! the question through a bounded queue and later writes what it brings. So neither load, nor a blocked runtime,
//! nor a slow scrape, nor a flood of idle connections delays a probe.
//!
//! | route | answer |
//! |---|---|
//! | `/startup`, `/live`, `/ready` | 200 or 503, JSON |
//! | `/healthz`, `/v2/health/live` | as `/live` |
//! | `/v2/health/ready` | as `/ready` |
//! | `/status` | JSON |
//! | `/metrics` | Prometheus text |

mod connection;
mod gather;
mod request;
mod response;
mod serve;

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use balm_probes::{Liveness, Readiness, Startup};
use serde::Serialize;

/// Connections at once. When more come, the oldest idle one makes room.
pub const CONNECTIONS_MAX: usize = 256;
/// How long a client may take to send its request, and again to take a probe's answer.
pub const CONNECTION_DEADLINE: Duration = Duration::from_millis(250);
/// How long a client waits for `/status` or `/metrics` to be gathered, and again may take to read them.
pub const GATHER_DEADLINE: Duration = Duration::from_secs(2);
/// Bytes that the head of a request may have.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Questions that may wait for the gather thread.
const GATHER_QUEUE: usize = 8;
/// Connections that the kernel keeps until they are accepted. The standard library's 128 drop in a flood, and a
/// dropped one is tried again by the client only after a second.
const BACKLOG: i32 = 1024;

/// What the management port asks the rest of the server.
///
/// The three probes are called on the probe thread and must return at once: read atomics or a snapshot, take no
/// lock that work is done under, do no I/O. The other two may take their time. A panic costs one answer.
pub trait ManagementSource: Send + Sync {
    /// Whether the start is over.
    fn startup(&self) -> ProbeAnswer;
    /// Whether the process should be left alone.
    fn live(&self) -> ProbeAnswer;
    /// Whether traffic should be sent here.
    fn ready(&self) -> ProbeAnswer;
    /// The health report, as JSON.
    fn status(&self) -> Vec<u8>;
    /// All metrics, in Prometheus' text format.
    fn metrics(&self) -> Vec<u8>;
}

/// Answer to a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeAnswer {
    /// Status 200 when true, 503 when false.
    pub ok: bool,
    /// Body, in JSON.
    pub body: Arc<str>,
}

/// The management port, bound but not yet answering.
#[derive(Debug)]
pub struct Management {
    listener: TcpListener,
    local_addr: SocketAddr,
}

/// The management port at work. It stops when this is dropped.
#[derive(Debug)]
#[must_use = "the port closes with it"]
pub struct ManagementHandle {
    local_addr: SocketAddr,
    stop: Arc<AtomicBool>,
    waker: UnixStream,
    thread: Option<JoinHandle<()>>,
}

// ===== impl ProbeAnswer =====

impl ProbeAnswer {
    /// `{"live":true}`, or false with the reason.
    pub fn live(verdict: &Liveness) -> ProbeAnswer {
        #[derive(Serialize)]
        struct Body<'a> {
            live: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            reasons: Option<[&'a str; 1]>,
        }
        let reasons = verdict.reason.as_deref().map(|reason| [reason]);
        answer(verdict.live, &Body { live: verdict.live, reasons })
    }

    /// `{"ready":true}`, or false with the reasons; notes, if there are any, in both cases.
    pub fn ready(verdict: &Readiness) -> ProbeAnswer {
        #[derive(Serialize)]
        struct Body<'a> {
            ready: bool,
            #[serde(skip_serializing_if = "<[String]>::is_empty")]
            reasons: &'a [String],
            #[serde(skip_serializing_if = "<[String]>::is_empty")]
            notes: &'a [String],
        }
        let Readiness { ready, reasons, notes } = verdict;
        answer(*ready, &Body { ready: *ready, reasons, notes })
    }

    /// `{"started":true}`, or false with the reasons.
    pub fn startup(verdict: &Startup) -> ProbeAnswer {
        #[derive(Serialize)]
        struct Body<'a> {
            started: bool,
            #[serde(skip_serializing_if = "<[String]>::is_empty")]
            reasons: &'a [String],
        }
        let Startup { started, reasons } = verdict;
        answer(*started, &Body { started: *started, reasons })
    }
}

fn answer(ok: bool, body: &impl Serialize) -> ProbeAnswer {
    // Strings and booleans always serialise; were it not so, the status alone would still be right.
    let body = serde_json::to_string(body).unwrap_or_else(|_| "{}".to_owned());
    ProbeAnswer { ok, body: body.into() }
}

// ===== impl Management =====

impl Management {
    /// Binds the port. Port 0 lets the kernel choose one.
    ///
    /// # Errors
    /// When the address is taken, not ours, or not allowed.
    pub fn bind(addr: SocketAddr) -> io::Result<Management> {
        Management::from_listener(TcpListener::bind(addr)?)
    }

    /// Takes a socket that somebody else has bound.
    ///
    /// # Errors
    /// When it is no listening socket.
    pub fn from_listener(listener: TcpListener) -> io::Result<Management> {
        listener.set_nonblocking(true)?;
        rustix::net::listen(&listener, BACKLOG)?;
        let local_addr = listener.local_addr()?;
        Ok(Management { listener, local_addr })
    }

    /// The address that was bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Starts to answer.
    ///
    /// # Errors
    /// When the process may not have two more threads or a few more descriptors.
    pub fn start(self, source: Arc<dyn ManagementSource>) -> io::Result<ManagementHandle> {
        let (waker, wakened) = UnixStream::pair()?;
        waker.set_nonblocking(true)?;
        wakened.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (questions, asked) = sync_channel(GATHER_QUEUE);
        // Never more answers than questions, and one that is being gathered.
        let (brought, answers) = sync_channel(GATHER_QUEUE + 1);
        let gather_waker = waker.try_clone()?;
        let gather_source = Arc::clone(&source);
        thread::Builder::new().name("balm-gather".to_owned()).spawn(move || {
            gather::run(&*gather_source, &asked, &brought, &gather_waker);
        })?;
        let mut port = serve::Port::new(self.listener, wakened, source, questions, answers);
        let thread = thread::Builder::new().name("balm-probes".to_owned()).spawn({
            let stop = Arc::clone(&stop);
            move || port.run(&stop)
        })?;
        Ok(ManagementHandle { local_addr: self.local_addr, stop, waker, thread: Some(thread) })
    }
}

// ===== impl ManagementHandle =====

impl ManagementHandle {
    /// The address that answers.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Closes the port and every connection, and waits for the probe thread to end. The gather thread may still be
    /// busy with a last question; nobody waits for it.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for ManagementHandle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        wake(&self.waker);
        if let Some(thread) = self.thread.take() {
            // It catches its panics, so there is none to pass on.
            let _ = thread.join();
        }
    }
}

/// Makes the probe thread look around. When the pipe is full, it is about to do so anyway.
fn wake(mut waker: &UnixStream) {
    let _ = waker.write(&[1]);
}

#[cfg(test)]
mod tests;
