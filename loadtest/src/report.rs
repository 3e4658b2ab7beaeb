//! The figures, what follows from them, and whether the aims are met. No measuring and no I/O.

pub(crate) mod table;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::closed_loop::Measured;
use crate::machine::Machine;
use crate::ort_alone::Load;
use crate::process::{Cores, Memory};
use crate::statistics::Summary;

/// MiniLM over HTTP beside ONNX Runtime alone.
const MINILM_TO_ORT_MIN: f64 = 0.9;
/// Iris beside a route that does nothing with the same body.
const IRIS_TO_NOOP_MIN: f64 = 0.4;
/// The same of a model that is a little larger.
const BREAST_CANCER_TO_NOOP_MIN: f64 = 0.7;
/// What a lone client pays for going through the server.
const IRIS_ADDED_US_MAX: f64 = 100.0;
/// From exec to the first right answer, beside ONNX Runtime's own way there and the hash.
const START_RATIO_MAX: f64 = 1.2;
/// What an idle server holds beside ONNX Runtime alone, in millions of bytes.
const ADDED_MB_MAX: f64 = 15.0;

/// Other work that takes more of a core than this, on average over a measurement's rounds, makes figures doubtful.
const OTHERS_MAX: f64 = 0.1;

/// Everything that one run of the bench has found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) balm: String,
    pub(crate) onnxruntime: String,
    pub(crate) machine: Machine,
    pub(crate) lanes: usize,
    pub(crate) rounds: u32,
    pub(crate) seconds: f64,
    pub(crate) throughput: Vec<Throughput>,
    pub(crate) start_up: Vec<StartUp>,
    pub(crate) aims: Vec<Aim>,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Subject {
    /// ONNX Runtime by itself, in process.
    OrtAlone,
    /// The same with several rows in each run; so many are "at once".
    OrtBatched,
    /// `balm serve`, over loopback.
    Balm,
    /// The route of the same server that reads the body and does nothing.
    Noop,
}

/// Closed-loop figures of a model.
#[derive(Debug, Serialize)]
pub(crate) struct Throughput {
    pub(crate) model: String,
    pub(crate) case: String,
    pub(crate) rows: Vec<Row>,
}

/// One subject at one load.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) subject: Subject,
    /// Connections, or threads of ONNX Runtime alone.
    pub(crate) at_once: usize,
    pub(crate) per_second: Summary,
    pub(crate) p50_us: Summary,
    pub(crate) p99_us: Summary,
    /// Predictions per second beside ONNX Runtime alone with as many sessions.
    pub(crate) to_ort_alone: Option<Summary>,
    /// Predictions per second beside ONNX Runtime alone with as many sessions and as many rows in each run as serve it best.
    pub(crate) to_best_batch: Option<Summary>,
    /// Rows of a run, on average.
    pub(crate) rows_per_run: Option<Summary>,
    /// Predictions per second beside the no-op route at the same load.
    pub(crate) to_noop: Option<Summary>,
    /// p50 above that of ONNX Runtime alone on one thread, for the lone client.
    pub(crate) added_p50_us: Option<Summary>,
    /// p50 above that of the no-op route, for the lone client: what is not the network's.
    pub(crate) added_to_noop_us: Option<Summary>,
    /// Means over the rounds; none where the measurement is made in the child.
    pub(crate) cores: Option<Cores>,
}

/// From exec to the first right answer, and what is held then.
#[derive(Debug, Serialize)]
pub(crate) struct StartUp {
    pub(crate) model: String,
    pub(crate) sessions: usize,
    pub(crate) ort_alone_ms: Summary,
    /// Of which, each a median.
    pub(crate) library_ms: f64,
    pub(crate) hash_ms: f64,
    pub(crate) session_ms: f64,
    pub(crate) first_run_ms: f64,
    pub(crate) balm_ms: Summary,
    pub(crate) ratio: Summary,
    pub(crate) ort_alone_pss_mb: Summary,
    pub(crate) ort_alone_rss_mb: Summary,
    pub(crate) balm_pss_mb: Summary,
    pub(crate) balm_rss_mb: Summary,
    pub(crate) added_pss_mb: Summary,
}

/// What was hoped for and what was found.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Aim {
    pub(crate) what: String,
    pub(crate) found: Summary,
    pub(crate) bound: Bound,
    pub(crate) met: bool,
}

/// The side of a number that is good.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// What was measured of one model, by subject and load, a value for each round.
pub(crate) type Series = BTreeMap<(Subject, usize), Vec<Measured>>;

/// One pair of starts.
pub(crate) struct Start {
    pub(crate) ort_alone: Load,
    pub(crate) balm_ms: f64,
    pub(crate) balm_memory: Memory,
}

// ===== impl Report =====

impl Report {
    /// How many cores other work took at worst, where that was so much that the figures cannot be trusted.
    pub(crate) fn disturbed(&self) -> Option<f64> {
        let rows = self.throughput.iter().flat_map(|throughput| &throughput.rows);
        let others = rows.filter_map(|row| row.cores).map(|cores| cores.others);
        others.max_by(f64::total_cmp).filter(|others| *others > OTHERS_MAX)
    }
}

// ===== impl Throughput =====

impl Throughput {
    pub(crate) fn of(model: &str, case: &str, lanes: usize, series: &Series) -> Throughput {
        let rows = series
            .iter()
            .filter_map(|(&(subject, at_once), _)| Row::of(subject, at_once, lanes, series))
            .collect();
        Throughput { model: model.to_owned(), case: case.to_owned(), rows }
    }

    fn balm(&self, at_once: usize) -> Option<&Row> {
        self.rows.iter().find(|row| row.subject == Subject::Balm && row.at_once == at_once)
    }

    /// The row of Balm under the most connections.
    fn balm_at_most(&self) -> Option<&Row> {
        self.rows.iter().rfind(|row| row.subject == Subject::Balm)
    }
}

impl Row {
    fn of(subject: Subject, at_once: usize, lanes: usize, series: &Series) -> Option<Row> {
        let column = |key, of: fn(&Measured) -> f64| -> Vec<f64> {
            series.get(&key).map(|rounds| rounds.iter().map(of).collect()).unwrap_or_default()
        };
        let own = |of| column((subject, at_once), of);
        let rate: fn(&Measured) -> f64 = |measured| measured.per_second;
        let p50: fn(&Measured) -> f64 = |measured| measured.p50_us;
        let beside = |key| Summary::of_pairs(&own(rate), &column(key, rate), |a, b| a / b);
        let balm = subject == Subject::Balm;
        let above = |key| {
            let added = Summary::of_pairs(&own(p50), &column(key, p50), |a, b| a - b);
            added.filter(|_| balm && at_once == 1)
        };
        Some(Row {
            subject,
            at_once,
            per_second: Summary::of(own(rate))?,
            p50_us: Summary::of(own(p50))?,
            p99_us: Summary::of(own(|measured| measured.p99_us))?,
            to_ort_alone: balm.then(|| beside((Subject::OrtAlone, lanes))).flatten(),
            to_best_batch: balm.then(|| beside(best_batch(lanes, series)?)).flatten(),
            rows_per_run: Summary::of(
                series.get(&(subject, at_once))?.iter().filter_map(|one| one.rows_per_run),
            ),
            to_noop: balm.then(|| beside((Subject::Noop, at_once))).flatten(),
            added_p50_us: above((Subject::OrtAlone, 1)),
            added_to_noop_us: above((Subject::Noop, 1)),
            cores: (!matches!(subject, Subject::OrtAlone | Subject::OrtBatched))
                .then(|| mean_cores(series.get(&(subject, at_once))?))
                .flatten(),
        })
    }
}

/// ONNX Runtime alone with the number of rows that serves it best, one included.
fn best_batch(lanes: usize, series: &Series) -> Option<(Subject, usize)> {
    let candidates = series.iter().filter(|((subject, at_once), _)| match subject {
        Subject::OrtAlone => *at_once == lanes,
        Subject::OrtBatched => true,
        Subject::Balm | Subject::Noop => false,
    });
    let rated = candidates.filter_map(|(key, rounds)| {
        Some((*key, Summary::of(rounds.iter().map(|one| one.per_second))?.median))
    });
    rated.max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(key, _)| key)
}

fn mean_cores(rounds: &[Measured]) -> Option<Cores> {
    let mean = |of: fn(&Cores) -> f64| {
        rounds.iter().map(|measured| of(&measured.cores)).sum::<f64>() / rounds.len() as f64
    };
    (!rounds.is_empty()).then(|| Cores {
        generator: mean(|cores| cores.generator),
        target: mean(|cores| cores.target),
        others: mean(|cores| cores.others),
    })
}

// ===== impl StartUp =====

impl StartUp {
    /// `None` of no starts.
    pub(crate) fn of(model: &str, sessions: usize, starts: &[Start]) -> Option<StartUp> {
        let column = |of: fn(&Start) -> f64| -> Vec<f64> { starts.iter().map(of).collect() };
        let summary = |of| Summary::of(column(of));
        let median = |of| summary(of).map(|summary| summary.median);
        let balm_ms: fn(&Start) -> f64 = |start| start.balm_ms;
        let ort_ms: fn(&Start) -> f64 = |start| start.ort_alone.total_ms;
        let balm_pss: fn(&Start) -> f64 = |start| megabytes(start.balm_memory.pss_bytes);
        let ort_pss: fn(&Start) -> f64 = |start| megabytes(start.ort_alone.memory().pss_bytes);
        Some(StartUp {
            model: model.to_owned(),
            sessions,
            ort_alone_ms: summary(ort_ms)?,
            library_ms: median(|start| start.ort_alone.library_ms)?,
            hash_ms: median(|start| start.ort_alone.hash_ms)?,
            session_ms: median(|start| start.ort_alone.session_ms)?,
            first_run_ms: median(|start| start.ort_alone.first_run_ms)?,
            balm_ms: summary(balm_ms)?,
            ratio: Summary::of_pairs(&column(balm_ms), &column(ort_ms), |a, b| a / b)?,
            ort_alone_pss_mb: summary(ort_pss)?,
            ort_alone_rss_mb: summary(|start| megabytes(start.ort_alone.memory().rss_bytes))?,
            balm_pss_mb: summary(balm_pss)?,
            balm_rss_mb: summary(|start| megabytes(start.balm_memory.rss_bytes))?,
            added_pss_mb: Summary::of_pairs(&column(balm_pss), &column(ort_pss), |a, b| a - b)?,
        })
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

// ===== impl Aim =====

impl Aim {
    /// The aims that the figures say something about.
    pub(crate) fn of(throughput: &[Throughput], start_up: &[StartUp]) -> Vec<Aim> {
        let of_model = |name: &str| throughput.iter().find(|found| found.model == name);
        let mut aims = Vec::new();
        if let Some(row) = of_model("minilm").and_then(Throughput::balm_at_most) {
            let what = format!("minilm: balm ÷ ORT alone, {} connections", row.at_once);
            aims.extend(Aim::new(what, row.to_ort_alone, Bound::AtLeast(MINILM_TO_ORT_MIN)));
        }
        if let Some(row) = of_model("minilm").and_then(Throughput::balm_at_most) {
            let what = format!("minilm: balm ÷ ORT's best batch, {} connections", row.at_once);
            aims.extend(Aim::new(what, row.to_best_batch, Bound::AtLeast(MINILM_TO_ORT_MIN)));
        }
        if let Some(row) = of_model("breast_cancer").and_then(Throughput::balm_at_most) {
            let what = format!("breast_cancer: balm ÷ no-op route, {} connections", row.at_once);
            aims.extend(Aim::new(what, row.to_noop, Bound::AtLeast(BREAST_CANCER_TO_NOOP_MIN)));
        }
        if let Some(row) = of_model("iris").and_then(Throughput::balm_at_most) {
            let what = format!("iris: balm ÷ no-op route, {} connections", row.at_once);
            aims.extend(Aim::new(what, row.to_noop, Bound::AtLeast(IRIS_TO_NOOP_MIN)));
        }
        if let Some(row) = of_model("iris").and_then(|found| found.balm(1)) {
            let what = "iris: p50 above ORT alone, 1 connection, µs".to_owned();
            aims.extend(Aim::new(what, row.added_p50_us, Bound::AtMost(IRIS_ADDED_US_MAX)));
        }
        for start in start_up {
            let what = format!("{}: exec to right answer ÷ (ORT alone + hash)", start.model);
            aims.extend(Aim::new(what, Some(start.ratio), Bound::AtMost(START_RATIO_MAX)));
            let what = format!("{}: idle memory above ORT alone, MB", start.model);
            aims.extend(Aim::new(what, Some(start.added_pss_mb), Bound::AtMost(ADDED_MB_MAX)));
        }
        aims
    }

    fn new(what: String, found: Option<Summary>, bound: Bound) -> Option<Aim> {
        let found = found?;
        let met = match bound {
            Bound::AtLeast(least) => found.median >= least,
            Bound::AtMost(most) => found.median <= most,
        };
        Some(Aim { what, found, bound, met })
    }
}

#[cfg(test)]
pub(crate) mod tests;
