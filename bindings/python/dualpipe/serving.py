"""Expert balancing inside a serving engine: which policy by which setting, and the map that the experts lie by now.

What the plug-ins for vLLM and SGLang (packages ``dualpipe-vllm`` and ``dualpipe-sglang``) share. Another engine's
plug-in needs :func:`settings` when it is loaded and :func:`place` when the engine rebalances. A new policy is an entry
of :data:`POLICIES`.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt

from . import eplb
from ._library import uint32, version
from .errors import InvalidArgument
from .relabel import Map, keep_slots, moves, relabel


class Sizes(NamedTuple):
    """What is placed on what; the meaning is :func:`dualpipe.eplb.rebalance_experts`'s."""

    num_replicas: int
    num_groups: int
    num_nodes: int
    num_gpus: int


class Placement(NamedTuple):
    """Where the replicas of every layer's experts lie, and how well they are balanced; numpy's arrays."""

    phy2log: Map
    """[layers, num_replicas], int64: the expert in each slot, GPU by GPU."""
    log2phy: Map
    """[layers, experts, most replicas of any expert], int64: the slots of each expert, -1 behind the last."""
    logcnt: npt.NDArray[np.int64]
    """[layers, experts], int64: how many replicas each expert has."""
    imbalance: npt.NDArray[np.float64]
    """[layers], float64: load of the heaviest GPU / mean load of the GPUs, at least 1."""
    lower_bound: npt.NDArray[np.float64]
    """[layers], float64: no placement has a lower imbalance (if groups stay on their nodes: none that keeps them
    there)."""


class Settings(NamedTuple):
    """How to place. Made by :func:`settings`, which checks it."""

    policy: str = "exact"
    """A name in :data:`POLICIES`."""
    topology: str = "auto"
    """One of :data:`TOPOLOGIES`."""
    max_moves: int | None = None
    """For ``few_moves``: so many slots of a layer may get an expert from another GPU; None for :data:`MOVES`, unless
    there is ``reach``."""
    reach: float | None = None
    """For ``few_moves``: as few as it takes to reach this imbalance."""


Policy = Callable[[Any, Sizes, bool, "Map | None", Settings], Placement]
"""From loads [layers, experts], sizes, whether groups of experts stay on their node, the current map [layers,
num_replicas] if there is one, and what was chosen."""


def _exact(weight: Any, sizes: Sizes, hierarchical: bool, current: Map | None, _: Settings) -> Placement:
    """DeepSeek's placement; what stays on its GPU keeps its slot."""
    placement = _deepseek(weight, sizes, hierarchical)
    if current is None:
        return placement
    return _with_map(placement, keep_slots(placement.phy2log, current, sizes.num_gpus))


def _matched(weight: Any, sizes: Sizes, hierarchical: bool, current: Map | None, _: Settings) -> Placement:
    """DeepSeek's placement, its nodes, GPUs and slots matched to the current ones."""
    placement = _deepseek(weight, sizes, hierarchical)
    if current is None:
        return placement
    phy2log = relabel(placement.phy2log, current, _even_nodes(sizes), sizes.num_gpus, hierarchical=hierarchical)
    return _with_map(placement, phy2log)


def _refined(weight: Any, sizes: Sizes, hierarchical: bool, current: Map | None, _: Settings) -> Placement:
    """The best placement that can be found, numbered so that as much as possible stays."""
    return _balance(weight, sizes, hierarchical, current=current)


def _few_moves(weight: Any, sizes: Sizes, hierarchical: bool, current: Map | None, chosen: Settings) -> Placement:
    """The current placement, made better with few moves."""
    if current is None:
        return _balance(weight, sizes, hierarchical)
    most = MOVES if chosen.max_moves is None and chosen.reach is None else chosen.max_moves
    return _balance(weight, sizes, hierarchical, current=current, max_moves=most, reach=chosen.reach)


POLICIES: dict[str, Policy] = {"exact": _exact, "matched": _matched, "refined": _refined, "few_moves": _few_moves}
"""The policies of this version by their names in settings."""

TOPOLOGIES = ("auto", "flat", "hierarchical")
"""``auto`` is DeepSeek's rule, hierarchical where the nodes divide the groups; ``flat`` has every expert go to any
node; ``hierarchical`` refuses sizes by which it cannot be."""

MOVES = 10
"""Of a layer, what ``few_moves`` makes at most if nothing else is said."""


def settings(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in the environment (or in ``environ``): ``DUALPIPE_EPLB_POLICY``, ``DUALPIPE_EPLB_TOPOLOGY``, and for
    the policy ``few_moves`` one of ``DUALPIPE_EPLB_MOVES`` and ``DUALPIPE_EPLB_REACH``.

    Raises :class:`~dualpipe.errors.InvalidArgument` for a value that this version does not have.
    """
    values = os.environ if environ is None else environ
    default = Settings()
    found = checked(
        values.get("DUALPIPE_EPLB_POLICY") or default.policy,
        values.get("DUALPIPE_EPLB_TOPOLOGY") or default.topology,
        names=("DUALPIPE_EPLB_POLICY", "DUALPIPE_EPLB_TOPOLOGY"),
    )
    max_moves = _number(values, "DUALPIPE_EPLB_MOVES", int, 0, "a whole number of at least 0")
    reach = _number(values, "DUALPIPE_EPLB_REACH", float, 1, "a number of at least 1")
    if max_moves is not None and reach is not None:
        raise InvalidArgument("DUALPIPE_EPLB_MOVES and DUALPIPE_EPLB_REACH are both set, must be one of them")
    return found._replace(max_moves=max_moves, reach=reach)


def _number(values: Mapping[str, str], name: str, kind: Any, least: int, words: str) -> Any:
    """The number in a variable, None if there is none."""
    text = values.get(name)
    if not text:
        return None
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not least <= number < 1 << 31:
        raise InvalidArgument(f"{name} is {text!r}, must be {words}")
    return number


def checked(policy: str, topology: str, names: tuple[str, str] = ("policy", "topology")) -> Settings:
    """These settings, ``-`` in a policy's name for ``_``. Raises :class:`~dualpipe.errors.InvalidArgument`, which says
    which of ``names`` is not known."""
    found = Settings(policy.strip().replace("-", "_"), topology.strip())
    for name, given, value, known in zip(names, (policy, topology), found, (POLICIES, TOPOLOGIES)):
        if value not in known:
            raise InvalidArgument(f"{name} is {given!r}; dualpipe {version} has {', '.join(known)}")
    return found


def place(weight: Any, sizes: Sizes, chosen: Settings, current: Any = None) -> Placement:
    """Places the experts as ``chosen`` says.

    ``weight``: [layers, experts], the load of each expert, finite and not negative, as numpy takes it. ``current``:
    [layers, num_replicas], integers, the expert in each slot now, -1 where there is none; None or another shape:
    nothing is known, and the policies that keep experts in place do not.

    The result depends on the arguments alone, so that ranks that were given the same agree. The library uses one
    thread, as each of an engine's processes calls this. Any thread may call it at any time. Raises
    :class:`~dualpipe.errors.InvalidArgument`, TypeError.
    """
    sizes = Sizes(*(uint32(name, value) for name, value in zip(Sizes._fields, sizes)))
    for name, value in zip(Sizes._fields, sizes):
        if value == 0:
            raise InvalidArgument(f"{name} is 0, must be at least 1")
    divides = sizes.num_groups % sizes.num_nodes == 0
    if chosen.topology == "hierarchical" and not divides:
        raise InvalidArgument(
            f"num_groups is {sizes.num_groups}, must be a multiple of num_nodes, {sizes.num_nodes}: "
            "the topology is hierarchical"
        )
    known = _known(current, np.shape(weight)[:1], sizes.num_replicas)
    return POLICIES[chosen.policy](weight, sizes, divides and chosen.topology != "flat", known, chosen)


def log_placement(logger: logging.Logger, placement: Placement, num_gpus: int, current: Any = None) -> None:
    """A line at level DEBUG: how good ``placement`` is, and what it moves from ``current``, if that is known."""
    if not logger.isEnabledFor(logging.DEBUG):
        return
    known = current is not None and np.shape(current) == placement.phy2log.shape
    logger.debug(
        "EPLB: imbalance %.4f, lower bound %.4f (means of %d layers), %s experts from another GPU",
        placement.imbalance.mean(),
        placement.lower_bound.mean(),
        len(placement.imbalance),
        moves(placement.phy2log, current, num_gpus).sum() if known else "it is not known how many",
    )


class CurrentMaps:
    """The maps that this process gave out last, for an engine that does not say where the experts are.

    One for each shape of problem. Any thread may use it.
    """

    def __init__(self) -> None:
        self._maps: dict[tuple[int, ...], Map] = {}
        self._lock = threading.Lock()

    def find(self, *shape: int) -> Map | None:
        """What :meth:`keep` was given last for this shape."""
        with self._lock:
            return self._maps.get(shape)

    def keep(self, phy2log: Map, *shape: int) -> None:
        """``phy2log`` is where the experts are from now on, for this shape."""
        with self._lock:
            self._maps[shape] = phy2log.copy()

    def clear(self) -> None:
        """Forgets all."""
        with self._lock:
            self._maps.clear()


def _deepseek(weight: Any, sizes: Sizes, hierarchical: bool) -> Placement:
    # Flat, nodes play no part.
    placed_on = sizes if hierarchical else sizes._replace(num_nodes=1)
    return _balance(weight, placed_on, hierarchical, policy="deepseek")


def _balance(weight: Any, sizes: Sizes, hierarchical: bool, **more: Any) -> Placement:
    """By :func:`dualpipe.eplb.balance`. Engines have as many slots on each GPU, and GPUs on each node."""
    if sizes.num_replicas % sizes.num_gpus:
        raise InvalidArgument(f"num_replicas is {sizes.num_replicas}, must be a multiple of num_gpus, {sizes.num_gpus}")
    if hierarchical and sizes.num_gpus % sizes.num_nodes:
        raise InvalidArgument(f"num_gpus is {sizes.num_gpus}, must be a multiple of num_nodes, {sizes.num_nodes}")
    if np.ndim(weight) != 2:
        raise InvalidArgument(f"weight has shape {list(np.shape(weight))}, must be [layers, experts]")
    plan = eplb.balance(
        weight,
        num_gpus=sizes.num_gpus,
        num_slots=sizes.num_replicas,
        num_nodes=_even_nodes(sizes),
        num_groups=sizes.num_groups if hierarchical else 1,
        groups="whole" if hierarchical else "free",
        num_threads=1,
        **more,
    )
    with plan:
        return Placement(plan.phy2log, plan.log2phy, plan.logcnt, plan.imbalance, plan.lower_bound)


def _even_nodes(sizes: Sizes) -> int:
    """Where GPUs do not divide, nobody can tell which node a GPU is on."""
    return sizes.num_nodes if sizes.num_gpus % sizes.num_nodes == 0 else 1


def _known(current: Any, layers: tuple[int, ...], num_replicas: int) -> Map | None:
    """The current map, if it speaks of these layers and slots."""
    if current is None:
        return None
    values = np.asarray(current)
    if values.dtype.kind not in "iu":
        raise TypeError(f"current has dtype {values.dtype}, must be integers")
    return values.astype(np.int64) if values.shape == (*layers, num_replicas) else None


def _with_map(placement: Placement, phy2log: Map) -> Placement:
    """The placement with its slots renumbered: log2phy follows, an expert's slots in their order; the rest stays."""
    order = phy2log.argsort(axis=1, kind="stable")
    expert = np.take_along_axis(phy2log, order, axis=1)
    first = placement.logcnt.cumsum(axis=1) - placement.logcnt
    which = np.arange(phy2log.shape[1]) - np.take_along_axis(first, expert, axis=1)
    log2phy: npt.NDArray[np.int64] = np.full(placement.log2phy.shape, -1, np.int64)
    log2phy[np.arange(len(phy2log))[:, None], expert, which] = order
    return placement._replace(phy2log=phy2log, log2phy=log2phy)
