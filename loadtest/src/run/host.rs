//! The server of a run: one that is there, or one that is started for it; and what this process needs of its host.

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

use crate::cli::TargetArgs;
use crate::run::progress::Progress;
use crate::target::{Server, Settings, loopback};

/// Files beside the connections.
const FILES_MORE: u64 = 128;
const TARGET: &str = "http://127.0.0.1:8000";

/// The server that is asked.
pub(crate) enum Host {
    /// Somebody else's.
    There { address: SocketAddr, management: SocketAddr },
    /// Of this run.
    Own { server: Box<Server>, _folder: Option<TempDir> },
}

impl Host {
    /// Looks where it is, or starts it.
    pub(crate) async fn find(args: &TargetArgs, progress: &Progress) -> Result<Host> {
        let Some(program) = &args.serve else {
            let address = loopback(args.target.as_deref().unwrap_or(TARGET)).context("--target")?;
            let management = match &args.management {
                Some(management) => loopback(management).context("--management")?,
                None => address,
            };
            return Ok(Host::There { address, management });
        };
        for (file, remedy) in
            [(program, "`make build` builds it"), (&args.library, "`make ort` brings it")]
        {
            if !file.is_file() {
                bail!("{} is missing: {remedy}", file.display());
            }
        }
        progress.step("starting the server");
        let (log, folder) = match &args.server_log {
            Some(log) => (log.clone(), None),
            None => {
                let folder = tempfile::Builder::new().prefix("balm-loadtest-").tempdir()?;
                (folder.path().join("server.log"), Some(folder))
            }
        };
        let settings = Settings {
            program: program.clone(),
            library: fs::canonicalize(&args.library)?,
            repository: args.models.clone().context("--models is missing")?,
            lanes: None,
            config: args.config.clone(),
            log,
        };
        let server = Box::new(Server::start(&settings).await?);
        Ok(Host::Own { server, _folder: folder })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Host::There { address, .. } => *address,
            Host::Own { server, .. } => server.address(),
        }
    }

    /// Where probes are answered.
    pub(crate) fn management(&self) -> SocketAddr {
        match self {
            Host::There { management, .. } => *management,
            Host::Own { server, .. } => server.management(),
        }
    }

    /// How it has ended, if that can be known.
    pub(crate) fn ended(&mut self) -> Option<String> {
        match self {
            Host::There { .. } => None,
            Host::Own { server, .. } => server.ended(),
        }
    }

    /// The error with what the server says of it.
    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        match self {
            Host::There { .. } => error,
            Host::Own { server, .. } => anyhow::anyhow!("{error:#}\n{}", server.last_words()),
        }
    }

    /// Ends a server of this run; one that is dead already was told of.
    pub(crate) async fn stop(mut self) -> Result<()> {
        if self.ended().is_some() {
            return Ok(());
        }
        match self {
            Host::There { .. } => Ok(()),
            Host::Own { server, .. } => server.stop().await,
        }
    }
}

/// Makes sure that a result can be written before it is worked for.
pub(crate) fn check_writable(file: &Path) -> Result<()> {
    let opened = OpenOptions::new().append(true).create(true).open(file);
    opened.map(drop).with_context(|| file.display().to_string())
}

/// Allows as many open files as there may be connections.
pub(crate) fn allow_files(connections: usize) -> Result<()> {
    let wanted = connections as u64 + FILES_MORE;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|most| most < wanted) {
        bail!(
            "client.max_outstanding: {wanted} open files may be needed, and the limit is {} (ulimit -Hn)",
            limit.maximum.unwrap_or_default()
        );
    }
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).context("the limit of open files")
}
