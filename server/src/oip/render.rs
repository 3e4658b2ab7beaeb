//! Elements of a tensor as JSON.
//!
//! Not-a-number and the infinities, which JSON lacks, become `null`. Singles are written with the fewest digits that
//! read back as the same single, never widened to a double first.

use super::error::{CodecError, Problem};
use balm_inference::datatype::Datatype;
use balm_inference::tensor::{Tensor, TensorData};
use half::{bf16, f16};
use serde::Serialize;
use std::ops::Range;

/// Appends `value` as JSON.
pub(super) fn put<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    // Text, numbers and maps of them always serialize, and a Vec takes every byte.
    let written = serde_json::to_writer(&mut *out, value);
    debug_assert!(written.is_ok(), "a plain value must serialize");
}

/// Appends `items` between `open` and `close`, with commas.
pub(super) fn put_list<I: IntoIterator>(
    out: &mut Vec<u8>,
    items: I,
    mut put_item: impl FnMut(&mut Vec<u8>, I::Item),
) {
    out.push(b'[');
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        put_item(out, item);
    }
    out.push(b']');
}

/// Appends the elements of `range` as one flat array.
///
/// FP16 and BF16 are written as numbers; whoever may not do that asks [`Datatype::has_json_form`] before.
///
/// # Errors
/// [`Problem::NotUtf8`] for a string element that JSON cannot hold; `field` names the output.
pub(super) fn put_flat(
    out: &mut Vec<u8>,
    tensor: &Tensor,
    range: Range<usize>,
    field: &str,
) -> Result<(), CodecError> {
    let raw = match tensor.data() {
        TensorData::Strings(elements) => {
            let mut broken = None;
            let first = range.start;
            put_list(out, elements[range].iter().enumerate(), |out, (index, element)| {
                match std::str::from_utf8(element) {
                    Ok(text) => put(out, text),
                    Err(_) => broken = broken.or(Some(first + index)),
                }
            });
            return match broken {
                None => Ok(()),
                Some(index) => Err(CodecError::new(field, Problem::NotUtf8 { index })),
            };
        }
        TensorData::Raw(raw) => raw,
    };
    let size = tensor.datatype().element_size().unwrap_or(1);
    let bytes = &raw[range.start * size..range.end * size];
    match tensor.datatype() {
        Datatype::Bool => put_list(out, bytes, |out, byte| put(out, &(*byte != 0))),
        Datatype::Uint8 => put_numbers(out, bytes, u8::from_le_bytes),
        Datatype::Uint16 => put_numbers(out, bytes, u16::from_le_bytes),
        Datatype::Uint32 => put_numbers(out, bytes, u32::from_le_bytes),
        Datatype::Uint64 => put_numbers(out, bytes, u64::from_le_bytes),
        Datatype::Int8 => put_numbers(out, bytes, i8::from_le_bytes),
        Datatype::Int16 => put_numbers(out, bytes, i16::from_le_bytes),
        Datatype::Int32 => put_numbers(out, bytes, i32::from_le_bytes),
        Datatype::Int64 => put_numbers(out, bytes, i64::from_le_bytes),
        Datatype::Fp16 => put_numbers(out, bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Datatype::Bf16 => put_numbers(out, bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        Datatype::Fp32 => put_numbers(out, bytes, f32::from_le_bytes),
        Datatype::Fp64 => put_numbers(out, bytes, f64::from_le_bytes),
        // A BYTES tensor holds strings, which the first match has taken.
        Datatype::Bytes => put_list(out, [(); 0], |_, ()| ()),
    }
    Ok(())
}

fn put_numbers<const N: usize, T: Serialize>(
    out: &mut Vec<u8>,
    bytes: &[u8],
    read: impl Fn([u8; N]) -> T,
) {
    let (numbers, _) = bytes.as_chunks::<N>();
    put_list(out, numbers, |out, number| put(out, &read(*number)));
}

/// Upper estimate of the JSON text of a tensor in bytes, to reserve once.
pub(super) fn text_estimate(tensor: &Tensor) -> usize {
    match tensor.data() {
        TensorData::Strings(elements) => tensor.byte_size() + 4 * elements.len() + 2,
        TensorData::Raw(_) => {
            let digits = match tensor.datatype() {
                Datatype::Bool => 6,
                Datatype::Uint8 | Datatype::Int8 => 5,
                Datatype::Uint16 | Datatype::Int16 => 7,
                Datatype::Fp64 | Datatype::Int64 | Datatype::Uint64 => 20,
                _ => 12,
            };
            tensor.element_count().saturating_mul(digits).saturating_add(2)
        }
    }
}
