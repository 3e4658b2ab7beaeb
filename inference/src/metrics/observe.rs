//! The gauges that mirror a state rather than count events: set anew at each scrape, so that what is gone is gone.

use super::Metrics;
use crate::admission::{Class, Gate};
use crate::version::Serving;
use balm_probes::breaker::BreakerState;
use balm_probes::{HealthReport, ModelState};

impl Metrics {
    /// Forgets the mirrored gauges and sets those that the report alone decides.
    pub(crate) fn begin_refresh(&self, report: &HealthReport, gate: &Gate) {
        let mirrored = [&self.state, &self.lanes, &self.lane_threads, &self.queue_depth];
        for family in mirrored.into_iter().chain([&self.in_flight, &self.provider]) {
            family.reset();
        }
        self.breaker.reset();
        self.wait_seconds.reset();
        self.wait_limit_seconds.reset();
        self.adaptive_limit.reset();
        if let Some(triton) = &self.triton {
            triton.reset();
        }
        self.in_flight_total.set(signed(gate.in_flight()));
        self.in_flight_bytes.set(signed(gate.bytes_in_flight()));
        for model in &report.models {
            for version in &model.versions {
                let number = version.version.to_string();
                for state in ModelState::ALL {
                    let labels = [model.name.as_str(), number.as_str(), state.as_str()];
                    self.state.with_label_values(&labels).set(i64::from(state == version.state));
                }
                self.lane_threads
                    .with_label_values(&[model.name.as_str(), number.as_str()])
                    .set(i64::from(version.threads));
                for (kind, count) in
                    [("wanted", version.lanes.wanted), ("healthy", version.lanes.healthy)]
                {
                    self.lanes
                        .with_label_values(&[model.name.as_str(), number.as_str(), kind])
                        .set(i64::from(count));
                }
            }
        }
    }

    pub(crate) fn set_in_flight(&self, model: &str, in_flight: u64) {
        self.in_flight.with_label_values(&[model]).set(signed(in_flight));
    }

    pub(crate) fn set_breaker(&self, model: &str, now: BreakerState) {
        for state in BreakerState::ALL {
            self.breaker.with_label_values(&[model, state.as_str()]).set(i64::from(state == now));
        }
    }

    pub(crate) fn set_serving(&self, serving: &Serving) {
        let version = serving.version.to_string();
        let labels = [serving.model.as_str(), version.as_str()];
        let waiting = serving.queue_depth();
        self.queue_depth.with_label_values(&labels).set(i64::try_from(waiting).unwrap_or(i64::MAX));
        let backlog = serving.backlog();
        let wait = backlog.wait(Class::Default).as_secs_f64();
        self.wait_seconds.with_label_values(&labels).set(wait);
        self.wait_limit_seconds.with_label_values(&labels).set(backlog.bound().as_secs_f64());
        self.adaptive_limit.with_label_values(&labels).set(i64::from(serving.running_max()));
        if let Some(triton) = &self.triton {
            triton.set(&labels, &serving.statistics(), waiting);
        }
        let degraded = if serving.placement.degraded.is_some() { "true" } else { "false" };
        for provider in &serving.placement.providers {
            self.provider
                .with_label_values(&[labels[0], labels[1], provider.name(), degraded])
                .set(1);
        }
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
