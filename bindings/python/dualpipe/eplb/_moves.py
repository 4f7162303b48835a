"""What leads from one placement to another, and what a move gains."""

from __future__ import annotations

import ctypes as c
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _expert_structs as e
from .._library import read_values, uint32
from ._arguments import Groups, experts_in, make_goal, read_loads, read_map
from ._cluster import Cluster

POINTS_EXPECTED = 512
"""Points of a layer's curve: with more of them the library computes all a second time."""


class Moves(NamedTuple):
    """[layers], int64 each: slots by where the nearest replica of their expert is at first."""

    total: npt.NDArray[np.int64]
    """Slots whose expert was not on their GPU: the sum of the next three."""
    same_node: npt.NDArray[np.int64]
    """From another GPU of the node."""
    other_node: npt.NDArray[np.int64]
    """From another node."""
    lost: npt.NDArray[np.int64]
    """From nowhere: they must be loaded again."""
    same_gpu: npt.NDArray[np.int64]
    """Slots whose expert was in another slot of their GPU: copies within the GPU, no moves."""


class MoveCurve(NamedTuple):
    """The imbalance of one layer against moves: ever more of these, and ever less of that."""

    moves: npt.NDArray[np.int64]
    """[points] Moved slots; of the first point those without which the placement would not be valid."""
    imbalance: npt.NDArray[np.float64]
    """[points] The heaviest GPU's load / the mean."""


def moves(current: Any, new: Any, cluster: Cluster, *, num_experts: int | None = None) -> Moves:
    """Counts what leads from ``current`` to ``new``, on the cluster as it is now.

    Both are a :class:`~dualpipe.eplb.Plan` or [layers, slots], integers: the expert in each slot, -1 where there is
    none. ``num_experts``: as many as they speak of, unless said. Raises :class:`~dualpipe.errors.InvalidArgument`.
    """
    before = read_map("current", current, cluster.num_slots)
    after = read_map("new", new, cluster.num_slots, len(before))
    experts = max(experts_in(before, after), 1) if num_experts is None else uint32("num_experts", num_experts)
    struct = cluster._as_c()
    where = (c.byref(struct), experts, before.ctypes.data, after.ctypes.data, before.size)
    counts = read_values("dualpipe_expert_moves", e.MoveCount, *where)
    names = ("moves", "same_node", "other_node", "lost", "same_gpu")
    return Moves(*(counts[name].astype(np.int64) for name in names))


def move_curve(
    loads: Any,
    current: Any,
    cluster: Cluster,
    *,
    max_moves: int = 1 << 20,
    num_groups: int = 1,
    groups: Groups = "free",
    min_gpus: int = 1,
    min_nodes: int = 1,
) -> list[MoveCurve]:
    """What imbalance can be had for how many moves: for each layer points, up to ``max_moves`` or to where no more is
    gained.

    ``loads``, ``num_groups``, ``groups``, ``min_gpus``, ``min_nodes``: as for :func:`~dualpipe.eplb.balance`, with an
    equal split. ``current``: a :class:`~dualpipe.eplb.Plan` or [layers, slots], -1 where a slot is empty. The first
    point is it, made valid where it is not; a layer that single moves cannot make valid has no points. Every point was
    found by a search, which is no proof that none is lower. Raises :class:`~dualpipe.errors.InvalidArgument`.
    """
    values = read_loads("loads", loads)
    num_layers, num_experts = values.shape[-2:]
    before = read_map("current", current, cluster.num_slots, num_layers)
    goal = make_goal(
        num_layers, num_experts, num_groups=num_groups, groups=groups, min_gpus=min_gpus, min_nodes=min_nodes
    )
    struct = cluster._as_c()
    most = uint32("max_moves", max_moves)
    where = (c.byref(struct), c.byref(goal), values.ctypes.data, values.size, before.ctypes.data, before.size, most)
    expected = num_layers * min(most + 1, POINTS_EXPECTED)
    points = read_values("dualpipe_expert_move_curve", e.MovePoint, *where, expected=expected)
    of_layer = np.searchsorted(points["layer"], np.arange(num_layers + 1))
    parts = [points[first:end] for first, end in zip(of_layer, of_layer[1:])]
    return [MoveCurve(part["moves"].astype(np.int64), part["imbalance"].copy()) for part in parts]
