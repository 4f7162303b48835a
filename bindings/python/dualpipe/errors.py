"""What goes wrong, as exceptions: one class per status of the library, each with the library's own words."""

from __future__ import annotations


class Error(RuntimeError):
    """A call of the library failed; its text names the function, the argument, its value and its range.

    ``status`` is the number of the ``dualpipe_status`` (see ``dualpipe/status.h``).
    """

    status: int = 14

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        if status is not None:
            self.status = status


class InvalidArgument(Error, ValueError):
    """An argument is outside its range; nothing was changed."""

    status = 1


class InvalidHandle(Error):
    """An object was closed before it was used."""

    status = 2


class InvalidSchedule(Error, ValueError):
    """A schedule or program cannot run: an op is missing, doubled, misplaced or waits for ever."""

    status = 3


class BufferTooSmall(Error):
    """An output buffer is too small. This package sizes them itself, so it is a defect of it."""

    status = 4


class Timeout(Error, TimeoutError):
    """A wait outlived its deadline."""

    status = 5


class PeerFailed(Error):
    """Another rank failed and stopped the step."""

    status = 6


class CallbackFailed(Error):
    """A callback reported a failure. A Python exception in a callback is raised itself, instead of this."""

    status = 7


class TransportFailed(Error):
    """The transport between ranks failed."""

    status = 8


class Poisoned(Error):
    """An earlier failure left the object unusable; it can only be closed."""

    status = 9


class Busy(Error):
    """The object is in use: by another thread, or by the caller of this very callback."""

    status = 10


class Forked(Error):
    """The object owns threads and was created before a fork: they are not in this process."""

    status = 11


class Cancelled(Error):
    """The progress callback asked to stop."""

    status = 12


class Panic(Error):
    """A defect of the library: it panicked. The object that it was working on may be unusable."""

    status = 13


class Internal(Error):
    """A defect of the library, or a limit of it."""

    status = 14


class DeviceFailed(Error):
    """The driver or the device failed."""

    status = 15


class Unavailable(Error):
    """A driver, a library or a device that was asked for is not there; the text says what is missing."""

    status = 16


CLASSES: dict[int, type[Error]] = {
    kind.status: kind
    for kind in (
        InvalidArgument,
        InvalidHandle,
        InvalidSchedule,
        BufferTooSmall,
        Timeout,
        PeerFailed,
        CallbackFailed,
        TransportFailed,
        Poisoned,
        Busy,
        Forked,
        Cancelled,
        Panic,
        Internal,
        DeviceFailed,
        Unavailable,
    )
}
"""The class of each status that a call can fail with."""


def of_status(status: int, text: str) -> Error:
    """The exception for a status that is not 0; a number that is not known becomes a plain :class:`Error`."""
    return CLASSES.get(status, Error)(text, status)
