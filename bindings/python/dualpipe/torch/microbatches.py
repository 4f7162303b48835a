"""Batches into micro-batches and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import InvalidArgument


def scatter(values: Any, count: int, dim: int, name: str = "inputs") -> list[tuple[Any, ...]]:
    """The arguments of each of ``count`` micro-batches: of a tensor, its parts along ``dim``; of a list or tuple of
    ``count``, one after another; of None, None. ``values``: one such value or a tuple or list of them.

    Raises TypeError, and InvalidArgument if a list has another length, or a tensor less along ``dim`` than ``count``.
    """
    if isinstance(values, torch.Tensor):
        values = (values,)
    if not isinstance(values, (tuple, list)):
        raise TypeError(f"{name} is {type(values).__name__}, must be a tensor, or a tuple or list of them")
    if not values:
        return [() for _ in range(count)]
    return list(zip(*(_split(value, count, dim, f"{name}[{k}]") for k, value in enumerate(values))))


def _split(value: Any, count: int, dim: int, name: str) -> Sequence[Any]:
    if value is None:
        return [None] * count
    if isinstance(value, torch.Tensor):
        if not -value.dim() <= dim < value.dim():
            raise InvalidArgument(f"{name} has shape {list(value.shape)}, must have a dimension {dim}, the batch's")
        if value.shape[dim] < count:
            raise InvalidArgument(
                f"{name} has {value.shape[dim]} along its batch dimension {dim}, must have at least {count}, "
                "one for each micro-batch"
            )
        return value.tensor_split(count, dim=dim)
    if isinstance(value, (tuple, list)):
        if len(value) != count:
            raise InvalidArgument(f"{name} has {len(value)} micro-batches, must have {count}")
        return value
    raise TypeError(f"{name} is {type(value).__name__}, must be a tensor, a list of {count} micro-batches, or None")


def gather(outputs: Sequence[Any], dim: int) -> Any:
    """What all micro-batches gave, along ``dim``: a tensor, or a tuple or dict as each of them gave. What differs in
    other dimensions stays a list, of one for each micro-batch."""
    first = outputs[0]
    if isinstance(first, Mapping):
        return {key: _join([one[key] for one in outputs], dim) for key in first}
    joined = tuple(_join(parts, dim) for parts in zip(*outputs))
    return joined[0] if len(joined) == 1 else joined


def _join(parts: Sequence[Any], dim: int) -> Any:
    if parts[0] is None:
        return None
    if len(parts) == 1:
        return parts[0]
    if parts[0].dim() == 0:  # a number for each micro-batch has no batch dimension
        return torch.stack(tuple(parts))
    is_uneven = len({(*one.shape[:dim], *one.shape[dim:][1:]) for one in parts}) > 1
    return list(parts) if is_uneven else torch.cat(tuple(parts), dim)
