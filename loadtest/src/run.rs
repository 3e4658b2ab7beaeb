//! `balm-loadtest run`: a scenario from beginning to end.

pub(crate) mod host;
pub(crate) mod progress;
pub(crate) mod subject;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};

use crate::cli::RunArgs;
use crate::load::{self, Finished, closed};
use crate::machine::Machine;
use crate::noop;
use crate::prober::Prober;
use crate::result::{
    Capacity, Ceiling, Generator, RunResult, SCHEMA, ScenarioFacts, TargetFacts, Timeline, Verdict,
};
use crate::scenario::{self, Encoding, Protocol, Scenario};
use crate::stalls::Stalls;
use crate::summary;
use host::Host;
use progress::Progress;
use subject::Subject;

/// The generator's own ceiling is looked for with so many connections, for so long.
const CEILING: (usize, Duration) = (16, Duration::from_millis(800));
/// Buckets of a run that is no longer than this are short.
const SHORT_RUN: Duration = Duration::from_secs(60);
/// A timeline has no more buckets than this.
const BUCKETS_MAX: u32 = 20_000;
/// How long answers may stay out after the last phase.
const GRACE: Duration = Duration::from_secs(10);

/// Runs the scenario; `stop` says why it is to end early. What was seen until then is the result.
pub(crate) async fn run(args: &RunArgs, stop: impl Future<Output = String>) -> Result<RunResult> {
    let mut scenario = Scenario::load(&args.scenario)?;
    amend(&mut scenario, args);
    for file in args.json.iter().chain(&args.html) {
        host::check_writable(file)?;
    }
    let most: usize = scenario.clients.iter().map(|client| client.max_outstanding).sum();
    host::allow_files(most.max(scenario.capacity.connections))?;
    let progress = Progress::new(args.quiet);
    let machine = Machine::detect();
    let mut host = Host::find(&args.target, &progress).await?;
    let ran = Runner { args, scenario: &scenario, progress: &progress, machine }
        .run(&mut host, stop)
        .await;
    let mut result = match ran {
        Ok(result) => result,
        Err(error) => return Err(host.explain(error)),
    };
    // What was measured stands, however the server takes its leave.
    if let Err(error) = host.stop().await {
        result.notes.push(format!("{error:#}"));
    }
    Ok(result)
}

/// What the command line says over the scenario.
fn amend(scenario: &mut Scenario, args: &RunArgs) {
    scenario.scale_time(args.time_scale);
    if let Some(model) = &args.model {
        scenario.target.model.clone_from(model);
    }
    if let Some(rate) = args.capacity {
        scenario.capacity.rate = Some(rate);
        scenario.capacity.again = false;
    }
}

struct Runner<'a> {
    args: &'a RunArgs,
    scenario: &'a Scenario,
    progress: &'a Progress,
    machine: Machine,
}

impl Runner<'_> {
    async fn run(self, host: &mut Host, stop: impl Future<Output = String>) -> Result<RunResult> {
        let scenario = self.scenario;
        let begun = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        tokio::pin!(stop);
        let prepared = async {
            self.progress.step("asking the target");
            let repositories = self.repositories();
            let subject =
                Subject::prepare(&scenario.target, host.address(), scenario.seed, &repositories)
                    .await?;
            subject.first_answer().await?;
            self.progress.step("the generator's own ceiling");
            let ceiling = ceiling(&subject).await?;
            anyhow::Ok((subject, ceiling))
        };
        let (subject, ceiling) = unless(&mut stop, prepared).await?;
        let prober = match scenario.probes.as_slice() {
            [] => None,
            probes => Some(Prober::start(host.management(), probes)?),
        };
        let mut capacity = unless(&mut stop, self.capacity(&subject)).await?;
        let stalls = Stalls::watch()?;
        let plan = self.plan(&subject, capacity.as_ref().map(|capacity| capacity.per_s))?;
        let bucket = plan.bucket;
        let mut finished = self.load(plan, &mut stop).await?;
        if let Some(reason) = &mut finished.partial
            && let Some(ended) = host.ended()
        {
            *reason = format!("{reason}; {ended}");
        }
        let stalled = stalls.since(finished.start);
        let probes = prober.map(|prober| prober.finish(finished.start));
        if let Some(capacity) = capacity.as_mut().filter(|_| finished.partial.is_none()) {
            self.again(&subject, capacity).await?;
        }
        let phases = summary::phases(scenario, &finished)?;
        let attempts: u64 = phases.iter().map(|phase| phase.total.sent).sum();
        let busy: f64 = finished.seconds_busy.iter().sum();
        let lags = || phases.iter().filter_map(|phase| phase.lag);
        let most = |values: &mut dyn Iterator<Item = f64>| values.max_by(f64::total_cmp);
        let generator = Generator {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            lag_p99_ms: most(&mut lags().map(|lag| lag.p99)),
            lag_max_ms: most(&mut lags().map(|lag| lag.max)),
            cores_max: most(&mut phases.iter().filter_map(|phase| phase.generator_cores)),
            cpu_us_per_request: (attempts > 0).then(|| busy * 1e6 / attempts as f64),
            ceiling: Some(ceiling),
            stalls: stalled,
        };
        let figures = summary::figures(&phases, capacity.as_ref(), probes.as_ref(), &generator);
        let expectations: Vec<_> =
            scenario.expectations.iter().map(|expected| expected.judge(&figures)).collect();
        let limited = summary::limited(&phases, &generator);
        let partial = finished.partial.is_some();
        let mut result = RunResult {
            schema: SCHEMA,
            scenario: ScenarioFacts {
                name: scenario.name.clone(),
                description: scenario.description.clone(),
                seed: scenario.seed,
                time_scale: self.args.time_scale,
            },
            target: facts(&scenario.target, &subject),
            machine: self.machine,
            begun,
            seconds: finished.length.as_secs_f64(),
            verdict: Verdict::of(partial, !limited.is_empty(), &expectations),
            partial: finished.partial.take(),
            generator_limited: limited,
            notes: Vec::new(),
            capacity,
            phases,
            timeline: Timeline {
                bucket_s: bucket.as_secs_f64(),
                buckets: finished.recorder.buckets(),
            },
            probes,
            generator,
            expectations,
            figures,
        };
        result.notes = summary::notes(&result);
        Ok(result)
    }

    fn repositories(&self) -> Vec<PathBuf> {
        match (&self.args.repositories, &self.args.target.models) {
            (given, _) if !given.is_empty() => given.clone(),
            (_, Some(served)) => vec![served.clone()],
            _ => ["models", ".models"].map(PathBuf::from).to_vec(),
        }
    }

    async fn capacity(&self, subject: &Subject) -> Result<Option<Capacity>> {
        let wanted = self.scenario.capacity;
        if let Some(per_s) = wanted.rate {
            return Ok(Some(Capacity {
                per_s,
                given: true,
                connections: None,
                seconds: None,
                latency: None,
                turned_away: 0,
                again_per_s: None,
            }));
        }
        if !self.scenario.needs_capacity() && !wanted.again {
            return Ok(None);
        }
        self.progress.step("the target's capacity");
        let found = closed::measure(&closed_subject(subject), wanted.connections, wanted.length)
            .await
            .context("while the target's capacity was measured")?;
        Ok(Some(Capacity {
            per_s: found.per_s,
            given: false,
            connections: Some(wanted.connections),
            seconds: Some(wanted.length.as_secs_f64()),
            latency: Some(found.latencies),
            turned_away: found.turned_away,
            again_per_s: None,
        }))
    }

    async fn again(&self, subject: &Subject, capacity: &mut Capacity) -> Result<()> {
        let wanted = self.scenario.capacity;
        if wanted.again {
            self.progress.step("the target's capacity, once more");
            let found =
                closed::measure(&closed_subject(subject), wanted.connections, wanted.length).await;
            // A target that is dead by now has its phases to show for it.
            capacity.again_per_s = Some(found.map_or(0.0, |found| found.per_s));
        }
        Ok(())
    }

    fn plan(&self, subject: &Subject, capacity: Option<f64>) -> Result<load::Plan> {
        let scenario = self.scenario;
        // Without a capacity no rate is a multiple of it.
        let capacity = capacity.unwrap_or(0.0);
        let client = |client: &scenario::Client| {
            Ok(load::Client {
                requests: subject.requests(client)?,
                judge: subject.judge(),
                deadline: client.deadline,
                max_outstanding: client.max_outstanding,
                retries: client.retries,
                backoff: client.backoff,
                abandon_after: client.abandon_after,
                timeout: client.timeout,
            })
        };
        let phase = |phase: &scenario::Phase| load::Phase {
            length: phase.length,
            arrivals: phase
                .arrivals
                .iter()
                .map(|(client, pattern)| {
                    let shape = pattern.shape.map(|rate| rate.at(capacity));
                    (*client, crate::arrivals::Pattern { shape, random: pattern.random })
                })
                .collect(),
            sampled: phase.recovery.is_some(),
        };
        let length = scenario.length();
        let usual = if length > SHORT_RUN { 1000 } else { 250 };
        let bucket = scenario.bucket.unwrap_or(Duration::from_millis(usual));
        Ok(load::Plan {
            address: subject.address,
            protocol: subject.protocol,
            clients: scenario.clients.iter().map(client).collect::<Result<_>>()?,
            phases: scenario.phases.iter().map(phase).collect(),
            coalesce: scenario.coalesce,
            bucket: bucket.max(length / BUCKETS_MAX),
            seed: scenario.seed,
            enough: Rc::default(),
            each: None,
            give_up: scenario.target.give_up,
            grace: GRACE,
        })
    }

    async fn load(&self, plan: load::Plan, stop: impl Future<Output = String>) -> Result<Finished> {
        let now = Rc::new(RefCell::new(String::new()));
        let names: Vec<_> = self.scenario.phases.iter().map(|phase| phase.name.clone()).collect();
        let shown = Rc::clone(&now);
        let begins = move |index: usize| {
            shown.borrow_mut().clone_from(names.get(index).unwrap_or(&String::new()));
        };
        let begun = Instant::now();
        let length = self.scenario.length();
        tokio::select! {
            finished = load::run(plan, stop, begins) => finished,
            never = self.progress.follow(begun, length, &now) => match never {},
        }
    }
}

/// The work, unless the run is to end before it has begun.
pub(crate) async fn unless<T>(
    stop: &mut (impl Future<Output = String> + Unpin),
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        done = work => done,
        reason = stop => bail!("{reason} before the first phase"),
    }
}

pub(crate) fn closed_subject(subject: &Subject) -> closed::Subject {
    closed::Subject {
        address: subject.address,
        protocol: subject.protocol,
        request: subject.bare(),
    }
}

/// What this generator reaches when nothing is done with its requests.
pub(crate) async fn ceiling(subject: &Subject) -> Result<Ceiling> {
    let (connections, length) = CEILING;
    let (address, against) = if subject::answers_noop(subject).await {
        (subject.address, "the target's /noop")
    } else {
        (own_noop()?, "a target of its own that does nothing")
    };
    let closed =
        closed::Subject { address, protocol: subject.protocol, request: subject.noop(address) };
    let found = closed::measure(&closed, connections, length)
        .await
        .context("while the generator's own ceiling was measured")?;
    Ok(Ceiling {
        against: against.to_owned(),
        per_s: found.per_s,
        cpu_us_per_request: found.cpu_us,
    })
}

fn own_noop() -> Result<SocketAddr> {
    noop::serve()
}

fn facts(target: &scenario::Target, subject: &Subject) -> TargetFacts {
    TargetFacts {
        address: subject.address.to_string(),
        server: subject.server.clone(),
        model: target.model.clone(),
        version: target.version.clone(),
        protocol: match target.protocol {
            Protocol::Http1 => "http1",
            Protocol::Http2 => "http2",
        }
        .to_owned(),
        encoding: match target.encoding {
            Encoding::Binary => "binary",
            Encoding::Json => "json",
        }
        .to_owned(),
        request_bytes: subject.request_bytes,
    }
}

#[cfg(test)]
mod tests;
