//! The private copy of the server: a child of the drill, on loopback, with files of its own. However the drill ends, it ends.

use super::judge::Sight;
use super::stage::Stage;
use crate::environment::NOT_INHERITED;
use anyhow::{Context as _, Result, bail};
use balm_loadtest::steady;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// This very program, though another one may lie under its name by now.
const PROGRAM: &str = "/proc/self/exe";
/// Where nothing can be written, though it can be opened.
const FULL: &str = "/dev/full";
/// How long it may take to say where it listens.
const ANNOUNCED: Duration = Duration::from_secs(30);
/// How long it may take until it is ready: models may be large.
const LOADED: Duration = Duration::from_secs(180);
/// How long it may take to end when it is told to; it has two seconds for its requests.
const ENDED: Duration = Duration::from_secs(15);
const DRAIN_TIMEOUT_MS: &str = "2000";
/// Between two looks.
pub(super) const GLANCE: Duration = Duration::from_millis(50);
/// For an answer of the management port.
const PATIENCE: Duration = Duration::from_secs(2);
/// For a load that is asked for.
const LOAD_PATIENCE: Duration = Duration::from_secs(120);
/// How much of the log is shown when it fails.
const LOG_LINES_SHOWN: usize = 12;

/// A running private server.
pub(super) struct Private {
    child: Child,
    log: PathBuf,
    /// Where predictions go.
    pub(super) address: SocketAddr,
    /// Where it says how it is.
    pub(super) management: SocketAddr,
}

/// What `/status` says, as far as a drill asks.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Status {
    ready: bool,
    pub(super) models: Vec<ModelStatus>,
    #[serde(default)]
    incidents: Vec<IncidentStatus>,
    supervisor: SupervisorStatus,
}

/// A model in `/status`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ModelStatus {
    pub(super) name: String,
    pub(super) versions: Vec<VersionStatus>,
}

/// A version in `/status`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct VersionStatus {
    pub(super) version: u64,
    pub(super) state: String,
    lanes: Option<LanesStatus>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct LanesStatus {
    wanted: u64,
    healthy: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct IncidentStatus {
    healed_after_ms: Option<u64>,
}

#[derive(Clone, Debug, Deserialize)]
struct SupervisorStatus {
    worker_pid: Option<u32>,
    workers_started: u64,
    stage: String,
}

impl VersionStatus {
    /// Whether it answers.
    pub(super) fn serves(&self) -> bool {
        matches!(self.state.as_str(), "ready" | "degraded")
    }
}

impl Status {
    /// What its worker holds, bytes; 0 where that cannot be known.
    pub(super) fn resident_bytes(&self) -> u64 {
        let Some(pid) = self.supervisor.worker_pid else { return 0 };
        kibibytes(Path::new(&format!("/proc/{pid}/status")), "VmRSS:") << 10
    }

    /// What is compared of it; `model` is the one that the card is about.
    pub(super) fn sight(&self, model: &str) -> Sight {
        let versions = || self.models.iter().flat_map(|model| &model.versions);
        let all_lanes = versions()
            .filter(|version| version.serves())
            .all(|version| version.lanes.is_none_or(|lanes| lanes.healthy == lanes.wanted));
        let of_model = self.models.iter().filter(|found| found.name == model);
        let ready = of_model.flat_map(|model| &model.versions).filter(|version| version.serves());
        let version = ready.map(|version| version.version).max().unwrap_or(0);
        let closed = self.incidents.iter().all(|incident| incident.healed_after_ms.is_some());
        let running = self.supervisor.stage == "running";
        Sight {
            ready: self.ready,
            whole: all_lanes && closed && running && version > 0,
            incidents: self.incidents.len() as u64,
            workers: self.supervisor.workers_started,
            version,
        }
    }
}

impl Private {
    /// Starts it on the copied models, with the configuration of the user but for what would reach beyond the drill. With
    /// `disk_full` nothing that it writes to can be written.
    pub(super) async fn start(
        stage: &Stage,
        config: Option<&Path>,
        variables: &[(&str, String)],
        disk_full: bool,
    ) -> Result<Private> {
        let faults = stage.faults()?;
        let log = stage.file("balm.log");
        let (journal, termination) = match disk_full {
            true => (PathBuf::from(FULL), PathBuf::from(FULL)),
            false => (stage.file("journal"), stage.file("termination")),
        };
        let stderr = match disk_full {
            true => OpenOptions::new().write(true).open(FULL).context(FULL)?,
            false => File::create(&log).with_context(|| log.display().to_string())?,
        };
        // Each card is to meet a server that knows nothing of the ones before.
        let _ = fs::remove_file(stage.file("journal"));
        let mut command = Command::new(PROGRAM);
        command
            .arg0("balm")
            .arg("serve")
            .args(config.iter().flat_map(|config| ["--config".as_ref(), config.as_os_str()]))
            .arg("--models")
            .arg(stage.models())
            .args(["--http-addr", "127.0.0.1:0", "--management-addr", "127.0.0.1:0"])
            .arg("--rehearsal")
            .arg(&faults)
            // Libraries leave files there.
            .env("TMPDIR", stage.file(""))
            .env("BALM_LIFECYCLE_CRASH_JOURNAL", journal)
            .env("BALM_LIFECYCLE_TERMINATION_LOG", termination)
            .env("BALM_LIFECYCLE_SINGLE_PROCESS", "false")
            .env("BALM_LIFECYCLE_DRAIN_DELAY_MS", "0")
            .env("BALM_LIFECYCLE_DRAIN_TIMEOUT_MS", DRAIN_TIMEOUT_MS)
            .env("BALM_REPOSITORY_CONTROL", "true")
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            // A terminal's Ctrl-C is for the drill, which ends its server in order.
            .process_group(0)
            .kill_on_drop(true);
        for variable in NOT_INHERITED {
            command.env_remove(variable);
        }
        let mut child = command.spawn().context("the private server did not start")?;
        let stdout = child.stdout.take().context("stdout of the private server is no pipe")?;
        let announced = timeout(ANNOUNCED, steady::announced(stdout)).await;
        let (address, management) = match announced {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => bail!("{error:#}\n{}", last_words(&log)),
            Err(_) => bail!("the private server does not listen\n{}", last_words(&log)),
        };
        Ok(Private { child, log, address, management })
    }

    /// Waits until it is ready and nothing is amiss or on its way.
    pub(super) async fn wait_ready(&self) -> Result<Status> {
        let begun = Instant::now();
        let mut last = String::from("nothing");
        while begun.elapsed() < LOADED {
            match self.status().await {
                Ok(status) => {
                    let transit = ["discovered", "verifying", "loading", "warming", "probing"];
                    let mut versions = status.models.iter().flat_map(|model| &model.versions);
                    let settled = !versions.clone().any(|version| {
                        transit.contains(&version.state.as_str())
                            || version
                                .lanes
                                .is_some_and(|l| version.serves() && l.healthy < l.wanted)
                    });
                    if settled && status.supervisor.stage == "running" {
                        if status.ready && versions.any(VersionStatus::serves) {
                            return Ok(status);
                        }
                        if begun.elapsed() > PATIENCE && !status.models.is_empty() {
                            bail!(
                                "the models are not ready, so there is nothing to rehearse: {}",
                                states(&status)
                            );
                        }
                        if begun.elapsed() > PATIENCE {
                            bail!("no model serves: the repository holds none");
                        }
                    }
                    last = states(&status);
                }
                Err(error) => last = format!("{error:#}"),
            }
            sleep(GLANCE).await;
        }
        bail!("not ready within {} s ({last})\n{}", LOADED.as_secs(), last_words(&self.log))
    }

    /// What it says of itself.
    pub(super) async fn status(&self) -> Result<Status> {
        let reply = steady::ask(self.management, get("/status")?, PATIENCE).await?;
        serde_json::from_slice(&reply.body).context("/status is not what was expected")
    }

    /// Metadata of a model, as the protocol has it.
    pub(super) async fn metadata(&self, model: &str) -> Result<Bytes> {
        let reply =
            steady::ask(self.address, get(&format!("/v2/models/{model}"))?, PATIENCE).await?;
        if reply.status != 200 {
            bail!("metadata of {model}: status {}", reply.status);
        }
        Ok(reply.body)
    }

    /// Asks for a model to be loaded: the status and the text of the answer.
    pub(super) async fn load(&self, model: &str) -> Result<(u16, String)> {
        let path = format!("/v2/repository/models/{model}/load");
        let request = Request::post(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from_static(b"{}")))?;
        let reply = steady::ask(self.address, request, LOAD_PATIENCE).await?;
        Ok((reply.status, String::from_utf8_lossy(&reply.body).into_owned()))
    }

    /// The end of its log.
    pub(super) fn last_words(&self) -> String {
        last_words(&self.log)
    }

    /// Tells it to end, and ends it when it does not.
    pub(super) async fn stop(mut self) -> Result<()> {
        if let Some(pid) = self.pid() {
            kill_process(pid, Signal::TERM).context("SIGTERM to the private server")?;
        }
        match timeout(ENDED, self.child.wait()).await {
            Ok(ended) if ended.as_ref().is_ok_and(std::process::ExitStatus::success) => Ok(()),
            Ok(ended) => {
                bail!("the private server ended with {}\n{}", ended?, last_words(&self.log))
            }
            Err(_) => bail!("the private server did not end\n{}", last_words(&self.log)),
        }
    }

    /// Its number while it is not reaped.
    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child.id()?).ok()?)
    }
}

/// A worker that is stopped does not hear that its supervisor is gone, so it is ended with it.
impl Drop for Private {
    fn drop(&mut self) {
        let Some(pid) = self.pid() else { return };
        let workers = workers_of(pid);
        let _ = kill_process(pid, Signal::KILL);
        for worker in workers {
            let _ = kill_process(worker, Signal::KILL);
        }
    }
}

/// What the machine can still give, bytes; 0 where that cannot be known.
pub(super) fn available_bytes() -> u64 {
    kibibytes(Path::new("/proc/meminfo"), "MemAvailable:") << 10
}

/// The figure of a line that begins with `label`, KiB.
fn kibibytes(file: &Path, label: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let figure = text.lines().find_map(|line| line.strip_prefix(label)?.trim().strip_suffix("kB"));
    figure.and_then(|figure| figure.trim_end().parse().ok()).unwrap_or(0)
}

/// The children of a process that are workers of ours.
fn workers_of(pid: Pid) -> Vec<Pid> {
    let pid = pid.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let is_worker = |child: &i32| {
        let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
        name.trim_end() == "balm-worker"
    };
    let numbers = children.split_whitespace().filter_map(|child| child.parse::<i32>().ok());
    numbers.filter(is_worker).filter_map(Pid::from_raw).collect()
}

fn get(path: &str) -> Result<Request<Full<Bytes>>> {
    Ok(Request::get(path).header("host", "localhost").body(Full::default())?)
}

fn states(status: &Status) -> String {
    let of = |model: &ModelStatus| {
        let states: Vec<&str> = model.versions.iter().map(|v| v.state.as_str()).collect();
        let states =
            if states.is_empty() { "has no version".to_owned() } else { states.join(", ") };
        format!("{} is {states}", model.name)
    };
    status.models.iter().map(of).collect::<Vec<_>>().join("; ")
}

fn last_words(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
    format!("the last lines of its log:\n  {}", shown.join("\n  "))
}
