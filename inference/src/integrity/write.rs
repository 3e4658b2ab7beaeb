//! Writing `SHA256SUMS`.

use super::beneath::RootDir;
use super::error::IntegrityError;
use super::manifest::{MANIFEST_FILE, Manifest};
use super::progress::Progress;
use super::read::{Keep, read};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Hashes every file of a version folder and writes its `SHA256SUMS`, all of it or nothing: a temporary file,
/// synced, takes the name by rename.
///
/// `version_dir` is relative to `root`; an empty path means the root itself. Hidden files and the manifest
/// are not listed. Blocks.
///
/// # Errors
/// [`IntegrityError`] when a file cannot be read as a regular one beneath the root, or the folder not be written.
pub fn write_manifest(root: &RootDir, version_dir: &Path) -> Result<Manifest, IntegrityError> {
    let shown = version_dir.display().to_string();
    let mut digests = BTreeMap::new();
    for name in root.files(version_dir, &shown)? {
        if name == MANIFEST_FILE {
            continue;
        }
        let path = version_dir.join(&name);
        let file = path.display().to_string();
        let open = root.open_file(&path).map_err(|error| error.of(&file, "the folder"))?;
        let (_, digest) = read(open, &file, Keep::Nothing, &Progress::default())?;
        digests.insert(name, digest);
    }
    let target = version_dir.join(MANIFEST_FILE).display().to_string();
    let manifest = Manifest::new(digests)
        .map_err(|source| IntegrityError::Manifest { file: target.clone(), source })?;
    replace(&root.path().join(version_dir), manifest.to_text().as_bytes())
        .map_err(|source| IntegrityError::Io { file: target, operation: "writing", source })?;
    Ok(manifest)
}

fn replace(folder: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = folder.join(format!(".{MANIFEST_FILE}.{}", std::process::id()));
    let written = write_synced(&temporary, text)
        .and_then(|()| fs::rename(&temporary, folder.join(MANIFEST_FILE)));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    File::open(folder)?.sync_all()
}

fn write_synced(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.write_all(text)?;
    file.sync_all()
}
