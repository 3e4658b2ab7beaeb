//! The private folder of a drill: a copy of the models, the faults, the files of the server. Gone with the drill.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::cell::Cell;
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Access for this user alone.
const PRIVATE: u32 = 0o700;
/// A repository is three folders deep; external data may lie deeper.
const DEPTH_MAX: usize = 8;
/// More files than a repository has; against links that lead in a circle.
const FILES_MAX: usize = 20_000;

/// See the module.
pub(super) struct Stage {
    folder: TempDir,
    placed: Cell<u32>,
}

/// A fault that was placed.
pub(super) struct Placed {
    file: PathBuf,
    trace: PathBuf,
}

impl Stage {
    /// Makes the folder and copies the repository into it, once: no fault reaches the one that is copied.
    pub(super) fn build(repository: &Path) -> Result<Stage> {
        let folder = tempfile::Builder::new()
            .prefix("balm-drill-")
            .permissions(Permissions::from_mode(PRIVATE))
            .tempdir()
            .context("no temporary folder")?;
        let stage = Stage { folder, placed: Cell::new(0) };
        copy(repository, &stage.models(), DEPTH_MAX, &Cell::new(FILES_MAX))?;
        Ok(stage)
    }

    /// The copy of the repository.
    pub(super) fn models(&self) -> PathBuf {
        self.folder.path().join("models")
    }

    /// A file of the private server.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An empty folder of faults, for the next card.
    pub(super) fn faults(&self) -> Result<PathBuf> {
        let folder = self.folder.path().join("faults");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        DirBuilder::new().mode(PRIVATE).create(&folder)?;
        Ok(folder)
    }

    /// Places a fault, whole.
    pub(super) fn place(&self, fault: &Value) -> Result<Placed> {
        self.placed.set(self.placed.get() + 1);
        let name = format!("{:04}", self.placed.get());
        let folder = self.folder.path().join("faults");
        let new = folder.join(format!(".{name}.new"));
        let file = folder.join(format!("{name}.json"));
        fs::write(&new, fault.to_string())?;
        fs::rename(new, &file)?;
        Ok(Placed { trace: folder.join("done").join(format!("{name}.1")), file })
    }
}

impl Placed {
    /// Whether it has happened at least once.
    pub(super) fn happened(&self) -> bool {
        self.trace.exists()
    }

    /// Takes it away.
    pub(super) fn end(&self) {
        let _ = fs::remove_file(&self.file);
    }
}

/// Copies a folder; what links lead to becomes a file of the copy. Hidden entries are no part of a repository.
pub(super) fn copy(from: &Path, to: &Path, depth: usize, files_left: &Cell<usize>) -> Result<()> {
    let at = || from.display().to_string();
    if depth == 0 {
        bail!("{}: folders lie deeper than {DEPTH_MAX} here", at());
    }
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in fs::read_dir(from).with_context(at)? {
        let path = entry.with_context(at)?.path();
        let Some(name) = path.file_name() else { continue };
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // A link that leads nowhere is none of ours to judge.
        let Ok(found) = fs::metadata(&path) else { continue };
        if found.is_dir() {
            copy(&path, &to.join(name), depth - 1, files_left)?;
        } else if found.is_file() {
            let left = files_left.get().checked_sub(1);
            files_left.set(left.with_context(|| format!("more than {FILES_MAX} files"))?);
            fs::copy(&path, to.join(name)).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Copies the folder of a version.
pub(super) fn copy_version(from: &Path, to: &Path) -> Result<()> {
    copy(from, to, DEPTH_MAX, &Cell::new(FILES_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_copy_is_a_copy_and_is_removed() {
        let original = tempfile::tempdir().unwrap();
        let version = original.path().join("m/1");
        fs::create_dir_all(&version).unwrap();
        fs::write(version.join("model.onnx"), "onnx").unwrap();
        symlink("model.onnx", version.join("link.onnx")).unwrap();
        symlink("nowhere", version.join("broken")).unwrap();
        fs::create_dir(original.path().join(".hidden")).unwrap();
        let stage = Stage::build(original.path()).unwrap();
        let copied = stage.models().join("m/1/model.onnx");
        fs::write(&copied, "other").unwrap();
        assert_eq!(fs::read(version.join("model.onnx")).unwrap(), b"onnx");
        assert_eq!(fs::read(stage.models().join("m/1/link.onnx")).unwrap(), b"onnx");
        assert!(!stage.models().join(".hidden").exists());
        let mode = fs::metadata(stage.models().parent().unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, PRIVATE);
        let folder = stage.folder.path().to_owned();
        drop(stage);
        assert!(!folder.exists());
    }

    #[test]
    fn links_in_a_circle_are_an_error() {
        let original = tempfile::tempdir().unwrap();
        symlink(".", original.path().join("again")).unwrap();
        assert!(Stage::build(original.path()).is_err());
    }
}
