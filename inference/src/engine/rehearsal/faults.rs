//! Faults as files in a private folder, so that they outlive the processes that they end.
//!
//! `NAME.json` is a fault:
//!
//! ```json
//! {"kind": "block", "model": "iris", "times": 2, "ms": 30000}
//! ```
//!
//! | kind | what happens | fields |
//! |---|---|---|
//! | `block`, `spin` | a run waits, or computes, for `ms`, whoever cancels it | `ms`: 600000 |
//! | `slow_run` | a run takes `ms` longer, or `ms_per_row` for each of its rows | `ms`: 1000 |
//! | `error`, `sticky` | a run fails; as a GPU does that needs another process | |
//! | `wrong` | the answers are others | |
//! | `leak` | a run keeps `bytes` for ever | `bytes`: 1048576 |
//! | `panic` | a run panics | |
//! | `signal` | the process sends itself a signal in a run | `signal`: SIGSEGV, SIGABRT, SIGKILL or SIGSTOP |
//! | `crash_on` | a signal, whenever the first element of an input, or of a row of it, equals `value` | `value`, `signal`: SIGSEGV |
//! | `slow_load`, `hang_load` | a session is built `ms` later | `ms`: 1000, 600000 |
//! | `die_at_start` | a worker ends at once | `code`: 1 |
//!
//! `model`: which one, any. `times`: how often, 1 (`crash_on`: 1000); or `always`: as long as the file is there, of which only the
//! first use leaves a trace. `at`: `lane`, where clients are answered, or `load`; faults
//! of runs happen in lanes and faults of builds anywhere, unless it says so. Each use is claimed by creating `done/NAME.N`, which only
//! one can, whatever becomes of it: N counts from 1. After the last one `NAME.json` goes. What cannot be read is taken away, with
//! the reason in `done/NAME.refused`. Whoever places a fault writes another name first and renames it.

use super::act::Act;
use super::fault::{Fault, Times};
use parking_lot::Mutex;
use rustix::process::geteuid;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Faults that are looked at in one folder.
const FAULTS_MAX: usize = 64;
/// The longest file of a fault.
const FAULT_BYTES_MAX: u64 = 4096;
/// Below the folder: what was claimed.
const DONE: &str = "done";
/// Access that makes a folder private.
const PRIVATE: u32 = 0o700;

/// This folder is none for a rehearsal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RehearsalError {
    /// Somebody else could place faults there, or it is no folder.
    #[error(
        "--rehearsal {folder}: faults are taken only from a folder of this user's own with mode 0700; this is {found}"
    )]
    NotPrivate {
        /// As it was given.
        folder: String,
        /// What it is instead.
        found: String,
    },
    /// It cannot be used.
    #[error("--rehearsal {folder}: {source}")]
    Io {
        /// As it was given.
        folder: String,
        /// What the system said.
        source: io::Error,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Faults {
    folder: PathBuf,
    kept: Mutex<Vec<Vec<u8>>>,
}

impl Faults {
    /// The faults in `folder`, those of now and those to come.
    ///
    /// # Errors
    /// [`RehearsalError`], when it is not a folder of this user alone.
    pub fn open(folder: &Path) -> Result<Self, RehearsalError> {
        let name = || folder.display().to_string();
        let io = |source| RehearsalError::Io { folder: name(), source };
        let found = fs::symlink_metadata(folder).map_err(io)?;
        if let Some(found) = objection(&found, geteuid().as_raw()) {
            return Err(RehearsalError::NotPrivate { folder: name(), found });
        }
        let done = folder.join(DONE);
        match fs::create_dir(&done) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(io(error)),
            _ => {}
        }
        Ok(Faults { folder: folder.to_owned(), kept: Mutex::default() })
    }

    /// How a worker is to end at its start, if it is.
    pub fn end_at_start(&self) -> Option<u8> {
        self.claim(Fault::is_for_start).into_iter().find_map(|act| match act {
            Act::End(code) => Some(code),
            _ => None,
        })
    }

    /// What is to happen now: one use of each fault that `is_meant`.
    pub(super) fn claim(&self, is_meant: impl Fn(&Fault) -> bool) -> Vec<Act> {
        let mut acts = Vec::new();
        for (name, file) in self.placed() {
            let Some(fault) = self.read(&name, &file) else { continue };
            if is_meant(&fault) && self.take(&name, &file, fault.times) {
                acts.push(fault.act);
            }
        }
        acts
    }

    /// Keeps memory for ever, all of it resident.
    pub(super) fn keep(&self, bytes: usize) {
        self.kept.lock().push(vec![1; bytes]);
    }

    #[cfg(test)]
    pub(super) fn kept_bytes(&self) -> usize {
        self.kept.lock().iter().map(Vec::len).sum()
    }

    /// Files of faults by name.
    fn placed(&self) -> Vec<(String, PathBuf)> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::error!(%error, "rehearsal: folder not read");
                return Vec::new();
            }
        };
        let named = entries.filter_map(|entry| {
            let file = entry.ok()?.path();
            let name = file.file_stem().and_then(OsStr::to_str)?.to_owned();
            (file.extension() == Some(OsStr::new("json"))).then_some((name, file))
        });
        let mut found: Vec<_> = named.take(FAULTS_MAX).collect();
        found.sort();
        found
    }

    /// A fault, unless its file is gone again or says nothing that can be done.
    fn read(&self, name: &str, file: &Path) -> Option<Fault> {
        let mut text = Vec::new();
        File::open(file).ok()?.take(FAULT_BYTES_MAX).read_to_end(&mut text).ok()?;
        match Fault::parse(&text) {
            Ok(fault) => Some(fault),
            Err(reason) => {
                tracing::error!(fault = name, reason, "rehearsal: fault refused");
                let _ = fs::write(self.folder.join(DONE).join(format!("{name}.refused")), reason);
                let _ = fs::remove_file(file);
                None
            }
        }
    }

    /// Takes one of its `times`, if one is left. Only one of all threads and processes gets each.
    fn take(&self, name: &str, file: &Path, times: Times) -> bool {
        let times = match times {
            Times::Limited(times) => times,
            Times::Always => {
                let _ = self.claim_one(name, 1);
                return true;
            }
        };
        for number in 1..=times {
            match self.claim_one(name, number) {
                Ok(()) if number == times => {
                    let _ = fs::remove_file(file);
                    return true;
                }
                Ok(()) => return true,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => {
                    tracing::error!(fault = name, %error, "rehearsal: fault not claimed");
                    return false;
                }
            }
        }
        // Whoever took the last one has been ended by it before the file was gone.
        let _ = fs::remove_file(file);
        false
    }

    /// Creates the trace of a use, which only one can.
    fn claim_one(&self, name: &str, number: u32) -> io::Result<()> {
        let trace = self.folder.join(DONE).join(format!("{name}.{number}"));
        let created = OpenOptions::new().write(true).create_new(true).open(trace);
        created.map(|_file| tracing::warn!(fault = name, number, "rehearsal: failing as told"))
    }
}

/// What is wrong with a folder in which `user` would look for faults.
fn objection(found: &Metadata, user: u32) -> Option<String> {
    let mode = found.mode() & 0o7777;
    if found.is_symlink() {
        Some("a symbolic link".to_owned())
    } else if !found.is_dir() {
        Some("no folder".to_owned())
    } else if found.uid() != user {
        Some(format!("a folder of user {}", found.uid()))
    } else if mode != PRIVATE {
        Some(format!("a folder with mode {mode:04o}"))
    } else {
        None
    }
}
