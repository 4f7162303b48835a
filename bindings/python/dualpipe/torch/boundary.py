"""What crosses the boundaries between stages, as DeepSeek's functions set it for the whole process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Union

import torch

from ..errors import InvalidArgument
from .tensors import TensorSpec

Shapes = Union[Sequence[Any], Mapping[str, Any]]
"""A shape or a :class:`TensorSpec` for each tensor; with names, if stages give dicts and take keyword arguments."""


class Boundary(NamedTuple):
    """The tensors of every boundary."""

    specs: list[TensorSpec]
    names: list[str] | None
    """None: stages take and give tensors by position."""


_shapes: Shapes | None = None
_dtype: Any = None


def set_p2p_tensor_shapes(shapes: Shapes) -> None:
    """The shapes of the tensors that a stage hands to the next, one for each of at most 32 tensors: a tuple of sizes, or
    a :class:`TensorSpec`, which says a dtype of its own and whether it has a gradient. A dict gives them names.

    It holds from the next step on, for every pipeline of the process; every rank must say the same.
    """
    global _shapes
    boundary_of(shapes, torch.float32)
    _shapes = shapes


def set_p2p_tensor_dtype(dtype: torch.dtype | Sequence[torch.dtype]) -> None:
    """The dtype of those tensors, or one for each."""
    global _dtype
    for one in dtype if isinstance(dtype, (tuple, list)) else [dtype]:
        if not isinstance(one, torch.dtype):
            raise TypeError(f"dtype is {one!r}, must be a torch.dtype")
    _dtype = dtype


def current_boundary() -> Boundary:
    """What was set last. Raises InvalidArgument if nothing was."""
    if _shapes is None:
        raise InvalidArgument("set_p2p_tensor_shapes was not called: a step must know what its stages hand on")
    has_dtypes = all(
        isinstance(one, TensorSpec) for one in (_shapes.values() if isinstance(_shapes, Mapping) else _shapes)
    )
    if _dtype is None and not has_dtypes:
        raise InvalidArgument("set_p2p_tensor_dtype was not called: a step must know what its stages hand on")
    return boundary_of(_shapes, _dtype)


def boundary_of(shapes: Shapes, dtype: Any) -> Boundary:
    """Shapes with their dtypes. Raises InvalidArgument, TypeError."""
    names = list(shapes) if isinstance(shapes, Mapping) else None
    values = list(shapes.values() if isinstance(shapes, Mapping) else shapes)
    dtypes = list(dtype) if isinstance(dtype, (tuple, list)) else [dtype] * len(values)
    if len(dtypes) != len(values):
        raise InvalidArgument(f"there are {len(dtypes)} dtypes for {len(values)} shapes, must be one, or one for each")
    return Boundary([_spec(k, *one) for k, one in enumerate(zip(values, dtypes))], names)


def _spec(k: int, value: Any, dtype: torch.dtype) -> TensorSpec:
    if isinstance(value, TensorSpec):
        return value
    try:
        return TensorSpec(tuple(int(size) for size in value), dtype)
    except TypeError:
        raise TypeError(f"shapes[{k}] is {value!r}, must be a shape or a TensorSpec") from None
