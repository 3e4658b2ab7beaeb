//! Whether an output is the right one.

use crate::clip::clipped;
use crate::datatype::Datatype;
use crate::tensor::{NamedTensor, Tensor, TensorData};
use bytes::Bytes;
use half::{bf16, f16};

/// An output that is not the expected one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The run gave no such output.
    #[error("output {output:?} is absent")]
    Absent {
        /// Its name.
        output: String,
    },
    /// Another element type.
    #[error("output {output:?}: datatype is {found}, expected {expected}")]
    Datatype {
        /// Name of the output.
        output: String,
        /// As the golden file has it.
        expected: Datatype,
        /// As the run gave it.
        found: Datatype,
    },
    /// Another shape.
    #[error("output {output:?}: shape is {found:?}, expected {expected:?}")]
    Shape {
        /// Name of the output.
        output: String,
        /// As the golden file has it.
        expected: Vec<usize>,
        /// As the run gave it.
        found: Vec<usize>,
    },
    /// Another element.
    #[error("output {output:?}, element {index}: found {found}, expected {expected}")]
    Element {
        /// Name of the output.
        output: String,
        /// Row-major index of the first element that differs.
        index: usize,
        /// As the golden file has it, shortened.
        expected: String,
        /// As the run gave it, shortened.
        found: String,
    },
}

/// Compares an output with the expected one.
///
/// Integers, booleans and strings must be equal. A floating-point element may differ by
/// `tolerance + tolerance × |expected|`; NaN matches NaN, an infinity itself.
///
/// # Errors
/// [`Mismatch`]: datatype, shape, or the first element that differs.
pub fn matches(expected: &NamedTensor, found: &Tensor, tolerance: f64) -> Result<(), Mismatch> {
    let (output, expected) = (&expected.name, &expected.tensor);
    if expected.datatype() != found.datatype() {
        return Err(Mismatch::Datatype {
            output: output.clone(),
            expected: expected.datatype(),
            found: found.datatype(),
        });
    }
    if expected.shape() != found.shape() {
        return Err(Mismatch::Shape {
            output: output.clone(),
            expected: expected.shape().to_vec(),
            found: found.shape().to_vec(),
        });
    }
    let difference = match (expected.data(), found.data()) {
        (TensorData::Strings(expected), TensorData::Strings(found)) => {
            differing(expected.iter().zip(found), |a, b| a == b, |text| quoted(text))
        }
        (TensorData::Raw(expected), TensorData::Raw(bytes)) => {
            raw_difference(found.datatype(), expected, bytes, tolerance)
        }
        // Datatypes are equal, so both are strings or neither is.
        _ => None,
    };
    match difference {
        None => Ok(()),
        Some((index, expected, found)) => {
            Err(Mismatch::Element { output: output.clone(), index, expected, found })
        }
    }
}

type Difference = Option<(usize, String, String)>;

fn raw_difference(datatype: Datatype, a: &Bytes, b: &Bytes, tolerance: f64) -> Difference {
    let floats = |read: fn(&[u8]) -> f64| {
        let size = datatype.element_size().unwrap_or(1);
        let pairs = a.chunks_exact(size).map(read).zip(b.chunks_exact(size).map(read));
        differing(pairs, |a, b| close(*a, *b, tolerance), |number| format!("{number}"))
    };
    let exact = |show: fn(&[u8]) -> String| {
        let size = datatype.element_size().unwrap_or(1);
        differing(a.chunks_exact(size).zip(b.chunks_exact(size)), |a, b| a == b, |e| show(e))
    };
    match datatype {
        Datatype::Fp16 => floats(|bytes| f16::from_le_bytes(array(bytes)).to_f64()),
        Datatype::Bf16 => floats(|bytes| bf16::from_le_bytes(array(bytes)).to_f64()),
        Datatype::Fp32 => floats(|bytes| f64::from(f32::from_le_bytes(array(bytes)))),
        Datatype::Fp64 => floats(|bytes| f64::from_le_bytes(array(bytes))),
        Datatype::Bool => exact(|bytes| (bytes != [0]).to_string()),
        Datatype::Uint8 => exact(|bytes| u8::from_le_bytes(array(bytes)).to_string()),
        Datatype::Uint16 => exact(|bytes| u16::from_le_bytes(array(bytes)).to_string()),
        Datatype::Uint32 => exact(|bytes| u32::from_le_bytes(array(bytes)).to_string()),
        Datatype::Uint64 => exact(|bytes| u64::from_le_bytes(array(bytes)).to_string()),
        Datatype::Int8 => exact(|bytes| i8::from_le_bytes(array(bytes)).to_string()),
        Datatype::Int16 => exact(|bytes| i16::from_le_bytes(array(bytes)).to_string()),
        Datatype::Int32 => exact(|bytes| i32::from_le_bytes(array(bytes)).to_string()),
        Datatype::Int64 => exact(|bytes| i64::from_le_bytes(array(bytes)).to_string()),
        Datatype::Bytes => None,
    }
}

fn differing<T>(
    pairs: impl Iterator<Item = (T, T)>,
    same: impl Fn(&T, &T) -> bool,
    show: impl Fn(&T) -> String,
) -> Difference {
    pairs
        .enumerate()
        .find(|(_, (a, b))| !same(a, b))
        .map(|(index, (a, b))| (index, show(&a), show(&b)))
}

fn close(expected: f64, found: f64, tolerance: f64) -> bool {
    if expected.is_nan() || found.is_nan() {
        return expected.is_nan() && found.is_nan();
    }
    if expected.is_infinite() || found.is_infinite() {
        return expected == found;
    }
    (expected - found).abs() <= tolerance + tolerance * expected.abs()
}

/// `chunks_exact` gave a slice of this very size.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().unwrap_or([0; N])
}

fn quoted(text: &[u8]) -> String {
    format!("{:?}", clipped(&String::from_utf8_lossy(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f32]) -> Tensor {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor::raw(Datatype::Fp32, vec![values.len()], bytes.into()).unwrap()
    }

    fn named(tensor: Tensor) -> NamedTensor {
        NamedTensor { name: "y".into(), tensor }
    }

    #[test]
    fn floats_match_within_the_tolerance() {
        let table = [
            (1.0, 1.000_01, true),
            (1.0, 1.001, false),
            (0.0, 0.000_009, true),
            (1e6, 1e6 + 5.0, true),
            (1e6, 1e6 + 50.0, false),
            (f32::NAN, f32::NAN, true),
            (f32::NAN, 0.0, false),
            (0.0, f32::NAN, false),
            (f32::INFINITY, f32::INFINITY, true),
            (f32::INFINITY, f32::NEG_INFINITY, false),
            (f32::MAX, f32::INFINITY, false),
            (-0.0, 0.0, true),
        ];
        for (expected, found, same) in table {
            let answer = matches(&named(floats(&[0.5, expected])), &floats(&[0.5, found]), 1e-5);
            assert_eq!(answer.is_ok(), same, "{expected} {found}: {answer:?}");
        }
    }

    #[test]
    fn the_message_says_where_and_what() {
        let integers = |values: &[u8]| {
            Tensor::raw(Datatype::Int8, vec![values.len()], Bytes::copy_from_slice(values)).unwrap()
        };
        let strings =
            |text: &'static str| Tensor::strings(vec![1], vec![Bytes::from(text)]).unwrap();
        let halves = |value: f32| {
            let bytes = f16::from_f32(value).to_le_bytes().to_vec();
            Tensor::raw(Datatype::Fp16, vec![1], bytes.into()).unwrap()
        };
        let table = [
            (integers(&[1, 2]), integers(&[1, 255]), "element 1: found -1, expected 2"),
            (strings("a"), strings("b"), "element 0: found \"b\", expected \"a\""),
            (halves(1.5), halves(2.5), "element 0: found 2.5, expected 1.5"),
            (floats(&[1.0]), floats(&[1.0, 2.0]), "shape is [2], expected [1]"),
            (floats(&[1.0]), integers(&[1]), "datatype is INT8, expected FP32"),
        ];
        for (expected, found, message) in table {
            let text = matches(&named(expected), &found, 1e-5).unwrap_err().to_string();
            assert!(text.starts_with("output \"y\"") && text.contains(message), "{text}");
        }
    }
}
