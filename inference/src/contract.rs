//! What a model takes and gives, and whether a request keeps to it.
//!
//! The check comes before the queue: bad input never costs a lane. It is pure, and names the field.

use crate::clip::clipped;
use crate::datatype::Datatype;
use crate::tensor::{NamedTensor, Tensor};
use std::fmt;

/// One dimension of a declared shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// Always this size.
    Fixed(usize),
    /// Any size. Dimensions with the same symbol are *not* required to be equal: exporters name them carelessly,
    /// and ONNX Runtime judges by what the graph does with them.
    Dynamic(Option<String>),
}

/// Name, datatype and shape of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the graph.
    pub name: String,
    /// Element type.
    pub datatype: Datatype,
    /// Declared shape; `None` when the model leaves even the rank open.
    pub shape: Option<Vec<Dimension>>,
}

impl TensorSpec {
    /// The shape as the protocol writes it: −1 for a dimension that varies.
    pub fn protocol_shape(&self) -> Vec<i64> {
        self.shape
            .iter()
            .flatten()
            .map(|dimension| match dimension {
                Dimension::Fixed(size) => i64::try_from(*size).unwrap_or(i64::MAX),
                Dimension::Dynamic(_) => -1,
            })
            .collect()
    }
}

/// Inputs and outputs of one model version.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Contract {
    /// What a request must bring, in the graph's order.
    pub inputs: Vec<TensorSpec>,
    /// What an answer can hold, in the graph's order.
    pub outputs: Vec<TensorSpec>,
}

/// A request that the model cannot take. The text names the field; all are the client's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContractError {
    /// An input that the model does not have.
    #[error("unknown input {name:?}; this model takes {known}")]
    UnknownInput {
        /// As it was sent.
        name: String,
        /// The model's inputs, for the message.
        known: String,
    },
    /// An input appears twice.
    #[error("input {name:?} appears more than once")]
    RepeatedInput {
        /// The name that repeats.
        name: String,
    },
    /// An input that the model needs is absent.
    #[error("input {name:?} is missing; this model takes {known}")]
    MissingInput {
        /// The absent input.
        name: String,
        /// The model's inputs, for the message.
        known: String,
    },
    /// An output that the model does not have.
    #[error("unknown output {name:?}; this model gives {known}")]
    UnknownOutput {
        /// As it was sent.
        name: String,
        /// The model's outputs, for the message.
        known: String,
    },
    /// An output was asked for twice.
    #[error("output {name:?} is asked for more than once")]
    RepeatedOutput {
        /// The name that repeats.
        name: String,
    },
    /// The element type is another one.
    #[error("input {name:?}: datatype is {found}, this model takes {expected}")]
    Datatype {
        /// Which input.
        name: String,
        /// What the model takes.
        expected: Datatype,
        /// What was sent.
        found: Datatype,
    },
    /// The shape does not fit the declared one.
    #[error("input {name:?}: shape is {found:?}, this model takes {expected}")]
    Shape {
        /// Which input.
        name: String,
        /// The declared shape, −1 for what varies.
        expected: String,
        /// What was sent.
        found: Vec<usize>,
    },
    /// More rows than the configuration allows in one request.
    #[error("input {name:?}: {found} rows in one request, at most {limit} are allowed")]
    TooManyRows {
        /// Which input.
        name: String,
        /// `limits.max_batch_rows` of the model.
        limit: usize,
        /// First dimension of what was sent.
        found: usize,
    },
    /// A string element that the runtime cannot take.
    #[error("input {name:?}: element {index} {problem}")]
    StringElement {
        /// Which input.
        name: String,
        /// Row-major index of the element.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl Contract {
    /// Checks `inputs` against the model and brings them into the graph's order.
    ///
    /// `max_batch_rows` bounds the first dimension of every input of rank ≥ 1.
    ///
    /// # Errors
    /// The first [`ContractError`] in the order: names, then per input datatype, shape, elements.
    pub fn accept(
        &self,
        inputs: Vec<NamedTensor>,
        max_batch_rows: usize,
    ) -> Result<Vec<Tensor>, ContractError> {
        let mut ordered: Vec<Option<Tensor>> = vec![None; self.inputs.len()];
        for input in inputs {
            let Some(index) = self.inputs.iter().position(|spec| spec.name == input.name) else {
                return Err(ContractError::UnknownInput {
                    name: clipped(&input.name),
                    known: names(&self.inputs),
                });
            };
            if ordered[index].is_some() {
                return Err(ContractError::RepeatedInput { name: input.name });
            }
            ordered[index] = Some(input.tensor);
        }
        self.inputs
            .iter()
            .zip(ordered)
            .map(|(spec, tensor)| {
                let tensor = tensor.ok_or_else(|| ContractError::MissingInput {
                    name: spec.name.clone(),
                    known: names(&self.inputs),
                })?;
                check_input(spec, &tensor, max_batch_rows)?;
                Ok(tensor)
            })
            .collect()
    }

    /// Whether the first dimension of every input and output varies, which is how a batch looks.
    pub fn is_batched(&self) -> bool {
        let varies = |spec: &TensorSpec| {
            matches!(
                spec.shape.as_deref().and_then(<[Dimension]>::first),
                Some(Dimension::Dynamic(_))
            )
        };
        !self.inputs.is_empty() && self.inputs.iter().chain(&self.outputs).all(varies)
    }

    /// Indices of the outputs that were asked for, in the order of asking; all of them when `requested` is empty.
    ///
    /// # Errors
    /// [`ContractError::UnknownOutput`], [`ContractError::RepeatedOutput`].
    pub fn select_outputs<'a>(
        &self,
        requested: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<usize>, ContractError> {
        let mut selected = Vec::with_capacity(self.outputs.len());
        for name in requested {
            let Some(index) = self.outputs.iter().position(|spec| spec.name == name) else {
                return Err(ContractError::UnknownOutput {
                    name: clipped(name),
                    known: names(&self.outputs),
                });
            };
            if selected.contains(&index) {
                return Err(ContractError::RepeatedOutput { name: name.to_owned() });
            }
            selected.push(index);
        }
        if selected.is_empty() {
            selected.extend(0..self.outputs.len());
        }
        Ok(selected)
    }
}

fn check_input(
    spec: &TensorSpec,
    tensor: &Tensor,
    max_batch_rows: usize,
) -> Result<(), ContractError> {
    if tensor.datatype() != spec.datatype {
        return Err(ContractError::Datatype {
            name: spec.name.clone(),
            expected: spec.datatype,
            found: tensor.datatype(),
        });
    }
    if let Some(declared) = &spec.shape {
        let fits = declared.len() == tensor.shape().len()
            && declared.iter().zip(tensor.shape()).all(|(dimension, size)| match dimension {
                Dimension::Fixed(expected) => expected == size,
                Dimension::Dynamic(_) => true,
            });
        if !fits {
            return Err(ContractError::Shape {
                name: spec.name.clone(),
                expected: ShapeText(declared).to_string(),
                found: tensor.shape().to_vec(),
            });
        }
    }
    if let Some(rows) = tensor.shape().first().copied()
        && rows > max_batch_rows
    {
        return Err(ContractError::TooManyRows {
            name: spec.name.clone(),
            limit: max_batch_rows,
            found: rows,
        });
    }
    check_strings(spec, tensor)
}

/// ONNX Runtime takes strings as NUL-terminated UTF-8; anything else would be cut or refused there, late.
fn check_strings(spec: &TensorSpec, tensor: &Tensor) -> Result<(), ContractError> {
    let crate::tensor::TensorData::Strings(elements) = tensor.data() else {
        return Ok(());
    };
    for (index, element) in elements.iter().enumerate() {
        let problem = if std::str::from_utf8(element).is_err() {
            "is not UTF-8, which ONNX strings must be"
        } else if element.contains(&0) {
            "holds a NUL character, which ONNX Runtime would cut"
        } else {
            continue;
        };
        return Err(ContractError::StringElement { name: spec.name.clone(), index, problem });
    }
    Ok(())
}

fn names(specs: &[TensorSpec]) -> String {
    let quoted: Vec<String> = specs.iter().map(|spec| format!("{:?}", spec.name)).collect();
    quoted.join(", ")
}

/// A declared shape as the protocol writes it.
pub(crate) struct ShapeText<'a>(pub(crate) &'a [Dimension]);

impl fmt::Display for ShapeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, dimension) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            match dimension {
                Dimension::Fixed(size) => write!(f, "{comma}{size}")?,
                Dimension::Dynamic(_) => write!(f, "{comma}-1")?,
            }
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn contract() -> Contract {
        Contract {
            inputs: vec![
                TensorSpec {
                    name: "a".into(),
                    datatype: Datatype::Fp32,
                    shape: Some(vec![Dimension::Dynamic(None), Dimension::Fixed(2)]),
                },
                TensorSpec { name: "b".into(), datatype: Datatype::Bytes, shape: None },
            ],
            outputs: vec![
                TensorSpec { name: "x".into(), datatype: Datatype::Int64, shape: None },
                TensorSpec { name: "y".into(), datatype: Datatype::Fp32, shape: None },
            ],
        }
    }

    fn a(shape: &[usize]) -> NamedTensor {
        let bytes = Bytes::from(vec![0; shape.iter().product::<usize>() * 4]);
        let tensor = Tensor::raw(Datatype::Fp32, shape.to_vec(), bytes).unwrap();
        NamedTensor { name: "a".into(), tensor }
    }

    fn b(text: &'static [u8]) -> NamedTensor {
        let tensor = Tensor::strings(vec![1], vec![Bytes::from_static(text)]).unwrap();
        NamedTensor { name: "b".into(), tensor }
    }

    #[test]
    fn orders_inputs_as_the_graph_does() {
        let ordered = contract().accept(vec![b(b"hi"), a(&[3, 2])], 8).unwrap();
        assert_eq!(ordered[0].shape(), [3, 2]);
        assert_eq!(ordered[1].datatype(), Datatype::Bytes);
    }

    #[test]
    fn names_the_field_that_is_wrong() {
        let mut wrong_type = b(b"x");
        wrong_type.name = "a".into();
        let mut unknown = b(b"x");
        unknown.name = "c".into();
        let table = [
            (vec![a(&[1, 2])], r#"input "b" is missing; this model takes "a", "b""#),
            (vec![a(&[1, 2]), a(&[1, 2])], r#"input "a" appears more than once"#),
            (vec![unknown], r#"unknown input "c"; this model takes "a", "b""#),
            (vec![wrong_type, b(b"x")], r#"input "a": datatype is BYTES, this model takes FP32"#),
            (vec![a(&[1, 3]), b(b"x")], r#"input "a": shape is [1, 3], this model takes [-1, 2]"#),
            (vec![a(&[2]), b(b"x")], r#"input "a": shape is [2], this model takes [-1, 2]"#),
            (
                vec![a(&[9, 2]), b(b"x")],
                r#"input "a": 9 rows in one request, at most 8 are allowed"#,
            ),
            (
                vec![a(&[1, 2]), b(b"\xff")],
                r#"input "b": element 0 is not UTF-8, which ONNX strings must be"#,
            ),
            (
                vec![a(&[1, 2]), b(b"a\0b")],
                r#"input "b": element 0 holds a NUL character, which ONNX Runtime would cut"#,
            ),
        ];
        for (inputs, message) in table {
            assert_eq!(contract().accept(inputs, 8).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn selects_outputs_in_the_order_of_asking() {
        assert_eq!(contract().select_outputs(["y", "x"]), Ok(vec![1, 0]));
        assert_eq!(contract().select_outputs([]), Ok(vec![0, 1]));
        assert!(contract().select_outputs(["z"]).is_err());
        assert!(contract().select_outputs(["x", "x"]).is_err());
    }
}
