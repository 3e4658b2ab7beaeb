//! Outputs to an HTTP answer.

use super::body::offload;
use super::error::ApiError;
use crate::oip::request::RequestedOutput;
use crate::oip::response::{Classification, Encoded, InferResponse, ResponseOutput, encode_infer};
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, header};
use balm_inference::predict::Prediction;
use balm_inference::tensor::Tensor;
use balm_inference::version::Serving;
use std::sync::Arc;

/// First twelve hex digits of the digest of what answered.
pub(super) const MODEL_DIGEST: HeaderName = HeaderName::from_static("x-model-digest");

/// Length of the JSON part of a body with binary tensors, bytes.
pub(super) static JSON_LENGTH: HeaderName =
    HeaderName::from_static("inference-header-content-length");

/// Form of an answer, as the request asked for it.
pub(super) struct Form {
    /// Indices of the outputs into the contract's, in the order of asking.
    pub(super) selected: Vec<usize>,
    /// What was said of each; empty when all outputs are wanted.
    pub(super) requested: Vec<RequestedOutput>,
    /// Whether outputs of which nothing was said are binary.
    pub(super) default_binary: bool,
    /// The request's `id`.
    pub(super) id: Option<String>,
}

/// The answer of an infer request.
pub(super) async fn infer(
    serving: &Arc<Serving>,
    prediction: Prediction,
    form: Form,
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
    let version = serving.version.to_string();
    let outputs = form
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
        outputs,
    };
    Ok(encode_infer(&response)?)
}

fn respond(serving: &Serving, encoded: Encoded) -> Response<Body> {
    let mut response = Response::new(Body::from(encoded.body));
    let headers = response.headers_mut();
    match encoded.json_len {
        None => {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        Some(length) => {
            headers
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            headers.insert(&JSON_LENGTH, HeaderValue::from(length));
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
