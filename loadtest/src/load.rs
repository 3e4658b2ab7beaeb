//! The open loop: requests go out when their moment has come, whatever became of those before.
//!
//! One thread sends, reads and records: it shares the machine with its target, so every core it takes is one that the
//! target has not. Latency counts from the moment that was intended, so a wait within the generator is counted and
//! shown, not forgiven.

pub(crate) mod alarm;
pub(crate) mod closed;
pub(crate) mod pool;
pub(crate) mod record;

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use fastrand::Rng;
use http_body_util::Full;
use hyper::Request;
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::{sleep, timeout};

use crate::arrivals::{Arrivals, Pattern};
use crate::client::Reply;
use crate::load::alarm::Alarm;
use crate::load::pool::{Outage, Pool};
use crate::load::record::{Ended, Recorder};
use crate::process::thread_seconds;
use crate::scenario::Protocol;

/// How many late requests are sent in a row before answers are looked at again.
const BURST: u32 = 16;
/// How often it is looked whether the target still answers.
const LOOK: Duration = Duration::from_millis(100);
/// What no answer within the client's patience is called.
const TIMED_OUT: &str = "timeout";

/// Whether an answer with a good status is right.
pub(crate) type Judge = Rc<dyn Fn(&Reply) -> bool>;
/// Hears of an attempt: by which client, when it was meant to go out, when and how it ended.
pub(crate) type Each = dyn Fn(usize, Instant, Instant, Ended);

/// What is to be sent.
pub(crate) struct Plan {
    pub(crate) address: SocketAddr,
    pub(crate) protocol: Protocol,
    pub(crate) clients: Vec<Client>,
    pub(crate) phases: Vec<Phase>,
    /// Requests whose moments lie within this go out together.
    pub(crate) coalesce: Duration,
    /// Width of a bucket of the timeline.
    pub(crate) bucket: Duration,
    pub(crate) seed: u64,
    /// Whether to send no more: what was sent is still waited for.
    pub(crate) enough: Rc<Cell<bool>>,
    /// Told of every attempt that has ended, if somebody wants to know.
    pub(crate) each: Option<Box<Each>>,
    /// How long nothing at all may come back.
    pub(crate) give_up: Duration,
    /// How long answers may stay out after the last phase.
    pub(crate) grace: Duration,
}

/// Clients of one kind.
pub(crate) struct Client {
    /// One request for each of them.
    pub(crate) requests: Vec<Request<Full<Bytes>>>,
    /// None where nothing is known of the answer.
    pub(crate) judge: Option<Judge>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) max_outstanding: usize,
    pub(crate) retries: u32,
    pub(crate) backoff: Duration,
    pub(crate) abandon_after: Option<Duration>,
    pub(crate) timeout: Duration,
}

/// A time with its own arrivals.
pub(crate) struct Phase {
    pub(crate) length: Duration,
    /// By index of the client.
    pub(crate) arrivals: Vec<(usize, Pattern<f64>)>,
    /// Whether every accepted answer is kept.
    pub(crate) sampled: bool,
}

/// What came of it.
pub(crate) struct Finished {
    pub(crate) recorder: Recorder,
    /// Why it ended early, if it did.
    pub(crate) partial: Option<String>,
    /// Processor seconds of the generator's thread, by phase.
    pub(crate) seconds_busy: Vec<f64>,
    pub(crate) start: Instant,
    /// How much of the phases there was.
    pub(crate) length: Duration,
}

/// What every request has to do with.
struct Shared {
    plan: Plan,
    recorder: RefCell<Recorder>,
    /// By client, and then one for each of its kind.
    pools: Vec<Vec<Pool>>,
    outstanding: Vec<Cell<usize>>,
    next: Vec<Cell<usize>>,
    all_ended: Notify,
    random: RefCell<Rng>,
}

/// Runs the plan; `stop` says why it is to end early. `phase_begins` is told the index of each.
pub(crate) async fn run(
    plan: Plan,
    stop: impl Future<Output = String>,
    phase_begins: impl Fn(usize),
) -> Result<Finished> {
    let start = Instant::now();
    let shared = Rc::new(Shared::new(plan, start)?);
    let local = LocalSet::new();
    let planned: Duration = shared.plan.phases.iter().map(|phase| phase.length).sum();
    let (partial, seconds_busy) =
        local.run_until(drive(&shared, start, stop, phase_begins)).await?;
    let length = start.elapsed().min(planned);
    // What is still on its way is given up, and with it the last other owners.
    drop(local);
    let shared = Rc::try_unwrap(shared)
        .map_err(|_| anyhow::anyhow!("requests are left that nobody waits for"))?;
    Ok(Finished { recorder: shared.recorder.into_inner(), partial, seconds_busy, start, length })
}

async fn drive(
    shared: &Rc<Shared>,
    start: Instant,
    stop: impl Future<Output = String>,
    phase_begins: impl Fn(usize),
) -> Result<(Option<String>, Vec<f64>)> {
    let busy = RefCell::new(Vec::with_capacity(shared.plan.phases.len()));
    let all = async {
        send_all(shared, start, &busy, phase_begins).await?;
        shared.drained().await;
        anyhow::Ok(())
    };
    let partial = tokio::select! {
        sent = all => { sent?; None }
        reason = stop => Some(reason),
        reason = lost(shared) => Some(reason),
    };
    Ok((partial, busy.into_inner()))
}

async fn send_all(
    shared: &Rc<Shared>,
    start: Instant,
    busy: &RefCell<Vec<f64>>,
    phase_begins: impl Fn(usize),
) -> Result<()> {
    let alarm = Alarm::new()?;
    let mut begin = start;
    let mut woken = start;
    let mut used = thread_seconds();
    for (index, phase) in shared.plan.phases.iter().enumerate() {
        phase_begins(index);
        let mut burst = 0;
        for (offset, client) in Merged::new(phase, shared.plan.seed, index) {
            if shared.plan.enough.get() {
                return Ok(());
            }
            let intended = begin + offset;
            if Instant::now() < intended {
                alarm.until(intended.max(woken + shared.plan.coalesce)).await?;
                woken = Instant::now();
                burst = 0;
            } else {
                burst += 1;
            }
            // Answers are read by the same thread: late requests must not shut them out.
            if burst >= BURST {
                yield_now().await;
                burst = 0;
            }
            shared.arrive(index, client, intended);
        }
        begin += phase.length;
        alarm.until(begin).await?;
        let now = thread_seconds();
        busy.borrow_mut().push(now - used);
        used = now;
    }
    Ok(())
}

async fn lost(shared: &Shared) -> String {
    loop {
        sleep(LOOK).await;
        let recorder = shared.recorder.borrow();
        if let Some(reason) = recorder.lost(shared.plan.give_up, Instant::now()) {
            return reason;
        }
    }
}

/// The arrivals of all clients in a phase, in the order of time.
struct Merged {
    sources: Vec<(usize, Arrivals)>,
    next: BinaryHeap<Reverse<(Duration, usize)>>,
}

// ===== impl Merged =====

impl Merged {
    fn new(phase: &Phase, seed: u64, index: usize) -> Merged {
        let source = |(client, pattern): &(usize, Pattern<f64>)| {
            // Every client in every phase draws from its own numbers.
            let own = ((index as u64) << 32) ^ *client as u64 ^ 0x9e37_79b9_7f4a_7c15;
            (
                *client,
                pattern.arrivals(phase.length, seed.wrapping_mul(0x5851_f42d_4c95_7f2d) ^ own),
            )
        };
        let mut merged = Merged {
            sources: phase.arrivals.iter().map(source).collect(),
            next: BinaryHeap::new(),
        };
        for source in 0..merged.sources.len() {
            merged.pull(source);
        }
        merged
    }

    fn pull(&mut self, source: usize) {
        if let Some(at) = self.sources[source].1.next() {
            self.next.push(Reverse((at, source)));
        }
    }
}

impl Iterator for Merged {
    type Item = (Duration, usize);

    fn next(&mut self) -> Option<(Duration, usize)> {
        let Reverse((at, source)) = self.next.pop()?;
        self.pull(source);
        Some((at, self.sources[source].0))
    }
}

// ===== impl Shared =====

impl Shared {
    fn new(plan: Plan, start: Instant) -> Result<Shared> {
        let phases: Vec<_> =
            plan.phases.iter().map(|phase| (phase.length, phase.sampled)).collect();
        let outage = Rc::new(Outage::default());
        let pool = |_| Pool::new(plan.address, plan.protocol, Rc::clone(&outage));
        let count = plan.clients.len();
        Ok(Shared {
            recorder: RefCell::new(Recorder::new(start, &phases, count, plan.bucket)?),
            pools: plan
                .clients
                .iter()
                .map(|kind| kind.requests.iter().map(pool).collect())
                .collect(),
            outstanding: vec![Cell::new(0); count],
            next: vec![Cell::new(0); count],
            all_ended: Notify::new(),
            random: RefCell::new(Rng::with_seed(plan.seed)),
            plan,
        })
    }

    /// Sends a request whose moment has come, or counts that it cannot be sent.
    fn arrive(self: &Rc<Self>, phase: usize, client: usize, intended: Instant) {
        let outstanding = &self.outstanding[client];
        let room = outstanding.get() < self.plan.clients[client].max_outstanding;
        self.recorder.borrow_mut().arrived(phase, client, intended, room);
        if !room {
            return;
        }
        outstanding.set(outstanding.get() + 1);
        let next = &self.next[client];
        let one = next.get();
        next.set((one + 1) % self.plan.clients[client].requests.len().max(1));
        let shared = Rc::clone(self);
        spawn_local(async move {
            let good = shared.attempts(phase, client, one, intended).await;
            shared.recorder.borrow_mut().settled(phase, client, good);
            let outstanding = &shared.outstanding[client];
            outstanding.set(outstanding.get().saturating_sub(1));
            shared.all_ended.notify_one();
        });
    }

    /// One request, with its further attempts; whether it had a good answer in the end.
    async fn attempts(
        &self,
        phase: usize,
        client: usize,
        one: usize,
        mut intended: Instant,
    ) -> bool {
        let kind = &self.plan.clients[client];
        for attempt in 0..=kind.retries {
            let ended = self.attempt(phase, client, one, intended).await;
            if !ended.invites_retry() || attempt == kind.retries {
                return ended.is_good();
            }
            let jitter = 0.5 + self.random.borrow_mut().f64();
            let pause = kind.backoff.saturating_mul(1 << attempt).mul_f64(jitter);
            intended = Instant::now() + pause;
            sleep(pause).await;
        }
        false
    }

    async fn attempt(&self, phase: usize, client: usize, one: usize, intended: Instant) -> Ended {
        let kind = &self.plan.clients[client];
        self.recorder.borrow_mut().sending(phase, client, intended, Instant::now());
        let exchange = self.pools[client][one].exchange(&kind.requests[one]);
        let patience = kind.abandon_after.map_or(kind.timeout, |limit| limit.min(kind.timeout));
        let reply = timeout(patience, exchange).await;
        let now = Instant::now();
        let latency = now.saturating_duration_since(intended);
        let ended = match reply {
            Ok(Ok(reply)) => Ended::Answered {
                status: reply.status.as_u16(),
                late: kind.deadline.is_some_and(|deadline| latency > deadline),
                wrong: reply.status.is_success()
                    && kind.judge.as_ref().is_some_and(|is_right| !is_right(&reply)),
            },
            Ok(Err(error)) => Ended::Failed(error.kind()),
            Err(_) if kind.abandon_after.is_some_and(|limit| limit <= kind.timeout) => {
                Ended::Abandoned
            }
            Err(_) => Ended::Failed(TIMED_OUT),
        };
        self.recorder.borrow_mut().ended(phase, client, ended, latency, now);
        if let Some(each) = &self.plan.each {
            each(client, intended, now, ended);
        }
        ended
    }

    /// Returns when every request has ended, or has had its time.
    async fn drained(&self) {
        let all = async {
            while self.outstanding.iter().any(|outstanding| outstanding.get() > 0) {
                self.all_ended.notified().await;
            }
        };
        // What stays out is in `sent` and in no other count, and so can be told.
        let _ = timeout(self.plan.grace, all).await;
    }
}

#[cfg(test)]
mod tests;
