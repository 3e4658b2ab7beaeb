//! See [`balm_loadtest`].

use std::process::ExitCode;

fn main() -> ExitCode {
    balm_loadtest::program::main()
}
