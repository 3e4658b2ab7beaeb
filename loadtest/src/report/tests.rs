use super::*;

fn measured(rates: &[f64], p50_us: f64) -> Vec<Measured> {
    let cores = Cores { generator: 0.5, target: 1.25, others: 0.0 };
    let of = |&per_second: &f64| Measured {
        per_second,
        p50_us,
        p99_us: 2.0 * p50_us,
        cores,
        rows_per_run: Some(2.0),
    };
    rates.iter().map(of).collect()
}

/// Three rounds on a machine that was half as fast in the second.
fn series() -> Series {
    BTreeMap::from([
        ((Subject::OrtAlone, 1), measured(&[900.0, 450.0, 900.0], 10.0)),
        ((Subject::OrtAlone, 2), measured(&[1000.0, 500.0, 1000.0], 20.0)),
        ((Subject::OrtBatched, 4), measured(&[1840.0, 920.0, 1840.0], 80.0)),
        ((Subject::Balm, 1), measured(&[500.0, 250.0, 500.0], 70.0)),
        ((Subject::Balm, 64), measured(&[920.0, 460.0, 920.0], 900.0)),
        ((Subject::Noop, 1), measured(&[800.0, 400.0, 800.0], 40.0)),
        ((Subject::Noop, 64), measured(&[2000.0, 1000.0, 2000.0], 500.0)),
    ])
}

fn load(json: &str) -> Load {
    serde_json::from_str(json).unwrap()
}

fn start() -> Start {
    let memory = r#"{"rss_bytes": 60000000, "pss_bytes": 50000000}"#;
    Start {
        ort_alone: load(&format!(
            r#"{{"library_ms": 25, "hash_ms": 5, "session_ms": 60, "first_run_ms": 8, "total_ms": 100,
                "memory": {memory}}}"#
        )),
        balm_ms: 130.0,
        balm_memory: Memory { rss_bytes: 75_000_000, pss_bytes: 62_000_000 },
    }
}

/// A report of one model, called by that name.
pub(crate) fn report(model: &str) -> Report {
    let throughput = vec![Throughput::of(model, "one_row", 2, &series())];
    let start_up = vec![StartUp::of(model, 2, &[start(), start()]).unwrap()];
    Report {
        balm: "balm 0.1.0".to_owned(),
        onnxruntime: "libonnxruntime.so.1.31.1".to_owned(),
        machine: Machine { processor: "A Fast One".to_owned(), cores: 2, load: 0.5 },
        lanes: 2,
        rounds: 3,
        seconds: 4.0,
        aims: Aim::of(&throughput, &start_up),
        throughput,
        start_up,
    }
}

#[test]
fn rounds_are_compared_with_themselves() {
    let throughput = Throughput::of("iris", "one_row", 2, &series());
    let row = throughput.balm(64).unwrap();
    assert_eq!(row.per_second, Summary { median: 920.0, spread: 0.25 });
    assert_eq!(row.to_ort_alone, Some(Summary { median: 0.92, spread: 0.0 }));
    assert_eq!(row.to_best_batch, Some(Summary { median: 0.5, spread: 0.0 }));
    assert_eq!(row.to_noop, Some(Summary { median: 0.46, spread: 0.0 }));
    assert_eq!(row.added_p50_us, None);
    assert_eq!(
        throughput.balm(1).unwrap().added_p50_us,
        Some(Summary { median: 60.0, spread: 0.0 })
    );
    let alone = &throughput.rows[0];
    assert!(
        alone.subject == Subject::OrtAlone && alone.to_ort_alone.is_none() && alone.cores.is_none()
    );
}

#[test]
fn each_model_has_its_aims() {
    let verdicts = |model| -> Vec<(String, bool)> {
        report(model).aims.into_iter().map(|aim| (aim.what, aim.met)).collect()
    };
    let start_up = |model: &str| {
        [
            (format!("{model}: exec to right answer ÷ (ORT alone + hash)"), false),
            (format!("{model}: idle memory above ORT alone, MB"), true),
        ]
    };
    let iris = [
        ("iris: balm ÷ no-op route, 64 connections".to_owned(), true),
        ("iris: p50 above ORT alone, 1 connection, µs".to_owned(), true),
    ];
    assert_eq!(verdicts("iris"), [iris.as_slice(), &start_up("iris")].concat());
    let minilm = [
        ("minilm: balm ÷ ORT alone, 64 connections".to_owned(), true),
        ("minilm: balm ÷ ORT's best batch, 64 connections".to_owned(), false),
    ];
    assert_eq!(verdicts("minilm"), [minilm.as_slice(), &start_up("minilm")].concat());
    assert_eq!(verdicts("digits"), start_up("digits"));
}

#[test]
fn a_bound_is_on_the_good_side() {
    let found = Some(Summary { median: 0.9, spread: 0.0 });
    assert!(Aim::new(String::new(), found, Bound::AtLeast(0.9)).unwrap().met);
    assert!(Aim::new(String::new(), found, Bound::AtMost(0.9)).unwrap().met);
    assert!(!Aim::new(String::new(), found, Bound::AtLeast(0.91)).unwrap().met);
    assert!(!Aim::new(String::new(), found, Bound::AtMost(0.89)).unwrap().met);
    assert_eq!(Aim::new(String::new(), None, Bound::AtMost(1.0)), None);
}

#[test]
fn starts_are_summed_up() {
    let start_up = StartUp::of("iris", 2, &[start()]).unwrap();
    assert_eq!(start_up.ratio.median, 1.3);
    assert_eq!(start_up.added_pss_mb.median, 12.0);
    assert!(StartUp::of("iris", 2, &[]).is_none());
}
