//! Models that answer: repository, integrity, contract, admission, lanes.
//!
//! Tensors come in checked and go out whole; HTTP and gRPC live above, in `balm-server`. Only
//! `engine/onnx.rs` names ONNX Runtime.

mod adaptive;
pub mod admission;
mod batch;
mod cancel;
pub mod clip;
pub mod contract;
pub mod datatype;
pub mod effective;
pub mod engine;
pub mod golden;
pub mod healing;
pub mod integrity;
mod lane;
pub mod metrics;
pub mod models;
pub mod onnx_graph;
pub mod predict;
pub mod provider;
mod queue;
pub mod recorder;
pub mod repository;
pub mod settings;
pub mod statistics;
mod sync;
pub mod tensor;
pub mod version;
