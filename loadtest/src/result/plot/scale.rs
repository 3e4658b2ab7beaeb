//! From values to heights, and the round values in between.

/// Less than this is drawn at the foot of a logarithmic axis.
const LOG_LEAST: f64 = 0.01;

/// An axis.
pub(super) struct Scale {
    least: f64,
    most: f64,
    logarithmic: bool,
    /// Where the least and the most are drawn.
    range: (f64, f64),
}

impl Scale {
    /// For these values; a linear axis begins at zero, both end at something round.
    pub(super) fn new(
        values: impl Iterator<Item = f64>,
        logarithmic: bool,
        range: (f64, f64),
    ) -> Scale {
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for value in values.filter(|value| value.is_finite()) {
            least = least.min(value.max(LOG_LEAST));
            most = most.max(value);
        }
        if logarithmic {
            let least = 10_f64.powf(least.min(most.max(LOG_LEAST)).log10().floor());
            let most = 10_f64.powf(most.max(LOG_LEAST).log10().ceil()).max(least * 10.0);
            return Scale { least, most, logarithmic, range };
        }
        let most = if most > 0.0 { most } else { 1.0 };
        let step = round_step(most / 5.0);
        Scale { least: 0.0, most: (most / step).ceil() * step, logarithmic, range }
    }

    /// Where the value is drawn.
    pub(super) fn at(&self, value: f64) -> f64 {
        let (foot, head) = self.range;
        let share = if self.logarithmic {
            (value.max(self.least) / self.least).log10() / (self.most / self.least).log10()
        } else {
            (value - self.least) / (self.most - self.least)
        };
        foot + (head - foot) * share.clamp(0.0, 1.0)
    }

    /// Values worth a line.
    pub(super) fn ticks(&self) -> Vec<f64> {
        if !self.logarithmic {
            return round_steps(self.least, self.most, 5);
        }
        let decades = (self.most / self.least).log10().round() as i32;
        (0..=decades).map(|decade| self.least * 10_f64.powi(decade)).collect()
    }
}

/// Round values from `least` to `most`, about so many.
pub(super) fn round_steps(least: f64, most: f64, about: u32) -> Vec<f64> {
    let step = round_step((most - least) / f64::from(about.max(1)));
    let count = ((most - least) / step + 1e-9).floor() as u32;
    (0..=count.min(1000)).map(|index| least + f64::from(index) * step).collect()
}

/// 1, 2 or 5 and noughts, not less than `rough`.
fn round_step(rough: f64) -> f64 {
    let rough = if rough.is_finite() && rough > 0.0 { rough } else { 1.0 };
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough * 0.999_999);
    factor.unwrap_or(10.0) * power
}

/// Without noughts at the end.
pub(super) fn decimal(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_axes_begin_at_zero_and_end_round() {
        let scale = Scale::new([3.0, 870.0].into_iter(), false, (100.0, 0.0));
        assert_eq!(scale.ticks(), [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]);
        assert_eq!((scale.at(0.0), scale.at(500.0), scale.at(1000.0)), (100.0, 50.0, 0.0));
        assert_eq!(scale.at(5000.0), 0.0);
    }

    #[test]
    fn logarithmic_axes_are_whole_decades() {
        let scale = Scale::new([3.0, 870.0].into_iter(), true, (100.0, 0.0));
        assert_eq!(scale.ticks(), [1.0, 10.0, 100.0, 1000.0]);
        assert!((scale.at(10.0) - 66.666).abs() < 0.01);
        assert_eq!(scale.at(0.0), 100.0);
    }

    #[test]
    fn odd_values_make_an_axis_all_the_same() {
        for values in [vec![], vec![0.0], vec![f64::NAN, f64::INFINITY], vec![1e-9], vec![1e12]] {
            for logarithmic in [false, true] {
                let scale = Scale::new(values.iter().copied(), logarithmic, (100.0, 0.0));
                let ticks = scale.ticks();
                assert!((2..100).contains(&ticks.len()), "{values:?} {ticks:?}");
                assert!(ticks.iter().all(|tick| scale.at(*tick).is_finite()));
            }
        }
    }

    #[test]
    fn steps_are_round() {
        assert_eq!(
            round_steps(0.0, 120.0, 10),
            (0..7).map(|i| f64::from(i) * 20.0).collect::<Vec<_>>()
        );
        assert_eq!(round_steps(0.0, 1.0, 5), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!((decimal(0.6000000000000001), decimal(1000.0)), ("0.6".into(), "1000".into()));
    }
}
