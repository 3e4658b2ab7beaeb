//! `POST /v2/models/{m}[/versions/{v}]/infer`: from an admitted request to its answer.

mod known;

use super::admit::{Admitted, Handler};
use super::answer::{self, Form};
use super::body::{self, Bounds};
use super::error::ApiError;
use super::headers::Coding;
use crate::oip::DecodeLimits;
use crate::oip::encoding::decompress;
use crate::oip::request::{InferRequest, RawInput, decode_infer};
use crate::oip::response::check_output;
use axum::body::Body;
use axum::http::Response;
use balm_inference::admission::{Class, Permit};
use balm_inference::predict::{Deadline, PredictError, Prediction};
use balm_inference::tensor::{NamedTensor, Tensor};
use balm_inference::version::Serving;
use bytes::Bytes;
use known::Known;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The infer handler, inside admission.
#[derive(Clone)]
pub(super) struct Infer;

impl Handler for Infer {
    fn handle(
        self,
        admitted: Admitted,
    ) -> impl Future<Output = Result<Response<Body>, ApiError>> + Send {
        infer(admitted)
    }
}

/// A request that was decoded and keeps the model's contract.
struct Prepared {
    inputs: Vec<Tensor>,
    timeout: Option<Duration>,
    priority: Option<u64>,
    form: Arc<Form>,
    /// Bytes of the body once decompressed.
    bytes: u64,
}

async fn infer(admitted: Admitted) -> Result<Response<Body>, ApiError> {
    let Admitted { coding, body, serving, mut permit, deadline, class, arrived } = admitted;
    let limit = deadline.map(|asked| serving.deadline(arrived, Some(asked), arrived));
    let body = read(&serving, body, &mut permit, limit).await?;
    let encoding = coding.encoding()?;
    let size = decoded_size(&serving, &mut permit, encoding, body.len())?;
    let decoding = {
        let serving = Arc::clone(&serving);
        move || prepare(&serving, &body, &coding)
    };
    let Prepared { inputs, timeout, priority, form, bytes } =
        body::offload(size, limit, decoding).await??;
    if let Some(more) = bytes.checked_sub(permit.bytes()) {
        permit.reserve(more).map_err(PredictError::Shed)?;
    }
    let deadline = serving.deadline(arrived, shorter(deadline, timeout), Instant::now());
    // What stands in the head was the ground of admission and holds.
    let class = class.or(priority.map(Class::of_priority));
    let prediction =
        run(&serving, inputs, Arc::clone(&form.selected), deadline, class, permit).await?;
    answer::infer(&serving, prediction, form).await
}

/// Waits for the outputs. Dropping the future, because the client has left, cancels the job.
pub(super) async fn run(
    serving: &Serving,
    inputs: Vec<Tensor>,
    outputs: Arc<[usize]>,
    deadline: Deadline,
    class: Option<Class>,
    permit: Permit,
) -> Result<Prediction, ApiError> {
    Ok(serving.submit(inputs, outputs, deadline, class, permit)?.wait().await?)
}

/// Reads the body under the model's bounds.
pub(super) async fn read(
    serving: &Serving,
    body: Body,
    permit: &mut Permit,
    deadline: Option<Deadline>,
) -> Result<Bytes, ApiError> {
    let bounds = Bounds { bytes: serving.settings.max_body_bytes, deadline };
    body::read(body, &bounds, Some(permit)).await
}

/// The most bytes that decoding may meet, reserved: a compressed body may be a thousand times what was announced.
pub(super) fn decoded_size(
    serving: &Serving,
    permit: &mut Permit,
    encoding: Option<&str>,
    length: usize,
) -> Result<usize, ApiError> {
    /// Deflate's own limit.
    const RATIO_MAX: usize = 1032;
    if encoding.is_none() {
        return Ok(length);
    }
    let limit = usize::try_from(serving.settings.max_body_bytes).unwrap_or(usize::MAX);
    let size = length.saturating_mul(RATIO_MAX).min(limit);
    if let Some(more) = (size as u64).checked_sub(permit.bytes()) {
        permit.reserve(more).map_err(PredictError::Shed)?;
    }
    Ok(size)
}

/// Decompresses, decodes and checks: pure work on bytes.
fn prepare(serving: &Serving, body: &Bytes, coding: &Coding) -> Result<Prepared, ApiError> {
    let encoding = coding.encoding()?;
    let header_length = coding.json_length()?;
    let known = header_length.filter(|_| encoding.is_none()).zip(Known::of(serving));
    if let Some(prepared) = known.and_then(|(length, known)| known.read(length, body)) {
        return Ok(prepared);
    }
    let limit = usize::try_from(serving.settings.max_body_bytes).unwrap_or(usize::MAX);
    let body = decompress(body.clone(), encoding, limit)?;
    let raw = RawInput { inputs: &serving.contract.inputs, batched: serving.contract.is_batched() };
    let request = decode_infer(&body, header_length, raw, &DecodeLimits::default())?;
    let InferRequest { id, parameters, inputs, outputs: requested, default_binary } = request;
    let selected = serving
        .contract
        .select_outputs(requested.iter().map(|output| output.name.as_str()))
        .map_err(PredictError::Contract)?;
    for (position, index) in selected.iter().enumerate() {
        let spec = &serving.contract.outputs[*index];
        let asked = requested.get(position);
        let binary = asked.map_or(default_binary, |asked| asked.binary);
        let classes = asked.is_some_and(|asked| asked.classification.is_some());
        // What has no JSON form is refused before it is computed.
        check_output(&spec.name, spec.datatype, binary, classes)?;
    }
    let inputs = accept(serving, inputs)?;
    let selected = selected.into();
    let form = Form { selected, requested, default_binary, id, beginning: None };
    let prepared = Prepared {
        inputs,
        // Triton's clients send 0 for "none".
        timeout: parameters.timeout_us.filter(|us| *us > 0).map(Duration::from_micros),
        priority: parameters.priority,
        form: Arc::new(form),
        bytes: body.len() as u64,
    };
    if let Some((length, known)) = known {
        known.learn(length, &body, &prepared);
    }
    Ok(prepared)
}

/// Checks the inputs against the model.
pub(super) fn accept(serving: &Serving, inputs: Vec<NamedTensor>) -> Result<Vec<Tensor>, ApiError> {
    Ok(serving.accept(inputs).map_err(PredictError::Contract)?)
}

/// The shorter of two allowances, either of which may not have been asked for.
pub(super) fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
