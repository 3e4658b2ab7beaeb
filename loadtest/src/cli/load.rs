//! Arguments of the commands that make load, or watch what load does.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::kubelet::{Kind, Settings};

/// Arguments of `balm-loadtest run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// What to do: a TOML file.
    pub(crate) scenario: PathBuf,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Requests per second that the target carries; not measured then.
    #[arg(long, value_name = "N", value_parser = rate)]
    pub(crate) capacity: Option<f64>,
    /// Phases and the search for capacity take so many times as long.
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = scale)]
    pub(crate) time_scale: f64,
    /// Ask this model, not the scenario's.
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Repository that recorded cases are taken from; may be repeated [default: the served one, or models and .models].
    #[arg(long = "repository", value_name = "DIR")]
    pub(crate) repositories: Vec<PathBuf>,
    /// Write the result to this file as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write a report to this file: one page of HTML that needs nothing else.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// No progress on stderr.
    #[arg(long)]
    pub(crate) quiet: bool,
}

/// Which server is asked: one that runs, or one that is started for it.
#[derive(Debug, Args)]
pub(crate) struct TargetArgs {
    /// Where a server of the Open Inference Protocol listens, on loopback [default: http://127.0.0.1:8000].
    #[arg(long, value_name = "URL", conflicts_with = "serve")]
    pub(crate) target: Option<String>,
    /// Where its probes are answered [default: the target's address].
    #[arg(long, value_name = "URL", conflicts_with = "serve")]
    pub(crate) management: Option<String>,
    /// Start this `balm` for the run, and end it after.
    #[arg(long, value_name = "FILE", requires = "models")]
    pub(crate) serve: Option<PathBuf>,
    /// Repository that it serves.
    #[arg(long, value_name = "DIR", requires = "serve")]
    pub(crate) models: Option<PathBuf>,
    /// Its configuration.
    #[arg(long, value_name = "FILE", requires = "serve")]
    pub(crate) config: Option<PathBuf>,
    /// Its log, kept; without, it is shown only when something fails.
    #[arg(long, value_name = "FILE", requires = "serve")]
    pub(crate) server_log: Option<PathBuf>,
    /// The ONNX Runtime library for it.
    #[arg(
        long,
        value_name = "FILE",
        env = "ORT_DYLIB_PATH",
        default_value = ".ort/libonnxruntime.so"
    )]
    pub(crate) library: PathBuf,
}

/// Arguments of `balm-loadtest capacity`.
#[derive(Debug, Args)]
pub(crate) struct CapacityArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Model to ask.
    #[arg(long, value_name = "NAME")]
    pub(crate) model: String,
    /// A version of it.
    #[arg(long, value_name = "N")]
    pub(crate) version: Option<String>,
    /// How requests travel.
    #[arg(long, value_enum, default_value_t = ProtocolArg::Http1)]
    pub(crate) protocol: ProtocolArg,
    /// How tensors are written.
    #[arg(long, value_enum, default_value_t = EncodingArg::Binary)]
    pub(crate) encoding: EncodingArg,
    /// Rows of a request, where the model leaves that open.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..=65_536))]
    pub(crate) rows: i64,
    /// Size of every other dimension that the model leaves open.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..=65_536))]
    pub(crate) dynamic: i64,
    /// Seconds that each step counts.
    #[arg(long, default_value_t = 3.0, value_parser = step_seconds)]
    pub(crate) seconds: f64,
    /// Connections at most.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) connections_max: u32,
    /// Write the figures to this file as JSON, too.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// How requests travel.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ProtocolArg {
    Http1,
    /// In clear text, without an upgrade.
    Http2,
}

/// How tensors are written.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum EncodingArg {
    Binary,
    Json,
}

/// Arguments of `balm-loadtest watch`.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Where probes are answered, on loopback.
    #[arg(long, value_name = "URL")]
    pub(crate) management: String,
    /// How long to watch; SIGTERM or SIGINT end it earlier.
    #[arg(long, value_name = "N", value_parser = watch_seconds)]
    pub(crate) seconds: f64,
    /// Poll liveness at this path [default: /live, unless another probe is named].
    #[arg(long, value_name = "PATH", value_parser = path)]
    live: Option<String>,
    /// Poll readiness at this path [default: /ready, unless another probe is named].
    #[arg(long, value_name = "PATH", value_parser = path)]
    ready: Option<String>,
    /// Poll startup at this path; until it succeeds the others wait.
    #[arg(long, value_name = "PATH", value_parser = path)]
    startup: Option<String>,
    /// From one poll of a probe to the next.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    period_ms: u64,
    /// How long a poll may take.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    timeout_ms: u64,
    /// Failures in a row that count.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    failure_threshold: u32,
    /// Failures in a row that count for startup.
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    startup_failure_threshold: u32,
    /// Successes in a row that count for readiness.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    success_threshold: u32,
    /// Before the first poll, in whole seconds as Kubernetes has it.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=3_600_000))]
    initial_delay_ms: u64,
    /// Write what was seen to this file as JSON [default: to stdout].
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Arguments of `balm-loadtest report`.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// What `balm-loadtest run --json` has written.
    pub(crate) result: PathBuf,
    /// Write the report to this file; without, a table is printed.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

// ===== impl WatchArgs =====

impl WatchArgs {
    /// The probes to poll.
    pub(crate) fn probes(&self) -> Vec<Settings> {
        let none_named = self.live.is_none() && self.ready.is_none() && self.startup.is_none();
        let usual = |kind: Kind| none_named.then(|| Settings::new(kind).path);
        let paths = [
            (Kind::Live, self.live.clone().or_else(|| usual(Kind::Live))),
            (Kind::Ready, self.ready.clone().or_else(|| usual(Kind::Ready))),
            (Kind::Startup, self.startup.clone()),
        ];
        let probe = |(kind, path): (Kind, Option<String>)| {
            Some(Settings {
                kind,
                path: path?,
                period: Duration::from_millis(self.period_ms),
                timeout: Duration::from_millis(self.timeout_ms),
                failure_threshold: match kind {
                    Kind::Startup => self.startup_failure_threshold,
                    Kind::Live | Kind::Ready => self.failure_threshold,
                },
                success_threshold: if kind == Kind::Ready { self.success_threshold } else { 1 },
                initial_delay: Duration::from_millis(self.initial_delay_ms),
            })
        };
        paths.into_iter().filter_map(probe).collect()
    }
}

fn within(text: &str, least: f64, most: f64) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (least..=most).contains(&value) => Ok(value),
        _ => Err(format!("not a number between {least} and {most}")),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    within(text, 0.01, 1e6)
}

fn scale(text: &str) -> Result<f64, String> {
    within(text, 0.01, 100.0)
}

fn step_seconds(text: &str) -> Result<f64, String> {
    within(text, 0.2, 600.0)
}

fn watch_seconds(text: &str) -> Result<f64, String> {
    within(text, 0.1, 604_800.0)
}

fn path(text: &str) -> Result<String, String> {
    if text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("a path begins with / and has no spaces".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser as _;

    fn probes(arguments: &[&str]) -> Vec<Settings> {
        let usual = ["balm-loadtest", "watch", "--management", "127.0.0.1:1", "--seconds", "1"];
        let Command::Watch(args) = Cli::parse_from(usual.iter().chain(arguments)).command else {
            unreachable!()
        };
        args.probes()
    }

    fn names(probes: &[Settings]) -> Vec<&str> {
        probes.iter().map(|probe| probe.kind.name()).collect()
    }

    #[test]
    fn which_probes_are_watched() {
        assert_eq!(names(&probes(&[])), ["live", "ready"]);
        assert_eq!(names(&probes(&["--ready", "/r"])), ["ready"]);
        let all = probes(&[
            "--live",
            "/a",
            "--ready",
            "/b",
            "--startup",
            "/c",
            "--success-threshold",
            "2",
        ]);
        assert_eq!(names(&all), ["live", "ready", "startup"]);
        let thresholds: Vec<_> =
            all.iter().map(|probe| (probe.failure_threshold, probe.success_threshold)).collect();
        assert_eq!(thresholds, [(3, 1), (3, 2), (150, 1)]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for arguments in [
            &["run"][..],
            &["run", "a.toml", "--time-scale", "0"],
            &["run", "a.toml", "--capacity", "NaN"],
            &["run", "a.toml", "--serve", "balm"],
            &["run", "a.toml", "--models", "models"],
            &["run", "a.toml", "--serve", "balm", "--models", "m", "--target", "127.0.0.1:1"],
            &["capacity"],
            &["watch", "--management", "127.0.0.1:1"],
            &["watch", "--management", "127.0.0.1:1", "--seconds", "1", "--live", "live"],
        ] {
            let all = ["balm-loadtest"].iter().chain(arguments);
            assert!(Cli::try_parse_from(all).is_err(), "{arguments:?}");
        }
    }
}
