"""Timelines: who did what when in one step, simulated or recorded; and their pictures."""

from __future__ import annotations

import ctypes as c
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from . import _structs as s
from ._library import Closing, Handle, create, lib, read_text, read_values

PathLike = Union[str, "os.PathLike[str]"]

OP_KINDS = {1: "F", 2: "B", 3: "I", 4: "W", 5: "FB", 6: "REDUCE_GRADS"}
"""The names of ``dualpipe_op_kind``."""
MESSAGE_KINDS = {1: "ACTIVATION", 2: "GRADIENT"}
"""The names of ``dualpipe_message_kind``."""

PASS_DTYPE = np.dtype([("direction", "i4"), ("stage", "i4"), ("microbatch", "i4"), ("copy", "i4")])
"""One micro-batch at one stage; all -1 where there is none."""
SPAN_DTYPE = np.dtype(
    [
        ("rank", "i4"),
        ("kind", "U12"),
        ("forward", PASS_DTYPE),
        ("backward", PASS_DTYPE),
        ("start", "f8"),
        ("end", "f8"),
    ]
)
"""A task and when it ran, in seconds from the start of the step."""
MESSAGE_DTYPE = np.dtype(
    [
        ("kind", "U10"),
        ("to_stage", "i4"),
        ("pass", PASS_DTYPE),
        ("from", "i4"),
        ("to", "i4"),
        ("start", "f8"),
        ("end", "f8"),
    ]
)
"""A message from rank ``from`` to rank ``to`` and when it travelled, in seconds from the start of the step."""


class Timeline(Closing):
    """Who did what when in one step: from :meth:`Schedule.simulate`, :meth:`Executor.timeline` or :meth:`merge`.

    It never changes; any number of threads may use it at once. Times are in seconds. ``str(timeline)`` draws it for a
    terminal.
    """

    def __init__(self, handle: Handle) -> None:
        """Not to be called by users: ``handle`` is the library's."""
        self._handle = handle
        summary = s.TimelineSummary(size=c.sizeof(s.TimelineSummary))
        lib.dualpipe_timeline_summarize(handle, c.byref(summary))
        self._summary = summary
        self._ranks = read_values("dualpipe_timeline_ranks", s.TimelineRank, handle)

    @classmethod
    def merge(cls, timelines: Iterable[Timeline]) -> Timeline:
        """One timeline of several that each recorded other ranks of the same step.

        Raises :class:`~dualpipe.errors.InvalidArgument` unless all have the same ranks and stages and no rank is in
        two of them.
        """
        handles = _handles(list(timelines))
        return cls(create("dualpipe_timeline_merge", "dualpipe_timeline_free", handles, len(handles)))

    @staticmethod
    def compare(timelines: Iterable[Timeline], path: PathLike | None = None) -> str:
        """1 to 64 timelines as one SVG, one above the other on one scale of time, also written to ``path``.

        Say, a step simulated and recorded.
        """
        timelines = list(timelines)
        text = read_text("dualpipe_timeline_compare", _handles(timelines), len(timelines))
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @property
    def source(self) -> str:
        """``"simulated"`` or ``"recorded"``."""
        return "simulated" if self._summary.source == 1 else "recorded"

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return int(self._summary.num_ranks)

    @property
    def makespan(self) -> float:
        """When the last task ends."""
        return float(self._summary.makespan_ns / 1e9)

    @property
    def bubble(self) -> float:
        """The share of the step that a rank idles, 0 to 1, mean over ranks."""
        return float(self._summary.bubble_share)

    @property
    def lower_bound(self) -> float | None:
        """No schedule of these micro-batches on this placement is shorter; None if recorded."""
        return None if self.source == "recorded" else float(self._summary.lower_bound_ns / 1e9)

    @property
    def gap(self) -> float | None:
        """``makespan / lower_bound - 1``; None if recorded."""
        makespan, bound = self._summary.makespan_ns, self._summary.lower_bound_ns
        if self.source == "recorded":
            return None
        return makespan / bound - 1 if bound else (0.0 if makespan == 0 else float("inf"))

    @property
    def busy(self) -> npt.NDArray[np.float64]:
        """[ranks] Seconds that each rank spends on tasks."""
        return self._ranks["busy_ns"] / 1e9

    @property
    def idle(self) -> npt.NDArray[np.float64]:
        """[ranks] Seconds of the step in which each rank does nothing."""
        return self._ranks["idle_ns"] / 1e9

    @property
    def peak_memory(self) -> npt.NDArray[np.int64] | None:
        """[ranks] Bytes of each rank's parameters and of the most activations alive at once; None if recorded."""
        return None if self.source == "recorded" else self._ranks["peak_memory_bytes"].astype(np.int64)

    def spans(self) -> npt.NDArray[Any]:
        """[spans] of :data:`SPAN_DTYPE`: every task, rank by rank, each rank's in the order in which they ran.

        ``kind`` is F, B, I, W, FB or REDUCE_GRADS; a pass that a task does not have is all -1.
        """
        raw = read_values("dualpipe_timeline_spans", s.Span, self._handle)
        spans = np.zeros(len(raw), SPAN_DTYPE)
        spans["rank"] = raw["rank"]
        spans["kind"] = _names(OP_KINDS)[raw["op"]["kind"]]
        for name in ("forward", "backward"):
            _copy_pass(spans[name], raw["op"][name])
        spans["start"], spans["end"] = raw["start_ns"] / 1e9, raw["end_ns"] / 1e9
        return spans

    def messages(self) -> npt.NDArray[Any]:
        """[messages] of :data:`MESSAGE_DTYPE`: those between different ranks, in an order that is always the same.

        ``kind`` is ACTIVATION or GRADIENT, ``pass`` what made it.
        """
        raw = read_values("dualpipe_timeline_messages", s.MessageSpan, self._handle)
        messages = np.zeros(len(raw), MESSAGE_DTYPE)
        messages["kind"] = _names(MESSAGE_KINDS)[raw["message"]["kind"]]
        messages["to_stage"] = raw["message"]["to_stage"]
        _copy_pass(messages["pass"], raw["message"]["pass"])
        for name in ("from", "to"):
            messages[name] = raw[name]
        messages["start"], messages["end"] = raw["start_ns"] / 1e9, raw["end_ns"] / 1e9
        return messages

    def svg(self, path: PathLike | None = None) -> str:
        """A self-contained SVG, also written to ``path`` if there is one. OSError if that fails."""
        return self._draw(2, path)

    def trace(self, path: PathLike | None = None) -> str:
        """A Chrome trace (JSON) for ui.perfetto.dev, also written to ``path``. OSError if that fails."""
        return self._draw(3, path)

    def __str__(self) -> str:
        return self._draw(1, None)

    def __repr__(self) -> str:
        sizes = f"{self.ranks} ranks, {self.makespan:g} s, bubble {100 * self.bubble:.1f} %"
        return f"<dualpipe.Timeline {self.source}, {sizes}>"

    def _repr_svg_(self) -> str:
        """What a notebook shows."""
        return self.svg()

    def _draw(self, drawing: int, path: PathLike | None) -> str:
        text = read_text("dualpipe_timeline_draw", self._handle, drawing)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text


def _names(names: dict[int, str]) -> npt.NDArray[np.str_]:
    return np.array([names.get(number, "") for number in range(max(names) + 1)])


def _copy_pass(into: npt.NDArray[Any], raw: npt.NDArray[Any]) -> None:
    for name in PASS_DTYPE.names or ():
        # DUALPIPE_NONE has the bits of -1.
        into[name] = raw[name].astype(np.uint32).view(np.int32)


def _handles(timelines: list[Timeline]) -> c.Array[c.c_void_p]:
    return (c.c_void_p * len(timelines))(*(timeline._handle._as_parameter_.value for timeline in timelines))
