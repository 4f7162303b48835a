"""Pipelines of torch modules: DeepSeek's DualPipe and DualPipeV by their names, and any other schedule."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Callable, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from ..errors import InvalidArgument
from ..schedule import LOOPED, Schedule
from .boundary import Boundary, Shapes, boundary_of, current_boundary
from .data_parallel import DataParallel
from .engine import Engine, world
from .microbatches import gather, scatter
from .reduction import PairReduction
from .stages import Batch, Stages
from .weight_grads import split_weight_grads as split_linears

ENGINES_MAX = 4
"""How many kinds of steps (numbers of micro-batches, training and inference) are kept ready."""


class _Ready(NamedTuple):
    schedule: Schedule
    boundary: Boundary
    stages: Stages
    engine: Engine


class Pipeline(nn.Module):
    """One rank of a pipeline. ``modules``: its parameter copies, in order: of "dualpipe" stage ``rank`` and stage
    ``num_ranks - 1 - rank``, of "dualpipe_v" stage ``rank`` and stage ``2 * num_ranks - 1 - rank``, of "1f1b" stage
    ``rank`` alone; of any other :class:`~dualpipe.Schedule` what its ``rank_of`` says.

    ``batch_dim``: the dimension of inputs, labels and outputs that is cut into micro-batches. ``process_group``: the
    ranks of the pipeline, the default group if None. ``rank_mapping``: by rank in the group, the rank in the pipeline.
    These four are DeepSeek's. The device is that of the modules' first parameter: on the CPU messages go by gloo, on
    CUDA by NCCL.

    ``schedule``: a name, or a schedule, which then says how many micro-batches a step has. ``timeout``: seconds that a
    single wait for another rank may last, more than its longest task. ``split_weight_grads``: W computes the weight
    gradients of every ``torch.nn.Linear`` (:func:`~dualpipe.torch.split_weight_grads`); otherwise only of modules that
    use ``WeightGradStore`` or have a ``backward_dw``. ``reduce_gradients``: a step sums the gradients of a stage's two
    parameter copies, with a schedule of two directions. ``frees_outputs``: an output that has been sent keeps its graph
    only; say False if a stage's output is also read by a later op of that stage's own graph.

    Modules wrapped in DistributedDataParallel or fully_shard have their gradients reduced once in a step, when all
    micro-batches have been added; ``DistributedDataParallel.no_sync`` around a step is the same as
    ``sync_gradients=False``.

    All ranks create it at the same point of their program and run the same steps; it is for one thread. Raises
    :class:`~dualpipe.errors.InvalidArgument`, TypeError.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        batch_dim: int = 0,
        process_group: dist.ProcessGroup | None = None,
        rank_mapping: Sequence[int] | None = None,
        *,
        schedule: str | Schedule,
        timeout: float = 60.0,
        split_weight_grads: bool = False,
        reduce_gradients: bool = False,
        frees_outputs: bool = True,
    ) -> None:
        super().__init__()
        self.group = world() if process_group is None else process_group
        self.num_ranks = dist.get_world_size(self.group)
        mapping = list(range(self.num_ranks)) if rank_mapping is None else [int(rank) for rank in rank_mapping]
        if sorted(mapping) != list(range(self.num_ranks)):
            raise InvalidArgument(f"rank_mapping is {mapping}, must be a permutation of 0 to {self.num_ranks - 1}")
        self._group_ranks = [mapping.index(rank) for rank in range(self.num_ranks)]
        self.rank = mapping[dist.get_rank(self.group)]
        self.is_first_rank, self.is_last_rank = self.rank == 0, self.rank == self.num_ranks - 1
        self.module = nn.ModuleList(modules)
        self.batch_dim = int(batch_dim)
        self._device = _device_of(self.module)
        self._schedule, self._timeout, self._frees_outputs = schedule, timeout, bool(frees_outputs)
        smallest = schedule if isinstance(schedule, Schedule) else _smallest(schedule, self.num_ranks)
        self._check_schedule(smallest)
        if reduce_gradients and smallest.directions == 1:
            raise InvalidArgument("reduce_gradients is True, must be False: there is one copy of each stage")
        self._reduction: PairReduction | None = None
        if reduce_gradients:
            stages = [stage for _, stage in smallest.copies(self.rank)]
            self._reduction = PairReduction(list(self.module), stages, self.group, self._group_ranks, timeout)
        if split_weight_grads:
            split_linears(self.module)
        self._data_parallel = [DataParallel(one) for one in self.module]
        self._reduced: set[int] = set()
        self._ready: dict[Any, _Ready] = {}

    def step(
        self,
        *inputs: Any,
        num_chunks: int = 0,
        criterion: Callable[..., torch.Tensor] | None = None,
        labels: Any = (),
        return_outputs: bool = False,
        return_timeline: bool = False,
        microbatch_shapes: Sequence[Shapes] | None = None,
        sync_gradients: bool = True,
    ) -> Any:
        """A step of training or, under ``torch.no_grad``, of inference. Every rank calls it.

        ``inputs``: of the first stage, where that is, each a tensor that is cut along the batch dimension, a list of
        one tensor for each micro-batch, or None. ``num_chunks``: the number of micro-batches, both directions together.
        ``criterion``: ``criterion(*outputs, *labels)`` is the loss of a micro-batch (``criterion(outputs, *labels)`` if
        the last stage gives a dict); needed in training where the last stage is. ``labels``: like inputs, where the
        last stage is. With two directions the rank that has one direction's inputs has the other's labels.
        ``return_outputs``, ``return_timeline``: see below. ``microbatch_shapes``: for each micro-batch, first those of
        direction 0, what it hands from stage to stage where that differs from ``set_p2p_tensor_shapes``; on every rank
        the same. ``sync_gradients``: False adds up only, for all but the last of several steps before an optimizer's:
        nothing is reduced, neither over data parallel ranks nor by ``reduce_gradients``.

        Returns (loss, outputs), with ``return_timeline`` (loss, outputs, timeline). loss: [micro-batches of the
        direction that ends here], where the last stage is, else None. outputs: those of the last stage, joined along
        the batch dimension (a list of micro-batches if their other sizes differ), where that is and if asked for, else
        None. timeline: the rank's :class:`dualpipe.Timeline`
        of this step.

        Raises InvalidArgument and TypeError before anything runs; what a module or the criterion raised; and with rank,
        instruction and peer :class:`~dualpipe.errors.Timeout`, :class:`~dualpipe.errors.PeerFailed`,
        :class:`~dualpipe.errors.TransportFailed`. After such an error all ranks of the pipeline have one (those that
        were through with the step when another failed, in their next step), gradients are of no use, and the next step
        starts afresh.
        """
        forward_only = not torch.is_grad_enabled()
        ready = self._ready_for(int(num_chunks), forward_only, return_timeline)
        batch = self._batch(ready, inputs, criterion, labels, forward_only)
        batch.keeps_outputs = bool(return_outputs)
        self._set_shapes(ready, microbatch_shapes)
        self._run(ready, batch, forward_only, sync_gradients)
        loss, outputs = self._results(batch)
        if not return_timeline:
            return loss, outputs
        return loss, outputs, ready.engine.timeline()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """:meth:`step`."""
        return self.step(*args, **kwargs)

    def close(self) -> None:
        """Frees what its steps use; the next step makes it again. All ranks do it at the same point."""
        ready, self._ready = self._ready, {}
        for one in ready.values():
            one.engine.close()

    def _run(self, ready: _Ready, batch: Batch, forward_only: bool, sync_gradients: bool) -> None:
        ready.stages.begin(batch)
        ready.stages.when_final = self._when_final
        self._reduced.clear()
        if self._reduction is not None:
            self._reduction.begin(ready.engine.link)
        try:
            with ExitStack() as stack:
                self._syncs = [sync_gradients and _syncs(one) for one in self.module]
                if not forward_only:
                    for one in self._data_parallel:
                        stack.enter_context(one.held_back())
                ready.engine.step()
                if not forward_only:
                    for copy in range(len(self.module)):
                        self._reduce_data_parallel(copy)
                if self._reduction is not None and not forward_only:
                    self._reduction.finish()
        except BaseException:
            # A failed step has ended what all engines of the pipeline send by.
            self.close()
            raise
        finally:
            ready.stages.begin(Batch())

    def _when_final(self, copy: int, peer: int) -> None:
        self._reduce_data_parallel(copy)
        if self._reduction is not None and all(self._syncs):
            self._reduction.start(copy, peer)

    def _reduce_data_parallel(self, copy: int) -> None:
        if copy not in self._reduced and self._syncs[copy]:
            self._data_parallel[copy].reduce()
        self._reduced.add(copy)

    def _ready_for(self, microbatches: int, forward_only: bool, timed: bool) -> _Ready:
        boundary = current_boundary()
        key = (
            microbatches,
            forward_only,
            timed and self._device.type == "cuda",
            *boundary.specs,
            *(boundary.names or ()),
        )
        if key not in self._ready:
            schedule = self._schedule_of(microbatches, forward_only)
            stages = Stages(list(self.module), schedule, self.rank, boundary.specs, boundary.names)
            while len(self._ready) >= ENGINES_MAX:
                self._ready.pop(next(iter(self._ready))).engine.close()
            where: dict[str, Any] = {"group": self.group, "ranks": self._group_ranks, "device": self._device}
            where |= {"timeout": self._timeout, "timed": key[2], "frees_outputs": self._frees_outputs}
            engine = Engine(schedule, self.rank, stages, tensors=boundary.specs, **where)
            self._ready[key] = _Ready(schedule, boundary, stages, engine)
        return self._ready[key]

    def _schedule_of(self, microbatches: int, forward_only: bool) -> Schedule:
        if isinstance(self._schedule, Schedule):
            of = self._schedule
            if microbatches not in (0, of.microbatches):
                raise InvalidArgument(f"num_chunks is {microbatches}, must be {of.microbatches}, as the schedule")
            if of.forward_only == forward_only:
                return of
            return _other_work(of, forward_only)
        return Schedule(self._schedule, self.num_ranks, microbatches, forward_only)

    def _check_schedule(self, schedule: Schedule) -> None:
        if schedule.ranks != self.num_ranks:
            raise InvalidArgument(f"schedule has {schedule.ranks} ranks, must have {self.num_ranks}, as the group")
        copies = len(schedule.copies(self.rank))
        if len(self.module) != copies:
            raise InvalidArgument(f"modules has {len(self.module)}, must have {copies}, one for each copy on this rank")

    def _batch(self, ready: _Ready, inputs: Any, criterion: Any, labels: Any, forward_only: bool) -> Batch:
        schedule, batch = ready.schedule, Batch()
        batch.criterion = criterion
        count = schedule.microbatches // schedule.directions
        for direction, stage in ready.stages.stage_of:
            if stage == 0:
                batch.inputs[direction] = scatter(inputs, count, self.batch_dim)
            if stage == schedule.stages - 1:
                batch.labels[direction] = scatter(labels, count, self.batch_dim, "labels")
                if criterion is None and not forward_only:
                    raise InvalidArgument("criterion is None, must be given in training where the last stage is")
        return batch

    def _set_shapes(self, ready: _Ready, shapes: Sequence[Shapes] | None) -> None:
        schedule = ready.schedule
        if shapes is None and not ready.engine.has_own_shapes:
            return
        if shapes is not None and len(shapes) != schedule.microbatches:
            raise InvalidArgument(f"microbatch_shapes has {len(shapes)}, must have {schedule.microbatches}")
        dtypes = [spec.dtype for spec in ready.boundary.specs]
        for k in range(schedule.microbatches):
            direction, microbatch = divmod(k, schedule.microbatches // schedule.directions)
            specs = ready.boundary.specs
            if shapes is not None:
                own = boundary_of(shapes[k], dtypes).specs
                specs = [one._replace(shape=mine.shape) for one, mine in zip(specs, own)]
            ready.engine.set_microbatch(microbatch, specs, direction)

    def _results(self, batch: Batch) -> tuple[torch.Tensor | None, Any]:
        loss = outputs = None
        if batch.losses:
            loss = torch.stack([batch.losses[k] for k in sorted(batch.losses)])
        if batch.outputs:
            outputs = gather([batch.outputs[k] for k in sorted(batch.outputs)], self.batch_dim)
        return loss, outputs


class _Named(Pipeline):
    """A pipeline whose schedule goes by its class's name."""

    _kind: str

    def __init__(
        self,
        modules: Sequence[nn.Module],
        batch_dim: int = 0,
        process_group: dist.ProcessGroup | None = None,
        rank_mapping: Sequence[int] | None = None,
        *,
        schedule: str | Schedule | None = None,
        **options: Any,
    ) -> None:
        schedule = self._kind if schedule is None else schedule
        super().__init__(modules, batch_dim, process_group, rank_mapping, schedule=schedule, **options)


class DualPipe(_Named):
    """DeepSeek's DualPipe: two directions, two parameter copies of each stage. Its arguments are those of
    :class:`Pipeline`; ``num_ranks`` is even, ``num_chunks`` even and at least 2 * num_ranks - 2.

    On the first rank are the inputs of direction 0, and the labels, losses and outputs of direction 1; on the last rank
    the other way round.
    """

    _kind = "dualpipe"


class DualPipeV(_Named):
    """DeepSeek's DualPipeV: a V, so that inputs, labels, losses and outputs are all on the first rank. Its arguments are
    those of :class:`Pipeline`; ``num_chunks`` is at least 2 * num_ranks - 1."""

    _kind = "dualpipe_v"


def _device_of(module: nn.Module) -> torch.device:
    for one in module.parameters():
        return one.device
    return torch.device("cpu")


def _other_work(of: Schedule, forward_only: bool) -> Schedule:
    """The schedule for inference of one for training, or the other way round."""
    if of.kind != "custom":
        looped = of.stages // of.ranks if of.kind in LOOPED else 0
        return Schedule(of.kind, of.ranks, of.microbatches, forward_only, stages_per_rank=looped)
    if not forward_only:
        raise InvalidArgument(f"schedule {of.name!r} is forward_only, so that a step cannot train")
    orders = [[("F", *op[1:3]) for op in of.order(rank) if op[0] in ("F", "FB")] for rank in range(of.ranks)]
    where: dict[str, Any] = {"placement": of.placement, "microbatches": of.microbatches, "name": of.name}
    return Schedule.from_orders(orders, forward_only=True, **where)


def _smallest(kind: str, ranks: int) -> Schedule:
    """A schedule of a kind, to ask for its placement."""
    return Schedule(kind, ranks, max(2, 2 * ranks))


def _syncs(module: nn.Module) -> bool:
    """False inside a DistributedDataParallel's no_sync."""
    return all(getattr(one, "require_backward_grad_sync", True) for one in module.modules())
