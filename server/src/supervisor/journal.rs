//! Files for the next one who looks: the journal of ends for the next supervisor, the termination log for a person.
//!
//! The journal is a text of JSON lines, one for each time that a server gave up. It is written whole under another name
//! and renamed, so that it is never half there. A journal that cannot be read or written costs parking, not the server.

use crate::exit::Exit;
use balm_probes::flight::Involved;
use balm_probes::{Cause, Fatality};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Entries that are kept.
const ENTRIES_MAX: usize = 64;
/// Bytes that are read, whatever lies there.
const JOURNAL_BYTES_MAX: u64 = 64 * 1024;

/// A server gave up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// When, in milliseconds of Unix time.
    at_ms: u64,
    reason: Cause,
    /// Requests that the last end is held against, some of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    requests: Vec<Involved>,
}

/// The journal, if one is configured.
#[derive(Debug)]
pub(super) struct Journal {
    path: Option<PathBuf>,
    entries: Vec<Entry>,
}

impl Journal {
    /// Reads what earlier servers wrote. What is not understood is left out.
    pub(super) fn open(path: Option<PathBuf>) -> Self {
        let entries = path.as_deref().map_or_else(Vec::new, |path| match read(path) {
            Ok(text) => text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "crash journal not read");
                Vec::new()
            }
        });
        Journal { path, entries }
    }

    /// The ends that it knows, as seen at `now_ms`. One from the future has just been.
    pub(super) fn fatalities(&self, now_ms: u64) -> Vec<Fatality> {
        let fatality = |entry: &Entry| Fatality {
            cause: entry.reason,
            age_ms: now_ms.saturating_sub(entry.at_ms),
        };
        self.entries.iter().map(fatality).collect()
    }

    /// Adds an end.
    pub(super) fn record(&mut self, reason: Cause, requests: &[Involved], at_ms: u64) {
        self.entries.push(Entry { at_ms, reason, requests: requests.to_vec() });
        let surplus = self.entries.len().saturating_sub(ENTRIES_MAX);
        self.entries.drain(..surplus);
        let Some(path) = &self.path else { return };
        let lines: Vec<String> =
            self.entries.iter().filter_map(|entry| serde_json::to_string(entry).ok()).collect();
        if let Err(error) = replace(path, &(lines.join("\n") + "\n")) {
            tracing::error!(%error, path = %path.display(), "crash journal not written");
        }
    }
}

/// What lies there, as far as it may be read.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let mut text = Vec::new();
    File::open(path)?.take(JOURNAL_BYTES_MAX).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Writes it whole under another name, and renames.
pub(super) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// Why a server ended, for a person or a controller.
#[derive(Debug, Serialize)]
pub(super) struct Reason<'a> {
    /// The word of the exit code.
    pub(super) exit: &'a str,
    /// The exit code.
    pub(super) code: u8,
    /// Why the last worker was given up, if the supervisor did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<Cause>,
    /// The last worker's end, as the kernel tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_worker: Option<&'a str>,
    /// Requests that its end is held against, some of them.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) requests: &'a [Involved],
    /// Workers that were started.
    pub(super) workers_started: u64,
    /// When, in milliseconds of Unix time.
    pub(super) at_ms: u64,
}

/// Writes the termination log, where one is configured and the end was not asked for.
pub(super) fn tell(path: Option<&Path>, exit: Exit, reason: &Reason<'_>) {
    let Some(path) = path.filter(|_| exit != Exit::Drained) else { return };
    let text = serde_json::to_string(reason).unwrap_or_default();
    // In place: Kubernetes mounts this very file.
    if let Err(error) = fs::write(path, text) {
        tracing::warn!(%error, path = %path.display(), "termination log not written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn involved() -> Involved {
        let (model, hash) = ("iris".to_owned(), "00ff".to_owned());
        Involved { model, version: 1, hash, crashes: 2 }
    }

    #[test]
    fn what_one_server_writes_the_next_one_knows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut journal = Journal::open(Some(path.clone()));
        assert_eq!(journal.fatalities(0), []);
        journal.record(Cause::Hang, &[], 1_000);
        journal.record(Cause::Segv, &[involved()], 5_000);
        let next = Journal::open(Some(path.clone()));
        let expected = [
            Fatality { cause: Cause::Hang, age_ms: 3_000 },
            Fatality { cause: Cause::Segv, age_ms: 0 },
        ];
        assert_eq!(next.fatalities(4_000), expected, "a clock that was set back");
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        let named = r#"{"at_ms":5000,"reason":"segv","requests":[{"model":"iris","version":1,"hash":"00ff","crashes":2}]}"#;
        assert_eq!(text.lines().last(), Some(named));
    }

    #[test]
    fn what_is_not_understood_is_left_out_and_the_file_stays_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        fs::write(
            &path,
            b"\xff\xfe\n{\"at_ms\":1,\"reason\":\"hang\"}\n{\"at_ms\":1,\"reason\":\"?\"}\n{",
        )
        .unwrap();
        let mut journal = Journal::open(Some(path.clone()));
        assert_eq!(journal.fatalities(1).len(), 1);
        for at_ms in 0..200 {
            journal.record(Cause::Exit, &[involved(), involved(), involved(), involved()], at_ms);
        }
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), ENTRIES_MAX);
        assert_eq!(Journal::open(Some(path)).fatalities(199).first().unwrap().age_ms, 63);
        let mut nowhere = Journal::open(Some(folder.path().join("no/such/folder")));
        nowhere.record(Cause::Exit, &[], 1);
        assert_eq!(nowhere.fatalities(1).len(), 1);
    }

    #[test]
    fn the_termination_log_is_one_line_of_json_and_not_for_orderly_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let reason = Reason {
            exit: "hang",
            code: 70,
            reason: Some(Cause::Segv),
            last_worker: Some("signal 11"),
            requests: &[],
            workers_started: 6,
            at_ms: 7,
        };
        tell(Some(&path), Exit::Drained, &reason);
        assert!(!path.exists());
        tell(Some(&path), Exit::Hang, &reason);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            r#"{"exit":"hang","code":70,"reason":"segv","last_worker":"signal 11","workers_started":6,"at_ms":7}"#
        );
    }
}
