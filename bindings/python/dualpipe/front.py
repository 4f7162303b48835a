"""Memory against time: the best schedule within each of several memory caps, beside what no schedule can beat."""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union

from . import _front_structs as f
from ._callbacks import Progress, searching
from ._library import Closing, Handle, create, lib, read_text, read_values
from .comparison import EACH_TIME
from .costs import Costs
from .errors import InvalidArgument
from .plan import Placement, _caps, _options
from .schedule import Schedule
from .timeline import PathLike

Caps = Union[str, Sequence[int]]
"""``"all"``, or caps that rise, each the same for all ranks."""

UNITS = {1: "activations", 2: "bytes"}
"""The names of ``dualpipe_memory_unit``."""


class Published(NamedTuple):
    """A published schedule beside a front."""

    name: str
    """Such as ``"dualpipe_v"``."""
    peak: int
    """What the rank that keeps most keeps at once, in the front's unit."""
    makespan: float
    """Seconds of a step."""


class Point:
    """The best schedule within a cap, which is the same for all ranks."""

    def __init__(self, front: Handle, index: int) -> None:
        """Not to be called by users: ``front`` is the library's."""
        self._front, self._index = front, index
        self._info = f.FrontPoint(size=c.sizeof(f.FrontPoint))
        lib.dualpipe_front_describe_point(front, index, c.byref(self._info))

    @property
    def cap(self) -> int:
        """Activations or bytes."""
        return int(self._info.cap)

    @property
    def peak(self) -> int:
        """What the rank that keeps most keeps at once, in the same unit."""
        return int(self._info.peak)

    @property
    def makespan(self) -> float:
        """Seconds of a step."""
        return float(self._info.makespan_ns / 1e9)

    @property
    def lower_bound(self) -> float:
        """No schedule on this placement that keeps to the cap takes less."""
        return float(self._info.lower_bound_ns / 1e9)

    @property
    def gap(self) -> float:
        """``makespan / lower_bound - 1``: 0 if nothing better is possible."""
        makespan, bound = self._info.makespan_ns, self._info.lower_bound_ns
        return makespan / bound - 1 if bound else (0.0 if makespan == 0 else float("inf"))

    @property
    def started_from(self) -> str:
        """What the search that found it began with: the name of a published schedule, or ``"constructed"``."""
        return read_text("dualpipe_front_started_from", self._front, self._index)

    @property
    def schedule(self) -> Schedule:
        """It, as a schedule of its own."""
        return Schedule._of(create("dualpipe_front_schedule", "dualpipe_schedule_free", self._front, self._index))

    def __repr__(self) -> str:
        return f"<cap {self.cap}: {self.makespan:g} s, none below {self.lower_bound:g} s>"


class Front(Closing):
    """Plans within several memory caps, by :func:`memory_time_front`. ``str(front)`` is a table with bars."""

    def __init__(self, handle: Handle) -> None:
        """Not to be called by users: ``handle`` is the library's."""
        self._handle = handle
        info = f.FrontInfo(size=c.sizeof(f.FrontInfo))
        lib.dualpipe_front_describe(handle, c.byref(info))
        self.unit = UNITS[info.unit]
        """What memory is counted in: ``"activations"`` or ``"bytes"``."""
        self.is_stopped = bool(info.is_stopped)
        """Whether ``progress`` stopped it: then some points were not searched for."""
        self.points = [Point(handle, index) for index in range(info.num_points)]
        """By cap, the smallest first; along them neither makespan nor lower bound rises."""
        raw = read_values("dualpipe_front_published_schedules", f.FrontPublished, handle).tolist()
        names = (read_text("dualpipe_front_published_name", handle, index) for index in range(len(raw)))
        self.published = [Published(name, peak, ns / 1e9) for name, (peak, ns) in zip(names, raw)]
        """The published schedules that are possible, whether they fit a cap or not, by memory."""

    @property
    def text(self) -> str:
        """The table, also ``str(front)``: a line for each cap, with a bar from the lower bound to the makespan."""
        return read_text("dualpipe_front_draw", self._handle, 1)

    def svg(self, path: PathLike | None = None) -> str:
        """A self-contained SVG, also written to ``path`` if there is one. OSError if that fails."""
        text = read_text("dualpipe_front_draw", self._handle, 2)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<dualpipe.Front of {len(self.points)} caps in {self.unit}>"

    def _repr_svg_(self) -> str:
        """What a notebook shows."""
        return self.svg()


def memory_time_front(
    *,
    ranks: int,
    microbatches: int,
    costs: Costs,
    placement: Placement = "bidirectional",
    stages_per_rank: int | None = None,
    caps: Caps | None = None,
    caps_bytes: Caps | None = None,
    time: float | None = None,
    iterations: int | None = None,
    seed: int = 0,
    num_threads: int = 0,
    progress: Progress | None = None,
) -> Front:
    """The best schedule within each of several memory caps: one :func:`~dualpipe.plan` for each.

    ``caps``: how many activations may be alive at once on any rank, 1 to 256 numbers that rise; or ``caps_bytes``: how
    many bytes, parameters included. ``"all"``, of activations if neither is given: at most 24, evenly, from one
    micro-batch of each direction at a time to where more gains nothing.

    ``time`` and ``iterations`` are those of each plan: half a second if neither is given; for ``"all"`` there is one
    plan more, without a cap. What ``progress`` stops has at each point the best that was found until then. The rest is
    of :func:`~dualpipe.plan`.

    Raises :class:`~dualpipe.errors.InvalidArgument`, also for a cap that no schedule keeps to; TypeError.

    >>> front = memory_time_front(ranks=8, microbatches=20, costs=Costs(f=1, i=1, w=1, fb=2.5), caps=[6, 7, 8, 9])
    >>> [point.makespan for point in front.points]
    """
    if not isinstance(costs, Costs):
        raise TypeError(f"costs is {costs!r}, must be dualpipe.Costs")
    if caps is not None and caps_bytes is not None:
        raise InvalidArgument("caps and caps_bytes are both given, must be one of them")
    if time is None and iterations is None:
        time = EACH_TIME
    options = _options(
        ranks=ranks,
        microbatches=microbatches,
        placement=placement,
        stages_per_rank=stages_per_rank,
        time=time,
        iterations=iterations,
        seed=seed,
        num_threads=num_threads,
    )
    struct = costs._struct()
    unit, given = (1, _all_or("caps", caps)) if caps_bytes is None else (2, _all_or("caps_bytes", caps_bytes))
    with searching(progress):
        handle = create("dualpipe_front_create", "dualpipe_front_free", c.byref(options), c.byref(struct), unit, *given)
    return Front(handle)


def _all_or(name: str, caps: Any) -> tuple[Any, int]:
    """A list of caps for C, and its length; NULL and 0 for all."""
    if caps is None or isinstance(caps, str) and caps == ALL:
        return None, 0
    if isinstance(caps, (str, bytes)):
        raise InvalidArgument(f"{name} is {caps!r}, must be {ALL!r} or numbers that rise")
    return _caps(name, caps)


ALL = "all"
"""All caps that matter."""
