//! `balm-loadtest`: measures a server of the Open Inference Protocol from outside.
//!
//! It speaks HTTP and knows nothing of how Balm is made: no crate of ours is among its dependencies. Whatever it
//! starts it also ends, also when it is interrupted.
//!
//! As a library it lends out three things: its open loop ([`steady`]), its kubelet ([`watched`]) and the look of its pages
//! ([`page`]). `balm drill` is made of them.

mod arrivals;
mod bench;
mod capacity;
mod cli;
mod client;
mod closed_loop;
mod figures;
mod golden;
mod kubelet;
mod load;
pub mod machine;
mod nearest;
mod noop;
mod oip;
mod ort_alone;
pub mod page;
mod payload;
mod prober;
mod process;
pub mod program;
mod recovery;
mod report;
mod repository;
mod result;
mod run;
mod scenario;
mod stalls;
mod statistics;
pub mod steady;
mod summary;
mod target;
mod watch;
pub mod watched;
