//! What a connection is waiting for, and until when.
//!
//! Written by the socket and by the requests of one connection, read by its [`Patience`](super::patience::Patience).
//! All times are milliseconds since the connection was opened.

use axum::http::Version;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// First bytes of an HTTP/2 connection; no method of HTTP/1 begins like this.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// A time that has not come.
const NEVER: u64 = u64::MAX;
/// How long a client that still sends may take to read the last answer, once the server has said that it closes.
pub(super) const LINGER_TIME: Duration = Duration::from_secs(1);
/// A connection that has had no request for this long may be closed to make room for another.
pub(super) const SPARE_AFTER: Duration = Duration::from_secs(1);

/// Why the server ended a connection. The label values of `balm_http_connections_closed_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Reason {
    /// The head of a request did not arrive in time.
    HeaderTimeout,
    /// No request for the time that a connection is kept.
    Idle,
    /// No request for a moment, and others waited for the place.
    Evicted,
    /// A body did not arrive in time.
    BodyTimeout,
    /// A body arrived too slowly.
    SlowBody,
    /// A request was answered before its body was read.
    UnreadBody,
    /// The client did not take its answer.
    WriteTimeout,
    /// HTTP/2 frames that cost more than they ask for, such as streams opened and reset.
    H2Flood,
}

impl Reason {
    /// Every reason.
    pub(in crate::http) const ALL: [Reason; 8] = [
        Reason::HeaderTimeout,
        Reason::Idle,
        Reason::Evicted,
        Reason::BodyTimeout,
        Reason::SlowBody,
        Reason::UnreadBody,
        Reason::WriteTimeout,
        Reason::H2Flood,
    ];

    /// Label value.
    pub(in crate::http) const fn as_str(self) -> &'static str {
        match self {
            Reason::HeaderTimeout => "header_timeout",
            Reason::Idle => "idle",
            Reason::Evicted => "evicted",
            Reason::BodyTimeout => "body_timeout",
            Reason::SlowBody => "slow_body",
            Reason::UnreadBody => "unread_body",
            Reason::WriteTimeout => "write_timeout",
            Reason::H2Flood => "h2_flood",
        }
    }
}

/// How long a connection may take over each thing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// From the first byte of a head to its last.
    pub(super) header: Duration,
    /// From the end of an answer, or the opening, to the first byte of a request.
    pub(super) idle: Duration,
    /// Without an answer getting any further.
    pub(super) write: Duration,
}

/// A moment at which the connection is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: u64,
    /// `None` when it has ended already, but for the lingering.
    pub(super) reason: Option<Reason>,
}

/// See the module.
#[derive(Debug)]
pub(in crate::http) struct Activity {
    born: Instant,
    http2: AtomicBool,
    /// Requests between their head and the end of their answer.
    open: AtomicU32,
    /// Those of them whose answer has begun.
    answering: AtomicU32,
    /// A request may be on its way, and the end of the connection would come in between: the first one, until it is there,
    /// and one more when the server stops.
    expected: AtomicBool,
    /// The server is about to stop: its answers say that they are the last.
    leaving: AtomicBool,
    /// When the last request ended.
    idle_since: AtomicU64,
    /// When the head that is coming began.
    head_since: AtomicU64,
    /// When an answer last got further.
    moved: AtomicU64,
    /// When the socket began to take no more.
    blocked_since: AtomicU64,
    /// When the server closed its side.
    closing_since: AtomicU64,
    /// The client has closed its side.
    left: AtomicBool,
    /// Nobody is to be lingered for: the connection was quiet when the server chose to close it.
    quiet: AtomicBool,
    /// The client takes nothing, and what was sent to it is not worth keeping.
    given_up: AtomicBool,
    /// A request body was dropped before its end.
    unread: AtomicBool,
    /// Index of a [`Reason`], plus one.
    fault: AtomicU8,
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Activity {
            born: Instant::now(),
            http2: AtomicBool::new(false),
            open: AtomicU32::new(0),
            answering: AtomicU32::new(0),
            expected: AtomicBool::new(true),
            leaving: AtomicBool::new(false),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(NEVER),
            moved: AtomicU64::new(0),
            blocked_since: AtomicU64::new(NEVER),
            closing_since: AtomicU64::new(NEVER),
            left: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            fault: AtomicU8::new(0),
        })
    }

    pub(super) fn now(&self) -> u64 {
        millis(self.born.elapsed())
    }

    /// The moment as the clock has it.
    pub(super) fn instant(&self, at: u64) -> Instant {
        // Far enough for every limit, near enough for every clock.
        const FAR: u64 = 365 * 24 * 60 * 60 * 1000;
        self.born + Duration::from_millis(at.min(FAR))
    }

    // ===== told by the socket =====

    /// Bytes have come.
    pub(super) fn received(&self, bytes: &[u8]) {
        if self.open.load(Ordering::Acquire) > 0 || self.http2.load(Ordering::Relaxed) {
            return;
        }
        if self.head_since.load(Ordering::Relaxed) == NEVER {
            // In practice the preface comes in one piece. If not, it counts as a head that is coming.
            if bytes.starts_with(H2_PREFACE) {
                self.http2.store(true, Ordering::Relaxed);
            } else {
                self.head_since.store(self.now(), Ordering::Relaxed);
            }
        }
    }

    /// The socket took bytes, or would not.
    pub(super) fn wrote(&self, progress: bool) {
        if progress {
            // Mostly it was not blocked, and then nothing is written here.
            if self.blocked_since.load(Ordering::Relaxed) != NEVER {
                self.blocked_since.store(NEVER, Ordering::Relaxed);
            }
        } else if self.blocked_since.load(Ordering::Relaxed) == NEVER {
            self.blocked_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// The client has closed its side.
    pub(super) fn client_left(&self) {
        self.left.store(true, Ordering::Relaxed);
    }

    /// The server closes its side. True when the client is to be lingered for.
    pub(super) fn closing(&self) -> bool {
        self.closing_since.store(self.now(), Ordering::Relaxed);
        !self.left.load(Ordering::Relaxed) && !self.quiet.load(Ordering::Relaxed)
    }

    // ===== told by requests =====

    /// A request has come; it ends when the guard is dropped.
    pub(super) fn open(self: &Arc<Self>, version: Version) -> Open {
        if version == Version::HTTP_2 {
            self.http2.store(true, Ordering::Relaxed);
        }
        self.expected.store(false, Ordering::Relaxed);
        self.unread.store(false, Ordering::Relaxed);
        self.head_since.store(NEVER, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::AcqRel);
        Open { activity: Arc::clone(self), answering: false }
    }

    /// A request body was dropped before its end.
    pub(super) fn unread_body(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }

    /// Something about a request that ends its connection. (Over HTTP/2 it ends the stream alone.)
    pub(super) fn fault(&self, reason: Reason) {
        if self.http2.load(Ordering::Relaxed) {
            return;
        }
        self.fault.store(reason as u8 + 1, Ordering::Relaxed);
    }

    // ===== told by the server =====

    /// The server is about to stop.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// The server stops. Over HTTP/1 a client cannot be told between two requests, and the next one may be on its way.
    pub(super) fn expect_last_request(&self) {
        if !self.is_busy() && !self.http2.load(Ordering::Relaxed) {
            self.expected.store(true, Ordering::Relaxed);
        }
    }

    // ===== asked =====

    /// Whether requests are under way.
    pub(super) fn is_busy(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
    }

    /// Whether a request may be on its way, of a client that had no chance to see that the server stops.
    pub(super) fn expects_request(&self) -> bool {
        self.expected.load(Ordering::Relaxed)
    }

    /// Whether answers are to say that they are the last on their connection. HTTP/2 says so in a frame of its own.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed) && !self.http2.load(Ordering::Relaxed)
    }

    /// Whether the server may close without taking a word out of anybody's mouth.
    pub(super) fn is_quiet(&self) -> bool {
        !self.is_busy() && self.head_since.load(Ordering::Relaxed) == NEVER
    }

    /// From now on nobody is lingered for.
    pub(super) fn hush(&self) {
        self.quiet.store(true, Ordering::Relaxed);
    }

    /// From now on nothing that was sent is worth keeping.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Whether it was said to.
    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// When the connection is to end, as things are.
    pub(super) fn due(&self, limits: &Limits) -> Option<Due> {
        let at = |since: u64, limit: Duration, reason: Option<Reason>| Due {
            at: since.saturating_add(millis(limit)),
            reason,
        };
        let closing = self.closing_since.load(Ordering::Relaxed);
        if closing != NEVER {
            return Some(at(closing, LINGER_TIME, None));
        }
        let blocked = self.blocked_since.load(Ordering::Relaxed);
        let mut first =
            (blocked != NEVER).then(|| at(blocked, limits.write, Some(Reason::WriteTimeout)));
        let mut earlier = |due: Due| {
            if first.is_none_or(|first| due.at < first.at) {
                first = Some(due);
            }
        };
        if self.answering.load(Ordering::Acquire) > 0 {
            // In HTTP/2 the socket may be free while the client's windows are closed.
            let moved = self.moved.load(Ordering::Relaxed);
            earlier(at(moved, limits.write, Some(Reason::WriteTimeout)));
        }
        if !self.is_busy() {
            let head = self.head_since.load(Ordering::Relaxed);
            if head != NEVER {
                earlier(at(head, limits.header, Some(Reason::HeaderTimeout)));
            } else {
                let since = self.idle_since.load(Ordering::Relaxed);
                earlier(at(since, limits.idle, Some(Reason::Idle)));
            }
        }
        first
    }

    /// From when on the connection may be closed to make room.
    pub(super) fn spare_at(&self) -> Option<u64> {
        let waits = !self.is_busy()
            && self.blocked_since.load(Ordering::Relaxed) == NEVER
            && self.closing_since.load(Ordering::Relaxed) == NEVER;
        waits.then(|| self.idle_since.load(Ordering::Relaxed).saturating_add(millis(SPARE_AFTER)))
    }

    /// Why the server closed, as far as the requests tell; `None` when it was the client who did.
    pub(super) fn why_closed(&self) -> Option<Reason> {
        let fault = self.fault.load(Ordering::Relaxed);
        if let Some(index) = fault.checked_sub(1) {
            return Reason::ALL.get(usize::from(index)).copied();
        }
        let closed_first = self.closing_since.load(Ordering::Relaxed) != NEVER
            && !self.left.load(Ordering::Relaxed);
        (closed_first && self.unread.load(Ordering::Relaxed)).then_some(Reason::UnreadBody)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One request, from its head to the end of its answer.
#[derive(Debug)]
pub(super) struct Open {
    activity: Arc<Activity>,
    answering: bool,
}

impl Open {
    /// Whether its answer is to say that it is the last on its connection.
    pub(super) fn is_last(&self) -> bool {
        self.activity.is_leaving()
    }

    /// The answer has begun, or got further.
    pub(super) fn moved(&mut self) {
        let activity = &self.activity;
        activity.moved.store(activity.now(), Ordering::Relaxed);
        if !self.answering {
            self.answering = true;
            activity.answering.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let activity = &self.activity;
        if self.answering {
            activity.answering.fetch_sub(1, Ordering::AcqRel);
        }
        activity.idle_since.store(activity.now(), Ordering::Relaxed);
        activity.open.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        header: Duration::from_secs(10),
        idle: Duration::from_secs(75),
        write: Duration::from_secs(30),
    };

    fn due(activity: &Activity) -> Option<(u64, Option<Reason>)> {
        activity.due(&LIMITS).map(|due| (due.at, due.reason))
    }

    async fn later(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[test]
    fn discriminants_index_the_reasons() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_from_its_first_byte_however_it_trickles() {
        let activity = Activity::new();
        assert_eq!(due(&activity), Some((75_000, Some(Reason::Idle))));
        later(3).await;
        activity.received(b"GET");
        later(2).await;
        activity.received(b" /");
        assert_eq!(due(&activity), Some((13_000, Some(Reason::HeaderTimeout))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_has_no_deadline_here_and_idleness_begins_with_its_end() {
        let activity = Activity::new();
        activity.received(b"GET / HTTP/1.1");
        let mut request = activity.open(Version::HTTP_11);
        assert_eq!((due(&activity), activity.spare_at()), (None, None));
        activity.received(b"body");
        later(5).await;
        request.moved();
        assert_eq!(due(&activity), Some((35_000, Some(Reason::WriteTimeout))));
        later(1).await;
        drop(request);
        assert_eq!(due(&activity), Some((81_000, Some(Reason::Idle))));
        assert_eq!(activity.spare_at(), Some(7_000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_takes_nothing_is_given_the_time_of_a_write() {
        let activity = Activity::new();
        later(1).await;
        activity.wrote(false);
        later(20).await;
        activity.wrote(false);
        assert_eq!(due(&activity), Some((31_000, Some(Reason::WriteTimeout))));
        assert_eq!(activity.spare_at(), None, "its end is near enough");
        activity.wrote(true);
        assert_eq!(due(&activity), Some((75_000, Some(Reason::Idle))));
    }

    #[tokio::test(start_paused = true)]
    async fn frames_of_http2_that_are_no_request_keep_nothing_alive() {
        let activity = Activity::new();
        activity.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        later(9).await;
        activity.received(b"a ping, say");
        assert_eq!(due(&activity), Some((75_000, Some(Reason::Idle))));
    }

    #[test]
    fn one_more_request_is_expected_when_the_server_stops_unless_http2_or_a_request_can_tell() {
        let activity = Activity::new();
        assert!(activity.expects_request(), "the first one");
        let request = activity.open(Version::HTTP_11);
        activity.expect_last_request();
        assert!(!activity.expects_request(), "the answer of this one tells");
        drop(request);
        activity.expect_last_request();
        assert!(activity.expects_request());
        activity.leave();
        assert!(activity.is_leaving());
        drop(activity.open(Version::HTTP_2));
        activity.expect_last_request();
        assert!(!activity.expects_request() && !activity.is_leaving(), "a frame tells");
    }

    #[tokio::test(start_paused = true)]
    async fn what_lingers_ends_soon() {
        let activity = Activity::new();
        let request = activity.open(Version::HTTP_11);
        activity.unread_body();
        drop(request);
        later(2).await;
        assert!(activity.closing());
        assert_eq!(due(&activity), Some((3_000, None)));
        assert_eq!(activity.why_closed(), Some(Reason::UnreadBody));
        activity.fault(Reason::SlowBody);
        assert_eq!(activity.why_closed(), Some(Reason::SlowBody));
        activity.client_left();
        assert!(!activity.closing());
    }
}
