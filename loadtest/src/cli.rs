//! The command line.

mod load;

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};

use crate::closed_loop::Plan;

pub(crate) use load::{
    CapacityArgs, EncodingArg, ProtocolArg, ReportArgs, RunArgs, TargetArgs, WatchArgs,
};

const ROUNDS_MAX: u32 = 50;
const CONNECTIONS_MAX: u32 = 1024;
const LANES_MAX: u32 = 256;
const SECONDS_MAX: f64 = 60.0;

/// Measures a server of the Open Inference Protocol from outside.
#[derive(Debug, Parser)]
#[command(name = "balm-loadtest", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measures `balm serve` beside ONNX Runtime alone and beside a route that does nothing.
    Bench(BenchArgs),
    /// Runs a scenario against a server: open loop, with expectations. Ends with 0 when they are met, 1 when one is
    /// not, 2 when it could not begin, 3 when the generator was the bottleneck.
    Run(RunArgs),
    /// Finds how much a server carries.
    Capacity(CapacityArgs),
    /// Polls probes as a kubelet does, and says what it would have done.
    Watch(WatchArgs),
    /// Makes a report of a result again.
    Report(ReportArgs),
}

/// Arguments of `balm-loadtest bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Model to measure; may be repeated [default: iris, breast_cancer, minilm].
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,
    /// Repository to look for models in; may be repeated [default: models, .models].
    #[arg(long = "repository", value_name = "DIR")]
    repositories: Vec<PathBuf>,
    /// Connections at once, one measurement each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64],
          value_parser = clap::value_parser!(u32).range(1..=CONNECTIONS_MAX.into()))]
    connections: Vec<u32>,
    /// Sessions on either side, with one thread each [default: the cores at hand, 8 at most].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=LANES_MAX.into()))]
    lanes: Option<u32>,
    /// Rounds, every other in reverse order [default: 5].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=ROUNDS_MAX.into()))]
    rounds: Option<u32>,
    /// Seconds that each measurement counts [default: 2].
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
    /// Seconds before that [default: 0.5].
    #[arg(long, value_parser = seconds)]
    warm_up: Option<f64>,
    /// Starts that are timed, of each side [default: 5].
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=ROUNDS_MAX.into()))]
    starts: Option<u32>,
    /// Shorter: 3 rounds of 1 second and 3 starts. Good for a look, not for a document.
    #[arg(long)]
    quick: bool,
    /// Write the figures to this file as JSON, too.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// The server [default: balm, beside this program].
    #[arg(long, value_name = "FILE")]
    balm: Option<PathBuf>,
    /// ONNX Runtime alone [default: examples/ort_alone, beside this program].
    #[arg(long, value_name = "FILE")]
    ort_alone: Option<PathBuf>,
    /// The ONNX Runtime library, for both sides.
    #[arg(
        long,
        value_name = "FILE",
        env = "ORT_DYLIB_PATH",
        default_value = ".ort/libonnxruntime.so"
    )]
    library: PathBuf,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.05..=SECONDS_MAX).contains(&value) => Ok(value),
        _ => Err(format!("not a number between 0.05 and {SECONDS_MAX}")),
    }
}

/// What the bench does: every choice made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BenchPlan {
    pub(crate) models: Vec<String>,
    pub(crate) repositories: Vec<PathBuf>,
    pub(crate) connections: Vec<usize>,
    pub(crate) lanes: usize,
    pub(crate) rounds: u32,
    pub(crate) warm_up: Duration,
    pub(crate) length: Duration,
    pub(crate) starts: u32,
    pub(crate) balm: PathBuf,
    pub(crate) ort_alone: PathBuf,
    pub(crate) library: PathBuf,
}

// ===== impl BenchArgs =====

impl BenchArgs {
    /// Fills in what was not said.
    pub(crate) fn plan(&self, cores: usize) -> Result<BenchPlan> {
        let program = env::current_exe().context("where this program lies")?;
        let beside = |name: &str| program.with_file_name(name);
        let or = |given: Option<f64>, usual: f64, quick: f64| {
            Duration::from_secs_f64(given.unwrap_or(if self.quick { quick } else { usual }))
        };
        let names = |names: &[&str]| names.iter().map(|&name| name.into()).collect();
        let mut connections: Vec<usize> =
            self.connections.iter().filter_map(|&count| count.try_into().ok()).collect();
        connections.sort_unstable();
        connections.dedup();
        Ok(BenchPlan {
            models: if self.models.is_empty() {
                names(&["iris", "breast_cancer", "minilm"])
            } else {
                self.models.clone()
            },
            repositories: if self.repositories.is_empty() {
                ["models", ".models"].map(PathBuf::from).to_vec()
            } else {
                self.repositories.clone()
            },
            connections,
            lanes: self.lanes.map_or(cores.clamp(1, 8), |lanes| lanes as usize),
            rounds: self.rounds.unwrap_or(if self.quick { 3 } else { 5 }),
            warm_up: or(self.warm_up, 0.5, 0.25),
            length: or(self.seconds, 2.0, 1.0),
            starts: self.starts.unwrap_or(if self.quick { 3 } else { 5 }),
            balm: self.balm.clone().unwrap_or_else(|| beside("balm")),
            ort_alone: self.ort_alone.clone().unwrap_or_else(|| beside("examples/ort_alone")),
            library: self.library.clone(),
        })
    }
}

impl BenchPlan {
    /// The closed loop with so many connections.
    pub(crate) fn closed_loop(&self, connections: usize) -> Plan {
        Plan { connections, warm_up: self.warm_up, length: self.length }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn plan(arguments: &[&str]) -> Result<BenchPlan, String> {
        let arguments = ["balm-loadtest", "bench"].iter().chain(arguments);
        let cli = Cli::try_parse_from(arguments).map_err(|error| error.to_string())?;
        let Command::Bench(args) = cli.command else { unreachable!() };
        args.plan(2).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_and_their_quick_form() {
        let usual = plan(&[]).unwrap();
        assert_eq!(usual.models, ["iris", "breast_cancer", "minilm"]);
        assert_eq!(
            (usual.connections.as_slice(), usual.lanes, usual.rounds),
            ([1, 8, 64].as_slice(), 2, 5)
        );
        assert!(usual.balm.ends_with("balm") && usual.ort_alone.ends_with("examples/ort_alone"));
        let quick = plan(&["--quick", "--starts", "1"]).unwrap();
        assert!(quick.length < usual.length && quick.rounds == 3 && quick.starts == 1);
    }

    #[test]
    fn everything_is_bounded() {
        for arguments in [
            ["--connections", "0"],
            ["--connections", "1025"],
            ["--rounds", "51"],
            ["--seconds", "61"],
            ["--seconds", "NaN"],
            ["--warm-up", "0"],
            ["--lanes", "257"],
        ] {
            assert!(plan(&arguments).is_err(), "{arguments:?}");
        }
        assert_eq!(plan(&["--connections", "8,1,8"]).unwrap().connections, [1, 8]);
    }
}
