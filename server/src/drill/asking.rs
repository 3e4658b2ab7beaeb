//! What the private server is asked, and what is a right answer: golden requests where a model has some, else zeros whose answer
//! is taken down while all is well.

use super::private::{Private, Status};
use crate::oip::client::{decode_answer, encode_request};
use anyhow::{Context as _, Result, bail};
use balm_inference::contract::{Contract, Dimension, TensorSpec};
use balm_inference::golden::{Golden, GoldenCase};
use balm_inference::integrity::{GOLDEN_FILE, MANIFEST_FILE};
use balm_inference::models::zeros;
use balm_inference::repository::Repository;
use balm_inference::settings::VersionPolicy;
use balm_inference::tensor::NamedTensor;
use balm_loadtest::steady::{self, Question};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// Models that are asked at once: the one that faults are for, and others beside it.
const MODELS_MAX: usize = 4;
/// Answers of requests that shared a run differ in the last digits.
const TOLERANCE: f64 = 1e-4;
/// For a first answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long each model is asked to learn how fast it is.
const BASELINE: Duration = Duration::from_millis(400);
/// What part of a model's speed the light load asks of it, and how many requests a second at most.
const LIGHT_PART: f64 = 0.15;
const LIGHT_MAX_PER_S: f64 = 20.0;
const LIGHT_MIN_PER_S: f64 = 0.5;

/// A model that is asked.
pub(super) struct Asked {
    pub(super) name: String,
    pub(super) version: u64,
    /// Whether what is right was recorded with the model.
    pub(super) recorded: bool,
    /// Whether its files have a manifest.
    pub(super) has_manifest: bool,
    /// Whether a newer version would take over from the one that serves.
    pub(super) follows_latest: bool,
    pub(super) question: Question,
    /// One after the other, while all is well.
    pub(super) baseline: Baseline,
    /// Of the light load.
    pub(super) per_s: f64,
}

/// How fast a model answers one client.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Baseline {
    /// Milliseconds.
    pub(super) p50_ms: f64,
    /// Milliseconds.
    pub(super) p99_ms: f64,
}

#[derive(Deserialize)]
struct Metadata {
    inputs: Vec<InputMetadata>,
}

#[derive(Deserialize)]
struct InputMetadata {
    name: String,
    datatype: String,
    shape: Vec<i64>,
}

/// Finds what can be asked of the models that serve, the fastest first: faults are for that one, so that it is they that are
/// waited for.
pub(super) async fn prepare(
    server: &Private,
    status: &Status,
    models: &Path,
) -> Result<Vec<Asked>> {
    let repository = Repository::open(models)?;
    let mut asked = Vec::new();
    for model in &status.models {
        let serving = model.versions.iter().filter(|version| version.serves());
        let Some(version) = serving.map(|version| version.version).max() else { continue };
        if let Some(found) = one(server, &repository, models, &model.name, version).await? {
            asked.push(found);
        }
        if asked.len() == MODELS_MAX {
            break;
        }
    }
    if asked.is_empty() {
        bail!(
            "no model serves that can be asked something: give one golden requests (golden.json)"
        );
    }
    asked.sort_by(|a, b| a.baseline.p50_ms.total_cmp(&b.baseline.p50_ms));
    Ok(asked)
}

async fn one(
    server: &Private,
    repository: &Repository,
    models: &Path,
    name: &str,
    version: u64,
) -> Result<Option<Asked>> {
    let folder = models.join(name).join(version.to_string());
    let entry = repository.find(name);
    let settings = entry.and_then(|entry| entry.settings.ok());
    let named = settings.as_ref().and_then(|settings| settings.golden.clone());
    let golden = golden(&folder.join(named.unwrap_or_else(|| GOLDEN_FILE.to_owned())));
    let recorded = golden.is_some();
    let inputs = match &golden {
        Some(case) => Some(case.inputs.clone()),
        None => made_up(&server.metadata(name).await?)?,
    };
    // What is open in every way is not made up.
    let Some(inputs) = inputs else { return Ok(None) };
    let body = encode_request(&inputs);
    let request = Request::post(format!("/v2/models/{name}/infer"))
        .header("host", "localhost")
        .header("content-type", "application/octet-stream")
        .header("inference-header-content-length", body.json_len)
        .body(Full::new(body.body))?;
    let reply = steady::ask(server.address, request.clone(), PATIENCE).await?;
    if reply.status != 200 {
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        bail!("{name} answers its first request with {} {text}", reply.status);
    }
    let found = decode_answer(reply.header_length, &reply.body)
        .map_err(|reason| anyhow::anyhow!("{name}: {reason}"))?;
    let case = match golden {
        Some(case) => GoldenCase { tolerance: case.tolerance.max(TOLERANCE), ..case },
        None => GoldenCase {
            name: "zeros".to_owned(),
            inputs,
            outputs: found.clone(),
            tolerance: TOLERANCE,
        },
    };
    case.check(&found).with_context(|| format!("the first answer of {name}"))?;
    let is_right = move |json_len: Option<usize>, body: &[u8]| {
        decode_answer(json_len, body).is_ok_and(|found| case.check(&found).is_ok())
    };
    let found = steady::capacity(server.address, &request, 1, BASELINE).await?;
    let policy = settings.as_ref().map(|settings| &settings.versions);
    Ok(Some(Asked {
        name: name.to_owned(),
        version,
        recorded,
        has_manifest: folder.join(MANIFEST_FILE).is_file(),
        follows_latest: matches!(policy, Some(VersionPolicy::Latest) | None),
        question: Question { request, is_right: Rc::new(is_right) },
        baseline: Baseline { p50_ms: found.p50_ms, p99_ms: found.p99_ms },
        per_s: light(found.per_s),
    }))
}

/// Requests a second of a light load on a model that answers so many, one after the other.
fn light(per_s: f64) -> f64 {
    (per_s * LIGHT_PART).clamp(LIGHT_MIN_PER_S, LIGHT_MAX_PER_S)
}

/// The first recorded case, if there is one that can be read.
fn golden(file: &Path) -> Option<GoldenCase> {
    Golden::parse(&std::fs::read(file).ok()?).ok()?.cases.into_iter().next()
}

/// A request of zeros, where the metadata say enough.
fn made_up(metadata: &Bytes) -> Result<Option<Vec<NamedTensor>>> {
    let metadata: Metadata = serde_json::from_slice(metadata)?;
    let spec = |input: InputMetadata| {
        let dimension = |size: &i64| match usize::try_from(*size) {
            Ok(size) => Dimension::Fixed(size),
            Err(_) => Dimension::Dynamic(None),
        };
        let shape = Some(input.shape.iter().map(dimension).collect());
        Some(TensorSpec { name: input.name, datatype: input.datatype.parse().ok()?, shape })
    };
    let Some(inputs) = metadata.inputs.into_iter().map(spec).collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    let contract = Contract { inputs, outputs: Vec::new() };
    let named = |tensors: Vec<_>| {
        let names = contract.inputs.iter().map(|spec| spec.name.clone());
        names.zip(tensors).map(|(name, tensor)| NamedTensor { name, tensor }).collect()
    };
    Ok(zeros(&contract).map(named))
}

impl Asked {
    /// Where the version that serves lies.
    pub(super) fn folder(&self, models: &Path) -> PathBuf {
        models.join(&self.name).join(self.version.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_made_up_where_metadata_say_enough() {
        let metadata = Bytes::from_static(
            br#"{"inputs":[{"name":"x","datatype":"FP32","shape":[-1,4]},
                           {"name":"ids","datatype":"INT64","shape":[-1,-1]}]}"#,
        );
        let inputs = made_up(&metadata).unwrap().unwrap();
        assert_eq!(inputs[0].tensor.shape(), [1, 4]);
        assert_eq!((inputs[1].name.as_str(), inputs[1].tensor.shape()[0]), ("ids", 1));
        let unknown = br#"{"inputs":[{"name":"x","datatype":"COMPLEX","shape":[1]}]}"#;
        assert_eq!(made_up(&Bytes::from_static(unknown)).unwrap(), None);
    }

    #[test]
    fn the_light_load_is_light() {
        for (per_s, expected) in [(1e5, 20.0), (40.0, 6.0), (0.1, 0.5)] {
            assert!((light(per_s) - expected).abs() < 1e-9, "{per_s}");
        }
    }
}
