"""Counts and placed experts as callers have them, made what the C API takes."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import InvalidArgument
from ._arguments import Map, read_map, torch_of
from ._cluster import Cluster
from ._plan import Plan


def array_of(value: Any) -> npt.NDArray[Any]:
    """What numpy takes, or a tensor, as an array on the host."""
    torch = torch_of(value)
    if torch is not None:
        value = value.detach().cpu()
        # numpy has no bfloat16.
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def read_integers(
    name: str, value: Any, dtype: Any, shape: tuple[int | None, ...], *, whole: bool = False
) -> npt.NDArray[Any]:
    """Integers of ``dtype`` and ``shape``, of which None is any number; with ``whole`` also floats that are integers.

    Raises InvalidArgument for another shape and for numbers that ``dtype`` has not, TypeError for no integers.
    """
    values = array_of(value)
    # An empty list is numpy's float64.
    if values.size > 0 and values.dtype.kind not in ("biuf" if whole else "biu"):
        raise TypeError(f"{name} has dtype {values.dtype}, must be integers")
    if values.ndim != len(shape) or any(want not in (None, has) for want, has in zip(shape, values.shape)):
        wanted = ", ".join("any" if each is None else str(each) for each in shape)
        raise InvalidArgument(f"{name} has shape {list(values.shape)}, must be [{wanted}]")
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    if values.size > 0 and values.dtype != np.dtype(dtype):
        # Also false where it is not a number.
        fits = (values >= least) & (values <= most)
        if values.dtype.kind == "f":
            fits &= values == np.trunc(values)
        if not fits.all():
            at = tuple(int(i) for i in np.argwhere(~fits)[0])
            raise InvalidArgument(f"{name}{list(at)} is {values[at]}, must be a whole number from {least} to {most}")
    return np.ascontiguousarray(values, dtype=dtype)


class Placed(NamedTuple):
    """A placement and what it is on."""

    cluster: Cluster
    slots: Map
    shares: npt.NDArray[np.float64] | None

    @property
    def shares_at(self) -> int | None:
        """Where the shares are, None if they are equal."""
        return None if self.shares is None else self.shares.ctypes.data


def read_placement(name: str, value: Any, cluster: Cluster | None, shares: Any, num_layers: int) -> Placed:
    """A plan, with its cluster and its shares unless others are given; or [layers, slots] on a cluster."""
    if isinstance(value, Plan):
        cluster = value.cluster if cluster is None else cluster
        shares = value.shares if shares is None and value.split == "weighted" else shares
    if cluster is None:
        raise InvalidArgument(f"cluster is None, must be given as {name} is no Plan")
    slots = read_map(name, value, cluster.num_slots, num_layers)
    if shares is None:
        return Placed(cluster, slots, None)
    values = array_of(shares)
    if values.dtype.kind not in "fiu":
        raise TypeError(f"the shares of {name} have dtype {values.dtype}, must be real numbers")
    if values.shape != slots.shape:
        raise InvalidArgument(f"the shares of {name} have shape {list(values.shape)}, must be {list(slots.shape)}")
    return Placed(cluster, slots, np.ascontiguousarray(values, dtype=np.float64))


def integer(name: str, value: Any, most: int) -> int:
    """``value`` as an integer from 0 on. TypeError if it is none."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, must be an integer") from None
    if not 0 <= number <= most:
        raise InvalidArgument(f"{name} is {number}, must be 0 to {most}")
    return number
