//! A scenario as it is written: what serde can check, and where a key that it does not know stands.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use crate::nearest::hint;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scenario {
    pub(super) name: String,
    #[serde(default)]
    pub(super) description: String,
    #[serde(default)]
    pub(super) seed: u64,
    pub(super) bucket_ms: Option<u64>,
    pub(super) coalesce_us: Option<i64>,
    pub(super) target: Target,
    #[serde(default)]
    pub(super) capacity: Capacity,
    #[serde(default)]
    pub(super) client: Vec<Client>,
    #[serde(default)]
    pub(super) phase: Vec<Phase>,
    #[serde(default)]
    pub(super) probe: Vec<Probe>,
    #[serde(default)]
    pub(super) expect: Vec<Expect>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    pub(super) model: String,
    pub(super) version: Option<String>,
    pub(super) protocol: Option<String>,
    pub(super) encoding: Option<String>,
    pub(super) case: Option<String>,
    #[serde(default)]
    pub(super) input: Vec<Input>,
    pub(super) rows: Option<i64>,
    pub(super) dynamic: Option<i64>,
    pub(super) fill: Option<String>,
    pub(super) give_up_s: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    pub(super) name: String,
    pub(super) datatype: String,
    pub(super) shape: Vec<i64>,
    pub(super) fill: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Capacity {
    pub(super) connections: Option<i64>,
    pub(super) seconds: Option<f64>,
    #[serde(default)]
    pub(super) again: bool,
    pub(super) rate: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Client {
    pub(super) name: String,
    pub(super) count: Option<i64>,
    pub(super) key_header: Option<String>,
    pub(super) class: Option<String>,
    pub(super) deadline_ms: Option<i64>,
    pub(super) max_outstanding: Option<i64>,
    pub(super) retries: Option<i64>,
    pub(super) backoff_ms: Option<i64>,
    pub(super) abandon_after_ms: Option<i64>,
    pub(super) timeout_ms: Option<i64>,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Phase {
    pub(super) name: String,
    pub(super) seconds: f64,
    #[serde(default)]
    pub(super) arrivals: BTreeMap<String, Arrivals>,
    pub(super) recovery: Option<Recovery>,
}

/// Every kind in one: a tagged enum would lose the line of a mistake in it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Arrivals {
    pub(super) kind: String,
    pub(super) rate: Option<Rate>,
    pub(super) from: Option<Rate>,
    pub(super) to: Option<Rate>,
    pub(super) steps: Option<i64>,
    pub(super) base: Option<Rate>,
    pub(super) peak: Option<Rate>,
    pub(super) at_s: Option<f64>,
    pub(super) for_s: Option<f64>,
    pub(super) random: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Recovery {
    pub(super) baseline: String,
    pub(super) factor: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Probe {
    pub(super) name: String,
    pub(super) path: Option<String>,
    pub(super) period_ms: Option<i64>,
    pub(super) timeout_ms: Option<i64>,
    pub(super) failure_threshold: Option<i64>,
    pub(super) success_threshold: Option<i64>,
    pub(super) initial_delay_ms: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expect {
    pub(super) figure: String,
    pub(super) at_most: Option<NumberOrText>,
    pub(super) at_least: Option<NumberOrText>,
    pub(super) equals: Option<NumberOrText>,
}

/// A rate: per second, or a multiple of capacity.
pub(super) type Rate = NumberOrText;

/// `5`, `0.5` or `"0.5x"`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum NumberOrText {
    Number(f64),
    Text(String),
}

impl<'de> Deserialize<'de> for NumberOrText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = NumberOrText;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number or a string")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<NumberOrText, E> {
                Ok(NumberOrText::Number(value as f64))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<NumberOrText, E> {
                Ok(NumberOrText::Number(value))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<NumberOrText, E> {
                Ok(NumberOrText::Text(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Reads the text; says which line of `file` is wrong, and which key was probably meant.
pub(super) fn parse(file: &str, text: &str) -> Result<Scenario, String> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let line = error.span().map_or_else(String::new, |span| {
            let before = text.get(..span.start).unwrap_or(text);
            format!(" line {}", before.matches('\n').count() + 1)
        });
        format!("{file}{line}: {}", explained(error.message()))
    })
}

/// serde's words for an unknown key, with the nearest of those it knows.
fn explained(message: &str) -> String {
    let Some(rest) = message.strip_prefix("unknown field `") else {
        return message.replace('\n', " ");
    };
    let mut quoted = rest.split('`').step_by(2);
    let key = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.filter(|word| !word.is_empty()).collect();
    format!(
        "there is no key {key} here{}; known are {}",
        hint(key, known.iter().copied()),
        known.join(", ")
    )
}
