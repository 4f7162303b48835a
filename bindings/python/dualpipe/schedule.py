"""Schedules: who computes what in which order; and programs, which are schedules with their messages."""

from __future__ import annotations

import ctypes as c
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _structs as s
from ._library import Closing, create, lib, read_text, read_values, uint32
from .costs import Costs
from .errors import InvalidArgument
from .timeline import MESSAGE_KINDS, OP_KINDS, PathLike, Timeline

KINDS = {
    "dualpipe": 1,
    "dualpipe_v": 2,
    "1f1b": 3,
    "gpipe": 4,
    "interleaved_1f1b": 5,
    "interleaved_overlapped": 6,
    "interleaved_zero_bubble": 7,
    "looped_bfs": 8,
    "chimera": 9,
    "zb_h1": 10,
    "zb_h2": 11,
    "zb_v": 12,
    "v_half": 13,
    "v_min": 14,
}
"""The published schedules, with their ``dualpipe_schedule_kind``."""
LOOPED = ("interleaved_1f1b", "interleaved_overlapped", "interleaved_zero_bubble", "looped_bfs")
"""The kinds with any number of stages on each rank."""
INSTRUCTION_KINDS = {1: "RECEIVE", 2: "RUN", 3: "SEND", 4: "FREE"}
"""The names of ``dualpipe_instruction_kind``."""

OpTuple = tuple[Any, ...]
"""``("F", copy, i)``, likewise B, I, W; ``("FB", copy, i, copy2, j)``; ``("REDUCE_GRADS", copy)`` in programs."""


class Schedule(Closing):
    """A published schedule: for every rank, the order of its ops. It never changes; any thread may use it.

    ``kind``:

    - ``"dualpipe"``: two directions; ``ranks`` even; ``microbatches`` counts both directions, even, at least
      2 * ranks - 2.
    - ``"dualpipe_v"``: DualPipe folded into a V, two stages on each rank; ``microbatches`` at least 2 * ranks - 1.
    - ``"1f1b"``, ``"gpipe"``, ``"zb_h1"``, ``"zb_h2"``: one stage on each rank; ``microbatches`` at least 1.
    - ``"zb_v"``, ``"v_half"``, ``"v_min"``: two stages on each rank, in a V; ``microbatches`` at least 1.
    - ``"chimera"``: two directions without halves of backwards; ``ranks`` and ``microbatches`` even.
    - ``"looped_bfs"``: ``stages_per_rank`` stages on each rank; ``microbatches`` at least 1.
    - ``"interleaved_1f1b"``, and ``"interleaved_overlapped"``, which pairs forwards with backwards: likewise,
      ``microbatches`` a multiple of ``ranks``; of ``"interleaved_zero_bubble"`` a multiple of
      ``max(1, microbatches // ranks)``.

    docs/schedules.md says what each costs and where it comes from.

    ``forward_only``: micro-batches only go forward, for inference. Raises
    :class:`~dualpipe.errors.InvalidArgument`, with the range, for anything else. ``str(schedule)`` has a line for
    each rank.
    """

    def __init__(
        self, kind: str, ranks: int, microbatches: int, forward_only: bool = False, *, stages_per_rank: int = 0
    ) -> None:
        if kind not in KINDS:
            raise InvalidArgument(f"kind is {kind!r}, must be one of {', '.join(map(repr, KINDS))}")
        options = s.ScheduleOptions(
            c.sizeof(s.ScheduleOptions),
            KINDS[kind],
            uint32("ranks", ranks),
            uint32("microbatches", microbatches),
            bool(forward_only),
            uint32("stages_per_rank", stages_per_rank),
        )
        self._handle = create("dualpipe_schedule_create", "dualpipe_schedule_free", c.byref(options))
        self._info = s.ScheduleInfo(size=c.sizeof(s.ScheduleInfo))
        lib.dualpipe_schedule_describe(self._handle, c.byref(self._info))

    @property
    def kind(self) -> str:
        """As it was created, say ``"dualpipe"``."""
        return next(name for name, number in KINDS.items() if number == self._info.kind)

    @property
    def ranks(self) -> int:
        """Ranks of the pipeline."""
        return int(self._info.num_ranks)

    @property
    def stages(self) -> int:
        """Stages of the model."""
        return int(self._info.num_stages)

    @property
    def directions(self) -> int:
        """1, or 2: then each stage has two parameter copies."""
        return int(self._info.num_directions)

    @property
    def microbatches(self) -> int:
        """Micro-batches of a step, all directions together."""
        return int(self._info.num_microbatches)

    @property
    def forward_only(self) -> bool:
        """Whether micro-batches only go forward."""
        return bool(self._info.forward_only)

    def order(self, rank: int) -> list[OpTuple]:
        """The ops of ``rank``, in order, as tuples: ``("F", copy, i)``, likewise ``"B"`` (full backward), ``"I"``
        (backward for input) and ``"W"`` (for weight); ``("FB", copy, i, copy2, j)`` is the overlapped pair of the
        forward of i in copy and the backward of j in copy2.

        ``copy`` says which of the rank's parameter copies: in ``"dualpipe"`` the direction; in ``"dualpipe_v"`` 0 on
        the way down and 1 on the way back. ``i`` counts micro-batches within their direction.
        """
        ops = read_values("dualpipe_schedule_order", s.Op, self._handle, uint32("rank", rank))
        return [op_tuple(*op) for op in ops.tolist()]

    def rank_of(self, stage: int, direction: int = 0) -> int:
        """The rank that holds the parameters of ``stage`` in ``direction``."""
        rank = c.c_uint32()
        where = uint32("direction", direction), uint32("stage", stage)
        lib.dualpipe_schedule_rank_of(self._handle, *where, c.byref(rank))
        return rank.value

    def copies(self, rank: int) -> list[tuple[int, int]]:
        """The parameter copies of ``rank``, in their order: (direction, stage) of each."""
        if not 0 <= uint32("rank", rank) < self.ranks:
            raise InvalidArgument(f"rank is {rank}, must be 0 to {self.ranks - 1}")
        passes = [(direction, stage) for direction in range(self.directions) for stage in range(self.stages)]
        return [(direction, stage) for direction, stage in passes if self.rank_of(stage, direction) == rank]

    def check(self) -> npt.NDArray[np.int64]:
        """Proves that the schedule can run: every pass exactly once and in order, and no rank waits for ever.

        Returns [ranks] the most micro-batch activations alive at once on each rank. Raises
        :class:`~dualpipe.errors.InvalidSchedule` with rank, position, op and reason.
        """
        return read_values("dualpipe_schedule_check", np.uint32, self._handle).astype(np.int64)

    def simulate(self, costs: Costs) -> Timeline:
        """Plays the schedule: every op starts as soon as its rank is free and its messages are there.

        Raises :class:`~dualpipe.errors.InvalidArgument` if ``costs`` are of another number of stages.
        """
        if not isinstance(costs, Costs):
            raise TypeError(f"costs is {costs!r}, must be dualpipe.Costs")
        struct = costs._struct()
        return Timeline(create("dualpipe_simulate", "dualpipe_timeline_free", self._handle, c.byref(struct)))

    def svg(self, path: PathLike | None = None) -> str:
        """The schedule as SVG, with F = I = W = 1 second and no overlap; also written to ``path``."""
        return self._unit_timeline().svg(path)

    def trace(self, path: PathLike | None = None) -> str:
        """The schedule as a Chrome trace, with F = I = W = 1 second and no overlap; also written to ``path``."""
        return self._unit_timeline().trace(path)

    def program(self, rank: int) -> Program:
        """What ``rank`` does in a step, with its messages."""
        return Program(self, rank)

    def __str__(self) -> str:
        return read_text("dualpipe_schedule_to_text", self._handle)

    def __repr__(self) -> str:
        more = ", forward_only=True" if self.forward_only else ""
        if self.kind in LOOPED:
            more += f", stages_per_rank={self.stages // self.ranks}"
        return f"dualpipe.Schedule({self.kind!r}, ranks={self.ranks}, microbatches={self.microbatches}{more})"

    def _repr_svg_(self) -> str:
        """What a notebook shows."""
        return self.svg()

    def _unit_timeline(self) -> Timeline:
        return self.simulate(Costs(f=1, i=1, w=1))


class MessageTuple(NamedTuple):
    """What one stage hands to its neighbour."""

    kind: str
    """``"ACTIVATION"`` or ``"GRADIENT"``."""
    direction: int
    from_stage: int
    to_stage: int
    microbatch: int


class Instruction(NamedTuple):
    """One instruction of a program; what its kind does not have is None."""

    kind: str
    """``"RECEIVE"`` and ``"SEND"`` start and do not wait; ``"RUN"`` waits for what its op reads; ``"FREE"`` for
    what is being sent from its buffer."""
    peer: int | None
    """RECEIVE, SEND: the other rank."""
    buffer: int | None
    """RECEIVE, SEND, FREE: an index into the program's buffers."""
    message: MessageTuple | None
    """RECEIVE, SEND: what travels."""
    op: OpTuple | None
    """RUN: what runs, as in :meth:`Schedule.order`, or ``("REDUCE_GRADS", copy)``."""


class Program(Closing):
    """What one rank does in a step: the ops of its schedule with receives, sends, frees and gradient reductions.

    It was proven to be complete, and to deadlock neither with asynchronous nor with blocking exchanges; raises
    :class:`~dualpipe.errors.InvalidSchedule` otherwise. It never changes; any thread may use it.
    """

    def __init__(self, schedule: Schedule, rank: int) -> None:
        self.rank = uint32("rank", rank)
        self._handle = create("dualpipe_program_create", "dualpipe_program_free", schedule._handle, self.rank)

    def instructions(self) -> list[Instruction]:
        """The instructions, in order."""
        raw = read_values("dualpipe_program_instructions", s.Instruction, self._handle)
        return [_instruction(*row) for row in raw.tolist()]

    def buffers(self) -> list[tuple[str, int, int]]:
        """The message buffers that it needs, by index: (``"ACTIVATION"`` or ``"GRADIENT"``, direction, stage)."""
        raw = read_values("dualpipe_program_buffers", s.ProgramBuffer, self._handle)
        return [(MESSAGE_KINDS[kind], direction, stage) for kind, direction, stage in raw.tolist()]


def op_tuple(kind: int, forward: tuple[int, ...], backward: tuple[int, ...]) -> OpTuple:
    """An op as :meth:`Schedule.order` has it; passes are (direction, stage, microbatch, copy)."""
    name = OP_KINDS[kind]
    if name == "REDUCE_GRADS":
        return (name, backward[3])
    passes = [one for one in (forward, backward) if one[0] != s.NONE]
    return (name, *(part for one in passes for part in (one[3], one[2])))


def _instruction(kind: int, peer: int, buffer: int, message: Any, op: Any) -> Instruction:
    what, to_stage, (direction, stage, microbatch, _) = message
    is_message = what != s.NONE
    return Instruction(
        INSTRUCTION_KINDS[kind],
        None if peer == s.NONE else peer,
        None if buffer == s.NONE else buffer,
        MessageTuple(MESSAGE_KINDS[what], direction, stage, to_stage, microbatch) if is_message else None,
        op_tuple(*op) if op[0] != s.NONE else None,
    )
