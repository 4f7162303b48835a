"""The log callback and the progress callback of the process, and the progress of one call."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

from ._library import LogFunction, ProgressFunction, lib, raised_in_progress, take_raised_in_progress

Progress = Callable[[int, int], object]
"""Is told ``(done, total)``; returns False to stop."""

_log: Callable[[int, str], object] | None = None
_progress: Progress | None = None
_of_call = threading.local()
"""``progress``: that of the call which this thread is in, instead of the process's."""
_lock = threading.Lock()
_num_calls = 0
"""Calls with a progress of their own."""


def _call_log(_: Any, level: int, text: bytes) -> None:
    log = _log
    if log is not None:
        log(level * 10, text.decode("utf-8", "replace"))


def _call_progress(_: Any, done: int, total: int) -> int:
    progress = getattr(_of_call, "progress", None) or _progress
    try:
        return 1 if progress is not None and progress(done, total) is False else 0
    except BaseException as error:  # noqa: BLE001, the call that it stops raises it
        raised_in_progress.error = error
        return 1


_on_log, _on_progress = LogFunction(_call_log), ProgressFunction(_call_progress)


def set_log(log: Callable[[int, str], object] | None) -> None:
    """Has ``log(level, text)`` called for each line of the library's log; None turns it off, which is how it starts.

    ``level`` is one of :mod:`logging`'s, so that ``set_log(logging.getLogger("dualpipe").log)`` will do. It is called
    on any thread, also on several at once. What it raises goes to :func:`sys.unraisablehook`.
    """
    global _log
    _log = log
    lib.dualpipe_set_log(_on_log if log is not None else LogFunction(), None)


def set_progress(progress: Progress | None) -> None:
    """Has ``progress(done, total)`` called now and then by long calls, on their thread; None turns it off.

    If it returns False the call raises :class:`~dualpipe.errors.Cancelled`, unless it says that it returns what it has
    then; if it raises, the call raises that.
    """
    global _progress
    with _lock:
        _progress = progress
        _register()


@contextmanager
def searching(progress: Progress | None) -> Iterator[None]:
    """A search in it tells ``progress``, if there is one, or else the process's, and raises what that raised.

    For calls that succeed with what they have when progress stops them.
    """
    global _num_calls
    if progress is not None:
        with _lock:
            _num_calls += 1
            _register()
    before, _of_call.progress = getattr(_of_call, "progress", None), progress
    try:
        yield
    finally:
        _of_call.progress = before
        if progress is not None:
            with _lock:
                _num_calls -= 1
                _register()
    raised = take_raised_in_progress()
    if raised is not None:
        raise raised


def _register() -> None:
    is_wanted = _progress is not None or _num_calls > 0
    lib.dualpipe_set_progress(_on_progress if is_wanted else ProgressFunction(), None)


@atexit.register
def _quiet() -> None:
    """Threads of the library must not call into an interpreter that is going away."""
    set_log(None)
    lib.dualpipe_set_progress(ProgressFunction(), None)
