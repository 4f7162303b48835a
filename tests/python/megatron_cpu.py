"""Megatron-core on a CPU: what it asks of CUDA without need is answered by the host, for the time of a test.

Nothing of Megatron's is edited. Covers what a GPTModel of local layers with dropout 0, Megatron's
DistributedDataParallel and its schedules call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode


class _CudaIsTheHost(TorchFunctionMode):
    """Rewrites ``device="cuda"``, which Megatron's schedules say literally."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)


@contextlib.contextmanager
def cuda_is_the_host() -> Iterator[None]:
    """Within it Megatron runs on the CPU."""
    from megatron.core.tensor_parallel import random

    def keep(self: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return self

    def nothing(*_: Any, **__: Any) -> None:
        return None

    host = torch.device("cpu")
    patches = [
        mock.patch.object(torch.cuda, "current_device", lambda: host),
        mock.patch.object(torch.cuda, "get_rng_state", lambda *_: torch.get_rng_state()),
        mock.patch.object(torch.cuda, "set_rng_state", lambda state, *_: torch.set_rng_state(state)),
        mock.patch.object(torch.cuda, "manual_seed", torch.manual_seed),
        mock.patch.object(torch.cuda, "synchronize", nothing),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: False),
        mock.patch.object(torch.cuda.nvtx, "range_push", nothing),
        mock.patch.object(torch.cuda.nvtx, "range_pop", nothing),
        mock.patch.object(torch.Tensor, "cuda", keep),
        mock.patch.object(random, "_get_cuda_rng_state", lambda *_, **__: torch.get_rng_state()),
        mock.patch.object(random, "_set_cuda_rng_state", lambda state, *_, **__: torch.set_rng_state(state)),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(_CudaIsTheHost())
        yield
