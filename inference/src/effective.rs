//! The settings in force: what `model.toml` says, over the server's defaults.

use crate::engine::SessionOptions;
use crate::provider::Provider;
use crate::settings::{ModelSettings, PadValue};
use std::collections::BTreeMap;
use std::time::Duration;

/// What holds for models that say nothing themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelDefaults {
    /// OS threads with a session each.
    pub lanes: usize,
    /// Intra-op threads of a session.
    pub threads: usize,
    /// Execution providers, the preferred one first.
    pub providers: Vec<Provider>,
    /// Whether the CPU may stand in for a provider that cannot be had.
    pub fallback_to_cpu: bool,
    /// Deadline of a request that names none.
    pub default_deadline: Duration,
    /// The longest deadline that a request may ask for.
    pub max_deadline: Duration,
    /// Rows in one request.
    pub max_batch_rows: usize,
    /// Requests of one model between admission and the end of their run.
    pub max_in_flight: u64,
    /// Bytes of one request's body, decompressed.
    pub max_body_bytes: u64,
}

/// What holds for one model version.
#[derive(Clone, Debug, PartialEq)]
pub struct EffectiveSettings {
    /// What the model is, for people.
    pub description: Option<String>,
    /// How its sessions are built.
    pub session: SessionOptions,
    /// OS threads with a session each.
    pub lanes: usize,
    /// Whether as many of them run at once as turns out to be best; `None`: where they feed a device.
    pub adaptive_lanes: Option<bool>,
    /// Deadline of a request that names none.
    pub default_deadline: Duration,
    /// The longest deadline that a request may ask for.
    pub max_deadline: Duration,
    /// Rows in one request.
    pub max_batch_rows: usize,
    /// Bytes of one request's body, decompressed.
    pub max_body_bytes: u64,
    /// Requests between admission and the end of their run.
    pub max_in_flight: u64,
    /// Requests that may wait for a lane.
    pub max_queue: usize,
    /// Whether requests share runs; `None`: if that is proved at load to be right.
    pub batching: Option<bool>,
    /// Rows of a run that requests share.
    pub batch_rows: usize,
    /// How long the first request of a run waits for others to join.
    pub batch_delay: Duration,
    /// By input that may be padded to the length of its neighbours in a run: what with.
    pub padding: BTreeMap<String, PadValue>,
    /// How long a critical request may wait for a lane; `None`: by what runs take.
    pub max_wait: Option<Duration>,
    /// Class names by output.
    pub labels: BTreeMap<String, Vec<String>>,
}

impl EffectiveSettings {
    /// `settings` over `defaults`.
    pub fn resolve(settings: &ModelSettings, defaults: &ModelDefaults) -> Self {
        let lanes = settings.lanes.unwrap_or(defaults.lanes);
        let max_in_flight =
            settings.limits.max_in_flight.map_or(defaults.max_in_flight, |limit| limit as u64);
        let max_deadline = settings.max_deadline.unwrap_or(defaults.max_deadline);
        let max_batch_rows = settings.limits.max_batch_rows.unwrap_or(defaults.max_batch_rows);
        EffectiveSettings {
            description: settings.description.clone(),
            session: SessionOptions {
                threads: settings.session.threads.unwrap_or(defaults.threads),
                providers: settings.providers.clone().unwrap_or_else(|| defaults.providers.clone()),
                fallback_to_cpu: settings.fallback.is_some() || defaults.fallback_to_cpu,
                optimization: settings.session.graph_optimization,
            },
            lanes,
            adaptive_lanes: settings.adaptive_lanes,
            default_deadline: settings
                .default_deadline
                .unwrap_or(defaults.default_deadline)
                .min(max_deadline),
            max_deadline,
            max_batch_rows,
            batching: settings.batching.enabled,
            batch_rows: settings.batching.max_rows.unwrap_or(max_batch_rows).min(max_batch_rows),
            batch_delay: settings.batching.max_delay.unwrap_or_default(),
            padding: settings.batching.padding.clone(),
            max_body_bytes: settings.limits.max_body_bytes.unwrap_or(defaults.max_body_bytes),
            max_in_flight,
            // Everything admitted may wait; a smaller queue is for those who want to shed earlier.
            max_queue: settings
                .limits
                .max_queue
                .unwrap_or(usize::try_from(max_in_flight).unwrap_or(usize::MAX)),
            max_wait: settings.limits.max_wait,
            labels: settings.labels.clone(),
        }
    }
}
