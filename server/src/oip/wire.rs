//! The JSON part of an inference request as it stands on the wire, before tensors are made of it.
//!
//! Written by hand rather than derived, so that each error names its field ([`Trail`]) and each list has its bound.

use super::DecodeLimits;
use super::error::Problem;
use super::parameters::{FlagSeed, Parameters, ParametersSeed, Text, TextSeed, WholeSeed};
use super::trail::Trail;
use balm_inference::datatype::Datatype;
use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde_json::value::RawValue;
use std::fmt;

/// The request object.
#[derive(Default)]
pub(super) struct WireRequest<'de> {
    pub(super) id: Option<String>,
    pub(super) parameters: Parameters,
    pub(super) inputs: Vec<WireInput<'de>>,
    pub(super) outputs: Vec<WireOutput>,
}

/// One element of `inputs`.
pub(super) struct WireInput<'de> {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) datatype: Datatype,
    pub(super) binary_data_size: Option<usize>,
    /// Parsed later: `datatype` and `shape` may come after it.
    pub(super) data: Option<&'de RawValue>,
}

/// One element of `outputs`.
#[derive(Debug)]
pub(super) struct WireOutput {
    pub(super) name: String,
    pub(super) binary_data: Option<bool>,
    pub(super) classification: Option<usize>,
}

/// What every seed here needs.
#[derive(Clone, Copy)]
pub(super) struct Scope<'t> {
    pub(super) trail: &'t Trail,
    pub(super) limits: &'t DecodeLimits,
}

/// Implements a seed whose value is a JSON object (or `null` where `visit_unit` is given).
macro_rules! object_seed {
    ($seed:ident => $value:ty, $expected:literal) => {
        #[derive(Clone, Copy)]
        pub(super) struct $seed<'t>(pub(super) Scope<'t>);

        impl<'de> DeserializeSeed<'de> for $seed<'_> {
            type Value = $value;

            fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<$value, D::Error> {
                from.deserialize_any(self)
            }
        }

        impl<'de> Visitor<'de> for $seed<'_> {
            type Value = $value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($expected)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<$value, A::Error> {
                self.read(map)
            }
        }
    };
}

object_seed!(RequestSeed => WireRequest<'de>, "an inference request, which is an object");
object_seed!(InputSeed => WireInput<'de>, "an input, which is an object");
object_seed!(OutputSeed => WireOutput, "an output, which is an object");
object_seed!(InputParametersSeed => Option<usize>, "an object of parameters");
object_seed!(OutputParametersSeed => (Option<bool>, Option<usize>), "an object of parameters");

/// Reads the value of member `name` into `slot`, which must be empty.
fn member<'de, A, S>(
    map: &mut A,
    slot: &mut Option<S::Value>,
    seed: S,
    name: &'static str,
    trail: &Trail,
) -> Result<(), A::Error>
where
    A: MapAccess<'de>,
    S: DeserializeSeed<'de>,
{
    if slot.is_some() {
        return Err(trail.under(trail.fail(Problem::Repeated), name));
    }
    match map.next_value_seed(seed) {
        Ok(value) => {
            *slot = Some(value);
            Ok(())
        }
        Err(error) => Err(trail.under(error, name)),
    }
}

/// The value that a slot must hold by the end of its object.
fn needed<T, E: serde::de::Error>(
    slot: Option<T>,
    name: &'static str,
    hint: &'static str,
    trail: &Trail,
) -> Result<T, E> {
    slot.ok_or_else(|| trail.under(trail.fail(Problem::Missing { hint }), name))
}

const MEMBER: TextSeed = TextSeed("the name of a member");

impl RequestSeed<'_> {
    fn read<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<WireRequest<'de>, A::Error> {
        let Scope { trail, limits } = self.0;
        let (mut id, mut parameters, mut inputs, mut outputs) = (None, None, None, None);
        while let Some(Text(name)) = map.next_key_seed(MEMBER)? {
            match &*name {
                "id" => member(&mut map, &mut id, NullableText, "id", trail)?,
                "parameters" => {
                    let seed = ParametersSeed { trail, max_parameters: limits.max_parameters };
                    member(&mut map, &mut parameters, seed, "parameters", trail)?;
                }
                "inputs" => {
                    let seed = ListSeed { scope: self.0, item: InputSeed(self.0), what: "inputs" };
                    member(&mut map, &mut inputs, seed, "inputs", trail)?;
                }
                "outputs" => {
                    let seed =
                        ListSeed { scope: self.0, item: OutputSeed(self.0), what: "outputs" };
                    member(&mut map, &mut outputs, seed, "outputs", trail)?;
                }
                _ => ignore(&mut map)?,
            }
        }
        let inputs = needed(inputs, "inputs", "it is the array of input tensors", trail)?;
        Ok(WireRequest {
            id: id.flatten(),
            parameters: parameters.unwrap_or_default(),
            inputs,
            outputs: outputs.unwrap_or_default(),
        })
    }
}

impl InputSeed<'_> {
    fn read<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<WireInput<'de>, A::Error> {
        let trail = self.0.trail;
        let (mut name, mut shape, mut datatype) = (None, None, None);
        let (mut parameters, mut data) = (None, None);
        while let Some(Text(key)) = map.next_key_seed(MEMBER)? {
            match &*key {
                "name" => member(&mut map, &mut name, TextSeed("text"), "name", trail)?,
                "shape" => member(&mut map, &mut shape, ShapeSeed(self.0), "shape", trail)?,
                "datatype" => {
                    member(&mut map, &mut datatype, DatatypeSeed(trail), "datatype", trail)?
                }
                "parameters" => {
                    let seed = Nullable(InputParametersSeed(self.0));
                    member(&mut map, &mut parameters, seed, "parameters", trail)?;
                }
                "data" => member(&mut map, &mut data, RawSeed, "data", trail)?,
                _ => ignore(&mut map)?,
            }
        }
        let Text(name) = needed(name, "name", "it is the name of a model input", trail)?;
        Ok(WireInput {
            name: name.into_owned(),
            shape: needed(shape, "shape", "it is an array of sizes, for example [1, 4]", trail)?,
            datatype: needed(datatype, "datatype", "it is a name such as FP32 or INT64", trail)?,
            binary_data_size: parameters.flatten().flatten(),
            data: data.filter(|data| data.get() != "null"),
        })
    }
}

impl OutputSeed<'_> {
    fn read<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<WireOutput, A::Error> {
        let trail = self.0.trail;
        let (mut name, mut parameters) = (None, None);
        while let Some(Text(key)) = map.next_key_seed(MEMBER)? {
            match &*key {
                "name" => member(&mut map, &mut name, TextSeed("text"), "name", trail)?,
                "parameters" => {
                    let seed = Nullable(OutputParametersSeed(self.0));
                    member(&mut map, &mut parameters, seed, "parameters", trail)?;
                }
                _ => ignore(&mut map)?,
            }
        }
        let Text(name) = needed(name, "name", "it is the name of a model output", trail)?;
        let (binary_data, classification) = parameters.flatten().unwrap_or_default();
        Ok(WireOutput { name: name.into_owned(), binary_data, classification })
    }
}

impl InputParametersSeed<'_> {
    fn read<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<Option<usize>, A::Error> {
        let trail = self.0.trail;
        let mut size = None;
        while let Some(Text(key)) = map.next_key_seed(MEMBER)? {
            match &*key {
                "binary_data_size" => {
                    let seed = WholeSeed("a whole number of bytes");
                    member(&mut map, &mut size, seed, "binary_data_size", trail)?;
                }
                _ => other_parameter(&mut map, &key, trail)?,
            }
        }
        Ok(size.flatten().map(|size| usize::try_from(size).unwrap_or(usize::MAX)))
    }
}

impl OutputParametersSeed<'_> {
    fn read<'de, A: MapAccess<'de>>(
        self,
        mut map: A,
    ) -> Result<(Option<bool>, Option<usize>), A::Error> {
        let trail = self.0.trail;
        let (mut binary, mut classification) = (None, None);
        while let Some(Text(key)) = map.next_key_seed(MEMBER)? {
            match &*key {
                "binary_data" => member(&mut map, &mut binary, FlagSeed, "binary_data", trail)?,
                "classification" => {
                    let seed = WholeSeed("the number of classes to return");
                    member(&mut map, &mut classification, seed, "classification", trail)?;
                }
                _ => other_parameter(&mut map, &key, trail)?,
            }
        }
        // 0 classes mean "no classification", as in Triton.
        let classification = classification.flatten().filter(|count| *count > 0);
        let classification =
            classification.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        Ok((binary.flatten(), classification))
    }
}

fn ignore<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(|_| ())
}

/// A parameter of an input or output that this server gives no meaning to. Shared memory must not pass silently:
/// the tensor would be missing.
fn other_parameter<'de, A: MapAccess<'de>>(
    map: &mut A,
    key: &str,
    trail: &Trail,
) -> Result<(), A::Error> {
    if key.starts_with("shared_memory_") {
        let problem = Problem::NotSupported {
            what: "shared memory",
            instead: "send and ask for tensors in the body",
        };
        return Err(trail.under(trail.fail(problem), key.to_owned()));
    }
    ignore(map)
}

/// `null` counts as absent.
struct Nullable<S>(S);

impl<'de, S> DeserializeSeed<'de> for Nullable<S>
where
    S: DeserializeSeed<'de> + Visitor<'de, Value = <S as DeserializeSeed<'de>>::Value>,
{
    type Value = Option<<S as DeserializeSeed<'de>>::Value>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_option(self)
    }
}

impl<'de, S> Visitor<'de> for Nullable<S>
where
    S: DeserializeSeed<'de> + Visitor<'de, Value = <S as DeserializeSeed<'de>>::Value>,
{
    type Value = Option<<S as DeserializeSeed<'de>>::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        self.0.deserialize(from).map(Some)
    }
}

/// Text or `null`.
struct NullableText;

impl<'de> DeserializeSeed<'de> for NullableText {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Option<String>, D::Error> {
        Option::<String>::deserialize(from)
    }
}

/// The text of a value, checked for its grammar and not otherwise read.
struct RawSeed;

impl<'de> DeserializeSeed<'de> for RawSeed {
    type Value = &'de RawValue;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<&'de RawValue, D::Error> {
        <&RawValue>::deserialize(from)
    }
}

/// A bounded list; `null` counts as empty.
struct ListSeed<'t, I> {
    scope: Scope<'t>,
    item: I,
    what: &'static str,
}

impl<'de, I: DeserializeSeed<'de> + Copy> DeserializeSeed<'de> for ListSeed<'_, I> {
    type Value = Vec<I::Value>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, I: DeserializeSeed<'de> + Copy> Visitor<'de> for ListSeed<'_, I> {
    type Value = Vec<I::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of {}", self.what)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let Scope { trail, limits } = self.scope;
        let mut items = Vec::new();
        loop {
            match seq.next_element_seed(self.item) {
                Ok(None) => return Ok(items),
                Ok(Some(_)) if items.len() >= limits.max_tensors => {
                    let limit = limits.max_tensors;
                    return Err(trail.fail(Problem::TooMany { limit, what: self.what }));
                }
                Ok(Some(item)) => items.push(item),
                Err(error) => return Err(trail.index(error, items.len())),
            }
        }
    }
}

struct DatatypeSeed<'t>(&'t Trail);

impl<'de> DeserializeSeed<'de> for DatatypeSeed<'_> {
    type Value = Datatype;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Datatype, D::Error> {
        let Text(name) = TextSeed("the name of a datatype").deserialize(from)?;
        name.parse().map_err(|unknown| self.0.fail(Problem::Datatype(unknown)))
    }
}

struct ShapeSeed<'t>(Scope<'t>);

impl<'de> DeserializeSeed<'de> for ShapeSeed<'_> {
    type Value = Vec<usize>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Vec<usize>, D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ShapeSeed<'_> {
    type Value = Vec<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of sizes, for example [1, 4]")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<usize>, A::Error> {
        let Scope { trail, limits } = self.0;
        let mut shape = Vec::with_capacity(4);
        loop {
            match seq.next_element_seed(DimensionSeed(trail)) {
                Ok(None) => return Ok(shape),
                Ok(Some(_)) if shape.len() >= limits.max_rank => {
                    let limit = limits.max_rank;
                    return Err(trail.fail(Problem::TooMany { limit, what: "dimensions" }));
                }
                Ok(Some(size)) => shape.push(size),
                Err(error) => return Err(trail.index(error, shape.len())),
            }
        }
    }
}

struct DimensionSeed<'t>(&'t Trail);

impl<'de> DeserializeSeed<'de> for DimensionSeed<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<usize, D::Error> {
        from.deserialize_u64(self)
    }
}

impl Visitor<'_> for DimensionSeed<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size, which is a whole number")
    }

    fn visit_u64<E: serde::de::Error>(self, size: u64) -> Result<usize, E> {
        usize::try_from(size).map_err(|_| self.0.fail(Problem::HugeDimension))
    }

    fn visit_i64<E: serde::de::Error>(self, found: i64) -> Result<usize, E> {
        Err(self.0.fail(Problem::NegativeDimension { found }))
    }

    /// A number with a point or an exponent, or one beyond 64 bits.
    fn visit_f64<E: serde::de::Error>(self, found: f64) -> Result<usize, E> {
        if !found.is_finite() {
            return Err(E::invalid_type(Unexpected::Float(found), &self));
        }
        let problem = if found.fract() == 0.0 && found.abs() >= 9.2e18 {
            Problem::HugeDimension
        } else {
            Problem::FractionalDimension { found }
        };
        Err(self.0.fail(problem))
    }
}
