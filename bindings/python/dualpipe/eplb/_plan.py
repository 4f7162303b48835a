"""Plans: where the replicas of every layer's experts lie, and a proof of how good that is."""

from __future__ import annotations

import ctypes as c
from typing import Any, Callable

import numpy as np
import numpy.typing as npt

from .. import _expert_structs as e
from .._library import Closing, Handle, create, lib, read_values, uint32
from ..errors import InvalidArgument
from ._arguments import SPLITS, Groups, Map, as_shares, experts_in, in_row, like, make_goal, read_loads, read_map, real
from ._cluster import Cluster
from ._moves import Moves, moves

POLICIES = ("refined", "deepseek")
"""What :func:`balance` can place by."""

_Back = Callable[[npt.NDArray[Any]], Any]


class Plan(Closing):
    """Where the replicas of every layer's experts lie, how well they are balanced, and what nobody could better.

    Made by :func:`balance`, or by :meth:`of_slots` of a placement from anywhere. It never changes; any number of
    threads may use it at once. Arrays are numpy's, or torch's on the device of the loads if those were torch's. They
    outlive the plan, but are not to be had of a closed one. ``str(plan)`` is a summary.

    Imbalances and bounds are in multiples of the mean load of a live GPU, 1 where there is no load. Of a window of
    steps they are sums over its steps, each weighted by its load.
    """

    def __init__(self, handle: Handle, cluster: Cluster, loads: Any, back: _Back) -> None:
        """Not to be called by users: ``handle`` is the library's."""
        self._handle = handle
        self._cluster = cluster
        self._loads = loads
        self._back = back
        self._moves: Moves | None = None
        info = e.ExpertPlanInfo(size=c.sizeof(e.ExpertPlanInfo))
        lib.dualpipe_expert_plan_describe(handle, c.byref(info))
        self._info = info

    @classmethod
    def of_slots(
        cls,
        phy2log: Any,
        cluster: Cluster,
        *,
        num_experts: int | None = None,
        shares: Any = None,
        loads: Any = None,
        num_groups: int = 1,
        groups: Groups = "free",
    ) -> Plan:
        """A placement from anywhere as a plan, to be routed by, compared, or moved from.

        ``phy2log``: [layers, slots], integers, -1 in slots of dead GPUs. ``num_experts``: as many as ``loads`` or else
        the map speaks of, unless said. ``shares``: [layers, slots], of its expert's tokens; None for an equal split.
        ``loads``: [layers, experts] or [steps, layers, experts], what imbalance and bounds are said of; without them
        these are 1. ``num_groups``, ``groups``: as for :func:`balance`; they need not be kept by the placement.

        Raises :class:`~dualpipe.errors.InvalidArgument`, also for a placement by which tokens would be lost, with the
        first place where.
        """
        slots = read_map("phy2log", phy2log, cluster.num_slots)
        values = None if loads is None else read_loads("loads", loads)
        if num_experts is None:
            num_experts = max(experts_in(slots), 1) if values is None else values.shape[-1]
        split = "equal" if shares is None else "weighted"
        experts = uint32("num_experts", num_experts)
        goal = make_goal(len(slots), experts, num_groups=num_groups, groups=groups, split=split)
        parts = None if shares is None else as_shares(shares)
        struct = cluster._as_c()
        arrays = [part for each in (slots, parts, values) for part in in_row(each)]
        where = (c.byref(struct), c.byref(goal), *arrays)
        handle = create("dualpipe_expert_plan_create_from_slots", "dualpipe_expert_plan_free", *where)
        return cls(handle, cluster, values, like(phy2log if loads is None else loads))

    @property
    def cluster(self) -> Cluster:
        """What the experts are placed on."""
        return self._cluster

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return int(self._info.num_layers)

    @property
    def num_experts(self) -> int:
        """Logical experts of a layer."""
        return int(self._info.num_experts)

    @property
    def num_groups(self) -> int:
        """Groups of experts."""
        return int(self._info.num_groups)

    @property
    def split(self) -> str:
        """``"equal"`` or ``"weighted"``: how the tokens of an expert are shared among its replicas."""
        return SPLITS[self._info.split]

    @property
    def phy2log(self) -> Any:
        """[layers, slots], int64: the expert in each slot, -1 in those of a dead GPU. Slots are numbered GPU by GPU."""
        return self._read("slot_to_expert", np.int64, self.num_slots)

    @property
    def log2phy(self) -> Any:
        """[layers, experts, most replicas of any expert], int64: the slots of each expert, -1 behind the last.

        Raises :class:`~dualpipe.errors.InvalidArgument` if that is more than 2^28 numbers.
        """
        slots = read_values("dualpipe_expert_plan_expert_to_slots", np.int64, self._handle)
        return self._back(slots.reshape(self.num_layers, self.num_experts, -1))

    @property
    def logcnt(self) -> Any:
        """[layers, experts], int64: how many replicas each expert has."""
        return self._read("replica_counts", np.int64, self.num_experts)

    @property
    def shares(self) -> Any:
        """[layers, slots], float64: the share of its expert's tokens that each slot gets; of an expert they sum to 1.
        With an equal split they are alike."""
        return self._read("shares", np.float64, self.num_slots)

    @property
    def num_slots(self) -> int:
        """Slots of a layer, those of dead GPUs too."""
        return int(self._info.num_slots)

    @property
    def gpu_loads(self) -> Any:
        """[layers, GPUs], float64: the load of each GPU, of a window the sum over its steps; None without loads."""
        return self._of_all("gpu_loads", self._info.num_gpus)

    @property
    def node_loads(self) -> Any:
        """[layers, nodes], float64: the load of each node, likewise."""
        return self._of_all("node_loads", self._info.num_nodes)

    def gpu_loads_of(self, loads: Any) -> Any:
        """[layers, GPUs] or [steps, layers, GPUs], float64: the load of each GPU under other loads, say those of the
        next step. ``loads``: [layers, experts] or [steps, layers, experts]."""
        values = read_loads("loads", loads)
        return like(loads)(self._of_steps("gpu_loads", self._info.num_gpus, values))

    def node_loads_of(self, loads: Any) -> Any:
        """The load of each node, otherwise as :meth:`gpu_loads_of`."""
        values = read_loads("loads", loads)
        return like(loads)(self._of_steps("node_loads", self._info.num_nodes, values))

    @property
    def imbalance(self) -> Any:
        """[layers], float64: the heaviest GPU's load, at least 1. Of a window the inverse of vLLM's balancedness."""
        return self._back(self._layers("imbalance"))

    @property
    def lower_bound(self) -> Any:
        """[layers], float64: no placement of this kind has a lower imbalance: the greatest of the bounds below that
        hold for it."""
        return self._back(self._layers("lower_bound"))

    @property
    def joint_bound(self) -> Any:
        """[layers], float64: no placement has a lower imbalance, even if replicas share a load unequally."""
        return self._back(self._layers("joint_bound"))

    @property
    def equal_bound(self) -> Any:
        """[layers], float64: no placement whose replicas share a load equally has a lower imbalance."""
        return self._back(self._layers("equal_bound"))

    @property
    def node_bound(self) -> Any:
        """[layers], float64: no placement that keeps every group on one node has a lower imbalance; 1 where groups
        need not be whole."""
        return self._back(self._layers("node_bound"))

    @property
    def gap(self) -> Any:
        """[layers], float64: imbalance / lower_bound - 1. Where it is 0 the layer is proven to be optimal."""
        return self._back(self._gap())

    @property
    def away(self) -> Any:
        """[layers], float64: the share of all load that is not on the node that most of its group's load is on; 0
        unless groups are priced."""
        return self._back(self._layers("away"))

    @property
    def moves(self) -> Moves | None:
        """What leads here from the placement that the plan was made from; None if from none."""
        return self._moves

    def __str__(self) -> str:
        layers, experts = self.num_layers, self.num_experts
        lines = [f"{layers} layers of {experts} experts in {self._cluster}, {self.split} split"]
        lines.append(f"{'':12}{'mean':>9}{'worst':>9}")
        for name in ("imbalance", "lower_bound"):
            values = self._layers(name)
            lines.append(f"{name.replace('_', ' '):12}{values.mean():9.4f}{values.max():9.4f}")
        gap = 100 * self._gap()
        lines.append(f"{'gap':12}{gap.mean():8.2f}%{gap.max():8.2f}%")
        away = 100 * self._layers("away")
        if away.any():
            lines.append(f"{'away':12}{away.mean():8.2f}%{away.max():8.2f}%")
        if self._moves is not None:
            total = self._moves.total
            lines.append(f"{'moves':12}{total.mean():9.1f}{total.max():9}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        sizes = f"{self.num_layers} layers, {self.num_experts} experts, {self._cluster}"
        return f"<dualpipe.eplb.Plan {sizes}>"

    def _read(self, what: str, dtype: Any, width: int) -> Any:
        size = self.num_layers * width
        values = read_values(f"dualpipe_expert_plan_{what}", dtype, self._handle, expected=size)
        return self._back(values.reshape(self.num_layers, width))

    def _layers(self, name: str) -> npt.NDArray[np.float64]:
        layers = read_values("dualpipe_expert_plan_layers", e.LayerBalance, self._handle, expected=self.num_layers)
        return layers[name].copy()

    def _gap(self) -> npt.NDArray[np.float64]:
        return self._layers("imbalance") / self._layers("lower_bound") - 1

    def _of_all(self, what: str, width: int) -> Any:
        if self._loads is None:
            return None
        found = self._of_steps(what, width, self._loads)
        return self._back(found if found.ndim == 2 else found.sum(axis=0))

    def _of_steps(self, what: str, width: int, loads: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """What the library says of each step, as it is asked for one."""
        found = np.zeros((*loads.shape[:-1], width))
        for step, of_step in zip(loads[None] if loads.ndim == 2 else loads, found[None] if found.ndim == 2 else found):
            where = (self._handle, *in_row(step))
            values = read_values(f"dualpipe_expert_plan_{what}", np.float64, *where, expected=of_step.size)
            of_step[...] = values.reshape(of_step.shape)
        return found


def rebalance_experts(
    weight: Any, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> tuple[Any, Any, Any]:
    """Places the experts of every layer, with replicas of the heavy ones: DeepSeek's EPLB.

    ``weight``: [layers, experts], the load of each expert, finite and not negative; anything that numpy takes, or a
    torch tensor; taken as float32. ``num_replicas``: slots of all GPUs together, at least experts. If ``num_nodes``
    divides ``num_groups``, groups of experts stay on one node, and then ``num_groups`` must divide experts,
    ``num_nodes`` must divide ``num_gpus``, and ``num_gpus`` must divide ``num_replicas``.

    Returns (phy2log, log2phy, logcnt) as :class:`Plan` describes them. Raises
    :class:`~dualpipe.errors.InvalidArgument` with the nearest numbers that would do; TypeError for loads that are no
    real numbers.
    """
    loads = read_loads("weight", weight, window=False)
    sizes = {"num_replicas": num_replicas, "num_groups": num_groups, "num_nodes": num_nodes, "num_gpus": num_gpus}
    numbers = [uint32(name, value) for name, value in sizes.items()]
    handle = _deepseek(loads, *numbers, num_threads=0)
    with Plan(handle, Cluster(num_gpus=num_gpus, num_slots=num_replicas), loads, like(weight)) as plan:
        return plan.phy2log, plan.log2phy, plan.logcnt


def balance(
    loads: Any,
    *,
    num_gpus: int | None = None,
    num_slots: int | None = None,
    num_nodes: int = 1,
    num_groups: int = 1,
    groups: Groups = "free",
    split: str = "equal",
    min_gpus: int = 1,
    min_nodes: int = 1,
    cluster: Cluster | None = None,
    current: Any = None,
    max_moves: int | None = None,
    max_price: float | None = None,
    reach: float | None = None,
    same_node_price: float = 1,
    other_node_price: float = 1,
    effort: int = 1,
    num_threads: int = 0,
    policy: str = "refined",
) -> Plan:
    """Places the experts of every layer as well as it can, with a proven lower bound beside it.

    ``loads``: [layers, experts], the load of each expert, finite and not negative, or [steps, layers, experts], a
    window of steps: then the sum over its steps of the heaviest GPU's load is made small. Numpy's, what numpy takes,
    or a torch tensor; taken as float32. The plan's arrays are alike.

    What it is placed on: ``num_gpus`` with ``num_slots`` of all of them together, on ``num_nodes``; or a ``cluster``,
    which may be uneven and have dead GPUs.

    What makes a placement good: ``groups``, of which there are ``num_groups`` of consecutive experts, play no part if
    ``"free"``, stay each on one node if ``"whole"``; a number is a price: what is made small is imbalance + price *
    away, where away is the share of all load that is not on the node that most of its group's load is on. ``split``:
    ``"equal"``, each replica of an expert gets as much, or ``"weighted"``, as the plan's shares say. Every expert is
    on at least ``min_gpus`` GPUs and on GPUs of at least ``min_nodes`` nodes. ``effort``, 1 to 1000: how long to
    search; time grows in proportion.

    ``current``: the placement that is there, a :class:`Plan` or [layers, slots], integers, -1 where a slot is empty;
    what stays keeps its slot. How much may change is said by at most one of ``max_moves`` (moved slots of each layer),
    ``max_price`` (of a layer's moves, each at ``same_node_price`` or ``other_node_price``, in any unit) and ``reach``
    (an imbalance, reached as cheaply as can be found); without any, all. What must move, as a GPU died, comes on top.

    ``policy="deepseek"`` is :func:`rebalance_experts` as a plan: on GPUs that are alike and alive, from no current
    placement; with ``groups="whole"`` groups stay on a node if nodes divide groups, DeepSeek's rule.

    ``num_threads``: 0 is as many as there are cores. The plan does not depend on it. Calls the progress callback
    (:func:`dualpipe.set_progress`) now and then.

    Raises :class:`~dualpipe.errors.InvalidArgument`, also if no placement was found that keeps groups whole and every
    expert on enough GPUs and nodes; TypeError; :class:`~dualpipe.errors.Cancelled`.
    """
    if policy not in POLICIES:
        raise InvalidArgument(f"policy is {policy!r}, must be {' or '.join(map(repr, POLICIES))}")
    values = read_loads("loads", loads)
    num_layers, num_experts = values.shape[-2:]
    placed_on = _cluster(cluster, num_gpus, num_slots, num_nodes)
    goal = make_goal(
        num_layers,
        num_experts,
        num_groups=num_groups,
        groups=groups,
        split=split,
        min_gpus=min_gpus,
        min_nodes=min_nodes,
        effort=effort,
    )
    threads = uint32("num_threads", num_threads)
    budget = _budget(max_moves, max_price, reach, same_node_price, other_node_price)
    if policy == "deepseek":
        _check_deepseek(values, placed_on, goal, current)
        by_nodes = (num_groups, placed_on.num_nodes) if goal.group_rule else (1, 1)
        handle = _deepseek(values, placed_on.num_slots, *by_nodes, placed_on.num_gpus, num_threads=threads)
        plan = Plan(handle, placed_on, values, like(loads))
        if plan._info.num_nodes == placed_on.num_nodes:
            return plan
        # Nodes played no part; the plan is to know them nevertheless.
        with plan:
            return Plan.of_slots(plan.phy2log, placed_on, loads=loads)
    known: Map | None = None
    if current is not None:
        known = read_map("current", current, placed_on.num_slots, num_layers)
        budget.slot_to_expert, budget.num_slots = known.ctypes.data, known.size
    elif budget.budget:
        raise InvalidArgument("current is None, must be a placement if max_moves, max_price or reach is given")
    struct = placed_on._as_c()
    where = (c.byref(struct), c.byref(goal), *in_row(values), None if known is None else c.byref(budget), threads)
    handle = create("dualpipe_expert_plan_balance", "dualpipe_expert_plan_free", *where)
    plan = Plan(handle, placed_on, values, like(loads))
    if known is not None:
        plan._moves = moves(known, plan.phy2log, placed_on, num_experts=num_experts)
    return plan


def _cluster(cluster: Cluster | None, num_gpus: int | None, num_slots: int | None, num_nodes: int) -> Cluster:
    if cluster is None:
        return Cluster(num_gpus=num_gpus, num_slots=num_slots, num_nodes=num_nodes)
    if (num_gpus, num_slots, num_nodes) != (None, None, 1):
        raise InvalidArgument("cluster is given, beside it num_gpus, num_slots and num_nodes must not be")
    return cluster


def _budget(
    max_moves: int | None, max_price: float | None, reach: float | None, same_node: float, other_node: float
) -> e.CurrentPlacement:
    """``dualpipe_current_placement`` without the placement."""
    budget = e.CurrentPlacement(size=c.sizeof(e.CurrentPlacement))
    said = [each is not None for each in (max_moves, max_price, reach)]
    if sum(said) > 1:
        raise InvalidArgument("only one of max_moves, max_price and reach may be given")
    budget.budget = said.index(True) + 1 if any(said) else 0
    if max_moves is not None:
        budget.max_moves = uint32("max_moves", max_moves)
    elif any(said):
        budget.same_node_price = real("same_node_price", same_node)
        budget.other_node_price = real("other_node_price", other_node)
        if max_price is not None:
            budget.max_price = real("max_price", max_price)
        else:
            budget.imbalance = real("reach", reach)
    return budget


def _check_deepseek(loads: npt.NDArray[np.float32], cluster: Cluster, goal: e.Goal, current: Any) -> None:
    """Refuses what DeepSeek's policy knows nothing of."""
    even = Cluster(num_gpus=cluster.num_gpus, num_slots=cluster.num_slots, num_nodes=cluster.num_nodes)
    for wrong, what in (
        (loads.ndim != 2, "a window of steps"),
        (cluster != even, "GPUs that differ or are dead"),
        (goal.group_rule == 2, "a price for groups"),
        (goal.split != 0, "a weighted split"),
        (goal.min_gpus > 1 or goal.min_nodes > 1, "min_gpus and min_nodes"),
        (current is not None, "a current placement"),
    ):
        if wrong:
            raise InvalidArgument(f"policy is 'deepseek', which knows nothing of {what}")


def _deepseek(
    loads: npt.NDArray[np.float32],
    num_slots: int,
    num_groups: int,
    num_nodes: int,
    num_gpus: int,
    *,
    num_threads: int,
) -> Handle:
    num_layers, num_experts = loads.shape
    sizes = (num_layers, num_experts, num_slots, num_groups, num_nodes, num_gpus)
    options = e.BalanceOptions(c.sizeof(e.BalanceOptions), *sizes, num_threads)
    where = (c.byref(options), *in_row(loads))
    return create("dualpipe_expert_plan_create", "dualpipe_expert_plan_free", *where)
