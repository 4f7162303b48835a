//! Structs that may grow: their first field is their size, as the caller was compiled.
//!
//! | the caller's size          | read                                  | written                        |
//! | -------------------------- | ------------------------------------- | ------------------------------ |
//! | 0, or below version 1's    | error                                 | error                          |
//! | smaller than this library's| fields that it lacks are 0            | only the fields that it has    |
//! | larger                     | fine if what is not known here is 0   | what is not known here gets 0  |
//! | above 4096, odd            | error                                 | error                          |

use std::mem::MaybeUninit;

use super::args::check_pointer;
use super::status::{Failure, Outcome};

/// Largest size that a struct may claim.
const SIZE_MAX: usize = 4096;

/// A struct that may grow.
///
/// # Safety
/// `repr(C)`; the first field is `size: u32`; no padding; any bits are a value of it, also all zero.
pub(crate) unsafe trait Growing: Copy {
    /// Its size in the first version that had it.
    const SIZE_V1: usize;
}

/// The struct that the caller lends as `argument`, with 0 for what it lacks.
///
/// # Safety
/// The pointer, if its bits pass, may be read: as many bytes as its `size` says.
pub(crate) unsafe fn read<T: Growing>(argument: &str, pointer: *const T) -> Outcome<T> {
    // SAFETY: as promised by the caller.
    let given = unsafe { size_of_given(argument, pointer) }?;
    let known = given.min(size_of::<T>());
    let bytes = pointer.cast::<u8>();
    // SAFETY: `known..given` is within what the caller promised.
    let tail = unsafe { std::slice::from_raw_parts(bytes.add(known), given - known) };
    if let Some(i) = tail.iter().position(|&byte| byte != 0) {
        let how = format!(
            "has a non-zero byte at {} of {given}: a newer header's field, unknown to this library, must be 0",
            known + i
        );
        return Err(Failure::argument(argument, how));
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes are in both; all bits are a value of a `Growing`.
    unsafe {
        value.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(bytes, known);
        Ok(value.assume_init())
    }
}

/// A struct that the caller wants filled. Nothing is written before [`OutStruct::write`].
pub(crate) struct OutStruct<T> {
    pointer: *mut T,
    size: usize,
}

impl<T: Growing> OutStruct<T> {
    /// # Safety
    /// The pointer, if its bits pass, may be read and written until the call ends: as many bytes as its `size` says.
    pub(crate) unsafe fn new(argument: &str, pointer: *mut T) -> Outcome<OutStruct<T>> {
        // SAFETY: as promised by the caller.
        let size = unsafe { size_of_given(argument, pointer) }?;
        Ok(OutStruct { pointer, size })
    }

    /// Writes all but `size`, which stays the caller's.
    pub(crate) fn write(self, value: T) {
        let known = self.size.min(size_of::<T>());
        let (from, to) = (std::ptr::from_ref(&value).cast::<u8>(), self.pointer.cast::<u8>());
        // SAFETY: both have `known` bytes, and `to` has `size`, as promised to `new`; the first four are `size`.
        unsafe {
            to.add(4).copy_from_nonoverlapping(from.add(4), known - 4);
            to.add(known).write_bytes(0, self.size - known);
        }
    }
}

/// # Safety
/// The pointer, if its bits pass, may be read.
unsafe fn size_of_given<T: Growing>(argument: &str, pointer: *const T) -> Outcome<usize> {
    check_pointer(argument, pointer)?;
    // SAFETY: not NULL and aligned; the first field of a `Growing` is its size.
    let size = unsafe { pointer.cast::<u32>().read() } as usize;
    if !(T::SIZE_V1..=SIZE_MAX).contains(&size) || size % align_of::<T>() != 0 {
        let how = format!(
            "is {size}, must be the size of the struct: {} to {SIZE_MAX}, a multiple of {}",
            T::SIZE_V1,
            align_of::<T>()
        );
        return Err(Failure::argument(format!("{argument}->size"), how));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(C)]
    struct Version2 {
        size: u32,
        first: u32,
        second: u32,
    }
    // SAFETY: repr(C), three u32.
    unsafe impl Growing for Version2 {
        const SIZE_V1: usize = 8;
    }

    #[test]
    fn a_struct_is_read_from_older_and_newer_callers() {
        for (words, want) in [
            ([0, 1, 2, 0], Err("s->size is 0")),
            ([4, 1, 2, 0], Err("s->size is 4")),
            ([7, 1, 2, 0], Err("s->size is 7")),
            ([8, 1, 2, 9], Ok((1, 0))),
            ([9, 1, 2, 9], Err("s->size is 9, must be the size of the struct: 8 to 4096, a multiple of 4")),
            ([12, 1, 2, 9], Ok((1, 2))),
            ([16, 1, 2, 0], Ok((1, 2))),
            ([16, 1, 2, 0x100], Err("s has a non-zero byte at 13 of 16")),
            ([4100, 1, 2, 0], Err("s->size is 4100")),
        ] {
            // SAFETY: as many words as the accepted sizes say.
            let read = unsafe { read::<Version2>("s", words.as_ptr().cast()) };
            match (read, want) {
                (Ok(got), Ok(want)) => assert_eq!((got.first, got.second), want, "{words:?}"),
                (Err(got), Err(want)) => assert!(got.text.starts_with(want), "{words:?}: {}", got.text),
                (got, _) => panic!("{words:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn a_struct_is_written_for_older_and_newer_callers() {
        for (size, want) in [(8, [8, 5, 9, 9]), (12, [12, 5, 6, 9]), (16, [16, 5, 6, 0])] {
            let mut words = [size, 9, 9, 9];
            // SAFETY: as many words as the size says.
            let out = unsafe { OutStruct::<Version2>::new("s", words.as_mut_ptr().cast()) };
            out.map(|out| out.write(Version2 { size: 12, first: 5, second: 6 })).unwrap();
            assert_eq!(words, want);
        }
    }
}
