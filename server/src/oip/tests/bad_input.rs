//! Each line under "bad input" that concerns bodies: its own sentence, which names the field.

use super::*;
use crate::oip::ErrorKind;

#[track_caller]
fn says<T: std::fmt::Debug>(result: Result<T, CodecError>, message: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), message);
    assert_eq!(error.kind(), ErrorKind::Malformed, "{error}");
}

#[test]
fn not_json() {
    for (text, message) in [
        ("", "not valid JSON: EOF while parsing a value at line 1 column 0"),
        ("hello", "not valid JSON: expected value at line 1 column 1"),
        ("[]", "found an array, expected an inference request, which is an object"),
        ("null", "found null, expected an inference request, which is an object"),
        (r#"{"inputs":[]"#, "not valid JSON: EOF while parsing an object at line 1 column 12"),
        (
            r#"{"inputs":[{"name":"x""#,
            "inputs[0]: not valid JSON: EOF while parsing an object at line 1 column 22",
        ),
        (
            r#"{"inputs":[]}{}"#,
            "not valid JSON: trailing characters at line 1 column 14; binary tensors after the JSON need the header Inference-Header-Content-Length",
        ),
        ("{}", "inputs: is missing; it is the array of input tensors"),
        (r#"{"inputs":{}}"#, "inputs: found an object, expected an array of inputs"),
        (
            r#"{"inputs":[3]}"#,
            "inputs[0]: found integer `3`, expected an input, which is an object",
        ),
        (r#"{"inputs":[],"inputs":[]}"#, "inputs: appears more than once"),
        (r#"{"id":5,"inputs":[]}"#, "id: found integer `5`, expected a string"),
    ] {
        says(json(text), message);
    }
    let not_utf8 = Bytes::from_static(b"{\"id\":\"\xff\",\"inputs\":[]}");
    let error = decode_infer(&not_utf8, None, NO_RAW, &DecodeLimits::default()).unwrap_err();
    assert!(error.to_string().starts_with("id: not valid JSON: invalid unicode"), "{error}");
}

#[test]
fn nested_deep() {
    let deep = "[".repeat(100_000);
    says(json(&deep), "found an array, expected an inference request, which is an object");
    let closed = format!("{deep}{}", "]".repeat(100_000));
    for shape in ["[1]", "[1,4]", "[]"] {
        let error = one("FP32", shape, &closed).unwrap_err();
        assert!(error.to_string().contains("found an array, expected an FP32 number"), "{error}");
    }
    let error = json(&format!(r#"{{"inputs":{deep}"#)).unwrap_err();
    says(Err::<(), _>(error), "inputs[0]: found an array, expected an input, which is an object");
    let error = json(&format!(r#"{{"parameters":{{"a":{closed}}},"inputs":[]}}"#)).unwrap_err();
    assert!(error.to_string().starts_with("parameters.a: found an array"), "{error}");
    // An unknown member is skipped without recursion, however deep.
    assert!(json(&format!(r#"{{"extra":{closed},"inputs":[]}}"#)).is_ok());
    assert!(json(&format!(r#"{{"extra":{deep}"#)).is_err());
}

#[test]
fn inputs_that_are_incomplete() {
    for (input, message) in [
        (
            r#"{"shape":[1],"datatype":"FP32","data":[1]}"#,
            "inputs[0].name: is missing; it is the name of a model input",
        ),
        (
            r#"{"name":"x","datatype":"FP32","data":[1]}"#,
            "inputs[0].shape: is missing; it is an array of sizes, for example [1, 4]",
        ),
        (
            r#"{"name":"x","shape":[1],"data":[1]}"#,
            "inputs[0].datatype: is missing; it is a name such as FP32 or INT64",
        ),
        (
            r#"{"name":"x","shape":[1],"datatype":"FP32"}"#,
            "inputs[0].data: is missing; give the elements as data, or parameters.binary_data_size and the bytes after the JSON",
        ),
        (
            r#"{"name":"x","shape":[1],"datatype":"FP32","data":[1],"parameters":{"binary_data_size":4}}"#,
            "inputs[0]: give either data or parameters.binary_data_size, not both",
        ),
        (
            r#"{"name":"x","shape":[1],"shape":[1],"datatype":"FP32","data":[1]}"#,
            "inputs[0].shape: appears more than once",
        ),
        (
            r#"{"name":"x","shape":[1],"datatype":"float32","data":[1]}"#,
            "inputs[0].datatype: unknown datatype \"float32\"; known are BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, BF16, FP32, FP64 and BYTES",
        ),
        (
            r#"{"name":"x","shape":[1],"datatype":7,"data":[1]}"#,
            "inputs[0].datatype: found integer `7`, expected the name of a datatype",
        ),
        (
            r#"{"name":["x"],"shape":[1],"datatype":"FP32","data":[1]}"#,
            "inputs[0].name: found an array, expected text",
        ),
    ] {
        says(json(&format!(r#"{{"inputs":[{input}]}}"#)), message);
    }
}

#[test]
fn dimensions() {
    for (shape, message) in [
        (
            "[-1,4]",
            "inputs[0].shape[0]: -1 is not a size; a request gives the real size of each dimension, -1 stands in metadata alone",
        ),
        ("[1,2.5]", "inputs[0].shape[1]: 2.5 is not a whole number"),
        ("[1,4.0]", "inputs[0].shape[1]: 4.0 is not a whole number"),
        (
            "[1,18446744073709551616]",
            "inputs[0].shape[1]: the dimension is too large to be addressed",
        ),
        (
            "[4294967296,4294967296,4294967296]",
            "inputs[0].shape: [4294967296, 4294967296, 4294967296] has more elements than can be addressed",
        ),
        // The elements could be counted, their bytes could not.
        (
            "[9223372036854775807]",
            "inputs[0].shape: [9223372036854775807] has more elements than can be addressed",
        ),
        (
            "[1099511627776]",
            "inputs[0].data: holds 2 elements, shape [1099511627776] asks for 1099511627776",
        ),
        ("4", "inputs[0].shape: found integer `4`, expected an array of sizes, for example [1, 4]"),
        (
            "[\"4\"]",
            "inputs[0].shape[0]: found string \"4\", expected a size, which is a whole number",
        ),
        ("[null]", "inputs[0].shape[0]: found null, expected a size, which is a whole number"),
    ] {
        says(one("FP32", shape, "[1,2]"), message);
    }
    let long = format!("[{}]", vec!["1"; 33].join(","));
    says(one("FP32", &long, "[1]"), "inputs[0].shape: more than 32 dimensions");
}

#[test]
fn data_that_contradict_the_shape() {
    for (shape, data, message) in [
        ("[4]", "[1,2,3]", "inputs[0].data: holds 3 elements, shape [4] asks for 4"),
        ("[2,2]", "[1,2,3]", "inputs[0].data: holds 3 elements, shape [2, 2] asks for 4"),
        (
            "[2,2]",
            "[1,2,3,4,5,6]",
            "inputs[0].data: holds more than 4 elements, shape [2, 2] asks for 4",
        ),
        (
            "[2,2]",
            "[[1,2],[3]]",
            "inputs[0].data[1]: holds 1 elements, dimension 1 of the shape is 2",
        ),
        (
            "[2,2]",
            "[[1,2,3],[4,5]]",
            "inputs[0].data[0]: holds more than 2 elements, dimension 1 of the shape is 2",
        ),
        (
            "[3,2]",
            "[[1,2],[3,4]]",
            "inputs[0].data: holds 2 elements, dimension 0 of the shape is 3",
        ),
        (
            "[1,2]",
            "[[1,2],[3,4]]",
            "inputs[0].data: holds more than 1 elements, dimension 0 of the shape is 1",
        ),
        (
            "[2,2]",
            "[[1,2],3]",
            "inputs[0].data[1]: found integer `3`, expected an array of 2 elements",
        ),
        ("[2,2]", "[1,2,[3],4]", "inputs[0].data[2]: found an array, expected an FP32 number"),
        ("[2]", "[[1,2]]", "inputs[0].data[0]: found an array, expected an FP32 number"),
        ("[1]", "1", "inputs[0].data: found integer `1`, expected an array of 1 element"),
        ("[2]", "{\"a\":1}", "inputs[0].data: found an object, expected an array of 2 elements"),
        ("[2,0]", "[1]", "inputs[0].data: holds more than 0 elements, shape [2, 0] asks for 0"),
        ("[]", "[]", "inputs[0].data: holds 0 elements, shape [] asks for 1"),
    ] {
        says(one("FP32", shape, data), message);
    }
}

#[test]
fn elements_of_the_wrong_kind() {
    for (datatype, element, message) in [
        ("UINT8", "300", "300 is out of range for UINT8 (0 to 255)"),
        ("UINT8", "-1", "-1 is out of range for UINT8 (0 to 255)"),
        ("INT8", "128", "128 is out of range for INT8 (-128 to 127)"),
        ("INT16", "-32769", "-32769 is out of range for INT16 (-32768 to 32767)"),
        ("UINT16", "65536", "65536 is out of range for UINT16 (0 to 65535)"),
        ("INT32", "2147483648", "2147483648 is out of range for INT32 (-2147483648 to 2147483647)"),
        ("UINT32", "-5", "-5 is out of range for UINT32 (0 to 4294967295)"),
        (
            "INT64",
            "9223372036854775808",
            "9223372036854775808 is out of range for INT64 (-9223372036854775808 to 9223372036854775807)",
        ),
        (
            "UINT64",
            "18446744073709551616",
            "1.8446744073709552e19 is out of range for UINT64 (0 to 18446744073709551615)",
        ),
        ("INT64", "1.5", "1.5 is not a whole number, as INT64 needs"),
        ("INT64", "\"1\"", "found string \"1\", expected a whole number for INT64"),
        ("INT64", "true", "found boolean `true`, expected a whole number for INT64"),
        ("FP32", "\"1.0\"", "found string \"1.0\", expected an FP32 number"),
        ("FP32", "null", "found null, expected an FP32 number"),
        ("FP32", "1e39", "the number is too large for the datatype"),
        ("FP64", "1e309", "the number is too large for the datatype"),
        ("BOOL", "1", "found integer `1`, expected true or false for BOOL"),
        ("BYTES", "1", "found integer `1`, expected text for BYTES"),
    ] {
        let good = match datatype {
            "BOOL" => "true",
            "BYTES" => "\"a\"",
            _ => "1",
        };
        let data = format!("[{},{element}]", [good; 7].join(","));
        says(one(datatype, "[8]", &data), &format!("inputs[0].data[7]: {message}"));
        let data = format!("[[{}],[{good},{element}]]", [good; 2].join(","));
        says(one(datatype, "[2,2]", &data), &format!("inputs[0].data[1][1]: {message}"));
    }
    for datatype in ["FP16", "BF16"] {
        says(
            one(datatype, "[1]", "[1]"),
            &format!(
                "inputs[0].data: {datatype} has no JSON form; send it as binary data (parameters.binary_data_size and the header Inference-Header-Content-Length)"
            ),
        );
    }
    for literal in ["NaN", "Infinity", "-Infinity", "1,\n NaN"] {
        says(
            one("FP32", "[2]", &format!("[{literal},1]")),
            "inputs[0].data: JSON has no NaN and no Infinity; send this tensor as binary data (parameters.binary_data_size)",
        );
    }
    // A lone surrogate passes the grammar and fails as text.
    let error = one("BYTES", "[1]", r#"["\ud800"]"#).unwrap_err();
    assert!(error.to_string().starts_with("inputs[0].data[0]: not valid JSON: "), "{error}");
    // A long value does not make a long message.
    let error = one("FP32", "[1]", &format!("[\"{}\"]", "ä".repeat(100_000))).unwrap_err();
    assert!(error.to_string().len() < 600 && error.to_string().ends_with("an FP32 number"));
}

#[test]
fn parameters() {
    for (parameters, message) in [
        (
            r#"{"triton_enable_empty_final_response":true}"#,
            "parameters.triton_enable_empty_final_response: names that begin with triton_ are reserved for the server; leave it out",
        ),
        (
            r#"{"timeout":-1}"#,
            "parameters.timeout: found integer `-1`, expected a whole number of microseconds",
        ),
        (
            r#"{"timeout":1.5}"#,
            "parameters.timeout: found floating point `1.5`, expected a whole number of microseconds",
        ),
        (r#"{"timeout":1,"timeout":2}"#, "parameters.timeout: appears more than once"),
        (r#"{"a":1,"a":2}"#, "parameters.a: appears more than once"),
        (
            r#"{"binary_data_output":1}"#,
            "parameters.binary_data_output: found integer `1`, expected true or false",
        ),
        (
            r#"{"sequence_id":true}"#,
            "parameters.sequence_id: found boolean `true`, expected a whole number or text",
        ),
        (
            r#"{"a":{"b":1}}"#,
            "parameters.a: found an object, expected text, a number, true or false",
        ),
        ("[]", "parameters: found an array, expected an object of parameters"),
    ] {
        says(json(&format!(r#"{{"parameters":{parameters},"inputs":[]}}"#)), message);
    }
    for (outputs, message) in [
        (r#"[{}]"#, "outputs[0].name: is missing; it is the name of a model output"),
        (
            r#"[{"name":"a"},{"name":"y","parameters":{"binary_data":"yes"}}]"#,
            "outputs[1].parameters.binary_data: found string \"yes\", expected true or false",
        ),
        (
            r#"[{"name":"y","parameters":{"classification":-3}}]"#,
            "outputs[0].parameters.classification: found integer `-3`, expected the number of classes to return",
        ),
    ] {
        says(json(&format!(r#"{{"inputs":[],"outputs":{outputs}}}"#)), message);
    }
    let many: Vec<String> = (0..65).map(|index| format!(r#""p{index}":1"#)).collect();
    let text = format!(r#"{{"parameters":{{{}}},"inputs":[]}}"#, many.join(","));
    says(json(&text), "parameters.p64: more than 64 parameters");
    let many = vec![r#"{"name":"y"}"#; 65].join(",");
    says(json(&format!(r#"{{"inputs":[],"outputs":[{many}]}}"#)), "outputs: more than 64 outputs");
}

#[test]
fn shared_memory_is_not_implemented() {
    let inputs = r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","parameters":{"shared_memory_region":"r","shared_memory_byte_size":4}}]}"#;
    let outputs =
        r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"shared_memory_region":"r"}}]}"#;
    for (text, field) in [(inputs, "inputs[0]"), (outputs, "outputs[0]")] {
        let error = json(text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotImplemented);
        assert_eq!(
            error.to_string(),
            format!(
                "{field}.parameters.shared_memory_region: shared memory is not supported here; send and ask for tensors in the body"
            )
        );
    }
}

#[test]
fn binary_sizes_that_do_not_add_up() {
    let text = |size| binary_text("FP32", "[1,4]", size);
    says(
        mixed(&text(12), &[0; 12]),
        "inputs[0].parameters.binary_data_size: is 12, shape [1, 4] of FP32 needs 16 bytes",
    );
    says(
        mixed(&text(16), &[0; 12]),
        "inputs[0].parameters.binary_data_size: is 16, only 12 bytes are left in the body after the JSON part",
    );
    says(
        mixed(&text(16), &[0; 20]),
        "4 bytes of the body are left over after the JSON part and the binary inputs; the sizes must add up to the body",
    );
    says(
        mixed(r#"{"inputs":[]}"#, b"x"),
        "1 bytes of the body are left over after the JSON part and the binary inputs; the sizes must add up to the body",
    );
    says(
        json(&text(16)),
        "inputs[0].parameters.binary_data_size: is 16, only 0 bytes are left in the body after the JSON part",
    );
    let huge = binary_text("BYTES", "[1]", usize::MAX);
    says(
        mixed(&huge, b"abc"),
        "inputs[0].parameters.binary_data_size: is 18446744073709551615, only 3 bytes are left in the body after the JSON part",
    );
    let negative = binary_text("FP32", "[1]", 4).replace(":4}", ":-4}");
    says(
        mixed(&negative, &[0; 4]),
        "inputs[0].parameters.binary_data_size: found integer `-4`, expected a whole number of bytes",
    );
}

#[test]
fn size_header() {
    let body = Bytes::from_static(br#"{"inputs":[]}"#);
    let with = |header| decode_infer(&body, Some(header), NO_RAW, &DecodeLimits::default());
    for header in ["", "abc", "-1", "+3", "1.0", "0x10", "1 2"] {
        says(
            with(header),
            &format!(
                "Inference-Header-Content-Length: {header:?} is not a number; it is the length of the JSON part in bytes"
            ),
        );
    }
    says(with("14"), "Inference-Header-Content-Length: says 14 bytes, the body has 13");
    let beyond = "9".repeat(40);
    says(
        with(&beyond),
        "Inference-Header-Content-Length: says 18446744073709551615 bytes, the body has 13",
    );
    says(with("5"), "not valid JSON: EOF while parsing a string at line 1 column 5");
    assert!(with("13").is_ok());
    assert!(with(" 13 ").is_ok());
}

#[test]
fn binary_strings() {
    for (shape, bytes, message) in [
        (
            "[2]",
            &b"\x01\0\0\0a\x01\0"[..],
            "element 1 is cut short: 2 bytes are left where its length belongs; each element is a 4-byte little-endian length and that many bytes",
        ),
        (
            "[1]",
            b"\xff\xff\xff\xffab",
            "element 0 says it is 4294967295 bytes long, only 2 are left; each element is a 4-byte little-endian length and that many bytes",
        ),
        ("[2]", b"\x01\0\0\0a", "holds 1 elements, shape [2] asks for 2"),
        ("[1]", b"\x01\0\0\0a\0\0\0\0", "holds more than 1 elements, shape [1] asks for 1"),
        ("[0]", b"\0\0\0\0", "holds more than 0 elements, shape [0] asks for 0"),
        (
            "[1099511627776]",
            b"\0\0\0\0",
            "holds 1 elements, shape [1099511627776] asks for 1099511627776",
        ),
    ] {
        says(one_binary("BYTES", shape, bytes), &format!("inputs[0]: {message}"));
    }
}

#[test]
fn raw_requests() {
    let x = |shape: &[i64]| vec![spec("x", Datatype::Fp32, shape)];
    let two = vec![spec("x", Datatype::Fp32, &[4]), spec("y", Datatype::Fp32, &[4])];
    let open = vec![TensorSpec { name: "x".into(), datatype: Datatype::Fp32, shape: None }];
    let text = vec![spec("x", Datatype::Bytes, &[2])];
    let needs = "a request without JSON (Inference-Header-Content-Length: 0) needs";
    for (inputs, batched, message) in [
        (&two, false, format!("{needs} a model with exactly one input")),
        (&vec![], false, format!("{needs} a model with exactly one input")),
        (&open, false, format!("{needs} a model that declares the shape of its input")),
        (
            &x(&[-1, -1]),
            false,
            format!("{needs} a model whose input has at most one variable dimension"),
        ),
        (
            &x(&[-1, 4]),
            true,
            "a request without JSON has 12 bytes; FP32 of shape [-1, 4] needs 16 bytes".into(),
        ),
        (
            &x(&[-1, 4]),
            false,
            "a request without JSON has 12 bytes; FP32 of shape [-1, 4] needs a multiple of 16 bytes".into(),
        ),
        (
            &text,
            false,
            "a request without JSON has 12 bytes; BYTES of shape [2] needs exactly one element, the whole body".into(),
        ),
    ] {
        let body = Bytes::from_static(&[0; 12]);
        let raw = RawInput { inputs, batched };
        says(decode_infer(&body, Some("0"), raw, &DecodeLimits::default()), &message);
    }
}

#[test]
fn more_than_the_limits() {
    let limits = DecodeLimits { max_decoded_bytes: 100, ..DecodeLimits::default() };
    let limited = |text: String| {
        decode_infer(&Bytes::from(text), None, NO_RAW, &limits).map(|request| request.inputs.len())
    };
    let strings = one_text("BYTES", "[3]", r#"["","",""]"#);
    let error = limited(strings).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(
        error.to_string(),
        "inputs[0].data: the decoded tensors would take more than the limit of 100 bytes"
    );
    assert_eq!(limited(one_text("BYTES", "[2]", r#"["",""]"#)), Ok(1));
    assert_eq!(limited(one_text("FP64", "[12]", &format!("{:?}", [1; 12]))), Ok(1));
}
