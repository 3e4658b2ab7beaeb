//! Metrics of the data port.

use super::listen::Reason;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Families of the data port. Routes are templates and statuses are numbers, so the labels are bounded.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    requests: IntCounterVec,
    pub(super) connections: IntGauge,
    pub(super) connections_refused: IntCounter,
    connections_closed: [IntCounter; Reason::ALL.len()],
}

impl HttpMetrics {
    /// Makes the families and registers them.
    ///
    /// # Errors
    /// When the registry has one of the names already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let closed = IntCounterVec::new(
            Opts::new(
                "balm_http_connections_closed_total",
                "Connections that the server ended, by reason; those that clients ended are not counted.",
            ),
            &["reason"],
        )?;
        let metrics = HttpMetrics {
            requests: IntCounterVec::new(
                Opts::new(
                    "balm_http_requests_total",
                    "Requests on the data port, by route template and status.",
                ),
                &["route", "status"],
            )?,
            connections: IntGauge::new(
                "balm_http_connections",
                "Connections that are open on the data port.",
            )?,
            connections_refused: IntCounter::new(
                "balm_http_connections_refused_total",
                "Connections answered 503 at once because http.max_connections were open.",
            )?,
            connections_closed: Reason::ALL
                .map(|reason| closed.with_label_values(&[reason.as_str()])),
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.connections_refused.clone()))?;
        registry.register(Box::new(closed))?;
        Ok(metrics)
    }

    pub(super) fn closed(&self, reason: Reason) {
        self.connections_closed[reason as usize].inc();
    }

    /// The counter of answers with 200 on `route`, for whoever counts many.
    pub(super) fn answered(&self, route: &str) -> IntCounter {
        self.requests.with_label_values(&[route, status_text(200)])
    }

    pub(super) fn count(&self, route: &str, status: u16) {
        self.requests.with_label_values(&[route, status_text(status)]).inc();
    }
}

/// The statuses that Balm sends, without an allocation each time.
fn status_text(status: u16) -> &'static str {
    match status {
        200 => "200",
        400 => "400",
        403 => "403",
        404 => "404",
        405 => "405",
        408 => "408",
        413 => "413",
        415 => "415",
        422 => "422",
        429 => "429",
        500 => "500",
        501 => "501",
        503 => "503",
        504 => "504",
        _ => "other",
    }
}
