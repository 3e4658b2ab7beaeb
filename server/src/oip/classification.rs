//! The classification extension: the top K of an output as `value:index` or `value:index:label`.
//!
//! The value is written as Triton writes it (`std::to_string`): integers plain, floats with six decimals.

use super::error::{CodecError, Problem};
use balm_inference::datatype::Datatype;
use balm_inference::tensor::{Tensor, TensorData, element_count};
use bytes::Bytes;
use half::{bf16, f16};
use std::cmp::Ordering;

/// How an output is turned into classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classification<'a> {
    /// How many classes; fewer come out where the output has fewer.
    pub count: usize,
    /// Names of the classes by index. An index beyond them gets no name.
    pub labels: &'a [String],
}

/// The `BYTES` tensor of the top classes: `[batch, K]`, or `[K]` for an output of rank 0 or 1.
///
/// The first dimension of an output of rank ≥ 2 is the batch; an index counts through the rest. Equal values keep
/// the order of their indices; not-a-number comes last.
///
/// # Errors
/// [`Problem::ClassifyDatatype`] for `BOOL` and `BYTES`, which have no order worth the name.
pub(super) fn classify(
    tensor: &Tensor,
    classification: Classification<'_>,
    field: &str,
) -> Result<Tensor, CodecError> {
    let refusal =
        || CodecError::new(field, Problem::ClassifyDatatype { datatype: tensor.datatype() });
    let TensorData::Raw(raw) = tensor.data() else {
        return Err(refusal());
    };
    match tensor.datatype() {
        Datatype::Bool | Datatype::Bytes => None,
        Datatype::Uint8 => top(tensor, classification, integers(raw, u8::from_le_bytes)),
        Datatype::Uint16 => top(tensor, classification, integers(raw, u16::from_le_bytes)),
        Datatype::Uint32 => top(tensor, classification, integers(raw, u32::from_le_bytes)),
        Datatype::Uint64 => top(tensor, classification, integers(raw, u64::from_le_bytes)),
        Datatype::Int8 => top(tensor, classification, integers(raw, i8::from_le_bytes)),
        Datatype::Int16 => top(tensor, classification, integers(raw, i16::from_le_bytes)),
        Datatype::Int32 => top(tensor, classification, integers(raw, i32::from_le_bytes)),
        Datatype::Int64 => top(tensor, classification, integers(raw, i64::from_le_bytes)),
        Datatype::Fp16 => {
            top(tensor, classification, floats(raw, |b| f16::from_le_bytes(b).to_f64()))
        }
        Datatype::Bf16 => {
            top(tensor, classification, floats(raw, |b| bf16::from_le_bytes(b).to_f64()))
        }
        Datatype::Fp32 => {
            top(tensor, classification, floats(raw, |b| f64::from(f32::from_le_bytes(b))))
        }
        Datatype::Fp64 => top(tensor, classification, floats(raw, f64::from_le_bytes)),
    }
    .ok_or_else(refusal)
}

/// A value that can be ranked and written.
trait Score: Copy {
    /// Greater first; not-a-number last.
    fn rank(self, other: Self) -> Ordering;
    fn text(self) -> String;
}

impl Score for i128 {
    fn rank(self, other: Self) -> Ordering {
        other.cmp(&self)
    }

    fn text(self) -> String {
        self.to_string()
    }
}

impl Score for f64 {
    fn rank(self, other: Self) -> Ordering {
        let by_value = || other.partial_cmp(&self).unwrap_or(Ordering::Equal);
        self.is_nan().cmp(&other.is_nan()).then_with(by_value)
    }

    fn text(self) -> String {
        match self.is_nan() {
            true => "nan".to_owned(),
            false => format!("{self:.6}"),
        }
    }
}

fn integers<const N: usize, T: Into<i128>>(raw: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<i128> {
    raw.as_chunks::<N>().0.iter().map(|bytes| read(*bytes).into()).collect()
}

fn floats<const N: usize>(raw: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    raw.as_chunks::<N>().0.iter().map(|bytes| read(*bytes)).collect()
}

/// The strings of the top classes; `None` only if strings and shape disagreed, which the arithmetic rules out.
fn top<S: Score>(
    tensor: &Tensor,
    classification: Classification<'_>,
    scores: Vec<S>,
) -> Option<Tensor> {
    let (batch, row) = match tensor.shape() {
        [batch, row @ ..] if !row.is_empty() => (Some(*batch), element_count(row)?),
        _ => (None, scores.len()),
    };
    let count = classification.count.min(row);
    let mut elements = Vec::new();
    if count > 0 {
        for scores in scores.chunks_exact(row) {
            let mut order: Vec<usize> = (0..row).collect();
            order.sort_by(|a, b| scores[*a].rank(scores[*b]));
            for index in &order[..count] {
                let mut text = format!("{}:{index}", scores[*index].text());
                if let Some(label) = classification.labels.get(*index) {
                    text.push(':');
                    text.push_str(label);
                }
                elements.push(Bytes::from(text));
            }
        }
    }
    let shape: Vec<usize> = batch.into_iter().chain([count]).collect();
    Tensor::strings(shape, elements).ok()
}
