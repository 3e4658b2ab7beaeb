//! The open loop for a caller who has the requests and knows what is right: it hears how each of them ended.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use tokio::time::timeout;

pub use crate::target::announced;

use crate::arrivals::{Pattern, Shape};
use crate::client::{Connection, OUT_OF_PORTS};
use crate::load::record::{Ended, Tally};
use crate::load::{self, Client, Phase, Plan, closed};
use crate::result::Latencies;
use crate::scenario::Protocol;

/// Answers that are never read again are counted in buckets as wide as nobody looks at.
const BUCKET: Duration = Duration::from_secs(10);
/// Requests whose moments lie within this go out together.
const COALESCE: Duration = Duration::from_millis(1);

/// A whole answer.
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// How many bytes of the body are JSON, where the answer says so.
    pub header_length: Option<usize>,
    /// Its body.
    pub body: Bytes,
}

/// A request, over HTTP/1.1, and what is a right answer to it.
#[derive(Clone)]
pub struct Question {
    /// What is sent.
    pub request: Request<Full<Bytes>>,
    /// Whether an answer with a good status is right: its JSON's length where it says so, and its body.
    pub is_right: Rc<IsRight>,
}

/// See [`Question`].
pub type IsRight = dyn Fn(Option<usize>, &[u8]) -> bool;

/// Requests at an even pace, whatever becomes of them.
pub struct Load {
    /// Whom.
    pub address: SocketAddr,
    /// What.
    pub questions: Vec<Question>,
    /// How long, and how many of each question a second, in their order.
    pub stretches: Vec<(Duration, Vec<f64>)>,
    /// How long an answer is waited for.
    pub patience: Duration,
    /// Requests of one question that may be under way at once; more are not sent.
    pub outstanding_max: usize,
    /// Decides the pace of each question among the others.
    pub seed: u64,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A right answer.
    Right,
    /// A good status, and something else.
    Wrong,
    /// Another status.
    Refused(u16),
    /// No connection: nobody had it yet.
    NotConnected,
    /// No answer, in a word: it was sent, and the connection broke or nothing came in time.
    Lost(&'static str),
}

/// A request that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which question.
    pub question: usize,
    /// When it was meant to go out.
    pub sent_at: Instant,
    /// When it ended.
    pub ended_at: Instant,
    /// How.
    pub fate: Fate,
}

/// What was offered in all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offered {
    /// Requests whose moment came.
    pub offered: u64,
    /// Those that were not sent, because too many were under way.
    pub not_sent: u64,
    /// Those that were still under way at the end, though they had their time.
    pub unanswered: u64,
    /// How late the latest of them went out, 99th percentile, milliseconds: what the generator itself could not keep up with.
    pub lag_p99_ms: f64,
}

/// What a closed loop found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity {
    /// Good answers a second.
    pub per_s: f64,
    /// Milliseconds, median.
    pub p50_ms: f64,
    /// Milliseconds, 99th percentile.
    pub p99_ms: f64,
}

/// Sends until the stretches are over, or `enough` is set, and waits for what is under way. `each` hears of every end.
///
/// # Errors
/// When the machine does not give what a load needs, such as timers.
pub async fn offer(
    load: Load,
    enough: Rc<Cell<bool>>,
    each: impl Fn(Answer) + 'static,
) -> Result<Offered> {
    let Load { address, questions, stretches, patience, outstanding_max, seed } = load;
    let length: Duration = stretches.iter().map(|(length, _)| *length).sum();
    let client = |question: Question| Client {
        judge: Some(Rc::new(move |reply| (question.is_right)(reply.header_length, &reply.body))),
        requests: vec![question.request],
        deadline: None,
        max_outstanding: outstanding_max,
        retries: 0,
        backoff: Duration::ZERO,
        abandon_after: None,
        timeout: patience,
    };
    let phase = |(length, rates): (Duration, Vec<f64>)| Phase {
        length,
        arrivals: rates
            .into_iter()
            .enumerate()
            .filter(|(_, rate)| *rate > 0.0)
            .map(|(question, rate)| {
                (question, Pattern { shape: Shape::Constant(rate), random: false })
            })
            .collect(),
        sampled: false,
    };
    let plan = Plan {
        address,
        protocol: Protocol::Http1,
        clients: questions.into_iter().map(client).collect(),
        phases: stretches.into_iter().map(phase).collect(),
        coalesce: COALESCE,
        bucket: BUCKET,
        seed,
        enough,
        each: Some(Box::new(move |question, sent_at, ended_at, ended| {
            each(Answer { question, sent_at, ended_at, fate: fate(ended) });
        })),
        // Whether the target is lost is for the caller to say.
        give_up: length + patience + BUCKET,
        grace: patience,
    };
    let finished = load::run(plan, std::future::pending(), |_| {}).await?;
    let tallies = || finished.recorder.tallies.iter().flatten();
    let sum = |count: fn(&Tally) -> u64| tallies().map(count).sum::<u64>();
    let lags = finished.recorder.lags_us.iter().filter_map(Latencies::of);
    Ok(Offered {
        offered: sum(|tally| tally.offered),
        not_sent: sum(|tally| tally.not_sent),
        unanswered: sum(|tally| tally.sent)
            .saturating_sub(sum(|tally| tally.succeeded + tally.failed)),
        lag_p99_ms: lags.map(|lag| lag.p99).fold(0.0, f64::max),
    })
}

fn fate(ended: Ended) -> Fate {
    match ended {
        Ended::Answered { status: 200..=299, wrong: false, .. } => Fate::Right,
        Ended::Answered { status: 200..=299, wrong: true, .. } => Fate::Wrong,
        Ended::Answered { status, .. } => Fate::Refused(status),
        Ended::Failed("refused" | "connect" | "down" | OUT_OF_PORTS) => Fate::NotConnected,
        Ended::Failed(kind) => Fate::Lost(kind),
        // Nobody here hangs up on purpose.
        Ended::Abandoned => Fate::Lost("abandoned"),
    }
}

/// How much the target carries when so many ask at once for that long, and how fast it answers then.
///
/// # Errors
/// When there was not one good answer.
pub async fn capacity(
    address: SocketAddr,
    request: &Request<Full<Bytes>>,
    at_once: usize,
    length: Duration,
) -> Result<Capacity> {
    let protocol = Protocol::Http1;
    let subject = closed::Subject { address, protocol, request: request.clone() };
    let found = closed::measure(&subject, at_once, length).await?;
    let (p50_ms, p99_ms) = (found.latencies.p50, found.latencies.p99);
    Ok(Capacity { per_s: found.per_s, p50_ms, p99_ms })
}

/// One exchange on a connection of its own.
///
/// # Errors
/// When there is no whole answer within `patience`.
pub async fn ask(
    address: SocketAddr,
    request: Request<Full<Bytes>>,
    patience: Duration,
) -> Result<Reply> {
    let path = request.uri().clone();
    let exchange = async { Connection::open(address).await?.exchange(request).await };
    match timeout(patience, exchange).await {
        Ok(reply) => {
            let reply = reply.with_context(|| format!("{path} of {address}"))?;
            let (status, header_length) = (reply.status.as_u16(), reply.header_length);
            Ok(Reply { status, header_length, body: reply.body })
        }
        Err(_) => bail!("{path} of {address}: no answer within {} ms", patience.as_millis()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::scripted;
    use std::cell::RefCell;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    fn question(right: &'static [u8]) -> Question {
        let request = Request::post("/").header("host", "x");
        Question {
            request: request.body(Full::new(Bytes::from_static(b"end"))).unwrap(),
            is_right: Rc::new(move |_, body| body == right),
        }
    }

    #[tokio::test]
    async fn each_end_is_told_and_judged() {
        let address = scripted(ANSWER.to_vec(), b"end", usize::MAX).await;
        let heard = Rc::new(RefCell::new(Vec::new()));
        let load = Load {
            address,
            questions: vec![question(b"ok"), question(b"other")],
            stretches: vec![(Duration::from_millis(200), vec![200.0, 100.0])],
            patience: Duration::from_secs(10),
            outstanding_max: 100,
            seed: 1,
        };
        let each = Rc::clone(&heard);
        let offered = offer(load, Rc::default(), move |answer| each.borrow_mut().push(answer));
        let offered = offered.await.unwrap();
        let heard = heard.borrow();
        assert_eq!((heard.len() as u64, offered.unanswered), (offered.offered, 0));
        for answer in heard.iter() {
            let fate = if answer.question == 0 { Fate::Right } else { Fate::Wrong };
            assert!(answer.fate == fate && answer.ended_at >= answer.sent_at);
        }
        assert!(heard.iter().any(|answer| answer.question == 1));
    }

    #[tokio::test]
    async fn enough_ends_the_sending_and_not_the_waiting() {
        let address = scripted(ANSWER.to_vec(), b"end", usize::MAX).await;
        let (enough, count) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        let load = Load {
            address,
            questions: vec![question(b"ok")],
            stretches: vec![(Duration::from_secs(600), vec![500.0])],
            patience: Duration::from_secs(10),
            outstanding_max: 100,
            seed: 1,
        };
        let (told, counted) = (Rc::clone(&enough), Rc::clone(&count));
        let each = move |_| {
            counted.set(counted.get() + 1);
            told.set(counted.get() >= 10);
        };
        let offered = offer(load, enough, each).await.unwrap();
        assert_eq!((offered.offered, offered.unanswered), (count.get(), 0));
    }

    #[test]
    fn ends_are_what_they_mean_to_a_client() {
        let answered = |status, wrong| fate(Ended::Answered { status, late: false, wrong });
        assert_eq!(answered(200, false), Fate::Right);
        assert_eq!(answered(200, true), Fate::Wrong);
        assert_eq!(answered(504, false), Fate::Refused(504));
        assert_eq!(fate(Ended::Failed("refused")), Fate::NotConnected);
        assert_eq!(fate(Ended::Failed("cut_off")), Fate::Lost("cut_off"));
    }
}
