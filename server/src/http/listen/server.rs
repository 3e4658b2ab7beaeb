//! Connections at work: each has a place, a deadline for whatever it waits for, and an end that its client can read.

use super::activity::{Activity, Limits, Reason};
use super::linger::Linger;
use super::patience::{Patience, Spares};
use super::request::{BodyPace, Requests};
use super::socket::{Socket, Stream};
use crate::http::DataPort;
use crate::http::client::Peer;
use crate::http::metrics::HttpMetrics;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Sleep, sleep, timeout};

/// What a connection of HTTP/1 may buffer in each direction; the head of a request must fit.
const H1_BUFFER: usize = 128 * 1024;
/// Headers of a request.
const H1_HEADERS_MAX: usize = 100;
/// Streams of one HTTP/2 connection that may be open at once.
const H2_STREAMS_MAX: u32 = 100;
/// Streams that the client may reset before they were looked at. More at once is an attack (CVE-2023-44487).
const H2_RESETS_PENDING_MAX: usize = 20;
/// Streams that the client may make the server reset, by mistakes of its own (CVE-2025-8671).
const H2_LOCAL_RESETS_MAX: usize = 256;
/// Bytes of the headers of one request, unpacked.
const H2_HEADERS_MAX: u32 = 16 * 1024;
/// What a stream may keep of an answer that its client does not take.
const H2_SEND_BUFFER: usize = 256 * 1024;
/// An HTTP/2 connection is asked this often whether it is still there,
const H2_PING_EVERY: Duration = Duration::from_secs(20);
/// and has this long to say so.
const H2_PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that may linger at once, refused or closing. They are the ones whose clients are slow.
const CLOSERS_MAX: usize = 256;
/// How long a new connection waits for the place of one that was asked to go.
const ROOM_WAIT: Duration = Duration::from_millis(250);
/// How long an orderly end may take that the server has chosen,
const GOODBYE_WAIT: Duration = Duration::from_secs(1);
/// and how long where another connection waits for the place.
const EVICTION_WAIT: Duration = Duration::from_millis(100);
/// How long a server that stops waits for one more request of a connection that has none, if the drain is as long as that.
/// Its client had no chance to see that the server stops, and what it sends may be on its way.
const LAST_REQUEST_WAIT: Duration = Duration::from_millis(250);
/// How long a connection beyond the bound may take to be told so.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);

/// What a connection beyond the bound gets: a whole answer, so that its client need not wait in the backlog. There is no
/// request yet, and so no id.
const FULL_BODY: &str = "{\"error\":\"the server has as many connections as it may open (http.max_connections)\",\"code\":\"too_many_connections\"}";

fn full() -> Vec<u8> {
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
         x-shed-reason: connections\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{FULL_BODY}",
        FULL_BODY.len()
    )
    .into_bytes()
}

/// How far the data port is on its way to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Serving.
    #[default]
    Open,
    /// Still serving, but whoever is answered is told to ask on another connection next time, and so maybe another server.
    Leaving,
    /// No new connections; what is under way is finished.
    Stopping,
}

/// Bounds of the sockets.
#[derive(Clone, Copy, Debug)]
pub struct Sockets {
    /// Connections that may be open at once.
    pub connections: usize,
    /// From the first byte of the head of a request to its last.
    pub header_timeout: Duration,
    /// How long a connection is kept without a request.
    pub idle_timeout: Duration,
    /// How long an answer may be stuck because its client does not read.
    pub write_timeout: Duration,
    /// How fast bodies must come.
    pub pace: BodyPace,
    /// Bytes that one HTTP/2 connection may send ahead of being read.
    pub h2_window: u32,
}

/// What all connections share.
struct Shared {
    port: DataPort,
    builder: auto::Builder<TokioExecutor>,
    places: Arc<Semaphore>,
    closers: Arc<Semaphore>,
    spares: Arc<Spares>,
    metrics: HttpMetrics,
    limits: Limits,
    pace: BodyPace,
    full: Vec<u8>,
    stage: watch::Receiver<Stage>,
    last_request_wait: Duration,
}

/// The connections of the data port.
pub(super) struct Server {
    shared: Arc<Shared>,
    /// Each connection holds a receiver, so the end of the last one shows.
    alive: watch::Sender<()>,
}

impl Server {
    pub(super) fn new(
        port: DataPort,
        sockets: Sockets,
        metrics: HttpMetrics,
        stage: watch::Receiver<Stage>,
        drain_timeout: Duration,
    ) -> Self {
        let shared = Shared {
            port,
            builder: builder(sockets.h2_window),
            places: Arc::new(Semaphore::new(sockets.connections)),
            closers: Arc::new(Semaphore::new(CLOSERS_MAX)),
            spares: Arc::default(),
            metrics,
            limits: Limits {
                header: sockets.header_timeout,
                idle: sockets.idle_timeout,
                write: sockets.write_timeout,
            },
            pace: sockets.pace,
            full: full(),
            stage,
            last_request_wait: LAST_REQUEST_WAIT.min(drain_timeout / 2),
        };
        Server { shared: Arc::new(shared), alive: watch::channel(()).0 }
    }

    /// Takes a connection: gives it a place, or makes room for it, or refuses it. Never waits.
    pub(super) fn take<S: Stream>(&self, stream: S) {
        let shared = Arc::clone(&self.shared);
        let alive = self.alive.subscribe();
        if let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() {
            tokio::spawn(async move {
                shared.serve(stream, place).await;
                drop(alive);
            });
            return;
        }
        let Ok(closer) = Arc::clone(&shared.closers).try_acquire_owned() else {
            // Too many to linger for. The answer goes into the empty buffer of a new socket, which costs no wait.
            shared.metrics.connections_refused.inc();
            let _ = stream.try_send(&shared.full);
            return;
        };
        tokio::spawn(async move {
            match shared.room().await {
                Some(place) => {
                    drop(closer);
                    shared.serve(stream, place).await;
                }
                None => {
                    shared.refuse(stream).await;
                    drop(closer);
                }
            }
            drop(alive);
        });
    }

    /// Waits for the connections to end, having told them to. Gives the number of those that had to be cut.
    pub(super) async fn finish(self, drain_timeout: Duration) -> usize {
        match timeout(drain_timeout, self.alive.closed()).await {
            Ok(()) => 0,
            Err(_elapsed) => {
                usize::try_from(self.shared.metrics.connections.get()).unwrap_or_default()
            }
        }
    }
}

fn builder(h2_window: u32) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .half_close(false)
        .max_buf_size(H1_BUFFER)
        .max_headers(H1_HEADERS_MAX)
        // `Patience` keeps that time, and tells a head that comes slowly from a connection that is idle.
        .header_read_timeout(None)
        .pipeline_flush(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_pending_accept_reset_streams(H2_RESETS_PENDING_MAX)
        .max_local_error_reset_streams(H2_LOCAL_RESETS_MAX)
        .max_header_list_size(H2_HEADERS_MAX)
        // Fixed: windows that grow by themselves have no bound of ours.
        .adaptive_window(false)
        .initial_connection_window_size(h2_window)
        .initial_stream_window_size(h2_window)
        .max_send_buf_size(H2_SEND_BUFFER)
        // A peer that is gone without a word is found by its silence.
        .keep_alive_interval(H2_PING_EVERY)
        .keep_alive_timeout(H2_PING_TIMEOUT);
    builder
}

impl Shared {
    /// A place that another connection, without a request, was asked to give up.
    async fn room(&self) -> Option<OwnedSemaphorePermit> {
        if !self.spares.ask_one() {
            return None;
        }
        timeout(ROOM_WAIT, Arc::clone(&self.places).acquire_owned()).await.ok()?.ok()
    }

    /// Says that there is no place, so that the client reads it.
    async fn refuse<S: Stream>(&self, mut stream: S) {
        self.metrics.connections_refused.inc();
        let mut linger = Linger::new();
        let all = async {
            stream.write_all(&self.full).await?;
            poll_fn(|context| linger.poll(&mut stream, context)).await
        };
        let _ = timeout(REFUSAL_WAIT, all).await;
    }

    async fn serve<S: Stream>(&self, stream: S, place: OwnedSemaphorePermit) {
        let open = OpenConnection::new(&self.metrics);
        let activity = Activity::new();
        let reason = self.converse(stream, &activity).await.or_else(|| activity.why_closed());
        if let Some(reason) = reason {
            self.metrics.closed(reason);
        }
        drop(open);
        drop(place);
    }

    /// Until the connection ends. The reason, where the server ended it for what did not happen on it.
    async fn converse<S: Stream>(&self, stream: S, activity: &Arc<Activity>) -> Option<Reason> {
        let peer = stream.peer().map(Peer::at);
        let socket = Socket::new(stream, Arc::clone(activity), Arc::clone(&self.closers));
        let service = Requests {
            port: self.port.clone(),
            peer,
            activity: Arc::clone(activity),
            pace: self.pace,
        };
        let mut patience =
            Patience::new(Arc::clone(activity), self.limits, Arc::clone(&self.spares));
        let mut connection = pin!(self.builder.serve_connection(TokioIo::new(socket), service));
        // One future until there is something to tell: a new one for each turn would be put on the list of those who wait, and
        // taken off it.
        let mut told = pin!(further(self.stage.clone(), Stage::Open));
        let mut stage = Stage::Open;
        let mut last_request: Option<Pin<Box<Sleep>>> = None;
        loop {
            tokio::select! {
                // The connection first, so that the other two see what it did.
                biased;
                result = &mut connection => return result.err().and_then(|error| flooded(&*error)),
                reason = poll_fn(|context| patience.poll(context)) => {
                    if reason == Some(Reason::WriteTimeout) {
                        activity.give_up();
                    }
                    if matches!(reason, Some(Reason::Idle | Reason::Evicted)) && activity.is_quiet() {
                        // HTTP/2 says goodbye, HTTP/1 just closes.
                        activity.hush();
                        connection.as_mut().graceful_shutdown();
                        let evicted = reason == Some(Reason::Evicted);
                        let wait = if evicted { EVICTION_WAIT } else { GOODBYE_WAIT };
                        let _ = timeout(wait, connection).await;
                    }
                    return reason;
                }
                (stages, next) = &mut told, if stage < Stage::Stopping => {
                    stage = next;
                    told.set(further(stages, stage));
                    activity.leave();
                    if stage == Stage::Stopping {
                        activity.expect_last_request();
                        last_request = Some(Box::pin(sleep(self.last_request_wait)));
                    }
                }
                () = poll_fn(|context| come_or_over(activity, &mut last_request, context)),
                    if last_request.is_some() =>
                {
                    last_request = None;
                    if activity.is_quiet() {
                        activity.hush();
                    }
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// Ready when the request has come that may be on its way, or the time for it is over.
fn come_or_over(
    activity: &Activity,
    time: &mut Option<Pin<Box<Sleep>>>,
    context: &mut Context<'_>,
) -> Poll<()> {
    match time {
        Some(time) if activity.expects_request() => time.as_mut().poll(context),
        _ => Poll::Ready(()),
    }
}

/// Waits until the server is further than `stage`. The sender lives as long as the server.
async fn further(
    mut stages: watch::Receiver<Stage>,
    stage: Stage,
) -> (watch::Receiver<Stage>, Stage) {
    let next = stages.wait_for(|next| *next > stage).await.map_or(Stage::Stopping, |next| *next);
    (stages, next)
}

/// Whether HTTP/2 ended the connection because the client's frames cost too much.
fn flooded(error: &(dyn std::error::Error + 'static)) -> Option<Reason> {
    tracing::debug!(%error, "connection ended with an error");
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(h2) = error.downcast_ref::<h2::Error>() {
            let calm = h2.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
            // The client may say so, too.
            return (calm && h2.is_library()).then_some(Reason::H2Flood);
        }
        cause = error.source();
    }
    None
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
