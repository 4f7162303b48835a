"""torch's modules on the library's executor: DeepSeek's DualPipe and DualPipeV, and any other schedule.

``from dualpipe import DualPipe, DualPipeV, set_p2p_tensor_shapes, set_p2p_tensor_dtype`` gives what is here.
"""

from .boundary import set_p2p_tensor_dtype, set_p2p_tensor_shapes
from .engine import Compute, Engine
from .pipeline import DualPipe, DualPipeV, Pipeline
from .tensors import TensorSpec
from .weight_grads import WeightGradStore, run_backward, split_weight_grads

__all__ = [
    "Compute",
    "DualPipe",
    "DualPipeV",
    "Engine",
    "Pipeline",
    "TensorSpec",
    "WeightGradStore",
    "run_backward",
    "set_p2p_tensor_dtype",
    "set_p2p_tensor_shapes",
    "split_weight_grads",
]
