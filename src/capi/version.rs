//! The version of the library that is loaded, to be compared with the header's.
//!
//! A program that was compiled with this header runs with every library of the same SONAME that is not older. One that
//! loads the library by itself should first ask whether MAJOR, and before 1.0 also MINOR, are the header's.

use std::ffi::{c_char, CStr};

/// The version of the loaded library: MAJOR * 10000 + MINOR * 100 + PATCH. Compare it with DUALPIPE_VERSION, the
/// header's: a minor version below 1.0 and a major version from 1.0 on may break the ABI, a patch never does.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_version() -> u32 {
    const VERSION: u32 = number(env!("CARGO_PKG_VERSION_MAJOR")) * 10_000
        + number(env!("CARGO_PKG_VERSION_MINOR")) * 100
        + number(env!("CARGO_PKG_VERSION_PATCH"));
    VERSION
}

/// The version of the loaded library as text, such as "0.1.0". Static; never NULL.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_version_string() -> *const c_char {
    const TEXT: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(text) => text,
        Err(_) => c"",
    };
    TEXT.as_ptr()
}

const fn number(digits: &str) -> u32 {
    let (digits, mut i, mut number) = (digits.as_bytes(), 0, 0);
    while i < digits.len() {
        number = number * 10 + (digits[i] - b'0') as u32;
        i += 1;
    }
    number
}
