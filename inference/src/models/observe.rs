//! Copies the state of the models into gauges, at scrape.

use super::Models;

impl Models {
    /// Brings the gauges and Triton's counters up to the present. To be called before a scrape is rendered, by one
    /// thread at a time.
    pub fn refresh_metrics(&self) {
        let metrics = &self.0.metrics;
        let report = self.report();
        metrics.begin_refresh(&report, &self.0.gate);
        metrics.heal().abandoned.set(i64::from(self.0.healing.abandoned_alive()));
        metrics.heal().hanging_loads.set(i64::from(self.0.healing.hanging_loads("").of_all));
        for model in self.all() {
            metrics.set_in_flight(model.name(), model.gate().in_flight());
            metrics.set_breaker(model.name(), model.gate().breaker());
            for serving in model.loaded() {
                metrics.set_serving(&serving);
            }
        }
    }
}
