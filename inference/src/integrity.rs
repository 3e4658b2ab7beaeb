//! Whether the bytes of a model are the right ones.
//!
//! One read: the bytes that were hashed are the bytes that are handed to the runtime, external data included;
//! no path is opened twice for its content. Every path is resolved beneath the root of the repository. With a
//! manifest (`SHA256SUMS`), nothing of a model is parsed before its digest matched.

mod beneath;
mod digest;
mod error;
mod manifest;
mod progress;
mod read;
#[cfg(test)]
mod tests;
mod version;
mod write;

pub use beneath::RootDir;
pub use digest::{Digest, DigestTextError};
pub use error::{FileKind, IntegrityError};
pub use manifest::{MANIFEST_BYTES_MAX, MANIFEST_FILE, Manifest, ManifestError};
pub use progress::{Progress, ReadPhase};
pub use version::read_version;
pub use write::write_manifest;

pub(crate) use beneath::OpenError;
pub(crate) use manifest::name_problem;

use crate::clip::clipped;
use crate::onnx_graph::{GraphFacts, GraphLimits};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Name of the model file in a version folder.
pub const MODEL_FILE: &str = "model.onnx";

/// Name of the golden requests in a version folder, unless `model.toml` gives another.
pub const GOLDEN_FILE: &str = "golden.json";

/// The largest model file in bytes: where protobuf ends. Larger weights are external data.
pub const MODEL_BYTES_MAX: u64 = (1 << 31) - 1;

/// The largest version in bytes, all its files together, unless configured otherwise: 16 GiB.
pub const VERSION_BYTES_MAX: u64 = 16 << 30;

/// What must be proved before a version is loaded. Ordered from lax to strict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// Nothing; a manifest is not even looked at.
    Off,
    /// What `SHA256SUMS` says, where there is one.
    #[default]
    Digest,
    /// What `SHA256SUMS` says; without one a version is refused.
    Required,
}

impl Policy {
    /// The word in configuration files.
    pub const fn name(self) -> &'static str {
        match self {
            Policy::Off => "off",
            Policy::Digest => "digest",
            Policy::Required => "required",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not an integrity policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown integrity policy {0:?}; known are \"off\", \"digest\" and \"required\"")]
pub struct UnknownPolicy(pub String);

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Policy::Off, Policy::Digest, Policy::Required]
            .into_iter()
            .find(|policy| policy.name() == name)
            .ok_or_else(|| UnknownPolicy(clipped(name)))
    }
}

/// How [`read_version`] reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// What must be proved.
    pub policy: Policy,
    /// Limit for all files of the version together, in bytes; checked before anything is allocated.
    pub max_bytes: u64,
    /// Name of the golden requests in the version folder; their bytes are returned when the file is there.
    pub golden_file: Option<String>,
    /// What the runtime understands, and how large a graph may be.
    pub graph_limits: GraphLimits,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions {
            policy: Policy::default(),
            max_bytes: VERSION_BYTES_MAX,
            golden_file: Some(GOLDEN_FILE.to_owned()),
            graph_limits: GraphLimits::default(),
        }
    }
}

/// A file that was read, and what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRecord {
    /// SHA-256 of the bytes that were read.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
}

/// The bytes of a version, in memory, ready for the runtime.
#[derive(Clone, Debug)]
pub struct VerifiedModel {
    /// The bytes of `model.onnx`.
    pub model: Vec<u8>,
    /// External data: the location as the model writes it, and the bytes of the whole file; sorted.
    pub external: Vec<(String, Arc<[u8]>)>,
    /// Every file that was read, by its name in the version folder.
    pub files: BTreeMap<String, FileRecord>,
    /// Identity of the version: the SHA-256 of `model.onnx` where that is all, so that `sha256sum` shows the
    /// same; with external data, the SHA-256 over the raw digests of the model and its external files in
    /// the order of their names (the root digest of OpenSSF Model Signing). Golden requests and other files
    /// do not count: they change nothing of what is computed.
    pub digest: Digest,
    /// Whether a manifest vouched for every byte. False under [`Policy::Off`] or without a manifest.
    pub verified: bool,
    /// The bytes of the golden requests, if there are any.
    pub golden: Option<Vec<u8>>,
    /// What the model file says of itself.
    pub graph: GraphFacts,
    /// Bytes read and hashed, the manifest apart.
    pub bytes_read: u64,
}
