//! What is wrong with a configuration, in words that let one mend it.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it. With the reason, where the default was worked out from something.
    Default(Option<String>),
    /// The configuration file.
    File {
        /// Its path, as given.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// A variable of the environment.
    Environment(String),
    /// A flag or argument of the command line.
    Flag(&'static str),
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Key, or variable, or flag.
    pub key: String,
    /// The value as it was given; none when the key itself is the problem.
    pub value: Option<String>,
    /// Where it came from.
    pub origin: Origin,
    /// With a value: what would be right, read after "expected". Without: what is wrong.
    pub message: String,
}

/// Everything that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(
    /// At least one, in the order in which they were met.
    pub Vec<Problem>,
);

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default(None) => f.write_str("default"),
            Origin::Default(Some(reason)) => write!(f, "default: {reason}"),
            Origin::File { path, line } => write!(f, "{} line {line}", path.display()),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { key, value, origin, message } = self;
        match value {
            Some(value) => write!(f, "{key} = {value} ({origin}): expected {message}"),
            None => write!(f, "{key} ({origin}): {message}"),
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [problem] => write!(f, "the configuration has a problem: {problem}"),
            problems => {
                write!(f, "the configuration has {} problems:", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for Problems {}
