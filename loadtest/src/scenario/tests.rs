use super::*;
use crate::arrivals::Shape;

/// A scenario with a bit of everything.
pub(crate) const SAMPLE: &str = r#"
name = "sample"
description = "A bit of everything."
seed = 7
bucket_ms = 250

[target]
model = "iris"
protocol = "http2"
encoding = "json"
case = "one_row"

[capacity]
connections = 4
seconds = 2
again = true

[[client]]
name = "noisy"
class = "sheddable"
deadline_ms = 500
retries = 3
backoff_ms = 20
headers = { "x-team" = "a" }

[[client]]
name = "polite"
count = 10
abandon_after_ms = 50

[[phase]]
name = "base"
seconds = 4
arrivals.noisy = { kind = "poisson", rate = "0.7x" }
arrivals.polite = { kind = "constant", rate = 5 }

[[phase]]
name = "after"
seconds = 10
recovery = { baseline = "base" }
arrivals.noisy = { kind = "spike", base = 1.5, peak = "11x", at_s = 2, for_s = 4 }

[[probe]]
name = "live"
period_ms = 1000

[[probe]]
name = "ready"

[[expect]]
figure = "after.accepted_p99_ms"
at_most = "base.accepted_p99_ms * 1.2"

[[expect]]
figure = "base.polite.success_ratio"
at_least = 0.99
"#;

fn problems(text: &str) -> String {
    Scenario::parse("a.toml", text).unwrap_err().to_string()
}

/// The sample with one piece of it replaced.
fn with(from: &str, to: &str) -> String {
    assert!(SAMPLE.contains(from), "{from}");
    SAMPLE.replacen(from, to, 1)
}

#[test]
fn everything_is_read() {
    let mut scenario = Scenario::parse("a.toml", SAMPLE).unwrap();
    assert_eq!(scenario.target.protocol, Protocol::Http2);
    assert_eq!(scenario.target.input, Input::Case("one_row".to_owned()));
    let [noisy, polite] = scenario.clients.as_slice() else { unreachable!() };
    assert_eq!((noisy.retries, noisy.deadline), (3, Some(Duration::from_millis(500))));
    assert_eq!((polite.count, polite.key_header.as_str()), (10, "x-client-id"));
    let (client, pattern) = &scenario.phases[0].arrivals[0];
    assert_eq!((*client, pattern.random), (0, true));
    assert_eq!(pattern.shape, Shape::Constant(Rate::TimesCapacity(0.7)));
    assert_eq!(scenario.phases[1].recovery.as_ref().unwrap().factor, 1.2);
    assert_eq!(scenario.probes[0].period, Duration::from_secs(1));
    assert!(scenario.needs_capacity());
    scenario.scale_time(0.5);
    assert_eq!(scenario.length(), Duration::from_secs(7));
    assert_eq!(scenario.capacity.length, Duration::from_secs(1));
}

#[test]
fn unknown_keys_are_named_with_their_line_and_the_nearest() {
    for (from, to, message) in [
        (
            "retries = 3",
            "retrys = 3",
            "a.toml line 22: there is no key retrys here; did you mean retries?",
        ),
        ("seed = 7", "sed = 7", "a.toml line 4: there is no key sed here; did you mean seed?"),
        ("rate = 5", "raet = 5", "a.toml line 35: there is no key raet here; did you mean rate?"),
        ("[capacity]", "[capacty]", "there is no key capacty here; did you mean capacity?"),
        ("seconds = 4", "seconds = \"four\"", "a.toml line 33: invalid type: string \"four\""),
        ("seconds = 4", "", "missing field `seconds`"),
        ("seed = 7", "seed = = 7", "a.toml line 4: "),
    ] {
        let found = problems(&with(from, to));
        assert!(found.contains(message), "{found}");
    }
}

#[test]
fn each_mistake_names_its_field_and_what_would_be_right() {
    for (from, to, message) in [
        (
            "protocol = \"http2\"",
            "protocol = \"http3\"",
            "target.protocol = \"http3\": expected http1 or http2; did you mean http1?",
        ),
        ("case = \"one_row\"", "case = \"a\"\nrows = 1", "target: expected one of `case`"),
        ("model = \"iris\"", "model = \"a/b\"", "target.model = \"a/b\""),
        ("connections = 4", "connections = 0", "capacity.connections = 0: expected 1 to 4096"),
        ("connections = 4", "rate = 4.0", "capacity.rate: "),
        ("retries = 3", "retries = 11", "client.noisy.retries = 11: expected 0 to 10"),
        ("retries = 3", "retries = 0", "client.noisy.backoff_ms: without retries"),
        ("count = 10", "count = 0", "client.polite.count = 0: expected 1 to 1000"),
        ("name = \"noisy\"", "name = \"no.isy\"", "client.name = \"no.isy\": a name has"),
        ("name = \"noisy\"", "name = \"polite\"", "client.polite: there are two"),
        ("name = \"after\"", "name = \"base\"", "phase.base: there are two"),
        ("name = \"after\"", "name = \"capacity\"", "phase.capacity: capacity, probes, generator"),
        ("seconds = 4", "seconds = 0", "phase.base.seconds = 0: expected 0.1"),
        (
            "arrivals.polite",
            "arrivals.poltie",
            "phase.base.arrivals.poltie: there is no client of that name; did you mean polite?",
        ),
        (
            "\"poisson\"",
            "\"poison\"",
            "phase.base.arrivals.noisy.kind = \"poison\": expected constant, poisson, ramp, step, spike; did you mean poisson?",
        ),
        ("rate = 5", "rate = -1", "phase.base.arrivals.polite.rate = -1: expected 0"),
        (
            "rate = 5",
            "rate = \"fast\"",
            "phase.base.arrivals.polite.rate = \"fast\": expected requests per second, or a multiple",
        ),
        ("rate = 5", "from = 5", "phase.base.arrivals.polite.from: kind = \"constant\" takes rate"),
        ("rate = 5", "steps = 5", "phase.base.arrivals.polite.rate: kind = \"constant\" needs it"),
        ("for_s = 4", "for_s = 9", "phase.after.arrivals.noisy.for_s = 9: expected 0 to 8"),
        (
            "baseline = \"base\"",
            "baseline = \"bse\"",
            "phase.after.recovery.baseline = \"bse\": there is no other phase of that name; did you mean base?",
        ),
        (
            "name = \"ready\"",
            "name = \"readiness\"",
            "probe.name = \"readiness\": expected live, ready, startup",
        ),
        ("name = \"ready\"", "name = \"live\"", "probe.live: there are two"),
        ("period_ms = 1000", "period_ms = 1", "probe.live.period_ms = 1: expected 10"),
        (
            "period_ms = 1000",
            "success_threshold = 2",
            "probe.live.success_threshold = 2: expected 1 to 1",
        ),
        (
            "polite.success_ratio",
            "polite.sucess_ratio",
            "expect.figure: there is no figure \"base.polite.sucess_ratio\" in this scenario; did you mean base.polite.success_ratio?",
        ),
        (
            "at_least = 0.99",
            "",
            "expect.base.polite.success_ratio: expected one of at_most, at_least, equals",
        ),
        ("at_least = 0.99", "at_least = 1\nat_most = 2", "expected one of at_most"),
        ("* 1.2", "- 1.2", "expect.after.accepted_p99_ms.at_most: "),
        ("\"x-team\"", "\"x team\"", "client.noisy: \"x team\" is no name of a header"),
    ] {
        let found = problems(&with(from, to));
        assert!(found.contains(message), "{to}: {found}");
        assert!(found.starts_with("a.toml: "), "{found}");
    }
}

#[test]
fn every_problem_is_told_at_once() {
    let text = with("retries = 3", "retries = 99").replace("count = 10", "count = -1");
    let text = text.replace("0.7x", "0.7 times");
    assert_eq!(problems(&text).lines().count(), 3);
}

#[test]
fn shipped_scenarios_are_sound() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut found = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        Scenario::load(&path).unwrap();
        found += 1;
    }
    assert!(found >= 7);
}

#[test]
fn a_file_that_is_not_there() {
    let error = Scenario::load(Path::new("no/such.toml")).unwrap_err();
    assert!(error.to_string().contains("no/such.toml"), "{error:#}");
}
