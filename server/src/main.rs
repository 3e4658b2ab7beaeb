//! The program `balm`: reads the command line, does what it says, and ends with a code that means something.

use balm_server::cli::{Cli, Command};
use balm_server::commands;
use std::process::ExitCode;

fn main() -> ExitCode {
    let exit = match Cli::from_process() {
        Err(exit) => exit,
        Ok(cli) => match cli.command {
            Command::Serve(arguments) => commands::serve(&arguments),
            Command::Check(arguments) => commands::check(&arguments),
            Command::Manifest(arguments) => commands::manifest(&arguments),
        },
    };
    ExitCode::from(exit.code())
}
