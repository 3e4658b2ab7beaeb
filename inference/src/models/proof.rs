//! Whether requests may share runs: proved on the model itself, not guessed from its shapes.
//!
//! A first dimension that varies may be a batch, or a sequence, or a batch that the model normalises over. So two requests
//! are run apart and together: only if their answers are the same does each row mind its own business.

use super::probe::run_within;
use crate::batch;
use crate::contract::{Contract, Dimension};
use crate::datatype::Datatype;
use crate::engine::Session;
use crate::golden::{GoldenCase, matches};
use crate::tensor::{NamedTensor, Tensor};
use bytes::Bytes;
use std::time::Duration;

/// Relative and absolute. Rows that run together may be added up in another order, and quantised ones rounded differently.
const TOLERANCE: f64 = 1e-3;
/// Size of the dimensions that vary, in requests that are made up.
const MADE_UP_SIZE: usize = 2;
/// Elements of a request that is made up, at most.
const MADE_UP_ELEMENTS_MAX: usize = 1 << 24;

/// Runs two requests apart and together.
///
/// # Errors
/// Why requests must not share runs, in a sentence for people.
pub(super) fn rows_are_independent(
    session: &mut dyn Session,
    golden: &[GoldenCase],
    limit: Duration,
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
    let mut run =
        |inputs: &[Tensor]| run_within(session, inputs, &outputs, limit).map(|ran| ran.outputs);
    let (apart, joined) = ([run(&first)?, run(&second)?], run(&together)?);
    let rows = [&first, &second].map(|inputs| batch::rows(inputs).unwrap_or(1));
    let parts = batch::split(&joined, &rows)?;
    for (apart, part) in apart.iter().zip(&parts) {
        for ((spec, apart), part) in contract.outputs.iter().zip(apart).zip(part) {
            let apart = NamedTensor { name: spec.name.clone(), tensor: apart.clone() };
            matches(&apart, part, TOLERANCE)
                .map_err(|mismatch| format!("together they are answered otherwise: {mismatch}"))?;
        }
    }
    Ok(())
}

type Pair = (Vec<Tensor>, Vec<Tensor>);

/// Two different requests out of the golden ones: of one case with several rows, or of two cases.
fn pair(contract: &Contract, golden: &[GoldenCase]) -> Option<Pair> {
    let requests: Vec<(Vec<Tensor>, usize)> = golden
        .iter()
        .filter_map(|case| contract.accept(case.inputs.clone(), usize::MAX).ok())
        .filter_map(|inputs| batch::rows(&inputs).map(|rows| (inputs, rows)))
        .collect();
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
