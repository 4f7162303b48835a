"""Plans: the best schedule that can be found for given costs and memory, beside what no schedule can beat."""

from __future__ import annotations

import ctypes as c
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Union

import numpy as np
import numpy.typing as npt

from . import _structs as s
from ._callbacks import Progress
from ._callbacks import searching as _searching
from ._library import Closing, Handle, create, lib, read_text, read_values, uint32
from ._units import seconds, size
from .costs import Costs, nanoseconds, number
from .errors import InvalidArgument
from .schedule import Schedule, _placement_rows

Placement = Union[str, Sequence[int], Sequence[Sequence[int]]]
"""``"linear"``, ``"v"``, ``"interleaved"``, ``"bidirectional"``; or the rank of each stage, of two directions one such
list for each."""
Cap = Union[int, Sequence[int]]
"""One number for all ranks, or one for each."""

PLACEMENTS = {"linear": 1, "v": 2, "interleaved": 3, "bidirectional": 4}
"""The names of ``dualpipe_placement_kind``."""
CUSTOM_PLACEMENT = 5
"""``DUALPIPE_PLACEMENT_CUSTOM``."""
OBJECTIVES = {"mean": 1, "p95": 2}
"""The names of ``dualpipe_plan_objective``."""
STOPS = {1: "optimal", 2: "iterations", 3: "time", 4: "cancelled"}
"""The names of ``dualpipe_plan_stop``."""
TIME_MAX = 86400.0
"""The longest that a search may take, in seconds."""


@dataclass(frozen=True)
class Spread:
    """How far the times of ops spread about their costs, for :func:`plan`.

    Factors of mean 1, close to normal, kept between 0.1 and 10: ``op_jitter``, the relative standard deviation of each
    F, I and W; ``expert_imbalance``, that of each micro-batch at each stage, whose F, I and W it slows alike. Both 0 to
    1. ``samples``: 1 to 1024 to search on; as many others are held out. Another ``seed`` draws others.
    """

    op_jitter: float = 0.0
    expert_imbalance: float = 0.0
    samples: int = 64
    seed: int = 0


class Makespans(NamedTuple):
    """Makespans on samples, in seconds."""

    mean: float
    p95: float
    """The least that 95 of 100 samples do not exceed."""
    min: float
    max: float


class Sampled(NamedTuple):
    """What a schedule takes when times spread, in seconds."""

    nominal: float
    """Without a spread."""
    samples: Makespans
    """On the samples that were searched on."""
    held_out: Makespans
    """On as many others, which the search never saw: what to expect."""


class Plan(Closing):
    """A schedule that :func:`plan` made, and how good it is. ``str(plan)`` says it in a few lines."""

    def __init__(self, handle: Handle) -> None:
        """Not to be called by users: ``handle`` is the library's."""
        self._handle = handle
        self._info = s.PlanInfo(size=c.sizeof(s.PlanInfo))
        lib.dualpipe_plan_describe(handle, c.byref(self._info))
        self._peaks = read_values("dualpipe_plan_peaks", s.PlanPeak, handle)

    @cached_property
    def schedule(self) -> Schedule:
        """The schedule: ``"custom"``, or of its kind if nothing better was found than a published one."""
        return Schedule._of(create("dualpipe_plan_schedule", "dualpipe_schedule_free", self._handle))

    @property
    def makespan(self) -> float:
        """Seconds that a step takes."""
        return float(self._info.makespan_ns / 1e9)

    @property
    def lower_bound(self) -> float:
        """No schedule on this placement that keeps to the cap takes less; with a spread, none has a lower objective on
        the samples."""
        return float(self._info.lower_bound_ns / 1e9)

    @property
    def gap(self) -> float:
        """``makespan / lower_bound - 1``, with a spread of the objective: 0 if nothing better is possible."""
        return float(self._info.gap)

    @property
    def started_from(self) -> str:
        """What the search began with: the name of the best published schedule that is possible and keeps to the cap;
        ``"constructed"`` where there is none."""
        return read_text("dualpipe_plan_started_from", self._handle)

    @property
    def start_makespan(self) -> float:
        """Seconds that a step takes with that one."""
        return float(self._info.start_makespan_ns / 1e9)

    @property
    def peak_live(self) -> npt.NDArray[np.int64]:
        """[ranks] The most micro-batch activations alive at once."""
        return self._peaks["live"].astype(np.int64)

    @property
    def peak_memory(self) -> npt.NDArray[np.int64]:
        """[ranks] The most bytes, parameters included."""
        return self._peaks["memory_bytes"].astype(np.int64)

    @property
    def iterations(self) -> int:
        """Changes that were tried; with a spread each counts for every sample."""
        return int(self._info.iterations)

    @property
    def stop(self) -> str:
        """Why the search ended: ``"optimal"``, ``"iterations"``, ``"time"`` or ``"cancelled"``, by its progress."""
        return STOPS[self._info.stop]

    @property
    def objective(self) -> str | None:
        """What was made small on samples, ``"mean"`` or ``"p95"``; None without a spread."""
        return next((name for name, number in OBJECTIVES.items() if number == self._info.objective), None)

    @property
    def sampled(self) -> Sampled | None:
        """What the schedule takes when times spread; None without a spread."""
        return self._sampled(1)

    @property
    def sampled_without_spread(self) -> Sampled | None:
        """The same of a plan for costs without a spread, which the search began with."""
        return self._sampled(2)

    @property
    def sampled_published(self) -> Sampled | None:
        """The same of the published schedule that is best by the objective; None also where none is possible."""
        return None if self.started_from == "planned" else self._sampled(3)

    def __str__(self) -> str:
        schedule = self.schedule
        copies = ", two directions" if schedule.directions == 2 else ""
        sizes = f"{schedule.ranks} ranks, {schedule.stages} stages{copies}, {schedule.microbatches} micro-batches"
        live, memory = int(self.peak_live.max()), int(self.peak_memory.max())
        lines = [f"{schedule.name}: {sizes}", *self._times()]
        lines.append(f"started from {self.started_from}, {seconds(self.start_makespan)}")
        lines.append(f"peak live    {live} activations on a rank{f', {size(memory)}' if memory else ''}")
        lines.append(f"searched     {self.iterations} changes; stopped by {WHY[self.stop]}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<dualpipe.Plan {self.makespan:g} s, gap {100 * self.gap:.2f} %>"

    def _repr_svg_(self) -> str:
        """What a notebook shows."""
        return self.schedule.svg()

    def _times(self) -> list[str]:
        of = "" if self.objective is None else f" of the {self.objective} on samples"
        proven = ": nothing better is possible" if self.gap == 0 else ""
        lines = [f"makespan     {seconds(self.makespan)}"]
        lines.append(f"lower bound  {seconds(self.lower_bound)}{of}, gap {100 * self.gap:.2f} %{proven}")
        if self.objective is None:
            return lines
        lines.append(f"on samples that the search never saw{'mean':>13}{'95th percentile':>18}{'nominal':>12}")
        for name, sampled in (
            ("this", self.sampled),
            ("planned without spread", self.sampled_without_spread),
            (self.started_from, self.sampled_published),
        ):
            if sampled is not None:
                mean, p95 = seconds(sampled.held_out.mean), seconds(sampled.held_out.p95)
                lines.append(f"  {name:33}{mean:>13}{p95:>18}{seconds(sampled.nominal):>12}")
        return lines

    def _sampled(self, which: int) -> Sampled | None:
        if not self._info.objective:
            return None
        in_c = s.Sampled(size=c.sizeof(s.Sampled))
        lib.dualpipe_plan_sampled(self._handle, which, c.byref(in_c))

        def summary(prefix: str) -> Makespans:
            return Makespans(*(getattr(in_c, f"{prefix}{name}_ns") / 1e9 for name in Makespans._fields))

        return Sampled(in_c.nominal_ns / 1e9, summary(""), summary("held_out_"))


WHY = {
    "optimal": "the lower bound",
    "iterations": "the number of iterations",
    "time": "the time limit",
    "cancelled": "its progress callback",
}
"""What ended a search, for people."""


def plan(
    *,
    ranks: int,
    microbatches: int,
    costs: Costs,
    placement: Placement = "bidirectional",
    stages_per_rank: int | None = None,
    cap: Cap | None = None,
    cap_bytes: Cap | None = None,
    time: float | None = None,
    iterations: int | None = None,
    seed: int = 0,
    spread: Spread | None = None,
    objective: str = "mean",
    num_threads: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """The best schedule for training that is found: never slower than the best published one that keeps to the cap.

    ``microbatches``: any number, both directions together. ``placement``: ``"linear"``, stage r on rank r; ``"v"``, two
    stages on each, down the ranks and back up; ``"interleaved"`` with ``stages_per_rank``; ``"bidirectional"``, two
    copies of each stage, from both ends; or the rank of each stage, ``[0, 1, 1, 0]``, for two directions a list of two
    such lists. :func:`dualpipe.compare` says which to choose.

    ``cap``: how many micro-batch activations may be alive at once, for all ranks or for each; or ``cap_bytes``: how
    many bytes, parameters included.

    ``time``: seconds of search; ``iterations``: changes to try. With ``iterations`` alone the same arguments give the
    same schedule on every machine. Without both, 2 seconds. ``num_threads``: 0 is as many as there are cores.

    ``spread``: then the ``objective``, ``"mean"`` or ``"p95"`` of the makespan on samples, is made small.

    ``progress``: is told (done, total) every few milliseconds: iterations, or nanoseconds where only ``time`` is given;
    otherwise the callback of :func:`dualpipe.set_progress` is. If it returns False, the best so far is the plan; if it
    raises, this raises that.

    Raises :class:`~dualpipe.errors.InvalidArgument`, also for a cap that no schedule keeps to; TypeError.

    >>> best = plan(ranks=8, microbatches=20, costs=Costs(f=1, i=1, w=1, fb=2.5), cap=9)
    >>> best.makespan, best.lower_bound, best.started_from
    """
    if objective not in OBJECTIVES:
        raise InvalidArgument(f"objective is {objective!r}, must be {' or '.join(map(repr, OBJECTIVES))}")
    if not isinstance(costs, Costs):
        raise TypeError(f"costs is {costs!r}, must be dualpipe.Costs")
    options = _options(
        ranks=ranks,
        microbatches=microbatches,
        placement=placement,
        stages_per_rank=stages_per_rank,
        cap=cap,
        cap_bytes=cap_bytes,
        time=time,
        iterations=iterations,
        seed=seed,
        num_threads=num_threads,
    )
    struct = costs._struct()
    given: list[Any] = [c.byref(options), c.byref(struct)]
    function = "dualpipe_plan_create"
    if spread is not None:
        of_spread = _spread(spread)
        given += [c.byref(of_spread), c.c_uint32(OBJECTIVES[objective])]
        function += "_robust"
    with _searching(progress):
        handle = create(function, "dualpipe_plan_free", *given)
    return Plan(handle)


def _options(
    *,
    ranks: int,
    microbatches: int,
    placement: Placement = "bidirectional",
    stages_per_rank: int | None = None,
    cap: Cap | None = None,
    cap_bytes: Cap | None = None,
    time: float | None = None,
    iterations: int | None = None,
    seed: int = 0,
    num_threads: int = 0,
) -> s.PlanOptions:
    """``dualpipe_plan_options``, which keeps its lists alive."""
    options = s.PlanOptions(size=c.sizeof(s.PlanOptions))
    options.num_ranks = uint32("ranks", ranks)
    options.num_microbatches = uint32("microbatches", microbatches)
    options.num_threads = uint32("num_threads", num_threads)
    if isinstance(placement, str):
        if placement not in PLACEMENTS:
            known = ", ".join(map(repr, PLACEMENTS))
            raise InvalidArgument(f"placement is {placement!r}, must be {known}, or the rank of each stage")
        options.placement = PLACEMENTS[placement]
    else:
        rows = _placement_rows(placement)
        options.placement, options.num_directions, options.num_stages = CUSTOM_PLACEMENT, len(rows), len(rows[0])
        flat = [rank for row in rows for rank in row]
        options.rank_of = (c.c_uint32 * len(flat))(*flat)
    if stages_per_rank is not None:
        options.stages_per_rank = uint32("stages_per_rank", stages_per_rank)
    if cap is not None and cap_bytes is not None:
        raise InvalidArgument("cap and cap_bytes are both given, must be one of them")
    if cap is not None:
        options.cap_activations, options.num_cap_activations = _caps("cap", cap)
    if cap_bytes is not None:
        options.cap_bytes, options.num_cap_bytes = _caps("cap_bytes", cap_bytes)
    if time is not None:
        if not 0 < number("time", time) <= TIME_MAX:
            raise InvalidArgument(f"time is {time}, must be above 0 and at most {TIME_MAX:g} seconds")
        options.time_limit_ns = max(1, nanoseconds("time", time, TIME_MAX))
    if iterations is not None:
        options.iterations = _whole("iterations", iterations, 1)
    options.seed = _whole("seed", seed, 0)
    return options


def _spread(spread: Any) -> s.Spread:
    if not isinstance(spread, Spread):
        raise TypeError(f"spread is {spread!r}, must be dualpipe.Spread")
    return s.Spread(
        c.sizeof(s.Spread),
        uint32("samples", spread.samples),
        number("op_jitter", spread.op_jitter),
        number("expert_imbalance", spread.expert_imbalance),
        _whole("seed", spread.seed, 0),
    )


def _caps(name: str, cap: Any) -> tuple[c.Array[c.c_uint64], int]:
    """A list for C, and its length."""
    each = list(cap) if hasattr(cap, "__len__") and not isinstance(cap, (str, bytes)) else [cap]
    if not each:
        raise InvalidArgument(f"{name} is empty, must have a number, or one for each rank")
    names = [name] if len(each) == 1 else [f"{name}[{rank}]" for rank in range(len(each))]
    return (c.c_uint64 * len(each))(*(_whole(*one, 0) for one in zip(names, each))), len(each)


def _whole(name: str, value: Any, least: int) -> int:
    """``value`` as C's uint64_t."""
    try:
        whole = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, must be an integer") from None
    if not least <= whole < 1 << 64:
        raise InvalidArgument(f"{name} is {whole}, must be {least} to 2^64 - 1")
    return whole
