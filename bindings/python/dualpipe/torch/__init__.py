"""torch's modules on the library's executor: DeepSeek's DualPipe and DualPipeV, and any other schedule; and the library's
schedules for torch's own pipelining.

``from dualpipe import DualPipe, DualPipeV, set_p2p_tensor_shapes, set_p2p_tensor_dtype`` gives what is here. torch is
loaded when something that needs it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .boundary import set_p2p_tensor_dtype, set_p2p_tensor_shapes
    from .engine import Compute, Engine
    from .pipeline import DualPipe, DualPipeV, Pipeline
    from .pipelining import PipelineRuntime
    from .schedule_csv import read_schedule_csv, schedule_csv, verify_schedule_csv
    from .tensors import TensorSpec
    from .weight_grads import WeightGradStore, run_backward, split_weight_grads

__all__ = [
    "Compute",
    "DualPipe",
    "DualPipeV",
    "Engine",
    "Pipeline",
    "PipelineRuntime",
    "TensorSpec",
    "WeightGradStore",
    "read_schedule_csv",
    "run_backward",
    "schedule_csv",
    "set_p2p_tensor_dtype",
    "set_p2p_tensor_shapes",
    "split_weight_grads",
    "verify_schedule_csv",
]

_MODULES = {
    "boundary": ("set_p2p_tensor_dtype", "set_p2p_tensor_shapes"),
    "engine": ("Compute", "Engine"),
    "pipeline": ("DualPipe", "DualPipeV", "Pipeline"),
    "pipelining": ("PipelineRuntime",),
    "schedule_csv": ("read_schedule_csv", "schedule_csv", "verify_schedule_csv"),
    "tensors": ("TensorSpec",),
    "weight_grads": ("WeightGradStore", "run_backward", "split_weight_grads"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
