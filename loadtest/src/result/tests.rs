//! A made-up result, for the tests of everything that is drawn or written from one.

use super::*;

fn latency(p50: f64) -> Option<Latencies> {
    Some(Latencies { p50, p90: p50 * 1.5, p99: p50 * 2.5, p999: p50 * 3.0, max: p50 * 4.0 })
}

fn counts(offered: u64, ok: u64, shed: u64) -> Counts {
    Counts {
        offered,
        sent: offered,
        accepted: ok,
        rejected: shed,
        succeeded: ok,
        failed: shed,
        good_within: ok,
        statuses: BTreeMap::from([(200, ok), (503, shed)]),
        accepted_latency: latency(10.0),
        rejected_latency: if shed > 0 { latency(1.0) } else { None },
        ..Counts::default()
    }
}

fn phase(name: &str, start_s: f64, counts: Counts) -> Phase {
    Phase {
        name: name.to_owned(),
        start_s,
        seconds: 10.0,
        clients: BTreeMap::from([("noisy".to_owned(), counts.clone())]),
        total: counts,
        recovery: None,
        lag: latency(0.1),
        generator_cores: Some(0.1),
    }
}

fn bucket(offered: u64, ok: u64) -> Bucket {
    Bucket {
        offered,
        sent: offered,
        ok,
        status_503: offered - ok,
        accepted: latency(10.0),
        rejected: (offered > ok).then(|| latency(1.0)).flatten(),
        ..Bucket::default()
    }
}

/// Two phases, the second an overload, with probes and expectations of either outcome.
pub(crate) fn result() -> RunResult {
    let mut phases =
        vec![phase("base", 0.0, counts(700, 700, 0)), phase("after", 10.0, counts(1000, 100, 900))];
    phases[1].recovery = Some(Recovery {
        baseline: "base".to_owned(),
        factor: 1.2,
        limit_ms: Some(30.0),
        seconds: Some(2.5),
    });
    let judged = |figure: &str, found: Option<f64>, passed| Judged {
        figure: figure.to_owned(),
        limit: crate::figures::Limit::AtMost,
        bound: "base.accepted_p99_ms * 1.2".to_owned(),
        bound_value: Some(30.0),
        found,
        passed,
    };
    RunResult {
        schema: SCHEMA,
        scenario: ScenarioFacts {
            name: "sample".to_owned(),
            description: "One < two & \"three\".".to_owned(),
            seed: 1,
            time_scale: 1.0,
        },
        target: TargetFacts {
            address: "127.0.0.1:8000".to_owned(),
            server: Some("balm 0.1.0".to_owned()),
            model: "iris".to_owned(),
            version: None,
            protocol: "http1".to_owned(),
            encoding: "binary".to_owned(),
            request_bytes: 200,
        },
        machine: Machine { processor: "A Fast One".to_owned(), cores: 2, load: 0.5 },
        begun: "2026-01-02T03:04:05Z".to_owned(),
        seconds: 20.0,
        verdict: Verdict::Failed,
        partial: None,
        generator_limited: Vec::new(),
        notes: vec!["a note".to_owned()],
        capacity: Some(Capacity {
            per_s: 100.0,
            given: false,
            connections: Some(4),
            seconds: Some(5.0),
            latency: latency(10.0),
            turned_away: 0,
            again_per_s: Some(98.0),
        }),
        phases,
        timeline: Timeline {
            bucket_s: 1.0,
            buckets: (0..20)
                .map(|second| if second < 10 { bucket(70, 70) } else { bucket(100, 10) })
                .collect(),
        },
        probes: Some(Probes {
            address: "127.0.0.1:8002".to_owned(),
            seconds: 20.0,
            restarts: 0,
            ready_false: 1,
            ready: true,
            events: [
                (-0.5, Event::BecameReady),
                (12.0, Event::BecameUnready),
                (14.0, Event::BecameReady),
            ]
            .map(|(at_s, event)| ProbeEvent { at_s, probe: Kind::Ready, event })
            .to_vec(),
            probes: vec![Probe {
                kind: Kind::Live,
                path: "/live".to_owned(),
                polls: 20,
                failures: 1,
                failed: vec![ProbeFailure { at_s: 12.0, why: "status 503".to_owned() }],
                latency: latency(0.5),
                points: (0..20).map(|second| (f64::from(second), 0.5)).collect(),
            }],
        }),
        generator: Generator {
            version: "0.1.0".to_owned(),
            lag_p99_ms: Some(0.25),
            lag_max_ms: Some(0.4),
            cores_max: Some(0.1),
            cpu_us_per_request: Some(20.0),
            ceiling: Some(Ceiling {
                against: "the target's /noop".to_owned(),
                per_s: 20_000.0,
                cpu_us_per_request: 15.0,
            }),
            stalls: vec![Stall { at_s: 3.0, ms: 150.0 }],
        },
        expectations: vec![
            judged("after.accepted_p99_ms", Some(25.0), true),
            judged("after.recovery_s", None, false),
        ],
        figures: Figures::from([("after.accepted_p99_ms".to_owned(), 25.0)]),
    }
}

#[test]
fn json_comes_back_as_it_went() {
    let json = serde_json::to_value(result()).unwrap();
    let back: RunResult = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(back).unwrap(), json);
    assert_eq!(json["schema"], 1);
    assert_eq!(json["verdict"], "failed");
    assert_eq!(json["phases"][1]["total"]["statuses"]["503"], 900);
}

#[test]
fn that_it_proves_nothing_comes_first() {
    let result = result();
    let [passed, failed] = result.expectations.as_slice() else { unreachable!() };
    let (passed, failed) = (std::slice::from_ref(passed), std::slice::from_ref(failed));
    for (partial, limited, expectations, verdict, code) in [
        (false, false, passed, Verdict::Passed, 0),
        (false, false, failed, Verdict::Failed, 1),
        (false, false, &[][..], Verdict::Measured, 0),
        (true, false, passed, Verdict::Partial, 1),
        (false, true, passed, Verdict::GeneratorLimited, 3),
        (true, true, failed, Verdict::GeneratorLimited, 3),
    ] {
        let found = Verdict::of(partial, limited, expectations);
        assert_eq!((found, found.exit_code()), (verdict, code));
    }
}
