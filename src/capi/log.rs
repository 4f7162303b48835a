//! The log callback and the progress callback of the process. Without them the library says nothing.
//!
//! ```c
//! // Warnings and errors go to stderr, for every thread of the process: dualpipe_set_log(to_stderr, NULL).
//! #include <dualpipe.h>
//! #include <stdio.h>
//!
//! static void to_stderr(void *user_data, uint32_t level, const char *text) {
//!   (void)user_data;
//!   if (level >= DUALPIPE_LOG_WARNING) fprintf(stderr, "dualpipe: %s\n", text);
//! }
//! ```

use std::cell::Cell;
use std::ffi::{c_char, c_void, CStr};

use super::args::UserData;
use super::guard::call;
use super::process;
use super::status::dualpipe_status::{self, *};
use super::status::{Failure, Outcome};

/// How much a line of the log matters.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_log_level {
    /// For those who look for a mistake: also every call that fails.
    DUALPIPE_LOG_DEBUG = 1,
    /// What the library decided.
    DUALPIPE_LOG_INFO = 2,
    /// It works, but not as well as it could.
    DUALPIPE_LOG_WARNING = 3,
    /// A defect of this library.
    DUALPIPE_LOG_ERROR = 4,
}

/// Is handed a line for the log: a dualpipe_log_level and a text, UTF-8, without a newline, valid during the call.
///
/// Called on any thread, also on several at once, and on threads of the library's own. It may call the library; what
/// fails inside it is not logged. It must return: no exception, no longjmp.
pub type dualpipe_log_fn =
    Option<unsafe extern "C-unwind" fn(user_data: *mut c_void, level: u32, text: *const c_char)>;

/// Is told how far a long call has come: `done` of `total`. It returns 0 to go on; anything else stops the call,
/// which then returns DUALPIPE_ERROR_CANCELLED.
///
/// Called on the thread that made the long call, now and then. It may call the library, but not with an object that
/// the long call is changing. It must return: no exception, no longjmp.
pub type dualpipe_progress_fn =
    Option<unsafe extern "C-unwind" fn(user_data: *mut c_void, done: u64, total: u64) -> i32>;

/// Sets the log callback of the process; NULL turns the log off, which is how it starts. `user_data` is handed to it
/// as it is. Any thread. Another thread may still be in the old callback when this returns.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_set_log(log: dualpipe_log_fn, user_data: *mut c_void) -> dualpipe_status {
    call("dualpipe_set_log", || {
        process::lock().callbacks.log = log.map(|function| (function, UserData(user_data)));
        Ok(())
    })
}

/// Sets the progress callback of the process; NULL turns it off, which is how it starts. `user_data` is handed to it
/// as it is. Any thread. Another thread may still be in the old callback when this returns.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_set_progress(
    progress: dualpipe_progress_fn,
    user_data: *mut c_void,
) -> dualpipe_status {
    call("dualpipe_set_progress", || {
        process::lock().callbacks.progress = progress.map(|function| (function, UserData(user_data)));
        Ok(())
    })
}

/// The callbacks, each with what it is handed back.
pub(crate) struct Callbacks {
    log: Option<(unsafe extern "C-unwind" fn(*mut c_void, u32, *const c_char), UserData)>,
    progress: Option<(unsafe extern "C-unwind" fn(*mut c_void, u64, u64) -> i32, UserData)>,
}

impl Callbacks {
    pub(crate) const fn none() -> Callbacks {
        Callbacks { log: None, progress: None }
    }
}

/// Logs the failure of a call: a defect of the library as an error, a step that failed as a warning.
pub(crate) fn emit_failure(status: dualpipe_status, text: &CStr) {
    let level = match status {
        DUALPIPE_ERROR_PANIC | DUALPIPE_ERROR_INTERNAL => dualpipe_log_level::DUALPIPE_LOG_ERROR,
        DUALPIPE_ERROR_TIMEOUT
        | DUALPIPE_ERROR_PEER_FAILED
        | DUALPIPE_ERROR_CALLBACK_FAILED
        | DUALPIPE_ERROR_TRANSPORT => dualpipe_log_level::DUALPIPE_LOG_WARNING,
        _ => dualpipe_log_level::DUALPIPE_LOG_DEBUG,
    };
    thread_local! {
        /// What fails inside the callback must not be logged by it, without end.
        static IS_LOGGING: Cell<bool> = const { Cell::new(false) };
    }
    let Some((log, user_data)) = process::lock().callbacks.log else { return };
    if IS_LOGGING.replace(true) {
        return;
    }
    let _done = OnDrop(|| IS_LOGGING.set(false));
    // SAFETY: the caller's function, with the caller's data and a text that outlives the call.
    unsafe { log(user_data.0, level as u32, text.as_ptr()) };
}

/// Reports that `done` of `total` is done; fails if the caller wants to stop.
pub(crate) fn progress(done: u64, total: u64) -> Outcome {
    let callback = process::lock().callbacks.progress;
    let Some((progress, user_data)) = callback else { return Ok(()) };
    // SAFETY: the caller's function, with the caller's data.
    match unsafe { progress(user_data.0, done, total) } {
        0 => Ok(()),
        code => {
            let text = format!("the progress callback returned {code} at {done} of {total}");
            Err(Failure::new(DUALPIPE_ERROR_CANCELLED, text))
        }
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C-unwind" fn stop_at_three(user_data: *mut c_void, done: u64, total: u64) -> i32 {
        assert_eq!((user_data.addr(), total), (5, 10));
        i32::from(done == 3) * 42
    }

    #[test]
    fn progress_goes_on_until_the_callback_returns_something_else_than_0() {
        assert!(progress(3, 10).is_ok());
        // SAFETY: the function reads no user data.
        unsafe { dualpipe_set_progress(Some(stop_at_three), std::ptr::without_provenance_mut(5)) };
        assert!(progress(2, 10).is_ok());
        let failure = progress(3, 10).unwrap_err();
        assert_eq!(failure.status, DUALPIPE_ERROR_CANCELLED);
        assert_eq!(failure.text, "the progress callback returned 42 at 3 of 10");
        // SAFETY: turns it off.
        unsafe { dualpipe_set_progress(None, std::ptr::null_mut()) };
        assert!(progress(3, 10).is_ok());
    }
}
