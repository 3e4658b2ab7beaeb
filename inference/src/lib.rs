//! Models that answer: repository, integrity, contract, admission, lanes.
//!
//! Tensors come in checked and go out whole; HTTP and gRPC live above, in `balm-server`. Only
//! `engine/onnx.rs` names ONNX Runtime.

pub mod contract;
pub mod datatype;
pub mod golden;
pub mod integrity;
pub mod onnx_graph;
pub mod provider;
pub mod repository;
pub mod settings;
pub mod tensor;
