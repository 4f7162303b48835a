//! Which tensors are taken, and what is said of those that are not.

use super::*;
use std::ptr::null_mut;

/// A tensor of the given shape and strides, changed by `change`: its bytes and whether it is contiguous, or the error.
fn checked(shape: &[i64], strides: &[i64], change: impl Fn(&mut DLTensor)) -> Result<(usize, bool), String> {
    let (mut shape, mut strides, mut data) = (shape.to_vec(), strides.to_vec(), [0u64; 16]);
    let mut tensor = DLTensor {
        data: data.as_mut_ptr().cast(),
        device: DLDevice { device_type: 1, device_id: 0 },
        ndim: shape.len() as i32,
        dtype: DLDataType { code: 2, bits: 32, lanes: 1 },
        shape: shape.as_mut_ptr(),
        strides: if strides.is_empty() { null_mut() } else { strides.as_mut_ptr() },
        byte_offset: 0,
    };
    change(&mut tensor);
    // SAFETY: locals, as long as their ndim says in every accepted case.
    let read = unsafe { read("x", &tensor) };
    read.map(|tensor| (tensor.num_bytes, tensor.strides.is_none())).map_err(|failure| failure.text)
}

#[test]
fn tensors_are_measured() {
    let same = |_: &mut DLTensor| {};
    assert_eq!(checked(&[2, 3], &[], same), Ok((24, true)));
    assert_eq!(checked(&[2, 3], &[3, 1], same), Ok((24, true)));
    assert_eq!(checked(&[2, 3], &[1, 2], same), Ok((24, false)));
    assert_eq!(checked(&[1, 3], &[99, 1], same), Ok((12, true)));
    assert_eq!(checked(&[], &[], same), Ok((4, true)));
    assert_eq!(checked(&[i64::MAX, 0, i64::MAX], &[], same), Ok((0, true)));
    assert_eq!(checked(&[3], &[], |t| t.dtype.bits = 4), Ok((2, true)));
    assert_eq!(checked(&[0], &[], |t| t.data = null_mut()), Ok((0, true)));
}

#[test]
fn tensors_that_cannot_be_are_refused() {
    let refused = |shape: &[i64], change: &dyn Fn(&mut DLTensor)| checked(shape, &[], change).unwrap_err();
    assert_eq!(refused(&[3], &|t| t.ndim = 33), "x->ndim is 33, must be 0 to 32");
    assert_eq!(refused(&[3], &|t| t.ndim = -1), "x->ndim is -1, must be 0 to 32");
    assert_eq!(refused(&[3], &|t| t.shape = null_mut()), "x->shape is NULL");
    assert_eq!(refused(&[3, -2], &|_| {}), "x->shape[1] is -2, must be at least 0");
    assert_eq!(refused(&[3], &|t| t.dtype.lanes = 0), "x->dtype.lanes is 0, must be 1 to 65535");
    assert_eq!(refused(&[3], &|t| t.data = null_mut()), "x->data is NULL, but the tensor has 12 bytes");
    let huge = refused(&[i64::MAX, i64::MAX, i64::MAX], &|_| {});
    assert!(huge.ends_with("more than memory can hold"), "{huge}");
    assert!(
        refused(&[3], &|t| t.byte_offset = u64::MAX).starts_with("x->byte_offset is 18446744073709551615")
    );
    // SAFETY: refused before it is read.
    assert_eq!(unsafe { read("x", std::ptr::null()) }.unwrap_err().text, "x is NULL");
}
