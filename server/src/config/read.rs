//! Takes keys out of the raw configuration one by one, so that one bad value does not hide the next.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::keys;
use super::problem::{Origin, Problem, Problems};
use super::raw::{Raw, RawConfig, Sources};
use super::show::Setting;

/// What a parser says: the value, or what would have been right.
pub(super) type Parsed<T> = Result<T, String>;

/// Hands out checked values and remembers problems.
pub(super) struct Reader {
    raw: RawConfig,
    bad: BTreeSet<&'static str>,
    settings: Vec<Setting>,
}

// ===== impl Reader =====

impl Reader {
    pub(super) fn new(sources: &Sources) -> Reader {
        let mut raw = RawConfig::layer(sources);
        raw.problems.sort_by_key(|problem| match &problem.origin {
            Origin::File { line, .. } => *line,
            _ => usize::MAX,
        });
        Reader { raw, bad: BTreeSet::new(), settings: Vec::new() }
    }

    /// The value of a key, or the default when nobody set it or it is bad.
    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        default: Default<T>,
        parse: impl Fn(&Raw) -> Parsed<T>,
        show: impl Fn(&T) -> String,
    ) -> T {
        debug_assert!(keys::find(key).is_some(), "{key} is not in the table of keys");
        let Default { value: default, reason } = default;
        let mut origin = Origin::Default(reason);
        let mut value = default;
        if let Some(given) = self.raw.given.get(key) {
            match parse(&given.raw) {
                Ok(parsed) => {
                    value = parsed;
                    origin = given.origin.clone();
                }
                Err(message) => {
                    self.bad.insert(key);
                    let problem = Problem {
                        key: key.to_owned(),
                        value: Some(given.written.clone()),
                        origin: given.origin.clone(),
                        message,
                    };
                    self.raw.problems.push(problem);
                }
            }
        }
        self.settings.push(Setting { key, value: show(&value), origin });
        value
    }

    /// Whether somebody set the key.
    pub(super) fn is_given(&self, key: &str) -> bool {
        self.raw.given.contains_key(key)
    }

    /// Demands that two keys fit together. Silent when one of them is bad by itself.
    pub(super) fn demand(
        &mut self,
        fits: bool,
        key: &'static str,
        other: &'static str,
        rule: &str,
    ) {
        if fits || self.bad.contains(key) || self.bad.contains(other) {
            return;
        }
        let find = |name: &str| self.settings.iter().find(|setting| setting.key == name);
        let (Some(setting), Some(other)) = (find(key), find(other)) else { return };
        let problem = Problem {
            key: key.to_owned(),
            value: Some(setting.value.clone()),
            origin: setting.origin.clone(),
            message: format!("{rule} {} = {} ({})", other.key, other.value, other.origin),
        };
        self.bad.insert(key);
        self.raw.problems.push(problem);
    }

    /// The settings, or the problems if there are any.
    pub(super) fn finish(mut self) -> Result<Vec<Setting>, Problems> {
        if !self.raw.problems.is_empty() {
            return Err(Problems(self.raw.problems));
        }
        let position =
            |name: &str| keys::KEYS.iter().position(|key| key.name == name).unwrap_or(usize::MAX);
        self.settings.sort_by_key(|setting| position(setting.key));
        Ok(self.settings)
    }
}

/// A default and, where it was worked out, from what.
pub(super) struct Default<T> {
    value: T,
    reason: Option<String>,
}

/// A default that is a constant.
pub(super) fn fixed<T>(value: T) -> Default<T> {
    Default { value, reason: None }
}

/// A default that follows from something.
pub(super) fn because<T>(value: T, reason: impl Into<String>) -> Default<T> {
    Default { value, reason: Some(reason.into()) }
}

// ===== parsers =====

/// A whole number in the range.
pub(super) fn integer(range: RangeInclusive<u64>) -> impl Fn(&Raw) -> Parsed<u64> {
    move |raw| {
        let number = match raw {
            Raw::Integer(number) => number.and_then(|number| u64::try_from(number).ok()),
            // The same digits and separators that TOML takes.
            Raw::Untyped(text) if text.starts_with(|first: char| first.is_ascii_digit()) => {
                text.replace('_', "").parse().ok()
            }
            _ => None,
        };
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| format!("a whole number from {} to {}", range.start(), range.end()))
    }
}

/// `true` or `false`.
pub(super) fn boolean(raw: &Raw) -> Parsed<bool> {
    match raw {
        Raw::Boolean(value) => Ok(*value),
        Raw::Untyped(text) if text == "true" => Ok(true),
        Raw::Untyped(text) if text == "false" => Ok(false),
        _ => Err("true or false".to_owned()),
    }
}

/// Text that is not empty.
pub(super) fn text<'a>(raw: &'a Raw, what: &str) -> Parsed<&'a str> {
    match raw {
        Raw::Text(text) | Raw::Untyped(text) if !text.trim().is_empty() => Ok(text),
        Raw::Other(kind) => Err(format!("{what}, not {kind}")),
        _ => Err(what.to_owned()),
    }
}

/// Texts: a TOML array of strings, or, in a variable, names with commas between them.
pub(super) fn list(raw: &Raw, what: &str) -> Parsed<Vec<String>> {
    let items: Vec<String> = match raw {
        Raw::List(items) => items
            .iter()
            .map(|item| match item {
                Raw::Text(text) => Ok(text.trim().to_owned()),
                _ => Err(what.to_owned()),
            })
            .collect::<Parsed<_>>()?,
        Raw::Untyped(text) => text.split(',').map(|item| item.trim().to_owned()).collect(),
        _ => return Err(what.to_owned()),
    };
    if items.is_empty() || items.iter().any(String::is_empty) {
        return Err(what.to_owned());
    }
    let distinct: BTreeSet<&String> = items.iter().collect();
    if distinct.len() < items.len() {
        return Err(format!("{what}, each of them once"));
    }
    Ok(items)
}

/// One of a few words.
pub(super) fn one_of<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&Raw) -> Parsed<T> {
    move |raw| {
        let known = || words.iter().map(|(word, _)| *word);
        let expected = || format!("one of {}", known().collect::<Vec<_>>().join(", "));
        let text = text(raw, &expected())?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        Err(match keys::nearest(text, known()) {
            Some(meant) => format!("{}; did you mean {meant}?", expected()),
            None => expected(),
        })
    }
}
