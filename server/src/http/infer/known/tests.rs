use super::*;
use crate::http::answer::Form;
use crate::oip::DecodeLimits;
use crate::oip::request::{RawInput, decode_infer};
use proptest::prelude::*;

/// A body with `json` and the bytes of tensors after it, and the header for it.
fn body(json: &str, binary: &[u8]) -> (String, Bytes) {
    (json.len().to_string(), [json.as_bytes(), binary].concat().into())
}

/// The request as everybody's is read.
fn read(length: &str, body: &Bytes) -> Prepared {
    let raw = RawInput { inputs: &[], batched: false };
    let request = decode_infer(body, Some(length), raw, &DecodeLimits::default()).unwrap();
    Prepared {
        inputs: request.inputs.into_iter().map(|input| input.tensor).collect(),
        timeout: request.parameters.timeout_us.map(Duration::from_micros),
        priority: request.parameters.priority,
        form: Arc::new(Form {
            selected: Arc::new([0]),
            requested: request.outputs,
            default_binary: request.default_binary,
            id: request.id,
            beginning: None,
        }),
        bytes: body.len() as u64,
    }
}

/// Whether `known` reads the request, having been told of it if not. What it reads is what everybody reads.
fn meet(known: &Known, (length, body): &(String, Bytes)) -> bool {
    let general = read(length, body);
    let Some(prepared) = known.read(length, body) else {
        known.learn(length, body, &general);
        return false;
    };
    assert_eq!(prepared.inputs, general.inputs);
    assert_eq!((prepared.timeout, prepared.priority), (general.timeout, general.priority));
    assert_eq!(prepared.form.requested, general.form.requested);
    assert_eq!(prepared.form.default_binary, general.form.default_binary);
    assert_eq!(prepared.bytes, general.bytes);
    true
}

const FLOATS: &str = r#"{"inputs":[{"name":"a","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}],"parameters":{"timeout":7,"binary_data_output":true}}"#;

#[test]
fn a_description_that_comes_again_is_known() {
    let known = Known::default();
    let met: Vec<bool> = (0..4u8).map(|byte| meet(&known, &body(FLOATS, &[byte; 8]))).collect();
    assert_eq!(met, [false, false, true, true], "kept when it came a second time");
    let (length, whole) = body(FLOATS, &[7; 8]);
    assert!(known.read(&length, &whole.slice(..whole.len() - 1)).is_none(), "a byte is missing");
    assert!(known.read(&length, &[&whole[..], b"x"].concat().into()).is_none(), "one too many");
    assert!(known.read("12", &whole).is_none(), "another length was announced");
    let other = FLOATS.replace("\"a\"", "\"b\"");
    assert!(known.read(&length, &body(&other, &[7; 8]).1).is_none(), "another text");
}

#[test]
fn what_cannot_be_read_by_its_description_is_not_kept() {
    let input = |datatype: &str, rest: &str| {
        format!(r#"{{"inputs":[{{"name":"a","shape":[1],"datatype":"{datatype}",{rest}}}]}}"#)
    };
    let size = |bytes: usize| format!(r#""parameters":{{"binary_data_size":{bytes}}}"#);
    let long = format!(r#""note":"{}",{}"#, "x".repeat(JSON_BYTES_MAX), size(4));
    let two = r#"{"inputs":[{"name":"a","shape":[1],"datatype":"FP32","data":[1]},
        {"name":"b","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}]}"#;
    let table = [
        ("a byte may have to be made 1", body(&input("BOOL", &size(1)), &[1])),
        ("text", body(&input("BYTES", &size(5)), &[1, 0, 0, 0, b'x'])),
        ("in JSON", body(&input("FP32", r#""data":[1]"#), &[])),
        ("in both", body(two, &[0; 4])),
        ("of one request alone", body(&FLOATS.replacen('{', r#"{"id":"1","#, 1), &[0; 8])),
        ("too long", body(&input("FP32", &long), &[0; 4])),
    ];
    for (why, request) in table {
        let known = Known::default();
        assert!((0..4).all(|_| !meet(&known, &request)), "{why}");
    }
}

#[test]
fn newcomers_do_not_push_out_what_is_known_and_the_number_has_a_bound() {
    let named = |name: usize| body(&FLOATS.replace("\"a\"", &format!("\"{name}\"")), &[0; 8]);
    let known = Known::default();
    for _ in 0..2 {
        meet(&known, &named(0));
    }
    for name in 1..1000 {
        meet(&known, &named(name));
    }
    assert!(meet(&known, &named(0)), "each of the others came once");
    for name in 0..100 {
        for _ in 0..2 {
            meet(&known, &named(name));
        }
    }
    assert_eq!(known.kept.load().len(), KEPT_MAX);
    assert!(meet(&known, &named(99)) && !meet(&known, &named(0)), "the oldest made room");
}

proptest! {
    /// Whatever comes in whatever order, what is known is read as it would have been read.
    #[test]
    fn what_is_known_is_read_as_ever(
        requests in proptest::collection::vec((0usize..4, 1usize..4, any::<u8>(), any::<bool>()), 1..60),
    ) {
        let known = Known::default();
        for (name, rows, byte, second) in requests {
            let size = rows * 8;
            let mut json = FLOATS
                .replace("\"a\"", &format!("\"{name}\""))
                .replace("[1,2]", &format!("[{rows},2]"))
                .replace(":8", &format!(":{size}"));
            let mut binary = vec![byte; size];
            if second {
                let other = r#"[{"name":"z","shape":[3],"datatype":"INT16","parameters":{"binary_data_size":6}},"#;
                json = json.replacen('[', other, 1);
                binary.extend([byte.wrapping_add(1); 6]);
            }
            meet(&known, &body(&json, &binary));
        }
    }
}
