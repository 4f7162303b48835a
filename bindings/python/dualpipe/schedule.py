"""Schedules: who computes what in which order; and programs, which are schedules with their messages."""

from __future__ import annotations

import ctypes as c
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import numpy as np
import numpy.typing as npt

from . import _structs as s
from ._library import Closing, Handle, create, lib, read_text, read_values, to_c, uint32
from .costs import Costs
from .errors import InvalidArgument
from .timeline import MESSAGE_KINDS, OP_KINDS, PathLike, Timeline

if TYPE_CHECKING:
    from typing_extensions import Self

    from .verification import Action, Verification

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
CUSTOM = 1000
"""``DUALPIPE_KIND_CUSTOM``: of ``"custom"`` schedules, which come from outside."""
LOOPED = ("interleaved_1f1b", "interleaved_overlapped", "interleaved_zero_bubble", "looped_bfs")
"""The kinds with any number of stages on each rank."""
INSTRUCTION_KINDS = {1: "RECEIVE", 2: "RUN", 3: "SEND", 4: "FREE"}
"""The names of ``dualpipe_instruction_kind``."""

OpTuple = tuple[Any, ...]
"""``("F", copy, i)``, likewise B, I, W; ``("FB", copy, i, copy2, j)``; ``("REDUCE_GRADS", copy)`` in programs."""
Placement = Union[Sequence[int], Sequence[Sequence[int]]]
"""The rank of each stage; of two directions one such list for each."""


class Schedule(Closing):
    """A schedule: for every rank, the order of its ops. It never changes; any thread may use it.

    A published one by its kind; :meth:`from_orders` and :meth:`from_text` take any other.

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
        self._own(create("dualpipe_schedule_create", "dualpipe_schedule_free", c.byref(options)))

    @classmethod
    def from_orders(
        cls,
        orders: Iterable[Iterable[OpTuple]],
        *,
        placement: Placement,
        microbatches: int,
        forward_only: bool = False,
        name: str = "custom",
    ) -> Self:
        """A schedule of any orders on any placement of stages on ranks: of a search of your own, say.

        ``orders``: the ops of each rank, as :meth:`order` has them. A copy is a number, counted among its rank's as
        there, or (direction, stage). ``placement``: the rank of each stage, ``[0, 1, 1, 0]`` for a V on two ranks; for
        two directions a list of two such lists. A rank may have any stages, or none. ``microbatches`` counts both
        directions together; of an odd number direction 0 has one more. ``name`` is for errors and pictures.

        It need not be one that can run: that is :meth:`check`'s to say, and that of all that is made from it. Raises
        :class:`~dualpipe.errors.InvalidArgument` for what is no op, with rank and position, and for sizes outside their
        ranges.

        >>> Schedule.from_orders([[("F", 0, 0), ("B", 0, 0)]], placement=[0], microbatches=1)
        """
        of_ranks = [list(order) for order in orders]
        rows = _placement_rows(placement)
        copies: list[list[tuple[int, int]]] = [[] for _ in of_ranks]
        for direction, row in enumerate(rows):
            for stage, rank in enumerate(row):
                if not 0 <= rank < len(of_ranks):
                    where = f"placement has rank {rank} for stage {stage} of direction {direction}"
                    raise InvalidArgument(f"{where}, but there are {len(of_ranks)} orders")
                copies[rank].append((direction, stage))
        in_c = (s.Order * len(of_ranks))()
        keep = []
        for rank, order in enumerate(of_ranks):
            ops = (s.Op * len(order))(*(s.Op(*_op(op, copies[rank], rank, i)) for i, op in enumerate(order)))
            keep.append(ops)
            in_c[rank] = s.Order(c.cast(ops, c.POINTER(s.Op)), len(order))
        given = s.ScheduleOrders(
            c.sizeof(s.ScheduleOrders),
            len(of_ranks),
            len(rows[0]),
            len(rows),
            uint32("microbatches", microbatches),
            bool(forward_only),
            (c.c_uint32 * (len(rows) * len(rows[0])))(*(rank for row in rows for rank in row)),
            in_c,
            to_c(name),
        )
        return cls._of(create("dualpipe_schedule_create_from_orders", "dualpipe_schedule_free", c.byref(given)))

    @classmethod
    def from_text(cls, text: str, name: str = "custom") -> Self:
        """The schedule of a text such as ``str(schedule)`` has: a line for each rank, with the tokens of its ops.

        Ranks, stages and micro-batches are as many as the text has; a stage is on the rank that has its ops; without
        any backward it is forward only. Whether it can run is :meth:`check`'s to say. Raises
        :class:`~dualpipe.errors.InvalidArgument` with line and column for anything else.

        >>> Schedule.from_text("0| 0F0 0F1 0B0 0B1\\n1| 1F0 1B0 1F1 1B1")
        """
        raw = text.encode("utf-8", "replace")
        made = create("dualpipe_schedule_create_from_text", "dualpipe_schedule_free", raw, len(raw), to_c(name))
        return cls._of(made)

    @classmethod
    def _of(cls, handle: Handle) -> Self:
        schedule = cls.__new__(cls)
        schedule._own(handle)
        return schedule

    def _own(self, handle: Handle) -> None:
        self._handle = handle
        self._info = s.ScheduleInfo(size=c.sizeof(s.ScheduleInfo))
        lib.dualpipe_schedule_describe(self._handle, c.byref(self._info))

    @property
    def kind(self) -> str:
        """As it was created, say ``"dualpipe"``; ``"custom"`` if it comes from outside."""
        return next((name for name, number in KINDS.items() if number == self._info.kind), "custom")

    @property
    def name(self) -> str:
        """What errors and pictures call it."""
        return read_text("dualpipe_schedule_name", self._handle)

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
        return _op_tuples(ops)

    def rank_of(self, stage: int, direction: int = 0) -> int:
        """The rank that holds the parameters of ``stage`` in ``direction``."""
        rank = c.c_uint32()
        where = uint32("direction", direction), uint32("stage", stage)
        lib.dualpipe_schedule_rank_of(self._handle, *where, c.byref(rank))
        return rank.value

    @property
    def placement(self) -> list[list[int]]:
        """[directions][stages] The rank of each stage."""
        return [[self.rank_of(stage, way) for stage in range(self.stages)] for way in range(self.directions)]

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

    def verify(
        self,
        *,
        transports: str | Iterable[str] | None = None,
        actions: Iterable[Iterable[Action]] | None = None,
        costs: Costs | None = None,
        cap: int | Sequence[int] | None = None,
        cap_bytes: int | Sequence[int] | None = None,
        counterexamples: bool = True,
    ) -> Verification:
        """Finds everything that is wrong: with the schedule, with ``actions`` if there are any, and with memory.

        ``transports``: those to hold for, of ``"asynchronous"`` (neither a send nor a receive waits),
        ``"rendezvous"`` (a send waits for its receive), ``"grouped"`` (what stands between two ops is one blocking
        group), and the same with ``_tagged`` behind, where a receive finds its message by name instead of by its place;
        None: all. ``actions``: the communicating order of each rank, as :meth:`Program.actions` has it; without, three
        places of the receives are tried, and one must do. ``cap``, ``cap_bytes``: the most that a rank may
        keep, one for all or one for each; of bytes, parameters included, by ``costs``.

        Raises :class:`~dualpipe.errors.InvalidArgument`, with rank and position, for what is no action, and for sizes
        that do not fit. Whatever else is wrong is a finding, with a smallest counterexample.

        >>> bool(Schedule("dualpipe", ranks=4, microbatches=8).verify(transports="rendezvous", cap=5))
        True
        """
        from .verification import verify

        return verify(
            self,
            transports=transports,
            actions=actions,
            costs=costs,
            cap=cap,
            cap_bytes=cap_bytes,
            counterexamples=counterexamples,
        )

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
        if self.kind == "custom":
            sizes = f"{self.ranks} ranks, {self.stages} stages, {self.microbatches} micro-batches"
            return f"<dualpipe.Schedule {self.name!r}: {sizes}{', forward only' if more else ''}>"
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

    def actions(self) -> list[Action]:
        """The same without buffers, as :meth:`Schedule.verify` takes it: ``("RUN", op)``, ``("SEND", message, to)``,
        ``("RECEIVE", message, from)`` and, where a buffer is freed that is being sent, ``("WAIT_SEND", message)``."""
        from .verification import actions_of

        return actions_of(self)

    def buffers(self) -> list[tuple[str, int, int]]:
        """The message buffers that it needs, by index: (``"ACTIVATION"`` or ``"GRADIENT"``, direction, stage)."""
        raw = read_values("dualpipe_program_buffers", s.ProgramBuffer, self._handle)
        return [(MESSAGE_KINDS[kind], direction, stage) for kind, direction, stage in raw.tolist()]


def _op_tuples(ops: npt.NDArray[Any]) -> list[OpTuple]:
    """Each as :func:`op_tuple` has it, four times as fast: column by column."""
    forward, backward = ops["forward"], ops["backward"]
    has_forward = forward["direction"] != s.NONE
    first = [np.where(has_forward, forward[name], backward[name]).tolist() for name in ("copy", "microbatch")]
    second = [backward[name].tolist() for name in ("copy", "microbatch")]
    names = [OP_KINDS[kind] for kind in ops["kind"].tolist()]
    return [
        (name, copy, i, copy2, j) if name == "FB" else (name, copy, i)
        for name, copy, i, copy2, j in zip(names, *first, *second)
    ]


def op_tuple(kind: int, forward: tuple[int, ...], backward: tuple[int, ...]) -> OpTuple:
    """An op as :meth:`Schedule.order` has it; passes are (direction, stage, microbatch, copy)."""
    name = OP_KINDS[kind]
    if name == "REDUCE_GRADS":
        return (name, backward[3])
    passes = [one for one in (forward, backward) if one[0] != s.NONE]
    return (name, *(part for one in passes for part in (one[3], one[2])))


KINDS_OF_OPS = {name: number for number, name in OP_KINDS.items() if name != "REDUCE_GRADS"}
"""The ``dualpipe_op_kind`` of each op that an order may have."""
NO_PASS = (s.NONE, s.NONE, s.NONE, s.NONE)
"""A ``dualpipe_pass`` where there is none."""


def _op(
    op: OpTuple, copies: list[tuple[int, int]], rank: int, position: int, list_name: str = "orders"
) -> tuple[Any, ...]:
    """The fields of a ``dualpipe_op``; ``copies`` are the rank's."""
    at = f"{list_name}[{rank}][{position}]"

    def refused(why: str) -> InvalidArgument:
        return InvalidArgument(f"{at} is {op!r}, {why}")

    def passed(copy: Any, microbatch: Any) -> tuple[int, int, int, int]:
        if isinstance(copy, (tuple, list)):
            if len(copy) != 2:
                raise refused("must have a copy's number, or its direction and stage")
            direction, stage = (uint32(f"{at}: {what}", of) for what, of in zip(WHERE, copy))
        else:
            number = uint32(f"{at}: copy", copy)
            if number >= len(copies):
                raise refused(f"but rank {rank} has {len(copies)} parameter copies")
            direction, stage = copies[number]
        return direction, stage, uint32(f"{at}: micro-batch", microbatch), s.NONE

    if not isinstance(op, (tuple, list)) or not op or op[0] not in KINDS_OF_OPS:
        raise refused(f"must begin with one of {', '.join(map(repr, KINDS_OF_OPS))}")
    kind, *parts = op
    if len(parts) != (4 if kind == "FB" else 2):
        raise refused('must be (kind, copy, micro-batch), or ("FB", copy, micro-batch, copy, micro-batch)')
    first = passed(*parts[:2])
    if kind == "FB":
        return KINDS_OF_OPS[kind], first, passed(*parts[2:])
    return KINDS_OF_OPS[kind], first if kind == "F" else NO_PASS, NO_PASS if kind == "F" else first


WHERE = ("direction", "stage")
"""What says which parameter copy of all there are."""


def _placement_rows(placement: Any) -> list[list[int]]:
    """``placement`` as a row of ranks for each direction."""
    rows = list(placement)
    if not rows or not hasattr(rows[0], "__len__"):
        rows = [rows]
    rows = [[uint32(f"placement[{i}][{k}]", rank) for k, rank in enumerate(row)] for i, row in enumerate(rows)]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1:
        raise InvalidArgument(f"placement has rows of {' and '.join(map(str, lengths))} stages, must be of as many")
    return rows


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
