//! The program `balm-loadtest`: what its subcommands do, and how it ends.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::cli::{BenchArgs, CapacityArgs, Cli, Command, ReportArgs, RunArgs, WatchArgs};
use crate::result::{RunResult, SCHEMA, html, table};

/// Nothing was measured, for what was asked for cannot be done.
const CANNOT_BEGIN: u8 = 2;

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into(), 1),
    };
    // The bench has one status for all that goes wrong.
    let code = if matches!(cli.command, Command::Bench(_)) { 1 } else { CANNOT_BEGIN };
    // HTTP/2 connections are driven beside whoever asks on them, on this thread.
    match runtime.block_on(LocalSet::new().run_until(run(cli))) {
        Ok(code) => code.into(),
        Err(error) => failed(&error, code),
    }
}

/// Does what was asked for. What can be cut short ends early when interrupted and tells what it has; what cannot is
/// dropped, and its children with it.
async fn run(cli: Cli) -> Result<u8> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let stop = async move {
        tokio::select! {
            _ = terminated.recv() => "terminated".to_owned(),
            _ = interrupted.recv() => "interrupted".to_owned(),
        }
    };
    match cli.command {
        Command::Bench(args) => tokio::select! {
            ended = bench(&args) => ended.map(|()| 0),
            reason = stop => bail!("{reason}"),
        },
        Command::Run(args) => scenario(&args, stop).await,
        Command::Capacity(args) => capacity(&args, stop).await.map(|()| 0),
        Command::Watch(args) => watch(&args, stop).await.map(|()| 0),
        Command::Report(args) => report(&args).map(|()| 0),
    }
}

async fn bench(args: &BenchArgs) -> Result<()> {
    let report = crate::bench::run(args).await?;
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    print(&crate::report::table::render(&report))
}

async fn scenario(args: &RunArgs, stop: impl Future<Output = String>) -> Result<u8> {
    let result = crate::run::run(args, stop).await?;
    // The files first: a terminal that is gone must not take them along.
    if let Some(path) = &args.json {
        write_json(path, &result)?;
    }
    if let Some(path) = &args.html {
        write(path, html::render(&result).as_bytes())?;
    }
    print(&table::render(&result))?;
    Ok(result.verdict.exit_code())
}

async fn capacity(args: &CapacityArgs, stop: impl Future<Output = String>) -> Result<()> {
    let found = crate::capacity::run(args, stop).await?;
    if let Some(path) = &args.json {
        write_json(path, &found)?;
    }
    print(&crate::capacity::render(&found))
}

async fn watch(args: &WatchArgs, stop: impl Future<Output = String>) -> Result<()> {
    let seen = crate::watch::run(args, stop).await?;
    match &args.json {
        Some(path) => write_json(path, &seen),
        None => print(&format!("{}\n", serde_json::to_string_pretty(&seen)?)),
    }
}

fn report(args: &ReportArgs) -> Result<()> {
    let file = args.result.display().to_string();
    let json = fs::read(&args.result).with_context(|| file.clone())?;
    let schema = serde_json::from_slice::<serde_json::Value>(&json)
        .with_context(|| format!("{file}: not JSON"))?["schema"]
        .as_u64();
    if schema != Some(SCHEMA.into()) {
        let found = schema.map_or_else(|| "none".to_owned(), |schema| schema.to_string());
        bail!(
            "{file}: schema = {found}, expected {SCHEMA}: is it from `balm-loadtest run --json`?"
        );
    }
    let result: RunResult = serde_json::from_slice(&json)
        .with_context(|| format!("{file}: not what `balm-loadtest run --json` writes"))?;
    match &args.html {
        Some(path) => write(path, html::render(&result).as_bytes()),
        None => print(&table::render(&result)),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write(path, &serde_json::to_vec_pretty(value)?)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| path.display().to_string())
}

fn print(text: &str) -> Result<()> {
    write!(std::io::stdout(), "{text}").context("stdout")
}

fn failed(error: &anyhow::Error, code: u8) -> ExitCode {
    // With nobody to read it, the status says the same.
    let _ = writeln!(std::io::stderr(), "balm-loadtest: {error:#}");
    code.into()
}
