//! Taking checked values out of a TOML table, noting every problem on the way.

use crate::clip::clipped;
use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use toml::Value;

/// What is wrong with a file so far.
#[derive(Debug, Default)]
pub(super) struct Problems(RefCell<Vec<String>>);

impl Problems {
    pub(super) fn into_list(self) -> Vec<String> {
        self.0.into_inner()
    }
}

/// A table out of which keys are taken; what is left in the end is not known.
#[derive(Debug)]
pub(super) struct Table<'p> {
    values: toml::Table,
    /// What stands before a key in messages: empty, or for example `session.`.
    prefix: String,
    known: Vec<String>,
    problems: &'p Problems,
}

impl<'p> Table<'p> {
    pub(super) fn new(values: toml::Table, prefix: &str, problems: &'p Problems) -> Self {
        Table { values, prefix: prefix.to_owned(), known: Vec::new(), problems }
    }

    pub(super) fn problem(&self, sentence: String) {
        self.problems.0.borrow_mut().push(sentence);
    }

    pub(super) fn keys(&self) -> Vec<String> {
        self.values.keys().cloned().collect()
    }

    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.known.push(key.to_owned());
        self.values.remove(key)
    }

    pub(super) fn string(&mut self, key: &str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            other => self.wrong(key, "a string", &other),
        }
    }

    /// A word that the type knows.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&mut self, key: &str) -> Option<T> {
        match self.string(key)?.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(format!("{}{key}: {error}", self.prefix));
                None
            }
        }
    }

    pub(super) fn strings(&mut self, key: &str) -> Option<Vec<String>> {
        match self.take(key)? {
            Value::Array(list) if list.iter().all(Value::is_str) => {
                Some(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            }
            other => self.wrong(key, "a list of strings", &other),
        }
    }

    pub(super) fn integer(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.take(key)?;
        let number = value.as_integer();
        match number.and_then(|number| u64::try_from(number).ok()) {
            Some(number) if range.contains(&number) => Some(number),
            _ => {
                let right = format!("an integer from {} to {}", range.start(), range.end());
                self.wrong(key, &right, &value)
            }
        }
    }

    pub(super) fn count(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<usize> {
        self.integer(key, range).and_then(|number| usize::try_from(number).ok())
    }

    pub(super) fn boolean(&mut self, key: &str) -> Option<bool> {
        match self.take(key)? {
            Value::Boolean(value) => Some(value),
            other => self.wrong(key, "true or false", &other),
        }
    }

    pub(super) fn table(&mut self, key: &str) -> Option<Table<'p>> {
        match self.take(key)? {
            Value::Table(values) => {
                let prefix = format!("{}{key}.", self.prefix);
                Some(Table::new(values, &prefix, self.problems))
            }
            other => self.wrong(key, "a table", &other),
        }
    }

    /// Notes every key that nobody took.
    pub(super) fn finish(self) {
        for key in self.values.keys() {
            let (prefix, key, known) = (&self.prefix, clipped(key), self.known.join(", "));
            self.problem(format!("{prefix}{key} is not a known key; known are {known}"));
        }
    }

    /// Notes that `key` should be something else.
    pub(super) fn wrong<T>(&self, key: &str, right: &str, found: &Value) -> Option<T> {
        let found = match found {
            Value::String(_) => "a string".to_owned(),
            Value::Integer(number) if right.starts_with("an integer") => number.to_string(),
            Value::Integer(_) => "an integer".to_owned(),
            Value::Float(_) => "a float".to_owned(),
            Value::Boolean(_) => "a boolean".to_owned(),
            Value::Datetime(_) => "a date".to_owned(),
            Value::Array(_) => "another list".to_owned(),
            Value::Table(_) => "a table".to_owned(),
        };
        self.problem(format!("{}{key} must be {right}, found {found}", self.prefix));
        None
    }
}
