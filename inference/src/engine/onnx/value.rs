//! Tensors into the runtime's values and back.
//!
//! Inputs are borrowed where their bytes happen to be aligned, copied where not. Outputs are copied once.

use super::one_line;
use crate::contract::TensorSpec;
use crate::datatype::Datatype;
use crate::engine::RunError;
use crate::tensor::{Dimensions, Tensor, TensorData};
use bytemuck::Pod;
use bytes::Bytes;
use half::{bf16, f16};
use ort::session::SessionInputValue;
use ort::value::{DynValue, PrimitiveTensorElementType, TensorElementType, TensorRef};

// The wire is little-endian and `bytemuck` casts in the machine's order; the two must be the same.
const _: () = assert!(cfg!(target_endian = "little"), "Balm runs on little-endian machines");

/// The protocol's datatype for a runtime's element type; `None` where the protocol has none.
pub(super) fn datatype(element: TensorElementType) -> Option<Datatype> {
    Some(match element {
        TensorElementType::Bool => Datatype::Bool,
        TensorElementType::Uint8 => Datatype::Uint8,
        TensorElementType::Uint16 => Datatype::Uint16,
        TensorElementType::Uint32 => Datatype::Uint32,
        TensorElementType::Uint64 => Datatype::Uint64,
        TensorElementType::Int8 => Datatype::Int8,
        TensorElementType::Int16 => Datatype::Int16,
        TensorElementType::Int32 => Datatype::Int32,
        TensorElementType::Int64 => Datatype::Int64,
        TensorElementType::Float16 => Datatype::Fp16,
        TensorElementType::Bfloat16 => Datatype::Bf16,
        TensorElementType::Float32 => Datatype::Fp32,
        TensorElementType::Float64 => Datatype::Fp64,
        TensorElementType::String => Datatype::Bytes,
        _ => return None,
    })
}

/// A value for the runtime that lives no longer than `tensor`.
pub(super) fn from_tensor(tensor: &Tensor) -> ort::Result<SessionInputValue<'_>> {
    let shape = tensor.shape();
    let data = match tensor.data() {
        TensorData::Raw(data) => data,
        TensorData::Strings(elements) => return from_strings(shape, elements),
    };
    match tensor.datatype() {
        Datatype::Bool => {
            let flags: Vec<bool> = data.iter().map(|byte| *byte != 0).collect();
            Ok(ort::value::Tensor::from_array((shape, flags))?.into())
        }
        Datatype::Uint8 => from_bytes::<u8>(shape, data),
        Datatype::Uint16 => from_bytes::<u16>(shape, data),
        Datatype::Uint32 => from_bytes::<u32>(shape, data),
        Datatype::Uint64 => from_bytes::<u64>(shape, data),
        Datatype::Int8 => from_bytes::<i8>(shape, data),
        Datatype::Int16 => from_bytes::<i16>(shape, data),
        Datatype::Int32 => from_bytes::<i32>(shape, data),
        Datatype::Int64 => from_bytes::<i64>(shape, data),
        Datatype::Fp16 => from_bytes::<f16>(shape, data),
        Datatype::Bf16 => from_bytes::<bf16>(shape, data),
        Datatype::Fp32 => from_bytes::<f32>(shape, data),
        Datatype::Fp64 => from_bytes::<f64>(shape, data),
        // `Tensor` cannot be made with this datatype and raw data.
        Datatype::Bytes => Err(ort::Error::new("a BYTES tensor holds strings")),
    }
}

fn from_bytes<'a, T>(shape: &'a [usize], data: &'a [u8]) -> ort::Result<SessionInputValue<'a>>
where
    T: PrimitiveTensorElementType + Pod + std::fmt::Debug,
{
    match bytemuck::try_cast_slice::<u8, T>(data) {
        Ok(elements) if !elements.is_empty() => {
            Ok(TensorRef::from_array_view((shape, elements))?.into())
        }
        _ => {
            let elements: Vec<T> = bytemuck::pod_collect_to_vec(data);
            Ok(ort::value::Tensor::from_array((shape, elements))?.into())
        }
    }
}

fn from_strings<'a>(shape: &[usize], elements: &[Bytes]) -> ort::Result<SessionInputValue<'a>> {
    let texts: Vec<String> =
        elements.iter().map(|element| String::from_utf8_lossy(element).into_owned()).collect();
    Ok(ort::value::Tensor::from_string_array((shape, texts.as_slice()))?.into())
}

/// Copies an output of the runtime.
pub(super) fn to_tensor(value: &DynValue, spec: &TensorSpec) -> Result<Tensor, RunError> {
    let failed = |reason: String| RunError::Runtime(format!("output {:?}: {reason}", spec.name));
    if spec.datatype == Datatype::Bytes {
        let (shape, texts) =
            value.try_extract_strings().map_err(|error| failed(one_line(error.message())))?;
        let elements = texts.into_iter().map(Bytes::from).collect();
        return Tensor::strings(dimensions(shape), elements)
            .map_err(|error| failed(error.to_string()));
    }
    let extracted = match spec.datatype {
        Datatype::Bool => value.try_extract_tensor::<bool>().map(|(shape, flags)| {
            let bytes: Vec<u8> = flags.iter().map(|flag| u8::from(*flag)).collect();
            (dimensions(shape), Bytes::from(bytes))
        }),
        Datatype::Uint8 => to_bytes::<u8>(value),
        Datatype::Uint16 => to_bytes::<u16>(value),
        Datatype::Uint32 => to_bytes::<u32>(value),
        Datatype::Uint64 => to_bytes::<u64>(value),
        Datatype::Int8 => to_bytes::<i8>(value),
        Datatype::Int16 => to_bytes::<i16>(value),
        Datatype::Int32 => to_bytes::<i32>(value),
        Datatype::Int64 => to_bytes::<i64>(value),
        Datatype::Fp16 => to_bytes::<f16>(value),
        Datatype::Bf16 => to_bytes::<bf16>(value),
        Datatype::Fp32 => to_bytes::<f32>(value),
        Datatype::Fp64 => to_bytes::<f64>(value),
        Datatype::Bytes => Err(ort::Error::new("a BYTES output is extracted as strings")),
    };
    let (shape, data) = extracted.map_err(|error| failed(one_line(error.message())))?;
    Tensor::raw(spec.datatype, shape, data).map_err(|error| failed(error.to_string()))
}

fn to_bytes<T>(value: &DynValue) -> ort::Result<(Dimensions, Bytes)>
where
    T: PrimitiveTensorElementType + Pod,
{
    let (shape, elements) = value.try_extract_tensor::<T>()?;
    Ok((dimensions(shape), Bytes::copy_from_slice(bytemuck::cast_slice(elements))))
}

fn dimensions(shape: &[i64]) -> Dimensions {
    shape.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect()
}
