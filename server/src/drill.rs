//! `balm drill`: rehearses, on a private copy of the server with the user's own models and configuration, what the server is
//! to heal, and tells what came of it.
//!
//! Nothing here touches a server that serves: the copy listens on loopback, on ports of its own, on a copy of the models, and
//! fails by files in a private folder (`--rehearsal`). What is expected of each fault is data (`card`), what came of it is
//! judged by pure functions (`judge`); the rest is edges. The load and the kubelet are those of the load generator.

mod asking;
mod card;
mod judge;
mod play;
mod private;
mod report;
mod stage;
#[cfg(test)]
mod tests;

use crate::cli::DrillArgs;
use crate::config::Config;
use anyhow::{Context as _, Result};
use card::Card;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use play::{Played, Theatre};
use private::Private;
use report::{CardReport, ModelReport, Report, html};
use stage::Stage;
use std::fs::OpenOptions;
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

/// How often the line on the terminal is drawn.
const REDRAW: Duration = Duration::from_millis(250);

/// How a drill ended that could be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drilled {
    /// Every card that was played passed.
    Passed,
    /// A card failed.
    Failed,
    /// A signal came. Nothing is left of it.
    Interrupted,
}

/// Plays the cards and prints the report.
///
/// # Errors
/// When it cannot be begun, such as for a card that there is not, or cannot go on.
pub fn run(arguments: &DrillArgs, config: &Config) -> Result<Drilled> {
    let cards = card::chosen(&arguments.cards).map_err(anyhow::Error::msg)?;
    for file in arguments.json.iter().chain(&arguments.html) {
        let opened = OpenOptions::new().append(true).create(true).open(file);
        opened.with_context(|| file.display().to_string())?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(LocalSet::new().run_until(async {
        let mut terminated = signal(SignalKind::terminate())?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        tokio::select! {
            report = play_all(arguments, config, &cards) => end(arguments, &report?),
            // What is dropped with the other branch ends the private server and removes its folder.
            _ = terminated.recv() => Ok(Drilled::Interrupted),
            _ = interrupted.recv() => Ok(Drilled::Interrupted),
        }
    }))
}

async fn play_all(arguments: &DrillArgs, config: &Config, cards: &[&Card]) -> Result<Report> {
    let progress = Progress::new(arguments.quiet, cards.len());
    let begun = Instant::now();
    let repository = &config.repository.path;
    let seed = arguments.seed.unwrap_or(DEFAULT_SEED);
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let mut report = Report::new(now, seed, repository.display().to_string());
    progress.step("copying the models");
    let stage = Stage::build(repository)?;
    progress.step("asking the models while all is well");
    let file = arguments.config.as_deref();
    let (asked, resident_bytes) = {
        let server = Private::start(&stage, file, &[], false).await?;
        let status = server.wait_ready().await?;
        let asked = asking::prepare(&server, &status, &stage.models()).await?;
        let resident_bytes = server.status().await?.resident_bytes();
        server.stop().await?;
        (asked, resident_bytes)
    };
    report.models = asked.iter().map(ModelReport::of).collect();
    let available_bytes = private::available_bytes();
    let theatre = Theatre {
        stage: &stage,
        config: file,
        asked: &asked,
        seed,
        resident_bytes,
        available_bytes,
    };
    for card in cards {
        progress.step(card.title);
        let begun = Instant::now();
        let played = progress.follow(Box::pin(theatre.play(card))).await;
        // A server that a card does not bring to its end has not come through it; the others may still say something.
        let played = played.unwrap_or_else(|error| Played::Broken(format!("{error:#}")));
        let card = CardReport::of(card, played, begun.elapsed().as_secs_f64());
        progress.tell(&card);
        report.add(&card);
    }
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

/// Tried again with the same seed, a drill asks in the same order.
const DEFAULT_SEED: u64 = 1;

fn end(arguments: &DrillArgs, report: &Report) -> Result<Drilled> {
    // The files first: a terminal that is gone must not take them along.
    if let Some(file) = &arguments.json {
        let mut json = serde_json::to_vec_pretty(report)?;
        json.push(b'\n');
        write(file, &json)?;
    }
    if let Some(file) = &arguments.html {
        write(file, html::render(report).as_bytes())?;
    }
    crate::banner::print(&report.text());
    Ok(if report.passed { Drilled::Passed } else { Drilled::Failed })
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(file, bytes).with_context(|| file.display().to_string())
}

/// What the drill is at, for whoever waits; nothing where stderr is no terminal.
struct Progress(ProgressBar);

impl Progress {
    fn new(quiet: bool, cards: usize) -> Progress {
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(4)
        };
        let bar = ProgressBar::with_draw_target(Some(cards as u64), target);
        if let Ok(style) =
            ProgressStyle::with_template("{bar:20} {pos:>2}/{len}  {elapsed:>4}  {msg}")
        {
            bar.set_style(style);
        }
        Progress(bar)
    }

    fn step(&self, what: &str) {
        self.0.set_message(what.to_owned());
        self.0.tick();
    }

    /// Draws on while `work` is under way.
    async fn follow<T>(&self, work: Pin<Box<dyn Future<Output = T> + '_>>) -> T {
        let draw = async {
            loop {
                self.0.tick();
                tokio::time::sleep(REDRAW).await;
            }
        };
        tokio::select! {
            done = work => done,
            never = draw => never,
        }
    }

    fn tell(&self, card: &CardReport) {
        self.0.println(format!("{}: {}", card.name.as_str(), card.sentence));
        self.0.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
