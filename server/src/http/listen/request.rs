//! One request of a connection: its body at the pace that is asked of clients, and its answer to the end.

use super::activity::{Activity, Open, Reason};
use crate::http::DataPort;
use crate::http::client::Peer;
use axum::body::{Body, HttpBody};
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, Response, Version};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a body may come slowly, or not at all, before its rate is judged.
const GRACE: Duration = Duration::from_secs(3);
/// What is handed to HTTP/2 at once. It keeps what it was handed where nobody sees that it does not get further.
const H2_PIECE: usize = 64 * 1024;

/// How fast clients must send.
#[derive(Clone, Copy, Debug)]
pub struct BodyPace {
    /// Time for a whole body, from the first wait for it.
    pub timeout: Duration,
    /// Bytes a second, on average, after a grace of three seconds; 0 asks for nothing.
    pub min_bytes_per_s: u64,
}

/// A body did not come as it should have.
#[derive(Debug, thiserror::Error)]
pub(in crate::http) enum BodyFault {
    /// It took too long.
    #[error("it did not arrive within {} ms", .0.as_millis())]
    Late(Duration),
    /// It came too slowly.
    #[error("{received} bytes came where {min_bytes_per_s} a second are asked for")]
    Slow {
        /// Bytes that came.
        received: u64,
        /// What would have been right.
        min_bytes_per_s: u64,
    },
    /// The connection or the framing broke.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
}

/// The service of one connection.
#[derive(Clone)]
pub(super) struct Requests {
    pub(super) port: DataPort,
    pub(super) peer: Option<Peer>,
    pub(super) activity: Arc<Activity>,
    pub(super) pace: BodyPace,
}

impl hyper::service::Service<Request<Incoming>> for Requests {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answer>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let mut open = self.activity.open(request.version());
        let piece = if request.version() == Version::HTTP_2 { H2_PIECE } else { usize::MAX };
        let request =
            request.map(|body| Body::new(RequestBody::new(body, &self.activity, self.pace)));
        let answer = self.port.answer(request, self.peer);
        Box::pin(async move {
            let mut answer = answer.await;
            if open.is_last() {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            open.moved();
            Ok(answer.map(|body| Answer { body, rest: Bytes::new(), piece, open }))
        })
    }
}

/// The body of a request, which must keep its pace.
struct RequestBody<B> {
    body: B,
    activity: Arc<Activity>,
    pace: BodyPace,
    received: u64,
    ended: bool,
    /// Of the first wait. Most bodies are there with their head and have none.
    wait: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl<B: HttpBody> RequestBody<B> {
    fn new(body: B, activity: &Arc<Activity>, pace: BodyPace) -> Self {
        let ended = body.is_end_stream();
        RequestBody { body, activity: Arc::clone(activity), pace, received: 0, ended, wait: None }
    }

    /// Until when the next bytes must come, and what it means when they do not.
    fn due(&self, begun: Instant) -> (Instant, Reason) {
        let late = (begun + self.pace.timeout, Reason::BodyTimeout);
        let Some(millis) =
            (self.received.saturating_mul(1000)).checked_div(self.pace.min_bytes_per_s)
        else {
            return late;
        };
        let earned = Duration::from_millis(millis).min(self.pace.timeout);
        let slow = (begun + GRACE + earned, Reason::SlowBody);
        if slow.0 < late.0 { slow } else { late }
    }

    /// Ready when the client has taken too long.
    fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<BodyFault> {
        let begun = self.wait.as_ref().map_or_else(Instant::now, |(begun, _)| *begun);
        loop {
            let (at, reason) = self.due(begun);
            let (_, timer) = self.wait.get_or_insert_with(|| (begun, Box::pin(sleep_until(at))));
            ready!(timer.as_mut().poll(context));
            if timer.deadline() < at {
                // It was set before the last bytes came.
                timer.as_mut().reset(at);
                continue;
            }
            self.activity.fault(reason);
            let BodyPace { timeout, min_bytes_per_s } = self.pace;
            return Poll::Ready(match reason {
                Reason::SlowBody => BodyFault::Slow { received: self.received, min_bytes_per_s },
                _ => BodyFault::Late(timeout),
            });
        }
    }
}

impl<B> HttpBody for RequestBody<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    BodyFault: From<B::Error>,
{
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.received += frame.data_ref().map_or(0, |data| data.len() as u64);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => {
                self.ended = true;
                Poll::Ready(None)
            }
            Poll::Pending => self.poll_patience(context).map(|fault| Some(Err(fault))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for RequestBody<B> {
    fn drop(&mut self) {
        if !self.ended {
            self.activity.unread_body();
        }
    }
}

/// The body of an answer. Its request is over when it is dropped.
pub(super) struct Answer {
    body: Body,
    rest: Bytes,
    piece: usize,
    open: Open,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let data = if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                None => return Poll::Ready(None),
                Some(frame) => match frame?.into_data() {
                    Ok(data) => data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
            }
        } else {
            std::mem::take(&mut self.rest)
        };
        self.open.moved();
        let mut data = data;
        if data.len() > self.piece {
            self.rest = data.split_off(self.piece);
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let body = self.body.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(body.lower() + rest);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::collections::VecDeque;

    /// A body whose pieces come a second after one another.
    struct Pieces {
        sizes: VecDeque<usize>,
        next: Pin<Box<Sleep>>,
    }

    impl HttpBody for Pieces {
        type Data = Bytes;
        type Error = hyper::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
            if self.sizes.is_empty() {
                return Poll::Ready(None);
            }
            ready!(self.next.as_mut().poll(context));
            let next = self.next.deadline() + Duration::from_secs(1);
            self.next.as_mut().reset(next);
            let size = self.sizes.pop_front();
            Poll::Ready(size.map(|size| Ok(Frame::data(Bytes::from(vec![0; size])))))
        }
    }

    const PACE: BodyPace = BodyPace { timeout: Duration::from_secs(10), min_bytes_per_s: 1000 };

    /// How a body of such pieces ended, after how many milliseconds, and what its connection knows of it.
    async fn receive(
        pace: BodyPace,
        sizes: Vec<usize>,
    ) -> (Result<u64, BodyFault>, u64, Arc<Activity>) {
        let next = Box::pin(sleep_until(Instant::now() + Duration::from_secs(1)));
        let pieces = Pieces { sizes: sizes.into(), next };
        let activity = Activity::new();
        let mut body = RequestBody::new(pieces, &activity, pace);
        let mut length = 0;
        let result = loop {
            match body.frame().await {
                None => break Ok(length),
                Some(Ok(frame)) => length += frame.data_ref().map_or(0, |data| data.len() as u64),
                Some(Err(fault)) => break Err(fault),
            }
        };
        (result, activity.now(), activity)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_keeps_the_pace_is_read() {
        let (result, at, activity) = receive(PACE, vec![1000; 9]).await;
        assert_eq!((result.unwrap(), at), (9000, 9000));
        assert_eq!(activity.why_closed(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_given_up_after_the_grace_and_what_it_earned() {
        let (result, at, activity) = receive(PACE, vec![100; 60]).await;
        // After 3 s it has earned 0.3 s, and so on: three bytes in ten.
        let fault = result.unwrap_err();
        assert!(
            matches!(fault, BodyFault::Slow { received: 300, min_bytes_per_s: 1000 }),
            "{fault}"
        );
        assert!((3300..3310).contains(&at), "{at}");
        assert_eq!(activity.why_closed(), Some(Reason::SlowBody));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fast_beginning_buys_no_more_than_the_whole_time() {
        let mut sizes = vec![1; 30];
        sizes[0] = 1 << 20;
        let (result, at, activity) = receive(PACE, sizes).await;
        let fault = result.unwrap_err();
        assert!(matches!(fault, BodyFault::Late(_)), "{fault}");
        assert!((10_000..10_010).contains(&at), "{at}");
        assert_eq!(activity.why_closed(), Some(Reason::BodyTimeout));
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_of_zero_asks_for_nothing() {
        let pace = BodyPace { min_bytes_per_s: 0, ..PACE };
        let (result, at, _) = receive(pace, vec![1; 9]).await;
        assert_eq!((result.unwrap(), at), (9, 9000));
    }

    #[tokio::test]
    async fn answers_come_in_pieces_and_are_over_at_their_end() {
        let activity = Activity::new();
        let open = activity.open(Version::HTTP_2);
        let body = Body::from(vec![7; 150]);
        let mut answer = Answer { body, rest: Bytes::new(), piece: 64, open };
        assert_eq!(answer.size_hint().exact(), Some(150));
        let mut sizes = Vec::new();
        while let Some(frame) = answer.frame().await {
            sizes.push(frame.unwrap().into_data().unwrap().len());
            let left = 150 - sizes.iter().sum::<usize>() as u64;
            assert_eq!(
                (answer.size_hint().exact(), answer.is_end_stream()),
                (Some(left), left == 0)
            );
        }
        assert_eq!(sizes, [64, 64, 22]);
        assert!(activity.is_busy());
        drop(answer);
        assert!(!activity.is_busy());
    }
}
