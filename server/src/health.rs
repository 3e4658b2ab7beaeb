//! What the management port answers with: verdicts out of the health report, and the metrics.

use crate::management::{ManagementSource, ProbeAnswer};
use crate::pulse::Pulse;
use balm_inference::healing::WorkerVerdict;
use balm_inference::models::Models;
use balm_probes::{Liveness, Readiness, ReadinessPolicy, readiness, startup};
use parking_lot::Mutex;
use prometheus::{Encoder, Registry, TextEncoder};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The health of this server.
pub struct Health {
    models: Models,
    pulse: Arc<Pulse>,
    policy: ReadinessPolicy,
    registry: Registry,
    start_is_over: AtomicBool,
    /// Gauges are set anew at each scrape; two scrapes at once would see each other's blank page.
    scraping: Mutex<()>,
}

impl Health {
    /// Judges `models` and the runtime behind `pulse`.
    pub fn new(
        models: Models,
        pulse: Arc<Pulse>,
        policy: ReadinessPolicy,
        registry: Registry,
    ) -> Self {
        Health {
            models,
            pulse,
            policy,
            registry,
            start_is_over: AtomicBool::new(false),
            scraping: Mutex::new(()),
        }
    }
}

#[derive(Serialize)]
struct Status<'a> {
    started: bool,
    live: bool,
    ready: bool,
    reasons: &'a [String],
    notes: &'a [String],
    #[serde(flatten)]
    report: &'a balm_probes::HealthReport,
}

impl Health {
    /// Judges readiness, and remembers for good that the start is over once the server was ready.
    fn readiness(&self) -> Readiness {
        let verdict = readiness(&self.models.report(), &self.policy);
        if verdict.ready {
            self.start_is_over.store(true, Ordering::Release);
        }
        verdict
    }
}

impl ManagementSource for Health {
    fn startup(&self) -> ProbeAnswer {
        self.readiness();
        let was_over = self.start_is_over.load(Ordering::Acquire);
        let verdict = startup(&self.models.report(), was_over);
        if verdict.started {
            self.start_is_over.store(true, Ordering::Release);
        }
        ProbeAnswer::startup(&verdict)
    }

    fn live(&self) -> ProbeAnswer {
        // Here nobody can replace the worker but whoever started the process.
        let lost = self.models.worker_verdict().map(WorkerVerdict::sentence);
        // In time: who is told to end by this answer finishes what it has, who is killed by the kernel does not.
        let short = || self.models.memory_verdict().map(|verdict| verdict.sentence());
        if let Some(reason) = lost.or_else(short) {
            return ProbeAnswer::live(&Liveness { live: false, reason: Some(reason) });
        }
        ProbeAnswer::live(&self.pulse.verdict())
    }

    fn ready(&self) -> ProbeAnswer {
        ProbeAnswer::ready(&self.readiness())
    }

    fn status(&self) -> Vec<u8> {
        let report = self.models.report();
        let verdict = self.readiness();
        let status = Status {
            started: self.startup().ok,
            live: self.live().ok,
            ready: verdict.ready,
            reasons: &verdict.reasons,
            notes: &verdict.notes,
            report: &report,
        };
        serde_json::to_vec_pretty(&status)
            .unwrap_or_else(|error| format!("{{\"error\":{:?}}}", error.to_string()).into_bytes())
    }

    fn metrics(&self) -> Vec<u8> {
        let _one_at_a_time = self.scraping.lock();
        self.models.refresh_metrics();
        let mut text = Vec::with_capacity(16 * 1024);
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics not rendered");
        }
        text
    }
}
