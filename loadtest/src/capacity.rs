//! `balm-loadtest capacity`: how much a target carries, found without knowing anything of it.
//!
//! More connections at once, until that brings no more; then the same rate from clients who do not wait.

use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::arrivals::{Pattern, Shape};
use crate::cli::{CapacityArgs, EncodingArg, ProtocolArg};
use crate::load::{self, closed};
use crate::payload::Fill;
use crate::result::Latencies;
use crate::run::host::{Host, allow_files};
use crate::run::progress::Progress;
use crate::run::subject::Subject;
use crate::run::{closed_subject, unless};
use crate::scenario::{Client, Encoding, Input, Protocol, Target};

/// Twice the connections must bring so much more, or it is enough.
const GROWTH_MIN: f64 = 1.05;
/// A target is asked for a little less than it can, or its queue never empties.
const CONFIRMED_AT: f64 = 0.95;

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct Found {
    /// Answers per second, closed loop.
    pub(crate) per_s: f64,
    /// With so many connections.
    pub(crate) connections: usize,
    pub(crate) steps: Vec<Step>,
    pub(crate) confirmed: Confirmed,
}

/// A closed loop.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Step {
    pub(crate) connections: usize,
    pub(crate) per_s: f64,
    pub(crate) latency: Latencies,
    pub(crate) turned_away: u64,
}

/// An open loop at almost the same rate.
#[derive(Debug, Serialize)]
pub(crate) struct Confirmed {
    pub(crate) offered_per_s: f64,
    pub(crate) success_ratio: f64,
    pub(crate) latency: Option<Latencies>,
}

/// Looks for the capacity.
pub(crate) async fn run(args: &CapacityArgs, stop: impl Future<Output = String>) -> Result<Found> {
    tokio::pin!(stop);
    let most = usize::try_from(args.connections_max)?;
    allow_files(most * 4)?;
    if let Some(file) = &args.json {
        crate::run::host::check_writable(file)?;
    }
    let progress = Progress::new(false);
    let host = Host::find(&args.target, &progress).await?;
    let found = unless(&mut stop, search(args, &host, most, &progress)).await;
    let found = found.map_err(|error| host.explain(error))?;
    host.stop().await?;
    Ok(found)
}

async fn search(
    args: &CapacityArgs,
    host: &Host,
    most: usize,
    progress: &Progress,
) -> Result<Found> {
    let target = target(args);
    let subject = Subject::prepare(&target, host.address(), 0, &[]).await?;
    subject.first_answer().await?;
    let length = Duration::from_secs_f64(args.seconds);
    let mut steps: Vec<Step> = Vec::new();
    let mut connections = 1;
    loop {
        progress.step(&format!("{connections} connections"));
        let found = closed::measure(&closed_subject(&subject), connections, length).await?;
        steps.push(Step {
            connections,
            per_s: found.per_s,
            latency: found.latencies,
            turned_away: found.turned_away,
        });
        match next(&steps, most) {
            Some(more) => connections = more,
            None => break,
        }
    }
    let (at, per_s) = best(&steps);
    progress.step("the same, open loop");
    let confirmed = confirm(&subject, per_s * CONFIRMED_AT, length, at).await?;
    Ok(Found { per_s, connections: at, steps, confirmed })
}

/// How many connections to try next, if more may bring more.
fn next(steps: &[Step], most: usize) -> Option<usize> {
    let last = steps.last()?;
    // Two steps without growth: one alone may have been an accident.
    let flat = |pair: &[Step]| pair[1].per_s < pair[0].per_s * GROWTH_MIN;
    let enough = steps.len() >= 3 && steps[steps.len() - 3..].windows(2).all(flat);
    let more = last.connections * 2;
    (!enough && more <= most).then_some(more)
}

/// The fewest connections that reach, within the growth that matters, the most.
fn best(steps: &[Step]) -> (usize, f64) {
    let most = steps.iter().map(|step| step.per_s).fold(0.0, f64::max);
    let enough = steps.iter().find(|step| step.per_s * GROWTH_MIN >= most);
    enough.map_or((1, most), |step| (step.connections, most))
}

async fn confirm(
    subject: &Subject,
    rate: f64,
    length: Duration,
    connections: usize,
) -> Result<Confirmed> {
    let client = Client {
        name: "capacity".to_owned(),
        count: 1,
        key_header: "x-client-id".to_owned(),
        class: None,
        deadline: None,
        max_outstanding: connections * 4,
        retries: 0,
        backoff: Duration::from_millis(100),
        abandon_after: None,
        timeout: Duration::from_secs(30),
        headers: Vec::new(),
    };
    let plan = load::Plan {
        address: subject.address,
        protocol: subject.protocol,
        clients: vec![load::Client {
            requests: subject.requests(&client)?,
            judge: None,
            deadline: None,
            max_outstanding: client.max_outstanding,
            retries: 0,
            backoff: client.backoff,
            abandon_after: None,
            timeout: client.timeout,
        }],
        phases: vec![load::Phase {
            length,
            arrivals: vec![(0, Pattern { shape: Shape::Constant(rate), random: true })],
            sampled: false,
        }],
        coalesce: Duration::ZERO,
        bucket: length,
        seed: 0,
        enough: Rc::default(),
        each: None,
        give_up: Duration::from_secs(10),
        grace: Duration::from_secs(10),
    };
    let finished = load::run(plan, std::future::pending(), |_| {}).await?;
    let tally = &finished.recorder.tallies[0][0];
    Ok(Confirmed {
        offered_per_s: tally.offered as f64 / length.as_secs_f64(),
        success_ratio: tally.succeeded as f64 / tally.offered.max(1) as f64,
        latency: Latencies::of(&tally.accepted_us),
    })
}

fn target(args: &CapacityArgs) -> Target {
    Target {
        model: args.model.clone(),
        version: args.version.clone(),
        protocol: match args.protocol {
            ProtocolArg::Http1 => Protocol::Http1,
            ProtocolArg::Http2 => Protocol::Http2,
        },
        encoding: match args.encoding {
            EncodingArg::Binary => Encoding::Binary,
            EncodingArg::Json => Encoding::Json,
        },
        input: Input::Metadata { rows: args.rows, dynamic: args.dynamic, fill: Fill::Ones },
        give_up: Duration::from_secs(10),
    }
}

/// As a person reads it.
pub(crate) fn render(found: &Found) -> String {
    let mut text = format!(
        "{:>11} {:>11} {:>9} {:>9} {:>12}\n",
        "connections", "answers/s", "p50 ms", "p99 ms", "turned away"
    );
    for Step { connections, per_s, latency, turned_away } in &found.steps {
        let (p50, p99) = (latency.p50, latency.p99);
        let _ = writeln!(
            text,
            "{connections:>11} {per_s:>11.1} {p50:>9.2} {p99:>9.2} {turned_away:>12}"
        );
    }
    let Confirmed { offered_per_s, success_ratio, latency } = &found.confirmed;
    let (p50, p99) = latency.map_or((f64::NAN, f64::NAN), |ms| (ms.p50, ms.p99));
    let _ = writeln!(
        text,
        "\ncapacity: {:.1} answers per second, reached with {} connections\n\
         open loop at {offered_per_s:.1} per second: {:.1} % answered, p50 {p50:.2} ms, p99 {p99:.2} ms",
        found.per_s,
        found.connections,
        success_ratio * 100.0,
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(per_s: &[f64]) -> Vec<Step> {
        let latency = Latencies { p50: 1.0, p90: 1.0, p99: 2.0, p999: 2.0, max: 2.0 };
        let step = |(index, per_s): (usize, &f64)| Step {
            connections: 1 << index,
            per_s: *per_s,
            latency,
            turned_away: 0,
        };
        per_s.iter().enumerate().map(step).collect()
    }

    #[test]
    fn it_stops_when_more_brings_no_more() {
        for (per_s, expected) in [
            (&[100.0][..], Some(2)),
            (&[100.0, 101.0], Some(4)),
            (&[100.0, 101.0, 102.0], None),
            (&[100.0, 190.0, 191.0], Some(8)),
            (&[100.0, 190.0, 191.0, 250.0], Some(16)),
            (&[100.0, 190.0, 191.0, 180.0], None),
        ] {
            assert_eq!(next(&steps(per_s), 256), expected, "{per_s:?}");
        }
        assert_eq!(next(&steps(&[100.0, 200.0]), 3), None);
    }

    #[test]
    fn the_fewest_connections_that_are_enough() {
        assert_eq!(best(&steps(&[100.0, 196.0, 200.0, 190.0])), (2, 200.0));
        assert_eq!(best(&steps(&[100.0])), (1, 100.0));
    }

    #[test]
    fn it_can_be_read() {
        let found = Found {
            per_s: 200.0,
            connections: 2,
            steps: steps(&[100.0, 200.0]),
            confirmed: Confirmed { offered_per_s: 190.0, success_ratio: 0.995, latency: None },
        };
        let text = render(&found);
        assert!(
            text.contains("\ncapacity: 200.0 answers per second, reached with 2 connections\n")
        );
        assert!(text.contains("99.5 % answered"), "{text}");
    }
}
