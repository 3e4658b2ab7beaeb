//! What a person sees on standard output when the server is up: where it listens, what really runs, and one line to try.

use crate::http::Listening;
use balm_inference::datatype::Datatype;
use balm_inference::models::Models;
use balm_inference::tensor::{NamedTensor, TensorData};
use balm_inference::version::Serving;
use balm_probes::HealthReport;
use std::fmt::Write as _;
use std::net::SocketAddr;

/// Digits of a digest that are shown.
const DIGEST_SHOWN: usize = 12;

/// Where the server listens.
pub fn addresses(data: &Listening, management: SocketAddr) -> String {
    format!("http       {data}\nmanagement http://{management}\n")
}

/// A line for each model version: version, digest, provider, lanes, threads, state and why.
pub fn models(report: &HealthReport) -> String {
    let mut rows = vec![["model", "version", "digest", "provider", "lanes", "threads", "state"]
        .map(str::to_owned)];
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

/// A command that works when pasted: a prediction by the first model for which an example is at hand.
pub fn try_it(models: &Models, data: &Listening) -> Option<String> {
    let serving = models.all().into_iter().find_map(|model| {
        let serving = model.serving(None).ok()?;
        body(&serving).map(|body| (serving, body))
    });
    let (serving, body) = serving?;
    let (address, option) = match data {
        Listening::Tcp(addr) => (format!("http://{addr}"), String::new()),
        Listening::Unix(path) => {
            ("http://localhost".to_owned(), format!("--unix-socket {} ", path.display()))
        }
    };
    Some(format!(
        "curl -s {option}{address}/v2/models/{}/infer -d '{body}'\n",
        serving.model
    ))
}

/// The body of the model's example, when it is short and has a JSON form without a quote.
fn body(serving: &Serving) -> Option<String> {
    const ELEMENTS_MAX: usize = 64;
    let example = serving.example.as_ref()?;
    let inputs: Option<Vec<serde_json::Value>> = example
        .iter()
        .map(|NamedTensor { name, tensor }| {
            if tensor.element_count() > ELEMENTS_MAX {
                return None;
            }
            Some(serde_json::json!({
                "name": name,
                "shape": tensor.shape(),
                "datatype": tensor.datatype().name(),
                "data": elements(tensor.datatype(), tensor.data())?,
            }))
        })
        .collect();
    let body = serde_json::json!({ "inputs": inputs? }).to_string();
    (!body.contains('\'')).then_some(body)
}

fn elements(datatype: Datatype, data: &TensorData) -> Option<serde_json::Value> {
    let TensorData::Raw(raw) = data else { return None };
    Some(match datatype {
        Datatype::Fp32 => raw
            .as_chunks::<4>()
            .0
            .iter()
            // Through the shortest text of the f32, not its widened digits.
            .map(|bytes| f32::from_le_bytes(*bytes).to_string().parse::<f64>().ok())
            .collect::<Option<Vec<f64>>>()?
            .into(),
        Datatype::Int64 => raw
            .as_chunks::<8>()
            .0
            .iter()
            .map(|bytes| i64::from_le_bytes(*bytes))
            .collect::<Vec<i64>>()
            .into(),
        _ => return None,
    })
}
