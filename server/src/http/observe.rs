//! What happens around every request: its id, its count, its line in the access log.

use super::State;
use super::error::{ApiError, Panicked};
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Header of the request's id, accepted and given back.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longer ids are replaced: they go into logs and answers.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Id of one request, the client's or our own.
///
/// Kept as the header value that goes back, which is cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct RequestId(HeaderValue);

impl RequestId {
    /// Text.
    pub(super) fn as_str(&self) -> &str {
        // Both constructors see to it that it is ASCII.
        self.0.to_str().unwrap_or_default()
    }

    /// The client's id where it is fit for a log line, else a new one.
    fn of(request: &Request) -> Self {
        match request.headers().get(REQUEST_ID) {
            Some(given)
                if !given.is_empty()
                    && given.len() <= REQUEST_ID_BYTES_MAX
                    && given.as_bytes().iter().all(u8::is_ascii_graphic) =>
            {
                RequestId(given.clone())
            }
            _ => RequestId::fresh(),
        }
    }

    /// Unique within the process by its counter, and between processes by the time of the first use.
    fn fresh() -> Self {
        static BORN: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let born = *BORN.get_or_init(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
                ^ u64::from(std::process::id()) << 40
        });
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let text = format!("{born:x}-{next:x}");
        RequestId(
            HeaderValue::from_maybe_shared(Bytes::from(text))
                .unwrap_or(HeaderValue::from_static("-")),
        )
    }
}

/// When the head of the request was read; deadlines count from here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived(pub(super) Instant);

/// The outermost layer.
pub(super) async fn observe(
    axum::extract::State(state): axum::extract::State<State>,
    mut request: Request,
    next: Next,
) -> Response {
    let arrived = Instant::now();
    let id = RequestId::of(&request);
    request.extensions_mut().insert(id.clone());
    request.extensions_mut().insert(Arrived(arrived));
    // Kept only where a line is going to be written.
    let logged =
        state.0.access_log.then(|| (request.method().clone(), request.uri().path().to_owned()));
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if response.extensions().get::<Panicked>().is_some() {
        let failed = ApiError::Internal("a mistake of its own, while it handled this request");
        response = failed.answer(Some(&id));
    }
    let status = response.status().as_u16();
    state.0.metrics.count(route.as_ref().map_or("none", MatchedPath::as_str), status);
    response.headers_mut().insert(REQUEST_ID, id.0.clone());
    if let Some((method, path)) = logged {
        tracing::info!(
            target: "balm::access",
            %method,
            path,
            status,
            duration_us = arrived.elapsed().as_micros(),
            request_id = id.as_str(),
            "request"
        );
    }
    response
}
