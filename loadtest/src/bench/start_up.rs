//! From exec to the first right answer, and what is held when it has been given.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::{Measurand, ort_alone, progress, settings};
use crate::cli::BenchPlan;
use crate::closed_loop;
use crate::ort_alone::Load;
use crate::process::Memory;
use crate::report::{Start, StartUp};
use crate::target::Server;

/// Until whatever follows a start has followed.
const SETTLE: Duration = Duration::from_millis(300);

/// Starts either side several times, in turns, every other time in reverse order. `None` when no start is planned.
pub(crate) async fn measure(plan: &BenchPlan, measurand: &Measurand) -> Result<Option<StartUp>> {
    let mut starts = Vec::new();
    if plan.starts > 0 {
        // Programs, library and model come from the disk the first time, which is not what is compared.
        pair(plan, measurand, false).await?;
    }
    for number in 0..plan.starts {
        let start = pair(plan, measurand, number % 2 == 1).await?;
        progress(&format!(
            "start {}/{} {}: ORT alone {:.0} ms, balm {:.0} ms",
            number + 1,
            plan.starts,
            measurand.name(),
            start.ort_alone.total_ms,
            start.balm_ms,
        ));
        starts.push(start);
    }
    Ok(StartUp::of(measurand.name(), plan.lanes, &starts))
}

async fn pair(plan: &BenchPlan, measurand: &Measurand, reversed: bool) -> Result<Start> {
    let (ort_alone, (balm_ms, balm_memory)) = if reversed {
        let balm = balm(plan, measurand).await?;
        (alone(plan, measurand).await?, balm)
    } else {
        (alone(plan, measurand).await?, balm(plan, measurand).await?)
    };
    Ok(Start { ort_alone, balm_ms, balm_memory })
}

async fn alone(plan: &BenchPlan, measurand: &Measurand) -> Result<Load> {
    ort_alone(plan).load(&measurand.alone.model, plan.lanes).await
}

async fn balm(plan: &BenchPlan, measurand: &Measurand) -> Result<(f64, Memory)> {
    let mut server = Server::start(&settings(plan, measurand)).await?;
    let took = server.first_right_answer(&measurand.infer).await?;
    // Every session of the other side has run once, too. More connections than lanes, so that all are woken.
    closed_loop::touch(server.address(), &measurand.infer, 2 * plan.lanes, 2).await?;
    sleep(SETTLE).await;
    let memory = Memory::of_family(server.process())?;
    server.stop().await?;
    Ok((took.as_secs_f64() * 1e3, memory))
}
