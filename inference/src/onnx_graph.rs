//! What a model file says of itself, read before ONNX Runtime sees it.
//!
//! A model file can name other files (`external_data`), and has been used to read and write what it should
//! not (CVE-2022-25882, CVE-2024-27318, CVE-2024-5187, CVE-2026-27489, CVE-2026-34445 and others). So the
//! places where it may do so are found here, by a bounded walk over the protobuf, and held to plain names and true
//! sizes. The walk copies nothing, does not recurse, and takes memory only for what it finds.
//!
//! Where protobuf would merge (a message field that appears twice), this refuses: what was checked in two
//! halves must not be loaded as one.

mod error;
mod tensor;
#[cfg(test)]
mod tests;
mod wire;
#[cfg(test)]
pub(crate) mod writer;

pub use error::GraphError;
pub use tensor::ExternalTensor;

use std::collections::BTreeSet;
use wire::{Reader, Value};

/// What the runtime understands, and how large a graph may be.
///
/// The defaults are those of ONNX Runtime 1.31.1, found by handing it models of each version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphLimits {
    /// Newest opset of the default domain (`ai.onnx`).
    pub max_opset: i64,
    /// Newest opset of `ai.onnx.ml`.
    pub max_ml_opset: i64,
    /// Newest IR version, which is that of the file format itself.
    pub max_ir_version: i64,
    /// Most nodes, those of subgraphs and functions included.
    pub max_nodes: u64,
}

/// Newest opset of the default domain that ONNX Runtime 1.31.1 takes.
pub const MAX_OPSET: i64 = 26;
/// Newest opset of `ai.onnx.ml` that ONNX Runtime 1.31.1 takes.
pub const MAX_ML_OPSET: i64 = 5;
/// Newest IR version that ONNX Runtime 1.31.1 takes.
pub const MAX_IR_VERSION: i64 = 13;
/// Most nodes of a graph; the largest language models have some hundred thousand.
pub const MAX_NODES: u64 = 2_000_000;
/// Deepest nesting of messages, as protobuf's own parser has it. A subgraph takes three.
pub const MAX_DEPTH: usize = 100;

impl Default for GraphLimits {
    fn default() -> Self {
        GraphLimits {
            max_opset: MAX_OPSET,
            max_ml_opset: MAX_ML_OPSET,
            max_ir_version: MAX_IR_VERSION,
            max_nodes: MAX_NODES,
        }
    }
}

/// What was found in a model file, borrowed from its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GraphSummary<'a> {
    /// Version of the file format.
    pub ir_version: i64,
    /// Operator sets: domain (empty for the default one) and version, in the order of the file.
    pub opsets: Vec<(&'a str, i64)>,
    /// Nodes, those of subgraphs and functions included.
    pub nodes: u64,
    /// Tensors whose elements lie in other files.
    pub external: Vec<ExternalTensor<'a>>,
    /// Domains of operators that are neither ONNX's nor ONNX Runtime's own: they would need a custom-op library.
    pub custom_domains: BTreeSet<&'a str>,
    /// Inputs and outputs of the main graph that declare no shape, so that even their rank is open. ONNX Runtime tells
    /// them like scalars.
    pub unranked: BTreeSet<&'a str>,
}

/// What a model file says of itself, owned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GraphFacts {
    /// Version of the file format.
    pub ir_version: i64,
    /// Operator sets: domain (empty for the default one) and version, in the order of the file.
    pub opsets: Vec<(String, i64)>,
    /// Nodes, those of subgraphs and functions included.
    pub nodes: u64,
    /// How many tensors have their elements in other files.
    pub external_tensors: usize,
    /// Domains of operators that would need a custom-op library.
    pub custom_domains: Vec<String>,
    /// Inputs and outputs that declare no shape.
    pub unranked: BTreeSet<String>,
}

impl GraphSummary<'_> {
    /// The same without the bytes; the tensors are only counted.
    pub fn facts(&self) -> GraphFacts {
        GraphFacts {
            ir_version: self.ir_version,
            opsets: self.opsets.iter().map(|(name, set)| ((*name).to_owned(), *set)).collect(),
            nodes: self.nodes,
            external_tensors: self.external.len(),
            custom_domains: self.custom_domains.iter().map(|name| (*name).to_owned()).collect(),
            unranked: self.unranked.iter().map(|name| (*name).to_owned()).collect(),
        }
    }
}

/// Domains that ONNX Runtime brings itself.
const KNOWN_DOMAINS: [&str; 9] = [
    "",
    "ai.onnx",
    "ai.onnx.ml",
    "ai.onnx.training",
    "ai.onnx.preview.training",
    "ai.onnx.preview",
    "com.microsoft",
    "com.microsoft.nchwc",
    "com.microsoft.experimental",
];

/// Messages that are walked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    SparseTensor,
    Function,
    Training,
}

/// What a field means for the walk.
enum Step {
    /// Walk into it.
    Into(Message),
    /// As `Into`, for a field that may appear once.
    IntoOnce(Message),
    /// Judge a tensor.
    Tensor,
    /// As `Tensor`, for a field that may appear once.
    TensorOnce,
    Opset,
    IrVersion,
    /// Declaration of an input or output.
    ValueInfo,
    OperatorType,
    OperatorDomain,
    /// Of no interest.
    Over,
}

/// Field numbers of `onnx.proto`.
fn step(message: Message, field: u32) -> Step {
    use Message::{Attribute, Function, Graph, Model, Node, SparseTensor, Training};
    match (message, field) {
        (Model, 1) => Step::IrVersion,
        (Model, 7) => Step::IntoOnce(Graph),
        (Model, 8) => Step::Opset,
        (Model, 20) => Step::Into(Training),
        (Model, 25) => Step::Into(Function),
        (Graph, 1) | (Function, 7) => Step::Into(Node),
        (Graph, 5) | (Attribute, 10) => Step::Tensor,
        (Graph, 11 | 12) => Step::ValueInfo,
        (Graph, 15) | (Attribute, 23) => Step::Into(SparseTensor),
        (Node, 4) => Step::OperatorType,
        (Node, 5) | (Function, 11) => Step::Into(Attribute),
        (Node, 7) => Step::OperatorDomain,
        (Attribute, 5) | (SparseTensor, 1 | 2) => Step::TensorOnce,
        (Attribute, 6) | (Training, 1 | 2) => Step::IntoOnce(Graph),
        (Attribute, 11) => Step::Into(Graph),
        (Attribute, 22) => Step::IntoOnce(SparseTensor),
        _ => Step::Over,
    }
}

/// A message being walked.
struct Frame<'a> {
    message: Message,
    rest: Reader<'a>,
    /// Bit per field number of those that may appear once.
    seen: u32,
}

/// Walks a model file and holds it to `limits`.
///
/// # Errors
/// [`GraphError`]: bytes that are no ONNX file, or one that must not reach the runtime.
pub fn inspect<'a>(bytes: &'a [u8], limits: &GraphLimits) -> Result<GraphSummary<'a>, GraphError> {
    // ONNX Runtime tells its own format by these bytes, whatever the file is called.
    if bytes.get(4..8) == Some(b"ORTM") {
        return Err(GraphError::OrtFormat);
    }
    let mut summary = GraphSummary::default();
    let mut has_graph = false;
    let mut stack = vec![Frame { message: Message::Model, rest: Reader::new(bytes), seen: 0 }];
    while let Some(frame) = stack.last_mut() {
        let at = frame.rest.at();
        let Some((field, value)) = frame.rest.field()? else {
            stack.pop();
            continue;
        };
        let step = step(frame.message, field);
        if matches!(step, Step::IntoOnce(_) | Step::TensorOnce) {
            if frame.seen & (1 << field) != 0 {
                return Err(GraphError::malformed(
                    at,
                    "a field appears twice that may appear once",
                ));
            }
            frame.seen |= 1 << field;
        }
        match (step, value) {
            (Step::Over, _) => {}
            (Step::Into(message) | Step::IntoOnce(message), Value::Bytes(rest)) => {
                has_graph |= stack.len() == 1 && message == Message::Graph;
                if message == Message::Node {
                    summary.nodes += 1;
                    if summary.nodes > limits.max_nodes {
                        return Err(GraphError::TooManyNodes { limit: limits.max_nodes });
                    }
                }
                if stack.len() >= MAX_DEPTH {
                    return Err(GraphError::TooDeep { at, limit: MAX_DEPTH });
                }
                stack.push(Frame { message, rest, seen: 0 });
            }
            (Step::Tensor | Step::TensorOnce, Value::Bytes(rest)) => {
                summary.external.extend(tensor::read(rest)?);
            }
            (Step::Opset, Value::Bytes(rest)) => summary.opsets.push(opset(rest)?),
            (Step::IrVersion, Value::Varint(version)) => summary.ir_version = version as i64,
            // Subgraphs, deeper in the stack, have inputs of their own, which nobody outside sees.
            (Step::ValueInfo, Value::Bytes(rest)) if stack.len() == 2 => {
                summary.unranked.extend(unranked(rest)?);
            }
            (Step::ValueInfo, Value::Bytes(_)) => {}
            (Step::OperatorType, Value::Bytes(name)) => {
                if name.bytes() == b"EPContext" {
                    return Err(GraphError::CompiledContext);
                }
            }
            (Step::OperatorDomain, Value::Bytes(name)) => {
                let domain = text(name)?;
                if !KNOWN_DOMAINS.contains(&domain) {
                    summary.custom_domains.insert(domain);
                }
            }
            _ => return Err(GraphError::malformed(at, "a field has the wrong wire type")),
        }
    }
    if !has_graph {
        return Err(GraphError::NoGraph);
    }
    check_versions(&summary, limits)?;
    Ok(summary)
}

fn opset<'a>(mut rest: Reader<'a>) -> Result<(&'a str, i64), GraphError> {
    let mut set = ("", 0);
    while let Some((field, value)) = rest.field()? {
        match (field, value) {
            (1, Value::Bytes(domain)) => set.0 = text(domain)?,
            (2, Value::Varint(version)) => set.1 = version as i64,
            _ => {}
        }
    }
    Ok(set)
}

/// The name in a ValueInfoProto whose type is a tensor without a shape.
fn unranked<'a>(mut info: Reader<'a>) -> Result<Option<&'a str>, GraphError> {
    let mut name = "";
    let mut open = false;
    while let Some((field, value)) = info.field()? {
        match (field, value) {
            (1, Value::Bytes(text_of)) => name = text(text_of)?,
            // TypeProto, of which only tensor_type matters.
            (2, Value::Bytes(mut kind)) => {
                while let Some((field, value)) = kind.field()? {
                    if let (1, Value::Bytes(mut tensor)) = (field, value) {
                        open = true;
                        while let Some((field, _)) = tensor.field()? {
                            open &= field != 2;
                        }
                    }
                }
            }
            _ => {}
        }
    }
    Ok(open.then_some(name))
}

fn check_versions(summary: &GraphSummary<'_>, limits: &GraphLimits) -> Result<(), GraphError> {
    if summary.ir_version > limits.max_ir_version {
        let (found, limit) = (summary.ir_version, limits.max_ir_version);
        return Err(GraphError::IrVersion { found, limit });
    }
    for (domain, version) in &summary.opsets {
        let limit = match *domain {
            "" | "ai.onnx" => limits.max_opset,
            "ai.onnx.ml" => limits.max_ml_opset,
            _ => continue,
        };
        if *version > limit {
            let domain = if domain.is_empty() { "ai.onnx" } else { domain };
            return Err(GraphError::Opset { domain: domain.to_owned(), found: *version, limit });
        }
    }
    Ok(())
}

fn text<'a>(rest: Reader<'a>) -> Result<&'a str, GraphError> {
    std::str::from_utf8(rest.bytes())
        .map_err(|_| GraphError::malformed(rest.at(), "a text is not UTF-8"))
}
