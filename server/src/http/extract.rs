//! What the control and health handlers take out of a request. Each refuses in the form of every other error.

use super::State;
use super::body::{self, Bounds};
use super::error::{ApiError, Failed};
use super::observe::RequestId;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Bodies of control requests are small JSON objects.
const CONTROL_BODY_BYTES: u64 = 1 << 20;

/// The model that a path names, and the version where it names one.
#[derive(Debug, Deserialize)]
pub(super) struct Target {
    pub(super) model: String,
    pub(super) version: Option<String>,
}

impl FromRequestParts<State> for Target {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Failed> {
        Path::from_request_parts(parts, state).await.map(|Path(target)| target).map_err(
            |rejection| {
                let problem = rejection.body_text();
                let error = ApiError::Field { field: "path".to_owned(), problem };
                Failed(error, parts.extensions.get::<RequestId>().cloned())
            },
        )
    }
}

/// The members of a control request; none where there is no body. Clients send these without a content type.
pub(super) struct Members(pub(super) Map<String, Value>);

impl FromRequest<State> for Members {
    type Rejection = Failed;

    async fn from_request(request: Request, _state: &State) -> Result<Self, Failed> {
        let id = request.extensions().get::<RequestId>().cloned();
        read(request).await.map(Members).map_err(|error| Failed(error, id))
    }
}

async fn read(request: Request) -> Result<Map<String, Value>, ApiError> {
    let bounds = Bounds { bytes: CONTROL_BODY_BYTES, deadline: None };
    let body = body::read(request.into_body(), &bounds, None).await?;
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    let problem = match serde_json::from_slice(&body) {
        Ok(Value::Object(members)) => return Ok(members),
        Ok(_) => "expected a JSON object, or nothing".to_owned(),
        Err(error) => format!("not JSON: {error}"),
    };
    Err(ApiError::Field { field: "body".to_owned(), problem })
}
