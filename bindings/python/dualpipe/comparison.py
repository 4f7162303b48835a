"""Which placement: published schedules and planned ones on equal devices, with what each costs."""

from __future__ import annotations

import ctypes as c

from . import _front_structs as f
from ._callbacks import Progress, searching
from ._library import Closing, Handle, create, lib, read_text
from .costs import Costs
from .plan import PLACEMENTS, Cap, _options
from .schedule import Schedule
from .timeline import Timeline


class Candidate:
    """A schedule that was compared. Of one that is not possible, :attr:`reason` says why, and its figures are 0."""

    def __init__(self, comparison: Handle, index: int) -> None:
        """Not to be called by users: ``comparison`` is the library's."""
        self._comparison, self._index = comparison, index
        self._info = f.Candidate(size=c.sizeof(f.Candidate))
        lib.dualpipe_comparison_candidate(comparison, index, c.byref(self._info))
        self.name = read_text("dualpipe_comparison_name", comparison, index)
        """The kind of a published schedule such as ``"dualpipe_v"``, or ``"planned"``."""
        self.reason = read_text("dualpipe_comparison_reason", comparison, index) or None
        """Why it is not possible; None if it is."""

    @property
    def placement(self) -> str:
        """``"linear"``, ``"v"``, ``"interleaved"`` or ``"bidirectional"``."""
        return next(name for name, number in PLACEMENTS.items() if number == self._info.placement)

    @property
    def stages_per_rank(self) -> int:
        """Stages of the model for each rank: 1, of a V 2."""
        return int(self._info.stages_per_rank)

    @property
    def is_planned(self) -> bool:
        """Whether it was planned, not published."""
        return bool(self._info.is_planned)

    @property
    def fits(self) -> bool:
        """Whether it is possible and keeps to the cap."""
        return bool(self._info.fits)

    @property
    def makespan(self) -> float:
        """Seconds of a step."""
        return float(self._info.makespan_ns / 1e9)

    @property
    def lower_bound(self) -> float:
        """No schedule on this placement takes less; where this one fits, none that fits does."""
        return float(self._info.lower_bound_ns / 1e9)

    @property
    def bubble(self) -> float:
        """The share of the step that a rank idles, 0 to 1, mean over ranks."""
        return float(self._info.bubble_share)

    @property
    def parameter_copies(self) -> int:
        """Copies of the model's parameters that there are: 1, or 2."""
        return int(self._info.parameter_copies)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of parameters, of the rank that has most."""
        return int(self._info.parameter_bytes)

    @property
    def peak_activations(self) -> float:
        """The most activations alive at once on any rank, counted in those of one micro-batch on a rank's share of the
        model."""
        return float(self._info.peak_activations)

    @property
    def peak_activation_bytes(self) -> int:
        """The most bytes that activations take on any rank."""
        return int(self._info.peak_activation_bytes)

    @property
    def sent_messages(self) -> int:
        """Messages to other ranks, of the rank that sends most."""
        return int(self._info.sent_messages)

    @property
    def sent_bytes(self) -> int:
        """Bytes to other ranks, of the rank that sends most."""
        return int(self._info.sent_bytes)

    @property
    def excess_activations(self) -> float:
        """By how many activations it exceeds their cap, where that is most; 0 if it fits, or bytes are capped."""
        return float(self._info.excess_activations)

    @property
    def excess_bytes(self) -> int:
        """By how many bytes it exceeds their cap, where that is most; 0 if it fits, or activations are capped."""
        return int(self._info.excess_bytes)

    @property
    def schedule(self) -> Schedule:
        """It. Raises :class:`~dualpipe.errors.InvalidArgument` if it is not possible, with the reason."""
        where = self._comparison, self._index
        return Schedule._of(create("dualpipe_comparison_schedule", "dualpipe_schedule_free", *where))

    @property
    def timeline(self) -> Timeline:
        """It as it was played, with its placement's stages cut from the comparison's costs. Raises as
        :attr:`schedule` does."""
        where = self._comparison, self._index
        return Timeline(create("dualpipe_comparison_timeline", "dualpipe_timeline_free", *where))

    def __repr__(self) -> str:
        where = f"{self.name} on {self.placement}"
        if self.placement == "interleaved":
            where += f" x{self.stages_per_rank}"
        if self.reason is not None:
            return f"<{where}: not possible>"
        return f"<{where}: {self.makespan:g} s{'' if self.fits else ', does not fit'}>"


class Comparison(Closing):
    """Schedules on several placements, ranked, by :func:`compare`. ``str(comparison)`` is a table."""

    def __init__(self, handle: Handle) -> None:
        """Not to be called by users: ``handle`` is the library's."""
        self._handle = handle
        count = c.c_uint32()
        lib.dualpipe_comparison_count(handle, c.byref(count))
        self.candidates = [Candidate(handle, index) for index in range(count.value)]
        """The best first: those that fit by makespan, then those that do not by makespan, then those that are not
        possible. Of two that are equal, a published one comes before a planned one."""

    @property
    def best(self) -> Candidate | None:
        """The best that fits, if any does."""
        return self.candidates[0] if self.candidates[0].fits else None

    def __str__(self) -> str:
        return read_text("dualpipe_comparison_text", self._handle)

    def __repr__(self) -> str:
        return f"<dualpipe.Comparison of {len(self.candidates)} candidates, the best {self.best}>"


def compare(
    *,
    ranks: int,
    microbatches: int,
    costs: Costs,
    cap: Cap | None = None,
    cap_bytes: Cap | None = None,
    time: float | None = None,
    iterations: int | None = None,
    seed: int = 0,
    num_threads: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Compares schedules for one model on equal devices: on each placement the published ones, and one :func:`plan`.

    The placements are linear, V, bidirectional, and interleaved with 2, 3 and 4 stages on a rank. ``costs``: of the
    finest stages that the model is to be cut into, a multiple of ``ranks``; or one for all, which is then of a rank's
    share of the model. Stages put together add up, and those that are cut are cut evenly.

    ``cap``: how many activations a rank may keep, counted in those of one micro-batch on a rank's share of the model,
    for all ranks or for each; or ``cap_bytes``, parameters included. ``ranks`` times ``microbatches``: at most 262144.

    ``time`` and ``iterations`` are those of each of the 6 plans: half a second if neither is given. If ``progress``
    stops it, the plan at hand is the best so far, and later ones are listed as not made. The rest is of :func:`plan`.

    >>> comparison = compare(ranks=8, microbatches=20, costs=Costs(f=1, i=1, w=1, fb=2.5), cap=9)
    >>> print(comparison)
    >>> comparison.best.schedule
    """
    if not isinstance(costs, Costs):
        raise TypeError(f"costs is {costs!r}, must be dualpipe.Costs")
    if time is None and iterations is None:
        time = EACH_TIME
    read = _options(
        ranks=ranks,
        microbatches=microbatches,
        cap=cap,
        cap_bytes=cap_bytes,
        time=time,
        iterations=iterations,
        seed=seed,
        num_threads=num_threads,
    )
    options = f.ComparisonOptions(size=c.sizeof(f.ComparisonOptions))
    for name, *_ in f.ComparisonOptions._fields_[1:]:
        setattr(options, name, getattr(read, name))
    struct = costs._struct()
    with searching(progress):
        handle = create("dualpipe_comparison_create", "dualpipe_comparison_free", c.byref(options), c.byref(struct))
    return Comparison(handle)


EACH_TIME = 0.5
"""Seconds of each plan of several, unless they are given."""
