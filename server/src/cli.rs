//! The command line: what may be typed, and which keys of the configuration it sets.
//!
//! ```text
//! balm serve [--models DIR] [--config FILE] [--http-addr A] [--management-addr A] [--log-format F] [--log-level L]
//!            [--single-process]
//! balm check [DIR] [--config FILE]
//! balm manifest DIR
//! balm drill [--models DIR] [--config FILE] [--json FILE] [--html FILE] [--cards A,B] [--seed N] [--quiet]
//! balm --version
//! ```

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use crate::config::Flag;
use crate::exit::Exit;

/// The ONNX Runtime that this program was made for. Another one may load, and is named in the log.
pub const ONNXRUNTIME_EXPECTED: &str = "1.31.1";

const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), "\nONNX Runtime 1.31.1 expected (loaded at run time)");

/// A self-healing server for ONNX models.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "balm",
    version = VERSION,
    arg_required_else_help = true,
    after_help = "Every setting is a key of the TOML file and a BALM_* variable; `balm check` lists them all."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `balm` can be told to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Serve the models of a repository.
    Serve(ServeArgs),
    /// Verify models and configuration without serving, and print what would be used.
    Check(CheckArgs),
    /// Write SHA256SUMS for a version, a model or a whole repository.
    Manifest(ManifestArgs),
    /// Rehearse faults on a private copy of the server, and tell how it came through.
    Drill(DrillArgs),
}

/// Arguments of `balm serve`. Each flag outweighs its variable, which outweighs the file.
#[derive(Clone, Debug, Default, Args)]
pub struct ServeArgs {
    /// Folder with one folder per model [default: models].
    #[arg(long, value_name = "DIR")]
    pub models: Option<String>,
    /// Configuration file (TOML). None is read unless it is named.
    #[arg(long, value_name = "FILE", env = "BALM_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// Where to take predictions: address:port or unix:/path [default: 127.0.0.1:8000].
    #[arg(long, value_name = "ADDR")]
    pub http_addr: Option<String>,
    /// Where to answer probes and metrics: address:port [default: 127.0.0.1:8002].
    #[arg(long, value_name = "ADDR")]
    pub management_addr: Option<String>,
    /// How log lines look: text or json [default: text].
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// What is logged: a level, or a filter such as info,balm_server=debug [default: info].
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Serve without a supervisor, in one process.
    #[arg(long)]
    pub single_process: bool,
    /// Be the worker of the supervisor at the other end of standard input. Balm starts itself so.
    #[arg(long, hide = true)]
    pub worker: bool,
    /// Fail as the files in this private folder say. For `balm drill` and tests; there is no other way to say it.
    #[arg(long, value_name = "DIR", hide = true)]
    pub rehearsal: Option<PathBuf>,
}

/// Arguments of `balm check`.
#[derive(Clone, Debug, Default, Args)]
pub struct CheckArgs {
    /// Folder with one folder per model [default: as configured].
    #[arg(value_name = "DIR")]
    pub models: Option<String>,
    /// Configuration file (TOML). None is read unless it is named.
    #[arg(long, value_name = "FILE", env = "BALM_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
}

/// Arguments of `balm manifest`.
#[derive(Clone, Debug, Args)]
pub struct ManifestArgs {
    /// Folder of a version, of a model, or of a repository.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// Arguments of `balm drill`.
#[derive(Clone, Debug, Default, Args)]
pub struct DrillArgs {
    /// Folder with one folder per model; a copy of it is used [default: as configured].
    #[arg(long, value_name = "DIR")]
    pub models: Option<String>,
    /// Configuration file (TOML) that the private copy is started with. None is read unless it is named.
    #[arg(long, value_name = "FILE", env = "BALM_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as one page of HTML.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Play only these cards.
    #[arg(long, value_name = "CARD,CARD", value_delimiter = ',')]
    pub cards: Vec<String>,
    /// Decides the order and pace of requests.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Show no progress.
    #[arg(long)]
    pub quiet: bool,
}

// ===== impl Cli =====

impl Cli {
    /// Reads the arguments of this process. Prints help, version or what is wrong with them by itself.
    ///
    /// # Errors
    /// How to end: [`Exit::Drained`] after help and version, [`Exit::Usage`] otherwise.
    pub fn from_process() -> Result<Cli, Exit> {
        Cli::try_parse().map_err(|error| {
            // Nobody may be there to read it; the exit code says the same.
            let _ = error.print();
            exit_of(&error)
        })
    }

    /// Reads the given arguments, the first being the name of the program, and prints nothing.
    ///
    /// # Errors
    /// How to end, and what to print.
    pub fn from_arguments<I, T>(arguments: I) -> Result<Cli, (Exit, String)>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        Cli::try_parse_from(arguments).map_err(|error| (exit_of(&error), error.to_string()))
    }
}

fn exit_of(error: &clap::Error) -> Exit {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Drained,
        _ => Exit::Usage,
    }
}

// ===== impl ServeArgs, CheckArgs =====

impl ServeArgs {
    /// The keys that the flags set.
    pub fn flags(&self) -> Vec<Flag> {
        let given = [
            ("repository.path", "--models", &self.models),
            ("http.addr", "--http-addr", &self.http_addr),
            ("management.addr", "--management-addr", &self.management_addr),
            ("log.format", "--log-format", &self.log_format),
            ("log.level", "--log-level", &self.log_level),
        ];
        let single = self.single_process.then(|| Flag {
            key: "lifecycle.single_process",
            flag: "--single-process",
            value: "true".to_owned(),
        });
        given
            .into_iter()
            .filter_map(|(key, flag, value)| Some(Flag { key, flag, value: value.clone()? }))
            .chain(single)
            .collect()
    }
}

impl DrillArgs {
    /// The keys that the arguments set.
    pub fn flags(&self) -> Vec<Flag> {
        let value = self.models.clone();
        let flag = |value| Flag { key: "repository.path", flag: "--models", value };
        value.map(flag).into_iter().collect()
    }
}

impl CheckArgs {
    /// The keys that the arguments set.
    pub fn flags(&self) -> Vec<Flag> {
        let value = self.models.clone();
        value.map(|value| Flag { key: "repository.path", flag: "DIR", value }).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KEYS;

    #[test]
    fn clap_finds_no_fault() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn usage_errors_end_with_64() {
        let cases: [&[&str]; 8] = [
            &["balm"],
            &["balm", "sreve"],
            &["balm", "serve", "--htp-addr", "x"],
            &["balm", "serve", "models"],
            &["balm", "serve", "--http-addr"],
            &["balm", "manifest"],
            &["balm", "manifest", "a", "b"],
            &["balm", "check", "--models", "x"],
        ];
        for arguments in cases {
            let (exit, text) = Cli::from_arguments(arguments).unwrap_err();
            assert_eq!(exit, Exit::Usage, "{arguments:?}");
            assert!(!text.is_empty());
        }
    }

    #[test]
    fn help_and_version_end_well() {
        for arguments in [["balm", "--version"], ["balm", "--help"], ["balm", "help"]] {
            let (exit, text) = Cli::from_arguments(arguments).unwrap_err();
            assert_eq!(exit, Exit::Drained, "{arguments:?}");
            if arguments[1] == "--version" {
                assert!(text.starts_with(&format!("balm {}\n", env!("CARGO_PKG_VERSION"))));
                assert!(text.contains(&format!("ONNX Runtime {ONNXRUNTIME_EXPECTED} expected")));
            }
        }
    }

    #[test]
    fn every_flag_sets_a_key_that_exists() {
        let arguments = [
            "balm",
            "serve",
            "--models",
            "m",
            "--http-addr",
            "unix:/s",
            "--management-addr",
            "[::]:1",
            "--log-format",
            "json",
            "--log-level",
            "debug",
            "--config",
            "b.toml",
            "--single-process",
        ];
        let Command::Serve(serve) = Cli::from_arguments(arguments).unwrap().command else {
            panic!("another command")
        };
        assert_eq!(serve.config.as_deref(), Some("b.toml".as_ref()));
        let flags = serve.flags();
        assert_eq!(flags.len(), 6);
        assert!(flags.iter().all(|flag| KEYS.iter().any(|key| key.name == flag.key)));

        let Command::Check(check) = Cli::from_arguments(["balm", "check", "d"]).unwrap().command
        else {
            panic!("another command")
        };
        assert_eq!(check.flags()[0].value, "d");
        let Command::Check(check) = Cli::from_arguments(["balm", "check"]).unwrap().command else {
            panic!("another command")
        };
        assert!(check.flags().is_empty());
    }
}
