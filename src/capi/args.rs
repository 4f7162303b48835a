//! Pointers and numbers as C hands them in, checked: NULL, alignment, overflow, range.

use std::ffi::{c_char, c_void};
use std::fmt::Display;
use std::ops::RangeInclusive;

use super::status::dualpipe_status::*;
use super::status::{Failure, Outcome};

/// Fails unless `pointer` may be read or written as a `T`, as far as its bits tell.
pub(crate) fn check_pointer<T>(name: impl Display, pointer: *const T) -> Outcome {
    if pointer.is_null() {
        return Err(Failure::argument(name, "is NULL"));
    }
    if !pointer.is_aligned() {
        let how = format!("is {pointer:p}, must be a multiple of {}", align_of::<T>());
        return Err(Failure::argument(name, how));
    }
    Ok(())
}

/// `count` values that the caller lends for this call. NULL is fine if there are none.
///
/// # Safety
/// `'a` ends with the call; any bits are a `T`; the pointer, if its bits pass, is one to `count` values.
pub(crate) unsafe fn slice<'a, T>(
    name: impl Display,
    pointer: *const T,
    count_name: impl Display,
    count: usize,
) -> Outcome<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    check_pointer(name, pointer)?;
    check_count::<T>(count_name, count)?;
    // SAFETY: not NULL, aligned, of a size that a slice may have; the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// A text that the caller lends: UTF-8 up to its NUL, of which at most `length_max` bytes count; what is not UTF-8
/// becomes U+FFFD.
///
/// # Safety
/// The pointer, if its bits pass, may be read as far as the text or `length_max` bytes go.
pub(crate) unsafe fn text(name: &str, pointer: *const c_char, length_max: usize) -> Outcome<String> {
    check_pointer(name, pointer)?;
    // SAFETY: not NULL; the rest is the caller's promise.
    let length = unsafe { libc::strnlen(pointer, length_max) };
    // SAFETY: so many bytes were looked at.
    let bytes = unsafe { slice(name, pointer.cast::<u8>(), "its length", length) }?;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// A text that the caller lends: UTF-8 of `num_bytes` bytes.
///
/// # Safety
/// As of [`slice()`].
pub(crate) unsafe fn utf8<'a>(name: &str, text: *const c_char, num_bytes: usize) -> Outcome<&'a str> {
    check_pointer(name, text)?;
    // SAFETY: as promised by the caller.
    let bytes = unsafe { slice(name, text.cast::<u8>(), "num_bytes", num_bytes) }?;
    let malformed = |error: std::str::Utf8Error| {
        Failure::argument(name, format!("is not UTF-8 from byte {} on", error.valid_up_to()))
    };
    std::str::from_utf8(bytes).map_err(malformed)
}

/// Fails if `count` values of `T` could not be in memory.
fn check_count<T>(name: impl Display, count: usize) -> Outcome {
    in_range(name, count, 0..=isize::MAX as usize / size_of::<T>().max(1))?;
    Ok(())
}

/// `value` if it is in `range`.
pub(crate) fn in_range<T: PartialOrd + Display>(
    name: impl Display,
    value: T,
    range: RangeInclusive<T>,
) -> Outcome<T> {
    if range.contains(&value) {
        return Ok(value);
    }
    let (least, most) = range.into_inner();
    Err(Failure::argument(name, format!("is {value}, must be {least} to {most}")))
}

/// `value` as an index into `count` things, of which there is at least one.
pub(crate) fn index(name: &str, value: u32, count: usize) -> Outcome<usize> {
    in_range(name, value as usize, 0..=count - 1)
}

/// Fails unless a field that has no meaning yet is 0.
pub(crate) fn zero(name: &str, value: u32) -> Outcome {
    match value {
        0 => Ok(()),
        value => Err(Failure::argument(name, format!("is {value}, must be 0"))),
    }
}

/// 0 or 1 as a truth.
pub(crate) fn flag(name: &str, value: u32) -> Outcome<bool> {
    in_range(name, value, 0..=1).map(|value| value == 1)
}

/// What `value` stands for in `known`; each is called by its own C name.
pub(crate) fn one_of<T: Copy + std::fmt::Debug, const N: usize>(
    name: &str,
    value: u32,
    known: [(u32, T); N],
) -> Outcome<T> {
    if let Some((_, found)) = known.iter().find(|(number, _)| *number == value) {
        return Ok(*found);
    }
    let known = known.map(|(number, what)| format!("{what:?} ({number})")).join(", ");
    Err(Failure::argument(name, format!("is {value}, must be one of {known}")))
}

/// Where one value goes. Make it first, so that a bad pointer is found before the work; nothing is written before
/// [`Out::write`].
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// # Safety
    /// The pointer, if its bits pass, may be written until the call ends.
    pub(crate) unsafe fn new(name: &str, pointer: *mut T) -> Outcome<Out<T>> {
        check_pointer(name, pointer)?;
        Ok(Out(pointer))
    }

    pub(crate) fn write(self, value: T) {
        // SAFETY: not NULL, aligned, and the caller of `new` promised that it may be written.
        unsafe { self.0.write(value) }
    }
}

/// Where a number of values goes that only the call knows: `(T *values, size_t capacity, size_t *count)`.
///
/// NULL with capacity 0 asks for the count alone. Too small: BUFFER_TOO_SMALL, `*count` is written and nothing else.
pub(crate) struct Buffer<T> {
    name: &'static str,
    values: *mut T,
    capacity: usize,
    count: Out<usize>,
}

impl<T> Buffer<T> {
    /// `name` of the values; the others are always called `capacity`, and `count` or, for a text, `length`.
    ///
    /// # Safety
    /// The pointers, if their bits pass, may be written until the call ends: `values` with `capacity` values.
    pub(crate) unsafe fn new(
        name: &'static str,
        values: *mut T,
        capacity: usize,
        count_name: &str,
        count: *mut usize,
    ) -> Outcome<Buffer<T>> {
        // SAFETY: as promised by the caller.
        let count = unsafe { Out::new(count_name, count) }?;
        if values.is_null() && capacity > 0 {
            return Err(Failure::argument(name, format!("is NULL, but capacity is {capacity}")));
        }
        if !values.is_null() {
            check_pointer(name, values)?;
        }
        check_count::<T>("capacity", capacity)?;
        Ok(Buffer { name, values, capacity, count })
    }

    /// Writes the first `count` of `values`, which must be so many, and their count.
    pub(crate) fn fill(self, count: usize, values: impl IntoIterator<Item = T>) -> Outcome {
        if self.values.is_null() {
            self.count.write(count);
            return Ok(());
        }
        self.needs(count, count)?;
        for (i, value) in values.into_iter().take(count).enumerate() {
            // SAFETY: i < count <= capacity values, which may be written as promised to `new`.
            unsafe { self.values.add(i).write(value) }
        }
        self.count.write(count);
        Ok(())
    }

    /// Lets `write` write all `count` values where they are to go; it changes none if it fails. It is not called if
    /// only the count is asked for.
    pub(crate) fn fill_in_place(self, count: usize, write: impl FnOnce(&mut [T]) -> Outcome) -> Outcome {
        if !self.values.is_null() {
            self.needs(count, count)?;
            // SAFETY: count <= capacity values, which may be written as promised to `new`, and which nobody else uses;
            // they are numbers, of which any bits are one.
            write(unsafe { std::slice::from_raw_parts_mut(self.values, count) })?;
        }
        self.count.write(count);
        Ok(())
    }

    fn needs(&self, capacity: usize, count: usize) -> Outcome {
        if self.capacity >= capacity {
            return Ok(());
        }
        Out(self.count.0).write(count);
        let text =
            format!("capacity is {}, must be at least {capacity} to hold all {}", self.capacity, self.name);
        Err(Failure::new(DUALPIPE_ERROR_BUFFER_TOO_SMALL, text))
    }
}

impl Buffer<c_char> {
    /// Writes a text and a NUL behind it; the count is its length in bytes without the NUL.
    pub(crate) fn fill_text(self, text: &str) -> Outcome {
        if !self.values.is_null() {
            self.needs(text.len() + 1, text.len())?;
            // SAFETY: needs() has found room for the text and its NUL; it may be written as promised to `new`.
            unsafe {
                self.values.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len());
                self.values.add(text.len()).write(0);
            }
        }
        self.count.write(text.len());
        Ok(())
    }
}

/// What a callback is handed back: never read here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UserData(pub(crate) *mut c_void);

// SAFETY: it is only carried; each callback's documentation says on which threads the caller gets it back.
unsafe impl Send for UserData {}
// SAFETY: as above.
unsafe impl Sync for UserData {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::null_mut;

    fn buffer(values: *mut u32, capacity: usize, count: &mut usize) -> Outcome<Buffer<u32>> {
        // SAFETY: the tests pass locals, or pointers that must be refused.
        unsafe { Buffer::new("values", values, capacity, "count", count) }
    }

    #[test]
    fn a_buffer_is_filled_counted_or_left_alone() {
        let (mut values, mut count) = ([9; 4], 77);
        buffer(null_mut(), 0, &mut count).unwrap().fill(3, [1, 2, 3]).unwrap();
        assert_eq!((values, count), ([9; 4], 3));
        for (capacity, want) in [(0, false), (2, false), (3, true), (4, true)] {
            (values, count) = ([9; 4], 77);
            let filled = buffer(values.as_mut_ptr(), capacity, &mut count).unwrap().fill(3, [1, 2, 3]);
            assert_eq!(filled.is_ok(), want, "{capacity}");
            assert_eq!((values, count), (if want { [1, 2, 3, 9] } else { [9; 4] }, 3), "{capacity}");
        }
        assert!(buffer(values.as_mut_ptr(), isize::MAX as usize / 4, &mut count).is_ok());
        assert!(buffer(values.as_mut_ptr(), isize::MAX as usize / 4 + 1, &mut count).is_err());
        assert!(buffer(null_mut(), 1, &mut count).is_err());
    }

    #[test]
    fn a_buffer_is_filled_in_place_or_left_alone() {
        for (capacity, is_good, want) in
            [(2, true, [9, 9, 9]), (3, false, [9, 9, 9]), (3, true, [0, 1, 2]), (0, true, [9, 9, 9])]
        {
            let (mut values, mut count) = ([9; 3], 77);
            let pointer = if capacity == 0 { null_mut() } else { values.as_mut_ptr() };
            let filled = buffer(pointer, capacity, &mut count).unwrap().fill_in_place(3, |values| {
                if !is_good {
                    return Err(Failure::argument("x", "is 3"));
                }
                values.iter_mut().zip(0..).for_each(|(value, i)| *value = i);
                Ok(())
            });
            assert_eq!(filled.is_ok(), capacity != 2 && is_good, "{capacity}");
            assert_eq!((values, count), (want, if is_good { 3 } else { 77 }), "{capacity}");
        }
    }

    #[test]
    fn a_text_needs_room_for_its_nul() {
        for (capacity, want) in [(3, false), (4, true)] {
            let (mut text, mut length) = ([7 as c_char; 5], 77);
            // SAFETY: locals.
            let buffer = unsafe { Buffer::new("text", text.as_mut_ptr(), capacity, "length", &mut length) };
            assert_eq!(buffer.unwrap().fill_text("abc").is_ok(), want);
            assert_eq!((text[3], text[4], length), (if want { 0 } else { 7 }, 7, 3));
        }
    }
}
