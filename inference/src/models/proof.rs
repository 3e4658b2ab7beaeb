//! Whether requests may share runs: proved on the model itself, not guessed from its shapes.
//!
//! A first dimension that varies may be a batch, or a sequence, or a batch that the model normalises over. So two requests
//! are run apart and together: only if their answers are the same does each row mind its own business. Whether a model
//! minds padding, because it has no mask, say, is tried in the same way with two requests of different lengths.

use super::run_limit::RunLimit;
use crate::batch::{self, Padding};
use crate::contract::{Contract, Dimension};
use crate::datatype::Datatype::{self, Bf16, Fp16, Fp32, Fp64};
use crate::engine::Session;
use crate::golden::{GoldenCase, Mismatch, matches};
use crate::tensor::{NamedTensor, Tensor, TensorData};
use bytes::Bytes;

/// Relative and absolute. Rows that run together may be added up in another order, and quantised ones rounded differently.
const TOLERANCE: f64 = 1e-3;
/// Size of the dimensions that vary, in requests that are made up.
const MADE_UP_SIZE: usize = 2;
/// The same where it is to be another one.
const MADE_UP_LONGER: usize = 3;
/// Elements of a request that is made up, at most.
const MADE_UP_ELEMENTS_MAX: usize = 1 << 24;

/// Runs two requests apart and together.
///
/// # Errors
/// Why requests must not share runs, in a sentence for people.
pub(super) fn rows_are_independent(
    session: &mut dyn Session,
    golden: &[GoldenCase],
    limit: &RunLimit,
) -> Result<(), String> {
    let contract = session.contract().clone();
    if !contract.is_batched() {
        return Err("not every input and output has a first dimension that varies".to_owned());
    }
    let (first, second) = pair(&contract, golden)
        .or_else(|| made_up(&contract))
        .ok_or("there are no two requests to try it with")?;
    let together = batch::concatenate(&[&first, &second]);
    let outputs: Vec<usize> = (0..contract.outputs.len()).collect();
    let mut run = |inputs: &[Tensor]| limit.run(session, inputs, &outputs).map(|ran| ran.outputs);
    let (apart, joined) = ([run(&first)?, run(&second)?], run(&together)?);
    let rows = [&first, &second].map(|inputs| batch::rows(inputs).unwrap_or(1));
    let parts = batch::split(&joined, &rows)?;
    alike(&contract, &apart, &parts)
        .map_err(|mismatch| format!("together they are answered otherwise: {mismatch}"))
}

/// Runs requests of different lengths apart and together, padded.
///
/// # Errors
/// Why requests must not be padded, in a sentence for people.
pub(super) fn padding_is_harmless(
    session: &mut dyn Session,
    golden: &[GoldenCase],
    padding: &Padding,
    limit: &RunLimit,
) -> Result<(), String> {
    let contract = session.contract().clone();
    let pairs = match pair_to_pad(&contract, golden, padding) {
        Some(pair) => vec![pair],
        None => made_up_to_pad(&contract, padding),
    };
    if pairs.is_empty() {
        return Err("there are no two requests of different lengths to try it with".to_owned());
    }
    let outputs: Vec<usize> = (0..contract.outputs.len()).collect();
    for (first, second) in &pairs {
        let requests = [first.as_slice(), second.as_slice()];
        let together = padding.concatenate(&requests);
        let mut run =
            |inputs: &[Tensor]| limit.run(session, inputs, &outputs).map(|ran| ran.outputs);
        let (apart, joined) = ([run(first)?, run(second)?], run(&together)?);
        let rows = requests.map(|inputs| batch::rows(inputs).unwrap_or(1));
        let parts = padding.cut(&together, &requests, &outputs, batch::split(&joined, &rows)?)?;
        alike(&contract, &apart, &parts)
            .map_err(|mismatch| format!("padded they are answered otherwise: {mismatch}"))?;
    }
    Ok(())
}

/// Whether the answers to two requests are those that they had apart.
fn alike(
    contract: &Contract,
    apart: &[Vec<Tensor>],
    parts: &[Vec<Tensor>],
) -> Result<(), Mismatch> {
    for (apart, part) in apart.iter().zip(parts) {
        for ((spec, apart), part) in contract.outputs.iter().zip(apart).zip(part) {
            let apart = NamedTensor { name: spec.name.clone(), tensor: apart.clone() };
            matches(&apart, part, TOLERANCE)?;
        }
    }
    Ok(())
}

type Pair = (Vec<Tensor>, Vec<Tensor>);

/// What the golden requests bring, with their rows.
fn golden_requests(contract: &Contract, golden: &[GoldenCase]) -> Vec<(Vec<Tensor>, usize)> {
    golden
        .iter()
        .filter_map(|case| contract.accept(case.inputs.clone(), usize::MAX).ok())
        .filter_map(|inputs| batch::rows(&inputs).map(|rows| (inputs, rows)))
        .collect()
}

/// Two golden requests of different lengths.
fn pair_to_pad(contract: &Contract, golden: &[GoldenCase], padding: &Padding) -> Option<Pair> {
    let mut requests = golden_requests(contract, golden);
    requests.retain(|(inputs, _)| padding.takes(inputs));
    requests.iter().enumerate().find_map(|(index, (first, _))| {
        let (second, _) = requests[index + 1..].iter().find(|(second, _)| {
            padding.makes_alike(first, second) && !batch::same_but_rows(first, second)
        })?;
        Some((first.clone(), second.clone()))
    })
}

/// A shorter and a longer request of ones: for an attention mask everything counts. Where numbers may be negative, others of
/// minus ones: the largest of them is not what they are padded with.
fn made_up_to_pad(contract: &Contract, padding: &Padding) -> Vec<Pair> {
    let of = |size: usize| -> Option<Vec<Tensor>> {
        let inputs = contract.inputs.iter().enumerate();
        inputs
            .map(|(input, spec)| {
                let dimensions = spec.shape.as_ref()?.iter().enumerate().skip(1);
                let sizes = dimensions.map(|(axis, dimension)| match dimension {
                    Dimension::Fixed(size) => *size,
                    Dimension::Dynamic(_) if padding.pads(input, axis) => size,
                    Dimension::Dynamic(_) => MADE_UP_SIZE,
                });
                filled(spec.datatype, std::iter::once(1).chain(sizes).collect(), 1)
            })
            .collect()
    };
    let Some(pair) = of(MADE_UP_SIZE).zip(of(MADE_UP_LONGER)) else { return Vec::new() };
    let negative = (negated(&pair.0), negated(&pair.1));
    if negative == pair { vec![pair] } else { vec![pair, negative] }
}

/// The request with the sign of its floating-point numbers turned.
fn negated(inputs: &[Tensor]) -> Vec<Tensor> {
    let turned = |tensor: &Tensor| -> Option<Tensor> {
        let datatype = tensor.datatype();
        let (Fp16 | Bf16 | Fp32 | Fp64) = datatype else { return None };
        let TensorData::Raw(data) = tensor.data() else { return None };
        let mut bytes = data.to_vec();
        // Little-endian, so the sign is the highest bit of the last byte.
        for element in bytes.chunks_exact_mut(datatype.element_size()?) {
            if let Some(last) = element.last_mut() {
                *last ^= 0x80;
            }
        }
        Tensor::raw(datatype, tensor.shape().to_vec(), bytes.into()).ok()
    };
    inputs.iter().map(|tensor| turned(tensor).unwrap_or_else(|| tensor.clone())).collect()
}

/// Two different requests out of the golden ones: of one case with several rows, or of two cases.
fn pair(contract: &Contract, golden: &[GoldenCase]) -> Option<Pair> {
    let requests = golden_requests(contract, golden);
    let cut = |inputs: &[Tensor], start: usize, count: usize| {
        inputs.iter().map(|tensor| batch::slice(tensor, start, count)).collect::<Result<_, _>>()
    };
    let halves = requests.iter().filter(|(_, rows)| *rows > 1).filter_map(|(inputs, rows)| {
        Some((cut(inputs, 0, 1).ok()?, cut(inputs, 1, rows - 1).ok()?))
    });
    let couples = requests.iter().enumerate().flat_map(|(index, (first, _))| {
        requests[index + 1..]
            .iter()
            .filter(|(second, _)| batch::same_but_rows(first, second))
            .map(|(second, _)| (first.clone(), second.clone()))
    });
    halves.chain(couples).find(|(first, second)| first != second)
}

/// A request of zeros and one of ones.
fn made_up(contract: &Contract) -> Option<Pair> {
    let of = |value: u8| -> Option<Vec<Tensor>> {
        contract
            .inputs
            .iter()
            .map(|spec| {
                let sizes = spec.shape.as_ref()?.iter().skip(1).map(|dimension| match dimension {
                    Dimension::Fixed(size) => *size,
                    Dimension::Dynamic(_) => MADE_UP_SIZE,
                });
                let shape: Vec<usize> = std::iter::once(1).chain(sizes).collect();
                filled(spec.datatype, shape, value)
            })
            .collect()
    };
    Some((of(0)?, of(1)?))
}

/// One request of zeros, of one row where rows vary. `None` where its shape is open or it would be too large.
pub fn zeros(contract: &Contract) -> Option<Vec<Tensor>> {
    let size = |(axis, dimension): (usize, &Dimension)| match dimension {
        Dimension::Fixed(size) => *size,
        Dimension::Dynamic(_) if axis == 0 => 1,
        Dimension::Dynamic(_) => MADE_UP_SIZE,
    };
    let inputs = contract.inputs.iter();
    inputs
        .map(|spec| {
            let shape = spec.shape.as_ref()?.iter().enumerate().map(size).collect();
            filled(spec.datatype, shape, 0)
        })
        .collect()
}

fn filled(datatype: Datatype, shape: Vec<usize>, value: u8) -> Option<Tensor> {
    let count =
        crate::tensor::element_count(&shape).filter(|count| *count <= MADE_UP_ELEMENTS_MAX)?;
    let one: &[u8] = match datatype {
        Datatype::Bytes => {
            let text = Bytes::from(value.to_string());
            return Tensor::strings(shape, vec![text; count]).ok();
        }
        Datatype::Bool | Datatype::Uint8 | Datatype::Int8 => &[1],
        Datatype::Uint16 | Datatype::Int16 => &1u16.to_le_bytes(),
        Datatype::Uint32 | Datatype::Int32 => &1u32.to_le_bytes(),
        Datatype::Uint64 | Datatype::Int64 => &1u64.to_le_bytes(),
        Datatype::Fp16 => &half::f16::ONE.to_le_bytes(),
        Datatype::Bf16 => &half::bf16::ONE.to_le_bytes(),
        Datatype::Fp32 => &1f32.to_le_bytes(),
        Datatype::Fp64 => &1f64.to_le_bytes(),
    };
    let bytes = if value == 0 { vec![0; one.len() * count] } else { one.repeat(count) };
    Tensor::raw(datatype, shape, bytes.into()).ok()
}
