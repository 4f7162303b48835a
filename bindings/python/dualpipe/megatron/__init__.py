"""Schedules of the library in Megatron-core: DualPipeV and others in place of its 1F1B.

>>> import dualpipe.megatron
>>> chunks = dualpipe.megatron.build_model_chunks(model_provider, config)
>>> forward_backward = dualpipe.megatron.forward_backward_func("dualpipe_v")

:func:`install` puts such a function where ``get_forward_backward_func`` looks, for training loops that call that.
Written for and tested with megatron-core 0.16.1. The manual is docs/megatron.md.
"""

try:
    import megatron.core  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"dualpipe.megatron needs megatron-core: {error}", name=error.name) from error

from .forward_backward import ForwardBackward, add_tied_grads, forward_backward_func
from .install import install, uninstall
from .placement import StageGroup, build_model_chunks, place_chunks

__all__ = [
    "ForwardBackward",
    "StageGroup",
    "add_tied_grads",
    "build_model_chunks",
    "forward_backward_func",
    "install",
    "place_chunks",
    "uninstall",
]
