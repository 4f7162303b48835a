"""Puts a forward-backward function where Megatron looks for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from megatron.core import parallel_state, pipeline_parallel
from megatron.core.pipeline_parallel import schedules

from ..errors import InvalidArgument
from .forward_backward import ForwardBackward
from .plan import ScheduleLike

_NAME = "get_forward_backward_func"
_HOMES: tuple[ModuleType, ...] = (pipeline_parallel, schedules)


class _Installed:
    def __init__(self) -> None:
        self.original: Callable[..., Any] | None = None
        self.rebound: list[ModuleType] = []


_installed = _Installed()


def install(schedule: ScheduleLike = "dualpipe_v", *, timeout: float = 60.0, rebind: bool = False) -> ForwardBackward:
    """Has Megatron's ``get_forward_backward_func`` give :func:`forward_backward_func` of ``schedule``.

    That is in ``megatron.core.pipeline_parallel`` and in its ``schedules``; without pipeline parallelism it gives
    Megatron's own as before. Call it before whoever imports it from there by name: ``megatron.training`` does. If a
    module has done so already, :class:`~dualpipe.InvalidArgument` names it and nothing is changed; with ``rebind`` its
    name is replaced as well. A second call replaces the first. Returns the function; ``uninstall`` takes it back.
    """
    function = ForwardBackward(schedule, timeout=timeout)
    original = _installed.original or getattr(schedules, _NAME)
    holders = _holders(original)
    if holders and not rebind:
        names = ", ".join(sorted(module.__name__ for module in holders))
        raise InvalidArgument(
            f"{_NAME} has been imported by name in {names}: call install before that import, or with rebind=True"
        )
    uninstall()

    def get_forward_backward_func(pp_size: int | None = None, vp_size: int | None = None) -> Any:
        """The installed function; Megatron's own without pipeline parallelism."""
        if pp_size is None and vp_size is None:
            pp_size = parallel_state.get_pipeline_model_parallel_world_size()
        return function if (pp_size or 1) > 1 else original(1, None)

    _installed.original, _installed.rebound = original, holders
    for module in (*_HOMES, *holders):
        setattr(module, _NAME, get_forward_backward_func)
    return function


def uninstall() -> None:
    """Puts Megatron's own back everywhere; nothing if nothing is installed."""
    if _installed.original is None:
        return
    for module in (*_HOMES, *_installed.rebound):
        setattr(module, _NAME, _installed.original)
    _installed.original, _installed.rebound = None, []


def _holders(original: Any) -> list[ModuleType]:
    """Modules that have the original by that name, besides its homes."""
    found = []
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and module not in _HOMES and module.__dict__.get(_NAME) is original:
            found.append(module)
    return found
