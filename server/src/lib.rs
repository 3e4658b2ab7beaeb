//! The program `balm`: command line, configuration, wiring, HTTP and the management port.

pub mod app;
pub mod banner;
pub mod cli;
pub mod commands;
pub mod config;
pub mod drill;
pub mod ending;
pub mod environment;
pub mod exit;
pub mod healing;
pub mod health;
pub mod host;
pub mod http;
pub mod library;
mod link;
mod listeners;
pub mod logs;
pub mod management;
pub mod memory;
pub mod oip;
pub mod panics;
pub mod pulse;
mod supervisor;
pub mod worker;
