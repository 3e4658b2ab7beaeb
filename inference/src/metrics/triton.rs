//! Triton's names for what Balm also counts, so that dashboards and autoscalers written for Triton go on working.
//!
//! Only what Balm really measures has an alias; the values are copied from [`Statistics`](crate::statistics) at scrape.

use crate::statistics::StatisticsReading;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

const LABELS: [&str; 2] = ["model", "version"];

#[derive(Clone, Debug)]
pub(super) struct TritonMetrics {
    success: IntCounterVec,
    failure: IntCounterVec,
    inference_count: IntCounterVec,
    execution_count: IntCounterVec,
    request_us: IntCounterVec,
    queue_us: IntCounterVec,
    input_us: IntCounterVec,
    infer_us: IntCounterVec,
    output_us: IntCounterVec,
    pending: IntGaugeVec,
}

impl TritonMetrics {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounterVec> {
            let family = IntCounterVec::new(Opts::new(name, help), &LABELS)?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let pending = IntGaugeVec::new(
            Opts::new(
                "nv_inference_pending_request_count",
                "Triton's name for balm_queue_depth: requests that wait for a lane.",
            ),
            &LABELS,
        )?;
        registry.register(Box::new(pending.clone()))?;
        Ok(TritonMetrics {
            success: counter(
                "nv_inference_request_success",
                "Triton's name: requests answered with outputs.",
            )?,
            failure: counter(
                "nv_inference_request_failure",
                "Triton's name: requests that reached the queue and failed.",
            )?,
            inference_count: counter("nv_inference_count", "Triton's name: rows predicted.")?,
            execution_count: counter("nv_inference_exec_count", "Triton's name: runs.")?,
            request_us: counter(
                "nv_inference_request_duration_us",
                "Triton's name: microseconds from admission to answer, of successful requests.",
            )?,
            queue_us: counter(
                "nv_inference_queue_duration_us",
                "Triton's name: microseconds of waiting for a lane.",
            )?,
            input_us: counter(
                "nv_inference_compute_input_duration_us",
                "Triton's name: microseconds of handing inputs to the runtime.",
            )?,
            infer_us: counter(
                "nv_inference_compute_infer_duration_us",
                "Triton's name: microseconds of running.",
            )?,
            output_us: counter(
                "nv_inference_compute_output_duration_us",
                "Triton's name: microseconds of taking outputs.",
            )?,
            pending,
        })
    }

    /// Forgets every child: versions that are gone must not be reported for ever.
    pub(super) fn reset(&self) {
        for family in [
            &self.success,
            &self.failure,
            &self.inference_count,
            &self.execution_count,
            &self.request_us,
            &self.queue_us,
            &self.input_us,
            &self.infer_us,
            &self.output_us,
        ] {
            family.reset();
        }
        self.pending.reset();
    }

    pub(super) fn set(&self, labels: &[&str; 2], reading: &StatisticsReading, pending: usize) {
        let pairs = [
            (&self.success, reading.success.count),
            (&self.failure, reading.fail.count),
            (&self.inference_count, reading.inference_count),
            (&self.execution_count, reading.execution_count),
            (&self.request_us, reading.success.ns / 1_000),
            (&self.queue_us, reading.queue.ns / 1_000),
            (&self.input_us, reading.compute_input.ns / 1_000),
            (&self.infer_us, reading.compute_infer.ns / 1_000),
            (&self.output_us, reading.compute_output.ns / 1_000),
        ];
        for (family, value) in pairs {
            family.with_label_values(labels).inc_by(value);
        }
        self.pending.with_label_values(labels).set(i64::try_from(pending).unwrap_or(i64::MAX));
    }
}
