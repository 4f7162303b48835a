//! What the stand-in driver tells besides, if it is the one that is loaded.

use std::ffi::{c_char, CString};

use libloading::os::unix::Library;

type Report = unsafe extern "C" fn(*mut c_char, usize) -> usize;
type NumCalls = unsafe extern "C" fn(*const c_char) -> u64;

/// The driver's library, which is loaded already, for as long as the process lives.
fn function<T: Copy>(name: &str) -> Option<T> {
    // SAFETY: the driver was loaded before; this only counts it once more.
    let library = unsafe { Library::new("libcuda.so.1") }.ok()?;
    // SAFETY: the types above are those of tests/cuda_standin/standin.h, whose names no driver has.
    let found = unsafe { library.get::<T>(name.as_bytes()) }.ok().map(|symbol| *symbol);
    std::mem::forget(library);
    found
}

/// Races and misuse that it found; `None` on a real driver.
pub(crate) fn report() -> Option<String> {
    let report: Report = function("standin_report")?;
    let mut bytes = vec![0_u8; 1 << 16];
    // SAFETY: as many bytes as it is told.
    let length = unsafe { report(bytes.as_mut_ptr().cast(), bytes.len()) }.min(bytes.len() - 1);
    Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

/// Calls of a driver function since the start, or of all; `None` on a real driver.
pub(crate) fn num_calls(name: Option<&str>) -> Option<u64> {
    let count: NumCalls = function("standin_num_calls")?;
    let name = name.map(|name| CString::new(name).unwrap_or_default());
    // SAFETY: a C string or NULL.
    Some(unsafe { count(name.as_ref().map_or(std::ptr::null(), |name| name.as_ptr())) })
}
