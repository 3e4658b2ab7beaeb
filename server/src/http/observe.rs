//! What happens around every request: its id, its count, its line in the access log.

use super::State;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Header of the request's id, accepted and given back.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longer ids are replaced: they go into logs and answers.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Id of one request, the client's or our own.
#[derive(Clone, Debug)]
pub(super) struct RequestId(Arc<str>);

impl RequestId {
    /// Text.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The client's id where it is fit for a log line, else a new one.
    fn of(request: &Request) -> Self {
        let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok());
        match given {
            Some(text)
                if !text.is_empty()
                    && text.len() <= REQUEST_ID_BYTES_MAX
                    && text.bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                RequestId(Arc::from(text))
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
        RequestId(Arc::from(format!("{born:x}-{next:x}")))
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
    let status = response.status().as_u16();
    state.0.metrics.count(route.as_ref().map_or("none", MatchedPath::as_str), status);
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
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
