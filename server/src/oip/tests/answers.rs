//! Answers: JSON, binary, mixed, classes; and what the server says about itself.

use super::*;
use crate::oip::metadata::{
    DynamicBatching, IndexEntry, ModelConfig, ModelMetadata, ModelStatistics, Statistics,
};
use crate::oip::response::{
    Classification, Encoded, InferResponse, ResponseOutput, check_output, encode_infer,
};
use crate::oip::{ErrorKind, ParameterValue};
use balm_inference::contract::Contract;
use balm_probes::IndexState;
use std::collections::BTreeMap;

fn output<'a>(name: &'a str, tensor: &'a Tensor, binary: bool) -> ResponseOutput<'a> {
    ResponseOutput { name, tensor, binary, classification: None }
}

fn encode(outputs: Vec<ResponseOutput<'_>>) -> Result<Encoded, CodecError> {
    encode_infer(&InferResponse {
        model_name: "m",
        model_version: "1",
        id: None,
        parameters: None,
        outputs,
    })
}

fn text(encoded: &Encoded) -> &str {
    let end = encoded.json_len.unwrap_or(encoded.body.len());
    std::str::from_utf8(&encoded.body[..end]).unwrap()
}

fn words(elements: &[&str], shape: &[usize]) -> Tensor {
    let elements = elements.iter().map(|text| Bytes::copy_from_slice(text.as_bytes())).collect();
    Tensor::strings(shape.to_vec(), elements).unwrap()
}

#[test]
fn json_answer() {
    let tensor = fp32(&[1, 5], &[0.1, 1.0, f32::NAN, f32::NEG_INFINITY, -1e-7]);
    let label = words(&["a\"b"], &[1]);
    let flags = Tensor::raw(Datatype::Bool, vec![2], Bytes::from_static(&[0, 1])).unwrap();
    let empty = Tensor::raw(Datatype::Int64, vec![0, 3], Bytes::new()).unwrap();
    let outputs = vec![
        output("p", &tensor, false),
        output("l", &label, false),
        output("f", &flags, false),
        output("e", &empty, false),
    ];
    let parameters = BTreeMap::from([("k".to_owned(), ParameterValue::Signed(3))]);
    let encoded = encode_infer(&InferResponse {
        model_name: "m",
        model_version: "1",
        id: Some(""),
        parameters: Some(&parameters),
        outputs,
    })
    .unwrap();
    assert_eq!(encoded.json_len, None);
    assert_eq!(
        text(&encoded),
        r#"{"model_name":"m","model_version":"1","id":"","parameters":{"k":3},"outputs":[{"name":"p","datatype":"FP32","shape":[1,5],"data":[0.1,1.0,null,null,-1e-7]},{"name":"l","datatype":"BYTES","shape":[1],"data":["a\"b"]},{"name":"f","datatype":"BOOL","shape":[2],"data":[false,true]},{"name":"e","datatype":"INT64","shape":[0,3],"data":[]}]}"#
    );
}

#[test]
fn binary_data_follow_the_json() {
    let tensor = fp32(&[1], &[1.0]);
    let label = words(&["ab", ""], &[2]);
    let outputs =
        vec![output("p", &tensor, true), output("q", &tensor, false), output("l", &label, true)];
    let encoded = encode(outputs).unwrap();
    assert_eq!(
        text(&encoded),
        r#"{"model_name":"m","model_version":"1","outputs":[{"name":"p","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}},{"name":"q","datatype":"FP32","shape":[1],"data":[1.0]},{"name":"l","datatype":"BYTES","shape":[2],"parameters":{"binary_data_size":10}}]}"#
    );
    let binary = &encoded.body[encoded.json_len.unwrap()..];
    assert_eq!(binary, b"\0\0\x80\x3f\x02\0\0\0ab\0\0\0\0");
    let empty = fp32(&[0], &[]);
    let encoded = encode(vec![output("e", &empty, true)]).unwrap();
    assert_eq!(encoded.json_len, Some(encoded.body.len()));
    assert!(text(&encoded).contains(r#""parameters":{"binary_data_size":0}"#));
}

#[test]
fn what_json_cannot_hold() {
    for datatype in [Datatype::Fp16, Datatype::Bf16] {
        let tensor = Tensor::raw(datatype, vec![1], Bytes::from_static(&[0, 0])).unwrap();
        let error = encode(vec![output("h", &tensor, false)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed);
        assert_eq!(
            error.to_string(),
            format!(
                "output \"h\": {datatype} has no JSON form; ask for it as binary data (parameters.binary_data of the output, or parameters.binary_data_output)"
            )
        );
        assert_eq!(check_output("h", datatype, false, false), Err(error));
        assert!(encode(vec![output("h", &tensor, true)]).is_ok());
    }
    let bytes = vec![Bytes::from_static(b"a"), Bytes::from_static(b"\xff")];
    let tensor = Tensor::strings(vec![2], bytes).unwrap();
    let error = encode(vec![output("s", &tensor, false)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "output \"s\": element 1 is not UTF-8; ask for this output as binary data"
    );
}

#[test]
fn classes() {
    let labels = ["red", "green"].map(String::from);
    let classes = |tensor: &Tensor, count, labels: &[String]| {
        let classification = Some(Classification { count, labels });
        let binary = false;
        let output = ResponseOutput { name: "y", tensor, binary, classification };
        let encoded = encode(vec![output]).unwrap();
        let text = text(&encoded);
        text[text.find("\"datatype\"").unwrap()..].to_owned()
    };
    assert_eq!(
        classes(&fp32(&[2, 3], &[0.25, 0.5, 0.25, 1.0, f32::NAN, 2.0]), 2, &labels),
        r#""datatype":"BYTES","shape":[2,2],"data":["0.500000:1:green","0.250000:0:red","2.000000:2","1.000000:0:red"]}]}"#
    );
    assert_eq!(
        classes(&fp32(&[2], &[1.0, f32::INFINITY]), 5, &[]),
        r#""datatype":"BYTES","shape":[2],"data":["inf:1","1.000000:0"]}]}"#
    );
    assert_eq!(
        classes(&fp32(&[0, 3], &[]), 2, &[]),
        r#""datatype":"BYTES","shape":[0,2],"data":[]}]}"#
    );
    let counts = [7i64, -1, 7].map(i64::to_le_bytes).concat();
    let counts = Tensor::raw(Datatype::Int64, vec![1, 3], Bytes::from(counts)).unwrap();
    assert_eq!(
        classes(&counts, 3, &[]),
        r#""datatype":"BYTES","shape":[1,3],"data":["7:0","7:2","-1:1"]}]}"#
    );
    let half = half::f16::from_f32(1.5).to_le_bytes();
    let half = Tensor::raw(Datatype::Fp16, vec![1], Bytes::copy_from_slice(&half)).unwrap();
    assert_eq!(
        classes(&half, 1, &[]),
        r#""datatype":"BYTES","shape":[1],"data":["1.500000:0"]}]}"#
    );
    let error = check_output("s", Datatype::Bytes, false, true).unwrap_err();
    assert_eq!(
        error.to_string(),
        "output \"s\": classification needs a numeric tensor, this one is BYTES"
    );
}

#[test]
fn metadata_and_configuration() {
    let contract = Contract {
        inputs: vec![spec("x", Datatype::Fp32, &[-1, 4])],
        outputs: vec![spec("label", Datatype::Bytes, &[-1])],
    };
    assert_eq!(
        serde_json::to_string(&ModelMetadata::new("iris", vec!["1".into()], &contract)).unwrap(),
        r#"{"name":"iris","versions":["1"],"platform":"onnxruntime_onnx","inputs":[{"name":"x","datatype":"FP32","shape":[-1,4]}],"outputs":[{"name":"label","datatype":"BYTES","shape":[-1]}]}"#
    );
    let labels = BTreeMap::from([("label".to_owned(), "labels.txt".to_owned())]);
    let config = |max_batch_size, batching| {
        let config = ModelConfig::new("iris", &contract, max_batch_size, &labels, batching);
        serde_json::to_string(&config).unwrap()
    };
    assert_eq!(
        config(8, None),
        r#"{"name":"iris","platform":"onnxruntime_onnx","backend":"onnxruntime","max_batch_size":8,"input":[{"name":"x","data_type":"TYPE_FP32","dims":[4]}],"output":[{"name":"label","data_type":"TYPE_STRING","dims":[],"label_filename":"labels.txt"}],"model_transaction_policy":{"decoupled":false},"response_cache":{"enable":false}}"#
    );
    let unbatched = config(0, Some(DynamicBatching::default()));
    assert!(unbatched.contains(r#""dims":[-1,4]"#));
    assert!(unbatched.contains(r#""dynamic_batching":{"max_queue_delay_microseconds":0}"#));
}

#[test]
fn statistics_and_index() {
    let statistics = Statistics { model_stats: vec![ModelStatistics::default()] };
    let value = serde_json::to_value(&statistics).unwrap();
    let element = &value["model_stats"][0];
    for member in [
        "success",
        "fail",
        "queue",
        "compute_input",
        "compute_infer",
        "compute_output",
        "cache_hit",
        "cache_miss",
    ] {
        assert_eq!(element["inference_stats"][member], serde_json::json!({"count":0,"ns":0}));
    }
    assert_eq!(element["response_stats"], serde_json::json!({}));
    assert_eq!(element["batch_stats"], serde_json::json!([]));
    assert_eq!(element["memory_usage"], serde_json::json!([]));
    let entry = IndexEntry {
        name: "m".into(),
        version: Some("1".into()),
        state: IndexState::Unavailable,
        reason: "verifying".into(),
    };
    assert_eq!(
        serde_json::to_string(&entry).unwrap(),
        r#"{"name":"m","version":"1","state":"UNAVAILABLE","reason":"verifying"}"#
    );
}
