//! Model repositories on disk: where a model lies, and a repository with nothing else in it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::golden::Case;

/// Where the repository lies in its temporary folder.
const REPOSITORY: &str = "models";

/// The newest version of a model.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) name: String,
    folder: PathBuf,
    version: u64,
}

/// A repository of one model, removed when dropped.
pub(crate) struct Alone {
    folder: TempDir,
    /// The model in it.
    pub(crate) model: Model,
}

// ===== impl Model =====

impl Model {
    /// Looks for the model in the repositories, in their order.
    pub(crate) fn find(repositories: &[PathBuf], name: &str) -> Result<Model> {
        if name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.') {
            bail!("{name:?} is no name of a model");
        }
        for repository in repositories {
            let folder = repository.join(name);
            if let Some(version) = newest_version(&folder) {
                return Ok(Model { name: name.to_owned(), folder, version });
            }
        }
        let places: Vec<_> = repositories.iter().map(|path| path.display().to_string()).collect();
        bail!(
            "there is no model {name:?} in {}: `make models-large` brings the large ones",
            places.join(" or ")
        )
    }

    /// The model file.
    pub(crate) fn file(&self) -> PathBuf {
        self.version_folder().join("model.onnx")
    }

    /// Its recorded cases.
    pub(crate) fn golden(&self) -> PathBuf {
        self.version_folder().join("golden.json")
    }

    /// The recorded case of that name, or the first of batch 1.
    pub(crate) fn case(&self, name: Option<&str>) -> Result<Case> {
        let path = self.golden();
        let golden = fs::read(&path).with_context(|| path.display().to_string())?;
        Case::parse(&golden, name).with_context(|| path.display().to_string())
    }

    /// Copies the newest version into a repository of its own. A server refuses links that lead out of its
    /// repository, and rightly so.
    pub(crate) fn alone(&self) -> Result<Alone> {
        let temporary = tempfile::Builder::new().prefix("balm-loadtest-").tempdir();
        let folder = temporary.context("no temporary folder")?;
        let model =
            Model { folder: folder.path().join(REPOSITORY).join(&self.name), ..self.clone() };
        copy_files(&self.version_folder(), &model.version_folder())?;
        copy_files(&self.folder, &model.folder)?;
        Ok(Alone { folder, model })
    }

    fn version_folder(&self) -> PathBuf {
        self.folder.join(self.version.to_string())
    }
}

// ===== impl Alone =====

impl Alone {
    /// The repository.
    pub(crate) fn repository(&self) -> PathBuf {
        self.folder.path().join(REPOSITORY)
    }

    /// A file that is removed with it and is no part of it.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn newest_version(folder: &Path) -> Option<u64> {
    let entries = fs::read_dir(folder).ok()?.filter_map(Result::ok);
    let versions = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
    versions.filter(|version| folder.join(version.to_string()).join("model.onnx").is_file()).max()
}

/// Copies the files of a folder, and not the folders in it.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let path = entry.with_context(|| from.display().to_string())?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            fs::copy(&path, to.join(name)).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::tests::GOLDEN;

    fn repository(versions: &[&str]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for version in versions {
            let version = folder.path().join("m").join(version);
            fs::create_dir_all(&version).unwrap();
            fs::write(version.join("model.onnx"), "onnx").unwrap();
            fs::write(version.join("golden.json"), GOLDEN).unwrap();
        }
        folder
    }

    #[test]
    fn the_newest_version_is_taken_alone() {
        let folder = repository(&["9", "10", "draft"]);
        fs::create_dir(folder.path().join("m/11")).unwrap();
        fs::write(folder.path().join("m/model.toml"), "lanes = 1").unwrap();
        let nowhere = folder.path().join("nowhere");
        let model = Model::find(&[nowhere, folder.path().to_owned()], "m").unwrap();
        assert_eq!(model.case(None).unwrap().name, "one_row");
        let alone = model.alone().unwrap();
        assert!(alone.model.file().starts_with(alone.repository()));
        let copied = alone.repository().join("m");
        assert_eq!(fs::read(copied.join("10/model.onnx")).unwrap(), b"onnx");
        assert_eq!(fs::read(copied.join("model.toml")).unwrap(), b"lanes = 1");
        assert!(!copied.join("9").exists() && !copied.join("draft").exists());
    }

    #[test]
    fn what_is_not_there() {
        let folder = repository(&[]);
        let places = [folder.path().to_owned()];
        let error = Model::find(&places, "minilm").unwrap_err().to_string();
        assert!(error.contains("`make models-large`"), "{error}");
        for name in ["", "..", "a/b", ".models"] {
            assert!(Model::find(&places, name).unwrap_err().to_string().contains("is no name"));
        }
    }
}
