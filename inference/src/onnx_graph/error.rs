//! Why a model file may not reach the runtime.

use super::wire::WireError;
use crate::clip::clipped;

/// A model file that is none, or that asks for what it must not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// The bytes are not protobuf, or not that of ONNX.
    #[error("is not a valid ONNX file: {problem} at byte {at}")]
    Malformed {
        /// Offset in the file.
        at: usize,
        /// What is wrong there.
        problem: &'static str,
    },
    /// Protobuf perhaps, but no model.
    #[error("is not a valid ONNX file: it has no graph")]
    NoGraph,
    /// The flatbuffer format of ONNX Runtime, which cannot be inspected.
    #[error("is in ONNX Runtime's own format (.ort), which is not served; export it as ONNX")]
    OrtFormat,
    /// Messages within messages within messages.
    #[error("nests messages deeper than {limit} levels at byte {at}")]
    TooDeep {
        /// Offset in the file.
        at: usize,
        /// The bound.
        limit: usize,
    },
    /// More nodes than the limit.
    #[error("has more than {limit} nodes")]
    TooManyNodes {
        /// The bound.
        limit: u64,
    },
    /// An operator set newer than the runtime.
    #[error(
        "needs opset {found} of {domain}, this ONNX Runtime goes up to {limit}; export the model with an older opset"
    )]
    Opset {
        /// `ai.onnx` or `ai.onnx.ml`.
        domain: String,
        /// What the model asks for.
        found: i64,
        /// What the runtime has.
        limit: i64,
    },
    /// A file format newer than the runtime.
    #[error(
        "has IR version {found}, this ONNX Runtime goes up to {limit}; export the model with an older onnx package"
    )]
    IrVersion {
        /// What the model says.
        found: i64,
        /// What the runtime has.
        limit: i64,
    },
    /// A node that loads a compiled blob from a file of its own naming.
    #[error(
        "has an EPContext node, whose compiled content cannot be verified; serve the model it was compiled from"
    )]
    CompiledContext,
    /// A location that is not the plain name of a listed file.
    #[error(
        "tensor {tensor:?} has its data in {location:?}, which {problem}; external data must be a file beside the model, under its plain relative name"
    )]
    Location {
        /// Name of the tensor, shortened.
        tensor: String,
        /// As the model writes it, shortened.
        location: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The description of external data is wrong.
    #[error("tensor {tensor:?} has bad external data: {problem}")]
    ExternalData {
        /// Name of the tensor, shortened.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// Dimensions that no memory could hold.
    #[error("tensor {tensor:?} has dimensions that are negative or overflow")]
    Dimensions {
        /// Name of the tensor, shortened.
        tensor: String,
    },
}

impl GraphError {
    pub(crate) fn malformed(at: usize, problem: &'static str) -> Self {
        GraphError::Malformed { at, problem }
    }

    pub(crate) fn location(tensor: &str, location: &str, problem: &'static str) -> Self {
        GraphError::Location { tensor: clipped(tensor), location: clipped(location), problem }
    }

    pub(super) fn external(tensor: &str, problem: impl Into<String>) -> Self {
        GraphError::ExternalData { tensor: clipped(tensor), problem: problem.into() }
    }
}

impl From<WireError> for GraphError {
    fn from(error: WireError) -> Self {
        GraphError::malformed(error.at, error.problem)
    }
}
