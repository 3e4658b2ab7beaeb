//! Memory that grows without an end: seen early enough to replace the worker before the kernel kills it.
//!
//! Resident memory is sampled once a second, and a line of least squares says when 85 % of the limit will be reached: one
//! through the last ten minutes, and because a leak that begins after a long rest would hide in it, one through two minutes and
//! one through thirty seconds. Memory also rises for good reasons, so a line is believed only where it explains nearly all of
//! what was sampled (a step, which is what a load makes, never reaches three quarters), where the last three seconds go on
//! rising, and where half of the limit is in use: what grows so slowly that five minutes do not take it from one half to 85 %
//! passes that mark long before it matters.

use std::collections::VecDeque;

/// Samples older than this do not count, milliseconds.
pub const WINDOW_MS: u64 = 600_000;
/// The level that is looked ahead to, percent of the limit.
pub const PROJECTED_PERCENT: f64 = 85.0;
/// How far is looked ahead, milliseconds.
pub const AHEAD_MS: f64 = 300_000.0;
/// More than this is too much if it lasts, percent of the limit …
pub const HIGH_PERCENT: u64 = 90;
/// … for so long, milliseconds.
pub const HIGH_MS: u64 = 60_000;
/// Below this nothing is projected, percent of the limit.
const FLOOR_PERCENT: u64 = 50;
/// The windows that a line is drawn through, milliseconds.
const LINES_MS: [u64; 3] = [30_000, 120_000, WINDOW_MS];
/// The latest samples, which must rise, too, milliseconds.
const LATEST_MS: u64 = 3_000;
/// Part of the variance that a line has to explain to be believed. A step reaches 0.75 at most.
const EXPLAINED_MIN: f64 = 0.8;
/// One sample in this time, milliseconds: others are left out.
const SAMPLE_MS: u64 = 1_000;
/// Over a shorter time a line says nothing, milliseconds.
const SPAN_MIN_MS: u64 = 10_000;

/// What the memory of a worker is about to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MemoryVerdict {
    /// Nothing.
    Fine,
    /// It grows, and will reach 85 % of its limit in so many milliseconds.
    Leaks {
        /// Milliseconds from now.
        in_ms: u64,
    },
    /// It has been above 90 % of its limit for a minute.
    High,
}

/// Samples of resident memory. Times in milliseconds of one monotonic clock, memory in bytes.
#[derive(Clone, Debug, Default)]
pub struct Slope {
    samples: VecDeque<(u64, u64)>,
    /// Since when every sample was above 90 %.
    high_since_ms: Option<u64>,
}

impl Slope {
    /// Takes a sample of `used` bytes of `limit` at `now_ms`, and judges.
    pub fn observe(&mut self, used: u64, limit: u64, now_ms: u64) -> MemoryVerdict {
        if is_above(used, limit, HIGH_PERCENT) {
            self.high_since_ms.get_or_insert(now_ms);
        } else {
            self.high_since_ms = None;
        }
        let due = |(last_ms, _): &(u64, u64)| now_ms.saturating_sub(*last_ms) >= SAMPLE_MS;
        if self.samples.back().is_none_or(due) {
            self.samples.push_back((now_ms, used));
        }
        let old = |(at_ms, _): &(u64, u64)| now_ms.saturating_sub(*at_ms) > WINDOW_MS;
        // One a second for ten minutes: that is also how many there are at most.
        while self.samples.front().is_some_and(old) {
            self.samples.pop_front();
        }
        if self.high_since_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= HIGH_MS) {
            return MemoryVerdict::High;
        }
        if !is_above(used, limit, FLOOR_PERCENT) {
            return MemoryVerdict::Fine;
        }
        let left = (limit as f64 * (PROJECTED_PERCENT / 100.0) - used as f64).max(0.0);
        if self.line(LATEST_MS, now_ms).is_none_or(|latest| latest.bytes_per_ms <= 0.0) {
            return MemoryVerdict::Fine;
        }
        LINES_MS
            .iter()
            .filter_map(|window_ms| self.line(*window_ms, now_ms))
            .filter(|line| line.span_ms >= SPAN_MIN_MS && line.explained >= EXPLAINED_MIN)
            .map(|line| left / line.bytes_per_ms)
            // Of a line that falls it has the other sign, also where nothing is left.
            .find(|in_ms| in_ms.is_sign_positive() && *in_ms <= AHEAD_MS)
            .map_or(MemoryVerdict::Fine, |in_ms| MemoryVerdict::Leaks { in_ms: in_ms as u64 })
    }

    fn line(&self, window_ms: u64, now_ms: u64) -> Option<Line> {
        let within = |(at_ms, _): &&(u64, u64)| now_ms.saturating_sub(*at_ms) <= window_ms;
        Line::through(self.samples.iter().filter(within))
    }

    /// Forgets everything: models were loaded or unloaded, and memory changed for a reason.
    pub fn reset(&mut self) {
        *self = Slope::default();
    }
}

fn is_above(used: u64, limit: u64, percent: u64) -> bool {
    u128::from(used) * 100 > u128::from(limit) * u128::from(percent)
}

/// A line of least squares.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Line {
    bytes_per_ms: f64,
    /// Part of the variance of the samples that it explains, 0 to 1.
    explained: f64,
    span_ms: u64,
}

impl Line {
    /// The line through `samples`, which are in order; `None` where all are of one moment. A flat one explains nothing.
    fn through<'a>(samples: impl Iterator<Item = &'a (u64, u64)> + Clone) -> Option<Self> {
        let first_ms = samples.clone().next()?.0;
        let span_ms = samples.clone().last()?.0.saturating_sub(first_ms);
        if span_ms == 0 {
            return None;
        }
        let point = |(at_ms, bytes): &(u64, u64)| (*at_ms as f64, *bytes as f64);
        let count = samples.clone().count() as f64;
        let (sum_x, sum_y) =
            samples.clone().map(point).fold((0.0, 0.0), |sum, (x, y)| (sum.0 + x, sum.1 + y));
        let (mean_x, mean_y) = (sum_x / count, sum_y / count);
        let (mut covariance, mut variance_x, mut variance_y) = (0.0, 0.0, 0.0);
        for (x, y) in samples.map(point) {
            // Taking the mean off one factor is enough: what is off the sum of the other is zero.
            covariance += (x - mean_x) * y;
            variance_x += (x - mean_x) * x;
            variance_y += (y - mean_y) * y;
        }
        let explained = if variance_y > 0.0 {
            covariance * covariance / (variance_x * variance_y)
        } else {
            0.0
        };
        Some(Line { bytes_per_ms: covariance / variance_x, explained, span_ms })
    }
}

#[cfg(test)]
mod tests;
