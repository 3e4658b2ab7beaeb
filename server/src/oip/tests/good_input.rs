//! What clients really send, and the corners that are legal.

use super::*;
use crate::oip::{ParameterValue, SequenceId};

#[test]
fn nested_and_flat_are_the_same() {
    let expected = [1.0, 2.0, 3.0, 4.5];
    for (shape, data) in [
        ("[2,2]", "[1,2,3,4.5]"),
        ("[2,2]", "[[1,2],[3,4.5]]"),
        ("[2,2]", " [ [1, 2 ] ,\n[3,4.5]]"),
        ("[1,2,1,2]", "[[[[1,2]],[[3,4.5]]]]"),
        ("[4]", "[1,2,3,4.5]"),
    ] {
        assert_eq!(floats(&only_tensor(one("FP32", shape, data))), expected);
    }
    // The datatype may come after the data.
    let late = r#"{"inputs":[{"data":[1,2,3,4.5],"datatype":"FP32","shape":[4],"name":"x"}]}"#;
    assert_eq!(floats(&only_tensor(json(late))), expected);
}

#[test]
fn scalars_and_empty_tensors() {
    assert_eq!(floats(&only_tensor(one("FP32", "[]", "3"))), [3.0]);
    assert_eq!(floats(&only_tensor(one("FP32", "[]", "[3]"))), [3.0]);
    for (shape, data) in
        [("[0]", "[]"), ("[0,4]", "[]"), ("[2,0]", "[]"), ("[2,0]", "[[],[]]"), ("[0,1e0]", "")]
    {
        if data.is_empty() {
            assert!(one("FP32", shape, "[]").is_err());
            continue;
        }
        assert_eq!(only_tensor(one("FP32", shape, data)).element_count(), 0);
        assert_eq!(only_tensor(one("BYTES", shape, data)).element_count(), 0);
    }
    for datatype in Datatype::ALL {
        let tensor = only_tensor(one_binary(datatype.name(), "[3,0]", b""));
        assert_eq!((tensor.datatype(), tensor.shape()), (datatype, &[3, 0][..]));
    }
}

#[test]
fn numbers_keep_their_value() {
    let tensor = only_tensor(one("FP32", "[5]", "[0.1,16777217,-0,1e-46,3.4028235e38]"));
    assert_eq!(floats(&tensor), [0.1, 16777216.0, -0.0, 0.0, f32::MAX]);
    // Rounded once, not by way of a double: just above half-way between two singles.
    let tensor = only_tensor(one("FP32", "[1]", "[1.00000005960464477539062500000001]"));
    assert_eq!(floats(&tensor), [1.0000001]);
    let extremes = "[-9223372036854775808,9223372036854775807,-0]";
    let tensor = only_tensor(one("INT64", "[3]", extremes));
    assert_eq!(raw(&tensor), [i64::MIN, i64::MAX, 0].map(i64::to_le_bytes).as_flattened());
    let tensor = only_tensor(one("UINT64", "[1]", "[18446744073709551615]"));
    assert_eq!(raw(&tensor), u64::MAX.to_le_bytes());
    assert_eq!(raw(&only_tensor(one("BOOL", "[2,1]", "[[true],[false]]"))), [1, 0]);
    assert_eq!(raw(&only_tensor(one_binary("BOOL", "[3]", &[0, 1, 200]))), [0, 1, 1]);
}

#[test]
fn strings_in_both_forms() {
    let tensor = only_tensor(one("BYTES", "[2,2]", r#"[["a",""],["ü\n","\u20ac"]]"#));
    assert_eq!(strings(&tensor), ["a", "", "ü\n", "€"]);
    let tensor = only_tensor(one_binary("BYTES", "[2]", b"\x02\0\0\0hi\0\0\0\0"));
    assert_eq!(strings(&tensor), ["hi", ""]);
}

#[test]
fn json_and_binary_inputs_mix() {
    let text = r#"{"inputs":[
        {"name":"a","shape":[2],"datatype":"INT16","parameters":{"binary_data_size":4}},
        {"name":"b","shape":[1],"datatype":"FP32","data":[7]},
        {"name":"c","shape":[1],"datatype":"UINT8","parameters":{"binary_data_size":1}}]}"#;
    let request = mixed(text, &[1, 0, 2, 0, 9]).unwrap();
    let names: Vec<&str> = request.inputs.iter().map(|input| input.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(raw(&request.inputs[0].tensor), [1, 0, 2, 0]);
    assert_eq!(floats(&request.inputs[1].tensor), [7.0]);
    assert_eq!(raw(&request.inputs[2].tensor), [9]);
}

#[test]
fn binary_data_are_not_copied() {
    let text = binary_text("FP32", "[2]", 8);
    let body = Bytes::from([text.as_bytes(), &[7; 8]].concat());
    let header = text.len().to_string();
    let request = decode_infer(&body, Some(&header), NO_RAW, &DecodeLimits::default()).unwrap();
    assert_eq!(raw(&request.inputs[0].tensor).as_ptr(), body[text.len()..].as_ptr());
}

#[test]
fn which_outputs_are_binary() {
    let outputs = r#"[{"name":"a","parameters":{"binary_data":false}},{"name":"b","parameters":{"binary_data":true}},{"name":"c"},{"name":"d","parameters":{"classification":3,"other":[1]}},{"name":"e","parameters":{"classification":0}}]"#;
    for (flag, default) in [("true", true), ("false", false), ("null", false)] {
        let text = format!(
            r#"{{"parameters":{{"binary_data_output":{flag}}},"inputs":[],"outputs":{outputs}}}"#
        );
        let request = json(&text).unwrap();
        let forms: Vec<_> = (0..6).map(|position| request.output_form(position)).collect();
        assert_eq!(
            forms,
            [
                (false, None),
                (true, None),
                (default, None),
                (default, Some(3)),
                (default, None),
                (default, None)
            ]
        );
        assert_eq!(request.default_binary, default);
    }
}

#[test]
fn parameters_arrive() {
    let text = r#"{"id":"","model_name":"m","parameters":{"timeout":1500,"priority":2,"sequence_id":"s","sequence_start":true,"sequence_end":false,"headers":null,"note":"n","x":-1,"y":1.5,"z":18446744073709551615,"f":true},"inputs":[],"outputs":null}"#;
    let request = json(text).unwrap();
    assert_eq!(request.id.as_deref(), Some(""));
    let parameters = request.parameters;
    assert_eq!((parameters.timeout_us, parameters.priority), (Some(1500), Some(2)));
    assert_eq!(parameters.sequence_id, Some(SequenceId::Text("s".into())));
    assert!(parameters.sequence_start && !parameters.sequence_end);
    let custom: Vec<_> = parameters.custom.into_iter().collect();
    let expected = [
        ("f", ParameterValue::Bool(true)),
        ("note", ParameterValue::Text("n".into())),
        ("x", ParameterValue::Signed(-1)),
        ("y", ParameterValue::Float(1.5)),
        ("z", ParameterValue::Unsigned(u64::MAX)),
    ]
    .map(|(name, value)| (name.to_owned(), value));
    assert_eq!(custom, expected);
    let defaults =
        json(r#"{"parameters":{"timeout":0,"priority":0,"sequence_id":0},"inputs":[]}"#).unwrap();
    assert_eq!(defaults.parameters, crate::oip::Parameters::default());
    assert_eq!(json(r#"{"inputs":[]}"#).unwrap().id, None);
    assert!(json(r#"{"id":null,"parameters":null,"inputs":null}"#).is_ok());
}

#[test]
fn raw_requests_take_the_shape_of_the_model() {
    let decode = |spec: &TensorSpec, batched, body: &'static [u8]| {
        let raw = RawInput { inputs: std::slice::from_ref(spec), batched };
        let body = Bytes::from_static(body);
        decode_infer(&body, Some("0"), raw, &DecodeLimits::default()).unwrap()
    };
    for (shape, batched, expected) in [
        (&[-1, 4][..], true, &[1, 4][..]),
        (&[-1, 4], false, &[1, 4]),
        (&[-1, -1], true, &[1, 4]),
        (&[-1], false, &[4]),
        (&[4], false, &[4]),
    ] {
        let request = decode(&spec("x", Datatype::Fp32, shape), batched, &[0; 16]);
        assert!(request.default_binary && request.outputs.is_empty());
        assert_eq!(request.inputs[0].name, "x");
        assert_eq!(only_tensor(Ok(request)).shape(), expected);
    }
    let request = decode(&spec("x", Datatype::Bytes, &[-1, 1]), true, b"hello");
    let tensor = only_tensor(Ok(request));
    assert_eq!((strings(&tensor), tensor.shape()), (vec!["hello"], &[1, 1][..]));
    let request = decode(&spec("x", Datatype::Fp32, &[-1]), false, b"");
    assert_eq!(only_tensor(Ok(request)).shape(), [0]);
}
