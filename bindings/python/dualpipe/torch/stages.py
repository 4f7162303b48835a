"""The modules of a rank as what an executor's tasks run: forward, backward for input, backward for weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

import torch
from torch import nn

from ..errors import InvalidArgument
from ..schedule import Schedule
from .data_parallel import unwrapped
from .engine import Compute, MaybeTensors, Tensors
from .tensors import TensorSpec
from .weight_grads import WeightGradStore, modules_with_backward_dw, run_backward


class Pass:
    """What is kept of one micro-batch at one stage from F to B or I."""

    __slots__ = ("inputs", "loss", "outputs")

    def __init__(self, inputs: Sequence[Any], outputs: Any, loss: torch.Tensor | None) -> None:
        self.inputs, self.outputs, self.loss = inputs, outputs, loss


class Batch:
    """What a step is about, on one rank; inputs and labels by direction and micro-batch, where they enter and leave."""

    def __init__(self) -> None:
        self.inputs: dict[int, list[tuple[Any, ...]]] = {}
        self.labels: dict[int, list[tuple[Any, ...]]] = {}
        self.criterion: Callable[..., torch.Tensor] | None = None
        self.keeps_outputs = False
        self.losses: dict[int, torch.Tensor] = {}
        """By micro-batch, of the direction that ends on this rank."""
        self.outputs: dict[int, Any] = {}


class Stages(Compute):
    """The ``modules`` of one rank by parameter copy.

    ``names``: of the tensors of a boundary, if stages give dicts and take keyword arguments.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        schedule: Schedule,
        rank: int,
        specs: Sequence[TensorSpec],
        names: Sequence[str] | None,
    ) -> None:
        self.batch = Batch()
        self.stage_of = schedule.copies(rank)
        self.when_final: Callable[[int, int], None] = lambda copy, peer: None
        self._modules, self._names = list(modules), names
        self._trains = not schedule.forward_only
        self._differentiable = [k for k, spec in enumerate(specs) if spec.has_gradient and self._trains]
        last = schedule.stages - 1
        self._is_first = [stage == 0 for _, stage in self.stage_of]
        self._is_last = [stage == last for _, stage in self.stage_of]
        self._names_at = [None if is_first else names for is_first in self._is_first]
        """The keywords of a stage's inputs; None if they go by position, as the first stage's do."""
        self._backward_dw = [modules_with_backward_dw(one) for one in modules]
        kinds = {type(unwrapped(one)) for one in modules}
        overlap = getattr(next(iter(kinds)), "overlapped_forward_backward", None)
        self._overlap = overlap if len(kinds) == 1 and self._trains else None
        self._passes: dict[tuple[int, int], Pass] = {}
        self._weight_grads: dict[tuple[int, int], list[Callable[[], Any]]] = {}
        """What each I left for its W."""

    def begin(self, batch: Batch) -> None:
        """Before a step."""
        self.batch = batch
        self._passes.clear()
        self._weight_grads.clear()
        WeightGradStore.clear()

    def forward(self, copy: int, microbatch: int, inputs: Tensors) -> Sequence[torch.Tensor]:
        entered = self._enter(copy, microbatch, inputs)
        module, names = self._modules[copy], self._names_at[copy]
        outputs = module(*entered) if names is None else module(**dict(zip(names, entered)))
        if self._is_last[copy]:
            return self._leave(copy, microbatch, entered, outputs, self._loss_of(copy, microbatch, outputs))
        sent = (outputs,) if type(outputs) is torch.Tensor else self._in_order(copy, outputs)
        if self._trains:
            self._passes[copy, microbatch] = Pass(entered, sent, None)
        return sent

    def backward(self, copy: int, microbatch: int, output_grads: MaybeTensors, for_input_only: bool) -> MaybeTensors:
        one = self._passes.pop((copy, microbatch))
        if for_input_only:
            WeightGradStore.enabled = True
        try:
            if self._is_last[copy]:
                _run_backward_of_loss(one.loss)
            else:
                outputs, grads = _with_gradients(one.outputs, output_grads)
                if outputs:
                    run_backward(outputs, grads)
        finally:
            if for_input_only:
                WeightGradStore.enabled = False
        if for_input_only:
            self._weight_grads[copy, microbatch] = WeightGradStore.take()
        elif self._backward_dw[copy]:
            self._run_backward_dw(copy)
        return self._input_grads(copy, one)

    def backward_weight(self, copy: int, microbatch: int) -> None:
        with torch.no_grad():  # what is saved of a forward has a graph, which a gradient is not to get
            for func in self._weight_grads.pop((copy, microbatch)):
                func()
            self._run_backward_dw(copy)

    def forward_backward(
        self, forward: tuple[int, int, Tensors], backward: tuple[int, int, MaybeTensors]
    ) -> tuple[Sequence[torch.Tensor], MaybeTensors]:
        if self._overlap is None:
            return self.forward(*forward), self.backward(*backward, False)
        copy0, microbatch0, inputs = forward
        copy1, microbatch1, output_grads = backward
        entered = self._enter(copy0, microbatch0, inputs)
        names0 = self._names_at[copy0]
        inputs0: Any = entered if names0 is None else dict(zip(names0, entered))
        criterion0 = self.batch.criterion if self._is_last[copy0] else None
        labels0 = self._labels_of(copy0, microbatch0) if criterion0 is not None else []
        one = self._passes.pop((copy1, microbatch1))
        loss1 = one.loss if self._is_last[copy1] else None
        outputs1, grads1 = ([], []) if self._is_last[copy1] else _with_gradients(one.outputs, output_grads)
        module0, module1 = unwrapped(self._modules[copy0]), unwrapped(self._modules[copy1])
        outputs0, loss0 = self._overlap(module0, inputs0, criterion0, labels0, module1, loss1, outputs1, grads1)
        outputs = self._leave(copy0, microbatch0, entered, outputs0, loss0 if criterion0 is not None else None)
        self._run_backward_dw(copy1)
        return outputs, self._input_grads(copy1, one)

    def reduce_grads(self, copy: int, peer: int) -> None:
        self.when_final(copy, peer)

    def _enter(self, copy: int, microbatch: int, inputs: Tensors) -> Sequence[Any]:
        if self._is_first[copy]:
            return self.batch.inputs[self.stage_of[copy][0]][microbatch]
        for k in self._differentiable:
            inputs[k].requires_grad_()
        return inputs

    def _labels_of(self, copy: int, microbatch: int) -> Sequence[Any]:
        return self.batch.labels[self.stage_of[copy][0]][microbatch]

    def _loss_of(self, copy: int, microbatch: int, outputs: Any) -> torch.Tensor | None:
        criterion = self.batch.criterion
        if criterion is None:
            return None
        labels = self._labels_of(copy, microbatch)
        if isinstance(outputs, (tuple, list)):
            return criterion(*outputs, *labels)
        return criterion(outputs, *labels)

    def _leave(
        self, copy: int, microbatch: int, inputs: Sequence[Any], outputs: Any, loss: torch.Tensor | None
    ) -> Sequence[torch.Tensor]:
        if self._is_last[copy]:
            if loss is not None:
                self.batch.losses[microbatch] = loss
            if self.batch.keeps_outputs:
                self.batch.outputs[microbatch] = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
            sent: Sequence[torch.Tensor] = ()
        else:
            sent = (outputs,) if type(outputs) is torch.Tensor else self._in_order(copy, outputs)
        if self._trains:
            self._passes[copy, microbatch] = Pass(inputs, sent, loss)
        return sent

    def _in_order(self, copy: int, outputs: Any) -> Sequence[torch.Tensor]:
        """The tensors of a boundary, of what a module gave."""
        if isinstance(outputs, torch.Tensor):
            return (outputs,)
        if isinstance(outputs, Mapping):
            if self._names is None or set(outputs) != set(self._names):
                names = "the boundary has no names" if self._names is None else f"must give {list(self._names)}"
                raise InvalidArgument(f"stage {self.stage_of[copy][1]} gave a dict of {list(outputs)}, {names}")
            return tuple(outputs[name] for name in self._names)
        if not isinstance(outputs, (tuple, list)):
            raise TypeError(f"stage {self.stage_of[copy][1]} gave {type(outputs).__name__}, must give tensors")
        return tuple(outputs)

    def _input_grads(self, copy: int, one: Pass) -> MaybeTensors:
        return () if self._is_first[copy] else [tensor.grad for tensor in one.inputs]

    def _run_backward_dw(self, copy: int) -> None:
        for module in self._backward_dw[copy]:
            module.backward_dw()  # type: ignore[operator]


def _run_backward_of_loss(loss: torch.Tensor | None) -> None:
    """``loss.backward()`` without what it does besides; afterwards only the value is left."""
    assert loss is not None
    if loss.numel() != 1:
        raise InvalidArgument(f"the criterion gave a loss of shape {list(loss.shape)}, must be a single number")
    run_backward((loss,), (torch.ones_like(loss),))
    loss.detach_()


def _with_gradients(
    outputs: Sequence[torch.Tensor], grads: MaybeTensors
) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
    """The outputs that have a graph and a gradient, and these."""
    if len(outputs) == 1 and grads[0] is not None and outputs[0].requires_grad:
        return outputs, grads  # type: ignore[return-value]
    pairs = [(one, grad) for one, grad in zip(outputs, grads) if grad is not None and one.requires_grad]
    return [one for one, _ in pairs], [grad for _, grad in pairs]
