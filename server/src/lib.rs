//! The program `balm`: command line, configuration, wiring, HTTP and the management port.

pub mod cli;
pub mod config;
pub mod exit;
pub mod host;
pub mod logs;
pub mod oip;
