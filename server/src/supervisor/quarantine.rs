//! The supervisor's memory of versions that did harm: what is remembered is decided in [`balm_probes::quarantine`], where it lies
//! between two supervisors is here.
//!
//! Beside the crash journal, where one is configured, as JSON. A file that cannot be read or written costs the memory of earlier
//! supervisors, not the server.

use super::desk::unix_ms;
use super::journal;
use balm_probes::{Cause, HealthReport, Quarantine, Quarantined};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Added to the name of the crash journal.
const SUFFIX: &str = ".quarantine";

/// See the module.
#[derive(Debug)]
pub(crate) struct Ward {
    path: Option<PathBuf>,
    quarantine: Quarantine,
    /// The report that was looked at last.
    seen: Option<Arc<HealthReport>>,
}

impl Ward {
    /// With what an earlier supervisor remembered, where there is a crash journal.
    pub(crate) fn open(crash_journal: Option<&Path>) -> Self {
        let path = crash_journal.map(|journal| {
            let mut name = journal.as_os_str().to_owned();
            name.push(SUFFIX);
            PathBuf::from(name)
        });
        let remembered = path.as_deref().map_or_else(Vec::new, |path| {
            let read = journal::read(path)
                .and_then(|text| serde_json::from_str(&text).map_err(io::Error::other));
            read.unwrap_or_else(|error| {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, path = %path.display(), "quarantine not read");
                }
                Vec::new()
            })
        });
        Ward { path, quarantine: Quarantine::new(remembered), seen: None }
    }

    /// What the next worker is not to try.
    pub(crate) fn all(&self) -> &[Quarantined] {
        self.quarantine.all()
    }

    /// The worker said how it stands. `now_ms` is the clock of ticks.
    pub(super) fn saw(&mut self, report: &Arc<HealthReport>, now_ms: u64) {
        if self.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, report)) {
            return;
        }
        self.seen = Some(Arc::clone(report));
        if self.quarantine.saw(report, now_ms, unix_ms()) {
            tracing::warn!(versions = ?self.names(), "quarantined versions");
            self.write();
        }
    }

    /// A worker that stood like this has ended for this cause.
    /// Gives how many were quarantined for it.
    pub(super) fn ended(&mut self, report: &HealthReport, cause: Cause, now_ms: u64) -> usize {
        let found = self.quarantine.crashed(report, cause, now_ms, unix_ms());
        for Quarantined { model, version, digest, reason, .. } in &found {
            tracing::error!(model, version, digest, reason, "version quarantined");
        }
        if !found.is_empty() {
            self.write();
        }
        found.len()
    }

    fn names(&self) -> Vec<String> {
        self.all().iter().map(|one| format!("{}/{}", one.model, one.version)).collect()
    }

    fn write(&self) {
        let Some(path) = &self.path else { return };
        let text = serde_json::to_string(self.all()).unwrap_or_default();
        if let Err(error) = journal::replace(path, &text) {
            tracing::error!(%error, path = %path.display(), "quarantine not written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use balm_probes::{ModelReport, ModelState, VersionReport};
    use std::fs;

    fn report() -> Arc<HealthReport> {
        let mut version = VersionReport::new(2, ModelState::Quarantined);
        version.digest = Some("d".to_owned());
        let model = ModelReport { name: "m".to_owned(), declared: true, versions: vec![version] };
        Arc::new(HealthReport { models: vec![model], ..HealthReport::default() })
    }

    #[test]
    fn what_one_supervisor_remembers_the_next_one_knows() {
        let folder = tempfile::tempdir().unwrap();
        let journal = folder.path().join("journal");
        let mut ward = Ward::open(Some(&journal));
        assert!(ward.all().is_empty());
        let report = report();
        ward.saw(&report, 0);
        ward.saw(&report, 1);
        assert_eq!(ward.names(), ["m/2"]);
        assert_eq!(Ward::open(Some(&journal)).all(), ward.all());
        // A file that makes no sense is none.
        fs::write(folder.path().join("journal.quarantine"), "{").unwrap();
        assert!(Ward::open(Some(&journal)).all().is_empty());
        let mut nowhere = Ward::open(Some(&folder.path().join("no/such/folder")));
        nowhere.saw(&report, 0);
        assert_eq!(nowhere.names(), ["m/2"]);
        let mut unnamed = Ward::open(None);
        unnamed.saw(&report, 0);
        assert_eq!(unnamed.names(), ["m/2"]);
    }
}
