//! The program `balm`: command line, configuration, wiring, HTTP and the management port.

pub mod oip;
