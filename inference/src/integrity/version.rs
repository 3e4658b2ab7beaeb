//! Reading one version of a model, and trusting it or not.

use super::beneath::RootDir;
use super::digest::Digest;
use super::error::IntegrityError;
use super::manifest::{MANIFEST_BYTES_MAX, MANIFEST_FILE, Manifest, ManifestError, name_problem};
use super::progress::{Progress, ReadPhase};
use super::read::{Keep, Kept, read};
use super::{FileRecord, MODEL_BYTES_MAX, MODEL_FILE, Policy, ReadOptions, VerifiedModel};
use crate::onnx_graph::{self, ExternalTensor, GraphError, GraphSummary};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const NEEDED_BY_MANIFEST: &str = "SHA256SUMS";
const NEEDED_BY_MODEL: &str = "model.onnx (external data)";
const NEEDED_BY_VERSION: &str = "every version";

/// Reads a version of a model in one pass: each file is opened once, beneath the root, and the bytes that
/// were hashed are the bytes that are returned.
///
/// `version_dir` is relative to `root`, for example `iris/1`. Blocks; belongs on a thread of its own.
///
/// Unless the policy is [`Policy::Off`] or there is no manifest, nothing of the model file is parsed before
/// its digest matched, and every file that the manifest lists is read and verified.
///
/// # Errors
/// [`IntegrityError`], the first that is found.
pub fn read_version(
    root: &RootDir,
    version_dir: &Path,
    options: &ReadOptions,
    progress: &Progress,
) -> Result<VerifiedModel, IntegrityError> {
    read_with_hook(root, version_dir, options, progress, || {})
}

/// As [`read_version`]; by `listed` a test changes files between the manifest and the bytes.
pub(super) fn read_with_hook(
    root: &RootDir,
    version_dir: &Path,
    options: &ReadOptions,
    progress: &Progress,
    listed: impl FnOnce(),
) -> Result<VerifiedModel, IntegrityError> {
    progress.enter(ReadPhase::Listing);
    let mut version = Version::open(root, version_dir, options, progress)?;
    let manifest = version.manifest()?;
    if let Some((manifest, _)) = &manifest {
        version.check_listing(manifest)?;
    }
    let manifest = manifest.as_ref();
    listed();

    progress.enter(ReadPhase::Reading);
    if manifest.is_none() {
        version.expect_bytes(MODEL_FILE);
    }
    let Kept::Owned(model) = version.take(MODEL_FILE, manifest, Keep::Owned, NEEDED_BY_VERSION)?
    else {
        return Err(version.missing(MODEL_FILE, NEEDED_BY_VERSION));
    };

    progress.enter(ReadPhase::Inspecting);
    let in_graph = |source| IntegrityError::Graph { file: version.shown(MODEL_FILE), source };
    let graph = onnx_graph::inspect(&model, &options.graph_limits).map_err(in_graph)?;
    let tensors = by_location(&graph);
    check_locations(&tensors, manifest.map(|(manifest, _)| manifest)).map_err(in_graph)?;

    progress.enter(ReadPhase::Reading);
    let mut external = Vec::with_capacity(tensors.len());
    for (location, tensors) in &tensors {
        if manifest.is_none() {
            version.expect_bytes(location);
        }
        let kept = version.take(location, manifest, Keep::Shared, NEEDED_BY_MODEL)?;
        let Kept::Shared(bytes) = kept else {
            return Err(version.missing(location, NEEDED_BY_MODEL));
        };
        for tensor in tensors {
            let source = tensor.check_within(bytes.len() as u64);
            source.map_err(|source| IntegrityError::Graph {
                file: version.shown(MODEL_FILE),
                source,
            })?;
        }
        external.push(((*location).to_owned(), bytes));
    }
    let digest = version.identity(external.iter().map(|(location, _)| location.as_str()));
    let golden = version.golden(manifest, &external)?;
    version.verify_the_rest(manifest)?;

    let graph = graph.facts();
    let Version { files, bytes_read, .. } = version;
    progress.enter(ReadPhase::Done);
    let verified = manifest.is_some();
    Ok(VerifiedModel { model, external, files, digest, verified, golden, graph, bytes_read })
}

/// The files of a version folder, on their way from names to bytes.
struct Version<'a> {
    root: &'a RootDir,
    options: &'a ReadOptions,
    progress: &'a Progress,
    /// As the operator wrote it, for messages.
    shown: String,
    /// With symbolic links resolved.
    real: PathBuf,
    files: BTreeMap<String, FileRecord>,
    bytes_read: u64,
}

impl<'a> Version<'a> {
    fn open(
        root: &'a RootDir,
        version_dir: &Path,
        options: &'a ReadOptions,
        progress: &'a Progress,
    ) -> Result<Self, IntegrityError> {
        let shown = version_dir.display().to_string();
        let real =
            root.resolve_directory(version_dir).map_err(|error| match error.of(&shown, "") {
                IntegrityError::Missing { file, .. } => IntegrityError::NoVersion { folder: file },
                other => other,
            })?;
        let files = BTreeMap::new();
        Ok(Version { root, options, progress, shown, real, files, bytes_read: 0 })
    }

    fn shown(&self, name: &str) -> String {
        if self.shown.is_empty() { name.to_owned() } else { format!("{}/{name}", self.shown) }
    }

    fn missing(&self, name: &str, needed_by: &'static str) -> IntegrityError {
        IntegrityError::Missing { file: self.shown(name), needed_by }
    }

    /// The manifest and the digest of its own bytes; `None` when the policy does not ask or there is none.
    fn manifest(&self) -> Result<Option<(Manifest, Digest)>, IntegrityError> {
        if self.options.policy == Policy::Off {
            return Ok(None);
        }
        // By name, not by opening: a link that leads nowhere must not pass for "no manifest".
        let entries = self.root.entries(&self.real);
        let entries = entries.map_err(|error| error.of(&self.shown, NEEDED_BY_VERSION))?;
        if !entries.iter().any(|name| name == MANIFEST_FILE) {
            return match self.options.policy {
                Policy::Required => Err(IntegrityError::NoManifest { folder: self.shown.clone() }),
                _ => Ok(None),
            };
        }
        let text = self.manifest_text()?;
        let manifest = Manifest::parse(&text).map_err(|source| self.bad_manifest(source))?;
        Ok(Some((manifest, Digest::of(&text))))
    }

    fn manifest_text(&self) -> Result<Vec<u8>, IntegrityError> {
        let file = self.shown(MANIFEST_FILE);
        let open = self.root.open_file(&self.real.join(MANIFEST_FILE));
        let open = open.map_err(|error| error.of(&file, NEEDED_BY_VERSION))?;
        if open.size > MANIFEST_BYTES_MAX {
            return Err(self.bad_manifest(ManifestError::TooLarge { found: open.size }));
        }
        let (kept, _) = read(open, &file, Keep::Owned, &Progress::default())?;
        match kept {
            Kept::Owned(text) => Ok(text),
            _ => Err(self.missing(MANIFEST_FILE, NEEDED_BY_VERSION)),
        }
    }

    fn bad_manifest(&self, source: ManifestError) -> IntegrityError {
        IntegrityError::Manifest { file: self.shown(MANIFEST_FILE), source }
    }

    /// What is present is listed, what is listed is present: told before gigabytes are read.
    fn check_listing(&self, manifest: &Manifest) -> Result<(), IntegrityError> {
        for name in self.root.files(&self.real, &self.shown)? {
            if name != MANIFEST_FILE && manifest.get(&name).is_none() {
                return Err(IntegrityError::NotListed { file: self.shown(&name) });
            }
        }
        if manifest.get(MODEL_FILE).is_none() {
            return match self.root.file_type(&self.real.join(MODEL_FILE)) {
                Ok(_) => Err(IntegrityError::NotListed { file: self.shown(MODEL_FILE) }),
                Err(error) => Err(error.of(&self.shown(MODEL_FILE), NEEDED_BY_VERSION)),
            };
        }
        let mut total = 0u64;
        for (name, _) in manifest.iter() {
            let file = self.shown(name);
            let open = self.root.open_file(&self.real.join(name));
            let open = open.map_err(|error| error.of(&file, NEEDED_BY_MANIFEST))?;
            total = total.saturating_add(open.size);
            self.check_size(name, open.size, total)?;
        }
        self.progress.expect_bytes(total);
        Ok(())
    }

    /// Without a manifest the total is learnt file by file. An absent file is told when it is opened.
    fn expect_bytes(&self, name: &str) {
        if let Ok(open) = self.root.open_file(&self.real.join(name)) {
            self.progress.expect_bytes(open.size);
        }
    }

    fn check_size(&self, name: &str, size: u64, total: u64) -> Result<(), IntegrityError> {
        let file = self.shown(name);
        if name == MODEL_FILE && size > MODEL_BYTES_MAX {
            let reason = "ONNX files end at 2 GiB, larger weights belong into external data";
            return Err(IntegrityError::TooLarge {
                file,
                found: size,
                limit: MODEL_BYTES_MAX,
                reason,
            });
        }
        let limit = self.options.max_bytes;
        if total > limit {
            let reason = "the limit for all files of a version together";
            return Err(IntegrityError::TooLarge { file, found: total, limit, reason });
        }
        Ok(())
    }

    /// Reads, hashes and verifies one file.
    fn take(
        &mut self,
        name: &str,
        manifest: Option<&(Manifest, Digest)>,
        keep: Keep,
        needed_by: &'static str,
    ) -> Result<Kept, IntegrityError> {
        let file = self.shown(name);
        let open = self.root.open_file(&self.real.join(name));
        let open = open.map_err(|error| error.of(&file, needed_by))?;
        let size = open.size;
        self.check_size(name, size, self.bytes_read.saturating_add(size))?;
        if size == 0 && keep != Keep::Nothing {
            return Err(IntegrityError::Empty { file });
        }
        let (kept, found) = read(open, &file, keep, self.progress)?;
        if let Some((manifest, manifest_digest)) = manifest {
            match manifest.get(name) {
                Some(expected) if expected == found => {}
                Some(expected) => {
                    return Err(self.mismatch(file, expected, found, *manifest_digest));
                }
                None => return Err(IntegrityError::NotListed { file }),
            }
        }
        self.bytes_read += size;
        self.files.insert(name.to_owned(), FileRecord { digest: found, size });
        Ok(kept)
    }

    /// A mismatch under a manifest that is another one by now is a replacement under way.
    fn mismatch(
        &self,
        file: String,
        expected: Digest,
        found: Digest,
        manifest: Digest,
    ) -> IntegrityError {
        match self.manifest_text() {
            Ok(text) if Digest::of(&text) == manifest => {
                IntegrityError::DigestMismatch { file, expected, found }
            }
            _ => IntegrityError::Changed { file },
        }
    }

    /// Digest of the version, see [`VerifiedModel::digest`].
    fn identity<'n>(&self, external: impl Iterator<Item = &'n str>) -> Digest {
        let mut names: BTreeSet<&str> = external.collect();
        names.insert(MODEL_FILE);
        let mut digests = names.iter().filter_map(|name| self.files.get(*name)).map(|f| f.digest);
        if names.len() == 1 {
            return digests.next().unwrap_or_else(|| Digest::of(b""));
        }
        let mut hash = Sha256::new();
        digests.for_each(|digest| hash.update(digest.0));
        Digest(hash.finalize().into())
    }

    fn golden(
        &mut self,
        manifest: Option<&(Manifest, Digest)>,
        external: &[(String, Arc<[u8]>)],
    ) -> Result<Option<Vec<u8>>, IntegrityError> {
        let options = self.options;
        let Some(name) = options.golden_file.as_deref() else { return Ok(None) };
        if name == MODEL_FILE || external.iter().any(|(location, _)| location == name) {
            return Ok(None);
        }
        if name_problem(name).is_some() {
            return Err(self.missing(name, "model.toml (golden)"));
        }
        match manifest {
            Some((manifest, _)) if manifest.get(name).is_none() => return Ok(None),
            Some(_) => {}
            None if self.root.file_type(&self.real.join(name)).is_err() => return Ok(None),
            None => self.expect_bytes(name),
        }
        match self.take(name, manifest, Keep::Owned, "model.toml (golden)")? {
            Kept::Owned(bytes) => Ok(Some(bytes)),
            _ => Ok(None),
        }
    }

    /// What the manifest lists and nobody asked for is verified all the same.
    fn verify_the_rest(
        &mut self,
        manifest: Option<&(Manifest, Digest)>,
    ) -> Result<(), IntegrityError> {
        let Some((listed, _)) = manifest else { return Ok(()) };
        for (name, _) in listed.iter() {
            if !self.files.contains_key(name) {
                self.take(name, manifest, Keep::Nothing, NEEDED_BY_MANIFEST)?;
            }
        }
        Ok(())
    }
}

fn by_location<'m, 'g>(
    graph: &'g GraphSummary<'m>,
) -> BTreeMap<&'m str, Vec<&'g ExternalTensor<'m>>> {
    let mut tensors: BTreeMap<&str, Vec<&ExternalTensor<'_>>> = BTreeMap::new();
    for tensor in &graph.external {
        tensors.entry(tensor.location).or_default().push(tensor);
    }
    tensors
}

/// Every location must be a plain name of another file, and be listed where there is a list.
fn check_locations(
    tensors: &BTreeMap<&str, Vec<&ExternalTensor<'_>>>,
    manifest: Option<&Manifest>,
) -> Result<(), GraphError> {
    for (location, tensors) in tensors {
        let problem = if *location == MODEL_FILE {
            "is the model file itself"
        } else if *location == MANIFEST_FILE {
            "is the manifest"
        } else if manifest.is_some_and(|manifest| manifest.get(location).is_none()) {
            "is not listed in SHA256SUMS"
        } else {
            continue;
        };
        let tensor = tensors.first().map_or("", |tensor| tensor.name);
        return Err(GraphError::location(tensor, location, problem));
    }
    Ok(())
}
