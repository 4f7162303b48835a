"""The backward for weights, put off: what I leave for W."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Callable, ClassVar

import torch
from torch import nn
from torch.autograd import Variable
from torch.nn import functional


class WeightGradStore:
    """Where a module's backward puts its weight gradients while an I runs (``enabled``), for W to compute.

    The interface is that of DeepSeek's DualPipe: an autograd function of the model's asks ``enabled`` and calls
    :meth:`put`; a pipeline calls :meth:`flush` at the end of I and, for W, :meth:`pop`, first in first out. One process
    has one, for one thread.
    """

    enabled: bool = False
    cache: ClassVar[list[Callable[[], Any]]] = []
    funcs_queue: ClassVar[deque[list[Callable[[], Any]]]] = deque()

    @classmethod
    def put(cls, func: Callable[[], Any]) -> None:
        """Adds what adds to the gradient of a weight."""
        cls.cache.append(func)

    @classmethod
    def flush(cls) -> None:
        """All that was put since the last time is one W."""
        cls.funcs_queue.append(cls.take())

    @classmethod
    def take(cls) -> list[Callable[[], Any]]:
        """All that was put since the last time, for who keeps W apart by micro-batch."""
        taken, cls.cache = cls.cache, []
        return taken

    @classmethod
    def pop(cls) -> None:
        """Runs the oldest W. IndexError if there is none."""
        if not cls.funcs_queue:
            raise IndexError("WeightGradStore.pop: there is no W left, flush was called less often")
        with torch.no_grad():
            for func in cls.funcs_queue.popleft():
                func()

    @classmethod
    def clear(cls) -> None:
        """Forgets everything."""
        cls.enabled, cls.cache = False, []
        cls.funcs_queue = deque()


def run_backward(tensors: Sequence[torch.Tensor], grad_tensors: Sequence[torch.Tensor]) -> None:
    """The backward of ``tensors`` with their gradients, added to the leaves; frees the graph.

    It is autograd's engine itself: ``torch.autograd.backward`` looks at the tensors' shapes, and an output that has
    been sent has none any more.
    """
    _run_engine(
        tensors if type(tensors) is tuple else tuple(tensors),
        grad_tensors if type(grad_tensors) is tuple else tuple(grad_tensors),
        keep_graph=False,
        create_graph=False,
        allow_unreachable=True,
        accumulate_grad=True,
    )


_run_engine = Variable._execution_engine.run_backward


def accumulate_grad(weight: torch.Tensor, grad: torch.Tensor) -> None:
    """Adds to a weight's gradient as a backward does, so that its hooks run, also those that others put on it."""
    with torch.enable_grad():
        run_backward((weight.view_as(weight),), (grad,))


class _Linear(torch.autograd.Function):
    """``functional.linear`` whose weight gradient can wait."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(input, weight)
        ctx.has_bias = bias is not None
        # Not what is saved: by backward an optimizer's hook or FSDP may have put another tensor into the parameter.
        ctx.parameter = weight
        return functional.linear(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        input, weight = ctx.saved_tensors
        parameter: torch.Tensor = ctx.parameter
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            # Under autocast the product was of a narrower dtype than what was saved.
            grad_input = (grad_output @ weight.to(grad_output.dtype)).to(input.dtype)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = grad_output.flatten(0, -2).sum(0) if grad_output.dim() > 1 else grad_output
        if ctx.needs_input_grad[1]:

            def of_weight() -> torch.Tensor:
                rows, columns = _rows(grad_output), _rows(input).to(grad_output.dtype)
                return (rows.t() @ columns).to(parameter.dtype)

            if WeightGradStore.enabled:
                WeightGradStore.put(lambda: accumulate_grad(parameter, of_weight()))
            else:
                grad_weight = of_weight()
        return grad_input, grad_weight, grad_bias


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """[..., features] as [rows, features]."""
    return tensor.reshape(-1, tensor.shape[-1])


class SplitLinear(nn.Linear):
    """What :func:`split_weight_grads` makes of a ``torch.nn.Linear``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.weight.requires_grad:
            result: torch.Tensor = _Linear.apply(input, self.weight, self.bias)
            return result
        return functional.linear(input, self.weight, self.bias)


def split_weight_grads(module: nn.Module) -> int:
    """Has the weight gradients of every ``torch.nn.Linear`` in ``module`` computed in W instead of I, without a change
    to the model: their class becomes :class:`SplitLinear`. Modules with a ``backward_dw`` of their own (Transformer
    Engine's protocol) need nothing: a pipeline calls it.

    Hooks on such a weight run when its gradient is added, and in I, too, where nothing is. Linears of other classes
    (parametrized, quantized, subclasses) and with a ``forward`` of their own stay as they are. Returns how many were
    changed. Doing it twice does nothing.
    """
    plain = [one for one in module.modules() if type(one) is nn.Linear and "forward" not in one.__dict__]
    for one in plain:
        one.__class__ = SplitLinear
    return len(plain)


def modules_with_backward_dw(module: nn.Module) -> list[nn.Module]:
    """Modules that put their weight gradients off themselves and compute the oldest ones in ``backward_dw()``: the
    outermost ones, which call those inside."""
    return list(_outermost(module))


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    if callable(getattr(module, "backward_dw", None)):
        yield module
        return
    for child in module.children():
        yield from _outermost(child)
