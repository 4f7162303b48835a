//! Tensors as DLPack 1.x lays them out (dmlc/dlpack, dlpack.h): borrowed for the call, never owned, never copied.
//!
//! What the library hands out is dense and row-major, its byte_offset 0, its memory aligned for its elements.

use std::ffi::c_void;

use super::args::{self, check_pointer};
use super::status::{Failure, Outcome};

/// Where a tensor's memory is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLDevice {
    /// A DLDeviceType: 1 is the CPU, 2 is CUDA.
    pub device_type: i32,
    /// Which of them.
    pub device_id: i32,
}

/// What a tensor's elements are.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLDataType {
    /// A DLDataTypeCode: 0 signed, 1 unsigned, 2 float, 4 bfloat.
    pub code: u8,
    /// Bits of one element.
    pub bits: u8,
    /// 1, or more for vector types.
    pub lanes: u16,
}

/// A tensor in the caller's memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DLTensor {
    /// Its memory; the first element is byte_offset further.
    pub data: *mut c_void,
    /// Where its memory is.
    pub device: DLDevice,
    /// The number of dimensions.
    pub ndim: i32,
    /// What its elements are.
    pub dtype: DLDataType,
    /// Elements in each dimension, ndim numbers.
    pub shape: *mut i64,
    /// Elements, not bytes, from one to the next in each dimension, ndim numbers; NULL if it is contiguous, row by row.
    pub strides: *mut i64,
    /// Bytes from data to the first element.
    pub byte_offset: u64,
}

const _: () = assert!(size_of::<DLTensor>() == 48 && align_of::<DLTensor>() == 8);

/// Most dimensions that a tensor may have.
const DIMENSIONS_MAX: i32 = 32;

/// A caller's tensor, checked as far as its header tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensor<'a> {
    /// The first element. NULL only if there is none.
    pub(crate) data: *mut u8,
    pub(crate) device: DLDevice,
    pub(crate) dtype: DLDataType,
    pub(crate) shape: &'a [i64],
    /// `None` if it is contiguous.
    pub(crate) strides: Option<&'a [i64]>,
    /// Bytes of its elements.
    pub(crate) num_bytes: usize,
}

/// The tensor that the caller lends as `argument`.
///
/// # Safety
/// `'a` ends with the call; the pointer, if its bits pass, is one to a tensor whose shape and strides may be read.
pub(crate) unsafe fn read<'a>(argument: &str, tensor: *const DLTensor) -> Outcome<Tensor<'a>> {
    check_pointer(argument, tensor)?;
    // SAFETY: not NULL, aligned, the rest is the caller's promise.
    let tensor = unsafe { tensor.read() };
    let field = |name| Field(argument, name);
    let ndim = args::in_range(field("ndim"), tensor.ndim, 0..=DIMENSIONS_MAX)? as usize;
    // SAFETY: `ndim` numbers, the caller's promise.
    let shape = unsafe { args::slice(field("shape"), tensor.shape, field("ndim"), ndim) }?;
    let strides = match tensor.strides.is_null() {
        true => None,
        // SAFETY: as for the shape.
        false => Some(unsafe { args::slice(field("strides"), tensor.strides, field("ndim"), ndim) }?),
    };
    args::in_range(field("dtype.bits"), tensor.dtype.bits, 1..=u8::MAX)?;
    args::in_range(field("dtype.lanes"), tensor.dtype.lanes, 1..=u16::MAX)?;
    let num_bytes = num_bytes(argument, shape, tensor.dtype)?;
    if tensor.data.is_null() && num_bytes > 0 {
        return Err(Failure::argument(
            field("data"),
            format!("is NULL, but the tensor has {num_bytes} bytes"),
        ));
    }
    args::in_range(field("byte_offset"), tensor.byte_offset, 0..=isize::MAX as u64)?;
    let data = tensor.data.cast::<u8>().wrapping_add(tensor.byte_offset as usize);
    let is_contiguous = strides.is_none_or(|strides| are_contiguous(shape, strides));
    let strides = strides.filter(|_| !is_contiguous);
    Ok(Tensor { data, device: tensor.device, dtype: tensor.dtype, shape, strides, num_bytes })
}

/// A field of an argument, whose name is made when it is asked for: tensors are read for every task.
struct Field<'a>(&'a str, &'static str);

impl std::fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}->{}", self.0, self.1)
    }
}

/// Bytes of all elements, if they could be in memory.
fn num_bytes(argument: &str, shape: &[i64], dtype: DLDataType) -> Outcome<usize> {
    if let Some((i, &n)) = shape.iter().enumerate().find(|(_, &n)| n < 0) {
        return Err(Failure::argument(
            format!("{argument}->shape[{i}]"),
            format!("is {n}, must be at least 0"),
        ));
    }
    let bits = dtype.bits as u128 * dtype.lanes as u128;
    let sizes = shape.iter().map(|&n| n as u128);
    let bits = match shape.contains(&0) {
        true => Some(0),
        false => sizes.clone().try_fold(bits, |product, n| product.checked_mul(n)),
    };
    let bytes = bits.map(|bits| bits.div_ceil(8)).filter(|&bytes| bytes <= isize::MAX as u128);
    bytes.map(|bytes| bytes as usize).ok_or_else(|| {
        Failure::argument(format!("{argument}->shape"), format!("is {shape:?}, more than memory can hold"))
    })
}

/// Whether the strides are those of a tensor without them. Those of a dimension of one element do not matter.
fn are_contiguous(shape: &[i64], strides: &[i64]) -> bool {
    let mut stride = 1i64;
    shape.iter().zip(strides).rev().all(|(&n, &given)| {
        let fits = n == 1 || given == stride;
        stride = stride.saturating_mul(n);
        fits
    }) || shape.contains(&0)
}

#[cfg(test)]
#[path = "tensor_tests.rs"]
mod tests;
