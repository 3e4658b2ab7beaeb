//! `POST /v1/models/M:predict`, as TF-Serving and KServe's first protocol have it: for a person with curl.
//!
//! Two forms: rows, `{"instances": [row, …]}` → `{"predictions": [row, …]}`; and columns, `{"inputs": value}` →
//! `{"outputs": value}`. A value is a nested array; shapes are read off the data, datatypes off the model. A model
//! with several inputs takes objects from name to value, one per row or one for all.
//!
//! The model's types rule, so FP16 and BF16 travel as plain JSON numbers here, unlike in the v2 protocol: they are
//! rounded on the way in, and exact on the way out. Not-a-number and the infinities go out as `null`.

use super::DecodeLimits;
use super::array::{Context, Elements, Level, Source, opening_brackets};
use super::error::{CodecError, Problem};
use super::parameters::{Text, TextSeed};
use super::render::{put, put_flat, put_list, text_estimate};
use super::request::{STRING_OVERHEAD, tensor};
use super::trail::Trail;
use balm_inference::contract::{Contract, Dimension, TensorSpec};
use balm_inference::datatype::Datatype;
use balm_inference::tensor::{NamedTensor, Tensor, element_count};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// Most empty arrays that are written for a tensor without elements; beyond, it is one `[]`.
const MOST_EMPTY_ROWS: usize = 1 << 16;

/// Which of the two forms a request had; the answer takes the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PredictForm {
    /// `instances` → `predictions`.
    Rows {
        /// How many instances there were.
        count: usize,
    },
    /// `inputs` → `outputs`.
    Columns,
}

/// A decoded predict request; the model's contract is yet to be checked by `Contract::accept`.
#[derive(Clone, Debug, PartialEq)]
pub struct PredictRequest {
    /// The input tensors.
    pub inputs: Vec<NamedTensor>,
    /// The form of the request.
    pub form: PredictForm,
}

/// Decodes the body of a predict request, already decompressed. `signature_name` and unknown members are ignored.
///
/// # Errors
/// [`CodecError`], whose text names the field, for example `instances[2][0]`.
pub fn decode_predict(
    body: &Bytes,
    contract: &Contract,
    limits: &DecodeLimits,
) -> Result<PredictRequest, CodecError> {
    let trail = Trail::default();
    let mut from = serde_json::Deserializer::from_slice(body);
    let wire = match WireSeed(&trail).deserialize(&mut from).and_then(|w| from.end().map(|()| w)) {
        Ok(wire) => wire,
        Err(error) => return Err(trail.error("", &error, body)),
    };
    let (field, data) = match wire {
        (Some(rows), None) => ("instances", rows),
        (None, Some(columns)) => ("inputs", columns),
        (Some(_), Some(_)) => {
            let (one, other) = ("\"instances\" (rows)", "\"inputs\" (columns)");
            return Err(CodecError::new("", Problem::Exclusive { one, other }));
        }
        (None, None) => {
            let hint = "give {\"instances\": [row, …]}, or {\"inputs\": value} for columns";
            return Err(CodecError::new("instances", Problem::Missing { hint }));
        }
    };
    let text = data.get();
    let rows = field == "instances";
    let trail = Trail::default();
    let objects = objects(text, rows);
    let shared = Shared { trail: &trail, contract, limits, rows, objects };
    // A guess at the number of elements that cannot exceed half of the text; the vectors grow from there.
    let hint = text.len() / 8 / contract.inputs.len().max(1);
    let mut columns: Vec<Column<'_>> =
        contract.inputs.iter().map(|spec| Column::new(spec, hint, body)).collect();
    let mut from = serde_json::Deserializer::from_str(text);
    let seed = ValueSeed { shared: &shared, columns: &mut columns };
    let count = match seed.deserialize(&mut from).and_then(|count| from.end().map(|()| count)) {
        Ok(count) => count,
        Err(error) => return Err(trail.error(field, &error, text.as_bytes())),
    };
    let finish = |column: Column<'_>| column.finish(count, field);
    let inputs = columns.into_iter().map(finish).collect::<Result<_, _>>()?;
    let form = count.map_or(PredictForm::Columns, |count| PredictForm::Rows { count });
    Ok(PredictRequest { inputs, form })
}

/// Encodes the answer to a predict request.
///
/// One output stands alone, several become objects from name to value.
///
/// # Errors
/// [`Problem::NotRows`] where the first dimension of an output is not the number of instances;
/// [`Problem::NotUtf8`] for strings that JSON cannot hold.
pub fn encode_predict(form: PredictForm, outputs: &[(&str, &Tensor)]) -> Result<Bytes, CodecError> {
    let room: usize = outputs.iter().map(|(name, tensor)| name.len() + text_estimate(tensor)).sum();
    let mut out = Vec::with_capacity(room + 64);
    let mut failed = None;
    let mut note = |result: Result<(), CodecError>| {
        if let Err(error) = result {
            failed.get_or_insert(error);
        }
    };
    match form {
        PredictForm::Columns => {
            out.extend_from_slice(br#"{"outputs":"#);
            note(put_value(&mut out, outputs, None));
        }
        PredictForm::Rows { count } => {
            for (name, tensor) in outputs {
                if tensor.shape().first() != Some(&count) {
                    let (name, shape) = ((*name).to_owned(), tensor.shape().to_vec());
                    return Err(CodecError::new("", Problem::NotRows { name, shape, rows: count }));
                }
            }
            out.extend_from_slice(br#"{"predictions":"#);
            put_list(&mut out, 0..count, |out, row| note(put_value(out, outputs, Some(row))));
        }
    }
    out.push(b'}');
    match failed {
        None => Ok(Bytes::from(out)),
        Some(error) => Err(error),
    }
}

/// One value for all outputs: of one row, or the whole tensors.
fn put_value(
    out: &mut Vec<u8>,
    outputs: &[(&str, &Tensor)],
    row: Option<usize>,
) -> Result<(), CodecError> {
    let put_one = |out: &mut Vec<u8>, name: &str, tensor: &Tensor| {
        let (start, shape) = match row {
            None => (0, tensor.shape()),
            Some(row) => {
                let shape = tensor.shape().get(1..).unwrap_or_default();
                (row * element_count(shape).unwrap_or(0), shape)
            }
        };
        put_nested(out, tensor, shape, start, name)
    };
    if let [(name, tensor)] = outputs {
        return put_one(out, name, tensor);
    }
    out.push(b'{');
    for (index, (name, tensor)) in outputs.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        put(out, *name);
        out.push(b':');
        put_one(out, name, tensor)?;
    }
    out.push(b'}');
    Ok(())
}

/// How many arrays a tensor without elements would be written as; 0 for one with elements.
///
/// Such a tensor may have any outer dimension, and its brackets alone must not fill the memory.
fn brackets_alone(shape: &[usize]) -> usize {
    if !shape.contains(&0) {
        return 0;
    }
    shape
        .iter()
        .take_while(|size| **size > 0)
        .fold(1, |product, size| product.saturating_mul(*size))
}

fn put_nested(
    out: &mut Vec<u8>,
    tensor: &Tensor,
    shape: &[usize],
    start: usize,
    name: &str,
) -> Result<(), CodecError> {
    match shape {
        // A scalar: the flat array of one, without its brackets.
        [] => {
            let at = out.len();
            put_flat(out, tensor, start..start + 1, name)?;
            out.pop();
            out.remove(at);
            Ok(())
        }
        [size] => put_flat(out, tensor, start..start + size, name),
        shape if brackets_alone(shape) > MOST_EMPTY_ROWS => {
            out.extend_from_slice(b"[]");
            Ok(())
        }
        [size, inner @ ..] => {
            let step = element_count(inner).unwrap_or(0);
            let mut failed = Ok(());
            put_list(out, 0..*size, |out, index| {
                if failed.is_ok() {
                    failed = put_nested(out, tensor, inner, start + index * step, name);
                }
            });
            failed
        }
    }
}

/// What the parts of the parser share.
struct Shared<'a> {
    trail: &'a Trail,
    contract: &'a Contract,
    limits: &'a DecodeLimits,
    /// Rows rather than columns.
    rows: bool,
    /// Objects from name to value rather than bare values.
    objects: bool,
}

impl Shared<'_> {
    fn too_large<E: serde::de::Error>(&self) -> E {
        self.trail.fail(Problem::DecodedTooLarge { limit: self.limits.max_decoded_bytes })
    }

    fn unknown_input<E: serde::de::Error>(&self) -> E {
        let names = self.contract.inputs.iter().map(|spec| format!("{:?}", spec.name));
        let known = names.collect::<Vec<_>>().join(", ");
        self.trail.fail(Problem::UnknownInput { known })
    }
}

/// One input while it is being read.
struct Column<'b> {
    name: &'b str,
    datatype: Datatype,
    elements: Elements<'b>,
    element_size: usize,
    /// One level per dimension, the first included; `None` while the rank is unknown.
    levels: Option<Vec<Level>>,
    declared: &'b [Dimension],
    /// Rows so far; in the column form, 1 once the value is there.
    values: usize,
}

impl<'b> Column<'b> {
    fn new(spec: &'b TensorSpec, hint: usize, body: &'b Bytes) -> Self {
        Column {
            name: &spec.name,
            datatype: spec.datatype,
            elements: Elements::with_capacity(spec.datatype, hint, body),
            element_size: spec.datatype.element_size().unwrap_or(STRING_OVERHEAD),
            levels: spec.shape.as_ref().map(|shape| open_levels(shape.len())),
            declared: spec.shape.as_deref().unwrap_or_default(),
            values: 0,
        }
    }

    fn bytes(&self) -> usize {
        self.elements.count() * self.element_size
    }

    fn finish(self, rows: Option<usize>, field: &str) -> Result<NamedTensor, CodecError> {
        // A dimension that no data told, because there were no rows: as the model has it, if it is fixed.
        let fallback = |axis: usize| match self.declared.get(axis) {
            Some(Dimension::Fixed(size)) => *size,
            _ => 0,
        };
        let levels = self.levels.unwrap_or_default();
        let mut shape: Vec<usize> = levels
            .iter()
            .enumerate()
            .map(|(axis, level)| level.size.unwrap_or_else(|| fallback(axis)))
            .collect();
        match (rows, shape.first_mut()) {
            (Some(rows), Some(first)) => *first = rows,
            (Some(rows), None) => shape.push(rows),
            (None, _) => (),
        }
        let name = self.name.to_owned();
        tensor(self.datatype, shape, self.elements.finish(), || field.to_owned())
            .map(|tensor| NamedTensor { name, tensor })
    }
}

fn open_levels(rank: usize) -> Vec<Level> {
    vec![Level { size: None, source: Source::Sibling }; rank]
}

/// The value of `instances` or `inputs`; gives the number of rows in the row form.
struct ValueSeed<'a, 'b> {
    shared: &'a Shared<'a>,
    columns: &'a mut [Column<'b>],
}

impl<'b> DeserializeSeed<'b> for ValueSeed<'_, 'b> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'b>>(self, from: D) -> Result<Option<usize>, D::Error> {
        if self.shared.rows {
            return from.deserialize_seq(self).map(Some);
        }
        RowSeed { shared: self.shared, columns: self.columns, row: 0 }.deserialize(from)?;
        Ok(None)
    }
}

impl<'b> Visitor<'b> for ValueSeed<'_, 'b> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of instances")
    }

    fn visit_seq<A: SeqAccess<'b>>(self, mut seq: A) -> Result<usize, A::Error> {
        let ValueSeed { shared, columns } = self;
        let mut row = 0;
        loop {
            match seq.next_element_seed(RowSeed { shared, columns: &mut *columns, row }) {
                Ok(Some(())) => row += 1,
                Ok(None) => return Ok(row),
                Err(error) => return Err(shared.trail.index(error, row)),
            }
            if columns.iter().map(Column::bytes).sum::<usize>() > shared.limits.max_decoded_bytes {
                return Err(shared.too_large());
            }
        }
    }
}

/// One row, or, in the column form, everything at once.
struct RowSeed<'a, 'b> {
    shared: &'a Shared<'a>,
    columns: &'a mut [Column<'b>],
    row: usize,
}

impl<'b> DeserializeSeed<'b> for RowSeed<'_, 'b> {
    type Value = ();

    fn deserialize<D: Deserializer<'b>>(self, from: D) -> Result<(), D::Error> {
        if self.shared.objects {
            return from.deserialize_map(self);
        }
        let RowSeed { shared, columns, .. } = self;
        match columns {
            [column] => ColumnSeed { shared, column, used: 0 }.deserialize(from),
            _ => from.deserialize_map(RowSeed { shared, columns, row: self.row }),
        }
    }
}

impl<'b> Visitor<'b> for RowSeed<'_, 'b> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object from input name to value")
    }

    fn visit_map<A: MapAccess<'b>>(self, mut map: A) -> Result<(), A::Error> {
        let RowSeed { shared, columns, row } = self;
        let trail = shared.trail;
        while let Some(Text(name)) = map.next_key_seed(TextSeed("the name of an input"))? {
            let used = columns.iter().map(Column::bytes).sum();
            let read = match columns.iter_mut().find(|column| column.name == name) {
                None => Err(shared.unknown_input()),
                Some(column) if column.values > row => Err(trail.fail(Problem::Repeated)),
                Some(column) => map.next_value_seed(ColumnSeed { shared, column, used }),
            };
            if let Err(error) = read {
                return Err(trail.under(error, name.into_owned()));
            }
        }
        match columns.iter().find(|column| column.values <= row) {
            None => Ok(()),
            Some(column) => {
                let problem = Problem::Missing { hint: "each input of the model needs a value" };
                Err(trail.under(trail.fail(problem), column.name.to_owned()))
            }
        }
    }
}

/// One value of one input.
struct ColumnSeed<'a, 'b> {
    shared: &'a Shared<'a>,
    column: &'a mut Column<'b>,
    /// Bytes that all columns hold already.
    used: usize,
}

impl<'b> DeserializeSeed<'b> for ColumnSeed<'_, 'b> {
    type Value = ();

    fn deserialize<D: Deserializer<'b>>(self, from: D) -> Result<(), D::Error> {
        let ColumnSeed { shared, column, used } = self;
        let outer = usize::from(shared.rows);
        let max_bytes = shared.limits.max_decoded_bytes;
        let left = max_bytes.saturating_sub(used) / column.element_size;
        let context = Context {
            trail: shared.trail,
            shape: &[],
            max_elements: column.elements.count().saturating_add(left),
            max_bytes,
        };
        column.values += 1;
        let Column { levels, elements, .. } = column;
        if let Some(levels) = levels {
            let Some(levels) = levels.get_mut(outer..) else {
                return Err(shared.trail.fail(Problem::NoRows));
            };
            return elements.read(from, levels, context);
        }
        // The model leaves the rank open: the brackets of the first value tell it.
        let text = <&RawValue>::deserialize(from)?.get();
        let rank = opening_brackets(text, shared.limits.max_rank);
        let levels = levels.insert(open_levels(rank + outer));
        let mut from = serde_json::Deserializer::from_str(text);
        let read = elements.read(&mut from, &mut levels[outer..], context);
        read.map_err(|error| shared.trail.adopt(&error, text.as_bytes()))
    }
}

/// The two members that matter: `instances` and `inputs`.
struct WireSeed<'t>(&'t Trail);

type Wire<'de> = (Option<&'de RawValue>, Option<&'de RawValue>);

impl<'de> DeserializeSeed<'de> for WireSeed<'_> {
    type Value = Wire<'de>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Wire<'de>, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for WireSeed<'_> {
    type Value = Wire<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with \"instances\" or \"inputs\"")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Wire<'de>, A::Error> {
        let (mut instances, mut inputs) = (None, None);
        while let Some(Text(name)) = map.next_key_seed(TextSeed("the name of a member"))? {
            let (name, slot) = match &*name {
                "instances" => ("instances", &mut instances),
                "inputs" => ("inputs", &mut inputs),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if slot.is_some() {
                return Err(self.0.under(self.0.fail(Problem::Repeated), name));
            }
            *slot = Some(map.next_value().map_err(|error| self.0.under(error, name))?);
        }
        Ok((instances, inputs))
    }
}

/// Whether objects stand where values do: after the outer bracket in the row form, at once in the column form.
fn objects(text: &str, rows: bool) -> bool {
    let mut bytes = text.bytes().filter(|byte| !byte.is_ascii_whitespace());
    if rows {
        bytes.next();
    }
    bytes.next() == Some(b'{')
}
