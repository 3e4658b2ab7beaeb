//! A closed loop: so many connections, each of which asks again as soon as it has its answer.
//!
//! Says how much a target carries when nobody waits, and how long an answer takes at that load. It does not say what
//! happens to users who keep coming while the target is slow; that takes an open loop.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::client::{Connection, Reply};
use crate::golden::Case;
use crate::oip;
use crate::process::{Cores, Usage};

/// How long answers may stay out after the end before the target is called hung.
const GRACE: Duration = Duration::from_secs(30);
/// Longer latencies are counted as this long.
const LATENCY_MAX: Duration = Duration::from_mins(2);

/// What is asked, again and again, and what must come back.
#[derive(Clone)]
pub(crate) struct Work {
    pub(crate) request: Request<Full<Bytes>>,
    pub(crate) expect: Expect,
}

/// What must come back.
#[derive(Clone)]
pub(crate) enum Expect {
    /// The recorded answer: 200 each time; the first on a connection tensor by tensor, the others by size.
    Prediction(Case),
    /// Any success.
    Accepted,
}

/// How hard and how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) connections: usize,
    pub(crate) warm_up: Duration,
    pub(crate) length: Duration,
}

/// What was measured.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) cores: Cores,
    /// Rows that were computed in one run, on average; none where nothing is computed.
    pub(crate) rows_per_run: Option<f64>,
}

/// Runs the plan against the target, whose process is `target`.
pub(crate) async fn measure(
    address: SocketAddr,
    target: u32,
    work: Work,
    plan: Plan,
) -> Result<Measured> {
    let connections = connect(address, plan.connections).await?;
    let start = Instant::now() + plan.warm_up;
    let end = start + plan.length;
    let (work, times) = (Rc::new(work), Rc::new(RefCell::new(histogram()?)));
    let local = LocalSet::new();
    let mut loops = JoinSet::new();
    for mut connection in connections {
        let (work, times) = (Rc::clone(&work), Rc::clone(&times));
        let asking = async move {
            let mut before = Instant::now();
            let mut first = true;
            while before < end {
                let reply = connection.exchange(work.request.clone()).await?;
                let after = Instant::now();
                work.expect.judge(&reply, first)?;
                first = false;
                if after >= start && after < end {
                    let nanoseconds = (after - before).as_nanos();
                    times.borrow_mut().saturating_record(u64::try_from(nanoseconds)?);
                }
                before = Instant::now();
            }
            anyhow::Ok(())
        };
        loops.spawn_local_on(asking, &local);
    }
    let usage = async {
        let usage = Usage::watch(target)?;
        sleep_until(start).await;
        let from = usage.now()?;
        sleep_until(end).await;
        anyhow::Ok(usage.now()?.since(&from))
    };
    let all = async {
        while let Some(ended) = loops.join_next().await {
            ended.context("a connection's loop panicked")??;
        }
        anyhow::Ok(())
    };
    // Without a word for half a minute is not slow but hung, and the bench has to end some day.
    let both = local.run_until(timeout_at(end + GRACE, async { tokio::try_join!(all, usage) }));
    let ((), cores) =
        both.await.map_err(|_| anyhow!("no answer {} s after the end", GRACE.as_secs()))??;
    let times = times.borrow();
    if times.is_empty() {
        bail!("no answer within {:?}", plan.length);
    }
    Ok(Measured {
        per_second: times.len() as f64 / plan.length.as_secs_f64(),
        p50_us: times.value_at_quantile(0.50) as f64 / 1e3,
        p99_us: times.value_at_quantile(0.99) as f64 / 1e3,
        cores,
        rows_per_run: None,
    })
}

/// Asks a few times on each of several connections, so that every lane has run once.
pub(crate) async fn touch(
    address: SocketAddr,
    work: &Work,
    connections: usize,
    times: usize,
) -> Result<()> {
    let mut loops = JoinSet::new();
    for mut connection in connect(address, connections).await? {
        let work = work.clone();
        loops.spawn(async move {
            for _ in 0..times {
                work.expect.judge(&connection.exchange(work.request.clone()).await?, true)?;
            }
            anyhow::Ok(())
        });
    }
    let all = async {
        while let Some(ended) = loops.join_next().await {
            ended.context("a connection's loop panicked")??;
        }
        anyhow::Ok(())
    };
    timeout_at(Instant::now() + GRACE, all).await.context("the target does not answer")?
}

async fn connect(address: SocketAddr, count: usize) -> Result<Vec<Connection>> {
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        connections.push(Connection::open(address).await?);
    }
    Ok(connections)
}

fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, u64::try_from(LATENCY_MAX.as_nanos())?, 3)?)
}

// ===== impl Expect =====

impl Expect {
    /// Whether the reply is what was expected, looked at closely where it is the first.
    pub(crate) fn judge(&self, reply: &Reply, first: bool) -> Result<()> {
        match self {
            Expect::Accepted if reply.status.is_success() => Ok(()),
            Expect::Prediction(case) if reply.status == StatusCode::OK => Ok(if first {
                oip::judge(case, reply.header_length, &reply.body)
            } else {
                oip::judge_size(case.output_bytes(), reply.header_length, &reply.body)
            }?),
            _ => bail!("the server answered {}", reply.excerpt()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::scripted;
    use crate::golden::Values;
    use crate::golden::tests::GOLDEN;

    fn plan(connections: usize) -> Plan {
        let warm_up = Duration::from_millis(20);
        Plan { connections, warm_up, length: Duration::from_millis(100) }
    }

    fn work() -> Work {
        let case = Case::parse(GOLDEN, None).unwrap();
        let request = oip::infer_request("m", &case).unwrap();
        Work { request, expect: Expect::Prediction(case) }
    }

    async fn server(label: i64, status: &str) -> SocketAddr {
        let (length, body) = oip::tests::answer(&[
            ("label", &[1], Values::Int64(vec![label])),
            ("p", &[1, 2], Values::Fp32(vec![0.25, 0.75])),
        ]);
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\ninference-header-content-length: {length}\r\n\r\n",
            body.len()
        );
        // The request ends with the float 2.
        scripted([head.as_bytes(), &body].concat(), b"\x00\x00\x00\x40", usize::MAX).await
    }

    #[tokio::test]
    async fn right_answers_are_counted() {
        let address = server(-7, "200 OK").await;
        let measured = measure(address, std::process::id(), work(), plan(4)).await.unwrap();
        assert!(measured.per_second > 10.0 && measured.p50_us <= measured.p99_us);
        touch(address, &work(), 2, 2).await.unwrap();
    }

    #[tokio::test]
    async fn a_wrong_answer_ends_the_measurement() {
        for (label, status, message) in [
            (7, "200 OK", "output \"label\" has other values than recorded"),
            (-7, "202 Accepted", "the server answered 202 Accepted"),
            (-7, "503 Service Unavailable", "the server answered 503 Service Unavailable"),
        ] {
            let address = server(label, status).await;
            let error = measure(address, std::process::id(), work(), plan(1)).await.unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
        }
    }

    #[tokio::test]
    async fn nobody_there() {
        let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let error = measure(address, std::process::id(), work(), plan(1)).await.unwrap_err();
        assert_eq!(error.to_string(), "no connection to 127.0.0.1:1");
    }
}
