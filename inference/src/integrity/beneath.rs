//! Opening files that are sure to lie beneath the repository's root.
//!
//! The root is resolved once (`realpath`) and held open. Everything else is opened relative to that
//! descriptor by `openat2(RESOLVE_BENEATH)`: the kernel follows symbolic links, and refuses one that is
//! absolute or climbs out. Kubernetes' `..data` links and the `blobs/` of a model hub cache stay inside,
//! and work. Where the kernel or a seccomp filter does not know `openat2`, the same rule is walked by hand.

use super::error::{FileKind, IntegrityError};
use rustix::fs::{self, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// As the kernel's own bound (`MAXSYMLINKS`).
const LINKS_MAX: usize = 40;
/// `openat2` answers `EAGAIN` when a rename elsewhere made a `..` doubtful; it asks to be tried again.
const TRIES_MAX: usize = 64;
const FILES_MAX: usize = 10_000;
const DEPTH_MAX: usize = 16;

/// A directory, resolved and held open, beneath which files are opened.
#[derive(Debug)]
pub struct RootDir {
    path: PathBuf,
    directory: OwnedFd,
    by_hand: bool,
}

/// Why nothing could be opened beneath the root. [`Self::of`] says which file it was about.
#[derive(Debug)]
pub(crate) enum OpenError {
    NotFound,
    Escapes,
    LinkLoop,
    NotRegular(FileKind),
    Changed,
    System(Errno),
}

impl OpenError {
    fn of_errno(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR => OpenError::NotFound,
            Errno::XDEV => OpenError::Escapes,
            Errno::LOOP => OpenError::LinkLoop,
            // What open() says of a unix socket.
            Errno::NXIO => OpenError::NotRegular(FileKind::Socket),
            Errno::AGAIN => OpenError::Changed,
            other => OpenError::System(other),
        }
    }

    /// The error about `file`; `needed_by` says who asked for it, should it be missing.
    pub(crate) fn of(self, file: &str, needed_by: &'static str) -> IntegrityError {
        let file = file.to_owned();
        match self {
            OpenError::NotFound => IntegrityError::Missing { file, needed_by },
            OpenError::Escapes => IntegrityError::Escapes { file },
            OpenError::LinkLoop => IntegrityError::LinkLoop { file },
            OpenError::NotRegular(kind) => IntegrityError::NotRegular { file, kind },
            OpenError::Changed => IntegrityError::Changed { file },
            OpenError::System(errno) => {
                IntegrityError::Io { file, operation: "opening", source: errno.into() }
            }
        }
    }
}

/// A regular file, open for reading, and what `fstat` said of it.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) file: File,
    pub(crate) size: u64,
    pub(crate) modified: (i64, i64),
}

impl RootDir {
    /// Resolves `path` and holds it open.
    ///
    /// # Errors
    /// What the system says when it is absent, not a directory, or not to be opened.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().canonicalize()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = fs::openat(CWD, &path, flags, Mode::empty())?;
        Ok(RootDir { path, directory, by_hand: false })
    }

    /// As [`RootDir::open`], with every path walked by hand, as on a kernel without `openat2`.
    #[cfg(test)]
    pub(crate) fn open_by_hand(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(RootDir { by_hand: true, ..RootDir::open(path)? })
    }

    /// The resolved path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a regular file for reading. Never waits: not for a FIFO's writer, not for a device.
    pub(crate) fn open_file(&self, path: &Path) -> Result<OpenFile, OpenError> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let descriptor = self.open_beneath(path, flags)?;
        let status = fs::fstat(&descriptor).map_err(OpenError::System)?;
        let kind = match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile => {
                let size = u64::try_from(status.st_size).unwrap_or(0);
                let modified = modified(&status);
                return Ok(OpenFile { file: File::from(descriptor), size, modified });
            }
            other => kind_of(other),
        };
        Err(OpenError::NotRegular(kind))
    }

    /// Opens a directory for listing.
    fn open_directory(&self, path: &Path) -> Result<OwnedFd, OpenError> {
        self.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// What stands at `path`, symbolic links followed.
    pub(crate) fn file_type(&self, path: &Path) -> Result<FileType, OpenError> {
        let descriptor = self.open_beneath(path, OFlags::PATH)?;
        let status = fs::fstat(&descriptor).map_err(OpenError::System)?;
        Ok(FileType::from_raw_mode(status.st_mode))
    }

    /// The path of a directory beneath the root with all its symbolic links resolved, relative to the root.
    ///
    /// Kubernetes replaces `..data` by rename: whoever resolves it once goes on seeing one consistent set of
    /// files, old or new.
    pub(crate) fn resolve_directory(&self, path: &Path) -> Result<PathBuf, OpenError> {
        self.open_directory(path)?;
        let real = self.path.join(path).canonicalize().map_err(|error| {
            OpenError::of_errno(Errno::from_io_error(&error).unwrap_or(Errno::IO))
        })?;
        real.strip_prefix(&self.path).map(Path::to_path_buf).map_err(|_| OpenError::Escapes)
    }

    /// Names of the entries of a directory, sorted, without `.` and `..`.
    pub(crate) fn entries(&self, path: &Path) -> Result<Vec<OsString>, OpenError> {
        let listing = Dir::new(self.open_directory(path)?).map_err(OpenError::System)?;
        let mut names = Vec::new();
        for entry in listing {
            let name = entry.map_err(OpenError::System)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        names.sort();
        Ok(names)
    }

    /// All files beneath a directory, hidden ones and their folders apart, sorted, relative to it. Whatever is
    /// not a directory counts as a file. `shown` is how messages call the directory.
    pub(crate) fn files(&self, path: &Path, shown: &str) -> Result<Vec<String>, IntegrityError> {
        let mut files = Vec::new();
        let mut folders = vec![(PathBuf::new(), 0)];
        let too_many = |limit, what| IntegrityError::TooMany { folder: shown.into(), limit, what };
        while let Some((folder, depth)) = folders.pop() {
            if depth > DEPTH_MAX {
                return Err(too_many(DEPTH_MAX, "levels of folders"));
            }
            let entries = self.entries(&path.join(&folder));
            for name in entries.map_err(|error| error.of(shown, "the repository"))? {
                if name.as_encoded_bytes().starts_with(b".") {
                    continue;
                }
                if files.len() + folders.len() >= FILES_MAX {
                    return Err(too_many(FILES_MAX, "files"));
                }
                let entry = folder.join(&name);
                // A link that leads nowhere, or out, counts as a file: it is refused where it is opened.
                match self.file_type(&path.join(&entry)) {
                    Ok(FileType::Directory) => folders.push((entry, depth + 1)),
                    _ => files.push(entry.to_string_lossy().into_owned()),
                }
            }
        }
        files.sort();
        Ok(files)
    }

    fn open_beneath(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, OpenError> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = flags | OFlags::CLOEXEC;
        if !self.by_hand {
            match self.open_by_kernel(path, flags) {
                // No such call, or a seccomp filter that does not know it.
                Err(Errno::NOSYS | Errno::PERM) => {}
                answer => return answer.map_err(OpenError::of_errno),
            }
        }
        walk(&self.directory, path, flags)
    }

    fn open_by_kernel(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let mut answer = Err(Errno::AGAIN);
        for _ in 0..TRIES_MAX {
            answer = fs::openat2(&self.directory, path, flags, Mode::empty(), resolve);
            if !matches!(answer, Err(Errno::AGAIN | Errno::INTR)) {
                break;
            }
        }
        answer
    }
}

/// `openat2(RESOLVE_BENEATH)` by hand: component by component, each opened without following links; a link's
/// target is put before what remains of the path.
fn walk(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, OpenError> {
    let mut above: Vec<OwnedFd> = Vec::new();
    let mut rest: VecDeque<OsString> = VecDeque::new();
    let mut links = 0;
    prepend(&mut rest, path)?;
    while let Some(component) = rest.pop_front() {
        if component == ".." {
            above.pop().ok_or(OpenError::Escapes)?;
            continue;
        }
        let here = above.last().unwrap_or(root).as_fd();
        let seen = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entry =
            fs::openat(here, &component, seen, Mode::empty()).map_err(OpenError::of_errno)?;
        let status = fs::fstat(&entry).map_err(OpenError::System)?;
        let kind = FileType::from_raw_mode(status.st_mode);
        if kind == FileType::Symlink {
            links += 1;
            if links > LINKS_MAX {
                return Err(OpenError::LinkLoop);
            }
            let target = fs::readlinkat(&entry, "", Vec::new()).map_err(OpenError::System)?;
            prepend(&mut rest, Path::new(&OsString::from_vec(target.into_bytes())))?;
        } else if kind == FileType::Directory {
            above.push(entry);
        } else if rest.is_empty() {
            let flags = flags | OFlags::NOFOLLOW;
            let opened = fs::openat(here, &component, flags, Mode::empty());
            return match opened {
                // It was no link a moment ago.
                Err(Errno::LOOP) => Err(OpenError::Changed),
                other => other.map_err(OpenError::of_errno),
            };
        } else {
            return Err(OpenError::NotFound);
        }
    }
    let directory = above.last().unwrap_or(root);
    fs::openat(directory, ".", flags, Mode::empty()).map_err(OpenError::of_errno)
}

fn prepend(rest: &mut VecDeque<OsString>, path: &Path) -> Result<(), OpenError> {
    for component in path.components().rev() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => rest.push_front("..".into()),
            Component::Normal(name) => rest.push_front(name.to_owned()),
            Component::RootDir | Component::Prefix(_) => return Err(OpenError::Escapes),
        }
    }
    Ok(())
}

/// Last modification, in seconds and nanoseconds since 1970.
pub(crate) fn modified(status: &fs::Stat) -> (i64, i64) {
    (status.st_mtime, status.st_mtime_nsec as i64)
}

fn kind_of(kind: FileType) -> FileKind {
    match kind {
        FileType::Directory => FileKind::Directory,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice | FileType::BlockDevice => FileKind::Device,
        _ => FileKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    /// What was opened, or a word for why not.
    fn outcome(root: &RootDir, path: &str) -> Result<u64, String> {
        let opened = root.open_file(Path::new(path));
        opened.map(|open| open.file.metadata().unwrap().ino()).map_err(|error| format!("{error:?}"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Whatever links there are, the walk by hand opens what the kernel opens, and nothing else.
        #[test]
        fn the_walk_agrees_with_the_kernel(
            links in proptest::collection::vec(
                ("(a|b)?", "[l-n]", "/?(\\.\\./){0,3}([abl-n]/){0,2}(a|f|l|m|n|\\.\\.)"),
                0..6,
            ),
            paths in proptest::collection::vec("(\\.\\./)?([abl-n]/){0,3}(a|f|l|m|n|\\.\\.)", 8),
        ) {
            let temporary = tempfile::tempdir().unwrap();
            let root = temporary.path().join("root");
            for folder in ["root/a/a", "root/b", "a"] {
                std::fs::create_dir_all(temporary.path().join(folder)).unwrap();
            }
            for file in ["root/f", "root/a/f", "root/a/a/f", "f", "a/f"] {
                std::fs::write(temporary.path().join(file), file).unwrap();
            }
            for (folder, name, target) in links {
                // A name that is taken stays what it is.
                let _ = symlink(target, root.join(folder).join(name));
            }
            let by_kernel = RootDir::open(&root).unwrap();
            let by_hand = RootDir::open_by_hand(&root).unwrap();
            for path in paths {
                prop_assert_eq!(outcome(&by_kernel, &path), outcome(&by_hand, &path), "{}", path);
            }
        }
    }
}
