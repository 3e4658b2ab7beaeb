//! A tensor on its way between the wire and the runtime: datatype, shape and row-major elements.

use crate::datatype::Datatype;
use bytes::Bytes;
use smallvec::SmallVec;

/// Dimensions of a tensor; up to four of them take no memory of their own.
pub type Dimensions = SmallVec<[usize; 4]>;

/// A dense tensor, row-major.
///
/// The constructors check that elements and shape agree, so a `Tensor` that exists is consistent: whoever
/// holds one need not count again.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    datatype: Datatype,
    shape: Dimensions,
    data: TensorData,
}

/// The elements of a [`Tensor`].
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// Elements of fixed size, little-endian, without padding. `BOOL` takes one byte, 0 or 1.
    Raw(Bytes),
    /// Elements of a `BYTES` tensor.
    Strings(Vec<Bytes>),
}

/// Shape and elements of a tensor contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The product of the dimensions, or its size in bytes, does not fit the machine.
    #[error("shape {shape:?} has more elements than can be addressed")]
    Overflow {
        /// The shape as it was given.
        shape: Vec<usize>,
    },
    /// The number of bytes is not elements × element size.
    #[error("shape {shape:?} of {datatype} needs {expected} bytes, found {found}")]
    ByteSize {
        /// Element type.
        datatype: Datatype,
        /// The shape as it was given.
        shape: Vec<usize>,
        /// Bytes that the shape needs.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// The number of elements is not the product of the dimensions.
    #[error("shape {shape:?} needs {expected} elements, found {found}")]
    ElementCount {
        /// The shape as it was given.
        shape: Vec<usize>,
        /// Elements that the shape needs.
        expected: usize,
        /// Elements that were given.
        found: usize,
    },
}

/// Number of elements that `shape` asks for; `None` when the product overflows.
///
/// A zero anywhere makes the tensor empty, whatever the other dimensions are.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape
        .iter()
        .try_fold(1usize, |product, dimension| product.checked_mul(*dimension))
        .filter(|count| isize::try_from(*count).is_ok())
}

impl Tensor {
    /// A tensor of fixed-size elements out of little-endian bytes.
    ///
    /// # Errors
    /// [`TensorError`] when the byte count is not what datatype and shape ask for, or overflows.
    ///
    /// # Panics
    /// When `datatype` is `BYTES`, which has no fixed element size: use [`Tensor::strings`].
    pub fn raw(
        datatype: Datatype,
        shape: impl Into<Dimensions>,
        data: Bytes,
    ) -> Result<Self, TensorError> {
        let shape = shape.into();
        let size = datatype.element_size().expect("BYTES tensors are made by Tensor::strings");
        let expected = element_count(&shape).and_then(|count| count.checked_mul(size));
        match expected {
            None => Err(TensorError::Overflow { shape: shape.into_vec() }),
            Some(expected) if expected != data.len() => {
                let (shape, found) = (shape.into_vec(), data.len());
                Err(TensorError::ByteSize { datatype, shape, expected, found })
            }
            Some(_) => Ok(Tensor { datatype, shape, data: TensorData::Raw(data) }),
        }
    }

    /// A `BYTES` tensor.
    ///
    /// # Errors
    /// [`TensorError`] when the number of elements is not what the shape asks for.
    pub fn strings(
        shape: impl Into<Dimensions>,
        elements: Vec<Bytes>,
    ) -> Result<Self, TensorError> {
        let shape = shape.into();
        match element_count(&shape) {
            None => Err(TensorError::Overflow { shape: shape.into_vec() }),
            Some(expected) if expected != elements.len() => {
                let (shape, found) = (shape.into_vec(), elements.len());
                Err(TensorError::ElementCount { shape, expected, found })
            }
            Some(_) => {
                Ok(Tensor { datatype: Datatype::Bytes, shape, data: TensorData::Strings(elements) })
            }
        }
    }

    /// Element type.
    pub fn datatype(&self) -> Datatype {
        self.datatype
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &TensorData {
        &self.data
    }

    /// Number of elements.
    pub fn element_count(&self) -> usize {
        match (&self.data, self.datatype.element_size()) {
            (TensorData::Strings(elements), _) => elements.len(),
            (TensorData::Raw(data), size) => data.len() / size.unwrap_or(1),
        }
    }

    /// Bytes that the elements take in memory, without the bookkeeping around them.
    pub fn byte_size(&self) -> usize {
        match &self.data {
            TensorData::Raw(data) => data.len(),
            TensorData::Strings(elements) => elements.iter().map(Bytes::len).sum(),
        }
    }
}

/// A tensor and the name under which the model knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Input or output name of the model.
    pub name: String,
    /// The tensor.
    pub tensor: Tensor,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_beats_overflow() {
        assert_eq!(element_count(&[usize::MAX, usize::MAX, 0]), Some(0));
        assert_eq!(element_count(&[usize::MAX, 2]), None);
        assert_eq!(element_count(&[]), Some(1));
    }

    #[test]
    fn bytes_must_add_up() {
        let made = Tensor::raw(Datatype::Fp32, vec![2, 3], Bytes::from_static(&[0; 24]));
        assert_eq!(made.map(|tensor| tensor.element_count()), Ok(6));
        let short = Tensor::raw(Datatype::Fp32, vec![2, 3], Bytes::from_static(&[0; 23]));
        assert!(matches!(short, Err(TensorError::ByteSize { expected: 24, found: 23, .. })));
    }
}
