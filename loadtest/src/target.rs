//! The server under measurement: `balm serve` as a child of its own, on loopback, on ports that the kernel picks.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::client::Connection;
use crate::closed_loop::Work;

/// How long a server may take to say where it listens, and again until its first right answer.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to end when told to.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// A server that is still loading is asked again after this.
const ASK_AGAIN: Duration = Duration::from_millis(1);
/// Answers of a server that may be right yet.
const NOT_YET: [StatusCode; 2] = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::NOT_FOUND];
/// How much of its log is shown when it fails.
const LOG_LINES_SHOWN: usize = 12;

/// How a server is started.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The program `balm`.
    pub(crate) program: PathBuf,
    /// The ONNX Runtime library.
    pub(crate) library: PathBuf,
    /// The model repository.
    pub(crate) repository: PathBuf,
    /// Sessions per model, with one thread each; else it is the server's own choice.
    pub(crate) lanes: Option<usize>,
    /// Its configuration.
    pub(crate) config: Option<PathBuf>,
    /// Where its log goes.
    pub(crate) log: PathBuf,
}

/// A running server. Dropped, it is killed; [`Server::stop`] is the polite way.
pub(crate) struct Server {
    child: Child,
    process: u32,
    begun: Instant,
    log: PathBuf,
    address: SocketAddr,
    management: SocketAddr,
}

// ===== impl Settings =====

impl Settings {
    /// What the server is told by its environment. The bench is to measure the server as it is, so only what both
    /// sides of a comparison must have in common is set: lanes and threads, the library, and the no-op route.
    fn variables(&self) -> Vec<(&'static str, OsString)> {
        let mut variables = vec![
            ("ORT_DYLIB_PATH", self.library.clone().into()),
            ("BALM_HTTP_NOOP_ROUTE", "true".into()),
            ("BALM_LIFECYCLE_DRAIN_DELAY_MS", "0".into()),
        ];
        if let Some(lanes) = self.lanes {
            variables.push(("BALM_DEFAULTS_LANES", lanes.to_string().into()));
            variables.push(("BALM_DEFAULTS_THREADS", "1".into()));
        }
        variables
    }

    fn command(&self) -> Result<Command> {
        let log = File::create(&self.log).with_context(|| self.log.display().to_string())?;
        let mut command = Command::new(&self.program);
        // Settings of whoever runs the bench would be measured without being named.
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_ours(name)) {
            command.env_remove(name);
        }
        command
            .arg("serve")
            .arg("--models")
            .arg(&self.repository)
            .args(self.config.iter().flat_map(|config| ["--config".as_ref(), config.as_os_str()]))
            .args(["--http-addr", "127.0.0.1:0", "--management-addr", "127.0.0.1:0"])
            .envs(self.variables())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true);
        Ok(command)
    }
}

fn is_ours(variable: &OsStr) -> bool {
    variable.as_encoded_bytes().starts_with(b"BALM_")
}

// ===== impl Server =====

impl Server {
    /// Starts the server and waits until it says where it listens.
    pub(crate) async fn start(settings: &Settings) -> Result<Server> {
        let mut command = settings.command()?;
        let begun = Instant::now();
        let mut child = command.spawn().with_context(|| settings.program.display().to_string())?;
        let process = child.id().context("the server has ended at once")?;
        let stdout = child.stdout.take().context("stdout of the server is not a pipe")?;
        let (address, management) = match timeout(START_LIMIT, announced(stdout)).await {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => bail!("{error:#}\n{}", last_words(&settings.log)),
            Err(_) => {
                bail!("the server does not say where it listens\n{}", last_words(&settings.log))
            }
        };
        Ok(Server { child, process, begun, log: settings.log.clone(), address, management })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it answers probes.
    pub(crate) fn management(&self) -> SocketAddr {
        self.management
    }

    /// How it has ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(format!("the server has ended: {status}"))
    }

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        last_words(&self.log)
    }

    pub(crate) fn process(&self) -> u32 {
        self.process
    }

    /// Asks until the server gives the right answer; how long that took since it was started.
    pub(crate) async fn first_right_answer(&mut self, work: &Work) -> Result<Duration> {
        let mut last_refusal = String::new();
        match timeout(START_LIMIT, self.ask_until_right(work, &mut last_refusal)).await {
            Ok(Ok(())) => Ok(self.begun.elapsed()),
            Ok(Err(error)) => bail!("{error:#}\n{}", last_words(&self.log)),
            Err(_) => bail!("no right answer but {last_refusal}\n{}", last_words(&self.log)),
        }
    }

    async fn ask_until_right(&mut self, work: &Work, last_refusal: &mut String) -> Result<()> {
        loop {
            match self.ask(work).await? {
                Answer::Right => return Ok(()),
                Answer::NotYet(refusal) => *last_refusal = refusal,
            }
            sleep(ASK_AGAIN).await;
            if let Some(status) = self.child.try_wait()? {
                bail!("the server has ended: {status}");
            }
        }
    }

    async fn ask(&self, work: &Work) -> Result<Answer> {
        let reply = match Connection::open(self.address).await {
            Ok(mut connection) => connection.exchange(work.request.clone()).await,
            Err(error) => Err(error),
        };
        match reply {
            // What a server says that still loads, or has not even looked what there is to load.
            Ok(reply) if NOT_YET.contains(&reply.status) => Ok(Answer::NotYet(reply.excerpt())),
            Ok(reply) => work.expect.judge(&reply, true).map(|()| Answer::Right),
            Err(error) => Ok(Answer::NotYet(error.to_string())),
        }
    }

    /// What the protocol's statistics say of a model. A server that has none says nothing.
    pub(crate) async fn runs(&self, model: &str) -> Result<Runs> {
        let request = Request::get(format!("/v2/models/{model}/stats"))
            .header(HOST, "localhost")
            .body(Full::new(Bytes::new()))?;
        let reply = Connection::open(self.address).await?.exchange(request).await?;
        if reply.status != StatusCode::OK {
            return Ok(Runs::default());
        }
        let statistics: Statistics = serde_json::from_slice(&reply.body)?;
        Ok(statistics.model_stats.into_iter().next().unwrap_or_default())
    }

    /// Tells the server to end, and kills it when it does not.
    pub(crate) async fn stop(mut self) -> Result<()> {
        // None when its end has been noticed already: the id may be somebody else's by now.
        let process = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(process) = process {
            kill_process(process, Signal::TERM).context("SIGTERM to the server")?;
        }
        match timeout(STOP_LIMIT, self.child.wait()).await {
            Ok(ended) => {
                let status = ended?;
                if !status.success() {
                    bail!("the server ended with {status}\n{}", last_words(&self.log));
                }
            }
            Err(_) => {
                self.child.kill().await?;
                bail!("the server did not end on SIGTERM\n{}", last_words(&self.log));
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Statistics {
    model_stats: Vec<Runs>,
}

/// Rows that were predicted, and runs that it took, since the model was loaded.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(crate) struct Runs {
    #[serde(rename = "inference_count")]
    rows: u64,
    #[serde(rename = "execution_count")]
    runs: u64,
}

impl Runs {
    /// Rows in a run since `before`; `None` if there was none.
    pub(crate) fn since(self, before: Runs) -> Option<f64> {
        let runs = self.runs.checked_sub(before.runs).filter(|runs| *runs > 0)?;
        Some(self.rows.checked_sub(before.rows)? as f64 / runs as f64)
    }
}

enum Answer {
    Right,
    NotYet(String),
}

/// Reads the server's lines up to those that name its addresses, and goes on reading in the background: a full pipe
/// would stop the server.
///
/// # Errors
/// When it ends before it has said where it listens, or listens elsewhere than on loopback.
pub async fn announced(
    stdout: impl AsyncRead + Unpin + Send + 'static,
) -> Result<(SocketAddr, SocketAddr)> {
    let mut lines = BufReader::new(stdout).lines();
    let (mut http, mut management) = (None, None);
    while let Some(line) = lines.next_line().await? {
        for (what, found) in [("http", &mut http), ("management", &mut management)] {
            if let Some(address) = address_of(what, &line) {
                *found = Some(loopback(address)?);
            }
        }
        if let (Some(http), Some(management)) = (http, management) {
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok((http, management));
        }
    }
    bail!("the server has ended before it listened")
}

/// The address in a line such as `http      http://127.0.0.1:8000`.
fn address_of<'a>(what: &str, line: &'a str) -> Option<&'a str> {
    let (found, address) = line.split_once(char::is_whitespace)?;
    if found == what { address.trim().strip_prefix("http://") } else { None }
}

/// Load is made here and stays here: a slip of the keyboard must not become an attack on somebody's server.
pub(crate) fn loopback(address: &str) -> Result<SocketAddr> {
    let parsed: SocketAddr = address
        .strip_prefix("http://")
        .unwrap_or(address)
        .trim_end_matches('/')
        .parse()
        .with_context(|| format!("not an address such as http://127.0.0.1:8000: {address:?}"))?;
    if !parsed.ip().is_loopback() {
        bail!("{parsed} is not on loopback: this program loads nothing but its own machine");
    }
    Ok(parsed)
}

fn last_words(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
    if shown.is_empty() {
        "the server has logged nothing".to_owned()
    } else {
        format!("the last lines of the server's log:\n  {}", shown.join("\n  "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_name_the_address() {
        let http = |line| address_of("http", line);
        assert_eq!(http("http      http://127.0.0.1:40123"), Some("127.0.0.1:40123"));
        assert_eq!(http("management http://127.0.0.1:1"), None);
        assert_eq!(address_of("management", "management http://127.0.0.1:1"), Some("127.0.0.1:1"));
        assert_eq!(http("http"), None);
        assert_eq!(http("http unix:/run/balm.sock"), None);
    }

    #[test]
    fn nothing_but_loopback() {
        assert_eq!(loopback("127.0.0.1:80/").unwrap().port(), 80);
        assert_eq!(loopback("http://127.0.0.1:80").unwrap().port(), 80);
        assert_eq!(loopback("[::1]:80").unwrap().port(), 80);
        for elsewhere in ["0.0.0.0:80", "10.0.0.1:80", "[2001:db8::1]:80", "[::ffff:10.0.0.1]:80"] {
            let error = loopback(elsewhere).unwrap_err().to_string();
            assert!(error.contains("is not on loopback"), "{error}");
        }
        assert!(loopback("localhost:80").is_err() && loopback("example.org:80").is_err());
    }

    #[test]
    fn rows_of_a_run_are_of_the_time_between() {
        let of = |rows, runs| Runs { rows, runs };
        assert_eq!(of(130, 20).since(of(10, 10)), Some(12.0));
        assert_eq!(of(10, 10).since(of(10, 10)), None);
        assert_eq!(of(5, 5).since(of(10, 10)), None, "loaded again meanwhile");
    }

    #[tokio::test]
    async fn the_address_is_read_off_the_output() {
        let output: &[u8] =
            b"balm 0.1.0\nhttp      http://127.0.0.1:5\nmanagement http://127.0.0.1:6\n";
        let (http, management) = announced(output).await.unwrap();
        assert_eq!((http.port(), management.port()), (5, 6));
        let error =
            announced(&b"balm 0.1.0\nhttp      http://127.0.0.1:5\n"[..]).await.unwrap_err();
        assert_eq!(error.to_string(), "the server has ended before it listened");
    }

    fn settings(folder: &Path, program: &str) -> Settings {
        Settings {
            program: program.into(),
            library: "lib.so".into(),
            repository: folder.into(),
            lanes: Some(2),
            config: None,
            log: folder.join("log"),
        }
    }

    #[tokio::test]
    async fn a_program_that_is_no_server() {
        let folder = tempfile::tempdir().unwrap();
        let error = Server::start(&settings(folder.path(), "/bin/true")).await.err().unwrap();
        assert!(format!("{error:#}").contains("ended before it listened"), "{error:#}");
        let error = Server::start(&settings(folder.path(), "/no/such")).await.err().unwrap();
        assert!(error.to_string().contains("/no/such"), "{error:#}");
    }

    #[test]
    fn the_log_ends_with_what_matters() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        assert_eq!(last_words(&log), "the server has logged nothing");
        let lines: Vec<String> = (0..20).map(|line| format!("line {line}")).collect();
        fs::write(&log, lines.join("\n")).unwrap();
        assert!(!last_words(&log).contains("line 7\n") && last_words(&log).ends_with("line 19"));
    }
}
