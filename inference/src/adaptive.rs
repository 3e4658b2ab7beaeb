//! How many runs may be in progress at once where that is not known beforehand: several lanes that feed one device.
//!
//! Gradient2 of Netflix' concurrency-limits: the limit shrinks as runs take longer than they used to. By itself it drifts: what
//! is learned under overload becomes the baseline, and the limit creeps up. So the baseline is frozen while requests are turned
//! away, and, as in Uber's Cinnamon, the limit grows only where more runs at once did more work, by the covariance of the two.
//! A limit that is always used up has nothing to compare with, so every third window another one is tried.
//!
//! Pure: `now` is an argument, and what happens is told by whoever runs.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Runs may take so many times what they used to before the limit shrinks.
const TOLERANCE: f64 = 1.5;
/// A window's share in the limit.
const SMOOTHING: f64 = 0.2;
/// Runs that may wait within the device, which is what the limit grows by. The root of the limit, as others have it, goes too
/// far beyond what history has seen.
const QUEUE: f64 = 1.0;
/// However slow runs have become, one window asks for no less than this part of the limit.
const GRADIENT_MIN: f64 = 0.5;
/// Work must grow at least by this part of the growth of runs in progress for more of them to pay. Above zero, for measured
/// covariance never is zero.
const PAYS: f64 = 0.6;
/// Below this part, more runs in progress are only in each other's way.
const IN_THE_WAY: f64 = 0.4;

/// A window has at least so many runs, and as many for each that may be in progress.
const WINDOW_RUNS: u32 = 16;
const WINDOW_RUNS_EACH: u32 = 4;
/// And takes at least so long.
const WINDOW_TIME: Duration = Duration::from_millis(20);
/// Runs of a window that the median is taken of, at most.
const WINDOW_RUNS_MAX: usize = 256;
/// Windows that are compared: two tries, and what was before and after.
const HISTORY: usize = 6;
/// In so few different numbers of runs in progress there is nothing to compare: variance.
const VARIANCE_MIN: f64 = 0.05;
/// Every so many windows another limit is tried.
const TRY_EVERY: u32 = 3;

/// Runs that the baseline is an average over, and those whose plain mean it begins with, frozen or not.
const BASELINE_RUNS: f64 = 600.0;
const BASELINE_WARM_UP: f64 = 10.0;
/// A baseline that runs are more than twice as fast as goes down by this with each window.
const BASELINE_DECAY: f64 = 0.95;
/// Sizes of runs that have a baseline each: by power of two of their elements.
const SIZES: usize = 40;

/// What a run brought.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ran {
    /// How long it took.
    pub(crate) time: Duration,
    /// Rows that it did.
    pub(crate) rows: usize,
    /// Elements of its inputs, which is how large runs are told apart.
    pub(crate) elements: usize,
    /// Whether requests are being turned away.
    pub(crate) shedding: bool,
}

/// The limit of one model version, and what it is made of.
#[derive(Debug)]
pub(crate) struct Adaptive {
    lanes: u32,
    limit: f64,
    running: u32,
    window: Window,
    windows: u32,
    history: VecDeque<Point>,
    baselines: [Baseline; SIZES],
}

/// A window that was judged.
#[derive(Clone, Copy, Debug)]
struct Point {
    /// Runs in progress, on average.
    running: f64,
    /// Rows a second.
    work: f64,
}

#[derive(Debug)]
struct Window {
    begun: Instant,
    /// Until when `area` counts.
    counted: Instant,
    /// Runs in progress times seconds.
    area: f64,
    runs: u32,
    rows: u64,
    /// What runs took, as a multiple of their baselines.
    slowness: Vec<f64>,
}

impl Window {
    fn new(now: Instant) -> Self {
        Window { begun: now, counted: now, area: 0.0, runs: 0, rows: 0, slowness: Vec::new() }
    }

    /// Until `now`, so many were in progress.
    fn count(&mut self, running: u32, now: Instant) {
        let time = now.saturating_duration_since(self.counted);
        self.area += f64::from(running) * time.as_secs_f64();
        self.counted = self.counted.max(now);
    }
}

/// What runs of a size take when nothing is in their way.
#[derive(Clone, Copy, Debug, Default)]
struct Baseline {
    seconds: f64,
    runs: f64,
}

impl Baseline {
    /// How slow a run was, measured by those before it. Learns from it unless `frozen`.
    fn compare(&mut self, seconds: f64, frozen: bool) -> f64 {
        if !frozen || self.runs < BASELINE_WARM_UP {
            self.runs = (self.runs + 1.0).min(BASELINE_RUNS);
            let weight = if self.runs <= BASELINE_WARM_UP { self.runs } else { BASELINE_RUNS };
            self.seconds += (seconds - self.seconds) / weight;
        }
        seconds / self.seconds.max(f64::MIN_POSITIVE)
    }
}

/// What the next limit is made of.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Runs in progress, on average over the window.
    running: f64,
    /// Median of what they took, as a multiple of the baseline.
    slowness: f64,
    /// By how much work grows as runs in progress do, in parts of each: 1 is in proportion. `None`: nothing to compare.
    gain: Option<f64>,
}

/// The limit after a window.
fn next(limit: f64, lanes: f64, seen: &Seen) -> f64 {
    // A limit that was not used says nothing about itself.
    if seen.running < limit / 2.0 {
        return limit;
    }
    let target = match seen.gain {
        // What became slower while more runs still do more has not become so by waiting for each other.
        Some(gain) if gain > PAYS => limit + QUEUE,
        gain => {
            let gradient = (TOLERANCE / seen.slowness).clamp(GRADIENT_MIN, 1.0);
            let one_less = gain.is_some_and(|gain| gain < IN_THE_WAY);
            limit * gradient - f64::from(u8::from(one_less))
        }
    };
    (limit + SMOOTHING * (target - limit)).clamp(1.0, lanes)
}

/// The elasticity of work in runs in progress: covariance over variance, in parts of their means.
fn gain(history: &VecDeque<Point>) -> Option<f64> {
    if history.len() < HISTORY {
        return None;
    }
    let count = history.len() as f64;
    let running = history.iter().map(|point| point.running).sum::<f64>() / count;
    let work = history.iter().map(|point| point.work).sum::<f64>() / count;
    let each = |of: fn(f64, f64) -> f64| {
        history.iter().map(|at| of(at.running - running, at.work - work)).sum::<f64>() / count
    };
    let (variance, covariance) =
        (each(|running, _| running * running), each(|running, work| running * work));
    (variance >= VARIANCE_MIN && work > 0.0).then(|| covariance / variance * running / work)
}

impl Adaptive {
    /// Begins with one run at a time: a baseline that is learned among many is none.
    pub(crate) fn new(lanes: u32, now: Instant) -> Self {
        Adaptive {
            lanes: lanes.max(1),
            limit: 1.0,
            running: 0,
            window: Window::new(now),
            windows: 0,
            history: VecDeque::with_capacity(HISTORY),
            baselines: [Baseline::default(); SIZES],
        }
    }

    /// The limit, without what is being tried.
    pub(crate) fn limit(&self) -> u32 {
        // Between 1 and the lanes, so nothing is cut off.
        self.limit as u32
    }

    /// Runs that may be in progress now: the limit, or what is tried, which is one less, or two instead of one.
    pub(crate) fn allowed(&self) -> u32 {
        let limit = self.limit();
        if self.windows % TRY_EVERY != TRY_EVERY - 1 {
            limit
        } else if limit == 1 {
            2.min(self.lanes)
        } else {
            limit - 1
        }
    }

    /// A run wants to begin. Whether it may.
    pub(crate) fn begin(&mut self, now: Instant) -> bool {
        let may = self.running < self.allowed();
        if may {
            self.window.count(self.running, now);
            self.running += 1;
        }
        may
    }

    /// A run has ended, however it did.
    pub(crate) fn end(&mut self, now: Instant) {
        self.window.count(self.running, now);
        self.running = self.running.saturating_sub(1);
    }

    /// A run that is about to end has brought answers. Whether that has closed a window, so that the limit may be another.
    pub(crate) fn ran(&mut self, ran: &Ran, now: Instant) -> bool {
        let size = (ran.elements.max(1).ilog2() as usize).min(SIZES - 1);
        let slowness = self.baselines[size].compare(ran.time.as_secs_f64(), ran.shedding);
        let window = &mut self.window;
        window.runs += 1;
        window.rows += ran.rows as u64;
        if window.slowness.len() < WINDOW_RUNS_MAX {
            window.slowness.push(slowness);
        }
        let long_enough = now.saturating_duration_since(window.begun) >= WINDOW_TIME;
        let closes =
            long_enough && window.runs >= WINDOW_RUNS.max(WINDOW_RUNS_EACH * self.allowed());
        if closes {
            self.close(now);
        }
        closes
    }

    fn close(&mut self, now: Instant) {
        self.window.count(self.running, now);
        let mut window = std::mem::replace(&mut self.window, Window::new(now));
        let seconds = now.saturating_duration_since(window.begun).as_secs_f64();
        let running = window.area / seconds;
        let middle = window.slowness.len() / 2;
        let (_, median, _) = window.slowness.select_nth_unstable_by(middle, f64::total_cmp);
        let slowness = *median;
        if slowness < 0.5 {
            // A device that has become faster has become so for runs of every size.
            self.baselines.iter_mut().for_each(|baseline| baseline.seconds *= BASELINE_DECAY);
        }
        // What came of a limit that was not used up came of the load.
        if running >= f64::from(self.allowed()) / 2.0 {
            self.history.truncate(HISTORY - 1);
            self.history.push_front(Point { running, work: window.rows as f64 / seconds });
        }
        let seen = Seen { running, slowness, gain: gain(&self.history) };
        self.limit = next(self.limit, f64::from(self.lanes), &seen);
        self.windows = self.windows.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests;
