//! The short way of infer requests: past the router, through the same admission, with the same things around it.
//!
//! The router boxes the future and the body of a request at every layer, and moves its head from one to the next. For a
//! small model that is a fifth of what a request costs the HTTP thread (decision 14 has the figures). So the two routes of
//! `infer` are known by their path; whatever is not plainly one of them, or asks for compression, goes by the router, which
//! has them too.

use super::admit::{Admission, Caller};
use super::client::Peer;
use super::error;
use super::headers::Head;
use super::infer::Infer;
use super::metrics::HttpMetrics;
use super::observe::Observation;
use super::{Answering, State, WorthCompressing};
use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use prometheus::IntCounter;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use tower_http::compression::predicate::Predicate;

/// Route templates, as they stand in the router.
pub(super) const INFER: &str = "/v2/models/{model}/infer";
pub(super) const INFER_VERSION: &str = "/v2/models/{model}/versions/{version}/infer";

/// See the module.
pub(super) struct Direct {
    state: State,
    infer: Admission<Infer>,
    any_version: Arc<Route>,
    one_version: Arc<Route>,
}

/// A route and its counter of good answers, which is there from the first one on.
struct Route {
    template: &'static str,
    answered: OnceLock<IntCounter>,
}

impl Route {
    fn new(template: &'static str) -> Arc<Self> {
        Arc::new(Route { template, answered: OnceLock::new() })
    }

    fn count(&self, metrics: &HttpMetrics, status: StatusCode) {
        if status == StatusCode::OK {
            self.answered.get_or_init(|| metrics.answered(self.template)).inc();
        } else {
            metrics.count(self.template, status.as_u16());
        }
    }
}

/// The template of the request's route, where it may go the short way as long as it asks for no compression.
pub(super) fn short_way(method: &Method, path: &str) -> Option<&'static str> {
    if method != Method::POST {
        return None;
    }
    let mut parts = path.strip_prefix("/v2/models/")?.split('/');
    // The router takes no empty part for a name.
    let model = parts.next().filter(|model| !model.is_empty());
    match (model?, parts.next()?, parts.next(), parts.next(), parts.next()) {
        (_, "infer", None, ..) => Some(INFER),
        (_, "versions", Some(version), Some("infer"), None) if !version.is_empty() => {
            Some(INFER_VERSION)
        }
        _ => None,
    }
}

impl Direct {
    pub(super) fn new(state: State, infer: Admission<Infer>) -> Self {
        let (any_version, one_version) = (Route::new(INFER), Route::new(INFER_VERSION));
        Direct { state, infer, any_version, one_version }
    }

    /// The answer to a request whose route is `template`, one of the two, or the request again where it asks for compression.
    pub(super) fn answer(
        &self,
        template: &'static str,
        request: Request<Body>,
        peer: Option<Peer>,
    ) -> Result<Answering, Box<Request<Body>>> {
        let (parts, body) = request.into_parts();
        let head = Head::of(&parts.headers, self.state.0.client_header.as_ref());
        if head.accept_encoding.is_some() {
            return Err(Box::new(Request::from_parts(parts, body)));
        }
        let path = parts.uri.path();
        let route = if template == INFER { &self.any_version } else { &self.one_version };
        let (route, state) = (Arc::clone(route), self.state.clone());
        let observation = Observation::begin(&state, &parts.method, path, head.id);
        let caller = Caller { id: observation.id.clone(), arrived: observation.arrived, peer };
        let begun = catch_unwind(AssertUnwindSafe(|| self.infer.answer(path, &head, body, caller)));
        Ok(Box::pin(async move {
            let answer = match begun {
                Ok(answer) => caught(answer).await,
                Err(panic) => Err(panic),
            };
            let mut response = answer.unwrap_or_else(|_| error::panicked(&observation.id));
            if WorthCompressing.should_compress(&response) {
                // Had it been asked for.
                let vary = HeaderValue::from_name(header::ACCEPT_ENCODING);
                response.headers_mut().append(header::VARY, vary);
            }
            route.count(&state.0.metrics, response.status());
            observation.end(&mut response);
            response
        }))
    }
}

/// `Err` when `future` panicked; it is dropped then and not asked again.
async fn caught<F: Future>(future: F) -> std::thread::Result<F::Output> {
    let mut future = pin!(future);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_plainly_infer_goes_the_short_way() {
        let table = [
            ("/v2/models/iris/infer", Some(INFER)),
            ("/v2/models/a%2Fb/infer", Some(INFER)),
            ("/v2/models/iris/infer?x=1", Some(INFER)),
            ("/v2/models/iris/versions/3/infer", Some(INFER_VERSION)),
            ("/v2/models/iris/infer/", None),
            ("/v2/models//infer", None),
            ("/v2/models/iris/versions//infer", None),
            ("/v2/models/iris/versions/3/infer/x", None),
            ("/v2/models/iris/ready", None),
            ("/v2/models/iris", None),
            ("/v1/models/iris:predict", None),
        ];
        for (path, expected) in table {
            // As the server takes it from the request, without what may be asked.
            let uri: axum::http::Uri = path.parse().unwrap();
            assert_eq!(short_way(&Method::POST, uri.path()), expected, "{path}");
            assert_eq!(short_way(&Method::GET, uri.path()), None, "{path}");
        }
    }

    #[tokio::test]
    async fn a_panic_is_caught_after_a_wait_too() {
        assert_eq!(caught(async { 7 }).await.unwrap(), 7);
        let late = async {
            tokio::task::yield_now().await;
            assert!(std::hint::black_box(false), "a panic on purpose");
        };
        assert!(caught(late).await.is_err());
    }
}
