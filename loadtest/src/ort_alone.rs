//! The yardstick, as a child process: ONNX Runtime by itself.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::process::Command;
use tokio::time::timeout;

use crate::closed_loop::Plan;
use crate::process::Memory;
use crate::repository::Model;

/// How much longer than its measurement the yardstick may take.
const OVERTIME: Duration = Duration::from_secs(120);

/// How ONNX Runtime alone is started.
#[derive(Clone, Debug)]
pub(crate) struct OrtAlone {
    /// The example `ort_alone`.
    pub(crate) program: PathBuf,
    /// The ONNX Runtime library.
    pub(crate) library: PathBuf,
}

/// A closed loop in process.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Run {
    pub(crate) runs_per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// The way to the first right answer.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Load {
    pub(crate) library_ms: f64,
    pub(crate) hash_ms: f64,
    pub(crate) session_ms: f64,
    pub(crate) first_run_ms: f64,
    pub(crate) total_ms: f64,
    memory: LoadMemory,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct LoadMemory {
    rss_bytes: u64,
    pss_bytes: u64,
}

impl Load {
    pub(crate) fn memory(&self) -> Memory {
        Memory { rss_bytes: self.memory.rss_bytes, pss_bytes: self.memory.pss_bytes }
    }
}

// ===== impl OrtAlone =====

impl OrtAlone {
    /// Runs the model on so many threads as the plan has connections, with so many rows at a time.
    pub(crate) async fn run(&self, model: &Model, plan: Plan, rows: usize) -> Result<Run> {
        let mut command = self.command(model, plan.connections);
        command.arg("--rows").arg(rows.to_string()).arg("run");
        command.arg("--warm-up").arg(plan.warm_up.as_secs_f64().to_string());
        command.arg("--seconds").arg(plan.length.as_secs_f64().to_string());
        answer(command, plan.warm_up + plan.length + OVERTIME).await
    }

    /// Hashes and loads the model; afterwards holds `sessions` sessions.
    pub(crate) async fn load(&self, model: &Model, sessions: usize) -> Result<Load> {
        let mut command = self.command(model, sessions);
        command.args(["load", "--sha256", "--started-at"]);
        let now =
            SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        command.arg(now.as_nanos().to_string());
        answer(command, OVERTIME).await
    }

    fn command(&self, model: &Model, threads: usize) -> Command {
        let mut command = Command::new(&self.program);
        // As Balm does it: else it opens a database of telemetry at its start.
        command.env("ORT_DISABLE_TELEMETRY", "1");
        command.arg("--library").arg(&self.library);
        command.arg("--model").arg(model.file());
        command.arg("--golden").arg(model.golden());
        command.arg("--threads").arg(threads.to_string());
        command
    }
}

/// The one line of JSON that the child prints. It is killed when it takes too long, or when nobody waits any more.
async fn answer<T: DeserializeOwned>(mut command: Command, limit: Duration) -> Result<T> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().context("ONNX Runtime alone could not be started")?;
    let output = timeout(limit, child.wait_with_output())
        .await
        .context("ONNX Runtime alone takes too long")??;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("ONNX Runtime alone failed, {}: {}", output.status, said.trim());
    }
    serde_json::from_slice(&output.stdout).context("ONNX Runtime alone printed something else")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn the_line_is_read() {
        let line = r#"{"mode": "run", "runs_per_second": 9.5, "p50_us": 1, "p99_us": 2}"#;
        let run: Run = answer(shell(&format!("echo '{line}'")), OVERTIME).await.unwrap();
        assert_eq!((run.runs_per_second, run.p99_us), (9.5, 2.0));
    }

    #[tokio::test]
    async fn failures_say_why() {
        let failed = async |script, limit| {
            format!("{:#}", answer::<Run>(shell(script), limit).await.unwrap_err())
        };
        let error = failed("echo 'output \"p\" is wrong' >&2; exit 1", OVERTIME).await;
        assert!(error.ends_with("failed, exit status: 1: output \"p\" is wrong"), "{error}");
        assert!(failed("echo hello", OVERTIME).await.contains("printed something else"));
        assert!(
            failed("exec sleep 10", Duration::from_millis(50)).await.contains("takes too long")
        );
    }
}
