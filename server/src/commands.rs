//! What the subcommands do, and how each ends.

use crate::app::{self, App, AppError, Core, Front};
use crate::banner::{self, print};
use crate::cli::{CheckArgs, DrillArgs, ManifestArgs, ServeArgs};
use crate::config::{Config, Flag};
use crate::drill::{self, Drilled};
use crate::exit::Exit;
use crate::host::Host;
use crate::listeners::Listeners;
use crate::logs::Process;
use crate::supervisor::{self, Supervisor, Suspects, Ward};
use crate::worker::Worker;
use crate::{environment, library, logs};
use balm_inference::engine::EngineError;
use balm_inference::engine::rehearsal::Faults;
use balm_inference::integrity::{RootDir, write_manifest};
use balm_inference::repository::parse_version;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `balm serve`: until SIGTERM or SIGINT. As a supervisor, as its worker, or as the one process that there is.
pub fn serve(arguments: &ServeArgs) -> Exit {
    let (config, host) = match configured(arguments.config.as_deref(), arguments.flags()) {
        Ok(found) => found,
        Err(exit) => return exit,
    };
    let faults = match arguments.rehearsal.as_deref().map(Faults::open).transpose() {
        Ok(faults) => faults.map(Arc::new),
        Err(error) => return fail(Exit::Usage, &error.to_string()),
    };
    let ended = match (arguments.worker, config.lifecycle.single_process) {
        (true, _) => work(config, &host, faults),
        (false, false) => supervise(&config, faults.is_some()),
        (false, true) => {
            environment::settle();
            serve_alone(config, &host, faults)
        }
    };
    ended.unwrap_or_else(|error| fail(exit_of(&error), &chain(&error)))
}

type Rehearsed = Option<Arc<Faults>>;

fn serve_alone(config: Config, host: &Host, faults: Rehearsed) -> Result<Exit, AppError> {
    let _log = logs::init(&config.log, None)?;
    warn_of(faults.is_some());
    let engine = app::start_engine(&config)?;
    let Listeners { data, management } = Listeners::open(&config)?;
    Ok(App::build(config, host, engine, data, Front::Management(management), faults)?.run())
}

fn work(config: Config, host: &Host, faults: Rehearsed) -> Result<Exit, AppError> {
    let log = logs::init(&config.log, Some(Process::Worker))?;
    if let Some(code) = faults.as_ref().and_then(|faults| faults.end_at_start()) {
        drop(log);
        signal_hook::low_level::exit(i32::from(code));
    }
    let engine = app::start_engine(&config)?;
    let (worker, data) = Worker::begin(config.lifecycle.drain_timeout)?;
    Ok(App::build(config, host, engine, data, Front::Supervisor(worker), faults)?.run())
}

/// Nobody is to take such a server for one that can be relied on.
fn warn_of(rehearsal: bool) {
    if rehearsal {
        tracing::warn!("this server fails on command (--rehearsal): it is for tests and drills");
    }
}

fn supervise(config: &Config, rehearsal: bool) -> Result<Exit, AppError> {
    let Listeners { data, management } = Listeners::open(config)?;
    // As process 1 a signal that nobody heeds is lost.
    let signals = supervisor::Signals::heed().map_err(AppError::Signals)?;
    // The worker, then all else: it has the longest way to go.
    let suspects = Suspects::new();
    let ward = Ward::open(config.lifecycle.crash_journal.as_deref());
    let first = supervisor::spawn(&data, 1, &suspects, ward.all()).map_err(AppError::Thread)?;
    let _log = logs::init(&config.log, Some(Process::Supervisor))?;
    warn_of(rehearsal);
    Ok(Supervisor::new(config, data, management, signals, first, suspects, ward)?.run())
}

/// `balm check`: reads, hashes, loads and probes every model as `serve` would, and serves nothing.
pub fn check(arguments: &CheckArgs) -> Exit {
    environment::settle();
    let (config, host) = match configured(arguments.config.as_deref(), arguments.flags()) {
        Ok(found) => found,
        Err(exit) => return exit,
    };
    print(&config.describe());
    print("\n");
    print(&host_lines(&host));
    if let Some(warning) = host.too_many_connections(config.http.max_connections as u64) {
        print(&format!("warning        {warning}\n"));
    }
    let _log = match logs::init(&config.log, None) {
        Ok(guard) => guard,
        Err(error) => return fail(Exit::Usage, &error.to_string()),
    };
    let library = library::find(config.onnxruntime.library.as_deref());
    print(&format!("ONNX Runtime   {}\n\n", library.display()));
    let core = app::start_engine(&config).and_then(|engine| Core::build(&config, engine, None));
    let core = match core {
        Ok(core) => core,
        Err(error) => return fail(exit_of(&error), &chain(&error)),
    };
    if let Err(error) = core.started() {
        return fail(exit_of(&error), &chain(&error));
    }
    if let Err(error) = core.models.load_all() {
        return fail(Exit::Io, &error.to_string());
    }
    let report = core.models.report();
    print(&banner::models(&report));
    let refused = report
        .models
        .iter()
        .filter(|model| {
            model.versions.is_empty()
                || model.versions.iter().any(|version| {
                    use balm_probes::ModelState as S;
                    matches!(version.state, S::Failed | S::Quarantined)
                })
        })
        .count();
    match (report.models.len(), refused) {
        (0, _) => fail(Exit::Integrity, "the repository holds no model"),
        (_, 0) => Exit::Drained,
        (all, refused) => fail(
            Exit::Integrity,
            &format!("{refused} of {all} models have a version that is refused"),
        ),
    }
}

/// `balm drill`: plays cards on a private copy of the server.
pub fn drill(arguments: &DrillArgs) -> Exit {
    let (config, _host) = match configured(arguments.config.as_deref(), arguments.flags()) {
        Ok(found) => found,
        Err(exit) => return exit,
    };
    match drill::run(arguments, &config) {
        Ok(Drilled::Passed) => Exit::Drained,
        Ok(Drilled::Failed) => Exit::Failed,
        Ok(Drilled::Interrupted) => {
            fail(Exit::Interrupted, "interrupted; nothing is left of the drill")
        }
        Err(error) => fail(Exit::Usage, &format!("{error:#}")),
    }
}

/// `balm manifest DIR`: writes `SHA256SUMS` for a version folder, or for every one below a model or repository.
pub fn manifest(arguments: &ManifestArgs) -> Exit {
    let folders = match version_folders(&arguments.dir) {
        Ok(folders) if folders.is_empty() => {
            return fail(
                Exit::Usage,
                &format!(
                    "{}: no version folder here or below; one is named by a number and holds model.onnx",
                    arguments.dir.display()
                ),
            );
        }
        Ok(folders) => folders,
        Err(error) => return fail(Exit::Io, &format!("{}: {error}", arguments.dir.display())),
    };
    for folder in folders {
        let written = RootDir::open(&folder).map_err(|error| error.to_string()).and_then(|root| {
            write_manifest(&root, Path::new("")).map_err(|error| error.to_string())
        });
        match written {
            Ok(manifest) => {
                let files = manifest.iter().count();
                print(&format!("{}: {files} files\n", folder.join("SHA256SUMS").display()));
            }
            Err(error) => return fail(Exit::Io, &format!("{}: {error}", folder.display())),
        }
    }
    Exit::Drained
}

fn version_folders(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    /// A repository lies two folders above its versions.
    const DEPTH_MAX: usize = 2;
    fn visit(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
        if folder.join("model.onnx").is_file() {
            found.push(folder.to_owned());
            return Ok(());
        }
        if depth == DEPTH_MAX {
            return Ok(());
        }
        let mut entries: Vec<PathBuf> =
            std::fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        entries.sort();
        for entry in entries.into_iter().filter(|entry| entry.is_dir()) {
            let name = entry.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // Inside a model only the numbered folders count, and those alone hold a model.onnx.
            if !name.starts_with('.') && (depth == 0 || parse_version(name).is_some()) {
                visit(&entry, depth + 1, found)?;
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    visit(folder, 0, &mut found)?;
    Ok(found)
}

fn configured(file: Option<&Path>, flags: Vec<Flag>) -> Result<(Config, Host), Exit> {
    Host::raise_open_files();
    let host = Host::detect();
    match Config::load(file, flags, &host) {
        Ok(config) => Ok((config, host)),
        Err(problems) => Err(fail(Exit::Usage, &problems.to_string())),
    }
}

fn host_lines(host: &Host) -> String {
    let mut text = format!("cores          {} ({})\n", host.cores.value, host.cores.source);
    if let Some(memory) = &host.memory_bytes {
        text.push_str(&format!("memory         {} bytes ({})\n", memory.value, memory.source));
    }
    if let Some(files) = &host.open_files {
        text.push_str(&format!("open files     {} ({})\n", files.value, files.source));
    }
    text
}

fn exit_of(error: &AppError) -> Exit {
    match error {
        AppError::Engine(EngineError::Library { .. } | EngineError::Start { .. }) => Exit::Library,
        AppError::Engine(_) => Exit::Library,
        AppError::Repository(_)
        | AppError::Listen(_)
        | AppError::Management { .. }
        | AppError::Signals(_)
        | AppError::Inherited(_)
        | AppError::Thread(_) => Exit::Io,
        AppError::Metrics(_) | AppError::Log(_) | AppError::Worker(_) => Exit::Usage,
    }
}

/// An error and its causes, once, at the top.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let more = source.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = source.source();
    }
    text
}

fn fail(exit: Exit, message: &str) -> Exit {
    let _ = writeln!(std::io::stderr(), "balm: {message}");
    exit
}
