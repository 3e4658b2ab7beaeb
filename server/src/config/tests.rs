use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::*;
use crate::exit::Exit;
use crate::host::Fact;

fn host() -> Host {
    Host {
        cores: Fact { value: 4, source: "a test".to_owned() },
        memory_bytes: Some(Fact { value: 8 << 30, source: "a test".to_owned() }),
        open_files: Some(Fact { value: 1 << 20, source: "a test".to_owned() }),
    }
}

fn sources(
    file: &str,
    environment: &[(&str, &str)],
    flags: &[(&'static str, &'static str, &str)],
) -> Sources {
    Sources {
        file: (!file.is_empty())
            .then(|| FileText { path: "balm.toml".into(), text: file.to_owned() }),
        environment: environment
            .iter()
            .map(|(name, value)| Variable { name: (*name).to_owned(), value: value.into() })
            .collect(),
        flags: flags
            .iter()
            .map(|(key, flag, value)| Flag { key, flag, value: (*value).to_owned() })
            .collect(),
    }
}

fn good(file: &str, environment: &[(&str, &str)]) -> Config {
    Config::resolve(&sources(file, environment, &[]), &host())
        .unwrap_or_else(|problems| panic!("{problems}"))
}

fn bad(file: &str, environment: &[(&str, &str)]) -> Vec<String> {
    let Problems(problems) = Config::resolve(&sources(file, environment, &[]), &host())
        .expect_err(&format!("{file} {environment:?}"));
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_set_is_complete() {
    let config = good("", &[]);
    assert_eq!(config.repository.path, PathBuf::from("models"));
    assert_eq!(config.repository.integrity, Policy::Digest);
    assert!(config.repository.control);
    assert_eq!(config.repository.readiness, ReadinessPolicy::All);
    assert_eq!(config.repository.max_file_bytes, 8 << 30);
    assert_eq!(config.repository.load_timeout, Duration::from_secs(600));
    assert_eq!(config.http.addr, ListenAddr::Tcp("127.0.0.1:8000".parse().unwrap()));
    assert_eq!(config.http.threads, 2);
    assert_eq!(config.http.max_body_bytes, 67_108_864);
    assert_eq!(config.http.header_timeout, Duration::from_secs(10));
    assert_eq!(config.http.body_timeout, Duration::from_secs(10));
    assert_eq!(config.http.min_body_bytes_per_s, 1024);
    assert_eq!(config.http.write_timeout, Duration::from_secs(30));
    assert_eq!(config.http.idle_timeout, Duration::from_secs(75));
    assert_eq!(config.http.max_connections, 2048);
    assert!(!config.http.access_log && !config.http.noop_route);
    assert_eq!(config.management.addr, "127.0.0.1:8002".parse().unwrap());
    assert_eq!(config.admission.max_in_flight, 512);
    assert_eq!(config.admission.max_in_flight_per_model, 256);
    assert_eq!(config.admission.max_bytes_in_flight, 2 << 30);
    assert_eq!(config.defaults.parallelism, Parallelism { lanes: 4, threads: 1 });
    assert_eq!(config.defaults.providers, [Provider::Cpu]);
    assert_eq!(config.defaults.fallback, None);
    assert_eq!(config.defaults.deadline, Duration::from_secs(1));
    assert_eq!(config.defaults.max_deadline, Duration::from_secs(30));
    assert_eq!(config.onnxruntime.library, None);
    assert_eq!(config.lifecycle.drain_delay, Duration::from_secs(5));
    assert_eq!(config.lifecycle.drain_timeout, Duration::from_secs(30));
    assert_eq!(config.log, LogConfig { format: LogFormat::Text, level: "info".to_owned() });
    let keys: Vec<&str> = config.settings.iter().map(|setting| setting.key).collect();
    let known: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(keys, known, "every key is read, and shown in the order of the table");
}

#[test]
fn defaults_follow_the_machine() {
    let small = Host {
        cores: Fact { value: 1, source: "cpu.max".to_owned() },
        memory_bytes: Some(Fact { value: 128 << 20, source: "memory.max".to_owned() }),
        open_files: Some(Fact { value: 1024, source: "RLIMIT_NOFILE".to_owned() }),
    };
    let config = Config::resolve(&Sources::default(), &small).unwrap();
    assert_eq!(config.http.threads, 1);
    assert_eq!(config.http.max_connections, 512);
    assert_eq!(config.defaults.parallelism, Parallelism { lanes: 1, threads: 1 });
    assert_eq!(config.admission.max_bytes_in_flight, 67_108_864, "room for one body at least");
    assert_eq!(config.repository.max_file_bytes, 128 << 20);
    let tiny = Host {
        memory_bytes: Some(Fact { value: 64 << 20, source: "memory.max".to_owned() }),
        ..small.clone()
    };
    let config = Config::resolve(&Sources::default(), &tiny).unwrap();
    assert_eq!(config.http.max_connections, 256, "an eighth of memory at 32 KiB each");
    let unknown = Host { memory_bytes: None, open_files: None, ..small };
    let config = Config::resolve(&Sources::default(), &unknown).unwrap();
    assert_eq!(config.admission.max_bytes_in_flight, 256 << 20);
    assert_eq!(config.http.max_connections, 2048);
}

#[test]
fn flags_outweigh_variables_outweigh_the_file() {
    let file = "[http]\naddr = '127.0.0.1:1'\n[log]\nformat = 'json'\n";
    let environment = [("BALM_HTTP_ADDR", "127.0.0.1:2")];
    let flags = [("http.addr", "--http-addr", "127.0.0.1:3")];
    let cases = [
        (sources("", &[], &[]), "127.0.0.1:8000", "default"),
        (sources(file, &[], &[]), "127.0.0.1:1", "balm.toml line 2"),
        (sources(file, &environment, &[]), "127.0.0.1:2", "environment BALM_HTTP_ADDR"),
        (sources("", &environment, &[]), "127.0.0.1:2", "environment BALM_HTTP_ADDR"),
        (sources(file, &environment, &flags), "127.0.0.1:3", "flag --http-addr"),
        (sources(file, &[], &flags), "127.0.0.1:3", "flag --http-addr"),
    ];
    for (sources, addr, origin) in cases {
        let config = Config::resolve(&sources, &host()).unwrap();
        assert_eq!(config.http.addr.to_string(), addr);
        let setting = config.settings.iter().find(|setting| setting.key == "http.addr").unwrap();
        assert_eq!((setting.value.as_str(), setting.origin.to_string().as_str()), (addr, origin));
        // A weightier source replaces the keys that it sets, and no others.
        let json = sources.file.is_some();
        assert_eq!(config.log.format == LogFormat::Json, json);
    }
}

#[test]
fn a_value_that_is_replaced_is_not_judged() {
    let config = good("[http]\nthreads = 'many'\n", &[("BALM_HTTP_THREADS", "3")]);
    assert_eq!(config.http.threads, 3);
}

#[test]
fn the_library_has_two_variables() {
    type Variables = &'static [(&'static str, &'static str)];
    let cases: [(Variables, Option<&str>); 4] = [
        (&[("ORT_DYLIB_PATH", "/a")], Some("/a")),
        (&[("BALM_ONNXRUNTIME_LIBRARY", "/b"), ("ORT_DYLIB_PATH", "/a")], Some("/b")),
        (&[("ORT_DYLIB_PATH", "")], Some("/file")),
        (&[], Some("/file")),
    ];
    for (environment, expected) in cases {
        let config = good("[onnxruntime]\nlibrary = '/file'\n", environment);
        assert_eq!(config.onnxruntime.library.as_deref(), expected.map(Path::new));
    }
}

/// Each row: key, what a file says, what a variable says. Both must be refused, with the key named.
#[test]
fn each_bad_value_is_refused() {
    let rows: &[(&str, &[&str], &[&str])] = &[
        ("repository.path", &["''", "3", "['a']", "{}"], &["", " "]),
        ("repository.integrity", &["'on'", "true", "'Digest'"], &["signed", ""]),
        ("repository.control", &["'true'", "1", "'yes'"], &["yes", "1", "TRUE"]),
        (
            "repository.readiness",
            &["'some'", "[]", "['a','a']", "['']", "['../a']", "[1]"],
            &["", "a,,b", "a,a", "a/b"],
        ),
        (
            "repository.max_file_bytes",
            &["0", "-1", "1.5", "99999999999999999999", "'1'"],
            &["0", "-1", "1e6", "1MiB", "+5"],
        ),
        (
            "repository.load_timeout_ms",
            &["0", "-1", "'10m'", "86400001"],
            &["0", "10m", "86400001"],
        ),
        (
            "http.addr",
            &["'8000'", "8000", "'balm:8000'", "'unix:'", "'127.0.0.1'"],
            &["8000", "127.0.0.1:70000", "unix:", ""],
        ),
        ("http.threads", &["0", "65", "'2'"], &["0", "two"]),
        ("http.max_body_bytes", &["0", "1e6"], &["0", "64M"]),
        ("http.header_timeout_ms", &["0", "86400001"], &["0", "5s"]),
        ("http.body_timeout_ms", &["0", "2000-01-01"], &["0", ""]),
        ("http.min_body_bytes_per_s", &["-1", "1.5", "'1k'"], &["-1", "1k"]),
        ("http.write_timeout_ms", &["0", "86400001"], &["0", "30s"]),
        ("http.idle_timeout_ms", &["0", "86400001"], &["0", "never"]),
        ("http.max_connections", &["0", "true"], &["0"]),
        ("http.access_log", &["'no'"], &["0"]),
        ("http.noop_route", &["0"], &["on"]),
        ("management.addr", &["'unix:/s'", "'localhost'", "false"], &["unix:/s", "8002"]),
        ("management.triton_metrics", &["'no'", "1"], &["0"]),
        ("admission.max_in_flight", &["0"], &["0", "inf"]),
        ("admission.max_in_flight_per_model", &["0", "513"], &["-5"]),
        ("admission.max_bytes_in_flight", &["0", "1000"], &["0", "1000"]),
        ("admission.client_header", &["'no name'", "5"], &["", "a b"]),
        ("admission.memory_limit_bytes", &["1000", "'all'"], &["-5", "true"]),
        ("defaults.lanes", &["0", "257"], &["0", "all"]),
        ("defaults.threads", &["0", "[1]"], &["0", "1.0"]),
        ("defaults.providers", &["[]", "'cpu'", "['gpu']", "['cpu', 'cpu']"], &["", "cpu,", "gpu"]),
        ("defaults.fallback", &["'cuda'", "true"], &["", "gpu"]),
        ("defaults.deadline_ms", &["0", "30001"], &["0", "1s"]),
        ("defaults.max_deadline_ms", &["0", "86400001"], &["0"]),
        ("defaults.max_batch_rows", &["0", "1048577"], &["0"]),
        ("onnxruntime.library", &["''", "7"], &[""]),
        ("onnxruntime.log_level", &["'warn'", "2"], &["warn"]),
        ("lifecycle.drain_delay_ms", &["-1", "'5s'"], &["-1"]),
        ("lifecycle.drain_timeout_ms", &["-1", "86400001"], &["30s"]),
        ("lifecycle.single_process", &["'no'", "1"], &["0", "yes"]),
        ("lifecycle.sidecar", &["'no'", "1"], &["0", "yes"]),
        ("lifecycle.crash_journal", &["''", "7"], &[""]),
        ("lifecycle.termination_log", &["''", "false"], &[""]),
        ("log.format", &["'xml'", "1"], &["JSON", ""]),
        ("log.level", &["'inof'", "3", "'a=b=c=d'", "''"], &["verbose", "hyper", "info,"]),
    ];
    assert_eq!(rows.len(), KEYS.len());
    for (row, key) in rows.iter().zip(KEYS) {
        let (name, file_values, variable_values) = row;
        assert_eq!(*name, key.name);
        let (section, field) = name.split_once('.').unwrap();
        for value in *file_values {
            let problems = bad(&format!("[{section}]\n{field} = {value}\n"), &[]);
            assert_eq!(problems.len(), 1, "{problems:?}");
            let start = format!("{name} = ");
            assert!(problems[0].starts_with(&start), "{value}: {problems:?}");
            assert!(problems[0].contains("(balm.toml line 2): expected "), "{problems:?}");
        }
        for value in *variable_values {
            let problems = bad("", &[(&key.variable(), value)]);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].starts_with(&format!("{name} = ")), "{problems:?}");
            assert!(problems[0].contains(&format!("(environment {}): expected ", key.variable())));
        }
    }
}

#[test]
fn good_values_in_every_notation() {
    let file = "
        [repository]
        readiness = ['a', 'b']
        max_file_bytes = 1_000
        [http]
        addr = 'unix:/run/balm.sock'
        [defaults]
        providers = ['cuda', 'cpu']
        fallback = 'cpu'
        lanes = 2
        [log]
        level = 'info,balm_server=debug'
    ";
    let from_file = good(file, &[]);
    let from_variables = good(
        "",
        &[
            ("BALM_REPOSITORY_READINESS", "a, b"),
            ("BALM_REPOSITORY_MAX_FILE_BYTES", "1_000"),
            ("BALM_HTTP_ADDR", "unix:/run/balm.sock"),
            ("BALM_DEFAULTS_PROVIDERS", "cuda,cpu"),
            ("BALM_DEFAULTS_FALLBACK", "cpu"),
            ("BALM_DEFAULTS_LANES", "2"),
            ("BALM_LOG_LEVEL", "info,balm_server=debug"),
        ],
    );
    assert_eq!(from_file.http.addr, ListenAddr::Unix("/run/balm.sock".into()));
    assert_eq!(from_file.defaults.providers, [Provider::Cuda, Provider::Cpu]);
    assert_eq!(from_file.defaults.parallelism, Parallelism { lanes: 2, threads: 2 });
    assert_eq!(
        from_file.repository.readiness,
        ReadinessPolicy::Listed(vec!["a".to_owned(), "b".to_owned()])
    );
    assert_eq!(from_file.file.as_deref(), Some(Path::new("balm.toml")));
    let plain = |config: &Config| Config { settings: Vec::new(), file: None, ..config.clone() };
    assert_eq!(plain(&from_file), plain(&from_variables));
    for (value, readiness) in [("all", ReadinessPolicy::All), ("any", ReadinessPolicy::Any)] {
        let config = good(&format!("[repository]\nreadiness = '{value}'\n"), &[]);
        assert_eq!(config.repository.readiness, readiness);
    }
    assert_eq!(good("", &[("BALM_HTTP_ADDR", "localhost:9")]).http.addr.to_string(), "127.0.0.1:9");
}

#[test]
fn what_does_not_fit_together() {
    let cases = [
        (
            "[defaults]\ndeadline_ms = 5000\nmax_deadline_ms = 4000\n",
            "defaults.deadline_ms = 5000 (balm.toml line 2): expected at most defaults.max_deadline_ms = 4000 (balm.toml line 3)",
        ),
        (
            "[admission]\nmax_in_flight = 4\nmax_in_flight_per_model = 5\n",
            "admission.max_in_flight_per_model = 5 (balm.toml line 3): expected at most admission.max_in_flight = 4 (balm.toml line 2)",
        ),
        (
            "[http]\naddr = '0.0.0.0:8002'\n",
            "management.addr = 127.0.0.1:8002 (default): expected another port than http.addr = 0.0.0.0:8002 (balm.toml line 2)",
        ),
        (
            "[admission]\nmax_bytes_in_flight = 1000\n",
            "admission.max_bytes_in_flight = 1000 (balm.toml line 2): expected at least http.max_body_bytes = 67108864 (default)",
        ),
    ];
    for (file, problem) in cases {
        assert_eq!(bad(file, &[]), [problem]);
    }
    // Defaults give way to what was set, instead of contradicting it.
    assert_eq!(good("[defaults]\nmax_deadline_ms = 500\n", &[]).defaults.deadline.as_millis(), 500);
    assert_eq!(good("[admission]\nmax_in_flight = 3\n", &[]).admission.max_in_flight_per_model, 3);
    good("[http]\naddr = '127.0.0.1:0'\n[management]\naddr = '127.0.0.1:0'\n", &[]);
}

#[test]
fn every_problem_at_once() {
    let file = "
verbose = true
[http]
adr = '127.0.0.1:1'
threads = 0
[jobs]
store = 'x'
[nothing]
[log]
level = 'inf'
";
    let environment = [
        ("BALM_HTTP__ADDR", "x"),
        ("BALM_DEFAULTS_LANES", "0"),
        ("BALM_SERVICE_HOST", "10.0.0.1"),
        ("HOME", "/"),
    ];
    let flags = [("management.addr", "--management-addr", "here")];
    let Problems(problems) =
        Config::resolve(&sources(file, &environment, &flags), &host()).unwrap_err();
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let expected = [
        "verbose (balm.toml line 2): there is no such key",
        "http.adr (balm.toml line 4): there is no such key; did you mean http.addr?",
        "jobs.store (balm.toml line 7): there is no such key",
        "nothing (balm.toml line 8): there is no such key",
        "BALM_HTTP__ADDR (environment BALM_HTTP__ADDR): balm knows no such variable; did you mean BALM_HTTP_ADDR?",
        "http.threads = 0 (balm.toml line 5): expected a whole number from 1 to 64",
        "management.addr = \"here\" (flag --management-addr): expected address:port, such as 127.0.0.1:8002 or [::]:8002",
        "defaults.lanes = \"0\" (environment BALM_DEFAULTS_LANES): expected a whole number from 1 to 256",
        "log.level = 'inf' (balm.toml line 10): expected off, error, warn, info, debug, trace, or a filter such as info,balm_server=debug; did you mean info?",
    ];
    assert_eq!(lines, expected);
    let all = Problems(problems).to_string();
    assert!(all.starts_with("the configuration has 9 problems:\n  verbose"), "{all}");
}

#[test]
fn bad_syntax_names_the_line() {
    let problems = bad("[http]\nthreads = 1\nthreads = 2\n[log\nlevel = 'x'\n", &[]);
    assert!(
        problems.iter().any(|problem| problem.starts_with("syntax (balm.toml line 3):")),
        "{problems:?}"
    );
    assert!(
        problems.iter().any(|problem| problem.starts_with("syntax (balm.toml line 4):")),
        "{problems:?}"
    );
}

#[test]
fn values_that_are_not_utf8() {
    let mut given = sources("", &[], &[]);
    given.environment.push(Variable {
        name: "BALM_REPOSITORY_PATH".to_owned(),
        value: OsString::from_vec(vec![b'a', 0xff]),
    });
    let Problems(problems) = Config::resolve(&given, &host()).unwrap_err();
    assert_eq!(
        problems[0].to_string(),
        "repository.path = \"a\\xFF\" (environment BALM_REPOSITORY_PATH): expected UTF-8"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_one_problem_among_others() {
    let flags = vec![Flag { key: "http.addr", flag: "--http-addr", value: "x".to_owned() }];
    let missing = Path::new("no/such/balm.toml");
    let Problems(problems) = Config::load(Some(missing), flags, &host()).unwrap_err();
    assert!(problems[0].to_string().starts_with("--config = no/such/balm.toml (flag --config): "));
    assert!(problems.iter().any(|problem| problem.key == "http.addr"));
}

#[test]
fn the_table_shows_key_value_variable_and_origin() {
    let table = good("", &[("BALM_HTTP_THREADS", "3")]).describe();
    assert_eq!(table.lines().count(), KEYS.len() + 1);
    let line = table.lines().find(|line| line.starts_with("http.threads ")).unwrap();
    let columns: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(
        columns,
        ["http.threads", "3", "BALM_HTTP_THREADS", "environment", "BALM_HTTP_THREADS"]
    );
    assert!(table.contains("default: 4 cores, by a test"), "{table}");
}

/// A page that forgets a key is worse than none.
#[test]
fn the_page_has_a_row_for_every_key() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let page = std::fs::read_to_string(page).unwrap();
    for key in KEYS {
        assert!(page.contains(&format!("\n| `{}` | ", key.name)), "{} has no row", key.name);
    }
    let rows = page.lines().filter(|line| line.starts_with("| `")).count();
    let model_keys = balm_inference::settings::KEYS;
    for key in model_keys {
        assert!(page.contains(&format!("\n| `{key}` | ")), "{key} of model.toml has no row");
    }
    assert_eq!(rows, KEYS.len() + model_keys.len(), "a row for a key that is gone");
    for exit in Exit::ALL {
        assert!(page.contains(&format!("\n| {} | ", exit.code())), "{exit:?} has no row");
    }
    let reasons: Vec<&str> = page
        .lines()
        .skip_while(|line| *line != "| reason | what it is |")
        .take_while(|line| line.starts_with('|'))
        .flat_map(|line| line.split('|').nth(1).unwrap_or_default().split(','))
        .map(str::trim)
        .collect();
    for cause in balm_probes::Cause::ALL {
        assert!(reasons.contains(&cause.as_str()), "{cause:?} has no row");
    }
}
