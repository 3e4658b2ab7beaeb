//! Predictions per second, round by round.

use anyhow::{Context as _, Result};

use super::{Measurand, ort_alone, progress, settings};
use crate::cli::BenchPlan;
use crate::closed_loop::{self, Measured};
use crate::process::Cores;
use crate::report::{Series, Subject, Throughput};
use crate::target::Server;

/// Rows of a run that ONNX Runtime alone is tried with.
const BATCHES: [usize; 4] = [2, 4, 8, 32];

/// Requests on each connection before anything is measured.
const WARMING_TIMES: usize = 40;

/// Measures every model in every round.
pub(crate) async fn measure(plan: &BenchPlan, measurands: &[Measurand]) -> Result<Vec<Throughput>> {
    let mut series: Vec<Series> = measurands.iter().map(|_| Series::new()).collect();
    for round in 0..plan.rounds {
        let mut order: Vec<usize> = (0..measurands.len()).collect();
        let reversed = round % 2 == 1;
        if reversed {
            order.reverse();
        }
        for index in order {
            let mut recorder =
                Recorder { plan, measurand: &measurands[index], round, series: &mut series[index] };
            let name = measurands[index].name();
            recorder.record(reversed).await.with_context(|| format!("model {name}"))?;
        }
    }
    let of = |(measurand, series): (&Measurand, &Series)| {
        Throughput::of(measurand.name(), &measurand.case, plan.lanes, series)
    };
    Ok(measurands.iter().zip(&series).map(of).collect())
}

/// One model in one round.
struct Recorder<'a> {
    plan: &'a BenchPlan,
    measurand: &'a Measurand,
    round: u32,
    series: &'a mut Series,
}

impl Recorder<'_> {
    async fn record(&mut self, reversed: bool) -> Result<()> {
        if reversed {
            self.served(true).await?;
            self.alone(true).await
        } else {
            self.alone(false).await?;
            self.served(false).await
        }
    }

    /// ONNX Runtime by itself: on one thread, for the lone client, and on as many as the server has lanes.
    async fn alone(&mut self, reversed: bool) -> Result<()> {
        let mut threads = vec![1, self.plan.lanes];
        threads.dedup();
        if reversed {
            threads.reverse();
        }
        for threads in threads {
            let measured = self.alone_with(threads, 1).await?;
            self.keep(Subject::OrtAlone, threads, measured);
        }
        // What batching could bring at best: as many sessions as the server has lanes, each with so many rows at a time.
        for rows in BATCHES {
            let measured = self.alone_with(self.plan.lanes, rows).await?;
            self.keep(Subject::OrtBatched, rows, measured);
        }
        Ok(())
    }

    async fn alone_with(&self, threads: usize, rows: usize) -> Result<Measured> {
        let plan = self.plan.closed_loop(threads);
        let run = ort_alone(self.plan).run(&self.measurand.alone.model, plan, rows).await?;
        Ok(Measured {
            per_second: run.runs_per_second * rows as f64,
            p50_us: run.p50_us,
            p99_us: run.p99_us,
            cores: Cores::default(),
            rows_per_run: Some(rows as f64),
        })
    }

    /// A server that has just this model, fresh for each round: what is an accident of one start shows in the spread.
    async fn served(&mut self, reversed: bool) -> Result<()> {
        let mut loads: Vec<(Subject, usize)> = self
            .plan
            .connections
            .iter()
            .flat_map(|&connections| [(Subject::Balm, connections), (Subject::Noop, connections)])
            .collect();
        if reversed {
            loads.reverse();
        }
        let mut server = Server::start(&settings(self.plan, self.measurand)).await?;
        server.first_right_answer(&self.measurand.infer).await?;
        // What runs cost must be known to the server before many come at once: it judges by that whom to let in.
        let (connections, times) = (2 * self.plan.lanes, WARMING_TIMES);
        closed_loop::touch(server.address(), &self.measurand.infer, connections, times).await?;
        for (subject, connections) in loads {
            let (work, what) = match subject {
                Subject::Noop => (&self.measurand.noop, "the no-op route"),
                _ => (&self.measurand.infer, "balm"),
            };
            let plan = self.plan.closed_loop(connections);
            let before = server.runs(self.measurand.name()).await?;
            let mut measured =
                closed_loop::measure(server.address(), server.process(), work.clone(), plan)
                    .await
                    .with_context(|| format!("{what}, {connections} connections"))?;
            measured.rows_per_run = server.runs(self.measurand.name()).await?.since(before);
            self.keep(subject, connections, measured);
        }
        server.stop().await
    }

    fn keep(&mut self, subject: Subject, at_once: usize, measured: Measured) {
        progress(&format!(
            "round {}/{} {} {subject:?} {at_once}: {:.0}/s, p50 {:.1} µs",
            self.round + 1,
            self.plan.rounds,
            self.measurand.name(),
            measured.per_second,
            measured.p50_us,
        ));
        self.series.entry((subject, at_once)).or_default().push(measured);
    }
}
