"""Schedules as the CSV that ``torch.distributed.pipelining`` loads. Needs no torch.

One row for each rank, in the order of the ranks; a cell is one action: ``3F0`` is the forward of micro-batch 0 in stage
3, likewise ``I`` (backward for input), ``W`` (for weight), ``B`` (full backward); ``(0F3;3B1)OVERLAP_F_B`` is an
overlapped pair. What else a cell may hold depends on the version of torch, and a version does not reject what only
later ones know: torch up to 2.14 reads ``0WAIT_SEND_F1`` as ``0W``. So a file is written for the version
that loads it.

Source: ``_Action``, ``_load_csv`` and ``_prepare_schedule_with_comms`` of
``torch/distributed/pipelining/schedules.py`` in torch 2.6 to 2.15.
"""

from __future__ import annotations

from typing import NamedTuple

from ..errors import InvalidArgument, InvalidSchedule
from ..schedule import OpTuple, Schedule

FORMATS = ("compute_only", "compute_comms")
"""``compute_only``: torch puts the messages in when it loads the file. ``compute_comms``: they are in the file."""
OLDEST_TORCH = (2, 6)
"""The first version that loads a CSV with I."""
NEWEST_TORCH = (2, 15)
"""The last version whose ``compute_comms`` is known."""


class Action(NamedTuple):
    """One action of torch's; str(action) is its cell."""

    stage: int
    kind: str
    microbatch: int | None = None

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{'' if self.microbatch is None else self.microbatch}"


Step = tuple[Action, ...]
"""What is one cell: an action, or the forward and the backward of an overlapped pair."""


def schedule_csv(
    schedule: Schedule, torch_version: tuple[int, ...] | str = NEWEST_TORCH, format: str = "compute_only"
) -> str:
    """``schedule`` as the CSV that ``_PipelineScheduleRuntime._load_csv(path, format)`` of that torch loads.

    ``torch_version``: ``(2, 10)`` or ``"2.10.0+cpu"``, at least 2.6; for ``"compute_comms"`` at most 2.15. Pairs stay
    pairs in ``"compute_only"`` from 2.9 and in ``"compute_comms"`` from 2.10; before, torch has none and they are
    forward, then backward. ``"compute_comms"`` has the sends and receives, the gathering and releasing of sharded
    parameters (``UNSHARD`` before the first action, ``RESHARD`` after a stage's last one), from 2.10 the gradient
    reductions, from 2.15 the waits.

    Raises :class:`~dualpipe.errors.InvalidArgument` for other versions and formats, and for schedules that torch does
    not run: of two directions, of inference, or with a last stage that takes micro-batches out of their order.
    """
    version = parsed_version(torch_version)
    if format not in FORMATS:
        raise InvalidArgument(f"format is {format!r}, must be one of {', '.join(map(repr, FORMATS))}")
    if version < OLDEST_TORCH:
        raise InvalidArgument(f"torch_version is {torch_version!r}, must be at least {_dotted(OLDEST_TORCH)}")
    if format == "compute_comms" and version > NEWEST_TORCH:
        raise InvalidArgument(
            f"torch_version is {torch_version!r}, must be at most {_dotted(NEWEST_TORCH)} for format 'compute_comms', "
            "whose cells change from version to version; 'compute_only' has no such limit"
        )
    messages = format == "compute_comms"
    rows = compute_rows(schedule, pairs=version >= ((2, 10) if messages else (2, 9)))
    if messages:
        rows = _with_parameters_and_grads(rows, schedule.microbatches, version)
        rows = _with_messages(rows, [schedule.rank_of(stage) for stage in range(schedule.stages)])
        if version >= (2, 15):
            rows = [_with_send_waits(row) for row in rows]
    return "".join(",".join(map(cell, row)) + "\n" for row in rows)


def stages_of(schedule: Schedule, rank: int) -> list[int]:
    """The stages whose parameters ``rank`` holds, in the order of its parameter copies: those that it builds.

    Raises :class:`~dualpipe.errors.InvalidArgument` if the rank is not one of the schedule's, or if the schedule has
    two directions, which torch's pipelining cannot run.
    """
    _refuse_two_directions(schedule)
    return [stage for _, stage in schedule.copies(rank)]


def parsed_version(version: tuple[int, ...] | str) -> tuple[int, int]:
    """Major and minor number: (2, 10) for ``(2, 10, 1)`` as for ``"2.10.0+cpu"`` and ``"2.10.0a0+git12"``."""
    parts = version.split(".")[:2] if isinstance(version, str) else [str(part) for part in version[:2]]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise InvalidArgument(f"torch_version is {version!r}, must be like (2, 10) or '2.10.0'")
    return int(parts[0]), int(parts[1])


def compute_rows(schedule: Schedule, pairs: bool) -> list[list[Step]]:
    """For each rank its computations; overlapped pairs as such, or if not ``pairs``, as forward, then backward.

    Raises as :func:`schedule_csv`.
    """
    _refuse_two_directions(schedule)
    if schedule.forward_only:
        raise InvalidArgument(
            "schedule is forward_only, which torch does not load; eval() of a training schedule runs its forwards"
        )
    rows: list[list[Step]] = []
    for rank in range(schedule.ranks):
        stages = stages_of(schedule, rank)
        steps = (_step(op, stages) for op in schedule.order(rank))
        rows.append([part for step in steps for part in ((step,) if pairs else ((action,) for action in step))])
    _refuse_losses_out_of_order(schedule, rows)
    return rows


def cell(step: Step) -> str:
    """What the CSV has for it."""
    return str(step[0]) if len(step) == 1 else f"({';'.join(map(str, step))})OVERLAP_F_B"


def _step(op: OpTuple, stages: list[int]) -> Step:
    kind, *passes = op
    kinds = ("F", "B") if kind == "FB" else (kind,)
    return tuple(Action(stages[passes[2 * i]], kind, passes[2 * i + 1]) for i, kind in enumerate(kinds))


def _refuse_two_directions(schedule: Schedule) -> None:
    if schedule.directions != 1:
        raise InvalidArgument(
            f"schedule is {schedule.kind!r}, of two directions: each stage is on two ranks, while torch's pipelining "
            "has each stage on one rank; 'dualpipe_v' is DualPipe folded onto half as many ranks"
        )


def _refuse_losses_out_of_order(schedule: Schedule, rows: list[list[Step]]) -> None:
    last = schedule.stages - 1
    row = rows[schedule.rank_of(last)]
    forwards = [action.microbatch for step in row for action in step if action[:2] == (last, "F")]
    if forwards != sorted(forwards, key=lambda microbatch: microbatch or 0):
        raise InvalidArgument(
            f"schedule runs the forwards of stage {last} in the order {forwards}: torch takes losses and outputs of "
            "its last stage to come in the order of their micro-batches"
        )


def _with_parameters_and_grads(rows: list[list[Step]], microbatches: int, version: tuple[int, int]) -> list[list[Step]]:
    """With the stages' parameters gathered before all, their gradients reduced after the last of their backwards, and
    the parameters released after the last of their actions; before 2.10, torch itself does that at the end of the row.
    Stages that are not sharded ignore both.
    """
    result = []
    for row in rows:
        last_use = {action.stage: i for i, step in enumerate(row) for action in step}
        weights_left = dict.fromkeys((action.stage for step in row for action in step), microbatches)
        lowered: list[Step] = [(Action(stage, "UNSHARD"),) for stage in weights_left]
        for i, step in enumerate(row):
            lowered.append(step)
            for action in step:
                if action.kind in ("B", "W"):
                    weights_left[action.stage] -= 1
                    if weights_left[action.stage] == 0 and version >= (2, 10):
                        lowered.append((Action(action.stage, "REDUCE_GRAD"),))
                        if version >= (2, 15):
                            lowered.append((Action(action.stage, "WAIT_REDUCE_GRAD"),))
            if i + 1 < len(row) or version >= (2, 10):
                lowered += [(Action(stage, "RESHARD"),) for stage in weights_left if last_use[stage] == i]
        result.append(lowered)
    return result


def _with_messages(rows: list[list[Step]], rank_of: list[int]) -> list[list[Step]]:
    """With a send behind what computes a message, and a receive as early as it is sure not to hang: where the peer's
    row has come to by then. So two ranks have their messages to one another in one order, as NCCL's p2p wants it.
    """
    result: list[list[Step]] = [[] for _ in rows]
    next_step = [0] * len(rows)
    ended: set[tuple[str, int, int | None]] = set()

    def pass_of(action: Action) -> tuple[str, int] | None:
        """What it hands over, and to which stage: ("F", the next stage), ("B", the one before), or None."""
        return {"F": ("F", action.stage + 1), "B": ("B", action.stage - 1), "I": ("B", action.stage - 1)}.get(
            action.kind
        )

    def can_run(action: Action) -> bool:
        handed = pass_of(action)
        if handed is None:
            return True
        kind, _ = handed
        before = action.stage - 1 if kind == "F" else action.stage + 1
        return not 0 <= before < len(rank_of) or (kind, before, action.microbatch) in ended

    while any(next_step[rank] < len(row) for rank, row in enumerate(rows)):
        progress = False
        for rank, row in enumerate(rows):
            if next_step[rank] == len(row) or not all(map(can_run, row[next_step[rank]])):
                continue
            step = row[next_step[rank]]
            next_step[rank] += 1
            progress = True
            result[rank].append(step)
            for action in step:
                handed = pass_of(action)
                if handed is None:
                    continue
                kind, to_stage = handed
                ended.add((kind, action.stage, action.microbatch))
                if 0 <= to_stage < len(rank_of) and rank_of[to_stage] != rank:
                    result[rank].append((Action(action.stage, f"SEND_{kind}", action.microbatch),))
                    result[rank_of[to_stage]].append((Action(to_stage, f"RECV_{kind}", action.microbatch),))
        if not progress:
            stuck = [cell(row[next_step[rank]]) for rank, row in enumerate(rows) if next_step[rank] < len(row)]
            raise InvalidSchedule(f"schedule waits for ever at {', '.join(stuck)}")
    return result


def _with_send_waits(row: list[Step]) -> list[Step]:
    """With a wait for each send. An activation's is behind the backward of the same stage and micro-batch: by then the
    peer has used it, so that the wait is short. A gradient's is at the end.
    """
    result: list[Step] = []
    pending: list[Action] = []
    for step in row:
        result.append(step)
        for action in step:
            if action.kind in ("SEND_F", "SEND_B"):
                pending.append(action)
            sent = Action(action.stage, "SEND_F", action.microbatch)
            if action.kind in ("B", "I") and sent in pending:
                pending.remove(sent)
                result.append((sent._replace(kind="WAIT_SEND_F"),))
    return result + [(sent._replace(kind=f"WAIT_{sent.kind}"),) for sent in pending]


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
