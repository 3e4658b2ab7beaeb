//! The arrows between the crates, and what each may name. See ARCHITECTURE.md; a wish is not an invariant.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn dependencies(member: &str, table: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    let names = manifest.get(table).and_then(toml::Value::as_table);
    names.into_iter().flat_map(|table| table.keys().cloned()).collect()
}

fn members() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    let members = manifest["workspace"]["members"].as_array().unwrap();
    members.iter().map(|member| member.as_str().unwrap().to_owned()).collect()
}

/// Every Rust file below `folder`, with its text.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found
}

/// Lines of code, without comments, that hold `needle`.
fn lines_with<'a>(text: &'a str, needle: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter(move |line| {
        let code = line.split("//").next().unwrap_or_default();
        code.contains(needle)
    })
}

#[test]
fn crates_depend_one_way() {
    // Who may know whom. A new member must be given a line here.
    let allowed: &[(&str, &[&str])] = &[
        ("probes", &[]),
        ("inference", &["balm-probes"]),
        ("server", &["balm-inference", "balm-loadtest", "balm-probes"]),
        ("loadtest", &[]),
    ];
    for member in members() {
        let Some((_, may)) = allowed.iter().find(|(name, _)| *name == member) else {
            panic!("{member} has no line in the table of arrows");
        };
        let own = dependencies(&member, "dependencies");
        let ours: BTreeSet<&str> =
            own.iter().map(String::as_str).filter(|name| name.starts_with("balm-")).collect();
        let may: BTreeSet<&str> = may.iter().copied().collect();
        assert!(ours.is_subset(&may), "{member} depends on {ours:?}, allowed are {may:?}");
    }
}

#[test]
fn each_outside_crate_has_one_door() {
    let doors = [
        ("axum", &["server"][..]),
        ("tower", &["server"]),
        ("tower-http", &["server"]),
        ("clap", &["server", "loadtest"]),
        ("ort", &["inference"]),
    ];
    for member in members() {
        for (name, may) in doors {
            let has = dependencies(&member, "dependencies").contains(name);
            assert!(!has || may.contains(&member.as_str()), "{member} names {name}");
        }
    }
}

#[test]
fn only_the_engine_names_the_runtime() {
    for (path, text) in sources(&root().join("inference/src")) {
        let inside = path.ends_with("engine/onnx.rs")
            || path.parent().is_some_and(|folder| folder.ends_with("engine/onnx"));
        let named = lines_with(&text, "ort::").any(|line| {
            // `Report::new` ends in the same letters.
            line.match_indices("ort::").any(|(at, _)| {
                let before = line[..at].chars().next_back();
                !before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_')
            })
        });
        assert!(inside || !named, "{} names ort", path.display());
    }
}

#[test]
fn judgement_has_no_clock_no_threads_and_no_io() {
    let own = dependencies("probes", "dependencies");
    assert!(own.is_subset(&BTreeSet::from(["serde".to_owned()])), "{own:?}");
    for (path, text) in sources(&root().join("probes/src")) {
        for needle in [
            "Instant::now",
            "SystemTime",
            "std::thread",
            "std::fs",
            "std::net",
            "std::io",
            "std::process",
            "std::env",
            "tokio",
        ] {
            let line = lines_with(&text, needle).next();
            assert_eq!(line, None, "{} uses {needle}", path.display());
        }
    }
}

/// Whoever sets the clock changes what people read and nothing else: all that is decided is decided by monotonic clocks and ticks.
/// The one exception is how long ago servers before this one gave up, for which there is no other clock.
#[test]
fn the_wall_clock_is_for_people() {
    let named =
        ["http/observe.rs", "supervisor/desk.rs", "src/drill.rs", "inference/src/version.rs"];
    for member in ["server", "inference"] {
        for (path, text) in sources(&root().join(member).join("src")) {
            let line = lines_with(&text, "SystemTime").next();
            let may = named.iter().any(|name| path.ends_with(name));
            assert!(may || line.is_none(), "{} uses the wall clock", path.display());
        }
    }
}

#[test]
fn the_supervisor_has_no_runtime_and_no_models() {
    let server = root().join("server/src");
    let whole = ["supervisor", "management", "link"].map(|folder| sources(&server.join(folder)));
    let files = ["supervisor.rs", "management.rs", "link.rs", "listeners.rs"].map(|file| {
        let path = server.join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        (path, text)
    });
    let all = whole.into_iter().flatten().chain(files);
    for (path, text) in all.filter(|(path, _)| !path.ends_with("tests.rs")) {
        for needle in ["tokio", "axum", "balm_inference", "async "] {
            let line = lines_with(&text, needle).next();
            assert_eq!(line, None, "{} uses {needle}", path.display());
        }
    }
}

#[test]
fn below_the_server_nobody_reads_the_environment() {
    for member in ["inference", "probes"] {
        for (path, text) in sources(&root().join(member).join("src")) {
            for needle in ["std::env", "env::var"] {
                let line = lines_with(&text, needle).next();
                assert_eq!(line, None, "{} uses {needle}", path.display());
            }
        }
    }
}

#[test]
fn queues_have_a_bound() {
    for member in members() {
        for (path, text) in sources(&root().join(&member).join("src")) {
            for needle in ["unbounded_channel", "mpsc::unbounded", "mpsc::channel", " channel()"] {
                let line = lines_with(&text, needle).next();
                assert_eq!(line, None, "{} uses {needle}", path.display());
            }
        }
    }
}

#[test]
fn only_the_drill_names_the_load_generator() {
    let server = root().join("server/src");
    let drill = server.join("drill");
    for (path, text) in sources(&server) {
        let inside = path.starts_with(&drill) || path == server.join("drill.rs");
        let named = lines_with(&text, "balm_loadtest").next();
        assert!(inside || named.is_none(), "{} names the load generator", path.display());
    }
}
