//! Requests of different lengths in one run: the shorter ones are filled up behind their end, and what comes out is cut back.
//!
//! Only dimensions behind the first that the model leaves open, only of inputs that `model.toml` names, and only once two
//! requests were answered alike apart and together (`models/proof.rs`): whether a model minds padding is its own matter.
//! An output is cut where its dimension has the name (ONNX `dim_param`) of a padded one. Pure, but for the switch.

use crate::contract::{Contract, Dimension, ShapeText};
use crate::settings::PadValue;
use crate::tensor::{Tensor, TensorData};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// A row may grow by one part in so many when it is padded to its partner's length: 25 %.
const WASTE_PART: usize = 4;

/// What is padded and cut for one model version.
#[derive(Debug)]
pub(crate) struct Padding {
    /// By input of the model; `None` for those that are not padded.
    inputs: Vec<Option<PaddedInput>>,
    /// By output of the model: what is cut.
    cuts: Vec<Vec<Cut>>,
    /// Dimensions of one name, which a request must give one size if its outputs are to be cut.
    named: Vec<Vec<Place>>,
    /// Whether it was proved to be right, and still is.
    on: AtomicBool,
}

#[derive(Debug)]
struct PaddedInput {
    axes: Vec<usize>,
    element: Bytes,
}

/// A dimension of an input.
#[derive(Clone, Copy, Debug)]
struct Place {
    input: usize,
    axis: usize,
}

impl Place {
    fn size(self, inputs: &[Tensor]) -> Option<usize> {
        inputs.get(self.input)?.shape().get(self.axis).copied()
    }
}

/// A dimension of an output, and one that it is as long as.
#[derive(Debug)]
struct Cut {
    axis: usize,
    like: Place,
}

/// The dimensions behind the first that vary, with their names.
fn open(shape: Option<&[Dimension]>) -> impl Iterator<Item = (usize, Option<&str>)> {
    shape.unwrap_or_default().iter().enumerate().skip(1).filter_map(|(axis, dimension)| {
        match dimension {
            Dimension::Fixed(_) => None,
            Dimension::Dynamic(name) => Some((axis, name.as_deref())),
        }
    })
}

impl Padding {
    /// What `values`, of `model.toml`, mean for a model. It is off until it is proved. `None` where nothing is padded.
    ///
    /// # Errors
    /// Everything that is wrong, each with the key.
    pub(crate) fn of(
        values: &BTreeMap<String, PadValue>,
        contract: &Contract,
    ) -> Result<Option<Self>, Vec<String>> {
        if values.is_empty() {
            return Ok(None);
        }
        let mut problems = Vec::new();
        if !contract.is_batched() {
            problems.push("batching.padding is for requests that share runs, and not every input and output has a first dimension that varies".to_owned());
        }
        for name in values.keys().filter(|name| !contract.inputs.iter().any(|i| i.name == **name)) {
            let known: Vec<&str> = contract.inputs.iter().map(|spec| spec.name.as_str()).collect();
            let known = known.join(", ");
            problems.push(format!(
                "batching.padding.{name}: the model has no such input; it has {known}"
            ));
        }
        let mut inputs = Vec::new();
        let mut named: BTreeMap<&str, Vec<Place>> = BTreeMap::new();
        let mut nameless = None;
        for (input, spec) in contract.inputs.iter().enumerate() {
            let name = &spec.name;
            let Some(value) = values.get(name) else {
                inputs.push(None);
                continue;
            };
            let axes: Vec<usize> = open(spec.shape.as_deref()).map(|(axis, _)| axis).collect();
            if axes.is_empty() {
                let shape = spec
                    .shape
                    .as_deref()
                    .map_or("open".to_owned(), |shape| ShapeText(shape).to_string());
                problems.push(format!(
                    "batching.padding.{name}: the input has no dimension to pad, which is one behind the first that varies; its shape is {shape}"
                ));
            }
            for (axis, symbol) in open(spec.shape.as_deref()) {
                match symbol {
                    Some(symbol) => named.entry(symbol).or_default().push(Place { input, axis }),
                    None => nameless = nameless.or(Some((name, axis))),
                }
            }
            match value.element(spec.datatype) {
                Ok(element) => inputs.push(Some(PaddedInput { axes, element })),
                Err(right) => problems.push(format!(
                    "batching.padding.{name} must be {right}, for the input is {}; found {value}",
                    spec.datatype
                )),
            }
        }
        problems.extend(forgotten(values, contract, &named));
        let cuts = cuts(contract, &named, nameless, &mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        let named = named.into_values().filter(|places| places.len() > 1).collect();
        Ok(Some(Padding { inputs, cuts, named, on: AtomicBool::new(false) }))
    }

    /// From now on requests are padded, or are not.
    pub(crate) fn set(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    /// Whether that dimension of that input is padded.
    pub(crate) fn pads(&self, input: usize, axis: usize) -> bool {
        matches!(self.inputs.get(input), Some(Some(padded)) if padded.axes.contains(&axis))
    }

    /// Whether a request may be padded at all: dimensions of one name have one size in it, or nobody knew where to cut.
    pub(crate) fn takes(&self, inputs: &[Tensor]) -> bool {
        self.named.iter().all(|places| {
            let mut sizes = places.iter().map(|place| place.size(inputs));
            let first = sizes.next().flatten();
            first.is_some() && sizes.all(|size| size == first)
        })
    }

    /// Whether two requests, both of which it [`Padding::takes`], may share a run now: padding makes them alike, and neither
    /// grows by more than a part of its own.
    pub(crate) fn joins(&self, a: &[Tensor], b: &[Tensor]) -> bool {
        self.on.load(Ordering::Relaxed) && self.makes_alike(a, b) && is_worth_it(a, b)
    }

    /// Whether padding makes the rows of two requests alike.
    pub(crate) fn makes_alike(&self, a: &[Tensor], b: &[Tensor]) -> bool {
        a.len() == self.inputs.len()
            && a.len() == b.len()
            && self.inputs.iter().zip(a.iter().zip(b)).all(|(padded, (a, b))| {
                let axes = padded.as_ref().map_or(&[][..], |padded| &padded.axes);
                a.datatype() == b.datatype()
                    && a.shape().len() == b.shape().len()
                    && (1..a.shape().len())
                        .all(|axis| a.shape()[axis] == b.shape()[axis] || axes.contains(&axis))
            })
    }

    /// The inputs of `requests` as one, each as long as the longest. All of them have rows and are alike when padded.
    pub(crate) fn concatenate(&self, requests: &[&[Tensor]]) -> Vec<Tensor> {
        let inputs = self.inputs.iter().enumerate();
        inputs
            .filter_map(|(input, padded)| {
                let parts: Vec<&Tensor> =
                    requests.iter().filter_map(|request| request.get(input)).collect();
                let element = padded.as_ref().map(|padded| &padded.element);
                one_below_the_other(&parts, element.unwrap_or(&Bytes::new()))
            })
            .collect()
    }

    /// Cuts back what a run on `joined` gave each of `requests`: of the outputs `selected` a list for each, its own rows only.
    ///
    /// # Errors
    /// Which output has not the size that went in.
    pub(crate) fn cut(
        &self,
        joined: &[Tensor],
        requests: &[&[Tensor]],
        selected: &[usize],
        parts: Vec<Vec<Tensor>>,
    ) -> Result<Vec<Vec<Tensor>>, String> {
        requests
            .iter()
            .zip(parts)
            .map(|(request, part)| {
                let of_output =
                    |index: &usize| self.cuts.get(*index).map_or(&[][..], Vec::as_slice);
                let cut = |(index, output)| cut_back(output, of_output(index), joined, request);
                selected.iter().zip(part).map(cut).collect()
            })
            .collect()
    }
}

/// Inputs that share a dimension with a padded one and are not named: no two requests of different lengths would ever be alike.
fn forgotten<'a>(
    values: &'a BTreeMap<String, PadValue>,
    contract: &'a Contract,
    named: &'a BTreeMap<&str, Vec<Place>>,
) -> impl Iterator<Item = String> + 'a {
    contract.inputs.iter().filter(|spec| !values.contains_key(&spec.name)).filter_map(|spec| {
        let (_, symbol) = open(spec.shape.as_deref())
            .find(|(_, symbol)| symbol.is_some_and(|symbol| named.contains_key(symbol)))?;
        Some(format!(
            "batching.padding.{}: missing, and the input has the dimension {:?} of another one that is padded",
            spec.name,
            symbol.unwrap_or_default()
        ))
    })
}

/// What is cut of each output. Notes the outputs that could not be.
fn cuts(
    contract: &Contract,
    named: &BTreeMap<&str, Vec<Place>>,
    nameless: Option<(&String, usize)>,
    problems: &mut Vec<String>,
) -> Vec<Vec<Cut>> {
    let mut told = BTreeSet::new();
    let outputs = contract.outputs.iter();
    outputs
        .map(|spec| {
            let mut cuts = Vec::new();
            for (axis, symbol) in open(spec.shape.as_deref()) {
                if let Some((input, axis)) = nameless
                    && told.insert(input)
                {
                    problems.push(format!(
                        "batching.padding.{input}: dimension {axis} of the input has no name in the model, so output {:?} could not be cut back",
                        spec.name
                    ));
                }
                let like = symbol.and_then(|symbol| named.get(symbol)?.first());
                match (like, symbol) {
                    (Some(like), _) => cuts.push(Cut { axis, like: *like }),
                    (None, Some(symbol)) => problems.push(format!(
                        "batching.padding: output {:?} could not be cut back: no padded input has its dimension {symbol:?}",
                        spec.name
                    )),
                    (None, None) => problems.push(format!(
                        "batching.padding: output {:?} could not be cut back: its dimension {axis} has no name in the model",
                        spec.name
                    )),
                }
            }
            cuts
        })
        .collect()
}

/// Whether neither of two requests, padded to the other's length, has more than a part too many.
fn is_worth_it(a: &[Tensor], b: &[Tensor]) -> bool {
    let row = |tensor: &Tensor| tensor.shape().iter().skip(1).product::<usize>();
    let (mut own_a, mut own_b, mut padded) = (0usize, 0usize, 0usize);
    for (a, b) in a.iter().zip(b) {
        own_a = own_a.saturating_add(row(a));
        own_b = own_b.saturating_add(row(b));
        let longest = a.shape().iter().zip(b.shape()).skip(1).map(|(a, b)| *a.max(b));
        padded = padded.saturating_add(longest.fold(1, usize::saturating_mul));
    }
    let own = own_a.min(own_b);
    padded <= own.saturating_add(own / WASTE_PART)
}

/// Elements of a tensor that is made of another: a range of its own, or filling.
enum Piece {
    Own(Range<usize>),
    Filling(usize),
}

/// Tensors below each other, each filled up with `element` to the longest.
fn one_below_the_other(parts: &[&Tensor], element: &Bytes) -> Option<Tensor> {
    let head = parts.first()?;
    let mut shape = head.shape().to_vec();
    for part in &parts[1..] {
        for (axis, (longest, size)) in shape.iter_mut().zip(part.shape()).enumerate() {
            *longest = if axis == 0 { *longest + size } else { *size.max(longest) };
        }
    }
    let own_rows = |part: &Tensor| {
        let mut own = shape.clone();
        if let (Some(rows), Some(of)) = (own.first_mut(), part.shape().first()) {
            *rows = *of;
        }
        own
    };
    let joined = match (head.data(), head.datatype().element_size()) {
        (TensorData::Raw(_), Some(size)) => {
            let mut bytes = BytesMut::with_capacity(shape.iter().product::<usize>() * size);
            for part in parts {
                let TensorData::Raw(data) = part.data() else { return None };
                grow(part.shape(), &own_rows(part), 0, &mut |piece| match piece {
                    Piece::Own(own) => {
                        bytes.extend_from_slice(&data[own.start * size..own.end * size])
                    }
                    Piece::Filling(count) => {
                        (0..count).for_each(|_| bytes.extend_from_slice(element))
                    }
                });
            }
            Tensor::raw(head.datatype(), shape, bytes.freeze())
        }
        _ => {
            let mut elements = Vec::with_capacity(shape.iter().product());
            for part in parts {
                let TensorData::Strings(data) = part.data() else { return None };
                grow(part.shape(), &own_rows(part), 0, &mut |piece| match piece {
                    Piece::Own(own) => elements.extend_from_slice(&data[own]),
                    Piece::Filling(count) => {
                        elements.extend(std::iter::repeat_n(element.clone(), count))
                    }
                });
            }
            Tensor::strings(shape, elements)
        }
    };
    joined.ok()
}

/// An output with each dimension of `cuts` as long as it is in `request`, of a run in which it was as long as in `joined`.
fn cut_back(
    output: Tensor,
    cuts: &[Cut],
    joined: &[Tensor],
    request: &[Tensor],
) -> Result<Tensor, String> {
    let mut shape = output.shape().to_vec();
    for Cut { axis, like } in cuts {
        let (padded, own) = (like.size(joined), like.size(request));
        match (shape.get_mut(*axis), own) {
            (Some(size), Some(own)) if Some(*size) == padded && own <= *size => *size = own,
            _ => {
                return Err(format!(
                    "an output of a run padded to {} has the shape {:?}",
                    padded.unwrap_or(0),
                    output.shape()
                ));
            }
        }
    }
    if shape == output.shape() {
        return Ok(output);
    }
    let cut = match (output.data(), output.datatype().element_size()) {
        (TensorData::Raw(data), Some(size)) => {
            let mut bytes = BytesMut::with_capacity(shape.iter().product::<usize>() * size);
            shrink(output.shape(), &shape, 0, &mut |own| {
                bytes.extend_from_slice(&data[own.start * size..own.end * size]);
            });
            Tensor::raw(output.datatype(), shape, bytes.freeze())
        }
        (TensorData::Strings(data), _) => {
            let mut elements = Vec::with_capacity(shape.iter().product());
            shrink(output.shape(), &shape, 0, &mut |own| elements.extend_from_slice(&data[own]));
            Tensor::strings(shape, elements)
        }
        (TensorData::Raw(_), None) => return Err("an output has no element size".to_owned()),
    };
    cut.map_err(|error| error.to_string())
}

/// Gives the pieces, in order, of a tensor of shape `to` out of one of shape `from`, no dimension of which is longer.
fn grow(from: &[usize], to: &[usize], start: usize, give: &mut dyn FnMut(Piece)) {
    let (Some((have, inner)), Some((want, wanted))) = (from.split_first(), to.split_first()) else {
        return give(Piece::Own(start..start + 1));
    };
    let row: usize = inner.iter().product();
    if inner == wanted {
        give(Piece::Own(start..start + have * row));
    } else {
        (0..*have).for_each(|index| grow(inner, wanted, start + index * row, give));
    }
    give(Piece::Filling(want.saturating_sub(*have) * wanted.iter().product::<usize>()));
}

/// Gives the ranges, in order, that a tensor of shape `to` has of one of shape `from`, no dimension of which is shorter.
fn shrink(from: &[usize], to: &[usize], start: usize, give: &mut dyn FnMut(Range<usize>)) {
    let (Some((_, inner)), Some((want, wanted))) = (from.split_first(), to.split_first()) else {
        return give(start..start + 1);
    };
    let row: usize = inner.iter().product();
    if inner == wanted {
        give(start..start + want * row);
    } else {
        (0..*want).for_each(|index| shrink(inner, wanted, start + index * row, give));
    }
}

#[cfg(test)]
mod tests;
