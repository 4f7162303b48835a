//! A tensor in a buffer, as a task sees it.

use std::ffi::c_void;
use std::ptr::NonNull;

use crate::execute::boundary::{DType, TensorSpec, DIMENSIONS_MAX};

/// Types whose any bits are a value, for [`Tensor::as_slice`].
///
/// # Safety
/// Every bit pattern is valid, and the type has the size and alignment that [`Element::DTYPE`] says.
pub unsafe trait Element: Copy {
    /// The element type in DLPack's terms.
    const DTYPE: DType;
}

// SAFETY: plain numbers, of the width that the DType says.
unsafe impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
// SAFETY: as above.
unsafe impl Element for f64 {
    const DTYPE: DType = DType::F64;
}
// SAFETY: as above.
unsafe impl Element for i32 {
    const DTYPE: DType = DType::I32;
}
// SAFETY: as above.
unsafe impl Element for i64 {
    const DTYPE: DType = DType::I64;
}
// SAFETY: as above.
unsafe impl Element for u8 {
    const DTYPE: DType = DType::U8;
}

/// A dense, row-major tensor of a message.
///
/// Its memory is the executor's or, where the caller brings its own, the caller's. A gradient may be absent.
#[derive(Debug)]
pub struct Tensor {
    data: Option<NonNull<u8>>,
    owner: *mut c_void,
    bytes: usize,
    /// Bytes that were agreed.
    room: usize,
    dtype: DType,
    num_dimensions: usize,
    shape: [i64; DIMENSIONS_MAX],
    strides: [i64; DIMENSIONS_MAX],
    is_present: bool,
    place: Place,
    can_resize: bool,
}

/// Where a tensor's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In ordinary memory.
    Host,
    /// In the memory of a CUDA device, by its number: [`Tensor::data`] is a device address.
    Cuda(u32),
}

// SAFETY: a tensor is a view that travels with its executor, which is used by one thread at a time.
unsafe impl Send for Tensor {}

impl Tensor {
    /// A tensor of `spec` without memory.
    pub(crate) fn without_data(spec: &TensorSpec, place: Place) -> Tensor {
        let (shape, strides) = row_major(&spec.shape);
        Tensor {
            data: None,
            owner: std::ptr::null_mut(),
            bytes: spec.bytes(),
            room: spec.bytes(),
            dtype: spec.dtype,
            num_dimensions: spec.shape.len(),
            shape,
            strides,
            is_present: true,
            place,
            can_resize: false,
        }
    }

    /// Lets its shape be changed: it travels with the elements.
    pub(crate) fn allow_resize(&mut self) {
        self.can_resize = true;
    }

    /// Puts the tensor's elements at `data`, with a word of the caller's beside it.
    ///
    /// # Safety
    /// `data` is good for reads and writes of [`Tensor::bytes`] bytes, and aligned for the element type, until the
    /// executor releases it or is dropped.
    pub unsafe fn adopt(&mut self, data: NonNull<u8>, owner: *mut c_void) {
        self.data = Some(data);
        self.owner = owner;
    }

    /// Where the elements are; `None` if the caller brings the memory and has not yet.
    pub fn data(&self) -> Option<NonNull<u8>> {
        self.data
    }

    /// The word that came with adopted memory.
    pub fn owner(&self) -> *mut c_void {
        self.owner
    }

    /// Where its elements are.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Bytes of its elements.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it smaller, or as large again as was agreed: for an output of this micro-batch, where shapes are exchanged
    /// ([`crate::execute::CudaOptions::exchanges_shapes`]).
    ///
    /// # Errors
    /// Shapes are not exchanged; another number of dimensions, a negative one, or more bytes than agreed.
    pub fn set_shape(&mut self, shape: &[i64]) -> Result<(), String> {
        let wrong = |why: &str| Err(format!("shape {shape:?} {why}, {:?} was agreed", self.shape()));
        if !self.can_resize {
            return wrong("is another, and shapes are not exchanged");
        }
        if shape.len() != self.num_dimensions {
            return wrong("has another number of dimensions");
        }
        if shape.iter().any(|&n| n < 0) {
            return wrong("is negative");
        }
        let bits = usize::from(self.dtype.bits) * usize::from(self.dtype.lanes);
        let product = shape.iter().try_fold(bits, |product, &n| product.checked_mul(n as usize));
        match product.map(|bits| bits.div_ceil(8)).filter(|&bytes| bytes <= self.room) {
            None => wrong("is larger than agreed"),
            Some(bytes) => {
                self.bytes = bytes;
                (self.shape, self.strides) = row_major(shape);
                Ok(())
            }
        }
    }

    /// Its element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Its shape.
    pub fn shape(&self) -> &[i64] {
        &self.shape[..self.num_dimensions]
    }

    /// Elements from one to the next in each dimension: those of a row-major tensor.
    pub fn strides(&self) -> &[i64] {
        &self.strides[..self.num_dimensions]
    }

    /// `false` for a gradient that the stage that should have made it does not have.
    pub fn is_present(&self) -> bool {
        self.is_present
    }

    /// Says whether there is such a gradient. Activations are always present.
    pub fn set_present(&mut self, is_present: bool) {
        self.is_present = is_present;
    }

    /// The elements; `None` if they are of another type, absent, without memory, or on a device.
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        let data = self.elements::<T>()?;
        // SAFETY: `adopt`'s caller promised memory for all elements; `Element` allows any bits; `elements` checked
        // type and alignment; the borrow of `self` keeps writers away.
        Some(unsafe { std::slice::from_raw_parts(data.as_ptr(), self.bytes / size_of::<T>()) })
    }

    /// The elements, to be written; `None` as for [`Tensor::as_slice`].
    pub fn as_mut_slice<T: Element>(&mut self) -> Option<&mut [T]> {
        let data = self.elements::<T>()?;
        // SAFETY: as in `as_slice`, with an exclusive borrow.
        Some(unsafe { std::slice::from_raw_parts_mut(data.as_ptr(), self.bytes / size_of::<T>()) })
    }

    fn elements<T: Element>(&self) -> Option<NonNull<T>> {
        let data = self.data.filter(|_| self.is_here::<T>())?.cast::<T>();
        data.is_aligned().then_some(data)
    }

    fn is_here<T: Element>(&self) -> bool {
        self.is_present && self.place == Place::Host && self.dtype == T::DTYPE
    }
}

/// The shape with room for the dimensions that there are not, and the strides of its rows.
fn row_major(dimensions: &[i64]) -> ([i64; DIMENSIONS_MAX], [i64; DIMENSIONS_MAX]) {
    let (mut shape, mut strides) = ([0; DIMENSIONS_MAX], [1; DIMENSIONS_MAX]);
    shape[..dimensions.len()].copy_from_slice(dimensions);
    for i in (1..dimensions.len()).rev() {
        strides[i - 1] = strides[i] * shape[i].max(1);
    }
    (shape, strides)
}
