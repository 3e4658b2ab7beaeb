//! What an infer request of the Open Inference Protocol looks like with binary tensors, and how its answer is judged.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::header::{CONTENT_TYPE, HOST};
use serde::Deserialize;
use serde_json::json;

use crate::golden::{Case, Tensor};

/// Says how many bytes of a body are JSON; raw tensors follow.
pub(crate) const HEADER_LENGTH: &str = "inference-header-content-length";

/// How a server's answer differs from the recorded one.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum WrongAnswer {
    #[error("the answer does not say how many of its {0} bytes are JSON")]
    NoHeaderLength(usize),
    #[error("the answer is not what the protocol allows: {0}")]
    Malformed(String),
    #[error("output {0:?} is missing, or is not binary")]
    Missing(String),
    #[error("output {name:?} is {found}, expected {expected}")]
    Kind { name: String, found: String, expected: String },
    #[error("output {0:?} has other values than recorded")]
    Values(String),
    #[error("the answer has {found} bytes of tensors, expected {expected}")]
    Size { found: usize, expected: usize },
}

/// The request that asks `model` for the case, every tensor binary both ways.
pub(crate) fn infer_request(model: &str, case: &Case) -> hyper::http::Result<Request<Full<Bytes>>> {
    let inputs: Vec<_> = case
        .inputs
        .iter()
        .map(|Tensor { name, shape, values }| {
            json!({"name": name, "shape": shape, "datatype": values.datatype(),
                   "parameters": {"binary_data_size": values.byte_size()}})
        })
        .collect();
    let head = json!({"inputs": inputs, "parameters": {"binary_data_output": true}}).to_string();
    let length = head.len();
    let mut body = head.into_bytes();
    for input in &case.inputs {
        input.values.write(&mut body);
    }
    post(&format!("/v2/models/{model}/infer"), Bytes::from(body), length)
}

/// The same body, sent to a path that does nothing with it.
pub(crate) fn noop_request(infer: &Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    let mut request = infer.clone();
    *request.uri_mut() = hyper::Uri::from_static("/noop");
    request
}

fn post(
    path: &str,
    body: Bytes,
    header_length: usize,
) -> hyper::http::Result<Request<Full<Bytes>>> {
    Request::post(path)
        .header(HOST, "localhost")
        .header(CONTENT_TYPE, "application/octet-stream")
        .header(HEADER_LENGTH, header_length)
        .body(Full::new(body))
}

#[derive(Deserialize)]
struct Answer {
    outputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    #[serde(default)]
    parameters: OutputParameters,
}

#[derive(Default, Deserialize)]
struct OutputParameters {
    binary_data_size: Option<usize>,
}

/// Whether an answer is the recorded one, tensor by tensor.
pub(crate) fn judge(
    case: &Case,
    header_length: Option<usize>,
    body: &[u8],
) -> Result<(), WrongAnswer> {
    let length = header_length.ok_or(WrongAnswer::NoHeaderLength(body.len()))?;
    let (head, mut rest) = body.split_at_checked(length).ok_or_else(|| {
        WrongAnswer::Malformed(format!("{length} bytes of JSON in {}", body.len()))
    })?;
    let answer: Answer =
        serde_json::from_slice(head).map_err(|error| WrongAnswer::Malformed(error.to_string()))?;
    // Raw tensors follow in the order of the outputs that have any.
    let mut found = Vec::with_capacity(answer.outputs.len());
    for output in answer.outputs {
        let size = output.parameters.binary_data_size.unwrap_or(0);
        let (bytes, after) = rest.split_at_checked(size).ok_or_else(|| {
            WrongAnswer::Malformed(format!("output {:?} is cut off", output.name))
        })?;
        rest = after;
        found.push((output, bytes));
    }
    if !rest.is_empty() {
        return Err(WrongAnswer::Malformed(format!("{} bytes are left over", rest.len())));
    }
    for expected in &case.outputs {
        let missing = || WrongAnswer::Missing(expected.name.clone());
        let (output, bytes) =
            found.iter().find(|(output, _)| output.name == expected.name).ok_or_else(missing)?;
        let kind = |datatype: &str, shape: &[i64]| format!("{datatype} {shape:?}");
        if output.datatype != expected.values.datatype() || output.shape != expected.shape {
            return Err(WrongAnswer::Kind {
                name: expected.name.clone(),
                found: kind(&output.datatype, &output.shape),
                expected: kind(expected.values.datatype(), &expected.shape),
            });
        }
        if bytes.is_empty() {
            return Err(missing());
        }
        if !expected.values.matches(bytes, case.tolerance) {
            return Err(WrongAnswer::Values(expected.name.clone()));
        }
    }
    Ok(())
}

/// What can be said of an answer without reading it: does it hold as many bytes of tensors as the recorded one?
pub(crate) fn judge_size(
    expected: usize,
    header_length: Option<usize>,
    body: &[u8],
) -> Result<(), WrongAnswer> {
    let length = header_length.ok_or(WrongAnswer::NoHeaderLength(body.len()))?;
    let found = body.len().saturating_sub(length);
    if found == expected { Ok(()) } else { Err(WrongAnswer::Size { found, expected }) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::golden::Values;
    use crate::golden::tests::GOLDEN;
    use http_body_util::BodyExt as _;

    /// What a server answers: JSON, then tensors, and how long the JSON is.
    pub(crate) fn answer(outputs: &[(&str, &[i64], Values)]) -> (usize, Vec<u8>) {
        let described: Vec<_> = outputs
            .iter()
            .map(|(name, shape, values)| {
                json!({"name": name, "shape": shape, "datatype": values.datatype(),
                       "parameters": {"binary_data_size": values.byte_size()}})
            })
            .collect();
        let mut body = json!({"model_name": "m", "outputs": described}).to_string().into_bytes();
        let length = body.len();
        for (_, _, values) in outputs {
            values.write(&mut body);
        }
        (length, body)
    }

    fn label() -> (&'static str, &'static [i64], Values) {
        ("label", &[1], Values::Int64(vec![-7]))
    }

    fn probabilities() -> (&'static str, &'static [i64], Values) {
        ("p", &[1, 2], Values::Fp32(vec![0.25, 0.7501]))
    }

    fn case() -> Case {
        Case::parse(GOLDEN, None).unwrap()
    }

    fn judged(outputs: &[(&str, &[i64], Values)]) -> Result<(), String> {
        let (length, body) = answer(outputs);
        judge(&case(), Some(length), &body).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_request_is_json_and_then_tensors() {
        let request = infer_request("m", &case()).unwrap();
        assert_eq!(request.uri(), "/v2/models/m/infer");
        let length: usize = request.headers()[HEADER_LENGTH].to_str().unwrap().parse().unwrap();
        assert_eq!(noop_request(&request).uri(), "/noop");
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let head: serde_json::Value = serde_json::from_slice(&body[..length]).unwrap();
        assert_eq!(
            head,
            json!({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32",
                               "parameters": {"binary_data_size": 8}}],
                   "parameters": {"binary_data_output": true}})
        );
        assert_eq!(body[length..], [0, 0, 0, 0x3f, 0, 0, 0, 0x40]);
    }

    #[test]
    fn right_answers_are_right_in_any_order() {
        assert_eq!(judged(&[label(), probabilities()]), Ok(()));
        assert_eq!(judged(&[probabilities(), label()]), Ok(()));
        let further = ("further", [1].as_slice(), Values::Int64(vec![1]));
        assert_eq!(judged(&[probabilities(), further, label()]), Ok(()));
    }

    #[test]
    fn each_way_to_be_wrong_has_its_own_words() {
        let wrong = |outputs: &[(&str, &[i64], Values)]| judged(outputs).unwrap_err();
        assert_eq!(wrong(&[label()]), "output \"p\" is missing, or is not binary");
        assert_eq!(
            wrong(&[("label", &[1], Values::Int64(vec![7])), probabilities()]),
            "output \"label\" has other values than recorded"
        );
        assert_eq!(
            wrong(&[("label", &[1, 1], Values::Int64(vec![-7])), probabilities()]),
            "output \"label\" is INT64 [1, 1], expected INT64 [1]"
        );
        assert_eq!(
            wrong(&[("label", &[1], Values::Fp32(vec![-7.0])), probabilities()]),
            "output \"label\" is FP32 [1], expected INT64 [1]"
        );
        let (length, body) = answer(&[label(), probabilities()]);
        let judge = |length, body: &[u8]| judge(&case(), length, body).unwrap_err().to_string();
        assert!(judge(None, &body).contains("does not say"));
        assert!(judge(Some(body.len() + 1), &body).contains("bytes of JSON"));
        assert!(judge(Some(length), &body[..body.len() - 1]).contains("\"p\" is cut off"));
        assert!(judge(Some(length), &[&body[..], b"x"].concat()).contains("1 bytes are left over"));
    }

    #[test]
    fn later_answers_are_judged_by_size() {
        let (length, body) = answer(&[label(), probabilities()]);
        assert_eq!(case().output_bytes(), 16);
        assert_eq!(judge_size(16, Some(length), &body), Ok(()));
        assert!(judge_size(16, Some(length), &body[1..]).is_err());
        assert!(judge_size(16, None, &body).is_err());
    }
}
