"""Pipeline and expert parallelism: schedules checked, simulated and run; experts placed with a proof.

>>> import dualpipe
>>> schedule = dualpipe.Schedule("dualpipe", ranks=8, microbatches=20)
>>> timeline = schedule.simulate(dualpipe.Costs(f=1, i=1, w=1, fb=2.5))
>>> timeline.makespan
59.0

Times are seconds, sizes bytes. Every failure is an :class:`Error` with the library's own words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _ask_doctor, eplb  # noqa: F401
from ._callbacks import set_log, set_progress
from ._library import version
from .comparison import Candidate, Comparison, compare
from .costs import Costs
from .cuda import (
    Cuda,
    CudaInfo,
    DeviceTensor,
    GraphState,
    Nccl,
    cuda_available,
    nccl_unique_id,
    nccl_version,
)
from .errors import (
    BufferTooSmall,
    Busy,
    CallbackFailed,
    Cancelled,
    DeviceFailed,
    Error,
    Forked,
    Internal,
    InvalidArgument,
    InvalidHandle,
    InvalidSchedule,
    Panic,
    PeerFailed,
    Poisoned,
    Timeout,
    TransportFailed,
    Unavailable,
)
from .executor import Executor, Fault, Inproc
from .front import Front, memory_time_front
from .memory import Memory
from .overlap import Overlap
from .plan import Makespans, Plan, Sampled, Spread, plan
from .schedule import Instruction, Program, Schedule
from .task import Pass, Task
from .timeline import Timeline
from .transport import Transfer, Transport
from .verification import Verification

if TYPE_CHECKING:
    from .torch import (
        DualPipe,
        DualPipeV,
        WeightGradStore,
        set_p2p_tensor_dtype,
        set_p2p_tensor_shapes,
    )

__version__ = version

_OF_TORCH = frozenset(
    ("DualPipe", "DualPipeV", "WeightGradStore", "set_p2p_tensor_dtype", "set_p2p_tensor_shapes"),
)
"""What DeepSeek's package has at its top. It needs torch, which is not loaded before one of them is asked for."""


def __getattr__(name: str) -> Any:
    if name not in _OF_TORCH:
        raise AttributeError(f"module 'dualpipe' has no attribute {name!r}")
    from . import torch

    return getattr(torch, name)


__all__ = [
    "BufferTooSmall",
    "Busy",
    "CallbackFailed",
    "Cancelled",
    "Candidate",
    "Comparison",
    "Costs",
    "Cuda",
    "CudaInfo",
    "DeviceFailed",
    "DeviceTensor",
    "DualPipe",
    "DualPipeV",
    "Error",
    "Executor",
    "Fault",
    "Forked",
    "Front",
    "GraphState",
    "Inproc",
    "Instruction",
    "Internal",
    "InvalidArgument",
    "InvalidHandle",
    "InvalidSchedule",
    "Makespans",
    "Memory",
    "Nccl",
    "Overlap",
    "Panic",
    "Pass",
    "PeerFailed",
    "Plan",
    "Poisoned",
    "Program",
    "Sampled",
    "Schedule",
    "Spread",
    "Task",
    "Timeline",
    "Timeout",
    "Transfer",
    "Transport",
    "TransportFailed",
    "Unavailable",
    "Verification",
    "WeightGradStore",
    "compare",
    "cuda_available",
    "eplb",
    "memory_time_front",
    "nccl_unique_id",
    "nccl_version",
    "plan",
    "set_log",
    "set_p2p_tensor_dtype",
    "set_p2p_tensor_shapes",
    "set_progress",
    "version",
]
