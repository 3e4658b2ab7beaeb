//! Judgement, pure: signals become verdicts. No I/O, no threads, no clock; time is an argument.
//!
//! One [`report::HealthReport`] is the only thing that probes, `/status`, metrics and the log judge by, so
//! they cannot contradict each other. Overload is no input to any of it: a server that sheds is healthy.

pub mod breaker;
pub mod budget;
pub mod flight;
pub mod incident;
pub mod ladder;
pub mod liveness;
pub mod memory;
pub mod poison;
pub mod provider;
pub mod quarantine;
pub mod readiness;
pub mod report;
pub mod respawn;
pub mod slope;
pub mod state;
pub mod watchdog;

pub use budget::RepairBudget;
pub use incident::{Incident, Incidents, Sighting};
pub use ladder::{Decision, Ladder, Reason, Rung, Trouble};
pub use liveness::{Liveness, Startup, liveness, startup};
pub use memory::{MemoryStep, MemoryWatch};
pub use quarantine::{Quarantine, Quarantined};
pub use readiness::{Readiness, ReadinessPolicy, model_ready, readiness};
pub use report::{HealthReport, LaneCounts, ModelReport, ServerPhase, VersionReport};
pub use respawn::{Action, Cause, Departure, End, Event, Fatality, Respawn, RespawnPolicy, Stage};
pub use slope::Usage;
pub use state::{IndexState, ModelState};
