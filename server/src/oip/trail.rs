//! Where in the JSON a parse failed.
//!
//! serde gives an error a line and a column, a client needs the field. Each level of the parser adds its own
//! segment while the error travels outwards, so a parse that succeeds pays nothing for it.

use super::error::{CodecError, Problem};
use balm_inference::clip::clipped;
use serde_json::error::Category;
use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::Write as _;

/// The path of a failure, collected from the inside out.
#[derive(Default)]
pub(super) struct Trail {
    failure: RefCell<Failure>,
}

#[derive(Default)]
struct Failure {
    segments: Vec<Segment>,
    problem: Option<Problem>,
}

enum Segment {
    Member(Cow<'static, str>),
    Index(usize),
}

impl Trail {
    /// Records what is wrong here, and gives the error to return.
    #[cold]
    pub(super) fn fail<E: serde::de::Error>(&self, problem: Problem) -> E {
        self.failure.borrow_mut().problem = Some(problem);
        E::custom("")
    }

    /// The error of a parse within the parse, of `source`, as an error of the outer one.
    #[cold]
    pub(super) fn adopt<E: serde::de::Error>(&self, error: &serde_json::Error, source: &[u8]) -> E {
        self.failure.borrow_mut().problem.get_or_insert_with(|| translate(error, source));
        E::custom("")
    }

    /// The error on its way out of a member called `name`.
    #[cold]
    pub(super) fn under<E>(&self, error: E, name: impl Into<Cow<'static, str>>) -> E {
        self.failure.borrow_mut().segments.push(Segment::Member(name.into()));
        error
    }

    /// The error on its way out of element `index` of an array.
    #[cold]
    pub(super) fn index<E>(&self, error: E, index: usize) -> E {
        self.failure.borrow_mut().segments.push(Segment::Index(index));
        error
    }

    /// The finished error. `field` is the path of what was parsed, `source` its text.
    #[cold]
    pub(super) fn error(self, field: &str, error: &serde_json::Error, source: &[u8]) -> CodecError {
        let Failure { segments, problem } = self.failure.into_inner();
        let mut path = field.to_owned();
        for segment in segments.iter().rev() {
            // Writing to a String cannot fail.
            let _ = match segment {
                Segment::Index(index) => write!(path, "[{index}]"),
                Segment::Member(name) if path.is_empty() => write!(path, "{}", clipped(name)),
                Segment::Member(name) => write!(path, ".{}", clipped(name)),
            };
        }
        CodecError::new(path, problem.unwrap_or_else(|| translate(error, source)))
    }
}

fn translate(error: &serde_json::Error, source: &[u8]) -> Problem {
    let text = error.to_string();
    match error.classify() {
        Category::Data => WrongTypeText(&text).into(),
        _ if text.starts_with("number out of range") => {
            Problem::NumberTooLarge { expected: "the datatype" }
        }
        _ if text.starts_with("trailing characters") => {
            Problem::TrailingBytes { detail: clipped(&text) }
        }
        _ if is_nan_literal(error, source) => Problem::NanLiteral,
        _ => Problem::NotJson { detail: clipped(&text) },
    }
}

struct WrongTypeText<'a>(&'a str);

impl From<WrongTypeText<'_>> for Problem {
    /// "invalid type: map, expected a string at line 1 column 9" → "found map, expected a string".
    fn from(WrongTypeText(text): WrongTypeText<'_>) -> Problem {
        let text = text.rsplit_once(" at line ").map_or(text, |(text, _)| text);
        let text = text
            .strip_prefix("invalid type: ")
            .or(text.strip_prefix("invalid value: "))
            .unwrap_or(text);
        // The value comes first and may be long; what was expected comes last and must not be cut.
        let detail = match text.rsplit_once(", expected ") {
            Some((found, expected)) => {
                let found = match found {
                    "sequence" => "an array",
                    "map" => "an object",
                    found => found,
                };
                format!("found {}, expected {expected}", clipped(found))
            }
            None => clipped(text),
        };
        Problem::WrongType { detail }
    }
}

/// Whether the parser stopped at `NaN`, `Infinity` or `-Infinity`, which Python's `json` writes by default.
fn is_nan_literal(error: &serde_json::Error, source: &[u8]) -> bool {
    let line_start = match error.line() {
        0 | 1 => 0,
        line => {
            let mut newlines = source.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
            newlines.nth(line - 2).map_or(source.len(), |(at, _)| at + 1)
        }
    };
    let stop = line_start.saturating_add(error.column()).min(source.len());
    // The column counts the byte that was looked at, or the one before it.
    (stop.saturating_sub(2)..=stop).any(|start| {
        let rest = &source[start..];
        [&b"NaN"[..], b"Infinity", b"-Infinity"].iter().any(|literal| rest.starts_with(literal))
    })
}
