//! `balm-loadtest bench`: Balm beside ONNX Runtime alone and beside a route that does nothing, in one run.
//!
//! A figure from another day, or from another machine, compares nothing. So everything is measured side by side,
//! in rounds, every other in reverse order, one busy program at a time, and each round is compared with itself.

mod start_up;
mod throughput;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;
use tokio::time::timeout;

use crate::cli::{BenchArgs, BenchPlan};
use crate::closed_loop::{Expect, Work};
use crate::machine::Machine;
use crate::oip;
use crate::ort_alone::OrtAlone;
use crate::report::{Aim, Report};
use crate::repository::{Alone, Model};
use crate::target;

/// How long `balm --version` may take.
const VERSION_LIMIT: Duration = Duration::from_secs(10);
/// Models whose start and memory are looked at.
const STARTED: [&str; 2] = ["iris", "minilm"];

/// A model under measurement: in a repository of its own, with what is asked of it.
pub(crate) struct Measurand {
    alone: Alone,
    case: String,
    infer: Work,
    noop: Work,
}

/// Runs the bench and sums it up.
pub(crate) async fn run(args: &BenchArgs) -> Result<Report> {
    let machine = Machine::detect();
    let mut plan = args.plan(machine.cores)?;
    check(&plan)?;
    // The children are started elsewhere than the paths were typed.
    plan.library = fs::canonicalize(&plan.library)?;
    let measurands = plan
        .models
        .iter()
        .map(|name| Measurand::new(&Model::find(&plan.repositories, name)?))
        .collect::<Result<Vec<_>>>()?;
    let balm = version(&plan.balm).await?;
    progress(&format!("{}; about {} s", first_line(&balm), expected(&plan).as_secs()));
    let throughput = throughput::measure(&plan, &measurands).await?;
    let mut start_up = Vec::new();
    for measurand in measurands.iter().filter(|measurand| STARTED.contains(&measurand.name())) {
        start_up.extend(start_up::measure(&plan, measurand).await?);
    }
    Ok(Report {
        balm: first_line(&balm).to_owned(),
        // The link's target carries the version in its name.
        onnxruntime: plan.library.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        machine,
        lanes: plan.lanes,
        rounds: plan.rounds,
        seconds: plan.length.as_secs_f64(),
        aims: Aim::of(&throughput, &start_up),
        throughput,
        start_up,
    })
}

/// What is missing, and which command brings it.
fn check(plan: &BenchPlan) -> Result<()> {
    for (file, remedy) in [
        (&plan.balm, "`make build` builds it"),
        (&plan.ort_alone, "`make bench` builds it"),
        (&plan.library, "`make ort` brings it"),
    ] {
        if !file.is_file() {
            bail!("{} is missing: {remedy}", file.display());
        }
    }
    Ok(())
}

/// Roughly how long it will take, so that nobody wonders.
fn expected(plan: &BenchPlan) -> Duration {
    let measurements = plan.connections.len() * 2 + 2;
    let count = u32::try_from(plan.models.len() * measurements).unwrap_or(u32::MAX);
    let starts = Duration::from_secs(2) * plan.starts;
    (plan.warm_up + plan.length).saturating_mul(count.saturating_mul(plan.rounds)) + starts
}

async fn version(program: &Path) -> Result<String> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(VERSION_LIMIT, command.output())
        .await
        .with_context(|| format!("{} --version does not end", program.display()))?
        .with_context(|| program.display().to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or("a server without a version")
}

/// A line for whoever waits; the report itself goes to stdout.
fn progress(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn ort_alone(plan: &BenchPlan) -> OrtAlone {
    OrtAlone { program: plan.ort_alone.clone(), library: plan.library.clone() }
}

fn settings(plan: &BenchPlan, measurand: &Measurand) -> target::Settings {
    target::Settings {
        program: plan.balm.clone(),
        library: plan.library.clone(),
        repository: measurand.alone.repository(),
        lanes: Some(plan.lanes),
        config: None,
        log: measurand.alone.beside("server.log"),
    }
}

// ===== impl Measurand =====

impl Measurand {
    fn new(model: &Model) -> Result<Measurand> {
        let case = model.case(None)?;
        let request = oip::infer_request(&model.name, &case)?;
        let noop = Work { request: oip::noop_request(&request), expect: Expect::Accepted };
        let name = case.name.clone();
        let infer = Work { request, expect: Expect::Prediction(case) };
        Ok(Measurand { alone: model.alone()?, case: name, infer, noop })
    }

    fn name(&self) -> &str {
        &self.alone.model.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser as _;

    #[tokio::test]
    async fn what_is_missing_is_named_with_its_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let mut arguments = vec!["balm-loadtest".to_owned(), "bench".to_owned()];
        let needed = [
            ("--balm", "`make build`"),
            ("--ort-alone", "`make bench`"),
            ("--library", "`make ort`"),
        ];
        for (flag, _) in needed {
            arguments.extend([flag.to_owned(), path(flag)]);
        }
        for (flag, remedy) in needed {
            let Command::Bench(args) = Cli::parse_from(&arguments).command else { unreachable!() };
            let error = run(&args).await.unwrap_err().to_string();
            assert!(error.contains(flag) && error.contains(remedy), "{error}");
            fs::write(path(flag), "").unwrap();
        }
    }
}
