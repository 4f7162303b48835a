//! The boundary that every entry point's body runs in.

use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use super::log;
use super::status::dualpipe_status::{self, *};
use super::status::{c_text, set_last_error, Failure, Outcome};

/// Runs the body of the entry point `function`: its failure becomes a status and the thread's last error, which
/// begins with the function's name, and so does a panic.
///
/// ```text
/// pub unsafe extern "C" fn dualpipe_thing_free(thing: dualpipe_thing_t) -> dualpipe_status {
///     call("dualpipe_thing_free", || handle::free::<Thing>("thing", thing))
/// }
/// ```
pub(crate) fn call(function: &str, body: impl FnOnce() -> Outcome) -> dualpipe_status {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return DUALPIPE_OK,
        Ok(Err(failure)) => failure,
        Err(payload) => panicked(payload),
    };
    // The log callback is the caller's and may panic too, if it is in Rust.
    let report = || {
        let text = c_text(&format!("{function}: {}", failure.text));
        set_last_error(&text);
        log::emit_failure(failure.status, &text);
        failure.status
    };
    catch_unwind(AssertUnwindSafe(report)).unwrap_or(DUALPIPE_ERROR_PANIC)
}

fn panicked(payload: Box<dyn Any + Send>) -> Failure {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let failure = Failure::new(DUALPIPE_ERROR_PANIC, format!("panic: {}", text.unwrap_or("no text")));
    // Dropping a payload may panic again, outside of any guard.
    std::mem::forget(payload);
    failure
}

/// Makes an object one thread's at a time: for objects that a call changes or that call back.
#[derive(Debug, Default)]
pub(crate) struct BusyFlag(Arc<AtomicBool>);

/// While it lives, its object is busy. It may go to another thread.
#[derive(Debug)]
pub(crate) struct Busy(Arc<AtomicBool>);

impl BusyFlag {
    /// Takes the object, named `argument`, or fails with BUSY: another thread has it, or a callback's own caller.
    pub(crate) fn enter(&self, argument: &str) -> Outcome<Busy> {
        if self.0.swap(true, Ordering::Acquire) {
            let text = format!("{argument} is in use by another thread or by the caller of this callback");
            return Err(Failure::new(DUALPIPE_ERROR_BUSY, text));
        }
        Ok(Busy(Arc::clone(&self.0)))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::dualpipe_last_error;
    use super::*;
    use std::ffi::CStr;

    fn last_error() -> String {
        // SAFETY: the text is this thread's, and copied before its next call.
        unsafe { CStr::from_ptr(dualpipe_last_error()) }.to_str().unwrap().to_string()
    }

    #[test]
    fn a_panic_becomes_a_status_and_a_text() {
        assert_eq!(call("f", || panic!("boom {}", 1)), DUALPIPE_ERROR_PANIC);
        assert_eq!(last_error(), "f: panic: boom 1");
        assert_eq!(call("f", || panic!("boom")), DUALPIPE_ERROR_PANIC);
        assert_eq!(last_error(), "f: panic: boom");
        assert_eq!(call("f", || std::panic::panic_any(7)), DUALPIPE_ERROR_PANIC);
        assert_eq!(last_error(), "f: panic: no text");
    }

    #[test]
    fn a_call_that_works_leaves_the_last_error_as_it_is() {
        assert_eq!(call("f", || Err(Failure::argument("x", "is 3"))), DUALPIPE_ERROR_INVALID_ARGUMENT);
        assert_eq!(call("g", || Ok(())), DUALPIPE_OK);
        assert_eq!(last_error(), "f: x is 3");
    }

    #[test]
    fn a_busy_object_is_free_again_after_a_failure_and_after_a_panic() {
        let flag = BusyFlag::default();
        let status = call("f", || {
            let _busy = flag.enter("thing")?;
            assert_eq!(flag.enter("thing").unwrap_err().status, DUALPIPE_ERROR_BUSY);
            panic!("while busy")
        });
        assert_eq!(status, DUALPIPE_ERROR_PANIC);
        assert!(flag.enter("thing").is_ok());
    }
}
