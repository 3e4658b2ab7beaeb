use super::*;
use crate::cli::{Cli, Command};
use crate::result::html;
use clap::Parser as _;
use tokio::task::LocalSet;

const SCENARIO: &str = r#"
name = "test"
bucket_ms = 100
[target]
model = "m"
give_up_s = 0.5
[[target.input]]
name = "x"
datatype = "FP32"
shape = [1, 4]
[capacity]
connections = 2
seconds = 0.2
again = true
[[client]]
name = "a"
count = 3
class = "critical"
deadline_ms = 5000
[[client]]
name = "b"
[[phase]]
name = "first"
seconds = 0.3
arrivals.a = { kind = "constant", rate = 100 }
arrivals.b = { kind = "constant", rate = "0.01x" }
[[phase]]
name = "second"
seconds = 0.3
recovery = { baseline = "first", factor = 100 }
arrivals.a = { kind = "constant", rate = 100 }
[[probe]]
name = "live"
period_ms = 50
[[probe]]
name = "ready"
period_ms = 50
[[expect]]
figure = "first.a.success_ratio"
equals = 1
[[expect]]
figure = "second.a.offered"
equals = "first.a.offered"
[[expect]]
figure = "probes.restarts"
at_most = 0
"#;

/// Runs the text against the address, as the command line would.
async fn ran(
    text: &str,
    address: &str,
    more: &[&str],
    stop: impl Future<Output = String>,
) -> Result<RunResult> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.toml");
    std::fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    let usual = ["balm-loadtest", "run", &file, "--quiet", "--target", address];
    let Command::Run(args) = Cli::parse_from(usual.iter().chain(more)).command else {
        unreachable!()
    };
    LocalSet::new().run_until(Box::pin(run(&args, stop))).await
}

fn never() -> impl Future<Output = String> {
    std::future::pending()
}

#[tokio::test]
async fn a_scenario_from_beginning_to_end() {
    for (protocol, seconds) in [("http1", 0.6), ("http2", 0.3)] {
        let text =
            SCENARIO.replace("model = \"m\"", &format!("model = \"m\"\nprotocol = \"{protocol}\""));
        let address = format!("http://{}", noop::serve().unwrap());
        let scale = (seconds / 0.6).to_string();
        let result = ran(&text, &address, &["--time-scale", &scale], never()).await.unwrap();
        let expected: Vec<_> = result.expectations.iter().map(|judged| judged.passed).collect();
        assert_eq!(expected, [true; 3], "{:?}", result.expectations);
        assert_eq!(result.phases[0].clients["a"].offered, (seconds * 50.0) as u64);
        assert!((result.seconds - seconds).abs() < 1e-9 && result.partial.is_none());
        let capacity = result.capacity.as_ref().unwrap();
        assert!(capacity.per_s > 0.0 && capacity.again_per_s.unwrap() > 0.0);
        assert!(result.probes.as_ref().unwrap().ready);
        assert!(result.generator.ceiling.as_ref().unwrap().per_s > 0.0);
        assert_eq!(result.target.protocol, protocol);
        assert!(html::render(&result).contains("</html>"));
    }
}

#[tokio::test]
async fn a_capacity_that_is_given_is_not_measured() {
    let address = noop::serve().unwrap().to_string();
    let result = ran(SCENARIO, &address, &["--capacity", "1000"], never()).await.unwrap();
    let capacity = result.capacity.unwrap();
    assert!(capacity.given && capacity.per_s == 1000.0 && capacity.again_per_s.is_none());
    assert_eq!(result.phases[0].clients["b"].offered, 3);
}

#[tokio::test]
async fn a_run_that_is_stopped_keeps_what_it_has() {
    let address = noop::serve().unwrap().to_string();
    let text = SCENARIO.replace("seconds = 0.3", "seconds = 600");
    // A busy machine may need longer until the first phase begins.
    let mut result = None;
    for seconds in [2, 8, 32] {
        let stop = async {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            "interrupted".to_owned()
        };
        match ran(&text, &address, &["--capacity", "1000"], stop).await {
            Err(error) => assert!(error.to_string().contains("before the first phase"), "{error}"),
            Ok(found) if found.phases[0].total.accepted == 0 => {}
            Ok(found) => {
                result = Some(found);
                break;
            }
        }
    }
    let result = result.unwrap();
    assert_eq!(result.partial.as_deref(), Some("interrupted"));
    assert!(matches!(result.verdict, Verdict::Partial | Verdict::GeneratorLimited));
}

#[tokio::test]
async fn what_cannot_begin_says_why() {
    let error = ran(SCENARIO, "127.0.0.1:1", &[], never()).await.unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("no connection to 127.0.0.1:1") && error.contains("refused"), "{error}");
    let error = ran(SCENARIO, "192.0.2.1:80", &[], never()).await.unwrap_err();
    assert!(format!("{error:#}").contains("is not on loopback"), "{error:#}");
    let address = noop::serve().unwrap().to_string();
    let error = ran(SCENARIO, &address, &["--json", "/no/such/folder/a.json"], never()).await;
    assert!(format!("{:#}", error.unwrap_err()).contains("/no/such/folder/a.json"));
    let error = ran("name = 1", &address, &[], never()).await.unwrap_err();
    assert!(format!("{error:#}").contains("a.toml line 1: invalid type"), "{error:#}");
}
