//! ONNX Runtime by itself: what Balm is measured against.
//!
//! No code of Balm is in here, on purpose: this is what a program would do that calls the library directly, with the
//! session options that Balm uses (one inter-op thread, no spinning, all optimisations). Inputs are made once and
//! outputs are left where they are, so nothing but the run itself is counted. Every answer that is looked at must be
//! the recorded one: a yardstick that computes something else is none.
//!
//! ```text
//! ort_alone --library LIB --model model.onnx --golden golden.json --threads 2 run --seconds 5
//! ort_alone --library LIB --model model.onnx --golden golden.json --threads 2 load --sha256 --started-at $(date +%s%N)
//! ```
//!
//! Prints one line of JSON.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, Parser, Subcommand};
use hdrhistogram::Histogram;
use ort::environment::Environment;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session, SessionInputValue, SessionOutputs};
use ort::value::Tensor;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Runs that take longer are counted as this long.
const RUN_MAX: Duration = Duration::from_mins(1);
/// More is a slip of the keyboard.
const THREADS_MAX: u16 = 256;
const SECONDS_MAX: f64 = 600.0;
const ROWS_MAX: u16 = 4096;

/// ONNX Runtime by itself.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    subject: Subject,
    #[command(subcommand)]
    mode: Mode,
}

/// What is run.
#[derive(Args)]
struct Subject {
    /// The ONNX Runtime library.
    #[arg(long, env = "ORT_DYLIB_PATH", default_value = ".ort/libonnxruntime.so")]
    library: PathBuf,
    /// The model file.
    #[arg(long)]
    model: PathBuf,
    /// Recorded inputs and outputs.
    #[arg(long)]
    golden: PathBuf,
    /// The recorded case to run [default: the first of batch 1].
    #[arg(long)]
    case: Option<String>,
    /// Threads, each with a session of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=THREADS_MAX.into()))]
    threads: u16,
    /// Rows of a run: the recorded case, so many times over.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=ROWS_MAX.into()))]
    rows: u16,
    /// Threads that ONNX Runtime uses within one run.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=THREADS_MAX.into()))]
    intra_threads: u16,
}

#[derive(Subcommand)]
enum Mode {
    /// Runs the model in a closed loop on every thread.
    Run {
        /// How long to count.
        #[arg(long, default_value_t = 5.0, value_parser = seconds)]
        seconds: f64,
        /// How long to run before that.
        #[arg(long, default_value_t = 0.5, value_parser = seconds)]
        warm_up: f64,
    },
    /// Times the way to the first right answer, and looks at the memory then held.
    Load {
        /// Hash the file first, as one must who wants to know what is loaded.
        #[arg(long)]
        sha256: bool,
        /// When this process was started, in nanoseconds since 1970; otherwise time counts from `main`.
        #[arg(long, value_name = "NANOSECONDS")]
        started_at: Option<u64>,
    },
}

fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=SECONDS_MAX).contains(&value) {
        Ok(value)
    } else {
        Err(format!("not between 0 and {SECONDS_MAX}"))
    }
}

fn main() -> ExitCode {
    let begun = Begun { at: Instant::now(), unix: SystemTime::now() };
    match report(&Cli::parse(), begun) {
        Ok(line) => {
            let written = writeln!(std::io::stdout(), "{line}");
            if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "ort_alone: {error}");
            ExitCode::FAILURE
        }
    }
}

fn report(cli: &Cli, begun: Begun) -> Result<String, Error> {
    let case = Case::read(&cli.subject.golden, cli.subject.case.as_deref())?;
    let case = case.repeated(cli.subject.rows.into());
    Ok(match &cli.mode {
        Mode::Run { seconds, warm_up } => serde_json::to_string(&run(
            &cli.subject,
            &case,
            Duration::from_secs_f64(*warm_up),
            Duration::from_secs_f64(*seconds),
        )?)?,
        Mode::Load { sha256, started_at } => {
            let begun = begun.earlier(*started_at)?;
            serde_json::to_string(&load(&cli.subject, &case, *sha256, begun)?)?
        }
    })
}

// ===== the library =====

fn environment(library: &Path) -> Result<Environment, Error> {
    if !library.is_file() {
        return Err(format!("{} is no file: `make ort` brings it", library.display()).into());
    }
    Ok(ort::init_from(library)?.with_name("ort_alone").with_telemetry(false).build()?)
}

fn session(environment: &Environment, subject: &Subject) -> ort::Result<Session> {
    Session::builder(environment)?
        .with_intra_threads(subject.intra_threads.into())?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .commit_from_file(&subject.model)
}

// ===== mode run =====

#[derive(Serialize)]
struct RunReport {
    mode: &'static str,
    case: String,
    threads: u16,
    intra_threads: u16,
    seconds: f64,
    runs: u64,
    runs_per_second: f64,
    rows: u16,
    p50_us: f64,
    p99_us: f64,
    onnxruntime: String,
}

fn run(
    subject: &Subject,
    case: &Case,
    warm_up: Duration,
    length: Duration,
) -> Result<RunReport, Error> {
    let environment = environment(&subject.library)?;
    let loaded = Barrier::new(subject.threads.into());
    let histograms: Vec<Histogram<u64>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..subject.threads)
            .map(|_| {
                scope.spawn(|| {
                    let session = session(&environment, subject);
                    // Also after a failure: the others would wait for ever.
                    loaded.wait();
                    closed_loop(session?, case, warm_up, length)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a thread panicked")?)
            .collect::<Result<_, Error>>()
    })?;
    let mut all = new_histogram()?;
    for histogram in &histograms {
        all.add(histogram)?;
    }
    Ok(RunReport {
        mode: "run",
        case: case.name.clone(),
        threads: subject.threads,
        intra_threads: subject.intra_threads,
        seconds: length.as_secs_f64(),
        runs: all.len(),
        runs_per_second: all.len() as f64 / length.as_secs_f64(),
        rows: subject.rows,
        p50_us: all.value_at_quantile(0.50) as f64 / 1e3,
        p99_us: all.value_at_quantile(0.99) as f64 / 1e3,
        onnxruntime: ort::info().to_owned(),
    })
}

/// Nanoseconds of every run that ended between the end of the warm-up and the end.
fn closed_loop(
    mut session: Session,
    case: &Case,
    warm_up: Duration,
    length: Duration,
) -> Result<Histogram<u64>, Error> {
    let mut histogram = new_histogram()?;
    let inputs = case.inputs(&session)?;
    case.judge(&session.run(inputs.as_slice())?)?;
    let start = Instant::now() + warm_up;
    let end = start + length;
    let mut before = Instant::now();
    while before < end {
        let outputs = session.run(inputs.as_slice())?;
        let after = Instant::now();
        drop(outputs);
        if after >= start && after < end {
            histogram.saturating_record(u64::try_from((after - before).as_nanos())?);
        }
        before = Instant::now();
    }
    case.judge(&session.run(inputs.as_slice())?)?;
    Ok(histogram)
}

fn new_histogram() -> Result<Histogram<u64>, Error> {
    Ok(Histogram::new_with_bounds(1, u64::try_from(RUN_MAX.as_nanos())?, 3)?)
}

// ===== mode load =====

/// Durations in milliseconds, in the order in which they pass; `total` is up to the first right answer.
#[derive(Serialize)]
struct LoadReport {
    mode: &'static str,
    case: String,
    threads: u16,
    intra_threads: u16,
    /// `exec` or `main`: what the time counts from.
    since: &'static str,
    to_main_ms: f64,
    library_ms: f64,
    hash_ms: f64,
    session_ms: f64,
    first_run_ms: f64,
    total_ms: f64,
    sha256: Option<String>,
    /// After every session has answered once.
    memory: Memory,
    onnxruntime: String,
}

/// When this process began.
struct Begun {
    at: Instant,
    unix: SystemTime,
}

impl Begun {
    /// The given moment as an instant of this process, which may not lie behind `main` nor far before it.
    fn earlier(self, started_at: Option<u64>) -> Result<Start, Error> {
        let Some(started_at) = started_at else {
            return Ok(Start { since: "main", main: self.at, to_main: Duration::ZERO });
        };
        let to_main = self
            .unix
            .duration_since(UNIX_EPOCH + Duration::from_nanos(started_at))
            .ok()
            .filter(|to_main| *to_main < Duration::from_mins(1))
            .ok_or("--started-at is not within the minute before now")?;
        Ok(Start { since: "exec", main: self.at, to_main })
    }
}

struct Start {
    since: &'static str,
    main: Instant,
    to_main: Duration,
}

/// The first session answers as early as it can; the others come after that, and count only in memory.
fn load(subject: &Subject, case: &Case, hash: bool, start: Start) -> Result<LoadReport, Error> {
    let mut clock = Lap(Instant::now());
    let environment = environment(&subject.library)?;
    let library_ms = clock.lap_ms();
    let sha256 = if hash { Some(digest(&subject.model)?) } else { None };
    let hash_ms = clock.lap_ms();
    let first = session(&environment, subject)?;
    let session_ms = clock.lap_ms();
    let first = answered(first, case)?;
    let first_run_ms = clock.lap_ms();
    let total = start.to_main + start.main.elapsed();

    let mut sessions = vec![first];
    for _ in 1..subject.threads {
        sessions.push(answered(session(&environment, subject)?, case)?);
    }
    let memory = Memory::of_this_process()?;
    drop(sessions);
    Ok(LoadReport {
        mode: "load",
        case: case.name.clone(),
        threads: subject.threads,
        intra_threads: subject.intra_threads,
        since: start.since,
        to_main_ms: milliseconds(start.to_main),
        library_ms,
        hash_ms,
        session_ms,
        first_run_ms,
        total_ms: milliseconds(total),
        sha256,
        memory,
        onnxruntime: ort::info().to_owned(),
    })
}

fn answered(mut session: Session, case: &Case) -> Result<Session, Error> {
    let inputs = case.inputs(&session)?;
    case.judge(&session.run(inputs.as_slice())?)?;
    Ok(session)
}

/// In pieces that stay in the processor's cache: the cheapest way there is, so that nobody is flattered by it.
fn digest(path: &Path) -> Result<String, Error> {
    let mut file = fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 256 * 1024];
    loop {
        match file.read(&mut piece)? {
            0 => break,
            length => hash.update(&piece[..length]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

struct Lap(Instant);

impl Lap {
    fn lap_ms(&mut self) -> f64 {
        let now = Instant::now();
        milliseconds(now - std::mem::replace(&mut self.0, now))
    }
}

#[derive(Serialize)]
struct Memory {
    rss_bytes: u64,
    pss_bytes: u64,
}

impl Memory {
    fn of_this_process() -> Result<Self, Error> {
        let text = fs::read_to_string("/proc/self/smaps_rollup")?;
        let bytes = |label: &str| -> Result<u64, Error> {
            let line =
                text.lines().find_map(|line| line.strip_prefix(label)).ok_or("no such line")?;
            Ok(line.trim().trim_end_matches("kB").trim_end().parse::<u64>()? * 1024)
        };
        Ok(Memory { rss_bytes: bytes("Rss:")?, pss_bytes: bytes("Pss:")? })
    }
}

// ===== recorded cases =====

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    tolerance: f64,
    inputs: Vec<Recorded>,
    outputs: Vec<Recorded>,
}

#[derive(Deserialize)]
struct Recorded {
    name: String,
    shape: Vec<i64>,
    #[serde(flatten)]
    data: Data,
}

#[derive(Deserialize)]
#[serde(tag = "datatype", content = "data")]
enum Data {
    #[serde(rename = "FP32")]
    Fp32(Vec<f32>),
    #[serde(rename = "INT64")]
    Int64(Vec<i64>),
}

impl Case {
    fn read(path: &Path, name: Option<&str>) -> Result<Case, Error> {
        let text = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let golden: Golden = serde_json::from_slice(&text)?;
        let of_batch_1 =
            |case: &Case| case.inputs.iter().all(|input| input.shape.first() == Some(&1));
        golden
            .cases
            .into_iter()
            .find(|case| name.map_or_else(|| of_batch_1(case), |name| case.name == name))
            .ok_or_else(|| format!("{} holds no such case", path.display()).into())
    }

    /// The case so many times over, one below the other.
    fn repeated(mut self, times: usize) -> Case {
        for recorded in self.inputs.iter_mut().chain(&mut self.outputs) {
            if let Some(rows) = recorded.shape.first_mut() {
                *rows *= i64::try_from(times).unwrap_or(i64::MAX);
            }
            match &mut recorded.data {
                Data::Fp32(data) => *data = data.repeat(times),
                Data::Int64(data) => *data = data.repeat(times),
            }
        }
        self
    }

    /// The inputs in the session's order.
    fn inputs(&self, session: &Session) -> Result<Vec<SessionInputValue<'static>>, Error> {
        let recorded = session.inputs().iter().map(|outlet| {
            let found = self.inputs.iter().find(|input| input.name == outlet.name());
            found.ok_or_else(|| format!("no input {:?} is recorded", outlet.name()))
        });
        recorded.map(|recorded| recorded?.value()).collect()
    }

    fn judge(&self, found: &SessionOutputs<'_>) -> Result<(), Error> {
        for expected in &self.outputs {
            let name = &expected.name;
            let found = found.get(name).ok_or_else(|| format!("there is no output {name:?}"))?;
            let (shape, right) = match &expected.data {
                Data::Fp32(expected) => {
                    let (shape, found) = found.try_extract_tensor::<f32>()?;
                    // Written so that a NaN is wrong.
                    let near = |(a, b): (&f32, &f32)| {
                        (f64::from(*a) - f64::from(*b)).abs() <= self.tolerance
                    };
                    (shape, found.len() == expected.len() && found.iter().zip(expected).all(near))
                }
                Data::Int64(expected) => {
                    let (shape, found) = found.try_extract_tensor::<i64>()?;
                    (shape, found == expected.as_slice())
                }
            };
            if **shape != *expected.shape || !right {
                return Err(format!("case {:?}: output {name:?} is wrong", self.name).into());
            }
        }
        Ok(())
    }
}

impl Recorded {
    fn value(&self) -> Result<SessionInputValue<'static>, Error> {
        let shape = self.shape.clone();
        Ok(match &self.data {
            Data::Fp32(data) => Tensor::from_array((shape, data.clone()))?.into(),
            Data::Int64(data) => Tensor::from_array((shape, data.clone()))?.into(),
        })
    }
}
