//! Outputs to an HTTP answer.

use super::body::offload;
use super::error::ApiError;
use super::headers::JSON_LENGTH;
use crate::oip::request::RequestedOutput;
use crate::oip::response::{Classification, InferResponse, ResponseOutput, encode_infer};
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, header};
use balm_inference::predict::Prediction;
use balm_inference::tensor::{Tensor, TensorData};
use balm_inference::version::Serving;
use bytes::{BufMut, Bytes, BytesMut};
use std::sync::{Arc, OnceLock};

/// First twelve hex digits of the digest of what answered.
pub(super) const MODEL_DIGEST: HeaderName = HeaderName::from_static("x-model-digest");

/// Form of an answer, as the request asked for it.
#[derive(Clone)]
pub(super) struct Form {
    /// Indices of the outputs into the contract's, in the order of asking.
    pub(super) selected: Arc<[usize]>,
    /// What was said of each; empty when all outputs are wanted.
    pub(super) requested: Vec<RequestedOutput>,
    /// Whether outputs of which nothing was said are binary.
    pub(super) default_binary: bool,
    /// The request's `id`.
    pub(super) id: Option<String>,
    /// What the first answer in this form began with, where the form is kept for further ones.
    pub(super) beginning: Option<OnceLock<Beginning>>,
}

/// An answer whose outputs are all binary, but for their bytes: the same for all outputs of the same shapes.
#[derive(Clone)]
pub(super) struct Beginning {
    shapes: Vec<Vec<usize>>,
    json: Bytes,
    json_length: HeaderValue,
}

/// A body, and the length of its JSON part where there is another.
struct Encoded {
    body: Bytes,
    json_length: Option<HeaderValue>,
}

impl Form {
    /// The answer with `outputs`, if one with such outputs was encoded in this form before.
    fn again(&self, outputs: &[Tensor]) -> Option<Encoded> {
        let Beginning { shapes, json, json_length } = self.beginning.as_ref()?.get()?;
        if !shapes.iter().map(Vec::as_slice).eq(outputs.iter().map(Tensor::shape)) {
            return None;
        }
        let room = json.len() + outputs.iter().map(Tensor::byte_size).sum::<usize>();
        let mut body = BytesMut::with_capacity(room);
        body.put_slice(json);
        for output in outputs {
            // A form is kept only for outputs of fixed size.
            let TensorData::Raw(data) = output.data() else { return None };
            body.put_slice(data);
        }
        Some(Encoded { body: body.freeze(), json_length: Some(json_length.clone()) })
    }

    /// Keeps how the answer with `outputs` begins, where that can be used again.
    fn keep(&self, outputs: &[Tensor], encoded: &Encoded) {
        let (Some(beginning), Some(json_length)) = (&self.beginning, &encoded.json_length) else {
            return;
        };
        let raw = |output: &Tensor| matches!(output.data(), TensorData::Raw(_));
        let binary: usize = outputs.iter().map(Tensor::byte_size).sum();
        let json = encoded.body.len().checked_sub(binary).and_then(|end| encoded.body.get(..end));
        // Of outputs in JSON beside binary ones the text is another each time.
        let all_binary = (0..outputs.len()).all(|position| {
            self.requested
                .get(position)
                .map_or(self.default_binary, |asked| asked.binary && asked.classification.is_none())
        });
        if let Some(json) = json.filter(|_| all_binary && outputs.iter().all(raw)) {
            let _ = beginning.set(Beginning {
                shapes: outputs.iter().map(|output| output.shape().to_vec()).collect(),
                json: Bytes::copy_from_slice(json),
                json_length: json_length.clone(),
            });
        }
    }
}

/// The answer of an infer request.
pub(super) async fn infer(
    serving: &Arc<Serving>,
    prediction: Prediction,
    form: Arc<Form>,
) -> Result<Response<Body>, ApiError> {
    let size = prediction.outputs.iter().map(Tensor::byte_size).sum();
    let encoding = {
        let serving = Arc::clone(serving);
        move || encode(&serving, &prediction.outputs, &form)
    };
    let encoded = offload(size, None, encoding).await??;
    Ok(respond(serving, encoded))
}

fn encode(serving: &Serving, outputs: &[Tensor], form: &Form) -> Result<Encoded, ApiError> {
    if let Some(encoded) = form.again(outputs) {
        return Ok(encoded);
    }
    let version = serving.version.to_string();
    let named = form
        .selected
        .iter()
        .zip(outputs)
        .enumerate()
        .map(|(position, (index, tensor))| {
            let name = serving.contract.outputs[*index].name.as_str();
            let asked = form.requested.get(position);
            ResponseOutput {
                name,
                tensor,
                binary: asked.map_or(form.default_binary, |asked| asked.binary),
                classification: asked.and_then(|asked| asked.classification).map(|count| {
                    let labels = serving.settings.labels.get(name).map_or(&[][..], Vec::as_slice);
                    Classification { count, labels }
                }),
            }
        })
        .collect();
    let response = InferResponse {
        model_name: &serving.model,
        model_version: &version,
        id: form.id.as_deref(),
        parameters: None,
        outputs: named,
    };
    let encoded = encode_infer(&response)?;
    let json_length = encoded.json_len.map(HeaderValue::from);
    let encoded = Encoded { body: encoded.body, json_length };
    form.keep(outputs, &encoded);
    Ok(encoded)
}

fn respond(serving: &Serving, encoded: Encoded) -> Response<Body> {
    let mut response = Response::new(Body::from(encoded.body));
    let headers = response.headers_mut();
    match encoded.json_length {
        None => {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        Some(length) => {
            headers
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            headers.insert(JSON_LENGTH, length);
        }
    }
    add_digest(headers, serving);
    response
}

/// Tells which bytes answered.
pub(super) fn add_digest(headers: &mut axum::http::HeaderMap, serving: &Serving) {
    if let Ok(value) = HeaderValue::from_maybe_shared(serving.short_digest.clone()) {
        headers.insert(MODEL_DIGEST, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use balm_inference::datatype::Datatype;

    fn tensor(shape: &[usize], byte: u8) -> Tensor {
        let count: usize = shape.iter().product();
        let bytes = vec![byte; count * 4];
        Tensor::raw(Datatype::Fp32, shape.to_vec(), bytes.into()).unwrap()
    }

    fn form(binary: bool) -> Form {
        Form {
            selected: Arc::new([0, 1]),
            requested: Vec::new(),
            default_binary: binary,
            id: None,
            beginning: Some(OnceLock::new()),
        }
    }

    fn encoded(json: &str, outputs: &[Tensor]) -> Encoded {
        let mut body = json.as_bytes().to_vec();
        for output in outputs {
            if let TensorData::Raw(data) = output.data() {
                body.extend_from_slice(data);
            }
        }
        Encoded { body: body.into(), json_length: Some(HeaderValue::from(json.len())) }
    }

    #[test]
    fn an_answer_with_outputs_of_the_same_shapes_begins_the_same() {
        let form = form(true);
        let outputs = [tensor(&[1, 2], 1), tensor(&[1], 2)];
        assert!(form.again(&outputs).is_none(), "nothing was encoded yet");
        form.keep(&outputs, &encoded("{…}", &outputs));
        let others = [tensor(&[1, 2], 3), tensor(&[1], 4)];
        let again = form.again(&others).unwrap();
        assert_eq!(again.body, encoded("{…}", &others).body);
        assert_eq!(again.json_length, Some(HeaderValue::from("{…}".len())));
        for misfit in [vec![], vec![tensor(&[1, 2], 3)], vec![tensor(&[2, 1], 3), tensor(&[1], 4)]]
        {
            assert!(form.again(&misfit).is_none());
        }
    }

    #[test]
    fn what_is_written_in_json_is_written_anew() {
        let outputs = [tensor(&[1, 2], 1), tensor(&[1], 2)];
        let output = |binary, classification| RequestedOutput {
            name: String::new(),
            binary,
            classification,
        };
        let forms = [
            form(false),
            Form { requested: vec![output(true, None), output(false, None)], ..form(true) },
            Form { requested: vec![output(true, None), output(true, Some(2))], ..form(true) },
            Form { beginning: None, ..form(true) },
        ];
        for form in forms {
            form.keep(&outputs, &encoded("{}", &outputs));
            assert!(form.again(&outputs).is_none());
        }
        let texts = [Tensor::strings(vec![1], vec![Bytes::from_static(b"x")]).unwrap()];
        let form = form(true);
        form.keep(&texts, &encoded("{}", &[]));
        assert!(form.again(&texts).is_none(), "texts have a length each");
    }
}
