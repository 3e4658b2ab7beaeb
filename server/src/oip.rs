//! The Open Inference Protocol's bodies, both ways: bytes of a request to tensors, tensors to bytes of an answer.
//!
//! Pure: no sockets, no async, no HTTP types. Header values come in as text, statuses go out as
//! [`ErrorKind`], so the same code serves every transport and every test.
//!
//! What a client claims is never believed before it is seen: memory follows the bytes that arrived, not the
//! shape that was announced, and nesting follows the rank of the shape.

mod array;
mod classification;
pub mod client;
mod element;
pub mod encoding;
mod error;
pub mod metadata;
mod parameters;
mod render;
pub mod request;
pub mod response;
mod trail;
pub mod v1;
mod wire;

pub use error::{CodecError, ErrorKind, Problem};
pub use parameters::{ParameterValue, Parameters, SequenceId};

/// Bounds on one request. They guard memory and time, and are not the model's contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Most inputs, and most requested outputs, that one request may name.
    pub max_tensors: usize,
    /// Most dimensions of one shape.
    pub max_rank: usize,
    /// Most custom parameters of one request.
    pub max_parameters: usize,
    /// Most bytes that all decoded tensors of one request may take together. A `BYTES` element counts for its text
    /// and 32 bytes of bookkeeping. JSON such as `[1,1,1]` grows when decoded: at most fourfold as FP64, elevenfold
    /// as `BYTES`.
    pub max_decoded_bytes: usize,
}

impl Default for DecodeLimits {
    /// 64 tensors (as ONNX models rarely have a dozen), rank 32, 64 parameters, 256 MiB.
    fn default() -> Self {
        DecodeLimits {
            max_tensors: 64,
            max_rank: 32,
            max_parameters: 64,
            max_decoded_bytes: 256 << 20,
        }
    }
}

#[cfg(test)]
mod tests;
