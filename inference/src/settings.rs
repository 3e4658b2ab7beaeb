//! `model.toml`: what one model asks for.
//!
//! Every key is optional. A file is taken whole or not at all: every problem in it is reported, not the first
//! alone. (That is why it is read as a table and not by serde's derived code, which ends at the first.)

mod padding;
mod table;

pub use padding::PadValue;

use crate::integrity::{Policy, name_problem};
use crate::provider::Provider;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;
use table::{Problems, Table};

/// Name of the settings file in a model's folder.
pub const SETTINGS_FILE: &str = "model.toml";
/// The largest settings file that is read, in bytes.
pub const SETTINGS_BYTES_MAX: u64 = 1 << 20;

/// Every key of `model.toml`; of `labels` and `batching.padding` the part that is fixed.
pub const KEYS: [&str; 22] = [
    "description",
    "lanes",
    "adaptive_lanes",
    "versions",
    "providers",
    "fallback",
    "default_deadline_ms",
    "max_deadline_ms",
    "integrity",
    "golden",
    "session.threads",
    "session.graph_optimization",
    "limits.max_body_bytes",
    "limits.max_batch_rows",
    "limits.max_in_flight",
    "limits.max_queue",
    "limits.max_wait_ms",
    "batching.enabled",
    "batching.max_rows",
    "batching.max_delay_ms",
    "batching.padding.INPUT",
    "labels.OUTPUT",
];

const LANES: RangeInclusive<u64> = 1..=64;
const THREADS: RangeInclusive<u64> = 1..=256;
/// One millisecond to one day.
const DEADLINE_MS: RangeInclusive<u64> = 1..=86_400_000;
const BODY_BYTES: RangeInclusive<u64> = 1_024..=1 << 40;
const BATCH_ROWS: RangeInclusive<u64> = 1..=1 << 24;
/// Longer is a slip of the keyboard: every request of a quiet model would wait for it.
const DELAY_MS: RangeInclusive<u64> = 0..=1_000;
const IN_FLIGHT: RangeInclusive<u64> = 1..=1 << 20;

/// What one model asks for; `None` leaves it to the server's defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelSettings {
    /// For people; shown in `/status`.
    pub description: Option<String>,
    /// Threads with a session each.
    pub lanes: Option<usize>,
    /// Whether as many lanes run at once as turns out to be best. `None`: where they feed a device.
    pub adaptive_lanes: Option<bool>,
    /// Which versions are served.
    pub versions: VersionPolicy,
    /// Execution providers in order of preference; never empty.
    pub providers: Option<Vec<Provider>>,
    /// What to run on, visibly degraded, when the providers cannot be had.
    pub fallback: Option<Provider>,
    /// Deadline of a request that brings none.
    pub default_deadline: Option<Duration>,
    /// The longest deadline that a request may ask for.
    pub max_deadline: Option<Duration>,
    /// What the file asks of integrity; see [`ModelSettings::policy`].
    pub integrity: Option<Policy>,
    /// Name of the golden requests in the version folder. Named, they must be there; `golden.json` is judged by where it
    /// is there, named or not.
    pub golden: Option<String>,
    /// How sessions are made.
    pub session: SessionSettings,
    /// What requests may bring.
    pub limits: LimitSettings,
    /// How requests share runs.
    pub batching: BatchingSettings,
    /// Names of classes, by output.
    pub labels: BTreeMap<String, Vec<String>>,
}

/// Which versions of a model are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VersionPolicy {
    /// The one with the highest number.
    #[default]
    Latest,
    /// Every one that is there.
    All,
    /// These, ascending; one that is absent is a failed version.
    Only(Vec<u64>),
}

impl VersionPolicy {
    /// The versions to load out of those that are there, in the order of trying. Of `Latest`, the first that can
    /// be brought to serve is enough.
    pub fn candidates(&self, present: &[u64]) -> Vec<u64> {
        match self {
            VersionPolicy::Latest => present.iter().rev().copied().collect(),
            VersionPolicy::All => present.to_vec(),
            VersionPolicy::Only(versions) => versions.clone(),
        }
    }
}

/// How sessions are made: table `[session]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionSettings {
    /// Threads of one session; `None` leaves it to the server.
    pub threads: Option<usize>,
    /// How far ONNX Runtime rewrites the graph.
    pub graph_optimization: GraphOptimization,
}

/// How far ONNX Runtime rewrites the graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GraphOptimization {
    /// Everything, layout changes included.
    #[default]
    All,
    /// Fusions of operators too.
    Extended,
    /// Constant folding and removal of what is not needed.
    Basic,
    /// The graph as it is.
    Disable,
}

impl GraphOptimization {
    const ALL: [GraphOptimization; 4] = [
        GraphOptimization::All,
        GraphOptimization::Extended,
        GraphOptimization::Basic,
        GraphOptimization::Disable,
    ];

    /// The word in configuration.
    pub const fn name(self) -> &'static str {
        match self {
            GraphOptimization::All => "all",
            GraphOptimization::Extended => "extended",
            GraphOptimization::Basic => "basic",
            GraphOptimization::Disable => "disable",
        }
    }
}

/// What requests may bring: table `[limits]`. `None` leaves it to the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitSettings {
    /// Bytes of a request body, after decompression.
    pub max_body_bytes: Option<u64>,
    /// Rows of one request: the first dimension of an input.
    pub max_batch_rows: Option<usize>,
    /// Requests admitted at a time.
    pub max_in_flight: Option<usize>,
    /// Requests waiting at a time.
    pub max_queue: Option<usize>,
    /// How long a critical request may wait for a lane; the others less.
    pub max_wait: Option<Duration>,
}

/// How requests share runs: table `[batching]`. `None` leaves it to the server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BatchingSettings {
    /// Whether they do. `None`: where the model is proved, at its load, to treat rows independently.
    pub enabled: Option<bool>,
    /// Rows of one run.
    pub max_rows: Option<usize>,
    /// How long the first request of a run waits for others to join.
    pub max_delay: Option<Duration>,
    /// By input that may be padded to the length of its neighbours: what with.
    pub padding: BTreeMap<String, PadValue>,
}

/// A settings file that cannot be used, with everything that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsError {
    /// The file, relative to the repository.
    pub file: String,
    /// A sentence each, naming the key and what would be right. Never empty.
    pub problems: Vec<String>,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file, self.problems.join("; "))
    }
}

impl std::error::Error for SettingsError {}

impl ModelSettings {
    /// Reads the text of a `model.toml`; `file` is its name for messages.
    ///
    /// # Errors
    /// [`SettingsError`] with every problem that was found.
    pub fn parse(text: &str, file: &str) -> Result<Self, SettingsError> {
        let failed = |problems| Err(SettingsError { file: file.to_owned(), problems });
        let table = match text.parse::<toml::Table>() {
            Ok(table) => table,
            Err(error) => {
                let line = error.span().map_or(1, |span| {
                    text.get(..span.start).map_or(1, |before| before.matches('\n').count() + 1)
                });
                return failed(vec![format!("line {line} is not TOML: {}", error.message())]);
            }
        };
        let problems = Problems::default();
        let settings = read(Table::new(table, "", &problems));
        match problems.into_list() {
            list if list.is_empty() => Ok(settings),
            list => failed(list),
        }
    }

    /// The integrity policy that holds for the model, where the repository has `repository`.
    ///
    /// # Errors
    /// A sentence, when the file asks for less than the repository: a model may only be stricter.
    pub fn policy(&self, repository: Policy) -> Result<Policy, String> {
        match self.integrity {
            Some(own) if own < repository => Err(format!(
                "integrity is \"{own}\", the repository has \"{repository}\"; a model may only be stricter"
            )),
            Some(own) => Ok(own),
            None => Ok(repository),
        }
    }
}

fn read(mut table: Table<'_>) -> ModelSettings {
    let settings = ModelSettings {
        description: table.string("description"),
        lanes: table.count("lanes", LANES),
        adaptive_lanes: table.boolean("adaptive_lanes"),
        versions: versions(&mut table),
        providers: providers(&mut table),
        fallback: table.parsed("fallback"),
        default_deadline: table
            .integer("default_deadline_ms", DEADLINE_MS)
            .map(Duration::from_millis),
        max_deadline: table.integer("max_deadline_ms", DEADLINE_MS).map(Duration::from_millis),
        integrity: table.parsed("integrity"),
        golden: table.string("golden"),
        session: table.table("session").map(session).unwrap_or_default(),
        limits: table.table("limits").map(limits).unwrap_or_default(),
        batching: table.table("batching").map(batching).unwrap_or_default(),
        labels: labels(&mut table),
    };
    if let (Some(default), Some(max)) = (settings.default_deadline, settings.max_deadline)
        && default > max
    {
        let (default, max) = (default.as_millis(), max.as_millis());
        table.problem(format!(
            "default_deadline_ms is {default}, it must not be above max_deadline_ms, which is {max}"
        ));
    }
    if let Some(problem) = settings.golden.as_deref().and_then(name_problem) {
        table.problem(format!("golden {problem}; it is the name of a file in the version folder"));
    }
    table.finish();
    settings
}

fn versions(table: &mut Table<'_>) -> VersionPolicy {
    const RIGHT: &str = "versions must be \"latest\", \"all\" or a list of positive integers";
    match table.take("versions") {
        None => return VersionPolicy::Latest,
        Some(toml::Value::String(word)) if word == "latest" => return VersionPolicy::Latest,
        Some(toml::Value::String(word)) if word == "all" => return VersionPolicy::All,
        Some(toml::Value::Array(list)) if !list.is_empty() => {
            let versions: Option<Vec<u64>> = list
                .iter()
                .map(|item| item.as_integer().and_then(|number| u64::try_from(number).ok()))
                .collect();
            if let Some(mut versions) = versions.filter(|list| !list.contains(&0)) {
                versions.sort_unstable();
                versions.dedup();
                return VersionPolicy::Only(versions);
            }
        }
        Some(_) => {}
    }
    table.problem(RIGHT.to_owned());
    VersionPolicy::Latest
}

fn providers(table: &mut Table<'_>) -> Option<Vec<Provider>> {
    let names = table.strings("providers")?;
    if names.is_empty() {
        table.problem("providers must name at least one, for example [\"cpu\"]".to_owned());
    }
    let mut providers = Vec::new();
    for name in names {
        match name.parse() {
            Ok(provider) if providers.contains(&provider) => {
                table.problem(format!("providers names {provider} twice"));
            }
            Ok(provider) => providers.push(provider),
            Err(error) => table.problem(format!("providers: {error}")),
        }
    }
    Some(providers)
}

fn session(mut table: Table<'_>) -> SessionSettings {
    let mut session =
        SessionSettings { threads: table.count("threads", THREADS), ..SessionSettings::default() };
    if let Some(word) = table.string("graph_optimization") {
        match GraphOptimization::ALL.into_iter().find(|level| level.name() == word) {
            Some(level) => session.graph_optimization = level,
            None => table.problem(
                "session.graph_optimization must be \"all\", \"extended\", \"basic\" or \"disable\""
                    .to_owned(),
            ),
        }
    }
    table.finish();
    session
}

fn limits(mut table: Table<'_>) -> LimitSettings {
    let limits = LimitSettings {
        max_body_bytes: table.integer("max_body_bytes", BODY_BYTES),
        max_batch_rows: table.count("max_batch_rows", BATCH_ROWS),
        max_in_flight: table.count("max_in_flight", IN_FLIGHT),
        max_queue: table.count("max_queue", IN_FLIGHT),
        max_wait: table.integer("max_wait_ms", DEADLINE_MS).map(Duration::from_millis),
    };
    table.finish();
    limits
}

fn batching(mut table: Table<'_>) -> BatchingSettings {
    let batching = BatchingSettings {
        enabled: table.boolean("enabled"),
        max_rows: table.count("max_rows", BATCH_ROWS),
        max_delay: table.integer("max_delay_ms", DELAY_MS).map(Duration::from_millis),
        padding: table.table("padding").map(padding::read).unwrap_or_default(),
    };
    table.finish();
    batching
}

/// The keys are names of outputs, so none is unknown here; the contract is not known yet.
fn labels(table: &mut Table<'_>) -> BTreeMap<String, Vec<String>> {
    let Some(mut labels) = table.table("labels") else { return BTreeMap::new() };
    let outputs = labels.keys();
    let lists = outputs.into_iter().filter_map(|output| Some((labels.strings(&output)?, output)));
    lists.map(|(list, output)| (output, list)).collect()
}

#[cfg(test)]
mod tests;
