"""DeepSeek's ``dualpipe.comm``: see :mod:`dualpipe.torch`."""

from .torch.boundary import set_p2p_tensor_dtype, set_p2p_tensor_shapes

__all__ = ["set_p2p_tensor_dtype", "set_p2p_tensor_shapes"]
