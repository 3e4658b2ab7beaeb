//! The data port: the Open Inference Protocol over HTTP, and the layers around it.
//!
//! The whole stack stands in [`router`], each layer with its reason.

mod admit;
mod answer;
mod body;
mod client;
mod control;
pub mod error;
mod headers;
mod health;
mod infer;
mod listen;
mod metrics;
mod observe;
mod predict_v1;
mod upload;

pub use listen::{Bound, ListenError, Listening, Sockets};
pub use metrics::HttpMetrics;

use crate::config::HttpConfig;
use admit::Admission;
use axum::Router;
use axum::error_handling::HandleErrorLayer;
use axum::extract::DefaultBodyLimit;
use axum::http::{Extensions, HeaderMap, HeaderName, StatusCode, Version};
use axum::middleware;
use axum::routing::{get, post, post_service};
use balm_inference::models::Models;
use balm_probes::ReadinessPolicy;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tower::ServiceBuilder;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::predicate::{Predicate, SizeAbove};
use tower_http::compression::{CompressionLayer, CompressionLevel};
use tower_http::timeout::RequestBodyTimeoutLayer;

/// Control requests that may be inside at once. They are rare and cheap, but for loads, which wait for a disk.
const CONTROL_IN_FLIGHT: usize = 32;
/// Answers below this are not worth compressing, asked for or not.
const COMPRESS_ABOVE_BYTES: u64 = 1024;
/// Bodies of control requests are small JSON objects.
const CONTROL_BODY_BYTES: usize = 1 << 20;
/// Somewhat larger ones are read all the same, so that their client reads why they are refused and not a reset.
const CONTROL_BODY_READ_MAX: usize = 4 << 20;

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
    body_timeout: Duration,
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
            body_timeout: config.body_timeout,
            access_log: config.access_log,
            client_header,
        }))
    }
}

fn succeeded(status: StatusCode, _: Version, _: &HeaderMap, _: &Extensions) -> bool {
    status == StatusCode::OK
}

/// Every route of the data port.
pub fn router(state: State, noop_route: bool) -> Router {
    // ===== predictions =====
    // Admission is a layer of its own kind: what lies inside it takes a request *with its permit*, so no handler
    // can be reached without one. It decides before the body is read.
    let infer = Admission::layer(state.clone(), infer::Infer::new(state.clone()));
    let predict_v1 = Admission::layer(state.clone(), predict_v1::PredictV1::new(state.clone()));
    let predictions = Router::new()
        .route("/v2/models/{model}/infer", post_service(infer.clone()))
        .route("/v2/models/{model}/versions/{version}/infer", post_service(infer))
        .route("/v1/models/{model_and_verb}", post_service(predict_v1).get(control::v1_status))
        // Only here, only if asked: clients offer gzip with every request and decode it in answers of `infer` alone.
        .layer(
            CompressionLayer::new()
                .gzip(true)
                .deflate(true)
                .quality(CompressionLevel::Fastest)
                // Errors stay plain: no client decodes them.
                .compress_when(SizeAbove::new(COMPRESS_ABOVE_BYTES).and(succeeded)),
        );

    // ===== health aliases: no limit may keep a probe from its answer =====
    let health = Router::new()
        .route("/live", get(health::live))
        .route("/ready", get(health::ready))
        .route("/v2/health/live", get(health::live))
        .route("/v2/health/ready", get(health::ready))
        .route("/v2/models/{model}/ready", get(health::model_ready))
        .route("/v2/models/{model}/versions/{version}/ready", get(health::model_version_ready));

    // ===== everything else: the stock tower limit, because these are ordinary async requests =====
    let control = Router::new()
        .route("/v2", get(control::server_metadata))
        .route("/v2/", get(control::server_metadata))
        .route("/v2/models", get(control::list_models))
        .route("/v2/models/stats", get(control::all_statistics))
        .route("/v2/models/{model}", get(control::model_metadata))
        .route("/v2/models/{model}/versions/{version}", get(control::version_metadata))
        .route("/v2/models/{model}/config", get(control::model_config))
        .route("/v2/models/{model}/versions/{version}/config", get(control::version_config))
        .route("/v2/models/{model}/stats", get(control::model_statistics))
        .route("/v2/models/{model}/versions/{version}/stats", get(control::version_statistics))
        .route("/v2/repository/index", post(control::repository_index))
        .route("/v2/repository/models/{model}/load", post(control::load))
        .route("/v2/repository/models/{model}/unload", post(control::unload))
        .route("/v2/repository/{repository}/index", post(control::named_repository))
        .route("/v2/repository/{repository}/models/{model}/load", post(control::named_repository))
        .route("/v2/repository/{repository}/models/{model}/unload", post(control::named_repository))
        .layer(DefaultBodyLimit::max(CONTROL_BODY_READ_MAX))
        // A body that never comes must not hold one of the few places below.
        .layer(RequestBodyTimeoutLayer::new(state.0.body_timeout))
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
                .layer(CatchPanicLayer::custom(error::PanicAnswer)),
        )
}
