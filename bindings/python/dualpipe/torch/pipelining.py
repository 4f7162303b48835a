"""Schedules run by ``torch.distributed.pipelining``: a runtime of torch's that takes any schedule of one direction.

The base class is private in torch. This module was run with torch 2.10, 2.14 and 2.15; :data:`PRIVATE_NAMES` and
:data:`PRIVATE_METHODS` are all of torch's private names that it uses, and a torch that lacks one of them is refused
when a runtime is created.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Callable, Optional

import torch
import torch.distributed.pipelining.schedules as torch_schedules
from torch.distributed.pipelining import stage as torch_stage

from ..errors import InvalidArgument, Unavailable
from ..schedule import Schedule
from .schedule_csv import parsed_version, schedule_csv, stages_of

__all__ = ["OverlappedForwardBackward", "PipelineRuntime", "schedule_csv", "stages_of"]

OLDEST_TORCH = (2, 10)
"""The first version whose runtime has overlapped pairs and functions for them."""
PRIVATE_NAMES = ("_Action", "_PipelineScheduleRuntime", "_wait_batch_p2p")
"""What is used of ``torch.distributed.pipelining.schedules``."""
PRIVATE_METHODS = {
    "_PipelineScheduleRuntime": (
        "_assert_unsharded",
        "_compute_loss",
        "_maybe_compute_loss",
        "_maybe_get_loss",
        "_prepare_schedule_with_comms",
        "_step_microbatches",
        "register_custom_function",
    ),
    "_PipelineStageBase": (
        "backward_maybe_with_nosync",
        "backward_one_chunk",
        "forward_maybe_with_nosync",
        "forward_one_chunk",
        "get_local_bwd_output",
        "set_local_bwd_input",
        "set_local_fwd_input",
    ),
}
"""What is used of its classes."""

OverlappedForwardBackward = Callable[..., tuple[Any, Optional[torch.Tensor]]]
"""``f(module0, inputs0, criterion0, labels0, module1, loss1, outputs1, output_grads1) -> (outputs0, loss0)``: the
forward of module0 and the backward of module1, at once. It is DeepSeek's protocol, there a class method of the modules:

- module0 is to run on the list ``inputs0``; ``outputs0`` is its output tensor or the list of them. At the last stage
  of a training step ``criterion0(*outputs0, *labels0)`` is ``loss0``, elsewhere criterion0 and loss0 are None.
- module1's backward starts at the scalar ``loss1``; elsewhere than at the last stage loss1 is None, and it starts at
  the list ``outputs1`` with ``output_grads1``. Gradients are left in ``.grad``.
"""

_Runtime: Any = getattr(torch_schedules, "_PipelineScheduleRuntime", object)


class PipelineRuntime(_Runtime):  # type: ignore[misc]
    """Runs ``schedule`` on torch's stages: a ``_PipelineScheduleRuntime`` with ``step`` and ``eval`` as torch's
    schedules have them. One object per rank; not for several threads at once, as torch's.

    ``schedule``: a :class:`dualpipe.Schedule` of one direction; its number of ranks is the size of the stages' group.
    ``stages``: this rank's, those of :func:`stages_of`, in any order. ``n_microbatches``: may be given as in torch, and
    must then be the schedule's. ``loss_fn(output, target)``, ``args_chunk_spec``, ``kwargs_chunk_spec``,
    ``output_merge_spec`` and ``scale_grads`` are torch's: gradients are divided by the number of micro-batches unless
    ``scale_grads=False``. ``options`` go to torch's runtime, such as ``max_outstanding_sends`` from 2.15.

    Overlapped pairs run by ``overlapped_forward_backward`` (see :data:`OverlappedForwardBackward`), or if that is None,
    by the method of this name of the modules' class where both are of one class that has it, else forward, then
    backward. In a pair by this protocol a stage takes its inputs by position, none by keyword. For a function with
    torch's ``(action, context)``, call ``register_custom_function(OVERLAP_F_B, function)``.

    ``eval`` runs the forwards alone, in their order in ``schedule``.

    Raises :class:`~dualpipe.errors.InvalidArgument` for stages, micro-batches or a schedule that do not fit, and
    :class:`~dualpipe.errors.Unavailable` for a torch that cannot run it, with what to do instead.
    """

    pipeline_order_with_comms: dict[int, list[Any]]

    def __init__(
        self,
        schedule: Schedule,
        stages: Sequence[Any],
        n_microbatches: int | None = None,
        loss_fn: Callable[..., torch.Tensor] | None = None,
        args_chunk_spec: tuple[Any, ...] | None = None,
        kwargs_chunk_spec: dict[str, Any] | None = None,
        output_merge_spec: dict[str, Any] | tuple[Any] | None = None,
        scale_grads: bool = True,
        *,
        overlapped_forward_backward: OverlappedForwardBackward | None = None,
        **options: Any,
    ) -> None:
        _refuse_unknown_torch()
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule is {schedule!r}, must be dualpipe.Schedule")
        rows = [row.split(",") for row in schedule_csv(schedule, torch.__version__).splitlines()]
        order = {rank: [torch_schedules._Action.from_str(cell) for cell in row] for rank, row in enumerate(rows)}
        ordered = _checked_stages(schedule, stages)
        if n_microbatches is not None and n_microbatches != schedule.microbatches:
            raise InvalidArgument(
                f"n_microbatches is {n_microbatches}, must be {schedule.microbatches}, that of the schedule"
            )
        if any(action.computation_type.name == "BACKWARD_INPUT" for row in order.values() for action in row):
            _refuse_what_cannot_split(ordered)
        super().__init__(
            stages=ordered,
            n_microbatches=schedule.microbatches,
            loss_fn=loss_fn,
            args_chunk_spec=args_chunk_spec,
            kwargs_chunk_spec=kwargs_chunk_spec,
            output_merge_spec=output_merge_spec,
            scale_grads=scale_grads,
            **options,
        )
        self.schedule = schedule
        self._stage_of = {stage.stage_index: stage for stage in ordered}
        self._return_outputs = True
        self._loss_kwargs: dict[str, Any] | None = None
        for stage in ordered:
            _connect_with_other_ranks_only(stage)
        self.pipeline_order = order
        self._prepare_schedule_with_comms(self.pipeline_order)
        self._forwards_with_comms = {
            rank: _forwards(actions) for rank, actions in self.pipeline_order_with_comms.items()
        }
        self._overlaps = {
            pair: function
            for pair in {tuple(part.stage_index for part in action.sub_actions or ()) for action in order[self.rank]}
            if pair
            and (function := overlapped_forward_backward or _protocol(*(self._stage_of[stage] for stage in pair)))
        }
        if self._overlaps:
            for stage in ordered:
                _refuse_own_backward(stage)
            self.register_custom_function(torch_schedules.OVERLAP_F_B, _run_pair)

    def _step_microbatches(
        self,
        arg_mbs: list[Any] | None = None,
        kwarg_mbs: list[Any] | None = None,
        target_mbs: list[Any] | None = None,
        losses: list[torch.Tensor] | None = None,
        return_outputs: bool = True,
        **options: Any,
    ) -> None:
        """As torch's; a step without backward runs the forwards alone, which torch's lowering of a V cannot."""
        if self._overlaps and self._has_backward:
            for name in sorted({name for kwargs in kwarg_mbs or [] for name in kwargs}):
                raise InvalidArgument(
                    f"{name} is given by keyword, which overlapped_forward_backward has no place for: "
                    "give it by position"
                )
        self._return_outputs, self._loss_kwargs = return_outputs, options.get("loss_kwargs")
        if self._has_backward and not self._stages_backward_initialized:
            # eval came first, and the buffers that it received into have no gradients
            self._stages_forward_initialized = False
        whole = self.pipeline_order_with_comms
        if not self._has_backward:
            self.pipeline_order_with_comms = self._forwards_with_comms
        try:
            super()._step_microbatches(arg_mbs, kwarg_mbs, target_mbs, losses, return_outputs, **options)
        finally:
            self.pipeline_order_with_comms = whole

    def _maybe_compute_loss(
        self, stage: Any, output: Any, target_mbs: list[Any] | None, mb_index: int, loss_kwargs: Any = None
    ) -> None:
        """As torch's, but in all versions with losses in ``eval``, which needs no target."""
        if stage.is_last and self._loss_fn is not None and (self._has_backward or target_mbs is not None):
            if target_mbs is None:
                raise InvalidArgument("target is None, must be given for the loss on the rank of the last stage")
            self._internal_losses.append(self._loss_of(output, target_mbs[mb_index]))

    def _loss_of(self, output: Any, target: Any) -> Any:
        # loss_kwargs came with torch 2.15
        extra = () if self._loss_kwargs is None else (self._loss_kwargs,)
        return self._compute_loss(output, target, *extra)


def _refuse_unknown_torch() -> None:
    version = parsed_version(torch.__version__)
    if version < OLDEST_TORCH:
        raise Unavailable(
            f"torch is {torch.__version__}, must be at least {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}; older ones, from "
            "2.6, load what dualpipe.torch.schedule_csv.schedule_csv writes"
        )
    missing = [name for name in PRIVATE_NAMES if not hasattr(torch_schedules, name)]
    for owner, names in PRIVATE_METHODS.items():
        base = getattr(torch_schedules, owner, None) or getattr(torch_stage, owner, None)
        missing += [f"{owner}.{name}" for name in names if not hasattr(base, name)]
    if missing:
        raise Unavailable(
            f"torch is {torch.__version__} and has no {', '.join(missing)} in torch.distributed.pipelining: this "
            "version of dualpipe is too old for it. Take a torch from 2.10 to 2.15, or load the file that "
            "schedule_csv writes"
        )


def _checked_stages(schedule: Schedule, stages: Sequence[Any]) -> list[Any]:
    """The rank's stages in ascending order, in which torch hands shapes from one to the next."""
    if not isinstance(stages, (list, tuple)) or not all(
        isinstance(stage, torch_stage._PipelineStageBase) for stage in stages
    ):
        raise TypeError(f"stages is {stages!r}, must be a list of torch.distributed.pipelining.PipelineStage")
    if not stages:
        raise InvalidArgument("stages is empty, must hold the stages that stages_of(schedule, rank) gives")
    for stage in stages:
        if stage.num_stages != schedule.stages:
            raise InvalidArgument(
                f"stage {stage.stage_index} is one of {stage.num_stages} stages, must be of {schedule.stages}, those "
                f"of {schedule!r}"
            )
        if stage.group_size != schedule.ranks:
            raise InvalidArgument(
                f"stage {stage.stage_index} has a group of {stage.group_size} ranks, must be of {schedule.ranks}, "
                f"those of {schedule!r}"
            )
    rank = stages[0].group_rank
    given, wanted = sorted(stage.stage_index for stage in stages), stages_of(schedule, rank)
    if given != wanted:
        raise InvalidArgument(f"stages of rank {rank} are {given}, must be {wanted}: see stages_of(schedule, {rank})")
    return sorted(stages, key=lambda stage: int(stage.stage_index))


def _refuse_what_cannot_split(stages: list[Any]) -> None:
    """Modules whose backward torch cannot split into I and W."""
    for stage in stages:
        if isinstance(stage.submod, torch.nn.parallel.DistributedDataParallel):
            raise InvalidArgument(
                f"stage {stage.stage_index} is in DistributedDataParallel, which reduces no gradients that come from "
                "a W: use fully_shard instead, or '1f1b', which has full backwards only"
            )
        if any(isinstance(module, torch._dynamo.OptimizedModule) for module in stage.submod.modules()):
            raise InvalidArgument(
                f"stage {stage.stage_index} has modules of torch.compile, whose backward torch cannot split into I "
                "and W; '1f1b' has full backwards only"
            )


def _connect_with_other_ranks_only(stage: Any) -> None:
    """Before the first step, torch up to 2.14 has neighbouring stages exchange a number, even two of one rank: gloo
    cannot send to itself, and nothing needs it."""
    to_neighbours = getattr(stage, "_get_init_p2p_neighbors_ops", None)
    if to_neighbours is not None:
        stage._get_init_p2p_neighbors_ops = lambda: [op for op in to_neighbours() if op.group_peer != stage.group_rank]


def _forwards(actions: list[Any]) -> list[Any]:
    """What is left of a rank's actions without backwards."""
    kinds = {"FORWARD", "SEND_F", "RECV_F", "WAIT_SEND_F", "UNSHARD", "RESHARD"}
    parts = (part for action in actions for part in action.sub_actions or (action,))
    return [part for part in parts if part.computation_type.name in kinds]


def _protocol(forward: Any, backward: Any) -> OverlappedForwardBackward | None:
    """How the modules' class overlaps the two, if it does."""
    if type(forward.submod) is not type(backward.submod):
        return None
    return getattr(type(forward.submod), "overlapped_forward_backward", None)


def _refuse_own_backward(stage: Any) -> None:
    if "stage_backward" not in type(stage).backward_maybe_with_nosync.__globals__:
        raise InvalidArgument(
            f"stage {stage.stage_index} is a {type(stage).__name__}, whose backward_maybe_with_nosync is not torch's, "
            "so that overlapped_forward_backward cannot take its place: register a function for OVERLAP_F_B instead"
        )


def _run_pair(action: Any, context: Any) -> None:
    """An overlapped pair, with torch's own preparations and conclusions of both passes around the one call."""
    runtime = context.schedule_ref
    forward, backward = action.sub_actions
    overlap = runtime._overlaps.get((forward.stage_index, backward.stage_index))
    if overlap is None:
        _before_forward(runtime, forward)
        _run_forward(runtime, forward, context)
        _before_backward(runtime, backward)
        _run_backward(runtime, backward)
        return
    _before_forward(runtime, forward)
    _before_backward(runtime, backward)
    stages = runtime._stage_of[forward.stage_index], runtime._stage_of[backward.stage_index]

    def backward_with_forward(stage_output: Any, output_grads: Any, input_values: list[Any]) -> tuple[Any, ...]:
        def forward_with_backward(*inputs: Any) -> Any:
            return _overlapped(runtime, overlap, stages, inputs, context, forward, stage_output, output_grads)

        with _replaced(stages[0], "forward_maybe_with_nosync", forward_with_backward):
            _run_forward(runtime, forward, context, with_loss=False)
        return tuple(_taken_grad(value) for value in input_values)

    with _replaced(stages[1], "backward_maybe_with_nosync", _calling(stages[1], backward_with_forward)):
        _run_backward(runtime, backward)


def _overlapped(
    runtime: Any,
    overlap: OverlappedForwardBackward,
    stages: tuple[Any, Any],
    inputs: tuple[Any, ...],
    context: Any,
    forward: Any,
    stage_output: Any,
    output_grads: Any,
) -> Any:
    """The one call; the forward's output, as the module would have given it."""
    with_loss = stages[0].is_last and runtime._loss_fn is not None
    labels = [context.target_mbs[forward.microbatch_index]] if with_loss else []

    def criterion(*outputs_and_target: Any) -> Any:
        *outputs, target = outputs_and_target
        return runtime._loss_of(outputs[0] if len(outputs) == 1 else tuple(outputs), target)

    loss, roots, root_grads = (
        (stage_output, [], []) if stages[1].is_last else (None, *_roots(stage_output, output_grads))
    )
    outputs, new_loss = overlap(
        stages[0].submod,
        list(inputs),
        criterion if with_loss else None,
        labels,
        stages[1].submod,
        loss,
        roots,
        root_grads,
    )
    if with_loss:
        if new_loss is None:
            raise TypeError("overlapped_forward_backward gave None as loss0, must give what criterion0 returned")
        runtime._internal_losses.append(new_loss)
    if isinstance(outputs, torch.Tensor):
        return outputs
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _roots(outputs: Any, grads: Any) -> tuple[list[Any], list[Any]]:
    """The outputs at which a backward starts, and their gradients: those that have one."""
    pairs = [
        (output, grad)
        for output, grad in zip(outputs, grads)
        if grad is not None and getattr(output, "requires_grad", True)
    ]
    return [output for output, _ in pairs], [grad for _, grad in pairs]


def _taken_grad(value: Any) -> torch.Tensor | None:
    if not isinstance(value, torch.Tensor):
        return None
    grad, value.grad = value.grad, None
    return grad


def _before_forward(runtime: Any, action: Any) -> None:
    stage, key = runtime._stage_of[action.stage_index], (action.stage_index, action.microbatch_index)
    runtime._assert_unsharded(stage)
    if key in runtime.fwd_recv_ops:
        torch_schedules._wait_batch_p2p(runtime.fwd_recv_ops.pop(key))


def _before_backward(runtime: Any, action: Any) -> None:
    stage, key = runtime._stage_of[action.stage_index], (action.stage_index, action.microbatch_index)
    runtime._assert_unsharded(stage)
    if key in runtime.bwd_recv_ops:
        torch_schedules._wait_batch_p2p(runtime.bwd_recv_ops.pop(key))


def _run_forward(runtime: Any, action: Any, context: Any, with_loss: bool = True) -> None:
    stage, microbatch = runtime._stage_of[action.stage_index], action.microbatch_index
    output = stage.forward_one_chunk(
        microbatch,
        context.arg_mbs[microbatch],
        context.kwarg_mbs[microbatch],
        save_forward_output=runtime._return_outputs,
    )
    if with_loss:
        runtime._maybe_compute_loss(stage, output, context.target_mbs, microbatch)
    if action.stage_index + 1 in runtime._stage_of:
        runtime._stage_of[action.stage_index + 1].set_local_fwd_input(output, microbatch)


def _run_backward(runtime: Any, action: Any) -> None:
    stage, microbatch = runtime._stage_of[action.stage_index], action.microbatch_index
    runtime.backward_counter[action.stage_index] += 1
    stage.backward_one_chunk(
        microbatch,
        loss=runtime._maybe_get_loss(stage, microbatch),
        full_backward=True,
        last_backward=runtime.backward_counter[action.stage_index] == runtime._n_microbatches,
    )
    if action.stage_index - 1 in runtime._stage_of:
        grads = stage.get_local_bwd_output(microbatch)
        runtime._stage_of[action.stage_index - 1].set_local_bwd_input(grads, microbatch)


def _calling(stage: Any, backward: Callable[..., Any]) -> Any:
    """The stage's backward_maybe_with_nosync, which knows DDP and FSDP, with ``backward`` where it calls torch's
    stage_backward."""
    method = type(stage).backward_maybe_with_nosync
    rebound = types.FunctionType(
        method.__code__,
        {**method.__globals__, "stage_backward": backward},
        method.__name__,
        method.__defaults__,
        method.__closure__,
    )
    return types.MethodType(rebound, stage)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
