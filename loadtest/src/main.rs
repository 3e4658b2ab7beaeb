//! `balm-loadtest`: measures a server of the Open Inference Protocol from outside.
//!
//! It speaks HTTP and knows nothing of how Balm is made: no crate of ours is among its dependencies. Whatever it
//! starts it also ends, also when it is interrupted.

mod bench;
mod cli;
mod client;
mod closed_loop;
mod golden;
mod machine;
mod oip;
mod ort_alone;
mod process;
mod report;
mod repository;
mod statistics;
mod target;

use std::fs;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{BenchArgs, Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    match runtime.block_on(until_interrupted(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// Does what was asked for. Interrupted, it drops what it was at, and with that its children.
async fn until_interrupted(cli: Cli) -> Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    tokio::select! {
        ended = run(cli) => ended,
        _ = terminated.recv() => bail!("terminated"),
        _ = interrupted.recv() => bail!("interrupted"),
    }
}

async fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Bench(args) => bench(&args).await,
    }
}

async fn bench(args: &BenchArgs) -> Result<()> {
    let report = bench::run(args).await?;
    if let Some(path) = &args.json {
        let json = serde_json::to_vec_pretty(&report)?;
        fs::write(path, json).with_context(|| path.display().to_string())?;
    }
    write!(std::io::stdout(), "{}", report::table::render(&report)).context("stdout")
}

fn failed(error: &anyhow::Error) -> ExitCode {
    // With nobody to read it, the status says the same.
    let _ = writeln!(std::io::stderr(), "balm-loadtest: {error:#}");
    ExitCode::FAILURE
}
