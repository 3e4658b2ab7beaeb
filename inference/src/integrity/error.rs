//! Why a version is not trusted.

use super::digest::Digest;
use super::manifest::ManifestError;
use crate::onnx_graph::GraphError;
use std::io;

/// A version that must not be loaded. Each text names the file and says what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IntegrityError {
    /// The policy asks for a manifest and there is none.
    #[error(
        "{folder}: there is no SHA256SUMS, and the integrity policy 'required' asks for one; 'balm manifest' writes it"
    )]
    NoManifest {
        /// Version folder, relative to the repository.
        folder: String,
    },
    /// The manifest cannot be read as one.
    #[error("{file}: {source}")]
    Manifest {
        /// The manifest.
        file: String,
        /// Line and problem.
        source: ManifestError,
    },
    /// The bytes are other ones than the manifest says.
    #[error("{file}: SHA-256 is {found}, SHA256SUMS expects {expected}")]
    DigestMismatch {
        /// Which file.
        file: String,
        /// Out of the manifest.
        expected: Digest,
        /// Of the bytes that were read.
        found: Digest,
    },
    /// A file is there that the manifest does not list.
    #[error(
        "{file}: is present but not listed in SHA256SUMS; list it with 'balm manifest', or remove it"
    )]
    NotListed {
        /// Which file.
        file: String,
    },
    /// A file that is needed is absent.
    #[error("{file}: is missing; {needed_by} names it")]
    Missing {
        /// Which file.
        file: String,
        /// Who asks for it.
        needed_by: &'static str,
    },
    /// The version folder is absent.
    #[error("{folder}: there is no such version folder")]
    NoVersion {
        /// Version folder, relative to the repository.
        folder: String,
    },
    /// A path leads out of the model repository.
    #[error(
        "{file}: leads out of the model repository; symbolic links must be relative and stay beneath its root"
    )]
    Escapes {
        /// Which path.
        file: String,
    },
    /// Symbolic links that lead in a circle, or too many of them.
    #[error("{file}: has more than 40 symbolic links on its way")]
    LinkLoop {
        /// Which path.
        file: String,
    },
    /// Something that is not a regular file.
    #[error("{file}: is a {kind}, a regular file is needed")]
    NotRegular {
        /// Which path.
        file: String,
        /// What it is.
        kind: FileKind,
    },
    /// No bytes.
    #[error("{file}: is empty (0 bytes)")]
    Empty {
        /// Which file.
        file: String,
    },
    /// More bytes than the limit.
    #[error("{file}: has {found} bytes, at most {limit} are allowed: {reason}")]
    TooLarge {
        /// Which file.
        file: String,
        /// Bytes found.
        found: u64,
        /// Bytes allowed.
        limit: u64,
        /// Where the limit comes from.
        reason: &'static str,
    },
    /// The file changed while it was read. A later try may find it at rest.
    #[error("{file}: changed while it was being read; replace model files by rename, not in place")]
    Changed {
        /// Which file.
        file: String,
    },
    /// Not enough memory to hold the file.
    #[error("{file}: there is not enough memory to hold its {bytes} bytes")]
    NoMemory {
        /// Which file.
        file: String,
        /// Bytes that were asked for.
        bytes: u64,
    },
    /// The folder holds more files, or deeper ones, than a model has.
    #[error("{folder}: holds more than {limit} {what}")]
    TooMany {
        /// Which folder.
        folder: String,
        /// The bound.
        limit: usize,
        /// Of what.
        what: &'static str,
    },
    /// The model file is not one that may reach the runtime.
    #[error("{file}: {source}")]
    Graph {
        /// Which file.
        file: String,
        /// What is wrong with it.
        source: GraphError,
    },
    /// The system said no.
    #[error("{file}: {operation} failed: {source}")]
    Io {
        /// Which path.
        file: String,
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// What stands where a regular file should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A unix socket.
    Socket,
    /// A character or block device.
    Device,
    /// None of those.
    Other,
}

impl std::fmt::Display for FileKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            FileKind::Directory => "directory",
            FileKind::Fifo => "named pipe (FIFO)",
            FileKind::Socket => "socket",
            FileKind::Device => "device",
            FileKind::Other => "special file",
        })
    }
}

impl IntegrityError {
    /// A word per cause, for metric labels and `/status`; the set is closed.
    pub fn reason(&self) -> &'static str {
        match self {
            IntegrityError::NoManifest { .. } => "no_manifest",
            IntegrityError::Manifest { .. } => "bad_manifest",
            IntegrityError::DigestMismatch { .. } => "digest_mismatch",
            IntegrityError::NotListed { .. } => "not_listed",
            IntegrityError::Missing { .. } | IntegrityError::NoVersion { .. } => "missing",
            IntegrityError::Escapes { .. } | IntegrityError::LinkLoop { .. } => "escapes",
            IntegrityError::NotRegular { .. } => "not_regular",
            IntegrityError::Empty { .. } => "empty",
            IntegrityError::TooLarge { .. }
            | IntegrityError::TooMany { .. }
            | IntegrityError::NoMemory { .. } => "too_large",
            IntegrityError::Changed { .. } => "changed",
            IntegrityError::Graph { .. } => "bad_graph",
            IntegrityError::Io { .. } => "io",
        }
    }

    /// Whether the same files could load a moment later: one was being replaced, or the system failed in
    /// passing. All else needs someone to change the files or their permissions.
    pub fn retryable(&self) -> bool {
        match self {
            IntegrityError::Changed { .. } | IntegrityError::NoMemory { .. } => true,
            IntegrityError::Io { source, .. } => source.kind() != io::ErrorKind::PermissionDenied,
            _ => false,
        }
    }
}
