//! Memory that grows without an end: seen early enough to replace the worker before the kernel kills it.
//!
//! Two figures are looked at, because a worker shares its limit with others (its supervisor, a shell, files in memory): what is
//! used of the limit, by which the kernel kills, says how near the end is; what the worker itself holds says whether it is the
//! one that grows, and what another worker in its place would give back. Nobody is replaced for what others use, or for what the
//! models need: only where the worker has grown, by a twentieth of the limit, since they were loaded, and where the server could
//! let somebody in without that.
//!
//! A line of least squares through what the worker holds says when 85 % of the limit will be used: one through the last ten
//! minutes, and because a leak that begins after a long rest would hide in it, one through two minutes and one through thirty
//! seconds. Memory also rises for good reasons, so a line is believed only where it explains nearly all of what was sampled (a
//! step, which is what a load makes, never reaches three quarters), where the last three seconds go on rising, and where half of
//! the limit is in use. Nobody looks further ahead than he has seen behind him: a leak is believed when it has grown as much as is
//! left, and what grows ever more slowly, as arenas do that learn larger shapes, is not taken for one as long as it comes to rest
//! below that mark.
//!
//! A leak so fast that no line is long enough is believed later and on less: above 80 %, where the last three seconds are a line
//! that is at 90 % three seconds on. And where the door of the server is shut for memory, which is from 95 % on, nobody waits
//! for longer than two seconds.

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
/// From here on the server turns everybody away, percent of the limit …
pub const SHUT_PERCENT: u64 = 95;
/// … and for so long that is waited for, milliseconds.
pub const SHUT_MS: u64 = 2_000;
/// What the worker has grown by since its models were loaded, at the least, for another one to be worth it; percent of the limit.
pub const WORTH_PERCENT: u64 = 5;
/// Below this nothing is projected, percent of the limit.
const FLOOR_PERCENT: u64 = 50;
/// Above this a short line is believed, percent of the limit …
const URGENT_PERCENT: u64 = 80;
/// … if it explains this part of the variance of the samples …
const URGENT_EXPLAINED_MIN: f64 = 0.9;
/// … is so long, milliseconds: nearly all of the latest samples …
const URGENT_SPAN_MIN_MS: u64 = 2_500;
/// … and reaches [`HIGH_PERCENT`] within so long, milliseconds.
const URGENT_AHEAD_MS: f64 = 3_000.0;
/// The windows that a line is drawn through, milliseconds.
const LINES_MS: [u64; 3] = [30_000, 120_000, WINDOW_MS];
/// The latest samples, which must rise, too, milliseconds.
const LATEST_MS: u64 = 3_000;
/// Part of the variance that a line has to explain to be believed. A step reaches 0.75 at most.
const EXPLAINED_MIN: f64 = 0.8;
/// Which part of a line is the latest that must lead there, too: a quarter.
const RECENT_PART: u64 = 4;
/// One sample in this time, milliseconds: others are left out.
const SAMPLE_MS: u64 = 250;
/// Over a shorter time a line says nothing, milliseconds.
const SPAN_MIN_MS: u64 = 10_000;

/// What is used at a moment, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the limit, by whomever.
    pub used: u64,
    /// By the worker itself.
    pub own: u64,
    /// The limit.
    pub limit: u64,
}

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
    /// It has been above 90 % of its limit for a minute, or above 95 % for two seconds.
    High,
}

/// Samples of memory. Times in milliseconds of one monotonic clock.
#[derive(Clone, Debug, Default)]
pub struct Slope {
    /// What the worker held, and when.
    samples: VecDeque<(u64, u64)>,
    /// The least that it held since its models were loaded, bytes.
    least: Option<u64>,
    /// Since when every sample was above 90 %.
    high_since_ms: Option<u64>,
    /// The same for 95 %.
    shut_since_ms: Option<u64>,
}

impl Slope {
    /// Takes a sample at `now_ms`, and judges.
    pub fn observe(&mut self, usage: Usage, now_ms: u64) -> MemoryVerdict {
        let Usage { used, own, limit } = usage;
        let least = own.min(self.least.unwrap_or(own));
        self.least = Some(least);
        let since = |since_ms: Option<u64>, percent| {
            is_above(used, limit, percent).then(|| since_ms.unwrap_or(now_ms))
        };
        self.high_since_ms = since(self.high_since_ms, HIGH_PERCENT);
        self.shut_since_ms = since(self.shut_since_ms, SHUT_PERCENT);
        self.keep(own, now_ms);
        if !is_worth(usage, own - least) {
            return MemoryVerdict::Fine;
        }
        let lasts = |since_ms: Option<u64>, for_ms| {
            since_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= for_ms)
        };
        if lasts(self.high_since_ms, HIGH_MS) || lasts(self.shut_since_ms, SHUT_MS) {
            return MemoryVerdict::High;
        }
        if !is_above(used, limit, FLOOR_PERCENT) {
            return MemoryVerdict::Fine;
        }
        self.line(LATEST_MS, now_ms)
            .filter(|latest| latest.bytes_per_ms > 0.0)
            .and_then(|latest| self.projected(usage, latest, now_ms))
            .map_or(MemoryVerdict::Fine, |in_ms| MemoryVerdict::Leaks { in_ms: in_ms as u64 })
    }

    fn keep(&mut self, own: u64, now_ms: u64) {
        let due = |(last_ms, _): &(u64, u64)| now_ms.saturating_sub(*last_ms) >= SAMPLE_MS;
        if self.samples.back().is_none_or(due) {
            self.samples.push_back((now_ms, own));
        }
        let old = |(at_ms, _): &(u64, u64)| now_ms.saturating_sub(*at_ms) > WINDOW_MS;
        // Four a second for ten minutes: that is also how many there are at most.
        while self.samples.front().is_some_and(old) {
            self.samples.pop_front();
        }
    }

    /// When 85 % will be used, milliseconds from now, if a line says so that can be believed.
    fn projected(&self, usage: Usage, latest: Line, now_ms: u64) -> Option<f64> {
        let left =
            |percent: f64| (usage.limit as f64 * (percent / 100.0) - usage.used as f64).max(0.0);
        let urgent = is_above(usage.used, usage.limit, URGENT_PERCENT)
            && latest.span_ms >= URGENT_SPAN_MIN_MS
            && latest.explained >= URGENT_EXPLAINED_MIN
            && left(HIGH_PERCENT as f64) / latest.bytes_per_ms <= URGENT_AHEAD_MS;
        let urgent = urgent.then_some(latest);
        let lines = LINES_MS.iter().filter_map(|window_ms| self.line(*window_ms, now_ms));
        // What grows ever more slowly, as arenas do, comes to rest where its last quarter does not lead.
        let slowest = |line: Line| {
            let recent = self.line(line.span_ms / RECENT_PART, now_ms)?;
            let bytes_per_ms = line.bytes_per_ms.min(recent.bytes_per_ms);
            Some(Line { bytes_per_ms, ..line })
        };
        let believed =
            lines.filter(|line| line.span_ms >= SPAN_MIN_MS && line.explained >= EXPLAINED_MIN);
        believed
            .filter_map(slowest)
            .chain(urgent)
            .map(|line| (left(PROJECTED_PERCENT) / line.bytes_per_ms, line.span_ms as f64))
            // Of a line that falls it has the other sign, also where nothing is left.
            .find(|(in_ms, span_ms)| in_ms.is_sign_positive() && *in_ms <= AHEAD_MS.min(*span_ms))
            .map(|(in_ms, _)| in_ms)
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

/// Whether another worker is worth it in place of one that has grown by `grown` bytes: it gives back enough, and the server can
/// let somebody in then.
fn is_worth(usage: Usage, grown: u64) -> bool {
    let Usage { used, limit, .. } = usage;
    u128::from(grown) * 100 >= u128::from(limit) * u128::from(WORTH_PERCENT)
        && !is_above(used.saturating_sub(grown), limit, SHUT_PERCENT)
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
