//! JSON arrays to tensors: flat or nested, of a known shape or of one that the data themselves tell.
//!
//! The parser descends as deep as the shape has dimensions and no deeper, whatever the text holds.

use super::element::{Flags, Numbers, Sink, Strings};
use super::error::{Count, Problem};
use super::trail::Trail;
use balm_inference::datatype::Datatype;
use balm_inference::tensor::TensorData;
use bytes::Bytes;
use half::{bf16, f16};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, SeqAccess, Visitor};
use std::fmt;

/// One level of arrays.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    /// How many elements an array of this level has; `None` until the first one told.
    pub(super) size: Option<usize>,
    /// Who says so.
    pub(super) source: Source,
}

/// Where the size of a [`Level`] comes from, for the message.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// The product of the whole shape: the data are one flat array.
    Product,
    /// One dimension of the shape.
    Dimension(usize),
    /// The first array of this level.
    Sibling,
}

/// What the levels of one tensor share.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) trail: &'a Trail,
    /// The shape as it was sent, for messages; empty where the data tell the shape.
    pub(super) shape: &'a [usize],
    /// Elements at which a tensor of unknown shape exceeds [`super::DecodeLimits::max_decoded_bytes`].
    pub(super) max_elements: usize,
    /// The limit in bytes, for the message.
    pub(super) max_bytes: usize,
}

/// A tensor that is being read.
pub(super) enum Elements<'b> {
    Bool(Flags),
    Uint8(Numbers<u8>),
    Uint16(Numbers<u16>),
    Uint32(Numbers<u32>),
    Uint64(Numbers<u64>),
    Int8(Numbers<i8>),
    Int16(Numbers<i16>),
    Int32(Numbers<i32>),
    Int64(Numbers<i64>),
    Fp16(Numbers<f16>),
    Bf16(Numbers<bf16>),
    Fp32(Numbers<f32>),
    Fp64(Numbers<f64>),
    Bytes(Strings<'b>),
}

/// Runs `$body` with `$sink` bound to the typed sink inside.
macro_rules! each_sink {
    ($elements:expr, $sink:ident => $body:expr, $flags:ident => $on_flags:expr, $strings:ident => $on_strings:expr) => {
        match $elements {
            Elements::Bool($flags) => $on_flags,
            Elements::Uint8($sink) => $body,
            Elements::Uint16($sink) => $body,
            Elements::Uint32($sink) => $body,
            Elements::Uint64($sink) => $body,
            Elements::Int8($sink) => $body,
            Elements::Int16($sink) => $body,
            Elements::Int32($sink) => $body,
            Elements::Int64($sink) => $body,
            Elements::Fp16($sink) => $body,
            Elements::Bf16($sink) => $body,
            Elements::Fp32($sink) => $body,
            Elements::Fp64($sink) => $body,
            Elements::Bytes($strings) => $on_strings,
        }
    };
}

impl<'b> Elements<'b> {
    /// Room for `count` elements, which the caller has bounded by bytes that are really there.
    pub(super) fn with_capacity(datatype: Datatype, count: usize, body: &'b Bytes) -> Self {
        match datatype {
            Datatype::Bool => Elements::Bool(Flags { out: Vec::with_capacity(count) }),
            Datatype::Uint8 => Elements::Uint8(Numbers::with_capacity(count)),
            Datatype::Uint16 => Elements::Uint16(Numbers::with_capacity(count)),
            Datatype::Uint32 => Elements::Uint32(Numbers::with_capacity(count)),
            Datatype::Uint64 => Elements::Uint64(Numbers::with_capacity(count)),
            Datatype::Int8 => Elements::Int8(Numbers::with_capacity(count)),
            Datatype::Int16 => Elements::Int16(Numbers::with_capacity(count)),
            Datatype::Int32 => Elements::Int32(Numbers::with_capacity(count)),
            Datatype::Int64 => Elements::Int64(Numbers::with_capacity(count)),
            Datatype::Fp16 => Elements::Fp16(Numbers::with_capacity(count)),
            Datatype::Bf16 => Elements::Bf16(Numbers::with_capacity(count)),
            Datatype::Fp32 => Elements::Fp32(Numbers::with_capacity(count)),
            Datatype::Fp64 => Elements::Fp64(Numbers::with_capacity(count)),
            Datatype::Bytes => Elements::Bytes(Strings { out: Vec::with_capacity(count), body }),
        }
    }

    /// Reads one value of `levels.len()` nested arrays and appends its elements.
    pub(super) fn read<D: Deserializer<'b>>(
        &mut self,
        from: D,
        levels: &mut [Level],
        context: Context<'_>,
    ) -> Result<(), D::Error> {
        each_sink!(self,
            sink => Nest { sink, levels, context }.deserialize(from),
            sink => Nest { sink, levels, context }.deserialize(from),
            sink => Nest { sink, levels, context }.deserialize(from))
    }

    /// Elements so far.
    pub(super) fn count(&self) -> usize {
        each_sink!(self, sink => sink.count(), sink => sink.count(), sink => sink.count())
    }

    /// The elements, done.
    pub(super) fn finish(self) -> TensorData {
        each_sink!(self,
            sink => sink.finish(),
            flags => TensorData::Raw(Bytes::from(flags.out)),
            strings => TensorData::Strings(strings.out))
    }
}

/// Elements per byte of JSON are bounded: `n` elements take at least `2n − 1` characters and the brackets.
pub(super) fn most_elements(text: &str) -> usize {
    text.len() / 2 + 1
}

/// How many arrays open at the start of `text`, up to `limit`: the rank of what stands there.
pub(super) fn opening_brackets(text: &str, limit: usize) -> usize {
    text.bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .take(limit)
        .take_while(|byte| *byte == b'[')
        .count()
}

/// Reads arrays as deep as there are levels, and elements below.
struct Nest<'a, S> {
    sink: &'a mut S,
    levels: &'a mut [Level],
    context: Context<'a>,
}

impl<'de, S: Sink<'de>> DeserializeSeed<'de> for Nest<'_, S> {
    type Value = ();

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        if self.levels.is_empty() {
            self.sink.element(from, self.context.trail)
        } else {
            from.deserialize_seq(self)
        }
    }
}

impl<'de, S: Sink<'de>> Visitor<'de> for Nest<'_, S> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.levels.first().and_then(|level| level.size) {
            Some(1) => f.write_str("an array of 1 element"),
            Some(size) => write!(f, "an array of {size} elements"),
            None => f.write_str("an array"),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Nest { sink, levels, context } = self;
        let Some((level, inner)) = levels.split_first_mut() else {
            return Ok(());
        };
        let trail = context.trail;
        let mut count = 0;
        loop {
            if level.size == Some(count) {
                if seq.next_element::<IgnoredAny>()?.is_some() {
                    return Err(trail.fail(length_problem(
                        *level,
                        Count::MoreThan(count),
                        count,
                        context,
                    )));
                }
                return Ok(());
            }
            let item = Nest { sink: &mut *sink, levels: &mut *inner, context };
            match seq.next_element_seed(item) {
                Ok(Some(())) => count += 1,
                Ok(None) => break,
                Err(error) => return Err(trail.index(error, count)),
            }
            if level.size.is_none() && sink.count() > context.max_elements {
                return Err(trail.fail(Problem::DecodedTooLarge { limit: context.max_bytes }));
            }
        }
        match level.size {
            Some(expected) => {
                Err(trail.fail(length_problem(*level, Count::Exactly(count), expected, context)))
            }
            None => {
                level.size = Some(count);
                Ok(())
            }
        }
    }
}

#[cold]
fn length_problem(level: Level, found: Count, expected: usize, context: Context<'_>) -> Problem {
    match level.source {
        Source::Product => Problem::ElementCount { found, shape: context.shape.to_vec(), expected },
        Source::Dimension(axis) => Problem::RowLength { found, axis, expected },
        Source::Sibling => Problem::Ragged { found, expected },
    }
}
