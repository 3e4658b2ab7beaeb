//! The model repository: a folder with a folder per model.
//!
//! ```text
//! models/
//!   iris/
//!     model.toml        settings, optional
//!     1/                a version
//!       model.onnx
//!       SHA256SUMS      manifest, optional unless the policy is 'required'
//!       golden.json     golden requests, optional
//! ```
//!
//! A folder that has a numeric folder or a `model.toml` declares a model, also one that cannot be loaded: what was
//! declared and does not serve must show. Hidden entries (Kubernetes' `..data` among them) and plain files
//! are passed over.

use crate::clip::clipped;
use crate::integrity::{FileKind, IntegrityError, OpenError, RootDir};
use crate::settings::{ModelSettings, SETTINGS_BYTES_MAX, SETTINGS_FILE, SettingsError};
use rustix::fs::FileType;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest name of a model, in characters.
pub const MODEL_NAME_LENGTH_MAX: usize = 128;

/// A model repository, its root resolved once and held open.
#[derive(Debug)]
pub struct Repository {
    root: RootDir,
}

/// The repository itself cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// No folder there, or not to be opened.
    #[error("model repository {path:?} cannot be opened: {source}")]
    Open {
        /// As it was given.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The folder cannot be listed.
    #[error("model repository cannot be listed: {0}")]
    List(IntegrityError),
}

/// What a repository declares.
#[derive(Debug, Default)]
pub struct Scan {
    /// Declared models, sorted by name.
    pub models: Vec<ModelEntry>,
    /// What was passed over and perhaps should not have been, a sentence each.
    pub warnings: Vec<String>,
}

/// A declared model.
#[derive(Debug)]
pub struct ModelEntry {
    /// Name of the folder, and of the model.
    pub name: String,
    /// What `model.toml` says, or all that is wrong with it.
    pub settings: Result<ModelSettings, SettingsError>,
    /// Versions that are there, ascending.
    pub versions: Vec<u64>,
    /// Why the folder itself could not be read, if so.
    pub folder_problem: Option<String>,
    /// What was passed over and perhaps should not have been, a sentence each.
    pub warnings: Vec<String>,
}

impl ModelEntry {
    /// Why no version of the model can be loaded, whatever its files say; `None` when one may try.
    pub fn problem(&self) -> Option<String> {
        if let Some(problem) = &self.folder_problem {
            return Some(problem.clone());
        }
        if let Err(error) = &self.settings {
            return Some(error.to_string());
        }
        if self.versions.is_empty() {
            let name = &self.name;
            return Some(format!("{name}: has no version; put the model at {name}/1/model.onnx"));
        }
        None
    }
}

impl Repository {
    /// Opens a repository: resolves its path, once.
    ///
    /// # Errors
    /// [`RepositoryError::Open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, RepositoryError> {
        let path = path.as_ref();
        match RootDir::open(path) {
            Ok(root) => Ok(Repository { root }),
            Err(source) => Err(RepositoryError::Open { path: path.to_owned(), source }),
        }
    }

    /// The root, for [`read_version`](crate::integrity::read_version).
    pub fn root(&self) -> &RootDir {
        &self.root
    }

    /// The folder of a version, relative to the root.
    pub fn version_dir(&self, model: &str, version: u64) -> PathBuf {
        Path::new(model).join(version.to_string())
    }

    /// Lists what is declared. Reads folders and settings, no model. Blocks.
    ///
    /// # Errors
    /// [`RepositoryError::List`] when the root cannot be listed; what is wrong below it is told per model.
    pub fn scan(&self) -> Result<Scan, RepositoryError> {
        let root = self.root.path().display().to_string();
        let entries = self.root.entries(Path::new(""));
        let mut scan = Scan::default();
        for entry in entries.map_err(|error| RepositoryError::List(error.of(&root, "nothing")))? {
            if !is_hidden(&entry) {
                self.look_at(&entry, &mut scan);
            }
        }
        scan.models.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(scan)
    }

    /// Looks at one model alone, for a load that was asked for by name; `None` when it is not declared.
    pub fn find(&self, name: &str) -> Option<ModelEntry> {
        if !is_model_name(name) {
            return None;
        }
        let mut scan = Scan::default();
        self.look_at(&OsString::from(name), &mut scan);
        scan.models.pop()
    }

    fn look_at(&self, entry: &OsString, scan: &mut Scan) {
        let shown = clipped(&entry.to_string_lossy());
        match self.root.file_type(Path::new(entry)) {
            Ok(FileType::Directory) => {}
            Ok(_) => return,
            // It would be a model if it could be read: it must not vanish.
            Err(error) if is_model_name(&shown) => {
                if !matches!(error, OpenError::NotFound) || self.is_link(entry) {
                    scan.models.push(unreadable(shown.clone(), error));
                }
                return;
            }
            Err(error) => {
                scan.warnings.push(error.of(&shown, "a symbolic link").to_string());
                return;
            }
        }
        let names = match self.root.entries(Path::new(entry)) {
            Ok(names) => names,
            Err(error) if is_model_name(&shown) => {
                scan.models.push(unreadable(shown, error));
                return;
            }
            Err(error) => {
                scan.warnings.push(error.of(&shown, "the repository").to_string());
                return;
            }
        };
        let mut warnings = Vec::new();
        let versions = self.versions(&shown, Path::new(entry), &names, &mut warnings);
        let has_settings = names.iter().any(|name| name == SETTINGS_FILE);
        if versions.is_empty() && !has_settings {
            scan.warnings.append(&mut warnings);
            scan.warnings.push(format!(
                "{shown}: is no model, it has neither a numbered version folder nor a model.toml"
            ));
        } else if is_model_name(&shown) {
            let settings =
                if has_settings { self.settings(&shown) } else { Ok(ModelSettings::default()) };
            let name = shown;
            let folder_problem = None;
            scan.models.push(ModelEntry { name, settings, versions, folder_problem, warnings });
        } else {
            scan.warnings.push(format!(
                "{shown:?}: is not served, a model's name has letters, digits, '.', '_' and '-', begins with a letter or digit and has at most {MODEL_NAME_LENGTH_MAX} characters"
            ));
        }
    }

    fn is_link(&self, entry: &OsString) -> bool {
        self.root.path().join(entry).is_symlink()
    }

    fn versions(
        &self,
        shown: &str,
        folder: &Path,
        names: &[OsString],
        warnings: &mut Vec<String>,
    ) -> Vec<u64> {
        let mut versions = Vec::new();
        for name in names.iter().filter_map(|name| name.to_str()) {
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            let name_shown = clipped(name);
            match parse_version(name) {
                None => warnings.push(format!(
                    "{shown}/{name_shown}: is not a version, versions are positive integers without leading zeros"
                )),
                Some(version) => match self.root.file_type(&folder.join(name)) {
                    Ok(FileType::Directory) => versions.push(version),
                    Ok(_) => warnings
                        .push(format!("{shown}/{name_shown}: is not a version, it is no folder")),
                    // Declared, and refused where it is read, with the reason.
                    Err(_) => versions.push(version),
                },
            }
        }
        versions.sort_unstable();
        versions
    }

    fn settings(&self, model: &str) -> Result<ModelSettings, SettingsError> {
        let file = format!("{model}/{SETTINGS_FILE}");
        let problem =
            |problem: String| SettingsError { file: file.clone(), problems: vec![problem] };
        let open = self.root.open_file(Path::new(&file)).map_err(|error| {
            problem(match error {
                OpenError::NotFound => "leads nowhere".to_owned(),
                OpenError::NotRegular(kind) => not_regular(kind),
                OpenError::Escapes => "leads out of the model repository".to_owned(),
                other => other.of("it", "the model").to_string(),
            })
        })?;
        let mut text = Vec::new();
        let read = open.file.take(SETTINGS_BYTES_MAX + 1).read_to_end(&mut text);
        read.map_err(|error| problem(format!("cannot be read: {error}")))?;
        if text.len() as u64 > SETTINGS_BYTES_MAX {
            return Err(problem(format!("has more than {SETTINGS_BYTES_MAX} bytes")));
        }
        let text = String::from_utf8(text).map_err(|_| problem("is not UTF-8".to_owned()))?;
        ModelSettings::parse(&text, &file)
    }
}

fn not_regular(kind: FileKind) -> String {
    format!("is a {kind}, a regular file is needed")
}

fn unreadable(name: String, error: OpenError) -> ModelEntry {
    let problem = error.of(&name, "a symbolic link").to_string();
    ModelEntry {
        name,
        settings: Ok(ModelSettings::default()),
        versions: Vec::new(),
        folder_problem: Some(problem),
        warnings: Vec::new(),
    }
}

fn is_hidden(name: &OsString) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// Whether `name` can be that of a model: `[A-Za-z0-9][A-Za-z0-9._-]{0,127}`.
pub fn is_model_name(name: &str) -> bool {
    name.len() <= MODEL_NAME_LENGTH_MAX
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// A version out of its text: a positive integer without leading zeros.
pub fn parse_version(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests;
