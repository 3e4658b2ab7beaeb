//! From failures to statuses: one table, exhaustive, so that a new failure cannot become a plain 500 unseen.

use super::observe::RequestId;
use crate::oip::{CodecError, ErrorKind};
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use balm_inference::admission::{RETRY_AFTER_MAX_S, Shed, ShedReason};
use balm_inference::clip::clipped;
use balm_inference::metrics::Outcome;
use balm_inference::models::ControlError;
use balm_inference::predict::PredictError;
use bytes::Bytes;
use serde::Serialize;
use std::any::Any;
use std::sync::LazyLock;

/// Header that says which bound turned a request away.
pub const SHED_REASON: HeaderName = HeaderName::from_static("x-shed-reason");

/// A request that is not answered with what it asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// The prediction failed.
    #[error(transparent)]
    Predict(#[from] PredictError),
    /// The body, or the answer's form, is wrong.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A load or unload failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A header has a value that is none.
    #[error("header {name}: {problem}")]
    Header {
        /// The header.
        name: &'static str,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The body is larger than it may be.
    #[error("the body has {found} bytes, at most {limit} are allowed (limits.max_body_bytes)")]
    BodyTooLarge {
        /// Announced or received bytes, or `more than …`.
        found: String,
        /// The bound in bytes.
        limit: u64,
    },
    /// The body did not come in time.
    #[error("the body did not arrive within {0} ms (http.body_timeout_ms)")]
    BodyTimeout(u128),
    /// The body came too slowly.
    #[error(
        "the body came too slowly: {received} bytes so far, at least {min_bytes_per_s} a second are expected \
         (http.min_body_bytes_per_s)"
    )]
    BodySlow {
        /// Bytes that came.
        received: u64,
        /// What would have been right.
        min_bytes_per_s: u64,
    },
    /// The body ended before its announced length.
    #[error("the body ended early: {0}")]
    BodyTruncated(String),
    /// Loading and unloading are switched off.
    #[error("loading and unloading are switched off here (repository.control = false)")]
    ControlOff,
    /// As many loads and unloads as may be are under way.
    #[error("{0} loads and unloads are under way, as many as may be; try again")]
    ControlBusy(usize),
    /// Part of the protocol that is not served.
    #[error("{0}")]
    NotSupported(String),
    /// A member of a control request is wrong.
    #[error("{field}: {problem}")]
    Field {
        /// Path of the member.
        field: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// Balm's own mistake.
    #[error("the server failed: {0}")]
    Internal(&'static str),
}

/// What a failure looks like from outside.
struct Face {
    status: StatusCode,
    /// Stable name for programs.
    code: &'static str,
    outcome: Outcome,
}

impl ApiError {
    fn face(&self) -> Face {
        use Outcome as O;
        use StatusCode as S;
        let (status, code, outcome) = match self {
            ApiError::Predict(error) => match error {
                PredictError::UnknownModel { .. } => (S::NOT_FOUND, "unknown_model", O::BadRequest),
                PredictError::UnknownVersion { .. } => {
                    (S::NOT_FOUND, "unknown_version", O::BadRequest)
                }
                PredictError::NotReady { .. } => {
                    (S::SERVICE_UNAVAILABLE, "model_not_ready", O::NotReady)
                }
                PredictError::Contract(_) => (S::BAD_REQUEST, "contract", O::BadRequest),
                PredictError::InvalidInput(_) => (S::BAD_REQUEST, "invalid_input", O::BadRequest),
                PredictError::Shed(shed) => match shed.reason {
                    ShedReason::ClientShare => (S::TOO_MANY_REQUESTS, "client_share", O::Shed),
                    ShedReason::Infeasible => (S::GATEWAY_TIMEOUT, "infeasible", O::Shed),
                    ShedReason::BreakerOpen => (S::SERVICE_UNAVAILABLE, "breaker_open", O::Shed),
                    _ => (S::SERVICE_UNAVAILABLE, "overloaded", O::Shed),
                },
                PredictError::Deadline { .. } => (S::GATEWAY_TIMEOUT, "deadline", O::Deadline),
                PredictError::Poison { .. } => (S::UNPROCESSABLE_ENTITY, "poison", O::BadRequest),
                PredictError::LaneLost => (S::INTERNAL_SERVER_ERROR, "lane_lost", O::Failed),
                PredictError::Runtime(_) => (S::INTERNAL_SERVER_ERROR, "runtime", O::Failed),
                // The enum may grow; what it grows by must be given a line above, and is ours until then.
                _ => (S::INTERNAL_SERVER_ERROR, "internal", O::Failed),
            },
            ApiError::Codec(error) => match error.kind() {
                ErrorKind::Malformed => (S::BAD_REQUEST, "malformed", O::BadRequest),
                ErrorKind::TooLarge => (S::PAYLOAD_TOO_LARGE, "too_large", O::BadRequest),
                ErrorKind::UnsupportedEncoding => {
                    (S::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", O::BadRequest)
                }
                ErrorKind::NotImplemented => (S::NOT_IMPLEMENTED, "not_implemented", O::BadRequest),
            },
            ApiError::Control(error) => match error {
                ControlError::UnknownModel(_) => (S::NOT_FOUND, "unknown_model", O::BadRequest),
                ControlError::Load { .. } => (S::BAD_REQUEST, "load_failed", O::Failed),
                ControlError::Repository(_) => (S::INTERNAL_SERVER_ERROR, "repository", O::Failed),
                _ => (S::INTERNAL_SERVER_ERROR, "internal", O::Failed),
            },
            ApiError::Header { .. } => (S::BAD_REQUEST, "header", O::BadRequest),
            ApiError::BodyTooLarge { .. } => (S::PAYLOAD_TOO_LARGE, "too_large", O::BadRequest),
            ApiError::BodyTimeout(_) => (S::REQUEST_TIMEOUT, "body_timeout", O::BadRequest),
            ApiError::BodySlow { .. } => (S::REQUEST_TIMEOUT, "slow_body", O::BadRequest),
            ApiError::BodyTruncated(_) => (S::BAD_REQUEST, "truncated", O::BadRequest),
            ApiError::ControlBusy(_) => (S::SERVICE_UNAVAILABLE, "overloaded", O::Shed),
            ApiError::ControlOff => (S::FORBIDDEN, "control_off", O::BadRequest),
            ApiError::NotSupported(_) => (S::NOT_IMPLEMENTED, "not_implemented", O::BadRequest),
            ApiError::Field { .. } => (S::BAD_REQUEST, "malformed", O::BadRequest),
            ApiError::Internal(_) => (S::INTERNAL_SERVER_ERROR, "internal", O::Failed),
        };
        Face { status, code, outcome }
    }

    /// How the request is counted.
    pub(super) fn outcome(&self) -> Outcome {
        self.face().outcome
    }

    /// The answer, with the request's id in it.
    pub(super) fn answer(&self, request_id: Option<&RequestId>) -> Response<Body> {
        let face = self.face();
        if let ApiError::Predict(PredictError::Shed(shed)) = self {
            return shed_answer(&face, *shed, request_id);
        }
        let mut response = json_error(
            face.status,
            face.code,
            &self.to_string(),
            request_id.map(RequestId::as_str),
        );
        let headers = response.headers_mut();
        if matches!(face.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if matches!(
            self,
            ApiError::BodyTimeout(_)
                | ApiError::BodySlow { .. }
                | ApiError::BodyTruncated(_)
                | ApiError::BodyTooLarge { .. }
                | ApiError::Predict(PredictError::Deadline { phase: "was read", .. })
        ) {
            // Part of the body is still to come or never will: this connection cannot carry another request.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// The answer to a request that was turned away. There may be ten of them for each that is served, so but for the request's id
/// nothing is written anew.
fn shed_answer(face: &Face, shed: Shed, request_id: Option<&RequestId>) -> Response<Body> {
    static BODIES: LazyLock<[Bytes; ShedReason::ALL.len()]> = LazyLock::new(|| {
        ShedReason::ALL.map(|reason| {
            let error = ApiError::Predict(PredictError::Shed(Shed::new(reason)));
            body(error.face().code, reason.sentence(), None)
        })
    });
    static SECONDS: LazyLock<Vec<HeaderValue>> =
        LazyLock::new(|| (0..=RETRY_AFTER_MAX_S).map(|s| u16::from(s).into()).collect());
    let ready = &BODIES[shed.reason as usize];
    // An id that JSON would have to escape stands in its header alone.
    let id = request_id.map(RequestId::as_str).filter(|id| !id.contains(['"', '\\']));
    let body = match (id, ready.strip_suffix(b"}")) {
        (Some(id), Some(open)) => {
            [open, b",\"request_id\":\"", id.as_bytes(), b"\"}"].concat().into()
        }
        _ => ready.clone(),
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = face.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(SHED_REASON, HeaderValue::from_static(shed.reason.as_str()));
    // Who was late, or wants too much at once, need not wait for the server.
    if shed.reason != ShedReason::Infeasible
        && let Some(seconds) = SECONDS.get(usize::from(shed.retry_after_s))
    {
        headers.insert(header::RETRY_AFTER, seconds.clone());
    }
    response
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a str,
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

/// An error in the form that every client of the protocol reads: JSON with a member `error`.
pub(super) fn json_error(
    status: StatusCode,
    code: &str,
    message: &str,
    request_id: Option<&str>,
) -> Response<Body> {
    let mut response = Response::new(Body::from(body(code, message, request_id)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn body(code: &str, message: &str, request_id: Option<&str>) -> Bytes {
    serde_json::to_vec(&ErrorBody { error: message, code, request_id })
        .unwrap_or_else(|_| br#"{"error":"the error could not be written"}"#.to_vec())
        .into()
}

/// An unknown path.
pub(super) async fn no_such_route(
    request_id: Option<axum::Extension<RequestId>>,
    uri: axum::http::Uri,
) -> Response<Body> {
    let message = format!("no such route: {:?}", clipped(uri.path()));
    json_error(StatusCode::NOT_FOUND, "no_such_route", &message, id(&request_id))
}

/// A known path with a method it does not take.
pub(super) async fn method_not_allowed(
    request_id: Option<axum::Extension<RequestId>>,
    method: axum::http::Method,
) -> Response<Body> {
    let message = format!("this route does not take {method}");
    json_error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", &message, id(&request_id))
}

/// The control routes have as many requests inside as they may.
pub(super) async fn control_overloaded(
    request_id: Option<axum::Extension<RequestId>>,
    _error: tower::BoxError,
) -> Response<Body> {
    let mut response = json_error(
        StatusCode::SERVICE_UNAVAILABLE,
        "overloaded",
        "too many control requests at once",
        id(&request_id),
    );
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response.headers_mut().insert(SHED_REASON, HeaderValue::from_static("control"));
    response
}

fn id(extension: &Option<axum::Extension<RequestId>>) -> Option<&str> {
    extension.as_ref().map(|extension| extension.0.as_str())
}

/// Marks the answer for a handler that panicked. What the panic said stands in the log: see `panics.rs`.
#[derive(Clone, Copy)]
pub(super) struct Panicked;

impl tower_http::catch_panic::ResponseForPanic for Panicked {
    type ResponseBody = Body;

    /// The request is gone with its handler, so the answer is written where its id is still known: see `observe.rs`.
    fn response_for_panic(&mut self, _panic: Box<dyn Any + Send + 'static>) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response.extensions_mut().insert(Panicked);
        response
    }
}

/// The answer where a handler panicked.
pub(super) fn panicked(id: &RequestId) -> Response<Body> {
    ApiError::Internal("a mistake of its own, while it handled this request").answer(Some(id))
}

/// An error together with the id of its request, as handlers return it.
pub(super) struct Failed(pub(super) ApiError, pub(super) Option<RequestId>);

impl IntoResponse for Failed {
    fn into_response(self) -> axum::response::Response {
        self.0.answer(self.1.as_ref())
    }
}
