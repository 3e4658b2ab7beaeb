//! `POST /v1/models/{m}:predict`: the older, shorter dialect of TensorFlow Serving and KServe, for a person with curl.

use super::admit::{Admitted, Handler};
use super::answer;
use super::body;
use super::error::ApiError;
use super::headers::Coding;
use super::infer::{accept, decoded_size, read, run};
use crate::oip::DecodeLimits;
use crate::oip::encoding::decompress;
use crate::oip::v1::{PredictForm, PredictRequest, decode_predict, encode_predict};
use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use balm_inference::predict::PredictError;
use balm_inference::tensor::Tensor;
use balm_inference::version::Serving;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Instant;

/// The v1 predict handler, inside admission.
#[derive(Clone)]
pub(super) struct PredictV1;

impl Handler for PredictV1 {
    fn handle(
        self,
        admitted: Admitted,
    ) -> impl Future<Output = Result<Response<Body>, ApiError>> + Send {
        predict(admitted)
    }
}

async fn predict(admitted: Admitted) -> Result<Response<Body>, ApiError> {
    let Admitted { coding, body, serving, mut permit, deadline, class, arrived } = admitted;
    let limit = deadline.map(|asked| serving.deadline(arrived, Some(asked), arrived));
    let body = read(&serving, body, &mut permit, limit).await?;
    let encoding = coding.encoding()?;
    let size = decoded_size(&serving, &mut permit, encoding, body.len())?;
    let decoding = {
        let serving = Arc::clone(&serving);
        move || prepare(&serving, &body, &coding)
    };
    let (inputs, form, bytes) = body::offload(size, limit, decoding).await??;
    if let Some(more) = bytes.checked_sub(permit.bytes()) {
        permit.reserve(more).map_err(PredictError::Shed)?;
    }
    let deadline = serving.deadline(arrived, deadline, Instant::now());
    let all: Arc<[usize]> = (0..serving.contract.outputs.len()).collect();
    let prediction = run(&serving, inputs, all, deadline, class, permit).await?;
    let size = prediction.outputs.iter().map(Tensor::byte_size).sum();
    let encoding = {
        let serving = Arc::clone(&serving);
        move || {
            let names = serving.contract.outputs.iter().map(|spec| spec.name.as_str());
            let outputs: Vec<(&str, &Tensor)> = names.zip(&prediction.outputs).collect();
            encode_predict(form, &outputs)
        }
    };
    let encoded = body::offload(size, None, encoding).await??;
    let mut response = Response::new(Body::from(encoded));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer::add_digest(headers, &serving);
    Ok(response)
}

type Prepared = (Vec<Tensor>, PredictForm, u64);

fn prepare(serving: &Serving, body: &Bytes, coding: &Coding) -> Result<Prepared, ApiError> {
    let encoding = coding.encoding()?;
    let limit = usize::try_from(serving.settings.max_body_bytes).unwrap_or(usize::MAX);
    let body = decompress(body.clone(), encoding, limit)?;
    let PredictRequest { inputs, form } =
        decode_predict(&body, &serving.contract, &DecodeLimits::default())?;
    let inputs = accept(serving, inputs)?;
    Ok((inputs, form, body.len() as u64))
}
