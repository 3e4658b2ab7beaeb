//! Recorded cases: inputs, and the outputs that they must give.

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// What a `golden.json` holds.
#[derive(Debug, Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

/// Inputs, the outputs they must give, and how far a float may be off.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) tolerance: f64,
    pub(crate) inputs: Vec<Tensor>,
    pub(crate) outputs: Vec<Tensor>,
}

/// A named tensor.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<i64>,
    #[serde(flatten)]
    pub(crate) values: Values,
}

/// The values of a tensor, in row-major order. Recorded cases have no other datatypes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "datatype", content = "data")]
pub(crate) enum Values {
    #[serde(rename = "FP32")]
    Fp32(Vec<f32>),
    #[serde(rename = "INT64")]
    Int64(Vec<i64>),
}

// ===== impl Case =====

impl Case {
    /// The case of that name, or the first of batch 1.
    pub(crate) fn parse(golden: &[u8], name: Option<&str>) -> Result<Case> {
        let golden: Golden =
            serde_json::from_slice(golden).context("not a list of recorded cases")?;
        for case in golden.cases {
            case.check()?;
            let wanted = match name {
                Some(name) => case.name == name,
                None => case.inputs.iter().all(|input| input.shape.first() == Some(&1)),
            };
            if wanted {
                return Ok(case);
            }
        }
        match name {
            Some(name) => bail!("there is no case {name:?}"),
            None => bail!("there is no case of batch 1"),
        }
    }

    /// Bytes of all outputs as binary tensors.
    pub(crate) fn output_bytes(&self) -> usize {
        self.outputs.iter().map(|output| output.values.byte_size()).sum()
    }

    fn check(&self) -> Result<()> {
        for tensor in self.inputs.iter().chain(&self.outputs) {
            let elements = tensor.shape.iter().try_fold(1_usize, |product, size| {
                product.checked_mul(usize::try_from(*size).ok()?)
            });
            if elements != Some(tensor.values.len()) {
                bail!("case {:?}: tensor {:?} does not fill its shape", self.name, tensor.name);
            }
        }
        Ok(())
    }
}

// ===== impl Values =====

impl Values {
    /// The datatype as the protocol writes it.
    pub(crate) fn datatype(&self) -> &'static str {
        match self {
            Values::Fp32(_) => "FP32",
            Values::Int64(_) => "INT64",
        }
    }

    fn len(&self) -> usize {
        match self {
            Values::Fp32(values) => values.len(),
            Values::Int64(values) => values.len(),
        }
    }

    /// Bytes as a binary tensor.
    pub(crate) fn byte_size(&self) -> usize {
        match self {
            Values::Fp32(values) => size_of_val(values.as_slice()),
            Values::Int64(values) => size_of_val(values.as_slice()),
        }
    }

    /// Appends the values as a binary tensor holds them.
    pub(crate) fn write(&self, into: &mut Vec<u8>) {
        match self {
            Values::Fp32(values) => {
                into.extend(values.iter().flat_map(|value| value.to_le_bytes()))
            }
            Values::Int64(values) => {
                into.extend(values.iter().flat_map(|value| value.to_le_bytes()))
            }
        }
    }

    /// Whether the bytes of a binary tensor are these values: floats within `tolerance`, integers exactly.
    pub(crate) fn matches(&self, bytes: &[u8], tolerance: f64) -> bool {
        if bytes.len() != self.byte_size() {
            return false;
        }
        match self {
            Values::Fp32(values) => {
                let (found, _) = bytes.as_chunks::<4>();
                // Written so that a NaN is wrong.
                let near = |(expected, found): (&f32, &[u8; 4])| {
                    (f64::from(*expected) - f64::from(f32::from_le_bytes(*found))).abs()
                        <= tolerance
                };
                values.iter().zip(found).all(near)
            }
            Values::Int64(values) => {
                let (found, _) = bytes.as_chunks::<8>();
                values
                    .iter()
                    .zip(found)
                    .all(|(expected, found)| *expected == i64::from_le_bytes(*found))
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const GOLDEN: &[u8] = br#"{"cases": [
        {"name": "two_rows", "tolerance": 0.001,
         "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 1], "data": [1, 2]}],
         "outputs": [{"name": "label", "datatype": "INT64", "shape": [2], "data": [0, 1]}]},
        {"name": "one_row", "tolerance": 0.001,
         "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 2]}],
         "outputs": [
            {"name": "label", "datatype": "INT64", "shape": [1], "data": [-7]},
            {"name": "p", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]}]}]}"#;

    #[test]
    fn cases_are_found() {
        assert_eq!(Case::parse(GOLDEN, None).unwrap().name, "one_row");
        assert_eq!(Case::parse(GOLDEN, Some("two_rows")).unwrap().name, "two_rows");
        let error = Case::parse(GOLDEN, Some("three")).unwrap_err();
        assert_eq!(error.to_string(), "there is no case \"three\"");
    }

    #[test]
    fn a_tensor_fills_its_shape() {
        for shape in ["[3]", "[-2]", "[4294967296, 4294967296]"] {
            let golden = format!(
                r#"{{"cases": [{{"name": "a", "tolerance": 0, "outputs": [],
                    "inputs": [{{"name": "x", "datatype": "INT64", "shape": {shape}, "data": [1, 2]}}]}}]}}"#
            );
            let error = Case::parse(golden.as_bytes(), Some("a")).unwrap_err();
            assert_eq!(error.to_string(), "case \"a\": tensor \"x\" does not fill its shape");
        }
    }

    #[test]
    fn floats_are_judged_within_tolerance_and_integers_exactly() {
        let bytes = |values: &Values| {
            let mut bytes = Vec::new();
            values.write(&mut bytes);
            bytes
        };
        let expected = Values::Fp32(vec![0.5, 1.0]);
        assert!(expected.matches(&bytes(&Values::Fp32(vec![0.5005, 1.0])), 1e-3));
        assert!(!expected.matches(&bytes(&Values::Fp32(vec![0.502, 1.0])), 1e-3));
        assert!(!expected.matches(&bytes(&Values::Fp32(vec![f32::NAN, 1.0])), 1e-3));
        assert!(!expected.matches(&bytes(&Values::Fp32(vec![0.5])), 1e-3));
        let labels = Values::Int64(vec![-1, i64::MAX]);
        assert!(labels.matches(&bytes(&labels), 0.0));
        assert!(!labels.matches(&bytes(&Values::Int64(vec![-1, i64::MAX - 1])), 1.0));
    }
}
