//! Parameters of a request: the reserved ones by name, the others as they came.

use super::error::Problem;
use super::trail::Trail;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// Parameters of one inference request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    /// `timeout`: microseconds for waiting and running together. 0 means none and becomes `None`.
    pub timeout_us: Option<u64>,
    /// `priority`: 1 is the most urgent. 0 means the model's default and becomes `None`.
    pub priority: Option<u64>,
    /// `binary_data_output`: the form of outputs that do not say it themselves.
    pub binary_data_output: Option<bool>,
    /// `sequence_id`: the sequence that the request belongs to. 0 and the empty text mean none.
    pub sequence_id: Option<SequenceId>,
    /// `sequence_start`.
    pub sequence_start: bool,
    /// `sequence_end`.
    pub sequence_end: bool,
    /// Everything else.
    pub custom: BTreeMap<String, ParameterValue>,
}

/// Name of a sequence of requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SequenceId {
    /// As a number.
    Number(u64),
    /// As text.
    Text(String),
}

/// Value of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum ParameterValue {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number that fits 64 signed bits.
    Signed(i64),
    /// A whole number beyond them.
    Unsigned(u64),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// Text.
    Text(String),
}

impl Serialize for ParameterValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            ParameterValue::Bool(value) => serializer.serialize_bool(*value),
            ParameterValue::Signed(value) => serializer.serialize_i64(*value),
            ParameterValue::Unsigned(value) => serializer.serialize_u64(*value),
            ParameterValue::Float(value) => serializer.serialize_f64(*value),
            ParameterValue::Text(value) => serializer.serialize_str(value),
        }
    }
}

/// Text borrowed from the body where it holds no escapes.
pub(super) struct Text<'de>(pub(super) Cow<'de, str>);

/// Seed of [`Text`], with the words for "expected …".
pub(super) struct TextSeed(pub(super) &'static str);

impl<'de> DeserializeSeed<'de> for TextSeed {
    type Value = Text<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Text<'de>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for TextSeed {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }
}

/// A scalar value; `None` for `null`, which counts as absent.
pub(super) struct ScalarSeed(pub(super) &'static str);

impl<'de> DeserializeSeed<'de> for ScalarSeed {
    type Value = Option<ParameterValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ScalarSeed {
    type Value = Option<ParameterValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(ParameterValue::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Some(ParameterValue::Signed(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        let signed = i64::try_from(value).map(ParameterValue::Signed);
        Ok(Some(signed.unwrap_or(ParameterValue::Unsigned(value))))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Some(ParameterValue::Float(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Some(ParameterValue::Text(value.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// A whole number ≥ 0, or nothing for `null`.
pub(super) struct WholeSeed(pub(super) &'static str);

impl<'de> DeserializeSeed<'de> for WholeSeed {
    type Value = Option<u64>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for WholeSeed {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Some(value))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// `true`, `false`, or nothing for `null`.
pub(super) struct FlagSeed;

impl<'de> DeserializeSeed<'de> for FlagSeed {
    type Value = Option<bool>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for FlagSeed {
    type Value = Option<bool>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true or false")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(value))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// Reads the `parameters` member of a request.
pub(super) struct ParametersSeed<'t> {
    pub(super) trail: &'t Trail,
    pub(super) max_parameters: usize,
}

impl<'de> DeserializeSeed<'de> for ParametersSeed<'_> {
    type Value = Parameters;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Parameters, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ParametersSeed<'_> {
    type Value = Parameters;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of parameters")
    }

    fn visit_unit<E>(self) -> Result<Parameters, E> {
        Ok(Parameters::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameters, A::Error> {
        let mut parameters = Parameters::default();
        let mut seen = ReservedSeen::default();
        while let Some(Text(name)) = map.next_key_seed(TextSeed("a parameter name"))? {
            let read = read_parameter(&mut map, &name, &mut parameters, &mut seen, &self);
            if let Err(error) = read {
                return Err(self.trail.under(error, name.into_owned()));
            }
        }
        Ok(parameters)
    }
}

/// One bit per reserved name that was there.
#[derive(Default)]
struct ReservedSeen(u8);

impl ReservedSeen {
    fn first(&mut self, bit: u8) -> bool {
        let first = self.0 & (1 << bit) == 0;
        self.0 |= 1 << bit;
        first
    }
}

fn read_parameter<'de, A: MapAccess<'de>>(
    map: &mut A,
    name: &str,
    parameters: &mut Parameters,
    seen: &mut ReservedSeen,
    seed: &ParametersSeed<'_>,
) -> Result<(), A::Error> {
    let trail = seed.trail;
    let reserved = match name {
        "timeout" => 0,
        "priority" => 1,
        "binary_data_output" => 2,
        "sequence_id" => 3,
        "sequence_start" => 4,
        "sequence_end" => 5,
        _ => return read_custom(map, name, parameters, seed),
    };
    if !seen.first(reserved) {
        return Err(trail.fail(Problem::Repeated));
    }
    match reserved {
        0 => {
            let timeout = map.next_value_seed(WholeSeed("a whole number of microseconds"))?;
            parameters.timeout_us = timeout.filter(|timeout| *timeout > 0);
        }
        1 => {
            let priority =
                map.next_value_seed(WholeSeed("a whole number, 1 is the most urgent"))?;
            parameters.priority = priority.filter(|priority| *priority > 0);
        }
        2 => parameters.binary_data_output = map.next_value_seed(FlagSeed)?,
        3 => {
            parameters.sequence_id = sequence_id(map.next_value_seed(ScalarSeed(SEQUENCE_ID))?)?;
        }
        4 => parameters.sequence_start = map.next_value_seed(FlagSeed)?.unwrap_or(false),
        _ => parameters.sequence_end = map.next_value_seed(FlagSeed)?.unwrap_or(false),
    }
    Ok(())
}

const SEQUENCE_ID: &str = "a whole number or text";

fn sequence_id<E: serde::de::Error>(
    value: Option<ParameterValue>,
) -> Result<Option<SequenceId>, E> {
    match value {
        None | Some(ParameterValue::Signed(0)) => Ok(None),
        Some(ParameterValue::Text(text)) if text.is_empty() => Ok(None),
        Some(ParameterValue::Text(text)) => Ok(Some(SequenceId::Text(text))),
        Some(ParameterValue::Unsigned(number)) => Ok(Some(SequenceId::Number(number))),
        Some(ParameterValue::Signed(number)) => u64::try_from(number)
            .map(|number| Some(SequenceId::Number(number)))
            .map_err(|_| E::invalid_type(serde::de::Unexpected::Signed(number), &SEQUENCE_ID)),
        Some(ParameterValue::Bool(value)) => {
            Err(E::invalid_type(serde::de::Unexpected::Bool(value), &SEQUENCE_ID))
        }
        Some(ParameterValue::Float(value)) => {
            Err(E::invalid_type(serde::de::Unexpected::Float(value), &SEQUENCE_ID))
        }
    }
}

fn read_custom<'de, A: MapAccess<'de>>(
    map: &mut A,
    name: &str,
    parameters: &mut Parameters,
    seed: &ParametersSeed<'_>,
) -> Result<(), A::Error> {
    if name.starts_with("triton_") {
        return Err(seed.trail.fail(Problem::ReservedParameter));
    }
    let Some(value) = map.next_value_seed(ScalarSeed("text, a number, true or false"))? else {
        return Ok(());
    };
    if parameters.custom.len() >= seed.max_parameters {
        return Err(seed
            .trail
            .fail(Problem::TooMany { limit: seed.max_parameters, what: "parameters" }));
    }
    match parameters.custom.insert(name.to_owned(), value) {
        None => Ok(()),
        Some(_) => Err(seed.trail.fail(Problem::Repeated)),
    }
}
