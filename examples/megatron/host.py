"""Megatron-core on a CPU, for this example: answers from the host what Megatron asks of CUDA without need."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class CudaIsTheHost(TorchFunctionMode):
    """While it is entered. Covers a GPTModel of local layers, Megatron's DDP, schedules and optimizers."""

    def __enter__(self) -> Any:
        from megatron.core.tensor_parallel import random

        host = torch.device("cpu")
        torch.cuda.current_device = lambda: host  # type: ignore[assignment,return-value]
        torch.cuda.synchronize = torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = lambda *_: None
        torch.cuda.is_current_stream_capturing = lambda: False
        torch.cuda.get_rng_state = random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
        torch.cuda.manual_seed = torch.manual_seed
        random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
        torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
        return super().__enter__()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):  # said literally in its schedules
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)
