//! Table `[batching.padding]`: what is put behind an input that is shorter than its neighbours in a run.

use super::table::Table;
use crate::datatype::Datatype;
use bytes::Bytes;
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::fmt;

/// An element, as somebody wrote it who may not know the datatype.
#[derive(Clone, Debug, PartialEq)]
pub enum PadValue {
    /// For every datatype but `BYTES`.
    Integer(i64),
    /// For floating-point datatypes; never NaN.
    Float(f64),
    /// For `BYTES`.
    Text(String),
}

impl fmt::Display for PadValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PadValue::Integer(number) => write!(f, "{number}"),
            PadValue::Float(number) => write!(f, "{number:?}"),
            PadValue::Text(text) => write!(f, "{text:?}"),
        }
    }
}

impl PadValue {
    /// The value as one element of `datatype`: little-endian, or the text itself. A floating-point one may be rounded.
    ///
    /// # Errors
    /// What would be right, when the value does not fit.
    pub fn element(&self, datatype: Datatype) -> Result<Bytes, String> {
        macro_rules! integer {
            ($type:ty) => {
                self.whole()
                    .and_then(|number| <$type>::try_from(number).ok())
                    .map(|number| Bytes::copy_from_slice(&number.to_le_bytes()))
                    .ok_or_else(|| format!("an integer from {} to {}", <$type>::MIN, <$type>::MAX))
            };
        }
        // What becomes infinite on the way did not fit.
        let float = |bytes: &dyn Fn(f64) -> (f64, Bytes)| {
            let number = self.number().ok_or("a number")?;
            let (became, bytes) = bytes(number);
            if became.is_finite() || number.is_infinite() {
                Ok(bytes)
            } else {
                Err(format!("a number that {datatype} can hold"))
            }
        };
        match datatype {
            Datatype::Bool => match self.whole() {
                Some(bit @ (0 | 1)) => Ok(Bytes::copy_from_slice(&[u8::from(bit == 1)])),
                _ => Err("0 or 1".to_owned()),
            },
            Datatype::Uint8 => integer!(u8),
            Datatype::Uint16 => integer!(u16),
            Datatype::Uint32 => integer!(u32),
            Datatype::Uint64 => integer!(u64),
            Datatype::Int8 => integer!(i8),
            Datatype::Int16 => integer!(i16),
            Datatype::Int32 => integer!(i32),
            Datatype::Int64 => integer!(i64),
            Datatype::Fp16 => float(&|number| {
                let number = f16::from_f64(number);
                (number.to_f64(), Bytes::copy_from_slice(&number.to_le_bytes()))
            }),
            Datatype::Bf16 => float(&|number| {
                let number = bf16::from_f64(number);
                (number.to_f64(), Bytes::copy_from_slice(&number.to_le_bytes()))
            }),
            Datatype::Fp32 => float(&|number| {
                let number = number as f32;
                (f64::from(number), Bytes::copy_from_slice(&number.to_le_bytes()))
            }),
            Datatype::Fp64 => {
                float(&|number| (number, Bytes::copy_from_slice(&number.to_le_bytes())))
            }
            Datatype::Bytes => match self {
                // As `Contract::accept` has it: ONNX Runtime would cut there.
                PadValue::Text(text) if !text.contains('\0') => {
                    Ok(Bytes::copy_from_slice(text.as_bytes()))
                }
                _ => Err("a string without NUL".to_owned()),
            },
        }
    }

    /// The number, if it is a whole one.
    fn whole(&self) -> Option<i64> {
        match self {
            PadValue::Integer(number) => Some(*number),
            // Within 2^53 every whole number is exact, and nobody pads with a larger one written as 1e17.
            PadValue::Float(number) if number.fract() == 0.0 && number.abs() < 9e15 => {
                Some(*number as i64)
            }
            _ => None,
        }
    }

    fn number(&self) -> Option<f64> {
        match self {
            PadValue::Integer(number) => Some(*number as f64),
            PadValue::Float(number) => Some(*number),
            PadValue::Text(_) => None,
        }
    }
}

/// The keys are names of inputs, so none is unknown here; the contract is not known yet.
pub(super) fn read(mut table: Table<'_>) -> BTreeMap<String, PadValue> {
    let inputs = table.keys();
    inputs
        .into_iter()
        .filter_map(|input| {
            let value = match table.take(&input)? {
                toml::Value::Integer(number) => PadValue::Integer(number),
                toml::Value::Float(number) if !number.is_nan() => PadValue::Float(number),
                toml::Value::String(text) => PadValue::Text(text),
                other => return table.wrong(&input, "a number, or a string for BYTES", &other),
            };
            Some((input, value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_fits_its_datatype_or_the_sentence_says_what_would() {
        use PadValue::{Float, Integer, Text};
        let text = |text: &str| Text(text.to_owned());
        type Case = (PadValue, Datatype, Result<&'static [u8], &'static str>);
        let table: [Case; 22] = [
            (Integer(0), Datatype::Int64, Ok(&[0; 8])),
            (Integer(-1), Datatype::Int64, Ok(&[255; 8])),
            (Integer(-1), Datatype::Uint64, Err("an integer from 0 to 18446744073709551615")),
            (Integer(128), Datatype::Int8, Err("an integer from -128 to 127")),
            (Integer(127), Datatype::Int8, Ok(&[127])),
            (Integer(256), Datatype::Uint8, Err("an integer from 0 to 255")),
            (Float(2.0), Datatype::Uint16, Ok(&[2, 0])),
            (Float(0.5), Datatype::Int32, Err("an integer from -2147483648 to 2147483647")),
            (Float(1e300), Datatype::Uint32, Err("an integer from 0 to 4294967295")),
            (text("0"), Datatype::Int16, Err("an integer from -32768 to 32767")),
            (Integer(1), Datatype::Bool, Ok(&[1])),
            (Integer(2), Datatype::Bool, Err("0 or 1")),
            (Integer(1), Datatype::Fp32, Ok(&[0, 0, 128, 63])),
            (Float(-0.5), Datatype::Fp64, Ok(&[0, 0, 0, 0, 0, 0, 224, 191])),
            (Float(1.0), Datatype::Fp16, Ok(&[0, 60])),
            (Float(1.0), Datatype::Bf16, Ok(&[128, 63])),
            (Integer(70_000), Datatype::Fp16, Err("a number that FP16 can hold")),
            (Float(1e39), Datatype::Fp32, Err("a number that FP32 can hold")),
            (Float(f64::NEG_INFINITY), Datatype::Fp16, Ok(&[0, 252])),
            (text("0"), Datatype::Fp32, Err("a number")),
            (text("[PAD]"), Datatype::Bytes, Ok(b"[PAD]")),
            (Integer(0), Datatype::Bytes, Err("a string without NUL")),
        ];
        for (value, datatype, expected) in table {
            let element = value.element(datatype);
            let found = element.as_ref().map(|bytes| &bytes[..]).map_err(String::as_str);
            assert_eq!(found, expected, "{value} as {datatype}");
        }
        assert!(text("a\0b").element(Datatype::Bytes).is_err());
    }
}
