//! Status codes, and the text of the last failure of each thread.
//!
//! What can be done about a status:
//!
//! ```text
//! INVALID_ARGUMENT, INVALID_HANDLE, BUFFER_TOO_SMALL, BUSY, FORKED
//!     The call is at fault, and nothing was changed: correct it.
//! INVALID_SCHEDULE
//!     The schedule cannot run; the text says which op of which rank is why.
//! TIMEOUT, CALLBACK_FAILED, PEER_FAILED, TRANSPORT, DEVICE
//!     A step has failed, on all ranks: read the text, free all executors and their inproc, create new ones.
//!     TIMEOUT of dualpipe_executor_wait and dualpipe_executor_synchronize only says "still running": wait again.
//! POISONED
//!     The object, or one that it depends on, has failed before: free it.
//! CANCELLED
//!     Your progress callback asked for it.
//! UNAVAILABLE
//!     Install what the text names, or do without CUDA or NCCL.
//! PANIC, INTERNAL
//!     A defect or a limit of the library: please report the text.
//! ```

use std::cell::RefCell;
use std::ffi::{c_char, CStr, CString};

use crate::error::{Error, ErrorKind};

use dualpipe_status::*;

/// What every function returns that can fail. The numbers are part of the ABI: never changed, never used again.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_status {
    /// It worked.
    DUALPIPE_OK = 0,
    /// An argument is NULL, misaligned or out of its range; nothing was changed.
    DUALPIPE_ERROR_INVALID_ARGUMENT = 1,
    /// A handle is NULL, freed, of another type, or none of this library's.
    DUALPIPE_ERROR_INVALID_HANDLE = 2,
    /// A schedule or program cannot run: an op is missing, doubled, misplaced or waits for ever.
    DUALPIPE_ERROR_INVALID_SCHEDULE = 3,
    /// An output buffer is too small. The count it would have to have was written.
    DUALPIPE_ERROR_BUFFER_TOO_SMALL = 4,
    /// A wait outlived its deadline.
    DUALPIPE_ERROR_TIMEOUT = 5,
    /// Another rank failed and stopped the step.
    DUALPIPE_ERROR_PEER_FAILED = 6,
    /// A callback of the caller's reported a failure.
    DUALPIPE_ERROR_CALLBACK_FAILED = 7,
    /// The transport failed.
    DUALPIPE_ERROR_TRANSPORT = 8,
    /// An earlier failure left the object unusable; it can only be freed.
    DUALPIPE_ERROR_POISONED = 9,
    /// The object is in use: by another thread, or by the caller of this very callback.
    DUALPIPE_ERROR_BUSY = 10,
    /// The object owns threads and was created before a fork: they are not in this process. It can only be freed.
    DUALPIPE_ERROR_FORKED = 11,
    /// A progress callback asked to stop.
    DUALPIPE_ERROR_CANCELLED = 12,
    /// A defect of this library: it panicked. The object that it was working on may be unusable.
    DUALPIPE_ERROR_PANIC = 13,
    /// A defect of this library, or a limit of it.
    DUALPIPE_ERROR_INTERNAL = 14,
    /// The driver or the device failed.
    DUALPIPE_ERROR_DEVICE = 15,
    /// A driver, a library or a device that was asked for is not there; the text says what is missing.
    DUALPIPE_ERROR_UNAVAILABLE = 16,
}

/// Every status, in order of its number.
const NAMES: [(dualpipe_status, &CStr); 17] = [
    (DUALPIPE_OK, c"DUALPIPE_OK"),
    (DUALPIPE_ERROR_INVALID_ARGUMENT, c"DUALPIPE_ERROR_INVALID_ARGUMENT"),
    (DUALPIPE_ERROR_INVALID_HANDLE, c"DUALPIPE_ERROR_INVALID_HANDLE"),
    (DUALPIPE_ERROR_INVALID_SCHEDULE, c"DUALPIPE_ERROR_INVALID_SCHEDULE"),
    (DUALPIPE_ERROR_BUFFER_TOO_SMALL, c"DUALPIPE_ERROR_BUFFER_TOO_SMALL"),
    (DUALPIPE_ERROR_TIMEOUT, c"DUALPIPE_ERROR_TIMEOUT"),
    (DUALPIPE_ERROR_PEER_FAILED, c"DUALPIPE_ERROR_PEER_FAILED"),
    (DUALPIPE_ERROR_CALLBACK_FAILED, c"DUALPIPE_ERROR_CALLBACK_FAILED"),
    (DUALPIPE_ERROR_TRANSPORT, c"DUALPIPE_ERROR_TRANSPORT"),
    (DUALPIPE_ERROR_POISONED, c"DUALPIPE_ERROR_POISONED"),
    (DUALPIPE_ERROR_BUSY, c"DUALPIPE_ERROR_BUSY"),
    (DUALPIPE_ERROR_FORKED, c"DUALPIPE_ERROR_FORKED"),
    (DUALPIPE_ERROR_CANCELLED, c"DUALPIPE_ERROR_CANCELLED"),
    (DUALPIPE_ERROR_PANIC, c"DUALPIPE_ERROR_PANIC"),
    (DUALPIPE_ERROR_INTERNAL, c"DUALPIPE_ERROR_INTERNAL"),
    (DUALPIPE_ERROR_DEVICE, c"DUALPIPE_ERROR_DEVICE"),
    (DUALPIPE_ERROR_UNAVAILABLE, c"DUALPIPE_ERROR_UNAVAILABLE"),
];

/// The name of a status, such as "DUALPIPE_ERROR_BUSY"; "unknown status" for a number that is none. Static; never
/// NULL. Any thread.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_status_name(status: u32) -> *const c_char {
    let found = NAMES.iter().find(|(known, _)| *known as u32 == status);
    found.map_or(c"unknown status", |(_, name)| name).as_ptr()
}

/// Why this thread's last failing call failed: the function, the argument, its value and its range. "" if none has
/// failed yet; a call that works leaves it as it is. UTF-8; never NULL; valid until the thread's next failing call,
/// so copy it to keep it. Each thread has its own.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_last_error() -> *const c_char {
    let text = LAST_ERROR.try_with(|text| text.borrow().as_ref().map(|text| text.as_ptr()));
    text.ok().flatten().unwrap_or(c"".as_ptr())
}

thread_local! {
    static LAST_ERROR: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// Why a call fails: what it returns, and its text without the function's name.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: dualpipe_status,
    pub(crate) text: String,
}

/// What the body of an entry point ends with.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(status: dualpipe_status, text: impl Into<String>) -> Failure {
        Failure { status, text: text.into() }
    }

    /// An argument that is wrong in `how`: `Failure::argument("out", "is NULL")`.
    pub(crate) fn argument(argument: impl std::fmt::Display, how: impl std::fmt::Display) -> Failure {
        Failure::new(DUALPIPE_ERROR_INVALID_ARGUMENT, format!("{argument} {how}"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::new(error.kind().into(), error.to_string())
    }
}

impl From<ErrorKind> for dualpipe_status {
    fn from(kind: ErrorKind) -> dualpipe_status {
        match kind {
            ErrorKind::InvalidArgument => DUALPIPE_ERROR_INVALID_ARGUMENT,
            ErrorKind::InvalidSchedule => DUALPIPE_ERROR_INVALID_SCHEDULE,
            ErrorKind::Timeout => DUALPIPE_ERROR_TIMEOUT,
            ErrorKind::PeerFailed => DUALPIPE_ERROR_PEER_FAILED,
            ErrorKind::CallbackFailed => DUALPIPE_ERROR_CALLBACK_FAILED,
            ErrorKind::Transport => DUALPIPE_ERROR_TRANSPORT,
            ErrorKind::Poisoned => DUALPIPE_ERROR_POISONED,
            ErrorKind::Busy => DUALPIPE_ERROR_BUSY,
            ErrorKind::Cancelled => DUALPIPE_ERROR_CANCELLED,
            ErrorKind::Internal => DUALPIPE_ERROR_INTERNAL,
            ErrorKind::Device => DUALPIPE_ERROR_DEVICE,
            ErrorKind::Unavailable => DUALPIPE_ERROR_UNAVAILABLE,
        }
    }
}

/// `text` as C reads it: what follows a NUL would be lost, so each becomes a `?`.
pub(crate) fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "?")).unwrap_or_default()
}

pub(crate) fn set_last_error(text: &CStr) {
    // A thread that is being torn down has no last error any more.
    let _ = LAST_ERROR.try_with(|last| *last.borrow_mut() = Some(text.to_owned()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_the_name_and_the_number_it_has_had_from_the_start() {
        for (i, (status, name)) in NAMES.into_iter().enumerate() {
            assert_eq!(status as usize, i);
            assert_eq!(format!("{status:?}"), name.to_str().unwrap());
        }
    }

    #[test]
    fn a_nul_in_a_text_does_not_end_it() {
        assert_eq!(c_text("a\0b").to_str(), Ok("a?b"));
    }
}
