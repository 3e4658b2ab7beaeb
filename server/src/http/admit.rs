//! Admission: decides before the body is read, and hands the permit inward.
//!
//! The [`Handler`] inside takes an [`Admitted`] request, not a plain one, so one without a permit does not type-check.
//! Nothing here waits for capacity: `poll_ready` is always ready and `answer` decides at once. (The stock
//! `ConcurrencyLimit` + `LoadShed` decide in `poll_ready`, where a task that has used up its cooperative budget looks
//! like a full server.)

use super::State;
use super::client::{Peer, client, requested_class};
use super::error::ApiError;
use super::headers::{Coding, Head, requested_deadline};
use super::observe::{Arrived, Observation, RequestId};
use super::upload;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, header};
use balm_inference::admission::{Ask, Class, Permit};
use balm_inference::metrics::Outcome;
use balm_inference::models::Model;
use balm_inference::predict::PredictError;
use balm_inference::version::Serving;
use percent_encoding::percent_decode_str;
use std::borrow::Cow;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tower::Service;

/// What is reserved for a body that does not announce its length; more is reserved as it comes.
const UNANNOUNCED_BYTES: u64 = 64 * 1024;

/// A request that was let in, with what it was let in for.
pub(super) struct Admitted {
    pub(super) coding: Coding,
    pub(super) body: Body,
    pub(super) serving: Arc<Serving>,
    pub(super) permit: Permit,
    /// Deadline that the headers ask for; the body may ask for a shorter one.
    pub(super) deadline: Option<Duration>,
    /// Class that the headers claim; where they say nothing, the body may.
    pub(super) class: Option<Class>,
    pub(super) arrived: Instant,
}

/// What answers requests that were let in.
pub(super) trait Handler: Clone + Send + Sync + 'static {
    /// The answer to `admitted`.
    fn handle(
        self,
        admitted: Admitted,
    ) -> impl Future<Output = Result<Response<Body>, ApiError>> + Send;
}

/// Who asks, and since when.
pub(super) struct Caller {
    pub(super) id: RequestId,
    pub(super) arrived: Arrived,
    pub(super) peer: Option<Peer>,
}

/// Admission in front of `H`.
#[derive(Clone)]
pub(super) struct Admission<H> {
    state: State,
    inner: H,
}

impl<H: Handler> Admission<H> {
    /// Puts admission in front of `inner`.
    pub(super) fn layer(state: State, inner: H) -> Self {
        Admission { state, inner }
    }

    /// Lets the request with this path, head and body in and has it answered, or refuses it.
    pub(super) fn answer(
        &self,
        path: &str,
        head: &Head<'_>,
        body: Body,
        caller: Caller,
    ) -> impl Future<Output = Response<Body>> + Send + use<H> {
        let Caller { id, arrived: Arrived(arrived), peer } = caller;
        // Here and not in the future, which is then smaller by what only the decision needs.
        let begun = match decide(&self.state, path, head, peer, arrived) {
            Err(error) => Err(Box::pin(refuse(error, id, head.expect.is_some(), body))),
            Ok(Place { model, serving, permit, deadline, class }) => {
                let tally = Tally {
                    model,
                    serving: Arc::clone(&serving),
                    class: permit.class(),
                    arrived,
                    ended: None,
                };
                let coding = head.coding();
                let admitted = Admitted { coding, body, serving, permit, deadline, class, arrived };
                Ok((Box::pin(self.inner.clone().handle(admitted)), tally, id))
            }
        };
        async move {
            let (handled, mut tally, id) = match begun {
                Ok(begun) => begun,
                Err(refused) => return refused.await,
            };
            match handled.await {
                Ok(response) => {
                    tally.end(Outcome::Ok);
                    response
                }
                Err(error) => {
                    tally.end(error.outcome());
                    tally.explain(&error, &id);
                    error.answer(Some(&id))
                }
            }
        }
    }
}

/// A small body is read and thrown away, so that its client reads the answer and not a reset.
///
/// Who `expects` to be told `100 Continue` has sent nothing yet, and reading would ask for it.
async fn refuse(error: ApiError, id: RequestId, expects: bool, body: Body) -> Response<Body> {
    let read_whole = !expects && upload::discard(body).await;
    let mut answer = error.answer(Some(&id));
    if !read_whole {
        // The rest of the body would be taken for the next request.
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// As a route of the router, where the layers around it have left what they know in the request.
impl<H: Handler> Service<Request<Body>> for Admission<H> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let (path, known) = (parts.uri.path(), &parts.extensions);
        let head = Head::of(&parts.headers, self.state.0.client_header.as_ref());
        let observation = || Observation::begin(&self.state, &parts.method, path, head.id);
        let caller = Caller {
            id: known.get::<RequestId>().cloned().unwrap_or_else(|| observation().id),
            arrived: known.get::<Arrived>().copied().unwrap_or_else(|| observation().arrived),
            peer: known.get::<Peer>().copied(),
        };
        let answer = self.answer(path, &head, body, caller);
        Box::pin(async move { Ok(answer.await) })
    }
}

/// Where a request may go.
struct Place {
    model: Arc<Model>,
    serving: Arc<Serving>,
    permit: Permit,
    deadline: Option<Duration>,
    class: Option<Class>,
}

/// The decision, O(1), from the head of the request alone.
fn decide(
    state: &State,
    path: &str,
    head: &Head<'_>,
    peer: Option<Peer>,
    arrived: Instant,
) -> Result<Place, ApiError> {
    let target = Target::of(path)?;
    let model = state.0.models.model(&target.model)?;
    let serving = model.serving(target.version.as_deref()).inspect_err(|error| {
        if matches!(error, PredictError::NotReady { .. }) {
            model.count_not_ready();
        }
    })?;
    let refused = |error: ApiError| {
        serving.metrics().count(error.outcome());
        error
    };
    let deadline = requested_deadline(head).map_err(refused)?;
    let bytes = head.announced_bytes();
    let limit = serving.settings.max_body_bytes;
    if let Some(found) = bytes.filter(|found| *found > limit) {
        return Err(refused(ApiError::BodyTooLarge { found: found.to_string(), limit }));
    }
    let class = requested_class(head).map_err(refused)?;
    let ask = Ask {
        class: class.unwrap_or_default(),
        client: client(head, peer),
        bytes: bytes.unwrap_or(UNANNOUNCED_BYTES),
        deadline: serving.deadline(arrived, deadline, arrived).at,
        now: arrived,
    };
    let admission = state.0.models.gate().admit(model.gate(), serving.backlog(), &ask);
    let permit = admission.map_err(|shed| {
        model.shed().count(shed.reason, ask.class);
        refused(ApiError::Predict(PredictError::Shed(shed)))
    })?;
    Ok(Place { model, serving, permit, deadline, class })
}

/// The model and version that a path names.
#[derive(Debug, PartialEq, Eq)]
struct Target<'a> {
    model: Cow<'a, str>,
    version: Option<Cow<'a, str>>,
}

impl<'a> Target<'a> {
    /// Reads the paths of the prediction routes; names may be percent-encoded.
    fn of(path: &'a str) -> Result<Self, ApiError> {
        if let Some(rest) = path.strip_prefix("/v2/models/") {
            let mut parts = rest.split('/');
            let model = decoded(parts.next().unwrap_or_default())?;
            let version = match parts.next() {
                Some("versions") => parts.next().map(decoded).transpose()?,
                _ => None,
            };
            return Ok(Target { model, version });
        }
        let last = path.rsplit('/').next().unwrap_or_default();
        let last = decoded(last)?;
        match last.rsplit_once(':') {
            Some((model, "predict")) => {
                Ok(Target { model: Cow::Owned(model.to_owned()), version: None })
            }
            _ => Err(ApiError::Field {
                field: "path".to_owned(),
                problem: "expected /v1/models/MODEL:predict".to_owned(),
            }),
        }
    }
}

fn decoded(part: &str) -> Result<Cow<'_, str>, ApiError> {
    percent_decode_str(part).decode_utf8().map_err(|_| ApiError::Field {
        field: "path".to_owned(),
        problem: "the name is not UTF-8 once percent-decoded".to_owned(),
    })
}

/// Counts a request that was let in exactly once: by how it ended, or, when its future was dropped, as cancelled.
struct Tally {
    model: Arc<Model>,
    serving: Arc<Serving>,
    class: Class,
    arrived: Instant,
    ended: Option<Outcome>,
}

impl Tally {
    fn end(&mut self, outcome: Outcome) {
        self.ended = Some(outcome);
    }

    /// Says what a person on call should know, once, where the request ends.
    fn explain(&self, error: &ApiError, id: &RequestId) {
        match error {
            ApiError::Predict(PredictError::Shed(shed)) => {
                self.model.shed().count(shed.reason, self.class);
            }
            _ if error.outcome() == Outcome::Failed => tracing::error!(
                model = %self.serving.model,
                version = self.serving.version,
                request_id = id.as_str(),
                %error,
                "prediction failed"
            ),
            _ => {}
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let metrics = self.serving.metrics();
        let outcome = self.ended.unwrap_or(Outcome::Cancelled);
        metrics.count(outcome);
        if outcome == Outcome::Ok {
            metrics.total_seconds.observe(self.arrived.elapsed().as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_model_and_version() {
        let table = [
            ("/v2/models/iris/infer", "iris", None),
            ("/v2/models/iris/versions/3/infer", "iris", Some("3")),
            ("/v2/models/a%2Fb/infer", "a/b", None),
            ("/v1/models/iris:predict", "iris", None),
        ];
        for (path, model, version) in table {
            let target = Target::of(path).unwrap();
            assert_eq!((target.model.as_ref(), target.version.as_deref()), (model, version));
        }
        assert!(Target::of("/v1/models/iris:explain").is_err());
        assert!(Target::of("/v1/models/iris").is_err());
        assert!(Target::of("/v2/models/%ff/infer").is_err());
    }
}
