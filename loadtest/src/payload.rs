//! Bodies of infer requests for any model: tensors of a recorded case, of the scenario, or of the model's metadata.

use anyhow::{Result, bail};
use fastrand::Rng;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::golden::{Case, Values};
use crate::scenario::Encoding;

/// More elements than this in one tensor are a slip.
const ELEMENTS_MAX: i64 = 64 * 1024 * 1024;
/// Random integers are below this: small enough for any width, and for any vocabulary.
const RANDOM_BELOW: i64 = 100;

/// What the elements of a tensor are; strings are not generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
}

/// What a tensor is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    Zeros,
    Ones,
    /// Seeded: floats from 0 to 1, integers from 0 to 99.
    Random,
}

/// A tensor that is to be made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TensorPlan {
    name: String,
    datatype: Datatype,
    shape: Vec<i64>,
    fill: Fill,
}

/// A tensor with its values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    name: String,
    datatype: Datatype,
    shape: Vec<i64>,
    numbers: Numbers,
}

#[derive(Clone, Debug, PartialEq)]
enum Numbers {
    Integers(Vec<i64>),
    Floats(Vec<f64>),
}

/// The body of a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Body {
    pub(crate) bytes: Vec<u8>,
    /// How many of them are JSON, where tensors follow.
    pub(crate) header_length: Option<usize>,
}

/// What `GET /v2/models/NAME` says of a model.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    inputs: Vec<MetadataInput>,
}

#[derive(Debug, Deserialize)]
struct MetadataInput {
    name: String,
    datatype: String,
    shape: Vec<i64>,
}

// ===== impl Datatype =====

impl Datatype {
    const ALL: [(&'static str, Datatype); 12] = [
        ("BOOL", Datatype::Bool),
        ("UINT8", Datatype::Uint8),
        ("UINT16", Datatype::Uint16),
        ("UINT32", Datatype::Uint32),
        ("UINT64", Datatype::Uint64),
        ("INT8", Datatype::Int8),
        ("INT16", Datatype::Int16),
        ("INT32", Datatype::Int32),
        ("INT64", Datatype::Int64),
        ("FP16", Datatype::Fp16),
        ("FP32", Datatype::Fp32),
        ("FP64", Datatype::Fp64),
    ];

    /// The datatype of that name.
    pub(crate) fn parse(name: &str) -> Option<Datatype> {
        Datatype::ALL.iter().find(|(known, _)| *known == name).map(|(_, datatype)| *datatype)
    }

    /// Every name.
    pub(crate) fn names() -> Vec<&'static str> {
        Datatype::ALL.iter().map(|(name, _)| *name).collect()
    }

    fn name(self) -> &'static str {
        Datatype::ALL
            .iter()
            .find(|(_, datatype)| *datatype == self)
            .map_or("FP32", |(name, _)| *name)
    }

    fn is_float(self) -> bool {
        matches!(self, Datatype::Fp16 | Datatype::Fp32 | Datatype::Fp64)
    }

    /// Appends an integer as a raw tensor holds it. Only the low bytes of a two's complement are taken.
    fn write_integer(self, value: i64, into: &mut Vec<u8>) {
        let width = match self {
            Datatype::Bool | Datatype::Uint8 | Datatype::Int8 => 1,
            Datatype::Uint16 | Datatype::Int16 | Datatype::Fp16 => 2,
            Datatype::Uint32 | Datatype::Int32 | Datatype::Fp32 => 4,
            Datatype::Uint64 | Datatype::Int64 | Datatype::Fp64 => 8,
        };
        into.extend(&value.to_le_bytes()[..width]);
    }

    fn write_float(self, value: f64, into: &mut Vec<u8>) {
        match self {
            Datatype::Fp16 => into.extend(half_bits(value as f32).to_le_bytes()),
            Datatype::Fp64 => into.extend(value.to_le_bytes()),
            _ => into.extend((value as f32).to_le_bytes()),
        }
    }
}

/// A half float from 0 to 1, rounded towards zero; what is below its normal numbers becomes zero.
fn half_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let exponent = ((bits >> 23) & 0xff) as i32 - 127 + 15;
    if exponent <= 0 {
        return 0;
    }
    let mantissa = (bits >> 13) & 0x3ff;
    u16::try_from((exponent.min(30) as u32) << 10 | mantissa).unwrap_or(0)
}

// ===== impl TensorPlan, Tensor =====

impl TensorPlan {
    /// Of that shape, or what is wrong with it.
    pub(crate) fn new(
        name: String,
        datatype: Datatype,
        shape: Vec<i64>,
        fill: Fill,
    ) -> Result<TensorPlan, String> {
        let elements = shape.iter().try_fold(1_i64, |product, size| {
            (*size > 0).then(|| product.checked_mul(*size)).flatten()
        });
        match elements {
            Some(elements) if elements <= ELEMENTS_MAX => {
                Ok(TensorPlan { name, datatype, shape, fill })
            }
            _ => Err(format!(
                "{shape:?}: expected sizes of 1 and more, and {ELEMENTS_MAX} elements at most"
            )),
        }
    }

    /// Makes the values.
    pub(crate) fn make(&self, random: &mut Rng) -> Tensor {
        let elements = usize::try_from(self.shape.iter().product::<i64>()).unwrap_or_default();
        let below = if self.datatype == Datatype::Bool { 2 } else { RANDOM_BELOW };
        let numbers = if self.datatype.is_float() {
            let draw = |random: &mut Rng| match self.fill {
                Fill::Zeros => 0.0,
                Fill::Ones => 1.0,
                Fill::Random => random.f64(),
            };
            Numbers::Floats((0..elements).map(|_| draw(random)).collect())
        } else {
            let draw = |random: &mut Rng| match self.fill {
                Fill::Zeros => 0,
                Fill::Ones => 1,
                Fill::Random => random.i64(0..below),
            };
            Numbers::Integers((0..elements).map(|_| draw(random)).collect())
        };
        Tensor {
            name: self.name.clone(),
            datatype: self.datatype,
            shape: self.shape.clone(),
            numbers,
        }
    }
}

impl Tensor {
    /// The inputs of a recorded case.
    pub(crate) fn of_case(case: &Case) -> Vec<Tensor> {
        let of = |input: &crate::golden::Tensor| {
            let (datatype, numbers) = match &input.values {
                Values::Fp32(values) => {
                    let exact = values.iter().map(|value| f64::from(*value)).collect();
                    (Datatype::Fp32, Numbers::Floats(exact))
                }
                Values::Int64(values) => (Datatype::Int64, Numbers::Integers(values.clone())),
            };
            Tensor { name: input.name.clone(), shape: input.shape.clone(), datatype, numbers }
        };
        case.inputs.iter().map(of).collect()
    }

    fn raw(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match &self.numbers {
            Numbers::Integers(values) => {
                values.iter().for_each(|value| self.datatype.write_integer(*value, &mut bytes));
            }
            Numbers::Floats(values) => {
                values.iter().for_each(|value| self.datatype.write_float(*value, &mut bytes));
            }
        }
        bytes
    }

    fn data(&self) -> Value {
        match &self.numbers {
            Numbers::Integers(values) if self.datatype == Datatype::Bool => {
                json!(values.iter().map(|value| *value != 0).collect::<Vec<_>>())
            }
            Numbers::Integers(values) => json!(values),
            Numbers::Floats(values) => json!(values),
        }
    }
}

// ===== impl Body =====

impl Body {
    /// An infer request with these inputs.
    pub(crate) fn new(tensors: &[Tensor], encoding: Encoding) -> Body {
        let (mut inputs, mut raw) = (Vec::with_capacity(tensors.len()), Vec::new());
        for tensor in tensors {
            let mut input = json!({"name": tensor.name, "shape": tensor.shape,
                                   "datatype": tensor.datatype.name()});
            match encoding {
                Encoding::Binary => {
                    let bytes = tensor.raw();
                    input["parameters"] = json!({"binary_data_size": bytes.len()});
                    raw.extend(bytes);
                }
                Encoding::Json => input["data"] = tensor.data(),
            }
            inputs.push(input);
        }
        let mut head = json!({"inputs": inputs});
        let binary = encoding == Encoding::Binary;
        if binary {
            head["parameters"] = json!({"binary_data_output": true});
        }
        let mut bytes = head.to_string().into_bytes();
        let header_length = binary.then_some(bytes.len());
        bytes.extend(raw);
        Body { bytes, header_length }
    }
}

// ===== impl Metadata =====

impl Metadata {
    /// Inputs as the metadata asks for them: the first dimension is `rows`, any other that is open is `dynamic`.
    pub(crate) fn plans(&self, rows: i64, dynamic: i64, fill: Fill) -> Result<Vec<TensorPlan>> {
        if self.inputs.is_empty() {
            bail!("the model's metadata names no inputs: write them as [[target.input]]");
        }
        let of = |input: &MetadataInput| {
            let Some(datatype) = Datatype::parse(&input.datatype) else {
                bail!(
                    "input {:?} is {}, which is not made up: give a recorded `case`",
                    input.name,
                    input.datatype
                );
            };
            let size = |(axis, size): (usize, &i64)| match (axis, *size) {
                (0, size) if size < 0 => rows,
                (_, size) if size < 0 => dynamic,
                (_, size) => size,
            };
            let shape = input.shape.iter().enumerate().map(size).collect();
            TensorPlan::new(input.name.clone(), datatype, shape, fill)
                .map_err(|problem| anyhow::anyhow!("input {:?}: {problem}", input.name))
        };
        self.inputs.iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::tests::GOLDEN;
    use crate::oip;

    fn tensor(datatype: &str, shape: &[i64], fill: Fill) -> Tensor {
        let datatype = Datatype::parse(datatype).unwrap();
        let plan = TensorPlan::new("x".to_owned(), datatype, shape.to_vec(), fill).unwrap();
        plan.make(&mut Rng::with_seed(1))
    }

    #[test]
    fn recorded_cases_are_asked_as_the_bench_asks_them() {
        let case = Case::parse(GOLDEN, None).unwrap();
        let body = Body::new(&Tensor::of_case(&case), Encoding::Binary);
        let request = oip::infer_request("m", &case).unwrap();
        let length = request.headers()[oip::HEADER_LENGTH].to_str().unwrap().parse().unwrap();
        assert_eq!(body.header_length, Some(length));
        assert_eq!(&body.bytes[length..], [0, 0, 0, 0x3f, 0, 0, 0, 0x40]);
        let json = Body::new(&Tensor::of_case(&case), Encoding::Json);
        let value: Value = serde_json::from_slice(&json.bytes).unwrap();
        assert_eq!(
            value,
            json!({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32",
                               "data": [0.5, 2.0]}]})
        );
        assert_eq!(json.header_length, None);
    }

    #[test]
    fn every_datatype_has_its_width_and_its_one() {
        for (datatype, one) in [
            ("BOOL", vec![1]),
            ("UINT8", vec![1]),
            ("INT16", vec![1, 0]),
            ("UINT32", vec![1, 0, 0, 0]),
            ("INT64", vec![1, 0, 0, 0, 0, 0, 0, 0]),
            ("FP16", vec![0, 0x3c]),
            ("FP32", vec![0, 0, 0x80, 0x3f]),
            ("FP64", vec![0, 0, 0, 0, 0, 0, 0xf0, 0x3f]),
        ] {
            assert_eq!(tensor(datatype, &[1], Fill::Ones).raw(), one, "{datatype}");
            let zeros = tensor(datatype, &[2, 2], Fill::Zeros).raw();
            assert_eq!(zeros, vec![0; one.len() * 4], "{datatype}");
        }
        assert_eq!(half_bits(0.5), 0x3800);
        assert_eq!(tensor("BOOL", &[2], Fill::Ones).data(), json!([true, true]));
        assert!(Datatype::parse("BYTES").is_none());
    }

    #[test]
    fn random_is_seeded() {
        let draw = tensor("INT64", &[64], Fill::Random);
        assert_eq!(draw, tensor("INT64", &[64], Fill::Random));
        assert_ne!(draw.raw(), tensor("INT64", &[64], Fill::Ones).raw());
    }

    #[test]
    fn metadata_with_open_dimensions() {
        let metadata: Metadata = serde_json::from_value(json!({"name": "m", "inputs": [
            {"name": "ids", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "x", "datatype": "FP32", "shape": [-1, 3]}]}))
        .unwrap();
        let plans = metadata.plans(2, 8, Fill::Ones).unwrap();
        let shapes: Vec<_> = plans.iter().map(|plan| plan.shape.as_slice()).collect();
        assert_eq!(shapes, [[2, 8], [2, 3]]);
        let strings: Metadata = serde_json::from_value(
            json!({"inputs": [{"name": "s", "datatype": "BYTES", "shape": [1]}]}),
        )
        .unwrap();
        let error = strings.plans(1, 1, Fill::Ones).unwrap_err().to_string();
        assert!(error.contains("recorded `case`"), "{error}");
    }

    #[test]
    fn shapes_are_bounded() {
        for shape in [vec![0], vec![-1], vec![i64::MAX, 2], vec![1 << 30]] {
            let plan = TensorPlan::new("x".to_owned(), Datatype::Fp32, shape.clone(), Fill::Ones);
            assert!(plan.is_err(), "{shape:?}");
        }
        assert!(TensorPlan::new("x".to_owned(), Datatype::Fp32, vec![], Fill::Ones).is_ok());
    }
}
