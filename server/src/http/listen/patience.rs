//! Waiting for a connection until its time is over, with one timer that is seldom touched.
//!
//! Deadlines mostly move away while a connection is busy. So the timer is set anew only when one comes nearer; when it
//! fires for one that has moved, it is set for where that is now. A busy connection costs about a wake-up a second.

use super::activity::{Activity, Limits, Reason};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::{Instant, Sleep, sleep_until};

/// Where nothing is due, the state is looked at again after this long: a request of HTTP/2 may end on another thread.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The connections that may be closed to make room, the one that has waited longest first.
#[derive(Debug, Default)]
pub(super) struct Spares {
    asked: Arc<Notify>,
    count: AtomicUsize,
}

impl Spares {
    /// Asks one of them to go. False when there is none.
    pub(super) fn ask_one(&self) -> bool {
        let any = self.count.load(Ordering::Acquire) > 0;
        if any {
            self.asked.notify_one();
        }
        any
    }

    fn join(self: &Arc<Self>, since: u64) -> Spare {
        self.count.fetch_add(1, Ordering::AcqRel);
        let asked = Box::pin(Arc::clone(&self.asked).notified_owned());
        Spare { asked, since, spares: Arc::clone(self) }
    }
}

/// A place among the [`Spares`]. Who was asked and has a request by then passes the question on.
struct Spare {
    asked: Pin<Box<OwnedNotified>>,
    /// From when on it was spare. A request may come and go between two looks, and then this is over.
    since: u64,
    spares: Arc<Spares>,
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.spares.count.fetch_sub(1, Ordering::AcqRel);
    }
}

/// See the module.
pub(super) struct Patience {
    activity: Arc<Activity>,
    limits: Limits,
    timer: Pin<Box<Sleep>>,
    spares: Arc<Spares>,
    spare: Option<Spare>,
}

impl Patience {
    pub(super) fn new(activity: Arc<Activity>, limits: Limits, spares: Arc<Spares>) -> Self {
        let timer = Box::pin(sleep_until(Instant::now() + LOOK_AGAIN));
        Patience { activity, limits, timer, spares, spare: None }
    }

    /// Ready when the connection is to end. To be polled after the connection itself, so that it sees what that did.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Reason>> {
        loop {
            let due = self.activity.due(&self.limits);
            let spare_at = self.activity.spare_at();
            self.spare = self.spare.take().filter(|spare| spare_at == Some(spare.since));
            if let Some(spare) = &mut self.spare
                && spare.asked.as_mut().poll(context).is_ready()
            {
                return Poll::Ready(Some(Reason::Evicted));
            }
            let spare_at = spare_at.filter(|_| self.spare.is_none());
            let next = match (due.map(|due| due.at), spare_at) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            if let Some(next) = next {
                let next = self.activity.instant(next);
                if next < self.timer.deadline() {
                    self.timer.as_mut().reset(next);
                }
            }
            ready!(self.timer.as_mut().poll(context));
            let now = self.activity.now();
            if let Some(due) = due.filter(|due| due.at <= now) {
                return Poll::Ready(due.reason);
            }
            if let Some(since) = spare_at.filter(|at| *at <= now) {
                self.spare = Some(self.spares.join(since));
            }
            // Set for later than anything can be; the next turn of the loop brings it nearer.
            let later = next.filter(|next| *next > now);
            let later = later.map_or(Instant::now() + LOOK_AGAIN, |at| self.activity.instant(at));
            self.timer.as_mut().reset(later);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Version;
    use std::future::poll_fn;

    const LIMITS: Limits = Limits {
        header: Duration::from_secs(10),
        idle: Duration::from_secs(75),
        write: Duration::from_secs(30),
    };

    fn patience(spares: &Arc<Spares>) -> (Arc<Activity>, Patience) {
        let activity = Activity::new();
        (Arc::clone(&activity), Patience::new(activity, LIMITS, Arc::clone(spares)))
    }

    /// The reason, and the milliseconds after which it came.
    async fn end(patience: &mut Patience) -> (Option<Reason>, u64) {
        let reason = poll_fn(|context| patience.poll(context)).await;
        (reason, patience.activity.now())
    }

    /// Lets time go by while the connection is looked after.
    async fn wait(patience: &mut Patience, seconds: u64) {
        let ended = tokio::time::timeout(Duration::from_secs(seconds), end(patience)).await;
        assert!(ended.is_err(), "{ended:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_ends_when_its_idle_time_is_over() {
        let (_, mut patience) = patience(&Arc::default());
        assert_eq!(end(&mut patience).await, (Some(Reason::Idle), 75_000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_nearer_deadline_is_kept() {
        let (activity, mut patience) = patience(&Arc::default());
        wait(&mut patience, 20).await;
        activity.received(b"GET /");
        assert_eq!(end(&mut patience).await, (Some(Reason::HeaderTimeout), 30_000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_moves_is_followed() {
        let (activity, mut patience) = patience(&Arc::default());
        for _ in 0..10 {
            let request = activity.open(Version::HTTP_11);
            wait(&mut patience, 100).await;
            drop(request);
            wait(&mut patience, 50).await;
        }
        // The clock of the state counts whole milliseconds, the timer ones of its own.
        let (reason, at) = end(&mut patience).await;
        assert_eq!((reason, at / 1000), (Some(Reason::Idle), 1450 + 75));
    }

    #[tokio::test(start_paused = true)]
    async fn room_is_made_by_who_has_waited_longest_and_has_no_request() {
        let spares: Arc<Spares> = Arc::default();
        assert!(!spares.ask_one(), "nobody is there");
        let (busy, mut first) = patience(&spares);
        wait(&mut first, 2).await;
        let (_, mut second) = patience(&spares);
        wait(&mut second, 2).await;
        let (_, mut third) = patience(&spares);
        wait(&mut third, 2).await;
        assert_eq!(spares.count.load(Ordering::Acquire), 3);
        let request = busy.open(Version::HTTP_11);
        assert!(spares.ask_one(), "the first is asked, who is busy by now");
        wait(&mut first, 1).await;
        wait(&mut third, 1).await;
        assert_eq!(end(&mut second).await.0, Some(Reason::Evicted));
        drop((second, request));
        wait(&mut third, 1).await;
        assert_eq!(spares.count.load(Ordering::Acquire), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_between_two_looks_counts() {
        let spares: Arc<Spares> = Arc::default();
        let (activity, mut patience) = patience(&spares);
        wait(&mut patience, 2).await;
        assert_eq!(spares.count.load(Ordering::Acquire), 1);
        drop(activity.open(Version::HTTP_11));
        let looked = poll_fn(|context| Poll::Ready(patience.poll(context))).await;
        assert_eq!((looked, spares.count.load(Ordering::Acquire)), (Poll::Pending, 0));
        wait(&mut patience, 2).await;
        assert_eq!(spares.count.load(Ordering::Acquire), 1);
    }
}
