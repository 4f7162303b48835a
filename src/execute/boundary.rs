//! What crosses the boundaries between stages: any number of tensors, their types and shapes.

use std::collections::BTreeMap;

use crate::error::{in_range, Error, Result};
use crate::ids::{Direction, Microbatch};
use crate::op::StageCopy;

/// Most tensors that may cross one boundary.
pub const TENSORS_MAX: usize = 32;
/// Most dimensions of a tensor.
pub const DIMENSIONS_MAX: usize = 8;
/// Most bytes of what crosses one boundary for one micro-batch.
pub const BOUNDARY_BYTES_MAX: usize = 1 << 40;
/// Each tensor of a buffer begins at a multiple of this many bytes.
pub const TENSOR_ALIGNMENT: usize = 64;

/// An element type, as DLPack says it: kind, bits, lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DType {
    /// DLPack's `DLDataTypeCode`: 0 signed, 1 unsigned, 2 float, 4 bfloat, 5 complex, 6 bool, 7 … 17 small floats.
    pub code: u8,
    /// Bits of one lane.
    pub bits: u8,
    /// 1, or the width of a vector.
    pub lanes: u16,
}

impl DType {
    /// 32 bit float.
    pub const F32: DType = DType { code: 2, bits: 32, lanes: 1 };
    /// 64 bit float.
    pub const F64: DType = DType { code: 2, bits: 64, lanes: 1 };
    /// 16 bit brain float.
    pub const BF16: DType = DType { code: 4, bits: 16, lanes: 1 };
    /// 16 bit float.
    pub const F16: DType = DType { code: 2, bits: 16, lanes: 1 };
    /// 64 bit signed integer.
    pub const I64: DType = DType { code: 0, bits: 64, lanes: 1 };
    /// 32 bit signed integer.
    pub const I32: DType = DType { code: 0, bits: 32, lanes: 1 };
    /// Byte.
    pub const U8: DType = DType { code: 1, bits: 8, lanes: 1 };

    fn check(self) -> Result<()> {
        in_range("boundary", "dtype.code", self.code, 0..=17)?;
        if !matches!(self.bits, 4 | 6 | 8 | 16 | 32 | 64 | 128) {
            return Err(Error::argument(
                "boundary",
                "dtype.bits",
                self.bits,
                "must be 4, 6, 8, 16, 32, 64 or 128",
            ));
        }
        in_range("boundary", "dtype.lanes", self.lanes, 1..=64)?;
        Ok(())
    }
}

/// One tensor that crosses a boundary: dense, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its elements.
    pub dtype: DType,
    /// Its shape, at most [`DIMENSIONS_MAX`] dimensions of at least 0.
    pub shape: Vec<i64>,
}

impl TensorSpec {
    /// A checked specification.
    pub fn new(dtype: DType, shape: impl Into<Vec<i64>>) -> Result<TensorSpec> {
        let spec = TensorSpec { dtype, shape: shape.into() };
        spec.check()?;
        Ok(spec)
    }

    /// Bytes of its elements, packed.
    pub fn bytes(&self) -> usize {
        let bits = self.shape.iter().map(|&n| n as usize).product::<usize>()
            * self.dtype.bits as usize
            * self.dtype.lanes as usize;
        bits.div_ceil(8)
    }

    fn check(&self) -> Result<()> {
        self.dtype.check()?;
        in_range("boundary", "the number of dimensions", self.shape.len(), 0..=DIMENSIONS_MAX)?;
        let mut bytes = (self.dtype.bits as usize * self.dtype.lanes as usize).div_ceil(8);
        for (i, &n) in self.shape.iter().enumerate() {
            let range = 0..=BOUNDARY_BYTES_MAX as i64;
            let n = in_range("boundary", &format!("shape[{i}]"), n, range)? as usize;
            bytes = bytes.checked_mul(n).filter(|&bytes| bytes <= BOUNDARY_BYTES_MAX).ok_or_else(|| {
                let range = format!("makes the tensor larger than {BOUNDARY_BYTES_MAX} bytes");
                Error::argument("boundary", format!("shape[{i}]"), n, range)
            })?;
        }
        Ok(())
    }
}

/// What crosses every boundary, for every micro-batch. Both ranks of a boundary must have the same.
///
/// A gradient has the dtype and shape of the activation that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boundaries {
    usual: Vec<TensorSpec>,
    /// By direction and micro-batch, at all boundaries.
    microbatches: BTreeMap<(Direction, Microbatch), Vec<TensorSpec>>,
    /// By the copy before the boundary, for all micro-batches.
    copies: BTreeMap<StageCopy, Vec<TensorSpec>>,
}

impl Boundaries {
    /// The same tensors at every boundary for every micro-batch, 0 to [`TENSORS_MAX`] of them.
    pub fn uniform(tensors: Vec<TensorSpec>) -> Result<Boundaries> {
        check(&tensors)?;
        Ok(Boundaries { usual: tensors, microbatches: BTreeMap::new(), copies: BTreeMap::new() })
    }

    /// Other tensors after `copy`, for every micro-batch.
    pub fn set_after(&mut self, copy: StageCopy, tensors: Vec<TensorSpec>) -> Result<()> {
        check(&tensors)?;
        self.copies.insert(copy, tensors);
        Ok(())
    }

    /// Other tensors for one micro-batch, at every boundary; it overrides [`Boundaries::set_after`].
    pub fn set_microbatch(
        &mut self,
        direction: Direction,
        microbatch: Microbatch,
        tensors: Vec<TensorSpec>,
    ) -> Result<()> {
        check(&tensors)?;
        self.microbatches.insert((direction, microbatch), tensors);
        Ok(())
    }

    /// What crosses the boundary after `copy` for `microbatch`.
    pub fn after(&self, copy: StageCopy, microbatch: Microbatch) -> &[TensorSpec] {
        if !self.microbatches.is_empty() {
            if let Some(tensors) = self.microbatches.get(&(copy.direction, microbatch)) {
                return tensors;
            }
        }
        if !self.copies.is_empty() {
            if let Some(tensors) = self.copies.get(&copy) {
                return tensors;
            }
        }
        &self.usual
    }

    /// The most bytes that cross the boundary after `copy` for any micro-batch, each tensor aligned; and the most
    /// tensors.
    pub(crate) fn largest_after(&self, copy: StageCopy) -> (usize, usize) {
        let usual = self.copies.get(&copy).unwrap_or(&self.usual);
        let others = self.microbatches.iter().filter(|((direction, _), _)| *direction == copy.direction);
        let all = others.map(|(_, tensors)| tensors).chain([usual]);
        all.fold((0, 0), |(bytes, count), tensors| {
            (bytes.max(aligned_bytes(tensors)), count.max(tensors.len()))
        })
    }

    /// The most bytes that cross any boundary, each tensor aligned.
    pub(crate) fn largest(&self) -> usize {
        let all = self.microbatches.values().chain(self.copies.values()).chain([&self.usual]);
        all.map(|tensors| aligned_bytes(tensors)).max().unwrap_or(0)
    }
}

fn check(tensors: &[TensorSpec]) -> Result<()> {
    in_range("boundary", "the number of tensors", tensors.len(), 0..=TENSORS_MAX)?;
    tensors.iter().try_for_each(TensorSpec::check)?;
    in_range("boundary", "the bytes of all tensors", aligned_bytes(tensors), 0..=BOUNDARY_BYTES_MAX)?;
    Ok(())
}

/// Bytes of tensors that each begin at a multiple of [`TENSOR_ALIGNMENT`].
fn aligned_bytes(tensors: &[TensorSpec]) -> usize {
    tensors.iter().map(|tensor| tensor.bytes().next_multiple_of(TENSOR_ALIGNMENT)).sum()
}
