//! Several measurements of one thing, told in two figures.

use serde::Serialize;

/// A middle and how far the measurements lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    /// Half the range over the median: 0.05 says "within about 5 %".
    pub(crate) spread: f64,
}

impl Summary {
    /// `None` of nothing.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Summary> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (first, last) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        let spread = if median == 0.0 { 0.0 } else { (last - first) / 2.0 / median.abs() };
        Some(Summary { median, spread })
    }

    /// Of what `of` makes of the pairs: each round is compared with itself, because a machine's mood changes between
    /// rounds and not so much within one.
    pub(crate) fn of_pairs(a: &[f64], b: &[f64], of: impl Fn(f64, f64) -> f64) -> Option<Summary> {
        Summary::of(a.iter().zip(b).map(|(a, b)| of(*a, *b)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        let summary = |values: &[f64]| Summary::of(values.iter().copied());
        let expected = |median, spread| Some(Summary { median, spread });
        assert_eq!(summary(&[]), None);
        assert_eq!(summary(&[4.0]), expected(4.0, 0.0));
        assert_eq!(summary(&[3.0, 1.0, 2.0]), expected(2.0, 0.5));
        assert_eq!(summary(&[1.0, 2.0, 4.0, 3.0]), expected(2.5, 0.6));
        assert_eq!(summary(&[0.0, 0.0, 5.0]), expected(0.0, 0.0));
    }

    #[test]
    fn pairs_are_compared_within_their_round() {
        let ratio = Summary::of_pairs(&[10.0, 200.0, 3.0], &[20.0, 400.0, 6.0], |a, b| a / b);
        assert_eq!(ratio, Some(Summary { median: 0.5, spread: 0.0 }));
    }
}
