//! What can go wrong, in one type: a kind to branch on, a text for people.

use std::fmt;

/// What kind of failure an [`Error`] reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// An argument is outside its range; nothing was changed.
    InvalidArgument,
    /// A schedule or program cannot run: an op is missing, doubled, misplaced or waits for ever.
    InvalidSchedule,
    /// A wait outlived its deadline.
    Timeout,
    /// Another rank failed and stopped the step.
    PeerFailed,
    /// The caller's task callback reported a failure.
    CallbackFailed,
    /// The transport failed.
    Transport,
    /// An earlier failure left the object unusable.
    Poisoned,
    /// The object is in use: by another thread, or by the caller of this very callback.
    Busy,
    /// The driver or the device failed.
    Device,
    /// A driver, a library or a device that was asked for is not there.
    Unavailable,
    /// A progress callback asked to stop.
    Cancelled,
    /// A defect of this library.
    Internal,
}

/// A request that the library cannot honour, in the caller's own numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

impl Error {
    /// An error with its whole text.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into() }
    }

    /// `value` of `argument`, as given to `what`, is out of range: `"dualpipe: num_ranks is 3, must be even"`.
    pub fn argument(
        what: &str,
        argument: impl fmt::Display,
        value: impl fmt::Display,
        range: impl fmt::Display,
    ) -> Error {
        Error::new(ErrorKind::InvalidArgument, format!("{what}: {argument} is {value}, {range}"))
    }

    /// The same error, said by `what` instead of the part of it that found it.
    pub(crate) fn within(self, what: &str) -> Error {
        match self.message.split_once(": ") {
            Some((_, rest)) => Error { message: format!("{what}: {rest}"), ..self },
            None => self,
        }
    }

    /// What to branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// `value` if it lies in `range`, an argument error otherwise.
pub(crate) fn in_range<T: PartialOrd + fmt::Display + Copy>(
    what: &str,
    argument: &str,
    value: T,
    range: std::ops::RangeInclusive<T>,
) -> Result<T> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(Error::argument(what, argument, value, format!("must be {} to {}", range.start(), range.end())))
}
