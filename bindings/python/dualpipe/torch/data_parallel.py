"""Stages wrapped in DistributedDataParallel or fully_shard: gradients are reduced once, when a step has them all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .weight_grads import run_backward

try:
    from torch.distributed.fsdp import FSDPModule, fully_shard
except ImportError:  # torch older than 2.6
    FSDPModule = fully_shard = None  # type: ignore[misc, assignment]


def unwrapped(module: nn.Module) -> nn.Module:
    """The model's own module in a DistributedDataParallel; any other as it is."""
    return module.module if isinstance(module, DistributedDataParallel) else module


class DataParallel:
    """The data parallel side of one parameter copy, whatever it is wrapped in, if anything."""

    def __init__(self, module: nn.Module) -> None:
        self._replicated = [one for one in module.modules() if isinstance(one, DistributedDataParallel)]
        self._sharded: list[Any] = list(_outermost_sharded(module))

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """While it lasts backwards only add up: no gradient is reduced, no shard given back."""
        with ExitStack() as stack:
            for replicated in self._replicated:
                stack.enter_context(replicated.no_sync())
            for sharded in self._sharded:
                _hold_back_sharded(sharded, True)
            yield

    def reduce(self) -> None:
        """Reduces the gradients over the data parallel ranks, which all do so in the same order."""
        for replicated in self._replicated:
            _reduce_replicated(replicated)
        for sharded in self._sharded:
            _reduce_sharded(sharded)


def _reduce_replicated(module: Any) -> None:
    """DDP reduces a gradient when its hook on the parameter runs. Hooks run when a gradient is added, so zero is added:
    the step's last weight gradient is not always that of its last backward."""
    held_back = module.require_backward_grad_sync
    module.require_backward_grad_sync = True
    try:
        module.reducer.prepare_for_backward([])
        parameters = [one for one in module.module.parameters() if one.requires_grad]
        with torch.enable_grad():
            views = [one.view_as(one) for one in parameters]
        run_backward(views, [torch.zeros((), dtype=one.dtype, device=one.device).expand_as(one) for one in parameters])
    finally:
        module.require_backward_grad_sync = held_back


def _hold_back_sharded(module: Any, is_held_back: bool) -> None:
    module.set_reshard_after_backward(not is_held_back)
    module.set_requires_gradient_sync(not is_held_back)
    if hasattr(module, "set_manual_backward_finalization"):
        if is_held_back:
            module.set_manual_backward_finalization(True)
    else:
        module.set_is_last_backward(not is_held_back)


def _reduce_sharded(module: Any) -> None:
    """What fully_shard's own hook does after the last backward, which cannot know here that it is the last."""
    _hold_back_sharded(module, False)
    if hasattr(module, "finalize_backward"):
        module.finalize_backward()
        module.set_manual_backward_finalization(False)
        return
    # torch before 2.15 has no function for it; its own pipeline stages do this.
    state: Any = fully_shard.state(module)  # type: ignore[attr-defined]
    for one in state._state_ctx.all_states:
        if one._fsdp_param_group is not None:
            one._fsdp_param_group.post_backward()
    state._root_post_backward_final_callback()


def _outermost_sharded(module: nn.Module) -> Iterator[nn.Module]:
    if FSDPModule is None:
        return
    if isinstance(module, FSDPModule):
        yield module
        return
    for child in module.children():
        yield from _outermost_sharded(child)
