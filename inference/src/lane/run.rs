//! One run of a lane: for one request, or for several that go together.
//!
//! What fails for several is tried again for each by itself, so that a bad row harms no neighbour. A panic takes the lane
//! with it, so the others of its run go back to the queue, to run alone in another.

use super::Lanes;
use super::post::Post;
use crate::adaptive;
use crate::admission::{Shed, ShedReason};
use crate::batch::{self, Shape};
use crate::cancel::SharedCancel;
use crate::engine::{Cancel, RunError, RunOutput, Session};
use crate::predict::{Job, PredictError, Prediction};
use crate::recorder::Place;
use crate::statistics::Timing;
use crate::tensor::Tensor;
use crate::version::unix_ms;
use balm_probes::poison::Standing;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What became of the run of a lane.
pub(super) enum Ran {
    /// The jobs have their answers.
    Answered,
    /// The session must not be used again. If one job alone is to blame, here it is, to be answered when the lane is replaced.
    Panicked(Option<Box<Job>>),
    /// The lane was given up while it ran: nothing is its own any more.
    Abandoned,
}

/// What became of one run.
enum Ended {
    /// The jobs have their answers.
    Answered,
    /// A run for several failed: each is to be run by itself.
    TryAlone,
    /// The session must not be used again.
    Panicked,
    /// The lane was given up.
    Abandoned,
}

impl Lanes {
    /// Runs the jobs of `batch`, together if they are several, and answers them. Empties `batch`.
    pub(super) fn run(
        &self,
        session: &mut dyn Session,
        canceller: &Arc<dyn Cancel>,
        post: &Post,
        batch: &mut Vec<Job>,
    ) -> Ran {
        let suspects = self.set_suspects_apart(post, batch);
        match self.run_together(session, canceller, post, batch) {
            Ended::Answered if !suspects => return Ran::Answered,
            Ended::Answered => {}
            Ended::Panicked => {
                self.queue.put_back(post.left().into_iter());
                return Ran::Panicked(self.after_panic(batch));
            }
            Ended::Abandoned => return Ran::Abandoned,
            Ended::TryAlone => post.put_by(batch.drain(..)),
        }
        while let Some(job) = post.next() {
            batch.push(job);
            match self.run_together(session, canceller, post, batch) {
                Ended::Answered | Ended::TryAlone => {}
                Ended::Panicked => {
                    self.queue.put_back(post.left().into_iter());
                    return Ran::Panicked(self.after_panic(batch));
                }
                Ended::Abandoned => return Ran::Abandoned,
            }
        }
        Ran::Answered
    }

    /// Answers those that were there at too many crashes, and puts by those that were there at one, to run by themselves. Whether
    /// there are any.
    fn set_suspects_apart(&self, post: &Post, batch: &mut Vec<Job>) -> bool {
        let Some(seat) = post.seat() else { return false };
        for job in batch.iter_mut() {
            job.hash = seat.hash(&job.inputs);
        }
        if seat.knows_nothing() {
            return false;
        }
        for job in batch.extract_if(.., |job| seat.standing(job.hash) == Standing::Refused) {
            self.count_failed(&job, Instant::now());
            self.metrics.poison_refused.inc();
            let error = PredictError::Poison { hash: job.hash };
            job.answer(Err(error));
        }
        let is_suspect = |job: &mut Job| seat.standing(job.hash) == Standing::Suspect;
        let suspects: Vec<Job> = batch.extract_if(.., is_suspect).collect();
        let are_there = !suspects.is_empty();
        // Whoever waits for others to come back is not late by itself.
        post.put_by(suspects.into_iter().map(|job| Job { innocent: true, ..job }));
        are_there
    }

    /// A place for the run of `batch`, where suspects are run by themselves. It is waited for until the deadline.
    fn place(&self, post: &Post, batch: &[Job]) -> Option<Place> {
        let seat = post.seat().filter(|seat| !seat.knows_nothing())?;
        match batch {
            [job] if seat.standing(job.hash) == Standing::Suspect => seat.alone(job.deadline.at),
            [] => None,
            _ => Some(seat.beside_others()),
        }
    }

    /// The one job of a run that panicked; of several none is known to be guilty, so all wait again.
    fn after_panic(&self, batch: &mut Vec<Job>) -> Option<Box<Job>> {
        if batch.len() == 1 {
            return batch.pop().map(Box::new);
        }
        let innocent = batch.drain(..).filter(|job| job.token.again());
        let mut alone: Vec<Job> = innocent.collect();
        for job in &mut alone {
            (job.joins, job.innocent) = (false, true);
        }
        self.queue.put_back(alone.into_iter());
        None
    }

    fn run_together(
        &self,
        session: &mut dyn Session,
        canceller: &Arc<dyn Cancel>,
        post: &Post,
        batch: &mut Vec<Job>,
    ) -> Ended {
        let place = self.place(post, batch);
        let begun = Instant::now();
        self.drop_the_late(batch, begun);
        self.drop_the_overdue(batch, begun);
        self.drop_if_distrusted(batch);
        session.rearm();
        self.begin(batch, canceller);
        let joined = (batch.len() > 1).then(|| joined(&batch[0], batch));
        let together = joined.is_some();
        let Some(first) = batch.first_mut() else { return Ended::Answered };
        // What the run reads stays with this thread; who it is for goes where the watchdog can take it.
        let mut inputs = joined.unwrap_or_else(|| mem::take(&mut first.inputs));
        let outputs = Arc::clone(&first.outputs);
        post.begin(batch, place);
        let result = catch_unwind(AssertUnwindSafe(|| session.run(&inputs, &outputs)));
        if !post.end(batch) {
            return Ended::Abandoned;
        }
        if let Some(alone) = batch.first_mut().filter(|_| !together) {
            alone.inputs = mem::take(&mut inputs);
        }
        self.ended.fetch_add(1, Ordering::Relaxed);
        if let ([job], Some(seat)) = (batch.as_slice(), post.seat())
            && !seat.knows_nothing()
        {
            seat.survived(job.hash);
        }
        if let Ok(Err(RunError::Runtime(error))) = &result {
            self.look_at_provider(error);
        }
        // It may have come out while the run was in progress.
        self.drop_if_distrusted(batch);
        if batch.is_empty() {
            return Ended::Answered;
        }
        let failed = match result {
            Ok(Ok(output)) => match self.answer_all(batch, begun, output, &inputs) {
                Ok(()) => return Ended::Answered,
                Err(error) => error,
            },
            Ok(Err(error)) => error,
            Err(_panic) => {
                if let [job] = batch.as_slice() {
                    job.token.finish();
                    self.count_failed(job, Instant::now());
                }
                return Ended::Panicked;
            }
        };
        if batch.len() > 1 {
            // Those that nobody waits for any more are gone; the others have another try.
            for job in batch.extract_if(.., |job| !job.token.again()) {
                self.count_failed(&job, Instant::now());
            }
            return Ended::TryAlone;
        }
        for job in batch.drain(..) {
            job.token.finish();
            self.count_failed(&job, Instant::now());
            self.metrics.queue_seconds.observe((begun - job.queued_at).as_secs_f64());
            if failed == RunError::Terminated && Instant::now() >= job.deadline.at {
                self.healing.cancelled();
            }
            let error = run_error(failed.clone(), &job);
            job.answer(Err(error));
        }
        Ended::Answered
    }

    /// Counts a request that failed. Statistics are of what clients asked for.
    pub(super) fn count_failed(&self, job: &Job, now: Instant) {
        if !job.permit.is_canary() {
            self.statistics.failed(now - job.queued_at);
        }
    }

    /// An error after which every call fails is no answer of this model, and nothing to be tried again in this process.
    fn look_at_provider(&self, error: &str) {
        let subject = format!("model {:?} version {}", self.label, self.settings.version);
        if self.healing.is_provider_lost(&subject, error) {
            self.distrust(format!("its execution provider is lost to this process: {error}"));
        }
    }

    /// Answers all of them, where nothing that these lanes compute can be vouched for.
    fn drop_if_distrusted(&self, batch: &mut Vec<Job>) {
        if self.is_trusted() {
            return;
        }
        for job in batch.drain(..) {
            job.token.finish();
            self.count_failed(&job, Instant::now());
            job.answer(Err(self.refusal()));
        }
    }

    /// Answers those whose deadline is over.
    fn drop_the_late(&self, batch: &mut Vec<Job>, now: Instant) {
        for job in batch.extract_if(.., |job| now >= job.deadline.at) {
            self.count_failed(&job, now);
            let error = job.deadline.error("waited");
            job.answer(Err(error));
        }
    }

    /// Answers those that have waited longer than admission meant anybody to.
    fn drop_the_overdue(&self, batch: &mut Vec<Job>, now: Instant) {
        // Whoever configured a wait for company did not mean it to count.
        let limit = self.backlog.overdue_after(self.queue.standing(now)) + self.settings.delay;
        let overdue = |job: &mut Job| !job.innocent && now - job.queued_at > limit;
        for job in batch.extract_if(.., overdue) {
            self.count_failed(&job, now);
            job.answer(Err(PredictError::Shed(Shed::new(ShedReason::Overdue))));
        }
    }

    /// From now on a cancel of a job reaches this run, and stops it once nobody waits for it. Leaves out those that nobody waits
    /// for already: their places become free and nothing is computed.
    fn begin(&self, batch: &mut Vec<Job>, canceller: &Arc<dyn Cancel>) {
        let shared: Option<Arc<dyn Cancel>> = match batch.len() {
            0 | 1 => None,
            jobs => Some(SharedCancel::new(jobs, canceller)),
        };
        batch.retain(|job| {
            let begins = job.token.begin(shared.as_ref().unwrap_or(canceller));
            if !begins {
                self.count_failed(job, Instant::now());
                if let Some(shared) = &shared {
                    shared.cancel();
                }
            }
            begins
        });
    }

    /// The outputs of a run for several, apart again. What does not come apart is not put together any more.
    fn parts(
        &self,
        batch: &[Job],
        rows: &[usize],
        joined: &[Tensor],
        outputs: &[Tensor],
    ) -> Result<Vec<Vec<Tensor>>, RunError> {
        let apart = batch::split(outputs, rows).map_err(|reason| {
            tracing::error!(model = %self.label, reason, "requests share no runs from now on");
            self.share(false, reason.clone());
            RunError::Runtime(reason)
        })?;
        let Some((first, padding)) =
            batch.first().and_then(|job| Some((job, job.padding.as_ref()?)))
        else {
            return Ok(apart);
        };
        let requests: Vec<&[Tensor]> = batch.iter().map(|job| job.inputs.as_slice()).collect();
        padding.cut(joined, &requests, &first.outputs, apart).map_err(|reason| {
            tracing::error!(model = %self.label, reason, "requests are padded no more");
            self.pad(false, reason.clone());
            RunError::Runtime(reason)
        })
    }

    /// Hands the outputs to the jobs and empties `batch`. `joined` is what a run for several was computed from.
    ///
    /// # Errors
    /// When the outputs have no row for each; then `batch` is as it was.
    fn answer_all(
        &self,
        batch: &mut Vec<Job>,
        begun: Instant,
        output: RunOutput,
        joined: &[Tensor],
    ) -> Result<(), RunError> {
        let rows: Vec<usize> = batch.iter().map(|job| job.rows).collect();
        let total_rows: usize = rows.iter().sum();
        let alone = batch.len() == 1;
        let parts = if alone {
            vec![output.outputs]
        } else {
            self.parts(batch, &rows, joined, &output.outputs)?
        };
        let run = output.input_time + output.infer_time + output.output_time;
        if let Some(first) = batch.first() {
            let inputs = if alone { &first.inputs } else { joined };
            let shape = if alone { first.shape } else { Shape::of(inputs, total_rows) };
            self.costs.learn(shape, total_rows, run);
            self.learn_limit(|| adaptive::Ran {
                time: run,
                rows: total_rows,
                elements: inputs.iter().map(Tensor::element_count).sum(),
                shedding: self.backlog.is_shedding(Instant::now()),
            });
        }
        self.backlog.learn_run(run);
        self.longest.learn(run);
        self.queue.learn(run / u32::try_from(batch.len()).unwrap_or(u32::MAX).max(1));
        self.metrics.run_seconds.observe(output.infer_time.as_secs_f64());
        self.metrics.batch_rows.observe(total_rows as f64);
        let timing = |queue| Timing {
            queue,
            input: output.input_time,
            infer: output.infer_time,
            output: output.output_time,
        };
        if batch.iter().any(|job| !job.permit.is_canary()) {
            self.statistics.executed(total_rows as u64, timing(Duration::ZERO), unix_ms());
        }
        let now = Instant::now();
        for (mut job, outputs) in batch.drain(..).zip(parts) {
            let part = u32::try_from(job.rows).unwrap_or(u32::MAX);
            let price = run / u32::try_from(total_rows).unwrap_or(u32::MAX).max(1) * part;
            job.permit.ran(price, run, now);
            let timing = timing(begun - job.queued_at);
            self.metrics.queue_seconds.observe(timing.queue.as_secs_f64());
            if !job.token.finish() {
                self.count_failed(&job, now);
            } else if !job.permit.is_canary() {
                self.statistics.succeeded(timing, now - job.queued_at);
            }
            let inputs = mem::take(&mut job.inputs);
            job.answer(Ok(Prediction { outputs, timing, inputs }));
        }
        Ok(())
    }
}

/// The inputs of several jobs that go together, as one.
fn joined(first: &Job, batch: &[Job]) -> Vec<Tensor> {
    let parts: Vec<&[Tensor]> = batch.iter().map(|job| job.inputs.as_slice()).collect();
    match &first.padding {
        Some(padding) => padding.concatenate(&parts),
        None => batch::concatenate(&parts),
    }
}

fn run_error(error: RunError, job: &Job) -> PredictError {
    match error {
        // Only its own request cancels a run, and that has either left or passed its deadline.
        RunError::Terminated if job.token.is_cancelled() => job.deadline.error("ran"),
        other => other.into(),
    }
}
