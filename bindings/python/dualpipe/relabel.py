"""Fewer experts moved for the same balance: a placement's nodes, GPUs and slots numbered after the current ones.

A placement says which experts share a GPU, and which GPUs a node, but all nodes are alike, so are a node's GPUs, and
so are a GPU's slots: their numbers are free. DeepSeek's EPLB knows nothing of a placement before, and numbers anew each
time; an engine copies experts for it. :func:`relabel` picks the numbers by which the most stays:

1. for each new node and each current one, the numbers of GPUs by which the most slots' experts stay on their GPU, and
   of equally many, on their node;
2. with these, the numbers of nodes by which the most stay; and if more experts had to come from other nodes than by the
   numbers as they are, those;
3. slots: an expert that stays on its GPU stays in its slot.

Where experts are not bound to nodes, 1 is for all GPUs at once, and there is no 2.

1 and 2 are assignment problems, solved exactly (:func:`assign`), in integers: all ranks get the same numbers on every
platform, which no outside solver promises of equally good answers. This is no search for another placement, and so it
never changes a GPU's load.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InvalidArgument

Map = npt.NDArray[np.int64]
"""[layers, slots]: the expert in each slot, GPU after GPU; of a current map -1 where a slot is empty."""


def moves(phy2log: Map, current: Map, num_gpus: int) -> npt.NDArray[np.int64]:
    """[layers]: of how many slots of ``phy2log`` the expert is not yet on the slot's GPU, by ``current``.

    With the number of nodes for ``num_gpus``: how many must come from another node. Raises as :func:`relabel`.
    """
    new, old = _check(phy2log, current, num_gpus, 1)
    held = _counts(old, num_gpus, _num_experts(new, old)) > 0
    there = np.take_along_axis(held, _by_gpu(new, num_gpus), axis=2)
    found: npt.NDArray[np.int64] = (~there).sum(axis=(1, 2))
    return found


def keep_slots(phy2log: Map, current: Map, num_gpus: int) -> Map:
    """``phy2log`` with the slots of each GPU reordered: an expert that is on the GPU by ``current`` too keeps its slot,
    and the others fill the free slots in their order. Raises as :func:`relabel`."""
    new, old = _check(phy2log, current, num_gpus, 1)
    rows, old_rows = (_by_gpu(each, num_gpus).reshape(-1, new.shape[1] // num_gpus) for each in (new, old))
    kept = np.full_like(rows, -1)
    used = np.zeros(rows.shape, bool)
    for slot in range(rows.shape[1]):
        same = (rows == old_rows[:, slot : slot + 1]) & ~used
        row = np.flatnonzero(same.any(axis=1))
        kept[row, slot] = old_rows[row, slot]
        used[row, same[row].argmax(axis=1)] = True
    kept[kept < 0] = rows[~used]
    return kept.reshape(new.shape)


def relabel(phy2log: Map, current: Map, num_nodes: int, num_gpus: int, *, hierarchical: bool = True) -> Map:
    """``phy2log`` with its nodes, their GPUs and the GPUs' slots renumbered, so that much stays as ``current`` has it.

    ``phy2log``: [layers, slots], int64, the expert in each slot; node n holds slots / num_nodes slots from
    n * slots / num_nodes on, GPU g likewise. ``current``: the same shape, -1 where nothing is. ``num_nodes`` must
    divide ``num_gpus``, and that the slots. ``hierarchical``: GPUs that share a node are to share one afterwards; else
    any GPU may get any number.

    Which experts share a GPU is as before, if hierarchical which share a node too. In no layer does :func:`moves` grow:
    not between GPUs, if hierarchical not between nodes either. Takes O(layers * num_gpus^2 * GPUs that are numbered
    together) at worst. Raises :class:`~dualpipe.errors.InvalidArgument`.
    """
    new, old = _check(phy2log, current, num_gpus, num_nodes)
    num_layers, num_slots = new.shape
    # A slot whose expert stays on the GPU counts more than all that stay on their node only.
    on_node = _stay(new, old, num_gpus, num_nodes)
    gains = _stay(new, old, num_gpus, num_gpus) * (num_slots + 1) + on_node.repeat(num_gpus // num_nodes, axis=2)
    parts = num_nodes if hierarchical else 1
    layers, part, size = np.arange(num_layers)[:, None], np.arange(parts), num_gpus // parts
    # [layers, new part, current part, new GPU of it, current GPU of it]
    gains = gains.reshape(num_layers, parts, size, parts, size).swapaxes(2, 3)
    gpu_of = assign(gains.reshape(-1, size, size)).reshape(gains.shape[:-1])
    part_of = assign(np.take_along_axis(gains, gpu_of[..., None], axis=4).sum(axis=(3, 4)))
    if hierarchical:
        on_node = on_node.reshape(num_layers, parts, size, parts).sum(axis=2)
        part_of[on_node[layers, part, part_of].sum(axis=1) < on_node[:, part, part].sum(axis=1)] = part
    becomes = part_of[:, :, None] * size + gpu_of[layers, part, part_of]
    renumbered = np.empty((num_layers, num_gpus, num_slots // num_gpus), np.int64)
    renumbered[layers, becomes.reshape(num_layers, -1)] = _by_gpu(new, num_gpus)
    return keep_slots(renumbered.reshape(new.shape), old, num_gpus)


def assign(gains: Any) -> npt.NDArray[np.int64]:
    """[problems, n]: for each problem the column of every row, each column once, of the greatest sum of gains.

    ``gains``: [problems, n, n], whole numbers below 2^31. Shortest augmenting paths (R. Jonker and A. Volgenant, 1987,
    Computing 38), a step of all problems at once: numpy's cost per call is what counts at these sizes. Of equal sums
    the result is always the same one.
    """
    cost = np.asarray(gains).max(initial=0) - np.asarray(gains)
    cost = cost.astype(np.int64)
    problems, n = cost.shape[:2]
    each = np.arange(problems)
    row_price, column_price = cost.min(axis=2, initial=1 << 31), np.zeros((problems, n), np.int64)
    column_of, row_of = np.full((problems, n), -1), np.full((problems, n), -1)
    for row in range(n):  # what is cheapest for its row and not taken is right to begin with
        cheapest = (cost[:, row] == row_price[:, row, None]) & (row_of < 0)
        column = cheapest.argmax(axis=1)
        found = each[cheapest[each, column]]
        column_of[found, row], row_of[found, column[found]] = column[found], row
    while True:
        open_rows = column_of < 0
        problem = np.flatnonzero(open_rows.any(axis=1))
        if not problem.size:
            return column_of
        _augment(cost, row_price, column_price, column_of, row_of, problem, open_rows[problem].argmax(axis=1))


def _augment(
    cost: Any, row_price: Any, column_price: Any, column_of: Any, row_of: Any, problem: Any, start: Any
) -> None:
    """Gives row start[k] of problem[k] a column, by the cheapest chain of rows that move on to another."""
    n = cost.shape[1]
    far = np.int64(1) << 60
    distance = np.full((problem.size, n), far)
    reached_from = np.full((problem.size, n), -1)
    done = np.zeros((problem.size, n), bool)
    row, length, end = start.copy(), np.zeros(problem.size, np.int64), np.full(problem.size, -1)
    live = np.arange(problem.size)
    while live.size:
        p, r = problem[live], row[live]
        through = cost[p, r] + (length[live] - row_price[p, r])[:, None] - column_price[p]
        nearer = (through < distance[live]) & ~done[live]
        distance[live] = np.where(nearer, through, distance[live])
        reached_from[live] = np.where(nearer, r[:, None], reached_from[live])
        # Of equally near columns a free one: it ends the search.
        rank = np.where(done[live], 2 * far, 2 * distance[live] + (row_of[p] >= 0))
        column = rank.argmin(axis=1)
        length[live] = distance[live, column]
        done[live, column] = True
        row[live] = row_of[p, column]
        free = row[live] < 0
        end[live[free]] = column[free]
        live = live[~free]
    slack = np.where(done, length[:, None] - distance, 0)
    column_price[problem] -= slack
    k, column = np.nonzero(done & (row_of[problem] >= 0))
    row_price[problem[k], row_of[problem[k], column]] += slack[k, column]
    row_price[problem, start] += length
    live, column = np.arange(problem.size), end
    while live.size:
        p, r = problem[live], reached_from[live, column]
        before = column_of[p, r]
        row_of[p, column], column_of[p, r] = r, column
        on = r != start[live]
        live, column = live[on], before[on]


def _check(phy2log: Any, current: Any, num_gpus: int, num_nodes: int) -> tuple[Map, Map]:
    """Both maps as int64, of one shape that divides as it must."""
    new, old = np.asarray(phy2log), np.asarray(current)
    for name, each in (("phy2log", new), ("current", old)):
        if each.dtype.kind not in "iu":
            raise TypeError(f"{name} has dtype {each.dtype}, must be integers")
    if new.ndim != 2 or new.size == 0:
        raise InvalidArgument(f"phy2log has shape {list(new.shape)}, must be [layers, slots]")
    if old.shape != new.shape:
        raise InvalidArgument(f"current has shape {list(old.shape)}, must be phy2log's, {list(new.shape)}")
    if new.min() < 0:
        raise InvalidArgument(f"phy2log has an expert {new.min()}, must be at least 0")
    for name, value, whole, of in (
        ("num_gpus", num_gpus, new.shape[1], "slots of phy2log"),
        ("num_nodes", num_nodes, num_gpus, "num_gpus"),
    ):
        if value < 1 or whole % value:
            raise InvalidArgument(f"{name} is {value}, must divide {of}, {whole}")
    return new.astype(np.int64), old.astype(np.int64)


def _num_experts(new: Map, old: Map) -> int:
    return int(max(new.max(), old.max())) + 1


def _by_gpu(phy2log: Map, num_gpus: int) -> npt.NDArray[np.int64]:
    """[layers, gpus, slots of a GPU]"""
    return phy2log.reshape(phy2log.shape[0], num_gpus, -1)


def _stay(new: Map, old: Map, num_gpus: int, num_places: int) -> npt.NDArray[np.int64]:
    """[layers, new GPU, place]: how many of the GPU's slots have an expert that the place, a GPU or node, holds now."""
    num_experts = _num_experts(new, old)
    held = _counts(old, num_places, num_experts) > 0
    # In floats, which numpy multiplies fast, and exactly: these are small whole numbers.
    stay = _counts(new, num_gpus, num_experts) @ held.astype(np.float32).transpose(0, 2, 1)
    whole: npt.NDArray[np.int64] = stay.astype(np.int64)
    return whole


def _counts(phy2log: Map, num_gpus: int, num_experts: int) -> npt.NDArray[np.float32]:
    """[layers, gpus, experts]: in how many slots a GPU holds an expert."""
    num_layers, num_slots = phy2log.shape
    rows = np.repeat(np.arange(num_layers * num_gpus), num_slots // num_gpus) * num_experts
    known = phy2log.ravel() >= 0
    counts = np.bincount((rows + phy2log.ravel())[known], minlength=num_layers * num_gpus * num_experts)
    return counts.reshape(num_layers, num_gpus, num_experts).astype(np.float32)
