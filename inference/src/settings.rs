//! `model.toml`: what one model asks for.
//!
//! Every key is optional. A file is taken whole or not at all: every problem in it is reported, not the first
//! alone. (That is why it is read as a table and not by serde's derived code, which ends at the first.)

mod table;

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

/// Every key of `model.toml`; of `labels` the part that is fixed.
pub const KEYS: [&str; 20] = [
    "description",
    "lanes",
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelSettings {
    /// For people; shown in `/status`.
    pub description: Option<String>,
    /// Threads with a session each.
    pub lanes: Option<usize>,
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchingSettings {
    /// Whether they do. `None`: where the model is proved, at its load, to treat rows independently.
    pub enabled: Option<bool>,
    /// Rows of one run.
    pub max_rows: Option<usize>,
    /// How long the first request of a run waits for others to join.
    pub max_delay: Option<Duration>,
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
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        ModelSettings::parse(text, "iris/model.toml").unwrap_err().problems
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        let settings = ModelSettings::parse("", "f").unwrap();
        assert_eq!(settings, ModelSettings::default());
    }

    #[test]
    fn every_key_is_read() {
        let text = r#"
            description = "flowers"
            lanes = 2
            versions = [3, 1, 3]
            providers = ["cuda", "cpu"]
            fallback = "cpu"
            default_deadline_ms = 200
            max_deadline_ms = 2000
            integrity = "required"
            golden = "g.json"
            [session]
            threads = 4
            graph_optimization = "basic"
            [limits]
            max_body_bytes = 65536
            max_batch_rows = 16
            max_in_flight = 8
            max_queue = 32
            max_wait_ms = 40
            [batching]
            enabled = false
            max_rows = 8
            max_delay_ms = 2
            [labels]
            label = ["setosa", "versicolor"]
        "#;
        let expected = ModelSettings {
            description: Some("flowers".into()),
            lanes: Some(2),
            versions: VersionPolicy::Only(vec![1, 3]),
            providers: Some(vec![Provider::Cuda, Provider::Cpu]),
            fallback: Some(Provider::Cpu),
            default_deadline: Some(Duration::from_millis(200)),
            max_deadline: Some(Duration::from_secs(2)),
            integrity: Some(Policy::Required),
            golden: Some("g.json".into()),
            session: SessionSettings {
                threads: Some(4),
                graph_optimization: GraphOptimization::Basic,
            },
            limits: LimitSettings {
                max_body_bytes: Some(65_536),
                max_batch_rows: Some(16),
                max_in_flight: Some(8),
                max_queue: Some(32),
                max_wait: Some(Duration::from_millis(40)),
            },
            batching: BatchingSettings {
                enabled: Some(false),
                max_rows: Some(8),
                max_delay: Some(Duration::from_millis(2)),
            },
            labels: BTreeMap::from([(
                "label".to_owned(),
                vec!["setosa".to_owned(), "versicolor".to_owned()],
            )]),
        };
        assert_eq!(ModelSettings::parse(text, "f"), Ok(expected));
    }

    #[test]
    fn each_bad_value_has_its_sentence() {
        let table = [
            ("lanes = 0", "lanes must be an integer from 1 to 64, found 0"),
            ("lanes = 65", "lanes must be an integer from 1 to 64, found 65"),
            ("lanes = -1", "lanes must be an integer from 1 to 64, found -1"),
            ("lanes = \"2\"", "lanes must be an integer from 1 to 64, found a string"),
            ("lanes = 2.0", "lanes must be an integer from 1 to 64, found a float"),
            ("description = 1", "description must be a string, found an integer"),
            ("versions = \"newest\"", "versions must be \"latest\", \"all\" or a list"),
            ("versions = [0]", "versions must be \"latest\", \"all\" or a list"),
            ("versions = []", "versions must be \"latest\", \"all\" or a list"),
            ("providers = []", "providers must name at least one"),
            ("providers = \"cpu\"", "providers must be a list of strings, found a string"),
            ("providers = [1]", "providers must be a list of strings"),
            ("providers = [\"cpu\", \"cpu\"]", "providers names cpu twice"),
            ("providers = [\"gpu\"]", "providers: unknown provider \"gpu\"; known are cpu, cuda"),
            ("fallback = \"gpu\"", "fallback: unknown provider \"gpu\""),
            ("default_deadline_ms = 0", "default_deadline_ms must be an integer from 1 to"),
            (
                "default_deadline_ms = 40000\nmax_deadline_ms = 30000",
                "it must not be above max_deadline_ms, which is 30000",
            ),
            ("integrity = \"signed\"", "integrity: unknown integrity policy \"signed\""),
            ("golden = \"../g.json\"", "golden has a '..' component"),
            ("session = 1", "session must be a table, found an integer"),
            ("[session]\nthreads = 257", "session.threads must be an integer from 1 to 256"),
            ("[session]\ngraph_optimization = \"max\"", "session.graph_optimization must be"),
            ("[session]\nthread = 1", "session.thread is not a known key; known are threads"),
            ("[limits]\nmax_body_bytes = 1", "limits.max_body_bytes must be an integer from 1024"),
            ("[limits]\nmax_batch_rows = 0", "limits.max_batch_rows must be an integer from 1"),
            ("[limits]\nmax_in_flight = 0", "limits.max_in_flight must be an integer from 1"),
            ("[limits]\nmax_queue = true", "limits.max_queue must be an integer from 1"),
            ("[limits]\nmax_wait_ms = 0", "limits.max_wait_ms must be an integer from 1"),
            ("[batching]\nenabled = 1", "batching.enabled must be true or false, found an integer"),
            ("[batching]\nmax_rows = 0", "batching.max_rows must be an integer from 1"),
            ("[batching]\nmax_delay_ms = 1001", "batching.max_delay_ms must be an integer from 0"),
            ("[labels]\ny = [1]", "labels.y must be a list of strings"),
            ("lane = 1", "lane is not a known key; known are description, lanes, versions"),
            ("a = 1\nlanes = ", "line 2 is not TOML"),
        ];
        for (text, expected) in table {
            let found = problems(text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].contains(expected), "{text}: {:?} should hold {expected:?}", found[0]);
        }
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let text = "lanes = 0\nversion = 1\nproviders = [\"gpu\", \"tpu\"]\n[session]\nthreads = 0";
        assert_eq!(problems(text).len(), 5);
        let error = ModelSettings::parse(text, "iris/model.toml").unwrap_err().to_string();
        assert!(error.starts_with("iris/model.toml: "), "{error}");
    }

    #[test]
    fn a_model_may_only_be_stricter() {
        let strict = ModelSettings { integrity: Some(Policy::Required), ..Default::default() };
        assert_eq!(strict.policy(Policy::Digest), Ok(Policy::Required));
        let lax = ModelSettings { integrity: Some(Policy::Off), ..Default::default() };
        assert!(lax.policy(Policy::Digest).is_err());
        assert_eq!(ModelSettings::default().policy(Policy::Off), Ok(Policy::Off));
    }

    #[test]
    fn versions_are_selected() {
        assert_eq!(VersionPolicy::Latest.candidates(&[1, 2, 10]), [10, 2, 1]);
        assert!(VersionPolicy::Latest.candidates(&[]).is_empty());
        assert_eq!(VersionPolicy::All.candidates(&[1, 2]), [1, 2]);
        assert_eq!(VersionPolicy::Only(vec![3]).candidates(&[1, 2]), [3]);
    }
}
