//! A closed loop over the same connections: how much a target carries when nobody comes before he is served.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::Full;
use hyper::Request;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use crate::load::pool::{Outage, Pool};
use crate::load::record::record;
use crate::process::thread_seconds;
use crate::result::Latencies;
use crate::scenario::Protocol;

/// Before the next request, when one was turned away: a target that refuses is not to be measured by how fast.
const PAUSE: Duration = Duration::from_millis(2);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is asked, and of whom.
#[derive(Clone)]
pub(crate) struct Subject {
    pub(crate) address: SocketAddr,
    pub(crate) protocol: Protocol,
    pub(crate) request: Request<Full<Bytes>>,
}

/// What a closed loop has found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Found {
    pub(crate) per_s: f64,
    pub(crate) latencies: Latencies,
    /// Answers that were not 2xx, and exchanges that failed.
    pub(crate) turned_away: u64,
    /// Processor time of this thread for each answer.
    pub(crate) cpu_us: f64,
}

/// Asks with so many at once for that long; the first fifth does not count.
pub(crate) async fn measure(subject: &Subject, at_once: usize, length: Duration) -> Result<Found> {
    let begin = Instant::now() + length / 5;
    let end = begin + length;
    let outage = Rc::default();
    let pool = Rc::new(Pool::new(subject.address, subject.protocol, Rc::<Outage>::clone(&outage)));
    let times = Rc::new(RefCell::new(Histogram::<u64>::new(3)?));
    let refused = Rc::new(RefCell::new((0_u64, String::new())));
    let local = LocalSet::new();
    let asking: Vec<_> = (0..at_once)
        .map(|_| {
            let (pool, times, refused) = (Rc::clone(&pool), Rc::clone(&times), Rc::clone(&refused));
            let request = subject.request.clone();
            local.spawn_local(async move {
                while Instant::now() < end {
                    let before = Instant::now();
                    let refusal = match timeout(PATIENCE, pool.exchange(&request)).await {
                        Ok(Ok(reply)) if reply.status.is_success() => {
                            let now = Instant::now();
                            if (begin..end).contains(&now) {
                                record(&mut times.borrow_mut(), now - before);
                            }
                            continue;
                        }
                        Ok(Ok(reply)) => reply.excerpt(),
                        Ok(Err(error)) => chain(&error),
                        Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
                    };
                    refused.replace_with(|(count, _)| (*count + 1, refusal));
                    sleep(PAUSE).await;
                }
            })
        })
        .collect();
    let before = local
        .run_until(async {
            tokio::time::sleep_until(begin.into()).await;
            let before = thread_seconds();
            tokio::time::sleep_until(end.into()).await;
            let busy = thread_seconds() - before;
            for asked in asking {
                let _ = asked.await;
            }
            busy
        })
        .await;
    let (times, refused) = (times.borrow(), refused.borrow());
    let Some(latencies) = Latencies::of(&times) else {
        bail!("not one good answer within {length:?}; the last: {}", refused.1);
    };
    Ok(Found {
        per_s: times.len() as f64 / length.as_secs_f64(),
        latencies,
        turned_away: refused.0,
        cpu_us: before * 1e6 / times.len() as f64,
    })
}

fn chain(error: &dyn std::error::Error) -> String {
    let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
    format!("{error}{cause}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::scripted;

    async fn subject(answer: &[u8]) -> Subject {
        Subject {
            address: scripted(answer.to_vec(), b"end", usize::MAX).await,
            protocol: Protocol::Http1,
            request: Request::post("/")
                .header("host", "x")
                .body(Full::new(Bytes::from_static(b"end")))
                .unwrap(),
        }
    }

    #[tokio::test]
    async fn good_answers_are_counted() {
        let subject = subject(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let found = measure(&subject, 3, Duration::from_millis(100)).await.unwrap();
        assert!(found.per_s > 10.0 && found.turned_away == 0 && found.cpu_us > 0.0);
    }

    #[tokio::test]
    async fn a_target_that_only_refuses_has_no_capacity() {
        let subject = subject(b"HTTP/1.1 503 No\r\ncontent-length: 4\r\n\r\nfull").await;
        let error = measure(&subject, 2, Duration::from_millis(50)).await.unwrap_err().to_string();
        assert!(error.ends_with("the last: 503 Service Unavailable full"), "{error}");
    }
}
