"""DeepSeek's ``dualpipe.utils``: see :mod:`dualpipe.torch`."""

from .torch.microbatches import gather, scatter
from .torch.weight_grads import WeightGradStore, run_backward

__all__ = ["WeightGradStore", "gather", "run_backward", "scatter"]
