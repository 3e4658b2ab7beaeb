//! One element of a JSON array to little-endian bytes.
//!
//! A sink takes elements straight out of the JSON parser, typed, without a value in between.

use super::error::Problem;
use super::trail::Trail;
use balm_inference::datatype::Datatype;
use balm_inference::tensor::TensorData;
use bytes::Bytes;
use half::{bf16, f16};
use serde::de::{Deserializer, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// Takes the elements of one tensor, row-major.
pub(super) trait Sink<'de> {
    /// Reads one element.
    fn element<D: Deserializer<'de>>(&mut self, from: D, trail: &Trail) -> Result<(), D::Error>;

    /// Elements so far.
    fn count(&self) -> usize;
}

/// A number type of the protocol.
pub(super) trait Number: Copy {
    /// Its name there.
    const DATATYPE: Datatype;
    /// Completes "expected …".
    const EXPECTED: &'static str;

    fn from_u64(value: u64) -> Result<Self, Problem>;
    fn from_i64(value: i64) -> Result<Self, Problem>;
    fn from_f64(value: f64) -> Result<Self, Problem>;
    fn put(self, out: &mut Vec<u8>);

    /// Asks the parser for the type; FP32 is parsed as a single, lest it be rounded twice.
    fn ask<'de, D: Deserializer<'de>, V: Visitor<'de>>(
        from: D,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        from.deserialize_f64(visitor)
    }
}

macro_rules! integer {
    ($type:ty, $datatype:expr, $expected:literal) => {
        impl Number for $type {
            const DATATYPE: Datatype = $datatype;
            const EXPECTED: &'static str = $expected;

            fn from_u64(value: u64) -> Result<Self, Problem> {
                <$type>::try_from(value).map_err(|_| out_of_range::<$type>(value.to_string()))
            }

            fn from_i64(value: i64) -> Result<Self, Problem> {
                <$type>::try_from(value).map_err(|_| out_of_range::<$type>(value.to_string()))
            }

            /// A float here is -0, a whole number beyond 64 bits, or written with a point or an exponent.
            fn from_f64(value: f64) -> Result<Self, Problem> {
                if value == 0.0 && value.is_sign_negative() {
                    Ok(0)
                } else if value.fract() == 0.0 && value.abs() >= 9.2e18 {
                    Err(out_of_range::<$type>(format!("{value:e}")))
                } else {
                    Err(Problem::NotWhole { found: value, datatype: $datatype })
                }
            }

            fn put(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }

        impl Bounds for $type {
            const LOW: i128 = <$type>::MIN as i128;
            const HIGH: i128 = <$type>::MAX as i128;
        }
    };
}

trait Bounds {
    const LOW: i128;
    const HIGH: i128;
}

#[cold]
fn out_of_range<T: Number + Bounds>(found: String) -> Problem {
    Problem::OutOfRange { found, datatype: T::DATATYPE, low: T::LOW, high: T::HIGH }
}

integer!(u8, Datatype::Uint8, "a whole number for UINT8");
integer!(u16, Datatype::Uint16, "a whole number for UINT16");
integer!(u32, Datatype::Uint32, "a whole number for UINT32");
integer!(u64, Datatype::Uint64, "a whole number for UINT64");
integer!(i8, Datatype::Int8, "a whole number for INT8");
integer!(i16, Datatype::Int16, "a whole number for INT16");
integer!(i32, Datatype::Int32, "a whole number for INT32");
integer!(i64, Datatype::Int64, "a whole number for INT64");

macro_rules! float {
    ($type:ty, $datatype:expr, $expected:literal, $ask:ident, $from:expr) => {
        impl Number for $type {
            const DATATYPE: Datatype = $datatype;
            const EXPECTED: &'static str = $expected;

            fn from_u64(value: u64) -> Result<Self, Problem> {
                // Through the double at most 53 bits survive, more than the smaller types keep.
                <Self as Number>::from_f64(value as f64)
            }

            fn from_i64(value: i64) -> Result<Self, Problem> {
                <Self as Number>::from_f64(value as f64)
            }

            fn from_f64(value: f64) -> Result<Self, Problem> {
                let convert: fn(f64) -> $type = $from;
                let number = convert(value);
                if number.is_finite() {
                    Ok(number)
                } else {
                    Err(Problem::NumberTooLarge { expected: $datatype.name() })
                }
            }

            fn put(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn ask<'de, D: Deserializer<'de>, V: Visitor<'de>>(
                from: D,
                visitor: V,
            ) -> Result<V::Value, D::Error> {
                from.$ask(visitor)
            }
        }
    };
}

float!(f64, Datatype::Fp64, "an FP64 number", deserialize_f64, |value| value);
float!(f16, Datatype::Fp16, "an FP16 number", deserialize_f64, f16::from_f64);
float!(bf16, Datatype::Bf16, "a BF16 number", deserialize_f64, bf16::from_f64);

impl Number for f32 {
    const DATATYPE: Datatype = Datatype::Fp32;
    const EXPECTED: &'static str = "an FP32 number";

    fn from_u64(value: u64) -> Result<Self, Problem> {
        Ok(value as f32)
    }

    fn from_i64(value: i64) -> Result<Self, Problem> {
        Ok(value as f32)
    }

    fn from_f64(value: f64) -> Result<Self, Problem> {
        let number = value as f32;
        if number.is_finite() {
            Ok(number)
        } else {
            Err(Problem::NumberTooLarge { expected: "FP32" })
        }
    }

    fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }

    fn ask<'de, D: Deserializer<'de>, V: Visitor<'de>>(
        from: D,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        from.deserialize_f32(visitor)
    }
}

/// Numbers of one type, little-endian.
pub(super) struct Numbers<T> {
    out: Vec<u8>,
    number: PhantomData<T>,
}

impl<T: Number> Numbers<T> {
    pub(super) fn with_capacity(elements: usize) -> Self {
        let bytes = elements.saturating_mul(size_of::<T>());
        Numbers { out: Vec::with_capacity(bytes), number: PhantomData }
    }

    pub(super) fn finish(self) -> TensorData {
        TensorData::Raw(Bytes::from(self.out))
    }
}

impl<'de, T: Number> Sink<'de> for Numbers<T> {
    #[inline]
    fn element<D: Deserializer<'de>>(&mut self, from: D, trail: &Trail) -> Result<(), D::Error> {
        T::ask(from, NumberVisitor::<T> { out: &mut self.out, trail, number: PhantomData })
    }

    fn count(&self) -> usize {
        self.out.len() / size_of::<T>()
    }
}

struct NumberVisitor<'a, T> {
    out: &'a mut Vec<u8>,
    trail: &'a Trail,
    number: PhantomData<T>,
}

impl<T: Number> NumberVisitor<'_, T> {
    #[inline]
    fn take<E: serde::de::Error>(self, number: Result<T, Problem>) -> Result<(), E> {
        match number {
            Ok(number) => {
                number.put(self.out);
                Ok(())
            }
            Err(problem) => Err(self.trail.fail(problem)),
        }
    }
}

impl<T: Number> Visitor<'_> for NumberVisitor<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    #[inline]
    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.take(T::from_u64(value))
    }

    #[inline]
    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.take(T::from_i64(value))
    }

    #[inline]
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.take(T::from_f64(value))
    }
}

/// Truth values, one byte each.
pub(super) struct Flags {
    pub(super) out: Vec<u8>,
}

impl<'de> Sink<'de> for Flags {
    #[inline]
    fn element<D: Deserializer<'de>>(&mut self, from: D, _: &Trail) -> Result<(), D::Error> {
        from.deserialize_bool(FlagVisitor(&mut self.out))
    }

    fn count(&self) -> usize {
        self.out.len()
    }
}

struct FlagVisitor<'a>(&'a mut Vec<u8>);

impl Visitor<'_> for FlagVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true or false for BOOL")
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.0.push(u8::from(value));
        Ok(())
    }
}

/// Elements of a `BYTES` tensor. Text without escapes stays where it is in the body.
pub(super) struct Strings<'b> {
    pub(super) out: Vec<Bytes>,
    pub(super) body: &'b Bytes,
}

impl<'de> Sink<'de> for Strings<'de> {
    #[inline]
    fn element<D: Deserializer<'de>>(&mut self, from: D, _: &Trail) -> Result<(), D::Error> {
        from.deserialize_str(self)
    }

    fn count(&self) -> usize {
        self.out.len()
    }
}

impl<'de> Visitor<'de> for &mut Strings<'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text for BYTES")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<(), E> {
        // The parser runs over `body` and nothing else, so what it lends lies inside.
        self.out.push(self.body.slice_ref(text.as_bytes()));
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.out.push(Bytes::copy_from_slice(text.as_bytes()));
        Ok(())
    }
}
