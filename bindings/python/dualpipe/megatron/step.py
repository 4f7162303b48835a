"""One step: what the engine's tasks are in Megatron's terms."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Callable, NamedTuple

import torch
from megatron.core.pipeline_parallel import schedules
from megatron.core.utils import get_model_type

from ..errors import InvalidArgument
from ..torch.engine import Compute
from .placement import as_stage
from .weight_grads import ChunkWeightGrads, delayed_modules, microbatch_counts


class Call(NamedTuple):
    """What a call of the function gives a step, for all chunks."""

    config: Any
    chunks: Sequence[Any]
    stages: Sequence[int]
    """The stage of each chunk."""
    num_stages: int
    data_iterators: Sequence[Any]
    forward_step_func: Callable[..., Any]
    num_microbatches: int
    forward_only: bool
    collect_non_loss_data: bool
    first_val_step: bool | None
    cp_size: int
    order: Sequence[tuple[Any, ...]]
    """The rank's ops."""
    boundary: tuple[torch.dtype, tuple[int, ...]]
    device: torch.device


class MegatronCompute(Compute):
    """Runs Megatron's own ``forward_step`` and ``backward_step`` on the rank's chunks."""

    def __init__(self) -> None:
        self._step: _Step | None = None

    @contextlib.contextmanager
    def step(self, call: Call) -> Iterator[_Step]:
        """For the time of an engine's step. Afterwards the chunks are as they were, also if it failed."""
        with contextlib.ExitStack() as stack:
            step = self._step = _Step(call, stack)
            try:
                yield step
            finally:
                self._step = None

    def forward(self, copy: int, microbatch: int, inputs: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        return self._now.forward(copy, microbatch, inputs)

    def backward(
        self, copy: int, microbatch: int, output_grads: Sequence[torch.Tensor | None], for_input_only: bool
    ) -> Sequence[torch.Tensor | None]:
        return self._now.backward(copy, microbatch, output_grads, for_input_only)

    def backward_weight(self, copy: int, microbatch: int) -> None:
        self._now.backward_weight(copy, microbatch)

    @property
    def _now(self) -> _Step:
        assert self._step is not None, "the engine runs outside of a step"
        return self._step


class _Step:
    def __init__(self, call: Call, stack: contextlib.ExitStack) -> None:
        self._call = call
        self.num_tokens = torch.zeros([], dtype=torch.int, device=call.device)
        self._collected: dict[int, list[Any]] = {}
        self._alive: dict[tuple[int, int], tuple[Any, Any]] = {}
        self._model_type = get_model_type(call.chunks[0])
        self._backwards_left, self._weights_left = microbatch_counts(call.order)
        is_split = any(op[0] == "I" for op in call.order)
        # Without I and W in the schedule, W that Transformer Engine puts off comes after each backward.
        self._weight_grads = [
            ChunkWeightGrads(chunk) if is_split or (delayed_modules(chunk) and not call.forward_only) else None
            for chunk in call.chunks
        ]
        for one in self._weight_grads:
            if one is not None:
                stack.callback(one.detach)
                one.attach()
        self._grad_sync = [
            _GradSync(None if call.forward_only else _of_chunk(call.config.no_sync_func, k), stack)
            for k in range(len(call.chunks))
        ]
        for k, chunk in enumerate(call.chunks):
            sync = _of_chunk(call.config.param_sync_func, k)
            if sync is not None:
                sync(chunk.parameters())

    def collected(self) -> list[Any]:
        """What the last stage's forward steps have given, by micro-batch; [] on other ranks."""
        return [one for _, values in sorted(self._collected.items()) for one in values]

    def forward(self, copy: int, microbatch: int, inputs: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        call = self._call
        chunk, stage = call.chunks[copy], call.stages[copy]
        is_last_stage = stage == call.num_stages - 1
        input = inputs[0] if inputs else None
        if input is not None and not call.forward_only:
            input.requires_grad_()
        values: list[Any] = []
        with as_stage(chunk, stage, call.num_stages):
            output, num_tokens = schedules.forward_step(
                call.forward_step_func,
                call.data_iterators[copy],
                chunk,
                call.num_microbatches,
                input,
                values,
                call.config,
                cp_group_size=call.cp_size,
                collect_non_loss_data=call.collect_non_loss_data,
                is_first_microbatch=schedules.check_first_val_step(
                    call.first_val_step, call.forward_only, microbatch == 0
                ),
                current_microbatch=microbatch,
                is_last_stage=is_last_stage,
            )
        self.num_tokens += num_tokens
        if is_last_stage:
            self._collected[microbatch] = values
            if not call.forward_only:
                self._alive[copy, microbatch] = input, output
            return []
        if not isinstance(output, torch.Tensor):
            raise InvalidArgument(f"stage {stage} gives a {type(output).__name__}, must give one tensor to the next")
        sent = output.detach()
        if not call.forward_only:
            schedules.deallocate_output_tensor(output, call.config.deallocate_pipeline_outputs)
            self._alive[copy, microbatch] = input, output
        return [sent]

    def backward(
        self, copy: int, microbatch: int, output_grads: Sequence[torch.Tensor | None], for_input_only: bool
    ) -> Sequence[torch.Tensor | None]:
        call = self._call
        self._backwards_left[copy] -= 1
        self._weights_left[copy] -= not for_input_only
        is_last = self._backwards_left[copy] == 0
        is_last_weight = not for_input_only and self._weights_left[copy] == 0
        input, output = self._alive.pop((copy, microbatch))
        output_grad = output_grads[0] if output_grads else None
        if output_grads and output_grad is None:
            dtype, shape = call.boundary
            output_grad = torch.zeros(shape, dtype=dtype, device=call.device)
        weight_grads, sync = self._weight_grads[copy], self._grad_sync[copy]
        if weight_grads is not None:
            weight_grads.begin(microbatch, for_input_only, is_last_weight)
        has_grad_sync_func = call.config.grad_sync_func is not None
        with as_stage(call.chunks[copy], call.stages[copy], call.num_stages):
            with sync.on() if is_last and not has_grad_sync_func else contextlib.nullcontext():
                input_grad = schedules.backward_step(input, output, output_grad, self._model_type, call.config)
            if weight_grads is not None and not for_input_only:
                with sync.on() if is_last_weight and not has_grad_sync_func else contextlib.nullcontext():
                    weight_grads.compute_delayed()
        if is_last_weight:
            self._launch_grad_sync(copy)
        return [] if input is None else [input_grad]

    def backward_weight(self, copy: int, microbatch: int) -> None:
        self._weights_left[copy] -= 1
        is_last, weight_grads = self._weights_left[copy] == 0, self._weight_grads[copy]
        assert weight_grads is not None
        has_grad_sync_func = self._call.config.grad_sync_func is not None
        with self._grad_sync[copy].on() if is_last and not has_grad_sync_func else contextlib.nullcontext():
            weight_grads.compute(microbatch, is_last)
        if is_last:
            self._launch_grad_sync(copy)

    def _launch_grad_sync(self, copy: int) -> None:
        """All gradients of the chunk are there."""
        sync = _of_chunk(self._call.config.grad_sync_func, copy)
        if sync is not None:
            with self._grad_sync[copy].on():
                sync(self._call.chunks[copy].parameters())


class _GradSync:
    """A chunk's ``no_sync_func``: within it nothing is reduced, but for the time of :meth:`on`."""

    def __init__(self, no_sync_func: Callable[[], Any] | None, stack: contextlib.ExitStack) -> None:
        self._no_sync = no_sync_func
        self._off: Any = None
        self._disable()
        stack.callback(self._enable)

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Gradients that are ready may be reduced."""
        self._enable()
        try:
            yield
        finally:
            self._disable()

    def _disable(self) -> None:
        if self._no_sync is not None:
            self._off = self._no_sync()
            self._off.__enter__()

    def _enable(self) -> None:
        if self._off is not None:
            off, self._off = self._off, None
            off.__exit__(None, None, None)


def _of_chunk(functions: Any, k: int) -> Any:
    """A setting that is one function for each chunk, or one function if there is one chunk."""
    return functions[k] if isinstance(functions, (list, tuple)) else functions
