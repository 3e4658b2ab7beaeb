//! What goes out comes back the same, for every datatype; and no bytes whatever make the codec panic.

use super::*;
use crate::oip::encoding::decompress;
use crate::oip::response::{InferResponse, ResponseOutput, encode_infer};
use crate::oip::v1::{PredictForm, decode_predict, encode_predict};
use balm_inference::contract::Contract;
use proptest::collection::vec;
use proptest::prelude::*;

/// A tensor of any datatype and a small shape, zero-sized ones included. Floats are finite, as JSON wants them.
fn tensors() -> impl Strategy<Value = Tensor> {
    let shape = vec(0usize..4, 0..4);
    (0..Datatype::ALL.len(), shape).prop_flat_map(|(index, shape)| {
        let datatype = Datatype::ALL[index];
        let count: usize = shape.iter().product();
        match datatype.element_size() {
            None => vec(".{0,6}", count)
                .prop_map(move |texts| {
                    let elements = texts.into_iter().map(Bytes::from).collect();
                    Tensor::strings(shape.clone(), elements).unwrap()
                })
                .boxed(),
            Some(size) => vec(any::<u8>(), count * size)
                .prop_map(move |mut bytes| {
                    bytes.chunks_mut(size).for_each(|element| tame(datatype, element));
                    Tensor::raw(datatype, shape.clone(), Bytes::from(bytes)).unwrap()
                })
                .boxed(),
        }
    })
}

/// Makes random bytes an element that JSON can hold: booleans 0 or 1, floats finite.
fn tame(datatype: Datatype, element: &mut [u8]) {
    let Some(last) = element.last_mut() else { return };
    match datatype {
        Datatype::Bool => *last &= 1,
        // Clearing the second highest bit of the exponent keeps it from being all ones.
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64 => *last &= 0b1011_1111,
        _ => (),
    }
}

fn answer(tensor: &Tensor, binary: bool) -> (Bytes, Option<usize>) {
    let outputs = vec![ResponseOutput { name: "x", tensor, binary, classification: None }];
    let response = InferResponse {
        model_name: "m",
        model_version: "1",
        id: Some("7"),
        parameters: None,
        outputs,
    };
    let encoded = encode_infer(&response).unwrap();
    (encoded.body, encoded.json_len)
}

/// An answer is a request when its outputs are called inputs.
fn as_request(body: &Bytes, json_len: Option<usize>) -> (Bytes, Option<String>) {
    let end = json_len.unwrap_or(body.len());
    let text = std::str::from_utf8(&body[..end]).unwrap().replacen("\"outputs\"", "\"inputs\"", 1);
    let header = json_len.map(|_| text.len().to_string());
    (Bytes::from([text.as_bytes(), &body[end..]].concat()), header)
}

fn decode(body: &Bytes, header: Option<&str>) -> Result<InferRequest, CodecError> {
    let inputs = [spec("x", Datatype::Fp32, &[-1, 4])];
    let raw = RawInput { inputs: &inputs, batched: false };
    decode_infer(body, header, raw, &DecodeLimits::default())
}

proptest! {
    #[test]
    fn binary_and_json_keep_every_element(tensor in tensors()) {
        for binary in [true, false] {
            if !binary && !tensor.datatype().has_json_form() {
                continue;
            }
            let (body, json_len) = answer(&tensor, binary);
            let (body, header) = as_request(&body, json_len);
            let request = decode(&body, header.as_deref()).unwrap();
            prop_assert_eq!(request.id.as_deref(), Some("7"));
            prop_assert_eq!(&request.inputs[0].tensor, &tensor);
        }
    }

    #[test]
    fn columns_keep_every_element(tensor in tensors()) {
        let text = encode_predict(PredictForm::Columns, &[("x", &tensor)]).unwrap();
        let text = String::from_utf8(text.to_vec()).unwrap().replacen("outputs", "inputs", 1);
        let shape: Vec<i64> = tensor.shape().iter().map(|size| *size as i64).collect();
        let inputs = vec![spec("x", tensor.datatype(), &shape)];
        let contract = Contract { inputs, outputs: vec![] };
        let request = decode_predict(&Bytes::from(text), &contract, &DecodeLimits::default());
        prop_assert_eq!(&request.unwrap().inputs[0].tensor, &tensor);
    }

    #[test]
    fn random_bytes_never_panic(
        bytes in vec(any::<u8>(), 0..200),
        header in proptest::option::of(0usize..220),
    ) {
        let body = Bytes::from(bytes);
        let header = header.map(|header| header.to_string());
        let _ = decode(&body, header.as_deref());
        let contract = Contract { inputs: vec![spec("x", Datatype::Fp32, &[-1, 4])], outputs: vec![] };
        let _ = decode_predict(&body, &contract, &DecodeLimits::default());
        for encoding in ["gzip", "deflate", "identity", "br"] {
            let _ = decompress(body.clone(), Some(encoding), 1000);
        }
    }

    #[test]
    fn mutated_requests_never_panic(
        tensor in tensors(),
        binary in any::<bool>(),
        edits in vec((any::<prop::sample::Index>(), prop::sample::select(EDITS.to_vec())), 1..4),
        shift in -3i64..4,
    ) {
        let binary = binary || !tensor.datatype().has_json_form();
        let (body, json_len) = answer(&tensor, binary);
        let (body, header) = as_request(&body, json_len);
        let mut bytes = body.to_vec();
        for (at, edit) in edits {
            let at = at.index(bytes.len());
            let end = (at + edit.0).min(bytes.len());
            bytes.splice(at..end, edit.1.bytes());
        }
        let header = header.map(|header| (header.parse::<i64>().unwrap() + shift).to_string());
        match decode(&Bytes::from(bytes), header.as_deref()) {
            // What is accepted is consistent, and what is refused says why.
            Ok(request) => for input in request.inputs {
                let tensor = input.tensor;
                let count: usize = tensor.shape().iter().product();
                prop_assert_eq!(tensor.element_count(), count);
            },
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn mutated_predict_requests_never_panic(
        edits in vec((any::<prop::sample::Index>(), prop::sample::select(EDITS.to_vec())), 1..4),
        rows in any::<bool>(),
    ) {
        let mut bytes = match rows {
            true => br#"{"instances":[{"a":1,"b":["p","q"]},{"b":["r","s"],"a":2}]}"#.to_vec(),
            false => br#"{"inputs":{"b":[["p","q"],["r","s"]],"a":[1,2]}}"#.to_vec(),
        };
        for (at, edit) in edits {
            let at = at.index(bytes.len());
            let end = (at + edit.0).min(bytes.len());
            bytes.splice(at..end, edit.1.bytes());
        }
        let open = TensorSpec { name: "b".into(), datatype: Datatype::Bytes, shape: None };
        let inputs = vec![spec("a", Datatype::Int64, &[-1]), open];
        let contract = Contract { inputs, outputs: vec![] };
        if let Err(error) = decode_predict(&Bytes::from(bytes), &contract, &DecodeLimits::default()) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}

/// How many bytes are taken out, and what is put in their place.
const EDITS: [(usize, &str); 18] = [
    (1, ""),
    (1, "["),
    (1, "]"),
    (1, "{"),
    (1, "}"),
    (1, "\""),
    (1, ","),
    (1, "-"),
    (1, "9"),
    (0, "99999999999999999999"),
    (0, "null"),
    (0, "NaN"),
    (0, "1e400"),
    (2, "\\u"),
    (4, ""),
    (0, "[[[[[["),
    (1, "\0"),
    (9, "shape"),
];
