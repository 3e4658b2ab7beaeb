//! Golden requests: inputs whose right outputs are known, kept beside the model.
//!
//! ```json
//! {"cases": [{"name": "setosa",
//!             "inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [5.1, 3.5, 1.4, 0.2]}],
//!             "outputs": [{"name": "label", "datatype": "INT64", "shape": [1], "data": [0]}],
//!             "tolerance": 1e-5}]}
//! ```
//!
//! `data` is flat, row-major. FP16 and BF16 are written as numbers, BYTES as strings; `"NaN"`, `"Infinity"` and
//! `"-Infinity"` stand for what JSON has no number for.

mod compare;

pub use compare::{Mismatch, matches};

use crate::clip::clipped;
use crate::datatype::Datatype;
use crate::tensor::{NamedTensor, Tensor};
use bytes::Bytes;
use half::{bf16, f16};
use serde::Deserialize;
use serde_json::Value;

/// Tolerance of a case that gives none, relative and absolute.
pub const DEFAULT_TOLERANCE: f64 = 1e-5;

/// The largest golden file that is parsed, in bytes: 64 MiB.
pub const GOLDEN_BYTES_MAX: usize = 64 << 20;

/// The golden requests of a version.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Golden {
    /// At least one.
    pub cases: Vec<GoldenCase>,
}

/// One request and its right answer.
#[derive(Clone, Debug, PartialEq)]
pub struct GoldenCase {
    /// For messages.
    pub name: String,
    /// What is sent.
    pub inputs: Vec<NamedTensor>,
    /// What must come back; outputs that are not named here are not judged. At least one.
    pub outputs: Vec<NamedTensor>,
    /// Relative and absolute tolerance of floating-point elements.
    pub tolerance: f64,
}

/// A golden file that says nothing usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("golden requests: {0}")]
pub struct GoldenError(String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGolden {
    cases: Vec<RawCase>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCase {
    name: String,
    inputs: Vec<RawTensor>,
    outputs: Vec<RawTensor>,
    #[serde(default = "default_tolerance")]
    tolerance: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    name: String,
    datatype: String,
    shape: Vec<usize>,
    data: Vec<Value>,
}

fn default_tolerance() -> f64 {
    DEFAULT_TOLERANCE
}

impl Golden {
    /// Reads the text of a golden file.
    ///
    /// # Errors
    /// [`GoldenError`]: a sentence that names the case and the tensor.
    pub fn parse(text: &[u8]) -> Result<Self, GoldenError> {
        if text.len() > GOLDEN_BYTES_MAX {
            let problem = format!("{} bytes, at most {GOLDEN_BYTES_MAX} are read", text.len());
            return Err(GoldenError(problem));
        }
        let raw: RawGolden =
            serde_json::from_slice(text).map_err(|error| GoldenError(error.to_string()))?;
        if raw.cases.is_empty() {
            return Err(GoldenError("cases is empty, at least one is needed".to_owned()));
        }
        let cases: Result<Vec<GoldenCase>, String> = raw.cases.into_iter().map(case).collect();
        cases.map(|cases| Golden { cases }).map_err(GoldenError)
    }
}

impl GoldenCase {
    /// Judges the outputs of a run, given with their names in any order.
    ///
    /// # Errors
    /// [`Mismatch`], the first that is found.
    pub fn check(&self, found: &[NamedTensor]) -> Result<(), Mismatch> {
        self.outputs.iter().try_for_each(|expected| {
            match found.iter().find(|output| output.name == expected.name) {
                Some(output) => matches(expected, &output.tensor, self.tolerance),
                None => Err(Mismatch::Absent { output: expected.name.clone() }),
            }
        })
    }
}

fn case(raw: RawCase) -> Result<GoldenCase, String> {
    let name = clipped(&raw.name);
    if raw.outputs.is_empty() {
        return Err(format!("case {name:?} has no outputs, at least one is needed"));
    }
    if !raw.tolerance.is_finite() || raw.tolerance < 0.0 {
        return Err(format!("case {name:?}: tolerance must be a number of 0 or more"));
    }
    let tensors = |list: Vec<RawTensor>, kind: &str| {
        let mut tensors: Vec<NamedTensor> = Vec::with_capacity(list.len());
        for raw in list {
            let tensor_name = clipped(&raw.name);
            if tensors.iter().any(|tensor| tensor.name == raw.name) {
                return Err(format!("case {name:?}, {kind} {tensor_name:?}: appears twice"));
            }
            let tensor = tensor(raw)
                .map_err(|problem| format!("case {name:?}, {kind} {tensor_name:?}: {problem}"))?;
            tensors.push(tensor);
        }
        Ok(tensors)
    };
    Ok(GoldenCase {
        inputs: tensors(raw.inputs, "input")?,
        outputs: tensors(raw.outputs, "output")?,
        tolerance: raw.tolerance,
        name: raw.name,
    })
}

fn tensor(raw: RawTensor) -> Result<NamedTensor, String> {
    let datatype: Datatype = raw.datatype.parse().map_err(|error| format!("{error}"))?;
    let made = if datatype == Datatype::Bytes {
        let elements = raw.data.into_iter().enumerate().map(|(index, element)| match element {
            Value::String(text) => Ok(Bytes::from(text)),
            _ => Err(format!("element {index} is not a string, as BYTES needs")),
        });
        Tensor::strings(raw.shape, elements.collect::<Result<_, String>>()?)
    } else {
        let size = datatype.element_size().unwrap_or(1);
        let mut bytes = Vec::with_capacity(raw.data.len().saturating_mul(size));
        for (index, element) in raw.data.iter().enumerate() {
            push(&mut bytes, datatype, element)
                .ok_or_else(|| format!("element {index} does not fit {datatype}: {element}"))?;
        }
        Tensor::raw(datatype, raw.shape, Bytes::from(bytes))
    };
    let tensor = made.map_err(|error| error.to_string())?;
    Ok(NamedTensor { name: raw.name, tensor })
}

/// Puts an element behind `bytes`, little-endian; `None` when it does not fit.
fn push(bytes: &mut Vec<u8>, datatype: Datatype, element: &Value) -> Option<()> {
    match datatype {
        Datatype::Bool => bytes.push(match element {
            Value::Bool(value) => u8::from(*value),
            other => u8::try_from(other.as_u64().filter(|number| *number < 2)?).ok()?,
        }),
        Datatype::Uint8 => bytes.push(u8::try_from(element.as_u64()?).ok()?),
        Datatype::Uint16 => bytes.extend(u16::try_from(element.as_u64()?).ok()?.to_le_bytes()),
        Datatype::Uint32 => bytes.extend(u32::try_from(element.as_u64()?).ok()?.to_le_bytes()),
        Datatype::Uint64 => bytes.extend(element.as_u64()?.to_le_bytes()),
        Datatype::Int8 => bytes.extend(i8::try_from(element.as_i64()?).ok()?.to_le_bytes()),
        Datatype::Int16 => bytes.extend(i16::try_from(element.as_i64()?).ok()?.to_le_bytes()),
        Datatype::Int32 => bytes.extend(i32::try_from(element.as_i64()?).ok()?.to_le_bytes()),
        Datatype::Int64 => bytes.extend(element.as_i64()?.to_le_bytes()),
        Datatype::Fp16 => bytes.extend(f16::from_f64(float(element)?).to_le_bytes()),
        Datatype::Bf16 => bytes.extend(bf16::from_f64(float(element)?).to_le_bytes()),
        Datatype::Fp32 => bytes.extend((float(element)? as f32).to_le_bytes()),
        Datatype::Fp64 => bytes.extend(float(element)?.to_le_bytes()),
        Datatype::Bytes => return None,
    }
    Some(())
}

fn float(element: &Value) -> Option<f64> {
    match element {
        Value::Number(number) => number.as_f64(),
        Value::String(word) => match word.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(datatype: &str, shape: &str, data: &str) -> Result<Golden, GoldenError> {
        let text = format!(
            r#"{{"cases": [{{"name": "c", "inputs": [],
                "outputs": [{{"name": "y", "datatype": "{datatype}", "shape": {shape}, "data": {data}}}]}}]}}"#
        );
        Golden::parse(text.as_bytes())
    }

    #[test]
    fn every_datatype_is_read() {
        for datatype in Datatype::ALL {
            let data = match datatype {
                Datatype::Bytes => r#"["a", ""]"#,
                Datatype::Bool => "[true, 0]",
                _ => "[1, 0]",
            };
            let golden = golden(datatype.name(), "[2, 1]", data).unwrap();
            let case = &golden.cases[0];
            let output = &case.outputs[0];
            assert_eq!(output.tensor.datatype(), datatype);
            assert_eq!(output.tensor.element_count(), 2);
            assert_eq!(case.tolerance, DEFAULT_TOLERANCE);
            assert_eq!(case.check(&case.outputs), Ok(()));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            (golden("FP31", "[1]", "[1]"), "case \"c\", output \"y\": unknown datatype"),
            (golden("INT8", "[1]", "[128]"), "element 0 does not fit INT8: 128"),
            (golden("UINT64", "[2]", "[0, -1]"), "element 1 does not fit UINT64: -1"),
            (golden("FP32", "[1]", "[\"x\"]"), "element 0 does not fit FP32"),
            (golden("INT32", "[1]", "[1.5]"), "element 0 does not fit INT32"),
            (golden("BYTES", "[1]", "[1]"), "element 0 is not a string"),
            (golden("FP32", "[2, 2]", "[1]"), "needs 16 bytes, found 4"),
            (golden("FP32", "[18446744073709551615, 2]", "[1]"), "more elements than"),
            (golden("FP32", "[-1]", "[1]"), "invalid value"),
            (Golden::parse(b"{}"), "missing field `cases`"),
            (Golden::parse(br#"{"cases": []}"#), "cases is empty"),
            (Golden::parse(b"x"), "expected value"),
            (
                Golden::parse(br#"{"cases": [{"name": "c", "inputs": [], "outputs": []}]}"#),
                "case \"c\" has no outputs",
            ),
            (Golden::parse(br#"{"cases": [], "case": 1}"#), "unknown field `case`"),
        ];
        for (result, expected) in table {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(expected), "{message:?} should hold {expected:?}");
        }
    }

    #[test]
    fn an_output_that_is_absent_is_a_mismatch() {
        let golden = golden("FP32", "[1]", "[\"NaN\"]").unwrap();
        let message = golden.cases[0].check(&[]).unwrap_err().to_string();
        assert_eq!(message, "output \"y\" is absent");
    }
}
