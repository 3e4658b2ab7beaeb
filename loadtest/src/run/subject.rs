//! The target from outside: who it is, what its model takes, and the requests that are made for it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use fastrand::Rng;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::{Request, StatusCode};
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use crate::client::Reply;
use crate::golden::Case;
use crate::load::Judge;
use crate::load::pool::Pool;
use crate::oip;
use crate::payload::{Body, Metadata, Tensor};
use crate::repository::Model;
use crate::scenario::{Client, Encoding, Input, Protocol, Target};

/// How long a single answer before the run may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a target may be loading.
const LOADING: Duration = Duration::from_secs(120);
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// What is asked of whom, ready to be sent.
pub(crate) struct Subject {
    pub(crate) address: SocketAddr,
    pub(crate) protocol: Protocol,
    pub(crate) server: Option<String>,
    request: Request<Full<Bytes>>,
    pub(crate) request_bytes: usize,
    case: Option<Case>,
    /// Whether later answers can be told from right ones by their size.
    judged_by_size: bool,
}

#[derive(Deserialize)]
struct ServerMetadata {
    name: String,
    #[serde(default)]
    version: String,
}

// ===== impl Subject =====

impl Subject {
    /// Asks the target what has to be known, and makes the request. A target that cannot be reached is an error at once.
    pub(crate) async fn prepare(
        target: &Target,
        address: SocketAddr,
        seed: u64,
        repositories: &[PathBuf],
    ) -> Result<Subject> {
        let pool = Pool::new(address, target.protocol, Rc::default());
        let server = get(&pool, "/v2").await?;
        let server: Option<ServerMetadata> = serde_json::from_slice(&server.body).ok();
        let path = model_path(target);
        let mut case = None;
        let tensors = match &target.input {
            Input::Case(name) => {
                let model = Model::find(repositories, &target.model)?;
                let found = model.case(Some(name))?;
                let tensors = Tensor::of_case(&found);
                case = Some(found);
                tensors
            }
            Input::Tensors(plans) => made(plans, seed),
            Input::Metadata { rows, dynamic, fill } => {
                let metadata = metadata(&pool, &path).await?;
                made(&metadata.plans(*rows, *dynamic, *fill)?, seed)
            }
        };
        let body = Body::new(&tensors, target.encoding);
        let request_bytes = body.bytes.len();
        let mut request = Request::post(uri(target.protocol, address, &format!("{path}/infer")))
            .body(Full::new(Bytes::from(body.bytes)))?;
        let kind = match body.header_length {
            Some(length) => {
                request.headers_mut().insert(oip::HEADER_LENGTH, HeaderValue::from(length));
                "application/octet-stream"
            }
            None => "application/json",
        };
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if target.protocol == Protocol::Http1 {
            let host = HeaderValue::from_str(&address.to_string())?;
            request.headers_mut().insert(HOST, host);
        }
        let name = |server: ServerMetadata| format!("{} {}", server.name, server.version);
        Ok(Subject {
            address,
            protocol: target.protocol,
            server: server.map(name).map(|name| name.trim().to_owned()),
            request,
            request_bytes,
            judged_by_size: case.is_some() && target.encoding == Encoding::Binary,
            case,
        })
    }

    /// Asks until the target gives a right answer: a server that has just been started may be loading.
    pub(crate) async fn first_answer(&self) -> Result<()> {
        let pool = Pool::new(self.address, self.protocol, Rc::default());
        let begun = Instant::now();
        loop {
            let reply = ask(&pool, &self.request).await?;
            let loads = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::NOT_FOUND];
            if reply.status.is_success() {
                if let Some(case) = self.case.as_ref().filter(|_| self.judged_by_size) {
                    oip::judge(case, reply.header_length, &reply.body)?;
                }
                return Ok(());
            }
            if !loads.contains(&reply.status) || begun.elapsed() > LOADING {
                bail!("the target answers {} to {}", reply.excerpt(), self.request.uri());
            }
            // A model that is not there stays so; one that loads is there soon.
            if reply.status == StatusCode::NOT_FOUND && begun.elapsed() > Duration::from_secs(5) {
                bail!("the target answers {} to {}", reply.excerpt(), self.request.uri());
            }
            sleep(ASK_AGAIN).await;
        }
    }

    /// Whether an answer has as many bytes of tensors as a right one, where that is known.
    pub(crate) fn judge(&self) -> Option<Judge> {
        let expected = self.case.as_ref().filter(|_| self.judged_by_size)?.output_bytes();
        Some(Rc::new(move |reply| {
            oip::judge_size(expected, reply.header_length, &reply.body).is_ok()
        }))
    }

    /// The request without anything of a client.
    pub(crate) fn bare(&self) -> Request<Full<Bytes>> {
        self.request.clone()
    }

    /// The same body, for a path that does nothing with it, of the target or of another.
    pub(crate) fn noop(&self, address: SocketAddr) -> Request<Full<Bytes>> {
        let mut request = self.request.clone();
        *request.uri_mut() = uri(self.protocol, address, "/noop").parse().unwrap_or_default();
        request
    }

    /// The request as each of those clients sends it.
    pub(crate) fn requests(&self, client: &Client) -> Result<Vec<Request<Full<Bytes>>>> {
        (0..client.count).map(|one| self.request_of(client, one)).collect()
    }

    fn request_of(&self, client: &Client, one: usize) -> Result<Request<Full<Bytes>>> {
        let mut request = self.request.clone();
        let headers = request.headers_mut();
        let mut set = |name: &str, value: &str| -> Result<()> {
            let name = name.parse::<HeaderName>().context("a header's name")?;
            headers.insert(name, value.parse::<HeaderValue>().context("a header's value")?);
            Ok(())
        };
        set(&client.key_header, &format!("{}-{one}", client.name))?;
        if let Some(class) = &client.class {
            set("x-request-class", class)?;
        }
        if let Some(deadline) = client.deadline {
            set("x-request-timeout-ms", &deadline.as_millis().to_string())?;
        }
        for (name, value) in &client.headers {
            set(name, value)?;
        }
        Ok(request)
    }
}

/// Whether the address answers `/noop` as a route that does nothing would.
pub(crate) async fn answers_noop(subject: &Subject) -> bool {
    let pool = Pool::new(subject.address, subject.protocol, Rc::default());
    let reply = ask(&pool, &subject.noop(subject.address)).await;
    reply.is_ok_and(|reply| reply.status.is_success())
}

fn made(plans: &[crate::payload::TensorPlan], seed: u64) -> Vec<Tensor> {
    let mut random = Rng::with_seed(seed);
    plans.iter().map(|plan| plan.make(&mut random)).collect()
}

fn model_path(target: &Target) -> String {
    let version = target.version.as_ref().map_or_else(String::new, |v| format!("/versions/{v}"));
    format!("/v2/models/{}{version}", target.model)
}

/// HTTP/2 needs the authority, HTTP/1 says it in a header.
fn uri(protocol: Protocol, address: SocketAddr, path: &str) -> String {
    match protocol {
        Protocol::Http1 => path.to_owned(),
        Protocol::Http2 => format!("http://{address}{path}"),
    }
}

/// A server that has just been started may not know its models yet.
async fn metadata(pool: &Pool, path: &str) -> Result<Metadata> {
    let begun = Instant::now();
    loop {
        let reply = get(pool, path).await?;
        if reply.status.is_success() {
            return serde_json::from_slice(&reply.body)
                .with_context(|| format!("{path}: the metadata is not what the protocol says"));
        }
        let limit = if reply.status == StatusCode::SERVICE_UNAVAILABLE {
            LOADING
        } else {
            Duration::from_secs(5)
        };
        if begun.elapsed() > limit {
            bail!("the target answers {} to {path}", reply.excerpt());
        }
        sleep(ASK_AGAIN).await;
    }
}

async fn get(pool: &Pool, path: &str) -> Result<Reply> {
    let request = Request::get(uri(pool.protocol(), pool.address(), path))
        .header(HOST, pool.address().to_string())
        .body(Full::default())?;
    ask(pool, &request).await
}

async fn ask(pool: &Pool, request: &Request<Full<Bytes>>) -> Result<Reply> {
    match timeout(PATIENCE, pool.exchange(request)).await {
        Ok(reply) => {
            reply.with_context(|| format!("{} of the target {}", request.uri(), pool.address()))
        }
        Err(_) => bail!("{}: no answer within {} s", request.uri(), PATIENCE.as_secs()),
    }
}
