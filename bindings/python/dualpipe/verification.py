"""Schedules verified: whether one can be trusted, under which transports, and what is wrong in an example to follow."""

from __future__ import annotations

import ctypes as c
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import numpy as np
import numpy.typing as npt

from . import _structs as s
from ._library import Handle, create, lib, read_text, read_values, uint32
from .costs import Costs
from .errors import InvalidArgument
from .schedule import NO_PASS, MessageTuple, Schedule, _op, op_tuple
from .timeline import MESSAGE_KINDS, OP_KINDS

if TYPE_CHECKING:
    from .schedule import Program

TRANSPORTS = {
    "asynchronous": 1,
    "rendezvous": 2,
    "grouped": 4,
    "asynchronous_tagged": 8,
    "rendezvous_tagged": 16,
    "grouped_tagged": 32,
}
"""How messages travel, with their ``dualpipe_verify_transport``."""
RECEIVES = {1: "given", 2: "lowered", 3: "before_use", 4: "at_start"}
"""The names of ``dualpipe_receives``."""
FINDING_KINDS = {
    1: "foreign_op",
    2: "missing_op",
    3: "doubled_op",
    4: "op_order",
    5: "dependency_cycle",
    6: "task_order",
    7: "foreign_message",
    8: "missing_message",
    9: "doubled_message",
    10: "send_before_made",
    11: "receive_after_use",
    12: "wait_without_send",
    13: "foreign_reduction",
    14: "missing_reduction",
    15: "doubled_reduction",
    16: "premature_reduction",
    17: "crossed_reductions",
    18: "fifo_mismatch",
    19: "deadlock",
    20: "exceeds_cap",
}
"""The names of ``dualpipe_schedule_finding_kind``; ``dualpipe/verification.h`` says what each is."""
ACTION_KINDS = {1: "RUN", 2: "SEND", 3: "RECEIVE", 4: "WAIT_SEND"}
"""The names of ``dualpipe_action_kind``."""

Action = tuple[Any, ...]
"""``("RUN", op)``, with the op as in :meth:`dualpipe.Schedule.order` or ``("REDUCE_GRADS", copy)``;
``("SEND", message, to)``, ``("RECEIVE", message, from)`` and ``("WAIT_SEND", message)``."""
Cap = Union[int, Sequence[int], None]
"""Of every rank, or of each."""


class Counterexample(NamedTuple):
    """A smaller schedule with the same kind of fault: the one that was verified, with most micro-batches left out."""

    text: str
    """Which micro-batches it has, its orders and its fault."""
    schedule: Schedule
    """It, with the micro-batches numbered anew from 0."""
    actions: list[list[Action]] | None
    """Its communicating order, if one was given."""
    is_smallest: bool
    """Whether no micro-batch more can be left out; if not, the search was cut short."""


class ScheduleFinding(NamedTuple):
    """One fault."""

    kind: str
    """One of :data:`FINDING_KINDS`, say ``"fifo_mismatch"``."""
    text: str
    """The fault for people: a line, and for faults between ranks a drawing of the actions around it."""
    ranks: list[int]
    """The ranks that it is about; of a deadlock each waits for the next."""
    passes: list[tuple[int, int, int]]
    """The passes that it is about: direction, stage, micro-batch. Of a reduction micro-batch 0 stands for all."""
    transports: list[str]
    """The transports, of those asked for, under which it is a fault."""
    receives: str | None
    """The communicating order that it is about, as in :class:`Trial`; None if the schedule itself is wrong."""
    counterexample: Counterexample | None
    """The first finding of each kind, and of each set of transports, has one."""


class Trial(NamedTuple):
    """How one communicating order fares under one transport, memory and the schedule itself left aside."""

    receives: str
    """Where its receives stand: ``"given"``; ``"lowered"``, as in programs; ``"before_use"``; ``"at_start"``."""
    transport: str
    """One of :data:`TRANSPORTS`."""
    fault: str | None
    """The kind of what is wrong; None if nothing is."""


class Verification:
    """What a verification found; true if that is nothing. ``str(verification)`` is the report."""

    valid: bool
    """Whether all that was asked for holds."""
    transports: list[str]
    """The transports that were asked for."""
    holds_for: list[str]
    """Those of them under which no finding is a fault."""
    findings: list[ScheduleFinding]
    """What is wrong, of each kind the first 8: in order of what depends on what, then of ranks."""
    omitted: int
    """How many findings there are more."""
    trials: list[Trial]
    """Each communicating order under each transport; empty if the schedule is so wrong that it has none."""
    peak_live: npt.NDArray[np.int64]
    """[ranks] The most micro-batch activations alive at once."""
    peak_bytes: npt.NDArray[np.int64] | None
    """[ranks] The most bytes, parameters included; with costs, and if each pass is there once and in order."""

    def __init__(self, handle: Handle) -> None:
        info = s.VerificationInfo(size=c.sizeof(s.VerificationInfo))
        lib.dualpipe_verification_describe(handle, c.byref(info))
        ranks = read_values("dualpipe_verification_ranks", s.VerificationRank, handle)
        trials = read_values("dualpipe_verification_trials", s.VerificationTrial, handle).tolist()
        found = read_values("dualpipe_verification_findings", s.ScheduleFinding, handle).tolist()
        self.valid = bool(info.is_valid)
        self.transports, self.holds_for = _names(info.transports), _names(info.holds_for)
        self.omitted = int(info.num_omitted)
        self.peak_live = ranks["peak_live"].astype(np.int64)
        self.peak_bytes = ranks["peak_bytes"].astype(np.int64) if info.has_bytes else None
        self.trials = [Trial(RECEIVES[where], _names(how)[0], FINDING_KINDS.get(kind)) for where, how, kind in trials]
        self.findings = [_finding(handle, i, row, len(ranks)) for i, row in enumerate(found)]
        self._text = read_text("dualpipe_verification_to_text", handle)
        handle.close()

    def __bool__(self) -> bool:
        return self.valid

    def __str__(self) -> str:
        return self._text if self._text else f"valid under {', '.join(self.transports)}\n"

    def __repr__(self) -> str:
        if self.valid:
            return f"<dualpipe.Verification: valid under {', '.join(self.transports)}>"
        kinds = ", ".join(dict.fromkeys(finding.kind for finding in self.findings))
        return f"<dualpipe.Verification: {len(self.findings) + self.omitted} findings: {kinds}>"


def verify(
    schedule: Schedule,
    *,
    transports: str | Iterable[str] | None = None,
    actions: Iterable[Iterable[Action]] | None = None,
    costs: Costs | None = None,
    cap: Cap = None,
    cap_bytes: Cap = None,
    counterexamples: bool = True,
) -> Verification:
    """What :meth:`dualpipe.Schedule.verify` does."""
    orders = None if actions is None else _action_orders(actions, schedule)
    options = _Options(transports, orders, costs, cap, cap_bytes, counterexamples)
    given = schedule._handle, c.byref(options.in_c)
    return Verification(create("dualpipe_schedule_verify", "dualpipe_verification_free", *given))


def verify_csv(
    text: bytes,
    dialect: tuple[int, int, int],
    transports: str | Iterable[str] | None,
    costs: Costs | None,
    cap: Cap,
    cap_bytes: Cap,
    counterexamples: bool,
) -> Verification:
    """Verifies a CSV of torch's: its major and minor version, and a ``dualpipe_torch_csv_format``."""
    options = _Options(transports, None, costs, cap, cap_bytes, counterexamples)
    given = text, len(text), *dialect, c.byref(options.in_c)
    return Verification(create("dualpipe_schedule_verify_torch_csv", "dualpipe_verification_free", *given))


def actions_of(program: Program) -> list[Action]:
    """What :meth:`dualpipe.Program.actions` gives."""
    return _actions("dualpipe_program_actions", program._handle)


class _Options:
    """The options as C has them, and what they point to."""

    def __init__(
        self,
        transports: str | Iterable[str] | None,
        orders: Any,
        costs: Costs | None,
        cap: Cap,
        cap_bytes: Cap,
        counterexamples: bool,
    ) -> None:
        if costs is not None and not isinstance(costs, Costs):
            raise TypeError(f"costs is {costs!r}, must be dualpipe.Costs")
        self._orders, self._costs = orders, None if costs is None else costs._struct()
        self._activations, self._bytes = _caps("cap", cap), _caps("cap_bytes", cap_bytes)
        self.in_c = s.ScheduleVerifyOptions(
            c.sizeof(s.ScheduleVerifyOptions),
            _bits(transports),
            None if orders is None else c.cast(orders, c.POINTER(s.ActionOrder)),
            0 if orders is None else len(orders),
            None if self._costs is None else c.pointer(self._costs),
            *_list(self._activations),
            *_list(self._bytes),
            not counterexamples,
            0,
        )


def _list(caps: Any) -> tuple[Any, int]:
    return (None, 0) if caps is None else (c.cast(caps, c.POINTER(c.c_uint64)), len(caps))


def _caps(name: str, cap: Cap) -> Any:
    if cap is None:
        return None
    each: list[Any] = list(cap) if not isinstance(cap, int) and hasattr(cap, "__len__") else [cap]
    if not each:
        raise InvalidArgument(f"{name} is empty, must be one for all ranks or one for each")
    for value in each:
        if not hasattr(value, "__index__"):
            raise TypeError(f"{name} has {value!r}, must be an integer")
        if not 0 <= value.__index__() < 2**63:
            raise InvalidArgument(f"{name} has {value}, must be 0 to 2^63 - 1")
    return (c.c_uint64 * len(each))(*each)


def _bits(transports: str | Iterable[str] | None) -> int:
    if transports is None:
        return 0
    bits = 0
    for name in [transports] if isinstance(transports, str) else transports:
        if name not in TRANSPORTS:
            raise InvalidArgument(f"transports has {name!r}, must be of {', '.join(map(repr, TRANSPORTS))}")
        bits |= TRANSPORTS[name]
    if bits == 0:
        raise InvalidArgument("transports is empty, must have at least one, or be None for all")
    return bits


def _names(bits: int) -> list[str]:
    return [name for name, bit in TRANSPORTS.items() if bits & bit]


def _finding(handle: Handle, index: int, row: tuple[int, ...], num_ranks: int) -> ScheduleFinding:
    kind, transports, receives, has_counterexample, is_smallest = row
    ranks = read_values("dualpipe_verification_finding_ranks", np.uint32, handle, index).tolist()
    passes = read_values("dualpipe_verification_finding_passes", s.Pass, handle, index).tolist()
    counterexample = None
    if has_counterexample:
        smaller = create("dualpipe_verification_counterexample", "dualpipe_schedule_free", handle, index)
        actions = None
        if RECEIVES.get(receives) == "given":
            function = "dualpipe_verification_counterexample_actions"
            actions = [_actions(function, handle, index, rank) for rank in range(num_ranks)]
        text = read_text("dualpipe_verification_counterexample_text", handle, index)
        counterexample = Counterexample(text, Schedule._of(smaller), actions, bool(is_smallest))
    return ScheduleFinding(
        FINDING_KINDS[kind],
        read_text("dualpipe_verification_finding_text", handle, index),
        ranks,
        [tuple(one[:3]) for one in passes],
        _names(transports),
        RECEIVES.get(receives),
        counterexample,
    )


def _actions(function: str, *arguments: Any) -> list[Action]:
    return [_action_tuple(*row) for row in read_values(function, s.Action, *arguments).tolist()]


def _action_tuple(kind: int, peer: int, message: Any, op: Any) -> Action:
    name = ACTION_KINDS[kind]
    if name == "RUN":
        return name, op_tuple(*op)
    what, to_stage, (direction, stage, microbatch, _) = message
    travels = MessageTuple(MESSAGE_KINDS[what], direction, stage, to_stage, microbatch)
    return (name, travels) if name == "WAIT_SEND" else (name, travels, peer)


_KINDS_OF_ACTIONS = {name: number for number, name in ACTION_KINDS.items()}
_KINDS_OF_MESSAGES = {name: number for number, name in MESSAGE_KINDS.items()}
_REDUCE_GRADS = next(number for number, name in OP_KINDS.items() if name == "REDUCE_GRADS")
_NO_OP = (s.NONE, NO_PASS, NO_PASS)
_NO_MESSAGE = (s.NONE, s.NONE, NO_PASS)


def _action_orders(actions: Iterable[Iterable[Action]], schedule: Schedule) -> Any:
    of_ranks = [list(order) for order in actions]
    if len(of_ranks) != schedule.ranks:
        raise InvalidArgument(f"actions has {len(of_ranks)} orders, must have {schedule.ranks}, one for each rank")
    orders: Any = (s.ActionOrder * len(of_ranks))()
    keep = []
    copies: list[list[tuple[int, int]]] = [[] for _ in of_ranks]
    for direction, row in enumerate(schedule.placement):
        for stage, rank in enumerate(row):
            copies[rank].append((direction, stage))
    for rank, order in enumerate(of_ranks):
        rows = (_action(action, copies[rank], rank, i) for i, action in enumerate(order))
        in_c = (s.Action * len(order))(*(s.Action(*row) for row in rows))
        keep.append(in_c)
        orders[rank] = s.ActionOrder(c.cast(in_c, c.POINTER(s.Action)), len(order))
    orders.keep = keep
    return orders


def _action(action: Action, copies: list[tuple[int, int]], rank: int, position: int) -> tuple[Any, ...]:
    """The fields of a ``dualpipe_action``; ``copies`` are the rank's."""
    where = f"actions[{rank}][{position}]"

    def refused(why: str) -> InvalidArgument:
        return InvalidArgument(f"{where} is {action!r}, {why}")

    if not isinstance(action, (tuple, list)) or not action or action[0] not in _KINDS_OF_ACTIONS:
        raise refused(f"must begin with one of {', '.join(map(repr, _KINDS_OF_ACTIONS))}")
    kind, *parts = action
    number = _KINDS_OF_ACTIONS[kind]
    if kind == "RUN":
        if len(parts) != 1:
            raise refused('must be ("RUN", op)')
        return number, s.NONE, _NO_MESSAGE, _task(parts[0], copies, rank, position, refused)
    if len(parts) != (1 if kind == "WAIT_SEND" else 2):
        raise refused(f'must be ("{kind}", message{"" if kind == "WAIT_SEND" else ", rank"})')
    message = parts[0]
    if not isinstance(message, (tuple, list)) or len(message) != 5 or message[0] not in _KINDS_OF_MESSAGES:
        raise refused('its message must be ("ACTIVATION" or "GRADIENT", direction, from stage, to stage, micro-batch)')
    what, direction, stage, to_stage, microbatch = message
    numbers = (uint32(where, value) for value in (direction, stage, microbatch))
    in_c = _KINDS_OF_MESSAGES[what], uint32(where, to_stage), (*numbers, s.NONE)
    peer = s.NONE if kind == "WAIT_SEND" else uint32(where, parts[1])
    return number, peer, in_c, _NO_OP


def _task(op: Any, copies: list[tuple[int, int]], rank: int, position: int, refused: Any) -> tuple[Any, ...]:
    if not isinstance(op, (tuple, list)) or len(op) != 2 or op[0] != "REDUCE_GRADS":
        return _op(op, copies, rank, position, "actions")
    copy = op[1]
    if not isinstance(copy, (tuple, list)):
        if not 0 <= uint32(f"actions[{rank}][{position}]: copy", copy) < len(copies):
            raise refused(f"but rank {rank} has {len(copies)} parameter copies")
        copy = copies[copy]
    if len(copy) != 2:
        raise refused("must have a copy's number, or its direction and stage")
    direction, stage = (uint32(f"actions[{rank}][{position}]: copy", of) for of in copy)
    return _REDUCE_GRADS, NO_PASS, (direction, stage, s.NONE, s.NONE)
