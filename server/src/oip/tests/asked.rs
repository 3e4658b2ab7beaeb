//! What a client of ours writes is what the server reads, and the other way round.

use super::NO_RAW;
use crate::oip::DecodeLimits;
use crate::oip::client::{decode_answer, encode_request};
use crate::oip::request::decode_infer;
use crate::oip::response::{InferResponse, ResponseOutput, encode_infer};
use balm_inference::datatype::Datatype;
use balm_inference::tensor::{NamedTensor, Tensor};

fn tensors() -> Vec<NamedTensor> {
    let of = |datatype: Datatype| {
        let tensor = match datatype.element_size() {
            Some(size) => Tensor::raw(datatype, vec![2, 1], vec![1; 2 * size].into()),
            None => Tensor::strings(vec![2, 1], vec!["".into(), "text".into()]),
        };
        NamedTensor { name: datatype.name().to_owned(), tensor: tensor.unwrap() }
    };
    Datatype::ALL.map(of).to_vec()
}

#[test]
fn requests_arrive() {
    let asked = encode_request(&tensors());
    let length = asked.json_len.to_string();
    let limits = DecodeLimits::default();
    let read = decode_infer(&asked.body, Some(&length), NO_RAW, &limits).unwrap();
    assert_eq!(read.inputs, tensors());
    assert!(read.default_binary);
}

#[test]
fn answers_arrive_and_broken_ones_are_told() {
    let tensors = tensors();
    let output = |named: &'static NamedTensor| ResponseOutput {
        name: &named.name,
        tensor: &named.tensor,
        binary: true,
        classification: None,
    };
    let leaked: &'static [NamedTensor] = Vec::leak(tensors.clone());
    let response = InferResponse {
        model_name: "m",
        model_version: "1",
        id: None,
        parameters: None,
        outputs: leaked.iter().map(output).collect(),
    };
    let encoded = encode_infer(&response).unwrap();
    assert_eq!(decode_answer(encoded.json_len, &encoded.body).unwrap(), tensors);
    let cut = &encoded.body[..encoded.body.len() - 1];
    assert!(decode_answer(encoded.json_len, cut).unwrap_err().contains("is cut off"));
    assert!(decode_answer(None, &encoded.body).is_err());
    assert!(decode_answer(Some(encoded.body.len() + 1), &encoded.body).is_err());
    assert!(decode_answer(Some(1), b"{}").is_err());
}
