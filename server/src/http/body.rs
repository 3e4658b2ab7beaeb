//! Reading a body within its bounds, and moving heavy decoding off the async threads.

use super::State;
use super::error::{ApiError, Failed};
use super::listen::BodyFault;
use super::observe::RequestId;
use axum::body::Body;
use axum::http::Request;
use balm_inference::admission::Permit;
use balm_inference::predict::{Deadline, PredictError};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::task::{JoinError, JoinHandle};

/// Above this many bytes, decoding takes longer than an async thread should be busy (about half a millisecond).
const OFFLOAD_ABOVE_BYTES: usize = 256 * 1024;

/// Bounds of one body. That it comes in time and fast enough is seen to where it comes from: see `listen/request.rs`.
pub(super) struct Bounds {
    /// Bytes as they come, compressed or not.
    pub(super) bytes: u64,
    /// The client's own deadline, where it named one.
    pub(super) deadline: Option<Deadline>,
}

/// Reads the whole body. Bytes beyond what `permit` holds are reserved as they come.
pub(super) async fn read(
    body: Body,
    bounds: &Bounds,
    permit: Option<&mut Permit>,
) -> Result<Bytes, ApiError> {
    let limit = bounds.bytes;
    match bounds.deadline {
        None => collect(body, limit, permit).await,
        // Boxed, because few clients name one, and everybody else's request would be larger by it.
        Some(deadline) => {
            let body = collect(body, limit, permit);
            Box::pin(tokio::time::timeout_at(deadline.at.into(), body))
                .await
                .unwrap_or_else(|_elapsed| Err(deadline.error("was read").into()))
        }
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
        let frame = frame.map_err(fault)?;
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

/// What a body that broke off means to its request.
fn fault(error: axum::Error) -> ApiError {
    let error = error.into_inner();
    match error.downcast_ref::<BodyFault>() {
        Some(BodyFault::Late(timeout)) => ApiError::BodyTimeout(timeout.as_millis()),
        Some(BodyFault::Slow { received, min_bytes_per_s }) => {
            ApiError::BodySlow { received: *received, min_bytes_per_s: *min_bytes_per_s }
        }
        Some(BodyFault::Broken(_)) | None => ApiError::BodyTruncated(error.to_string()),
    }
}

/// Runs `work` here when it is small, and on a blocking thread when `bytes` says that it is not. There it is waited for
/// until the deadline; work that has begun goes on to its end, and work that has not never begins.
pub(super) async fn offload<T: Send + 'static>(
    bytes: usize,
    deadline: Option<Deadline>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= OFFLOAD_ABOVE_BYTES {
        return Ok(work());
    }
    Box::pin(elsewhere(deadline, work)).await
}

/// Runs `work` on a blocking thread.
async fn elsewhere<T: Send + 'static>(
    deadline: Option<Deadline>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    // Dropping the handle alone would leave it in the queue of the blocking threads.
    let job = AbortOnDrop(tokio::task::spawn_blocking(work));
    let joined = match deadline {
        None => job.await,
        Some(deadline) => match tokio::time::timeout_at(deadline.at.into(), job).await {
            Ok(joined) => joined,
            Err(_elapsed) => return Err(deadline.error("was decoded").into()),
        },
    };
    joined.map_err(|_join| ApiError::Internal("decoding a large body panicked"))
}

/// A job that is taken out of its queue when nobody waits for it any more.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Future for AbortOnDrop<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads the body and answers nothing: what HTTP itself costs, the yardstick of `make bench`.
pub(super) async fn noop(
    axum::extract::State(state): axum::extract::State<State>,
    request: Request<Body>,
) -> Result<(), Failed> {
    let id = request.extensions().get::<RequestId>().cloned();
    let bounds = Bounds { bytes: state.0.max_body_bytes as u64, deadline: None };
    read(request.into_body(), &bounds, None).await.map(drop).map_err(|error| Failed(error, id))
}
