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
        adaptive_lanes = true
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
        [batching.padding]
        ids = 0
        text = "[PAD]"
        [labels]
        label = ["setosa", "versicolor"]
    "#;
    let expected = ModelSettings {
        description: Some("flowers".into()),
        lanes: Some(2),
        adaptive_lanes: Some(true),
        versions: VersionPolicy::Only(vec![1, 3]),
        providers: Some(vec![Provider::Cuda, Provider::Cpu]),
        fallback: Some(Provider::Cpu),
        default_deadline: Some(Duration::from_millis(200)),
        max_deadline: Some(Duration::from_secs(2)),
        integrity: Some(Policy::Required),
        golden: Some("g.json".into()),
        session: SessionSettings { threads: Some(4), graph_optimization: GraphOptimization::Basic },
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
            padding: BTreeMap::from([
                ("ids".to_owned(), PadValue::Integer(0)),
                ("text".to_owned(), PadValue::Text("[PAD]".to_owned())),
            ]),
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
        ("[batching]\npadding = 0", "batching.padding must be a table, found an integer"),
        (
            "[batching.padding]\nx = nan",
            "batching.padding.x must be a number, or a string for BYTES, found a float",
        ),
        (
            "[batching.padding]\nx = [0]",
            "batching.padding.x must be a number, or a string for BYTES, found another list",
        ),
        ("[labels]\ny = [1]", "labels.y must be a list of strings"),
        (
            "lane = 1",
            "lane is not a known key; known are description, lanes, adaptive_lanes, versions",
        ),
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
