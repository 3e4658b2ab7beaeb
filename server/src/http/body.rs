//! Reading a body within its bounds, and moving heavy decoding off the async threads.

use super::State;
use super::error::{ApiError, Failed};
use super::observe::RequestId;
use axum::body::Body;
use axum::http::Request;
use balm_inference::admission::Permit;
use balm_inference::predict::{Deadline, PredictError};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use std::time::{Duration, Instant};

/// Above this many bytes, decoding takes longer than an async thread should be busy (about half a millisecond).
const OFFLOAD_ABOVE_BYTES: usize = 256 * 1024;

/// Bounds of one body.
pub(super) struct Bounds {
    /// Bytes as they come, compressed or not.
    pub(super) bytes: u64,
    /// Time from the first wait to the last byte.
    pub(super) time: Duration,
    /// The client's own deadline, where it named one.
    pub(super) deadline: Option<Deadline>,
}

/// Reads the whole body. Bytes beyond what `permit` holds are reserved as they come.
pub(super) async fn read(
    body: Body,
    bounds: &Bounds,
    permit: Option<&mut Permit>,
) -> Result<Bytes, ApiError> {
    let end = Instant::now() + bounds.time;
    let first = bounds.deadline.map_or(end, |deadline| deadline.at.min(end));
    match tokio::time::timeout_at(first.into(), collect(body, bounds.bytes, permit)).await {
        Ok(result) => result,
        Err(_elapsed) => Err(match &bounds.deadline {
            Some(deadline) if deadline.at < end => deadline.error("was read").into(),
            _ => ApiError::BodyTimeout(bounds.time.as_millis()),
        }),
    }
}

async fn collect(
    mut body: Body,
    limit: u64,
    mut permit: Option<&mut Permit>,
) -> Result<Bytes, ApiError> {
    let mut first: Option<Bytes> = None;
    let mut rest: Option<BytesMut> = None;
    let mut length = 0u64;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::BodyTruncated(error.to_string()))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        length += data.len() as u64;
        if length > limit {
            return Err(ApiError::BodyTooLarge { found: format!("more than {limit}"), limit });
        }
        if let Some(permit) = permit.as_deref_mut()
            && length > permit.bytes()
        {
            permit.reserve(length - permit.bytes()).map_err(PredictError::Shed)?;
        }
        // Small bodies come in one piece, and that piece is passed on without a copy.
        match (&mut first, &mut rest) {
            (None, _) => first = Some(data),
            (Some(head), None) => {
                let mut joined = BytesMut::with_capacity(head.len() + data.len());
                joined.extend_from_slice(head);
                joined.extend_from_slice(&data);
                rest = Some(joined);
            }
            (Some(_), Some(joined)) => joined.extend_from_slice(&data),
        }
    }
    Ok(rest.map(BytesMut::freeze).or(first).unwrap_or_default())
}

/// Runs `work` here when it is small, and on a blocking thread when `bytes` says that it is not.
pub(super) async fn offload<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= OFFLOAD_ABOVE_BYTES {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_join| ApiError::Internal("decoding a large body panicked"))
}

/// Reads the body and answers nothing: what HTTP itself costs, the yardstick of `make bench`.
pub(super) async fn noop(
    axum::extract::State(state): axum::extract::State<State>,
    request: Request<Body>,
) -> Result<(), Failed> {
    let id = request.extensions().get::<RequestId>().cloned();
    let bounds =
        Bounds { bytes: state.0.max_body_bytes as u64, time: state.0.body_timeout, deadline: None };
    read(request.into_body(), &bounds, None).await.map(drop).map_err(|error| Failed(error, id))
}
