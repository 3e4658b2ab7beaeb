//! What a person sees on standard output when the server is up: where it listens, what really runs, and one line to try.

use crate::http::Listening;
use balm_inference::datatype::Datatype;
use balm_inference::models::Models;
use balm_inference::tensor::{NamedTensor, Tensor, TensorData};
use balm_inference::version::Serving;
use balm_probes::HealthReport;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;

/// Digits of a digest that are shown.
const DIGEST_SHOWN: usize = 12;

/// Where the server listens.
pub fn addresses(data: &Listening, management: SocketAddr) -> String {
    format!("http       {data}\nmanagement http://{management}\n")
}

/// A line for each model version: version, digest, provider, lanes, threads, state and why.
pub fn models(report: &HealthReport) -> String {
    let mut rows = vec![
        ["model", "version", "digest", "provider", "lanes", "threads", "state"].map(str::to_owned),
    ];
    for model in &report.models {
        for version in &model.versions {
            let digest = version.digest.as_deref().unwrap_or("-");
            let state = match &version.reason {
                Some(reason) => format!("{}: {reason}", version.state.as_str()),
                None => version.state.as_str().to_owned(),
            };
            rows.push([
                model.name.clone(),
                version.version.to_string(),
                digest.chars().take(DIGEST_SHOWN).collect(),
                version.provider.clone().unwrap_or_else(|| "-".to_owned()),
                version.lanes.wanted.to_string(),
                version.threads.to_string(),
                state,
            ]);
        }
        if model.versions.is_empty() {
            let mut row = ["-"; 7].map(str::to_owned);
            row[0].clone_from(&model.name);
            row[6] = "has no version".to_owned();
            rows.push(row);
        }
    }
    table(&rows)
}

fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        for (column, (width, cell)) in widths.iter().zip(row).enumerate() {
            let width = if column + 1 == N { 0 } else { *width };
            let _ = write!(text, "{cell:<width$}  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// A command that works when pasted: a prediction by the model with the shortest example.
pub fn try_it(models: &Models, data: &Listening) -> Option<String> {
    let examples = models.all().into_iter().filter_map(|model| {
        let serving = model.serving(None).ok()?;
        body(&serving).map(|body| (serving, body))
    });
    let (serving, body) = examples.min_by_key(|(_, body)| body.len())?;
    let (address, option) = match data {
        Listening::Tcp(addr) => (format!("http://{addr}"), String::new()),
        Listening::Unix(path) => {
            ("http://localhost".to_owned(), format!("--unix-socket {} ", path.display()))
        }
    };
    Some(format!("\ncurl -s {option}{address}/v2/models/{}/infer -d '{body}'\n", serving.model))
}

#[derive(Serialize)]
struct Example<'a> {
    inputs: Vec<ExampleInput<'a>>,
}

#[derive(Serialize)]
struct ExampleInput<'a> {
    name: &'a str,
    shape: &'a [usize],
    datatype: &'static str,
    data: Elements,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Elements {
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

/// The body of the model's example, when it is short and has a JSON form without a quote.
fn body(serving: &Serving) -> Option<String> {
    const ELEMENTS_MAX: usize = 64;
    let example = serving.example.as_ref()?;
    let inputs: Option<Vec<ExampleInput<'_>>> = example
        .iter()
        .map(|NamedTensor { name, tensor }| {
            let data = elements(tensor)?;
            (tensor.element_count() <= ELEMENTS_MAX).then(|| ExampleInput {
                name,
                shape: tensor.shape(),
                datatype: tensor.datatype().name(),
                data,
            })
        })
        .collect();
    let body = serde_json::to_string(&Example { inputs: inputs? }).ok()?;
    (!body.contains('\'')).then_some(body)
}

fn elements(tensor: &Tensor) -> Option<Elements> {
    let TensorData::Raw(raw) = tensor.data() else { return None };
    match tensor.datatype() {
        Datatype::Fp32 => {
            let words = raw.as_chunks::<4>().0;
            Some(Elements::Floats(words.iter().map(|word| f32::from_le_bytes(*word)).collect()))
        }
        Datatype::Int64 => {
            let words = raw.as_chunks::<8>().0;
            Some(Elements::Integers(words.iter().map(|word| i64::from_le_bytes(*word)).collect()))
        }
        _ => None,
    }
}

/// Writes to standard output, whole. A closed pipe is the reader's choice and no reason to stop.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}
