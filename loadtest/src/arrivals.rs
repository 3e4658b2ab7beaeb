//! When requests are meant to be sent: pure, seeded, the same for every run of a scenario.
//!
//! Every shape is a list of stretches on which the rate changes evenly. An arrival stands where the area below the
//! rate has grown by one (even spacing), or by an exponential number of mean one (a Poisson process), since the last.

use std::time::Duration;

use fastrand::Rng;

/// How the rate goes over a phase; `R` is a rate, given or known.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape<R> {
    /// Always the same.
    Constant(R),
    /// Evenly from one to the other.
    Ramp { from: R, to: R },
    /// From one to the other in so many stairs of the same length.
    Step { from: R, to: R, steps: u32 },
    /// A plateau of `length` within `base`.
    Spike { base: R, peak: R, at: Duration, length: Duration },
}

/// A shape, and whether arrivals are random on it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pattern<R> {
    pub(crate) shape: Shape<R>,
    /// A Poisson process, not even spacing.
    pub(crate) random: bool,
}

/// A stretch on which the rate changes evenly.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stretch {
    start: f64,
    length: f64,
    from: f64,
    to: f64,
}

/// The arrivals of one client entry in one phase: offsets from the phase's start.
pub(crate) struct Arrivals {
    stretches: Vec<Stretch>,
    /// Which stretch the next arrival is looked for in.
    current: usize,
    /// The area below the rate in the stretches before.
    before: f64,
    /// The area at the last arrival.
    area: f64,
    random: Option<Rng>,
    first: bool,
}

// ===== impl Shape, Pattern =====

impl<R> Shape<R> {
    /// The same shape with other rates.
    pub(crate) fn map<S>(&self, rate: impl Fn(&R) -> S) -> Shape<S> {
        match self {
            Shape::Constant(constant) => Shape::Constant(rate(constant)),
            Shape::Ramp { from, to } => Shape::Ramp { from: rate(from), to: rate(to) },
            Shape::Step { from, to, steps } => {
                Shape::Step { from: rate(from), to: rate(to), steps: *steps }
            }
            Shape::Spike { base, peak, at, length } => {
                Shape::Spike { base: rate(base), peak: rate(peak), at: *at, length: *length }
            }
        }
    }

    /// Every rate in it.
    pub(crate) fn rates(&self) -> Vec<&R> {
        match self {
            Shape::Constant(rate) => vec![rate],
            Shape::Ramp { from, to } | Shape::Step { from, to, .. } => vec![from, to],
            Shape::Spike { base, peak, .. } => vec![base, peak],
        }
    }

    /// The same shape over a longer or shorter time.
    pub(crate) fn scale_time(&mut self, factor: f64) {
        if let Shape::Spike { at, length, .. } = self {
            *at = at.mul_f64(factor);
            *length = length.mul_f64(factor);
        }
    }
}

impl Shape<f64> {
    fn stretches(&self, seconds: f64) -> Vec<Stretch> {
        let flat = |start: f64, end: f64, rate: f64| Stretch {
            start,
            length: (end - start).max(0.0),
            from: rate,
            to: rate,
        };
        match *self {
            Shape::Constant(rate) => vec![flat(0.0, seconds, rate)],
            Shape::Ramp { from, to } => vec![Stretch { start: 0.0, length: seconds, from, to }],
            Shape::Step { from, to, steps } => {
                let stair = seconds / f64::from(steps.max(1));
                let rise = (to - from) / f64::from(steps.saturating_sub(1).max(1));
                (0..steps.max(1))
                    .map(f64::from)
                    .map(|step| flat(step * stair, (step + 1.0) * stair, from + step * rise))
                    .collect()
            }
            Shape::Spike { base, peak, at, length } => {
                let start = at.as_secs_f64().min(seconds);
                let end = (at + length).as_secs_f64().min(seconds);
                vec![flat(0.0, start, base), flat(start, end, peak), flat(end, seconds, base)]
            }
        }
    }
}

impl Pattern<f64> {
    /// The arrivals within a phase of that length.
    pub(crate) fn arrivals(&self, phase: Duration, seed: u64) -> Arrivals {
        Arrivals {
            stretches: self.shape.stretches(phase.as_secs_f64()),
            current: 0,
            before: 0.0,
            area: 0.0,
            random: self.random.then(|| Rng::with_seed(seed)),
            first: true,
        }
    }
}

// ===== impl Stretch, Arrivals =====

impl Stretch {
    fn area(&self) -> f64 {
        self.length * f64::midpoint(self.from, self.to)
    }

    /// How far into the stretch the area below the rate has grown to `area`.
    fn offset(&self, area: f64) -> f64 {
        if self.length <= 0.0 {
            return 0.0;
        }
        // area = from·x + slope·x²/2; written so that a flat stretch divides by no zero.
        let slope = (self.to - self.from) / self.length;
        let root = (self.from * self.from + 2.0 * slope * area).max(0.0).sqrt();
        (2.0 * area / (self.from + root)).min(self.length)
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.area += match &mut self.random {
            // 1 - f64() is in (0, 1]: its logarithm is finite.
            Some(random) => -(1.0 - random.f64()).ln(),
            // Half a step in, so that two clients of the same rate and a phase's borders are alike.
            None if self.first => 0.5,
            None => 1.0,
        };
        self.first = false;
        loop {
            let stretch = self.stretches.get(self.current)?;
            let within = self.area - self.before;
            if within < stretch.area() {
                return Some(Duration::from_secs_f64(stretch.start + stretch.offset(within)));
            }
            self.before += stretch.area();
            self.current += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(shape: Shape<f64>, seconds: u64) -> Vec<f64> {
        let pattern = Pattern { shape, random: false };
        pattern.arrivals(Duration::from_secs(seconds), 1).map(|at| at.as_secs_f64()).collect()
    }

    fn within(times: &[f64], from: f64, to: f64) -> usize {
        times.iter().filter(|at| (from..to).contains(*at)).count()
    }

    #[test]
    fn constant_is_even() {
        let found = times(Shape::Constant(4.0), 1);
        assert_eq!(found, [0.125, 0.375, 0.625, 0.875]);
        assert!(times(Shape::Constant(0.0), 1).is_empty());
        assert!(times(Shape::Constant(0.4), 1).is_empty());
    }

    #[test]
    fn a_ramp_has_its_mean_and_its_slope() {
        let shape = Shape::Ramp { from: 0.0, to: 100.0 };
        let up = times(shape, 10);
        assert_eq!(up.len(), 500);
        assert_eq!((within(&up, 0.0, 5.0), within(&up, 5.0, 10.0)), (125, 375));
        let down = times(Shape::Ramp { from: 100.0, to: 0.0 }, 10);
        assert_eq!((down.len(), within(&down, 0.0, 5.0)), (500, 375));
        assert!(up.is_sorted() && down.is_sorted());
    }

    #[test]
    fn steps_are_stairs() {
        let found = times(Shape::Step { from: 10.0, to: 30.0, steps: 3 }, 3);
        let counts: Vec<_> =
            (0..3).map(|second| within(&found, second.into(), (second + 1).into())).collect();
        assert_eq!(counts, [10, 20, 30]);
        assert_eq!(times(Shape::Step { from: 10.0, to: 30.0, steps: 1 }, 1).len(), 10);
    }

    #[test]
    fn a_spike_has_borders() {
        let spike = |at: f64, length: f64| Shape::Spike {
            base: 10.0,
            peak: 100.0,
            at: Duration::from_secs_f64(at),
            length: Duration::from_secs_f64(length),
        };
        let found = times(spike(1.0, 1.0), 3);
        let counts: Vec<_> =
            (0..3).map(|second| within(&found, second.into(), (second + 1).into())).collect();
        assert_eq!(counts, [10, 100, 10]);
        // What is beyond the phase is cut off.
        assert_eq!(times(spike(2.5, 9.0), 3).len(), 75);
        assert_eq!(times(spike(5.0, 9.0), 3).len(), 30);
    }

    #[test]
    fn poisson_is_random_and_the_same_again() {
        let pattern = Pattern { shape: Shape::Constant(1000.0), random: true };
        let draw =
            |seed| -> Vec<Duration> { pattern.arrivals(Duration::from_secs(20), seed).collect() };
        let found = draw(7);
        assert_eq!(found, draw(7));
        assert_ne!(found, draw(8));
        assert!(found.is_sorted());
        // Mean 20 000, deviation 141.
        assert!((19_300..20_700).contains(&found.len()), "{}", found.len());
        // Gaps of a Poisson process deviate by as much as their mean; even ones do not at all.
        let gaps: Vec<f64> =
            found.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((0.9..1.1).contains(&(variance.sqrt() / mean)));
    }

    #[test]
    fn scaled_shapes_keep_their_form() {
        let mut shape = Shape::Spike {
            base: 1.0,
            peak: 2.0,
            at: Duration::from_secs(10),
            length: Duration::from_secs(20),
        };
        shape.scale_time(0.1);
        let Shape::Spike { at, length, .. } = shape else { unreachable!() };
        assert_eq!((at, length), (Duration::from_secs(1), Duration::from_secs(2)));
    }
}
