"""Schedules as the CSV that ``torch.distributed.pipelining`` loads, written and read. Needs no torch.

One row for each rank, in the order of the ranks; a cell is one action: ``3F0`` is the forward of micro-batch 0 in stage
3, likewise ``I`` (backward for input), ``W`` (for weight), ``B`` (full backward); ``(0F3;3B1)OVERLAP_F_B`` is an
overlapped pair. What else a cell may hold depends on the version of torch, and a version does not reject what only
later ones know: torch up to 2.14 reads ``0WAIT_SEND_F1`` as ``0W``. So a file is written for the version
that loads it. ``dualpipe/torch_csv.h`` has the table of what each knows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Union

from .._library import create, read_text, to_c, uint32
from ..costs import Costs
from ..errors import InvalidArgument
from ..schedule import Schedule
from ..verification import Cap, Verification, verify_csv

FORMATS = ("compute_only", "compute_comms")
"""``compute_only``: torch puts the messages in when it loads the file. ``compute_comms``: they are in the file."""
OLDEST_TORCH = (2, 6)
"""The first version that loads a CSV with I."""
NEWEST_TORCH = (2, 15)
"""The last version whose ``compute_comms`` is known."""
Version = Union[tuple[int, ...], str]
"""``(2, 10)``, or ``"2.10.0+cpu"`` as ``torch.__version__`` has it."""


def schedule_csv(schedule: Schedule, torch_version: Version = NEWEST_TORCH, format: str = "compute_only") -> str:
    """``schedule`` as the CSV that ``_PipelineScheduleRuntime._load_csv(path, format)`` of that torch loads.

    ``torch_version``: at least 2.6; for ``"compute_comms"`` at most 2.15. Pairs stay pairs in ``"compute_only"`` from
    2.9 and in ``"compute_comms"`` from 2.10; before, torch has none and they are forward, then backward.
    ``"compute_comms"`` has the sends and receives, the gathering and releasing of sharded parameters (``UNSHARD``
    before the first action, ``RESHARD`` after a stage's last one), from 2.10 the gradient reductions, from 2.15 the
    waits.

    Raises :class:`~dualpipe.errors.InvalidArgument` for other versions and formats, and for schedules that torch does
    not run: of two directions, of inference, with a rank that holds no stage, or with a last stage that takes
    micro-batches out of their order. :class:`~dualpipe.errors.InvalidSchedule` for one that cannot run at all.
    """
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule is {schedule!r}, must be dualpipe.Schedule")
    dialect = *_version(torch_version), _format(format)
    return read_text("dualpipe_schedule_to_torch_csv", schedule._handle, *dialect)


def read_schedule_csv(
    source: str | os.PathLike[str],
    torch_version: Version | None = None,
    format: str | None = None,
    *,
    name: str | None = None,
) -> Schedule:
    """The schedule that torch runs when it loads a CSV: one of your own, or one that torch's ``_dump_csv`` wrote.

    ``source``: the text, or a path (:class:`pathlib.Path`) of a file with it. ``torch_version`` and ``format``: which
    torch is to load it, and how; what one takes for something else than it says is then refused. None is what the
    text shows: ``"compute_comms"`` if there is any communication, of the last version without what is not there.
    ``name`` is for errors and pictures; None is the file's, or "custom".

    The stages are on the ranks whose rows have them; there is one micro-batch more than the highest number. Messages
    and reductions must be complete, and are then left out: a program has its own.

    Raises :class:`~dualpipe.errors.InvalidArgument` with row, column, rank and cell. Whether the schedule can run is
    :meth:`dualpipe.Schedule.check`'s to say.

    >>> read_schedule_csv("0F0,0F1,0B0,0B1\\n1F0,1B0,1F1,1B1\\n").check()
    array([2, 1])
    """
    raw = _raw(source)
    if name is None and not isinstance(source, str):
        name = Path(source).stem
    dialect = _dialect_of(raw, torch_version, format)
    given = raw, len(raw), *dialect, None if name is None else to_c(name)
    return Schedule._of(create("dualpipe_schedule_create_from_torch_csv", "dualpipe_schedule_free", *given))


def verify_schedule_csv(
    source: str | os.PathLike[str],
    torch_version: Version | None = None,
    format: str | None = None,
    *,
    transports: str | Iterable[str] | None = "asynchronous",
    costs: Costs | None = None,
    cap: Cap = None,
    cap_bytes: Cap = None,
    counterexamples: bool = True,
) -> Verification:
    """Finds everything that is wrong with a CSV, of ``"compute_comms"`` also with its sends, receives and waits.

    ``source``, ``torch_version`` and ``format`` as of :func:`read_schedule_csv`, the rest as of
    :meth:`dualpipe.Schedule.verify`. Torch starts each send and each receive by itself, without tags: with gloo that is
    ``"asynchronous"``. NCCL runs them one after another, so that a receive keeps a later send waiting, which is none of
    the transports here.

    >>> text = "0F0,0SEND_F0,0RECV_B0,0B0\\n1F0,1RECV_F0,1B0,1SEND_B0\\n"
    >>> print(verify_schedule_csv(text).findings[0].text)
    rank 1, position 1 (RECEIVE activation 0F0 from rank 0): the op that needs it is before this
    """
    raw = _raw(source)
    dialect = _dialect_of(raw, torch_version, format)
    return verify_csv(raw, dialect, transports, costs, cap, cap_bytes, counterexamples)


def has_messages(text: str) -> bool:
    """Whether a CSV is of ``"compute_comms"``, by its words."""
    return _dialect(text.encode("utf-8", "replace"))[1] == FORMATS[1]


def stages_of(schedule: Schedule, rank: int) -> list[int]:
    """The stages whose parameters ``rank`` holds, in the order of its parameter copies: those that it builds.

    Raises :class:`~dualpipe.errors.InvalidArgument` if the rank is not one of the schedule's, or if the schedule has
    two directions, which torch's pipelining cannot run.
    """
    if schedule.directions != 1:
        raise InvalidArgument(
            f"schedule is {schedule.name!r}, of two directions: each stage is on two ranks, while torch's pipelining "
            "has each stage on one rank; 'dualpipe_v' is DualPipe folded onto half as many ranks"
        )
    return [stage for _, stage in schedule.copies(rank)]


def parsed_version(version: Version) -> tuple[int, int]:
    """Major and minor number: (2, 10) for ``(2, 10, 1)`` as for ``"2.10.0+cpu"`` and ``"2.10.0a0+git12"``."""
    parts = version.split(".")[:2] if isinstance(version, str) else [str(part) for part in version[:2]]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise InvalidArgument(f"torch_version is {version!r}, must be like (2, 10) or '2.10.0'")
    return int(parts[0]), int(parts[1])


def _version(version: Version) -> tuple[int, int]:
    """As C takes it."""
    major, minor = parsed_version(version)
    return uint32("torch_version", major), uint32("torch_version", minor)


def _format(format: str) -> int:
    """The ``dualpipe_torch_csv_format`` of this name."""
    if format not in FORMATS:
        raise InvalidArgument(f"format is {format!r}, must be one of {', '.join(map(repr, FORMATS))}")
    return 1 + FORMATS.index(format)


def _raw(source: str | os.PathLike[str]) -> bytes:
    return source.encode("utf-8", "replace") if isinstance(source, str) else Path(source).read_bytes()


def _dialect_of(raw: bytes, torch_version: Version | None, format: str | None) -> tuple[int, int, int]:
    """As C takes it: what is given, otherwise what the text shows."""
    shown = _dialect(raw)
    version = shown[0] if torch_version is None else torch_version
    return *_version(version), _format(shown[1] if format is None else format)


def _dialect(text: bytes) -> tuple[tuple[int, int], str]:
    """The version and the format that the words in a CSV are of."""
    if not any(word in text for word in (b"SEND", b"RECV", b"SHARD", b"REDUCE_GRAD")):
        return NEWEST_TORCH, "compute_only"
    if b"WAIT_" in text:
        return NEWEST_TORCH, "compute_comms"
    return (2, 14) if b"REDUCE_GRAD" in text or b"OVERLAP" in text else (2, 9), "compute_comms"
