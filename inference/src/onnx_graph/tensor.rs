//! Tensors of a model file: their dimensions, and where their elements lie.

use super::error::GraphError;
use super::text;
use super::wire::{Reader, Value};
use crate::integrity::name_problem;

/// A tensor whose elements lie in another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExternalTensor<'a> {
    /// Name of the tensor; may be empty.
    pub name: &'a str,
    /// Name of the file, relative to the version folder; plain, see `SHA256SUMS`.
    pub location: &'a str,
    /// Where the elements begin, in bytes.
    pub offset: u64,
    /// Bytes of the elements, if the model says so.
    pub length: Option<u64>,
    /// Bytes that dimensions and element type ask for; `None` for an element type this server does not know.
    pub needed: Option<u64>,
}

impl ExternalTensor<'_> {
    /// Whether the elements lie within a file of `file_size` bytes.
    ///
    /// # Errors
    /// [`GraphError::ExternalData`] when they do not, or length and dimensions contradict each other.
    pub fn check_within(&self, file_size: u64) -> Result<(), GraphError> {
        let contradiction = match (self.length, self.needed) {
            (Some(length), Some(needed)) if length != needed => Some((length, needed)),
            _ => None,
        };
        if let Some((length, needed)) = contradiction {
            let problem = format!("its length is {length} bytes, its dimensions need {needed}");
            return Err(GraphError::external(self.name, problem));
        }
        let length = self.length.or(self.needed).unwrap_or(0);
        match self.offset.checked_add(length) {
            Some(end) if end <= file_size => Ok(()),
            _ => {
                let (location, offset) = (self.location, self.offset);
                let problem = format!(
                    "offset {offset} and length {length} go beyond the {file_size} bytes of {location:?}"
                );
                Err(GraphError::external(self.name, problem))
            }
        }
    }
}

/// Reads a `TensorProto`; gives something when its elements are external.
pub(super) fn read<'a>(message: Reader<'a>) -> Result<Option<ExternalTensor<'a>>, GraphError> {
    let name = find_name(message)?;
    let mut elements = Some(1u64);
    let mut any_zero = false;
    let mut data_type = 0;
    let mut external = false;
    let mut entries = Entries::default();
    let mut dimension = |size: u64| {
        // Negative ones arrive as numbers beyond i64.
        any_zero |= size == 0;
        if i64::try_from(size).is_err() {
            return Err(GraphError::Dimensions { tensor: crate::clip::clipped(name) });
        }
        // A zero makes the product zero, whatever the others are.
        elements = elements.and_then(|product| product.checked_mul(size.max(1)));
        Ok(())
    };
    let mut rest = message;
    while let Some((field, value)) = rest.field()? {
        match (field, value) {
            (1, Value::Varint(size)) => dimension(size)?,
            (1, Value::Bytes(mut packed)) => {
                while !packed.bytes().is_empty() {
                    dimension(packed.varint()?)?;
                }
            }
            (2, Value::Varint(number)) => data_type = number as u32,
            (13, Value::Bytes(entry)) => entries.add(name, entry)?,
            // Protobuf keeps the last one, and drops what it does not know; here one is enough.
            (14, Value::Varint(place)) => external |= place as u32 != 0,
            (13 | 14, _) => {
                let problem = "a field has the wrong wire type";
                return Err(GraphError::malformed(rest.at(), problem));
            }
            _ => {}
        }
    }
    let elements = if any_zero { Some(0) } else { elements };
    let needed = elements
        .and_then(|count| byte_size(count, data_type))
        .filter(|bytes| bytes.is_none_or(|bytes| i64::try_from(bytes).is_ok()))
        .ok_or_else(|| GraphError::Dimensions { tensor: crate::clip::clipped(name) })?;
    if !external {
        return Ok(None);
    }
    if data_type == STRING {
        return Err(GraphError::external(name, "strings cannot lie in another file"));
    }
    entries.tensor(name, needed).map(Some)
}

fn find_name<'a>(mut message: Reader<'a>) -> Result<&'a str, GraphError> {
    let mut name = "";
    while let Some((field, value)) = message.field()? {
        if let (8, Value::Bytes(bytes)) = (field, value) {
            name = text(bytes)?;
        }
    }
    Ok(name)
}

/// `TensorProto.DataType.STRING`.
const STRING: u32 = 8;

/// Bytes of `count` elements: outer `None` on overflow, inner `None` where the size is not known.
fn byte_size(count: u64, data_type: u32) -> Option<Option<u64>> {
    // Bits per element, by the numbers of `TensorProto.DataType`.
    let bits: u64 = match data_type {
        2 | 3 | 9 | 17..=20 | 24 => 8,
        4 | 5 | 10 | 16 => 16,
        1 | 6 | 12 => 32,
        7 | 11 | 13 | 14 => 64,
        15 => 128,
        21..=23 => 4,
        25 | 26 => 2,
        _ => return Some(None),
    };
    if bits >= 8 {
        count.checked_mul(bits / 8).map(Some)
    } else {
        Some(Some(count.div_ceil(8 / bits)))
    }
}

/// The key-value entries of `external_data`.
#[derive(Default)]
struct Entries<'a> {
    location: Option<&'a str>,
    offset: Option<u64>,
    length: Option<u64>,
    checksum: bool,
}

impl<'a> Entries<'a> {
    fn add(&mut self, tensor: &str, mut entry: Reader<'a>) -> Result<(), GraphError> {
        let (mut key, mut value) = ("", "");
        while let Some((field, content)) = entry.field()? {
            match (field, content) {
                (1, Value::Bytes(bytes)) => key = text(bytes)?,
                (2, Value::Bytes(bytes)) => value = text(bytes)?,
                _ => {}
            }
        }
        let repeated = match key {
            "location" => self.location.replace(value).is_some(),
            "offset" => self.offset.replace(number(tensor, key, value)?).is_some(),
            "length" => self.length.replace(number(tensor, key, value)?).is_some(),
            // SHA-1 of the file, optional and unused by ONNX Runtime; the manifest says more.
            "checksum" => std::mem::replace(&mut self.checksum, true),
            _ => {
                let key = crate::clip::clipped(key);
                let problem = format!(
                    "unknown key {key:?}; known are \"location\", \"offset\", \"length\" and \"checksum\""
                );
                return Err(GraphError::external(tensor, problem));
            }
        };
        if repeated {
            return Err(GraphError::external(tensor, format!("key {key:?} appears twice")));
        }
        Ok(())
    }

    fn tensor(self, name: &'a str, needed: Option<u64>) -> Result<ExternalTensor<'a>, GraphError> {
        let location =
            self.location.ok_or_else(|| GraphError::external(name, "it has no location"))?;
        let problem = if location.contains("_ORT_MEM_ADDR_") {
            // ONNX Runtime would take the offset for an address in memory.
            Some("is a mark that ONNX Runtime keeps for itself")
        } else {
            name_problem(location)
        };
        if let Some(problem) = problem {
            return Err(GraphError::location(name, location, problem));
        }
        let (offset, length) = (self.offset.unwrap_or(0), self.length);
        Ok(ExternalTensor { name, location, offset, length, needed })
    }
}

/// Decimal digits and nothing else, within the range of a file offset.
fn number(tensor: &str, key: &str, value: &str) -> Result<u64, GraphError> {
    let plain = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    value
        .parse()
        .ok()
        .filter(|number| plain && i64::try_from(*number).is_ok())
        .ok_or_else(|| GraphError::external(tensor, format!("{key} is not a number of bytes")))
}
