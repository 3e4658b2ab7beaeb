//! Several requests in one run: their inputs one below the other, their outputs cut apart again.
//!
//! Only along the first dimension, and only where every input and output of the model has it and the model was proved to
//! treat rows independently (`models/proof.rs`). Rows of different lengths: `batch/padding.rs`. Pure: tensors in, tensors out.

mod cost;
mod padding;

pub(crate) use cost::{CostTable, Shape};
pub(crate) use padding::Padding;

use crate::tensor::{Dimensions, Tensor, TensorData};
use bytes::{Bytes, BytesMut};

/// Rows of a request: the first dimension that all of its inputs have. `None` when they have no common one, or it is zero:
/// such a request runs by itself, and the model judges it.
pub(crate) fn rows(inputs: &[Tensor]) -> Option<usize> {
    let rows = inputs.first()?.shape().first().copied()?;
    let common = inputs.iter().all(|tensor| tensor.shape().first() == Some(&rows));
    (common && rows > 0).then_some(rows)
}

/// Whether two requests differ in nothing but their rows.
pub(crate) fn same_but_rows(a: &[Tensor], b: &[Tensor]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            a.datatype() == b.datatype()
                && a.shape().len() == b.shape().len()
                && a.shape().iter().zip(b.shape()).skip(1).all(|(a, b)| a == b)
        })
}

/// The inputs of `requests` as one. All of them are [`same_but_rows`] and have [`rows`].
pub(crate) fn concatenate(requests: &[&[Tensor]]) -> Vec<Tensor> {
    let Some(first) = requests.first() else { return Vec::new() };
    (0..first.len())
        .filter_map(|input| {
            let parts = || requests.iter().map(move |request| &request[input]);
            let head = &first[input];
            let mut shape = Dimensions::from_slice(head.shape());
            *shape.first_mut()? = parts().filter_map(|part| part.shape().first()).sum();
            let joined = match head.data() {
                TensorData::Raw(_) => {
                    let mut bytes = BytesMut::with_capacity(parts().map(Tensor::byte_size).sum());
                    for part in parts() {
                        if let TensorData::Raw(data) = part.data() {
                            bytes.extend_from_slice(data);
                        }
                    }
                    Tensor::raw(head.datatype(), shape, bytes.freeze())
                }
                TensorData::Strings(_) => {
                    let elements = parts()
                        .filter_map(|part| match part.data() {
                            TensorData::Strings(elements) => Some(elements.iter().cloned()),
                            TensorData::Raw(_) => None,
                        })
                        .flatten();
                    Tensor::strings(shape, elements.collect())
                }
            };
            // Parts that are the same but for their rows always fit together.
            joined.ok()
        })
        .collect()
}

/// The outputs of a run, cut into one list for each of the requests with so many `rows`. Their bytes are shared, not copied.
///
/// # Errors
/// Which output has another number of rows than went in.
pub(crate) fn split(outputs: &[Tensor], rows: &[usize]) -> Result<Vec<Vec<Tensor>>, String> {
    let total: usize = rows.iter().sum();
    for (index, output) in outputs.iter().enumerate() {
        if output.shape().first() != Some(&total) {
            return Err(format!(
                "output {index} of a run with {total} rows has the shape {:?}",
                output.shape()
            ));
        }
    }
    let mut start = 0;
    rows.iter()
        .map(|count| {
            let part = outputs.iter().map(|output| slice(output, start, *count)).collect();
            start += count;
            part
        })
        .collect()
}

/// `count` rows of a tensor from row `start` on.
pub(crate) fn slice(tensor: &Tensor, start: usize, count: usize) -> Result<Tensor, String> {
    let rows = tensor.shape().first().copied().unwrap_or(0).max(1);
    let mut shape = Dimensions::from_slice(tensor.shape());
    if let Some(first) = shape.first_mut() {
        *first = count;
    }
    let cut = match tensor.data() {
        TensorData::Raw(data) => {
            let row = data.len() / rows;
            let bytes: Bytes = data.slice(start * row..(start + count) * row);
            Tensor::raw(tensor.datatype(), shape, bytes)
        }
        TensorData::Strings(elements) => {
            let row = elements.len() / rows;
            Tensor::strings(shape, elements[start * row..(start + count) * row].to_vec())
        }
    };
    cut.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datatype::Datatype;
    use proptest::prelude::*;

    fn floats(shape: &[usize], from: f32) -> Tensor {
        let count: usize = shape.iter().product();
        let bytes: Vec<u8> = (0..count).flat_map(|at| (from + at as f32).to_le_bytes()).collect();
        Tensor::raw(Datatype::Fp32, shape.to_vec(), bytes.into()).unwrap()
    }

    fn texts(shape: &[usize], from: usize) -> Tensor {
        let count: usize = shape.iter().product();
        let elements = (0..count).map(|at| Bytes::from((from + at).to_string())).collect();
        Tensor::strings(shape.to_vec(), elements).unwrap()
    }

    proptest! {
        /// What went in together comes out apart, whatever the rows and the shape of one.
        #[test]
        fn splitting_undoes_concatenating(
            rows in proptest::collection::vec(1usize..5, 1..8),
            trailing in proptest::collection::vec(0usize..4, 0..3),
        ) {
            let requests: Vec<Vec<Tensor>> = rows
                .iter()
                .enumerate()
                .map(|(index, rows)| {
                    let shape: Vec<usize> =
                        std::iter::once(*rows).chain(trailing.iter().copied()).collect();
                    vec![floats(&shape, 100.0 * index as f32), texts(&shape, 1000 * index)]
                })
                .collect();
            let parts: Vec<&[Tensor]> = requests.iter().map(Vec::as_slice).collect();
            let joined = concatenate(&parts);
            prop_assert_eq!(joined.len(), 2);
            prop_assert_eq!(joined[0].shape()[0], rows.iter().sum::<usize>());
            prop_assert_eq!(split(&joined, &rows).unwrap(), requests);
        }
    }

    #[test]
    fn what_goes_together() {
        let a = [floats(&[2, 3], 0.0), texts(&[2], 0)];
        assert_eq!(rows(&a), Some(2));
        assert!(same_but_rows(&a, &[floats(&[5, 3], 0.0), texts(&[5], 0)]));
        assert!(!same_but_rows(&a, &[floats(&[2, 4], 0.0), texts(&[2], 0)]), "trailing shape");
        assert!(!same_but_rows(&a, &[floats(&[2, 3, 1], 0.0), texts(&[2], 0)]), "rank");
        assert!(!same_but_rows(&a, &[texts(&[2, 3], 0), texts(&[2], 0)]), "datatype");
        assert!(!same_but_rows(&a, &a[..1]), "number of inputs");
        assert_eq!(rows(&[floats(&[2, 3], 0.0), texts(&[3], 0)]), None, "rows differ");
        assert_eq!(rows(&[floats(&[0, 3], 0.0)]), None, "no rows");
        assert_eq!(rows(&[floats(&[], 0.0)]), None, "a scalar has no rows");
        assert_eq!(rows(&[]), None);
    }

    #[test]
    fn outputs_without_a_row_for_each_are_told() {
        let error = split(&[floats(&[4, 1], 0.0), floats(&[1, 1], 0.0)], &[1, 3]).unwrap_err();
        assert_eq!(error, "output 1 of a run with 4 rows has the shape [1, 1]");
        assert!(split(&[floats(&[], 0.0)], &[1]).is_err());
    }
}
