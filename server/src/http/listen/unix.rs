//! Files of unix sockets: a dead server's is replaced, a live one's is left alone, our own is removed at the end.

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The file of a unix socket that this process has bound.
#[derive(Debug)]
pub(super) struct OwnFile {
    path: PathBuf,
    id: Option<(u64, u64)>,
}

impl OwnFile {
    pub(super) fn of(path: &Path) -> Self {
        OwnFile { path: path.to_owned(), id: file_id(path) }
    }

    /// Removes the file, unless another process has put its own in the place.
    pub(super) fn remove(&self) {
        if self.id.is_some() && file_id(&self.path) == self.id {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn file_id(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// A socket file that a dead process left is in the way of the next one; a live one is not touched.
pub(super) fn remove_stale(path: &Path) -> io::Result<()> {
    // Nobody is waited for: a full backlog is an answer.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let caller = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&caller, &SocketAddrUnix::new(path)?) {
        // Nobody listens: the one answer that says so. (A full backlog, for one, is an error, too.)
        Err(Errno::CONNREFUSED) => {}
        Err(Errno::NOENT) => return Ok(()),
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another process listens there, or something else is there",
            ));
        }
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
            std::fs::remove_file(path)
        }
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path is not a socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
