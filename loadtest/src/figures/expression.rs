//! Bounds such as `baseline.accepted_p99_ms * 1.2 + 5`: sums of products of numbers and figures, and no more.

use super::Figures;

/// A sum of products.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Expression(Vec<Vec<Factor>>);

#[derive(Clone, Debug, PartialEq)]
enum Factor {
    Number(f64),
    Figure(String),
}

impl Expression {
    pub(super) fn parse(text: &str) -> Result<Expression, String> {
        let terms = text.split('+').map(|term| term.split('*').map(Factor::parse).collect());
        let terms = terms.collect::<Result<Vec<Vec<Factor>>, ()>>();
        terms.map(Expression).map_err(|()| {
            format!("{text:?} is no bound: expected numbers and figures with * and + between them")
        })
    }

    /// The figures in it.
    pub(super) fn figures(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flatten().filter_map(|factor| match factor {
            Factor::Figure(name) => Some(name.as_str()),
            Factor::Number(_) => None,
        })
    }

    /// Its value, if every figure in it was measured.
    pub(super) fn value(&self, figures: &Figures) -> Option<f64> {
        self.0
            .iter()
            .map(|term| term.iter().map(|factor| factor.value(figures)).product::<Option<f64>>())
            .sum()
    }
}

impl Factor {
    fn parse(text: &str) -> Result<Factor, ()> {
        let text = text.trim();
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Factor::Number(number)),
            Ok(_) => Err(()),
            Err(_) if text.is_empty() || text.contains(char::is_whitespace) => Err(()),
            Err(_) => Ok(Factor::Figure(text.to_owned())),
        }
    }

    fn value(&self, figures: &Figures) -> Option<f64> {
        match self {
            Factor::Number(number) => Some(*number),
            Factor::Figure(name) => lookup(name, figures),
        }
    }
}

/// A status that did not occur was counted no less than one that did.
pub(super) fn lookup(name: &str, figures: &Figures) -> Option<f64> {
    let is_status = name.rsplit('.').next().is_some_and(|last| last.starts_with("status_"));
    figures.get(name).copied().or(is_status.then_some(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_products() {
        let figures: Figures =
            [("a.b", 3.0), ("a.c", 0.5)].map(|(name, value)| (name.to_owned(), value)).into();
        for (text, value) in [
            ("7", Some(7.0)),
            ("1e-3", Some(0.001)),
            ("a.b", Some(3.0)),
            ("a.b*2", Some(6.0)),
            ("2 * a.b * a.c + 10 + a.c", Some(13.5)),
            ("a.b * nothing", None),
            ("1 + nothing", None),
            ("a.status_429 + 2", Some(2.0)),
        ] {
            assert_eq!(Expression::parse(text).unwrap().value(&figures), value, "{text}");
        }
        for text in ["", "2 *", "* 2", "a b", "inf", "NaN", "1 + + 2"] {
            assert!(Expression::parse(text).is_err(), "{text}");
        }
    }
}
