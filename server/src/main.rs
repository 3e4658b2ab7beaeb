//! The program `balm`: reads the command line, does what it says, and ends with a code that means something.

use balm_server::cli::{Cli, Command};
use balm_server::{commands, panics};

fn main() {
    panics::log_them();
    let exit = match Cli::from_process() {
        Err(exit) => exit,
        Ok(cli) => match cli.command {
            Command::Serve(arguments) => commands::serve(&arguments),
            Command::Check(arguments) => commands::check(&arguments),
            Command::Manifest(arguments) => commands::manifest(&arguments),
            Command::Drill(arguments) => commands::drill(&arguments),
        },
    };
    // Past the exit handlers: ONNX Runtime's would tear the library down under lanes that still run or load, and crash.
    // Standard output is flushed after every print, the log by its guard.
    signal_hook::low_level::exit(i32::from(exit.code()))
}
