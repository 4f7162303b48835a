"""Which schedule a call runs, and which stages of the model that puts on which rank."""

from __future__ import annotations

from typing import Union

from ..errors import InvalidArgument
from ..schedule import Schedule

ScheduleLike = Union[str, Schedule]
"""``"dualpipe_v"``, ``"1f1b"``, or a :class:`dualpipe.Schedule` of one direction."""

NAMES = ("dualpipe_v", "1f1b")
"""The schedules that have a name here: they are made for the micro-batches of each call."""

_WHY_NOT_TWO_DIRECTIONS = (
    "has two directions, must have one: it keeps every stage twice, in two copies of the parameters on two ranks, and "
    "Megatron's optimizer, checkpoints and data loaders know one copy. 'dualpipe_v' is DualPipe with one"
)


class Plan:
    """A schedule by name, for any number of ranks and micro-batches, or one that is given.

    Raises :class:`~dualpipe.InvalidArgument` for a bidirectional schedule or an unknown name, TypeError for anything
    else.
    """

    def __init__(self, schedule: ScheduleLike) -> None:
        if isinstance(schedule, str):
            if schedule == "dualpipe":
                raise InvalidArgument(f"schedule 'dualpipe' {_WHY_NOT_TWO_DIRECTIONS}")
            if schedule not in NAMES:
                raise InvalidArgument(f"schedule is {schedule!r}, must be one of {', '.join(map(repr, NAMES))}")
        elif isinstance(schedule, Schedule):
            if schedule.directions != 1:
                raise InvalidArgument(f"schedule {schedule!r} {_WHY_NOT_TWO_DIRECTIONS}")
        else:
            raise TypeError(f"schedule is {schedule!r}, must be a name or a dualpipe.Schedule")
        self._schedule = schedule
        self._made: dict[tuple[int, int, bool], Schedule] = {}

    def rank_of(self, ranks: int) -> list[int]:
        """The rank of each stage, in a pipeline of ``ranks`` ranks. :class:`~dualpipe.InvalidArgument`."""
        schedule = self._schedule
        if isinstance(schedule, str):
            down = list(range(ranks))
            return down + down[::-1] if schedule == "dualpipe_v" else down
        if schedule.ranks != ranks:
            raise InvalidArgument(
                f"schedule is for {schedule.ranks} ranks, must be for {ranks}, Megatron's pipeline size"
            )
        return [schedule.rank_of(stage) for stage in range(schedule.stages)]

    def stages_on(self, rank: int, ranks: int) -> list[int]:
        """The stages on ``rank``, by parameter copy, which is the order of Megatron's model chunks."""
        return [stage for stage, where in enumerate(self.rank_of(ranks)) if where == rank]

    def schedule(self, ranks: int, microbatches: int, forward_only: bool) -> Schedule:
        """What a call with ``microbatches`` runs. :class:`~dualpipe.InvalidArgument` if there is no such schedule."""
        given = self._schedule
        if isinstance(given, Schedule):
            where = self.rank_of(ranks)
            if given.forward_only == forward_only and given.microbatches == microbatches:
                return given
            if not forward_only:
                if given.forward_only:
                    raise InvalidArgument(f"schedule {given!r} only goes forward, and forward_only is False")
                raise InvalidArgument(
                    f"num_microbatches is {microbatches}, must be {given.microbatches}, as many as the schedule has"
                )
            kind = next((name for name in NAMES if Plan(name).rank_of(ranks) == where), None)
            if kind is None:
                raise InvalidArgument(
                    f"forward_only with {microbatches} micro-batches needs a schedule of its own: {given!r} has its "
                    f"stages neither in a line nor in a V"
                )
        else:
            kind = given
        key = ranks, microbatches, forward_only
        if key not in self._made:
            if kind == "dualpipe_v" and not forward_only and microbatches < 2 * ranks - 1:
                raise InvalidArgument(
                    f"num_microbatches is {microbatches}, must be at least {2 * ranks - 1} for 'dualpipe_v' on {ranks} "
                    f"pipeline ranks (2 * ranks - 1): raise the global batch or lower the micro-batch size"
                )
            self._made[key] = Schedule(kind, ranks, microbatches, forward_only)
        return self._made[key]
