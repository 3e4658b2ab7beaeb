//! Running totals of one model version, in the shape that the protocol's statistics extension asks for.
//!
//! Kept beside the Prometheus metrics because the two are read by different people at different grain: the
//! protocol wants counts with cumulative nanoseconds, and per batch size.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Batch sizes that are told apart; further ones are counted in the largest of these.
const BATCH_SIZES_MAX: usize = 64;

/// A number of events and the time they took together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CountAndTime {
    /// Events.
    pub count: u64,
    /// Nanoseconds, all events together.
    pub ns: u64,
}

#[derive(Debug, Default)]
struct Total {
    count: AtomicU64,
    ns: AtomicU64,
}

impl Total {
    fn add(&self, time: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.ns.fetch_add(nanoseconds(time), Ordering::Relaxed);
    }

    fn read(&self) -> CountAndTime {
        CountAndTime {
            count: self.count.load(Ordering::Relaxed),
            ns: self.ns.load(Ordering::Relaxed),
        }
    }
}

/// Time of the parts of one execution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Waiting for a lane.
    pub queue: Duration,
    /// Handing the inputs to the runtime.
    pub input: Duration,
    /// Computing.
    pub infer: Duration,
    /// Taking the outputs.
    pub output: Duration,
}

/// Totals of the executions with one batch size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchStatistics {
    /// Handing the inputs to the runtime.
    pub input: CountAndTime,
    /// Computing.
    pub infer: CountAndTime,
    /// Taking the outputs.
    pub output: CountAndTime,
}

/// Totals since the version was loaded. All methods may be called from any thread.
#[derive(Debug, Default)]
pub struct Statistics {
    rows: AtomicU64,
    executions: AtomicU64,
    last_unix_ms: AtomicU64,
    success: Total,
    fail: Total,
    queue: Total,
    input: Total,
    infer: Total,
    output: Total,
    batches: Mutex<BTreeMap<u64, BatchStatistics>>,
}

/// A consistent enough reading of [`Statistics`]: each number is exact, all of them are of nearly one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatisticsReading {
    /// Rows predicted.
    pub inference_count: u64,
    /// Runs of the model.
    pub execution_count: u64,
    /// When the last run ended, milliseconds of Unix time; 0 when there was none.
    pub last_inference_unix_ms: u64,
    /// Requests answered with outputs, from admission to answer.
    pub success: CountAndTime,
    /// Requests that reached the queue and failed.
    pub fail: CountAndTime,
    /// Waiting for a lane.
    pub queue: CountAndTime,
    /// Handing inputs to the runtime.
    pub compute_input: CountAndTime,
    /// Computing.
    pub compute_infer: CountAndTime,
    /// Taking outputs.
    pub compute_output: CountAndTime,
    /// The same by batch size.
    pub batches: BTreeMap<u64, BatchStatistics>,
}

impl Statistics {
    /// One run that brought outputs for `rows` rows, of one request or of several, and ended at `now_unix_ms`.
    pub fn executed(&self, rows: u64, timing: Timing, now_unix_ms: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.executions.fetch_add(1, Ordering::Relaxed);
        self.last_unix_ms.store(now_unix_ms, Ordering::Relaxed);
        let mut batches = self.batches.lock();
        let size = if batches.len() >= BATCH_SIZES_MAX && !batches.contains_key(&rows) {
            batches.keys().next_back().copied().unwrap_or(rows)
        } else {
            rows
        };
        let batch = batches.entry(size).or_default();
        add(&mut batch.input, timing.input);
        add(&mut batch.infer, timing.infer);
        add(&mut batch.output, timing.output);
    }

    /// A request was answered with outputs, `total` after it was queued. The times of its run count whole for it, also when
    /// it shared the run, as Triton counts them.
    pub fn succeeded(&self, timing: Timing, total: Duration) {
        self.success.add(total);
        self.queue.add(timing.queue);
        self.input.add(timing.input);
        self.infer.add(timing.infer);
        self.output.add(timing.output);
    }

    /// A request failed, `total` after it was admitted.
    pub fn failed(&self, total: Duration) {
        self.fail.add(total);
    }

    /// Requests that were answered with outputs.
    pub(crate) fn answered(&self) -> u64 {
        self.success.count.load(Ordering::Relaxed)
    }

    /// The totals now.
    pub fn read(&self) -> StatisticsReading {
        StatisticsReading {
            inference_count: self.rows.load(Ordering::Relaxed),
            execution_count: self.executions.load(Ordering::Relaxed),
            last_inference_unix_ms: self.last_unix_ms.load(Ordering::Relaxed),
            success: self.success.read(),
            fail: self.fail.read(),
            queue: self.queue.read(),
            compute_input: self.input.read(),
            compute_infer: self.infer.read(),
            compute_output: self.output.read(),
            batches: self.batches.lock().clone(),
        }
    }
}

fn add(total: &mut CountAndTime, time: Duration) {
    total.count += 1;
    total.ns += nanoseconds(time);
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_and_bounds_the_batch_sizes() {
        let statistics = Statistics::default();
        let timing = Timing { infer: Duration::from_nanos(5), ..Timing::default() };
        for rows in 1..=200 {
            statistics.executed(rows, timing, 7);
        }
        statistics.succeeded(timing, Duration::from_nanos(9));
        statistics.succeeded(timing, Duration::from_nanos(9));
        let reading = statistics.read();
        assert_eq!(reading.execution_count, 200);
        assert_eq!(reading.inference_count, 200 * 201 / 2);
        assert_eq!(reading.compute_infer, CountAndTime { count: 2, ns: 10 });
        assert_eq!(reading.batches.len(), BATCH_SIZES_MAX);
        let counted: u64 = reading.batches.values().map(|batch| batch.infer.count).sum();
        assert_eq!(counted, 200, "sizes beyond the bound are counted in the largest");
        assert_eq!(reading.success, CountAndTime { count: 2, ns: 18 });
    }
}
