//! The v1 form: rows and columns.

use super::*;
use crate::oip::ErrorKind;
use crate::oip::v1::{PredictForm, PredictRequest, decode_predict, encode_predict};
use balm_inference::contract::Contract;

fn iris() -> Contract {
    Contract { inputs: vec![spec("x", Datatype::Fp32, &[-1, 2])], outputs: vec![] }
}

fn two() -> Contract {
    let inputs = vec![spec("a", Datatype::Int64, &[-1]), spec("b", Datatype::Bytes, &[-1, 2])];
    Contract { inputs, outputs: vec![] }
}

fn predict(contract: &Contract, text: &str) -> Result<PredictRequest, CodecError> {
    let body = Bytes::copy_from_slice(text.as_bytes());
    decode_predict(&body, contract, &DecodeLimits::default())
}

#[test]
fn rows_and_columns_of_one_input() {
    let rows = PredictForm::Rows { count: 2 };
    for (text, form) in [
        (r#"{"signature_name":"s","instances":[[1,2],[3,4]],"extra":{}}"#, rows),
        (r#"{"instances": [ {"x":[1,2]},{"x":[3,4]}]}"#, rows),
        (r#"{"inputs":[[1,2],[3,4]]}"#, PredictForm::Columns),
        (r#"{"inputs": {"x":[[1,2],[3,4]]}}"#, PredictForm::Columns),
    ] {
        let request = predict(&iris(), text).unwrap();
        assert_eq!(request.form, form, "{text}");
        assert_eq!(request.inputs[0].name, "x");
        assert_eq!(request.inputs[0].tensor, fp32(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), "{text}");
    }
    let request = predict(&iris(), r#"{"instances":[]}"#).unwrap();
    assert_eq!(request.inputs[0].tensor.shape(), [0, 2]);
}

#[test]
fn several_inputs() {
    for text in [
        r#"{"instances":[{"a":1,"b":["p","q"]},{"b":["r","s"],"a":2}]}"#,
        r#"{"inputs":{"b":[["p","q"],["r","s"]],"a":[1,2]}}"#,
    ] {
        let request = predict(&two(), text).unwrap();
        assert_eq!(raw(&request.inputs[0].tensor), [1i64, 2].map(i64::to_le_bytes).concat());
        assert_eq!(request.inputs[1].tensor.shape(), [2, 2]);
        assert_eq!(strings(&request.inputs[1].tensor), ["p", "q", "r", "s"]);
    }
}

#[test]
fn the_models_types_rule() {
    let half = Contract { inputs: vec![spec("h", Datatype::Fp16, &[-1])], outputs: vec![] };
    let request = predict(&half, r#"{"instances":[1.5,2]}"#).unwrap();
    let expected = [1.5, 2.0].map(|value| half::f16::from_f64(value).to_le_bytes()).concat();
    assert_eq!(raw(&request.inputs[0].tensor), expected);
    let error = predict(&half, r#"{"instances":[1,70000]}"#).unwrap_err();
    assert_eq!(error.to_string(), "instances[1]: the number is too large for FP16");
    // A model that leaves the rank open takes it from the data.
    let open = TensorSpec { name: "x".into(), datatype: Datatype::Uint8, shape: None };
    let open = Contract { inputs: vec![open], outputs: vec![] };
    for (text, shape) in [
        (r#"{"instances":[[[1],[2]]]}"#, &[1, 2, 1][..]),
        (r#"{"instances":[7]}"#, &[1]),
        (r#"{"inputs":7}"#, &[]),
        (r#"{"instances":[]}"#, &[0]),
    ] {
        assert_eq!(predict(&open, text).unwrap().inputs[0].tensor.shape(), shape, "{text}");
    }
    let error = predict(&open, r#"{"instances":[[1],["a"]]}"#).unwrap_err();
    assert_eq!(
        error.to_string(),
        "instances[1][0]: found string \"a\", expected a whole number for UINT8"
    );
    let error = predict(&open, r#"{"instances":[["a"]]}"#).unwrap_err();
    assert_eq!(
        error.to_string(),
        "instances[0][0]: found string \"a\", expected a whole number for UINT8"
    );
}

#[test]
fn bad_predict_requests() {
    let deep = format!(r#"{{"instances":{}}}"#, "[".repeat(100_000));
    let closed = format!(r#"{{"instances":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    for (contract, text, message) in [
        (iris(), "", "not valid JSON: EOF while parsing a value at line 1 column 0"),
        (iris(), "[1]", "found an array, expected an object with \"instances\" or \"inputs\""),
        (
            iris(),
            "{}",
            "instances: is missing; give {\"instances\": [row, …]}, or {\"inputs\": value} for columns",
        ),
        (
            iris(),
            r#"{"instances":[],"inputs":[]}"#,
            "give either \"instances\" (rows) or \"inputs\" (columns), not both",
        ),
        (iris(), r#"{"instances":[],"instances":[]}"#, "instances: appears more than once"),
        (
            iris(),
            r#"{"instances":{"x":1}}"#,
            "instances: found an object, expected an array of instances",
        ),
        (
            iris(),
            r#"{"instances":[[1,2],[3]]}"#,
            "instances[1]: holds 1 elements, where the arrays beside it hold 2",
        ),
        (
            iris(),
            r#"{"instances":[[1,2],[3,4,5]]}"#,
            "instances[1]: holds more than 2 elements, where the arrays beside it hold 2",
        ),
        (iris(), r#"{"instances":[1,2]}"#, "instances[0]: found integer `1`, expected an array"),
        (
            iris(),
            r#"{"instances":[[[1,2]]]}"#,
            "instances[0][0]: found an array, expected an FP32 number",
        ),
        (
            iris(),
            r#"{"instances":[[1,"2"]]}"#,
            "instances[0][1]: found string \"2\", expected an FP32 number",
        ),
        (
            iris(),
            r#"{"instances":[[1,NaN]]}"#,
            "instances: JSON has no NaN and no Infinity; send this tensor as binary data (parameters.binary_data_size)",
        ),
        (
            iris(),
            r#"{"instances":[{"y":[1,2]}]}"#,
            "instances[0].y: unknown input; this model takes \"x\"",
        ),
        (
            iris(),
            r#"{"instances":[{"x":[1,2],"x":[1,2]}]}"#,
            "instances[0].x: appears more than once",
        ),
        (
            iris(),
            r#"{"instances":[{"x":[1,2]},[1,2]]}"#,
            "instances[1]: found an array, expected an object from input name to value",
        ),
        (
            two(),
            r#"{"instances":[{"a":1,"b":["p","q"]},{"a":1}]}"#,
            "instances[1].b: is missing; each input of the model needs a value",
        ),
        (
            two(),
            r#"{"instances":[1]}"#,
            "instances[0]: found integer `1`, expected an object from input name to value",
        ),
        (
            two(),
            r#"{"inputs":{"a":[1],"b":[["p",2]]}}"#,
            "inputs.b[0][1]: found integer `2`, expected text for BYTES",
        ),
        (
            two(),
            r#"{"inputs":{"a":[1]}}"#,
            "inputs.b: is missing; each input of the model needs a value",
        ),
        (iris(), &closed, "instances[0][0]: found an array, expected an FP32 number"),
        (iris(), &deep, "instances: not valid JSON: expected value at line 1 column 100014"),
    ] {
        let error = predict(&contract, text).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.kind()), (message, ErrorKind::Malformed));
    }
    let scalar = Contract { inputs: vec![spec("s", Datatype::Fp32, &[])], outputs: vec![] };
    assert!(predict(&scalar, r#"{"inputs":3}"#).is_ok());
    assert_eq!(
        predict(&scalar, r#"{"instances":[3]}"#).unwrap_err().to_string(),
        "instances[0]: this input is a scalar and has no rows; ask with \"inputs\" rather than \"instances\""
    );
}

#[test]
fn memory_is_bounded() {
    let limits = DecodeLimits { max_decoded_bytes: 64, ..DecodeLimits::default() };
    let text = format!(r#"{{"instances":[{}]}}"#, ["[1,2]"; 9].join(","));
    let error = decode_predict(&Bytes::from(text), &iris(), &limits).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let wide = format!(r#"{{"inputs":[{:?}]}}"#, [1; 17]);
    let error = decode_predict(&Bytes::from(wide), &iris(), &limits).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
}

#[test]
fn predictions() {
    let rows = PredictForm::Rows { count: 2 };
    let p = fp32(&[2, 2], &[0.5, 0.25, 1.0, f32::NAN]);
    let l = Tensor::raw(Datatype::Uint8, vec![2], Bytes::from_static(&[3, 9])).unwrap();
    let text = |form, outputs: &[(&str, &Tensor)]| {
        String::from_utf8(encode_predict(form, outputs).unwrap().to_vec()).unwrap()
    };
    assert_eq!(text(rows, &[("p", &p)]), r#"{"predictions":[[0.5,0.25],[1.0,null]]}"#);
    assert_eq!(
        text(rows, &[("p", &p), ("l", &l)]),
        r#"{"predictions":[{"p":[0.5,0.25],"l":3},{"p":[1.0,null],"l":9}]}"#
    );
    assert_eq!(text(rows, &[("l", &l)]), r#"{"predictions":[3,9]}"#);
    let columns = PredictForm::Columns;
    assert_eq!(text(columns, &[("p", &p)]), r#"{"outputs":[[0.5,0.25],[1.0,null]]}"#);
    assert_eq!(
        text(columns, &[("p", &p), ("l", &l)]),
        r#"{"outputs":{"p":[[0.5,0.25],[1.0,null]],"l":[3,9]}}"#
    );
    let half = half::f16::from_f32(0.5).to_le_bytes();
    let half = Tensor::raw(Datatype::Fp16, vec![], Bytes::copy_from_slice(&half)).unwrap();
    assert_eq!(text(columns, &[("h", &half)]), r#"{"outputs":0.5}"#);
    let empty = fp32(&[2, 0], &[]);
    assert_eq!(text(columns, &[("e", &empty)]), r#"{"outputs":[[],[]]}"#);
    let absurd = fp32(&[usize::MAX, 0], &[]);
    assert_eq!(text(columns, &[("e", &absurd)]), r#"{"outputs":[]}"#);
    let absurd = fp32(&[60_000, 60_000, 0], &[]);
    assert_eq!(text(columns, &[("e", &absurd)]), r#"{"outputs":[]}"#);
    let error = encode_predict(PredictForm::Rows { count: 3 }, &[("p", &p)]).unwrap_err();
    assert!(error.to_string().contains("cannot be cut into 3 predictions"), "{error}");
}
