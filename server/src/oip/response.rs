//! Output tensors to the body of an inference answer: JSON, binary data after the JSON, or both mixed.

pub use super::classification::Classification;
use super::classification::classify;
use super::error::{CodecError, Problem};
use super::parameters::ParameterValue;
use super::render::{put, put_flat, put_list, text_estimate};
use balm_inference::datatype::Datatype;
use balm_inference::tensor::{Tensor, TensorData};
use bytes::Bytes;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// An answer to be encoded.
#[derive(Clone, Debug, PartialEq)]
pub struct InferResponse<'a> {
    /// Name of the model that answered.
    pub model_name: &'a str,
    /// Version of the model that answered.
    pub model_version: &'a str,
    /// The request's `id`, where it had one.
    pub id: Option<&'a str>,
    /// Response parameters; the member is left out when there are none.
    pub parameters: Option<&'a BTreeMap<String, ParameterValue>>,
    /// The outputs in the order in which they go out.
    pub outputs: Vec<ResponseOutput<'a>>,
}

/// One output of an answer and the form it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponseOutput<'a> {
    /// Name of the model's output.
    pub name: &'a str,
    /// What the model gave.
    pub tensor: &'a Tensor,
    /// Whether it goes out as binary data.
    pub binary: bool,
    /// Whether classes go out rather than the tensor.
    pub classification: Option<Classification<'a>>,
}

/// An encoded answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The body.
    pub body: Bytes,
    /// Length of the JSON part in bytes, where binary data follow: then the content type is
    /// `application/octet-stream` and this is the value of `Inference-Header-Content-Length`. `None`: plain JSON.
    pub json_len: Option<usize>,
}

/// Whether an output of `datatype` can go out as it is asked for.
///
/// To be asked with the model's contract before anything runs, so that a hopeless request costs no lane.
///
/// # Errors
/// [`Problem::HalfOutput`] for FP16 and BF16 in JSON, [`Problem::ClassifyDatatype`] for classes of `BOOL` or `BYTES`.
pub fn check_output(
    name: &str,
    datatype: Datatype,
    binary: bool,
    classification: bool,
) -> Result<(), CodecError> {
    let problem = match (classification, datatype) {
        (true, Datatype::Bool | Datatype::Bytes) => Problem::ClassifyDatatype { datatype },
        (true, _) => return Ok(()),
        (false, _) if !binary && !datatype.has_json_form() => Problem::HalfOutput { datatype },
        (false, _) => return Ok(()),
    };
    Err(CodecError::new(field(name), problem))
}

fn field(name: &str) -> String {
    format!("output {name:?}")
}

/// Encodes an answer.
///
/// In JSON, elements stand in one flat array, row-major; not-a-number and the infinities become `null`. Only binary
/// outputs get a `parameters` member, because the C++ client takes its presence for binary data.
///
/// # Errors
/// As [`check_output`]; and [`Problem::NotUtf8`] for a string that JSON cannot hold.
pub fn encode_infer(response: &InferResponse<'_>) -> Result<Encoded, CodecError> {
    let mut tensors: Vec<Cow<'_, Tensor>> = Vec::with_capacity(response.outputs.len());
    let mut room = 128 + response.model_name.len() + response.id.map_or(0, str::len);
    for output in &response.outputs {
        let classes = output.classification;
        check_output(output.name, output.tensor.datatype(), output.binary, classes.is_some())?;
        let tensor = match classes {
            None => Cow::Borrowed(output.tensor),
            Some(classes) => Cow::Owned(classify(output.tensor, classes, &field(output.name))?),
        };
        room += 128 + output.name.len();
        room += if output.binary { binary_size(&tensor) } else { text_estimate(&tensor) };
        tensors.push(tensor);
    }
    let mut out = Vec::with_capacity(room);
    put_head(&mut out, response);
    let mut outputs = response.outputs.iter().zip(&tensors);
    let mut failed = None;
    put_list(&mut out, &mut outputs, |out, (output, tensor)| {
        if let Err(error) = put_output(out, output, tensor) {
            failed.get_or_insert(error);
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    out.push(b'}');
    let json_len = response.outputs.iter().any(|output| output.binary).then_some(out.len());
    for (output, tensor) in response.outputs.iter().zip(&tensors) {
        if output.binary {
            put_binary(&mut out, tensor);
        }
    }
    Ok(Encoded { body: Bytes::from(out), json_len })
}

fn put_head(out: &mut Vec<u8>, response: &InferResponse<'_>) {
    out.extend_from_slice(br#"{"model_name":"#);
    put(out, response.model_name);
    out.extend_from_slice(br#","model_version":"#);
    put(out, response.model_version);
    if let Some(id) = response.id {
        out.extend_from_slice(br#","id":"#);
        put(out, id);
    }
    if let Some(parameters) = response.parameters.filter(|parameters| !parameters.is_empty()) {
        out.extend_from_slice(br#","parameters":"#);
        put(out, parameters);
    }
    out.extend_from_slice(br#","outputs":"#);
}

fn put_output(
    out: &mut Vec<u8>,
    output: &ResponseOutput<'_>,
    tensor: &Tensor,
) -> Result<(), CodecError> {
    out.extend_from_slice(br#"{"name":"#);
    put(out, output.name);
    out.extend_from_slice(br#","datatype":""#);
    out.extend_from_slice(tensor.datatype().name().as_bytes());
    out.extend_from_slice(br#"","shape":"#);
    put_list(out, tensor.shape(), put);
    if output.binary {
        out.extend_from_slice(br#","parameters":{"binary_data_size":"#);
        put(out, &binary_size(tensor));
        out.extend_from_slice(b"}}");
    } else {
        out.extend_from_slice(br#","data":"#);
        put_flat(out, tensor, 0..tensor.element_count(), &field(output.name))?;
        out.push(b'}');
    }
    Ok(())
}

/// Bytes that the tensor takes on the wire.
pub(super) fn binary_size(tensor: &Tensor) -> usize {
    match tensor.data() {
        TensorData::Raw(data) => data.len(),
        TensorData::Strings(elements) => elements.iter().map(|element| 4 + element.len()).sum(),
    }
}

pub(super) fn put_binary(out: &mut Vec<u8>, tensor: &Tensor) {
    match tensor.data() {
        TensorData::Raw(data) => out.extend_from_slice(data),
        TensorData::Strings(elements) => {
            for element in elements {
                // An element of 4 GiB and more does not fit the protocol; no request nor model gets one this far.
                let length = u32::try_from(element.len()).unwrap_or(u32::MAX);
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(element);
            }
        }
    }
}
