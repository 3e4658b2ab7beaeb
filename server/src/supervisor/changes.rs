//! Whether anything has changed since a server was parked: what it was told, or what it was to serve.

use crate::config::Config;
use crate::library;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Files that are looked at.
const FILES_MAX: usize = 4096;
/// Folders below the repository: models, versions, and what lies beside a model.
const DEPTH_MAX: usize = 3;

/// Remembers how files looked: names, sizes and times, never contents.
#[derive(Debug)]
pub(super) struct Changes {
    watched: Vec<PathBuf>,
    remembered: u64,
    look_after: Option<Instant>,
}

impl Changes {
    pub(super) fn new(config: &Config) -> Self {
        let mut watched = vec![config.repository.path.clone()];
        watched.extend(config.file.clone());
        watched.push(library::find(config.onnxruntime.library.as_deref()));
        Changes { watched, remembered: 0, look_after: None }
    }

    /// This is how it looks now.
    pub(super) fn remember(&mut self) {
        self.remembered = self.look();
    }

    /// Whether it looks otherwise now. Looks from time to time only.
    pub(super) fn found(&mut self, now: Instant) -> bool {
        if self.look_after.is_some_and(|after| now < after) {
            return false;
        }
        self.look_after = Some(now + LOOK_EVERY);
        self.look() != self.remembered
    }

    fn look(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let mut left = FILES_MAX;
        for path in &self.watched {
            look_at(path, DEPTH_MAX, &mut left, &mut hasher);
        }
        hasher.finish()
    }
}

fn look_at(path: &Path, depth: usize, left: &mut usize, hasher: &mut DefaultHasher) {
    if *left == 0 {
        return;
    }
    *left -= 1;
    path.hash(hasher);
    // A volume of Kubernetes is a link to the folder of the moment.
    let Ok(found) = fs::metadata(path) else { return };
    (found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()).hash(hasher);
    if !found.is_dir() || depth == 0 {
        return;
    }
    let Ok(entries) = fs::read_dir(path) else { return };
    let mut inside: Vec<PathBuf> =
        entries.take(*left).filter_map(|entry| Some(entry.ok()?.path())).collect();
    inside.sort();
    for path in inside {
        look_at(&path, depth - 1, left, hasher);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_is_a_change_and_looking_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("iris/1");
        fs::create_dir_all(&model).unwrap();
        let mut changes = Changes {
            watched: vec![folder.path().to_owned(), "/nowhere".into()],
            remembered: 0,
            look_after: None,
        };
        changes.remember();
        let now = Instant::now();
        assert!(!changes.found(now));
        fs::write(model.join("model.onnx"), "x").unwrap();
        assert!(!changes.found(now), "not so often");
        assert!(changes.found(now + LOOK_EVERY));
        changes.remember();
        fs::write(model.join("model.onnx"), "xy").unwrap();
        assert!(changes.found(now + 2 * LOOK_EVERY));
    }
}
