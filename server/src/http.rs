//! The data port: the Open Inference Protocol over HTTP, and the layers around it.
//!
//! The whole stack stands in `router`, each layer with its reason; `direct.rs` is the short way past it.

mod admit;
mod answer;
mod body;
mod client;
mod control;
mod direct;
pub mod error;
mod extract;
mod headers;
mod health;
mod infer;
mod listen;
mod metrics;
mod observe;
mod predict_v1;
mod upload;

pub use listen::{BodyPace, Bound, ListenError, Listening, SocketFile, Sockets, Stage};
pub use metrics::HttpMetrics;

use crate::config::HttpConfig;
use admit::Admission;
use axum::Router;
use axum::body::{Body, HttpBody};
use axum::error_handling::HandleErrorLayer;
use axum::http::{HeaderName, Request, Response, StatusCode};
use axum::middleware;
use axum::routing::{get, post, post_service};
use balm_inference::models::Models;
use balm_probes::ReadinessPolicy;
use client::Peer;
use direct::Direct;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::{Service, ServiceBuilder};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::predicate::Predicate;
use tower_http::compression::{CompressionLayer, CompressionLevel};

/// Control requests that may be inside at once. They are rare and cheap, but for loads, which wait for a disk.
const CONTROL_IN_FLIGHT: usize = 32;
/// Answers of fewer bytes are not worth compressing, asked for or not, and more would keep everybody else on this thread
/// waiting: 256 KiB take some five milliseconds, and tensors hardly shrink.
const COMPRESSED_BYTES: RangeInclusive<u64> = 1024..=256 * 1024;

/// Loads and unloads that may be under way at once. They wait for disks and for each other; one more is refused.
const LOADS_MAX: usize = 8;

/// What the handlers share.
#[derive(Clone)]
pub struct State(Arc<Shared>);

struct Shared {
    models: Models,
    metrics: HttpMetrics,
    readiness: ReadinessPolicy,
    control: bool,
    loads: Arc<Semaphore>,
    max_body_bytes: usize,
    access_log: bool,
    /// By which clients are told apart, where it is not their address.
    client_header: Option<HeaderName>,
}

impl State {
    /// Binds the handlers to the models they serve.
    pub fn new(
        models: Models,
        metrics: HttpMetrics,
        readiness: ReadinessPolicy,
        control: bool,
        config: &HttpConfig,
        client_header: Option<HeaderName>,
    ) -> Self {
        State(Arc::new(Shared {
            models,
            metrics,
            readiness,
            control,
            loads: Arc::new(Semaphore::new(LOADS_MAX)),
            max_body_bytes: config.max_body_bytes,
            access_log: config.access_log,
            client_header,
        }))
    }
}

/// Which answers are compressed for who asks for it.
#[derive(Clone, Copy)]
struct WorthCompressing;

impl Predicate for WorthCompressing {
    /// Errors stay plain: no client decodes them.
    fn should_compress<B: HttpBody>(&self, answer: &Response<B>) -> bool {
        let size = answer.body().size_hint().exact();
        answer.status() == StatusCode::OK
            && size.is_some_and(|size| COMPRESSED_BYTES.contains(&size))
    }
}

/// A request on its way to its answer.
type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// The data port: every route, and the short way of those that must be cheap.
#[derive(Clone)]
pub struct DataPort(Arc<Routes>);

struct Routes {
    direct: Direct,
    router: Router,
}

impl DataPort {
    /// Binds the routes to what handlers share.
    pub fn new(state: State, noop_route: bool) -> Self {
        let infer = Admission::layer(state.clone(), infer::Infer);
        let direct = Direct::new(state.clone(), infer.clone());
        DataPort(Arc::new(Routes { direct, router: router(state, infer, noop_route) }))
    }

    /// The answer to `request`, which came from `peer`.
    fn answer(&self, mut request: Request<Body>, peer: Option<Peer>) -> Answering {
        if let Some(template) = direct::short_way(request.method(), request.uri().path()) {
            match self.0.direct.answer(template, request, peer) {
                Ok(answer) => return answer,
                Err(compressed) => request = *compressed,
            }
        }
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        let answer = self.0.router.clone().call(request);
        Box::pin(async move {
            let Ok(response) = answer.await;
            response
        })
    }
}

/// Every route of the data port.
fn router(state: State, infer: Admission<infer::Infer>, noop_route: bool) -> Router {
    // ===== predictions =====
    // Admission is a layer of its own kind: what lies inside it takes a request *with its permit*, so no handler
    // can be reached without one. It decides before the body is read.
    let predict_v1 = Admission::layer(state.clone(), predict_v1::PredictV1);
    let predictions = Router::new()
        // Most of these go the short way: see `direct.rs`.
        .route(direct::INFER, post_service(infer.clone()))
        .route(direct::INFER_VERSION, post_service(infer))
        .route("/v1/models/{model}", post_service(predict_v1).get(control::v1_status))
        // Only here, only if asked: clients offer gzip with every request and decode it in answers of `infer` alone.
        .layer(
            CompressionLayer::new()
                .gzip(true)
                .deflate(true)
                .quality(CompressionLevel::Fastest)
                .compress_when(WorthCompressing),
        );

    // ===== health aliases: no limit may keep a probe from its answer =====
    let health = Router::new()
        .route("/live", get(health::live))
        .route("/ready", get(health::ready))
        .route("/v2/health/live", get(health::live))
        .route("/v2/health/ready", get(health::ready))
        .route("/v2/models/{model}/ready", get(health::model_ready))
        .route("/v2/models/{model}/versions/{version}/ready", get(health::model_ready));

    // ===== everything else: the stock tower limit, because these are ordinary async requests =====
    let control = Router::new()
        .route("/v2", get(control::server_metadata))
        .route("/v2/", get(control::server_metadata))
        .route("/v2/models", get(control::list_models))
        .route("/v2/models/stats", get(control::all_statistics))
        .route("/v2/models/{model}", get(control::model_metadata))
        .route("/v2/models/{model}/versions/{version}", get(control::model_metadata))
        .route("/v2/models/{model}/config", get(control::model_config))
        .route("/v2/models/{model}/versions/{version}/config", get(control::model_config))
        .route("/v2/models/{model}/stats", get(control::model_statistics))
        .route("/v2/models/{model}/versions/{version}/stats", get(control::model_statistics))
        .route("/v2/repository/index", post(control::repository_index))
        .route("/v2/repository/models/{model}/load", post(control::load))
        .route("/v2/repository/models/{model}/unload", post(control::unload))
        .route("/v2/repository/{repository}/index", post(control::named_repository))
        .route("/v2/repository/{repository}/models/{model}/load", post(control::named_repository))
        .route("/v2/repository/{repository}/models/{model}/unload", post(control::named_repository))
        .layer(
            ServiceBuilder::new()
                // Turns the errors of the two below into an answer.
                .layer(HandleErrorLayer::new(error::control_overloaded))
                // Full means 503 now, not waiting.
                .load_shed()
                // One limit for all routes: the plain layer would make one a route.
                .layer(GlobalConcurrencyLimitLayer::new(CONTROL_IN_FLIGHT)),
        );

    let mut routes = predictions.merge(health).merge(control);
    if noop_route {
        routes = routes.route("/noop", post(body::noop));
    }
    routes
        .fallback(error::no_such_route)
        .method_not_allowed_fallback(error::method_not_allowed)
        .with_state(state.clone())
        .layer(
            ServiceBuilder::new()
                // Outermost: gives the request its id and time, counts it, writes the access log.
                .layer(middleware::from_fn_with_state(state, observe::observe))
                // A panic in a handler is one 500, not a closed connection.
                .layer(CatchPanicLayer::custom(error::Panicked)),
        )
}
