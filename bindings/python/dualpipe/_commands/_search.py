"""What the commands that search share: their options, and what Ctrl-C does."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import InvalidArgument
from ..plan import PLACEMENTS
from ._common import whole


def add_search(parser: argparse.ArgumentParser, each: str) -> None:
    """How long to search, for each of several plans."""
    search = parser.add_argument_group("the search")
    search.add_argument(
        "--time", type=float, metavar="S", help=f"seconds for each {each} (0.5, unless --iterations is given)"
    )
    search.add_argument(
        "--iterations", type=whole, metavar="K", help=f"changes to try for each {each}: the same on every machine"
    )
    search.add_argument("--seed", type=int, default=0, metavar="K", help="another one searches another way (0)")


@contextmanager
def stopped_by_ctrl_c() -> Iterator[Any]:
    """The progress of a search: a line on stderr where that is a terminal, and an end with what there is on Ctrl-C."""
    is_stopped, shown = False, -1

    def stop(*_: object) -> None:
        nonlocal is_stopped
        is_stopped = True

    def progress(done: int, total: int) -> bool:
        nonlocal shown
        share = 100 * done // max(total, 1)
        if share != shown and sys.stderr.isatty():
            print(f"\r{share:3} %, Ctrl-C for the best so far", end="", file=sys.stderr, flush=True)
            shown = share
        return not is_stopped

    try:
        before = signal.signal(signal.SIGINT, stop)
    except ValueError:  # not the main thread: then Ctrl-C is not this one's
        before = None
    try:
        yield progress
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
        if shown >= 0:
            print(f"\r{'':40}\r", end="", file=sys.stderr, flush=True)


def read_placement(text: str) -> Any:
    """What ``--placement`` says."""
    if text in PLACEMENTS:
        return text
    rows = [row.split(",") for row in text.split(":")]
    if not all(word.isascii() and word.isdigit() for row in rows for word in row):
        known = ", ".join(PLACEMENTS)
        raise InvalidArgument(f"--placement is {text!r}, must be one of {known}, or the rank of each stage: 0,1,1,0")
    return [[int(word) for word in row] for row in rows]


def read_caps(text: str) -> list[int]:
    """What ``--cap`` says: a number, or one for each rank."""
    return [whole(word.strip()) for word in text.split(",")]
