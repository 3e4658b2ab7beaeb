//! Bodies, good and bad, through the whole codec.

mod answers;
mod asked;
mod bad_input;
mod compressed;
mod good_input;
mod predict;
mod round_trip;

use super::request::{InferRequest, RawInput, decode_infer};
use super::{CodecError, DecodeLimits};
use balm_inference::contract::{Dimension, TensorSpec};
use balm_inference::datatype::Datatype;
use balm_inference::tensor::{Tensor, TensorData};
use bytes::Bytes;

const NO_RAW: RawInput<'static> = RawInput { inputs: &[], batched: false };

fn spec(name: &str, datatype: Datatype, shape: &[i64]) -> TensorSpec {
    let dimension = |size: &i64| match usize::try_from(*size) {
        Ok(size) => Dimension::Fixed(size),
        Err(_) => Dimension::Dynamic(None),
    };
    let shape = Some(shape.iter().map(dimension).collect());
    TensorSpec { name: name.into(), datatype, shape }
}

fn json(text: &str) -> Result<InferRequest, CodecError> {
    decode_infer(&Bytes::copy_from_slice(text.as_bytes()), None, NO_RAW, &DecodeLimits::default())
}

/// JSON and then binary data, with the header that says where one ends.
fn mixed(text: &str, binary: &[u8]) -> Result<InferRequest, CodecError> {
    let body = Bytes::from([text.as_bytes(), binary].concat());
    let header = text.len().to_string();
    decode_infer(&body, Some(&header), NO_RAW, &DecodeLimits::default())
}

/// A request with one input `x` in JSON.
fn one(datatype: &str, shape: &str, data: &str) -> Result<InferRequest, CodecError> {
    json(&one_text(datatype, shape, data))
}

fn one_text(datatype: &str, shape: &str, data: &str) -> String {
    format!(
        r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}]}}"#
    )
}

/// A request with one binary input `x`.
fn one_binary(datatype: &str, shape: &str, bytes: &[u8]) -> Result<InferRequest, CodecError> {
    mixed(&binary_text(datatype, shape, bytes.len()), bytes)
}

fn binary_text(datatype: &str, shape: &str, size: usize) -> String {
    format!(
        r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","parameters":{{"binary_data_size":{size}}}}}]}}"#
    )
}

fn only_tensor(request: Result<InferRequest, CodecError>) -> Tensor {
    let mut inputs = request.unwrap().inputs;
    assert_eq!(inputs.len(), 1);
    inputs.remove(0).tensor
}

fn raw(tensor: &Tensor) -> &[u8] {
    match tensor.data() {
        TensorData::Raw(bytes) => bytes,
        TensorData::Strings(_) => panic!("a BYTES tensor"),
    }
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    raw(tensor).as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn strings(tensor: &Tensor) -> Vec<&str> {
    match tensor.data() {
        TensorData::Strings(elements) => {
            elements.iter().map(|element| std::str::from_utf8(element).unwrap()).collect()
        }
        TensorData::Raw(_) => panic!("not a BYTES tensor"),
    }
}

fn fp32(shape: &[usize], values: &[f32]) -> Tensor {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::raw(Datatype::Fp32, shape.to_vec(), Bytes::from(bytes)).unwrap()
}
