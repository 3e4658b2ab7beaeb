//! The other end of the protocol: a request as a client writes it, an answer as a client reads it. For programs of ours that
//! ask a server, such as `balm drill`.

use super::response::{binary_size, put_binary};
use balm_inference::datatype::Datatype;
use balm_inference::tensor::{NamedTensor, Tensor};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

/// A body, JSON first and then the bytes of tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct AskedBody {
    /// All of it.
    pub body: Bytes,
    /// How many bytes of it are JSON: the header `Inference-Header-Content-Length`.
    pub json_len: usize,
}

/// A request with all its tensors binary, that asks for binary answers.
pub fn encode_request(inputs: &[NamedTensor]) -> AskedBody {
    let described: Vec<_> = inputs
        .iter()
        .map(|NamedTensor { name, tensor }| {
            json!({"name": name, "datatype": tensor.datatype().name(), "shape": tensor.shape(),
                   "parameters": {"binary_data_size": binary_size(tensor)}})
        })
        .collect();
    let head = json!({"inputs": described, "parameters": {"binary_data_output": true}});
    let mut body = head.to_string().into_bytes();
    let json_len = body.len();
    for input in inputs {
        put_binary(&mut body, &input.tensor);
    }
    AskedBody { body: body.into(), json_len }
}

#[derive(Deserialize)]
struct Answer {
    outputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    datatype: String,
    shape: Vec<usize>,
    parameters: Parameters,
}

#[derive(Deserialize)]
struct Parameters {
    binary_data_size: usize,
}

/// Reads the outputs of an answer to such a request; `json_len` as its header says.
///
/// # Errors
/// A sentence, when it is none.
pub fn decode_answer(json_len: Option<usize>, body: &[u8]) -> Result<Vec<NamedTensor>, String> {
    let json_len = json_len.ok_or("the answer does not say how much of it is JSON")?;
    let (head, mut rest) = body.split_at_checked(json_len).ok_or("the answer is cut off")?;
    let answer: Answer = serde_json::from_slice(head).map_err(|error| error.to_string())?;
    let mut outputs = Vec::with_capacity(answer.outputs.len());
    for Output { name, datatype, shape, parameters } in answer.outputs {
        let (bytes, after) = rest
            .split_at_checked(parameters.binary_data_size)
            .ok_or_else(|| format!("output {name:?} is cut off"))?;
        rest = after;
        let datatype: Datatype =
            datatype.parse().map_err(|_| format!("output {name:?} is {datatype:?}"))?;
        let tensor = match datatype {
            Datatype::Bytes => strings(bytes).map(|elements| Tensor::strings(shape, elements)),
            _ => Some(Tensor::raw(datatype, shape, Bytes::copy_from_slice(bytes))),
        };
        let tensor = tensor
            .ok_or_else(|| format!("output {name:?} is cut off"))?
            .map_err(|error| format!("output {name:?}: {error}"))?;
        outputs.push(NamedTensor { name, tensor });
    }
    Ok(outputs)
}

/// Elements with their lengths before them.
fn strings(mut bytes: &[u8]) -> Option<Vec<Bytes>> {
    let mut elements = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (element, rest) = rest.split_at_checked(length)?;
        elements.push(Bytes::copy_from_slice(element));
        bytes = rest;
    }
    bytes.is_empty().then_some(elements)
}
