//! Bodies of inference requests to tensors: JSON, the binary tensor extension, both mixed, and raw requests.
//!
//! Binary tensors of fixed-size elements are slices of the body, not copies. They start wherever the JSON part
//! happened to end: whoever needs alignment must see to it.

use super::DecodeLimits;
use super::array::{Context, Elements, Level, Source, most_elements};
use super::error::{BytesProblem, CodecError, Count, Problem};
use super::parameters::Parameters;
use super::trail::Trail;
use super::wire::{RequestSeed, Scope, WireInput, WireOutput, WireRequest};
use balm_inference::clip::clipped;
use balm_inference::contract::{Dimension, TensorSpec};
use balm_inference::datatype::Datatype;
use balm_inference::tensor::{NamedTensor, Tensor, TensorData, TensorError, element_count};
use bytes::{Buf, Bytes};
use serde::de::DeserializeSeed;
use serde_json::value::RawValue;

/// Name of the header that tells the length of the JSON part.
pub const HEADER_LENGTH: &str = "Inference-Header-Content-Length";

/// Bookkeeping of one `BYTES` element beside its text, for [`DecodeLimits::max_decoded_bytes`].
pub(super) const STRING_OVERHEAD: usize = size_of::<Bytes>();

/// An inference request, checked in itself; the model's contract is checked by `Contract::accept`.
#[derive(Clone, Debug, PartialEq)]
pub struct InferRequest {
    /// `id`, to be echoed when it is there, be it empty.
    pub id: Option<String>,
    /// `parameters`.
    pub parameters: Parameters,
    /// The input tensors in the order of the request. Names may repeat here.
    pub inputs: Vec<NamedTensor>,
    /// The outputs that were asked for; empty means all, in the form of [`InferRequest::default_binary`].
    pub outputs: Vec<RequestedOutput>,
    /// Whether outputs that are not named in `outputs` go out as binary data.
    pub default_binary: bool,
}

/// One element of the request's `outputs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedOutput {
    /// Name of the model's output.
    pub name: String,
    /// Whether it goes out as binary data: `binary_data` of the output, else `binary_data_output` of the request, else no.
    pub binary: bool,
    /// Top K classes instead of the tensor.
    pub classification: Option<usize>,
}

impl InferRequest {
    /// How the output at `position` of the answer goes out, counted in the order of asking.
    pub fn output_form(&self, position: usize) -> (bool, Option<usize>) {
        match self.outputs.get(position) {
            Some(output) => (output.binary, output.classification),
            None => (self.default_binary, None),
        }
    }
}

/// What a raw request (header value 0, no JSON) is read with.
#[derive(Clone, Copy, Debug)]
pub struct RawInput<'a> {
    /// The model's inputs; a raw request needs exactly one.
    pub inputs: &'a [TensorSpec],
    /// Whether the first dimension is the batch, as with `max_batch_size` > 0. Then it is 1.
    pub batched: bool,
}

/// Decodes the body of `POST …/infer`, already decompressed.
///
/// `header_length` is the text of `Inference-Header-Content-Length`, where there was one. Absent: the whole body is
/// JSON. 0: the whole body is the one input, without JSON.
///
/// Elements of `BOOL` sent as binary data are false when 0 and true otherwise; they come out as 0 and 1.
///
/// # Errors
/// [`CodecError`], whose text names the field. Order: header, JSON and its members, then input by input, then bytes
/// left over.
pub fn decode_infer(
    body: &Bytes,
    header_length: Option<&str>,
    raw: RawInput<'_>,
    limits: &DecodeLimits,
) -> Result<InferRequest, CodecError> {
    let json_length = match header_length {
        None => body.len(),
        Some(text) => match header_value(text, body.len())? {
            0 => return decode_raw(body, raw),
            length => length,
        },
    };
    let wire = parse_json(&body[..json_length], limits)?;
    let mut budget = Budget { left: limits.max_decoded_bytes, limit: limits.max_decoded_bytes };
    let mut binary = body.slice(json_length..);
    let WireRequest { id, parameters, inputs, outputs } = wire;
    let mut tensors = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.into_iter().enumerate() {
        tensors.push(decode_input(input, index, body, &mut binary, &mut budget)?);
    }
    if !binary.is_empty() {
        return Err(CodecError::new("", Problem::LeftOver { left: binary.len() }));
    }
    let default_binary = parameters.binary_data_output.unwrap_or(false);
    let requested = |output: WireOutput| RequestedOutput {
        name: output.name,
        binary: output.binary_data.unwrap_or(default_binary),
        classification: output.classification,
    };
    let outputs = outputs.into_iter().map(requested).collect();
    Ok(InferRequest { id, parameters, inputs: tensors, outputs, default_binary })
}

fn header_value(text: &str, body: usize) -> Result<usize, CodecError> {
    let text = text.trim_matches([' ', '\t']);
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        let problem = Problem::HeaderNotNumber { found: clipped(text) };
        return Err(CodecError::new(HEADER_LENGTH, problem));
    }
    // Only too many digits can fail now, and that is beyond any body.
    let claimed = text.parse().unwrap_or(usize::MAX);
    if claimed > body {
        return Err(CodecError::new(HEADER_LENGTH, Problem::HeaderBeyondBody { claimed, body }));
    }
    Ok(claimed)
}

fn parse_json<'de>(json: &'de [u8], limits: &DecodeLimits) -> Result<WireRequest<'de>, CodecError> {
    let trail = Trail::default();
    let mut from = serde_json::Deserializer::from_slice(json);
    let seed = RequestSeed(Scope { trail: &trail, limits });
    match seed.deserialize(&mut from).and_then(|wire| from.end().map(|()| wire)) {
        Ok(wire) => Ok(wire),
        Err(error) => Err(trail.error("", &error, json)),
    }
}

/// Bytes that the tensors of one request may still take.
struct Budget {
    left: usize,
    limit: usize,
}

impl Budget {
    fn take(&mut self, bytes: usize, field: impl FnOnce() -> String) -> Result<(), CodecError> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(CodecError::new(field(), Problem::DecodedTooLarge { limit: self.limit })),
        }
    }
}

fn decode_input(
    input: WireInput<'_>,
    index: usize,
    body: &Bytes,
    binary: &mut Bytes,
    budget: &mut Budget,
) -> Result<NamedTensor, CodecError> {
    let WireInput { name, shape, datatype, binary_data_size, data } = input;
    let element_size = datatype.element_size().unwrap_or(STRING_OVERHEAD);
    let count = element_count(&shape).filter(|count| count.checked_mul(element_size).is_some());
    let Some(count) = count else {
        let field = format!("inputs[{index}].shape");
        return Err(CodecError::new(field, Problem::Overflow { shape }));
    };
    let tensor = match (data, binary_data_size) {
        (Some(_), Some(_)) => {
            let (one, other) = ("data", "parameters.binary_data_size");
            let field = format!("inputs[{index}]");
            return Err(CodecError::new(field, Problem::Exclusive { one, other }));
        }
        (None, None) => {
            let hint = "give the elements as data, or parameters.binary_data_size and the bytes after the JSON";
            let field = format!("inputs[{index}].data");
            return Err(CodecError::new(field, Problem::Missing { hint }));
        }
        (Some(data), None) => {
            // What the text can hold bounds what will be allocated, whatever the shape claims.
            let elements = count.min(most_elements(data.get()));
            let text = if datatype == Datatype::Bytes { data.get().len() } else { 0 };
            let bytes = elements.saturating_mul(element_size).saturating_add(text);
            budget.take(bytes, || format!("inputs[{index}].data"))?;
            decode_json(data, datatype, shape, count, index, body)?
        }
        (None, Some(claimed)) => {
            let field = || format!("inputs[{index}].parameters.binary_data_size");
            let expected = datatype.element_size().map(|size| size * count);
            if let Some(expected) = expected.filter(|expected| *expected != claimed) {
                let problem = Problem::BinarySize { claimed, shape, datatype, expected };
                return Err(CodecError::new(field(), problem));
            }
            if claimed > binary.len() {
                let left = binary.len();
                return Err(CodecError::new(field(), Problem::BinaryBeyondBody { claimed, left }));
            }
            if datatype == Datatype::Bytes {
                let elements = count.min(claimed / 4);
                budget.take(elements.saturating_mul(element_size), field)?;
            }
            budget.take(claimed, field)?;
            decode_binary(binary.split_to(claimed), datatype, shape, count, index)?
        }
    };
    Ok(NamedTensor { name, tensor })
}

fn decode_json(
    data: &RawValue,
    datatype: Datatype,
    shape: Vec<usize>,
    count: usize,
    index: usize,
    body: &Bytes,
) -> Result<Tensor, CodecError> {
    let field = || format!("inputs[{index}].data");
    if !datatype.has_json_form() {
        return Err(CodecError::new(field(), Problem::HalfInput { datatype }));
    }
    let text = data.get();
    let trail = Trail::default();
    let context = Context { trail: &trail, shape: &shape, max_elements: count, max_bytes: 0 };
    let mut elements = Elements::with_capacity(datatype, count.min(most_elements(text)), body);
    let mut from = serde_json::Deserializer::from_str(text);
    let read = if is_nested(text, shape.len()) {
        let mut levels: Vec<Level> = shape
            .iter()
            .enumerate()
            .map(|(axis, size)| Level { size: Some(*size), source: Source::Dimension(axis) })
            .collect();
        elements.read(&mut from, &mut levels, context)
    } else {
        let mut levels = [Level { size: Some(count), source: Source::Product }];
        elements.read(&mut from, &mut levels, context)
    };
    if let Err(error) = read.and_then(|()| from.end()) {
        return Err(trail.error(&field(), &error, text.as_bytes()));
    }
    tensor(datatype, shape, elements.finish(), field)
}

/// Whether the data are nested as the shape is, rather than flat.
///
/// The second bracket tells. Data of rank 0 may stand bare, data of rank 1 are the same in both forms.
fn is_nested(text: &str, rank: usize) -> bool {
    let mut bytes = text.bytes().filter(|byte| !byte.is_ascii_whitespace());
    match (bytes.next(), rank) {
        (Some(b'['), 0 | 1) => false,
        (Some(b'['), _) => bytes.next() == Some(b'['),
        (_, rank) => rank == 0,
    }
}

/// The tensor, once elements and shape are there.
pub(super) fn tensor(
    datatype: Datatype,
    shape: Vec<usize>,
    data: TensorData,
    field: impl FnOnce() -> String,
) -> Result<Tensor, CodecError> {
    let made = match data {
        TensorData::Raw(data) => Tensor::raw(datatype, shape, data),
        TensorData::Strings(elements) => Tensor::strings(shape, elements),
    };
    made.map_err(|error| contradiction(error, field()))
}

/// The readers count, so this is not reached; were it reached, the client would learn what is wrong all the same.
fn contradiction(error: TensorError, field: String) -> CodecError {
    let problem = match error {
        TensorError::Overflow { shape } => Problem::Overflow { shape },
        TensorError::ByteSize { datatype, shape, expected, found } => {
            Problem::BinarySize { claimed: found, shape, datatype, expected }
        }
        TensorError::ElementCount { shape, expected, found } => {
            Problem::ElementCount { found: Count::Exactly(found), shape, expected }
        }
    };
    CodecError::new(field, problem)
}

fn decode_binary(
    bytes: Bytes,
    datatype: Datatype,
    shape: Vec<usize>,
    count: usize,
    index: usize,
) -> Result<Tensor, CodecError> {
    let field = || format!("inputs[{index}]");
    let data = match datatype {
        Datatype::Bytes => TensorData::Strings(split_strings(bytes, &shape, count, field)?),
        Datatype::Bool => TensorData::Raw(normal_bools(bytes)),
        _ => TensorData::Raw(bytes),
    };
    tensor(datatype, shape, data, field)
}

/// Cuts a binary `BYTES` tensor into its elements, without copying.
fn split_strings(
    mut bytes: Bytes,
    shape: &[usize],
    count: usize,
    field: impl FnOnce() -> String,
) -> Result<Vec<Bytes>, CodecError> {
    let mut elements = Vec::with_capacity(count.min(bytes.len() / 4));
    let problem = loop {
        let index = elements.len();
        if bytes.is_empty() || index == count {
            if bytes.is_empty() && index == count {
                return Ok(elements);
            }
            let found =
                if bytes.is_empty() { Count::Exactly(index) } else { Count::MoreThan(index) };
            break Problem::ElementCount { found, shape: shape.to_vec(), expected: count };
        }
        if bytes.len() < 4 {
            let problem = BytesProblem::NoLength(bytes.len());
            break Problem::BytesElement { index, problem };
        }
        let length = bytes.get_u32_le();
        match usize::try_from(length) {
            Ok(size) if size <= bytes.len() => elements.push(bytes.split_to(size)),
            _ => {
                let problem = BytesProblem::BeyondEnd(length, bytes.len());
                break Problem::BytesElement { index, problem };
            }
        }
    };
    Err(CodecError::new(field(), problem))
}

/// C calls any byte but 0 true, ONNX Runtime wants 0 or 1. A copy is made only where it must be.
fn normal_bools(bytes: Bytes) -> Bytes {
    if bytes.iter().all(|byte| *byte <= 1) {
        return bytes;
    }
    bytes.iter().map(|byte| u8::from(*byte != 0)).collect()
}

/// A request without JSON: the whole body is the one input, batch 1, and all outputs go out as binary data.
///
/// At most one dimension may vary; the length of the body tells its size. A `BYTES` input is one element, the whole
/// body, without a length before it, as Triton has it.
fn decode_raw(body: &Bytes, raw: RawInput<'_>) -> Result<InferRequest, CodecError> {
    let impossible = |needed| CodecError::new("", Problem::RawNotPossible { needed });
    let [spec] = raw.inputs else {
        return Err(impossible("a model with exactly one input"));
    };
    let Some(declared) = &spec.shape else {
        return Err(impossible("a model that declares the shape of its input"));
    };
    let mut shape: Vec<Option<usize>> = declared
        .iter()
        .map(|dimension| match dimension {
            Dimension::Fixed(size) => Some(*size),
            Dimension::Dynamic(_) => None,
        })
        .collect();
    if let (true, Some(first @ None)) = (raw.batched, shape.first_mut()) {
        *first = Some(1);
    }
    if shape.iter().filter(|size| size.is_none()).count() > 1 {
        return Err(impossible("a model whose input has at most one variable dimension"));
    }
    let misfit = |needed: String| {
        let problem = Problem::RawSize {
            found: body.len(),
            datatype: spec.datatype,
            shape: spec.protocol_shape(),
            needed,
        };
        CodecError::new("", problem)
    };
    let fixed: Vec<usize> = shape.iter().copied().flatten().collect();
    let fixed = element_count(&fixed).ok_or_else(|| misfit("more than can be addressed".into()))?;
    let (count, unit) = match spec.datatype.element_size() {
        None => (1, fixed),
        Some(size) => (body.len(), fixed.saturating_mul(size)),
    };
    let varies = shape.contains(&None);
    let fits = if varies { unit > 0 && count % unit == 0 } else { count == unit };
    if !fits {
        return Err(misfit(match (spec.datatype.element_size(), varies) {
            (None, _) => "exactly one element, the whole body".to_owned(),
            (Some(_), false) => format!("{unit} bytes"),
            (Some(_), true) => format!("a multiple of {unit} bytes"),
        }));
    }
    let shape = shape.iter().map(|size| size.unwrap_or_else(|| count / unit)).collect();
    let data = match spec.datatype {
        Datatype::Bytes => TensorData::Strings(vec![body.clone()]),
        Datatype::Bool => TensorData::Raw(normal_bools(body.clone())),
        _ => TensorData::Raw(body.clone()),
    };
    let tensor = tensor(spec.datatype, shape, data, String::new)?;
    Ok(InferRequest {
        id: None,
        parameters: Parameters { binary_data_output: Some(true), ..Parameters::default() },
        inputs: vec![NamedTensor { name: spec.name.clone(), tensor }],
        outputs: Vec::new(),
        default_binary: true,
    })
}
