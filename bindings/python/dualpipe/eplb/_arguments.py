"""Loads, placements and goals as callers have them, made what the C API takes."""

from __future__ import annotations

import ctypes as c
import sys
from typing import Any, Callable, Union

import numpy as np
import numpy.typing as npt

from .. import _expert_structs as e
from .._library import uint32
from ..errors import InvalidArgument

Loads = npt.NDArray[np.float32]
"""[steps, layers, experts] or [layers, experts], row after row."""
Map = npt.NDArray[np.int64]
"""[layers, slots]: the expert in each slot, -1 where there is none."""
Groups = Union[str, float]
"""``"free"``, ``"whole"``, or a price."""
SPLITS = ("equal", "weighted")
"""By the numbers of ``dualpipe_split``."""


def torch_of(value: Any) -> Any:
    """The module torch if ``value`` is a tensor, otherwise None."""
    # Not imported for this: who has no torch loaded has no tensors.
    torch: Any = sys.modules.get("torch")
    return torch if torch is not None and isinstance(value, torch.Tensor) else None


def like(value: Any) -> Callable[[npt.NDArray[Any]], Any]:
    """What makes of a result what ``value`` is: a tensor on its device, or numpy's array as it is."""
    torch = torch_of(value)
    if torch is None:
        return lambda array: array
    device = value.device
    return lambda array: torch.from_numpy(array).to(device)


def read_loads(name: str, value: Any, *, window: bool = True) -> Loads:
    """float32 [layers, experts], with ``window`` also [steps, layers, experts]: what numpy takes, or a tensor."""
    torch = torch_of(value)
    if torch is not None:
        if value.is_complex():
            raise TypeError(f"{name} has dtype {value.dtype}, must be real numbers")
        value = value.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()
    values = np.asarray(value)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {values.dtype}, must be real numbers")
    if values.ndim != 2 and not (window and values.ndim == 3):
        shapes = "[layers, experts]" + (" or [steps, layers, experts]" if window else "")
        raise InvalidArgument(f"{name} has shape {list(values.shape)}, must be {shapes}")
    if values.size == 0:
        raise InvalidArgument(f"{name} has shape {list(values.shape)}, must have layers and experts")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which the library refuses
        return np.ascontiguousarray(values, dtype=np.float32)


def read_map(name: str, value: Any, num_slots: int, num_layers: int | None = None) -> Map:
    """int64 [layers, slots]: a plan's map, what numpy takes, or a tensor."""
    value = getattr(value, "phy2log", value)
    values = read_numbers(name, value, "iu")
    layers = "layers" if num_layers is None else num_layers
    if values.ndim != 2 or values.size == 0 or values.shape != (num_layers or len(values), num_slots):
        raise InvalidArgument(
            f"{name} has shape {list(values.shape)}, must be [{layers}, {num_slots}], [layers, slots]"
        )
    return np.ascontiguousarray(values, dtype=np.int64)


def read_numbers(name: str, value: Any, kinds: str) -> npt.NDArray[Any]:
    """What numpy takes, or a tensor, of a dtype of these kinds ("b", "i", "u", "f")."""
    values = np.asarray(value.detach().cpu() if torch_of(value) is not None else value)
    if values.dtype.kind not in kinds:
        raise TypeError(f"{name} has dtype {values.dtype}, must be {'real numbers' if 'f' in kinds else 'integers'}")
    return values


def as_shares(shares: Any) -> npt.NDArray[np.float64]:
    """float64, row after row: what numpy takes, or a tensor."""
    return np.ascontiguousarray(read_numbers("shares", shares, "fiu"), dtype=np.float64)


def in_row(values: npt.NDArray[Any] | None) -> tuple[int | None, int]:
    """(values, count) as the C API takes them."""
    return (None, 0) if values is None else (values.ctypes.data, values.size)


def experts_in(*maps: Map) -> int:
    """How many experts there must be for these maps."""
    return max(int(each.max()) for each in maps) + 1


def make_goal(
    num_layers: int,
    num_experts: int,
    *,
    num_groups: int = 1,
    groups: Groups = "free",
    split: str = "equal",
    min_gpus: int = 1,
    min_nodes: int = 1,
    effort: int = 1,
) -> e.Goal:
    """``dualpipe_goal``. Ranges are the library's to check, except for 0, which stands for 1 there."""
    if split not in SPLITS:
        raise InvalidArgument(f"split is {split!r}, must be {' or '.join(map(repr, SPLITS))}")
    rule, price = _group_rule(groups)
    return e.Goal(
        size=c.sizeof(e.Goal),
        num_layers=num_layers,
        num_experts=num_experts,
        num_groups=at_least_1("num_groups", num_groups),
        group_rule=rule,
        split=SPLITS.index(split),
        min_gpus=at_least_1("min_gpus", min_gpus),
        min_nodes=at_least_1("min_nodes", min_nodes),
        effort=at_least_1("effort", effort),
        price=price,
    )


def _group_rule(groups: Any) -> tuple[int, float]:
    """A ``dualpipe_group_rule``, and its price."""
    if isinstance(groups, str):
        rules = {"free": (0, 0.0), "whole": (1, 0.0)}
        if groups not in rules:
            raise InvalidArgument(f"groups is {groups!r}, must be 'free', 'whole' or a price")
        return rules[groups]
    return 2, real("groups", groups)


def real(name: str, value: Any) -> float:
    """``value`` as a float; its range is the library's to check. TypeError if it is no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}, must be a number") from None


def at_least_1(name: str, value: Any) -> int:
    """``value`` as an integer that is not 0."""
    number = uint32(name, value)
    if number == 0:
        raise InvalidArgument(f"{name} is 0, must be at least 1")
    return number
