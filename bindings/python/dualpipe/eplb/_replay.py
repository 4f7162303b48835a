"""How policies would have done on recorded loads, judged by what came next."""

from __future__ import annotations

import ctypes as c
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple, Union

import numpy as np
import numpy.typing as npt

from .. import _expert_structs as e
from .._library import Closing, Handle, PolicyFunction, create, read_text, read_values, to_c, uint32
from .._structs import NONE
from ..errors import InvalidArgument
from ._arguments import Groups, Loads, Map, make_goal, read_loads, read_map
from ._cluster import Cluster
from ._heat_map import HeatMap, PathLike, heat_map
from ._history import LoadHistory
from ._plan import Plan, _budget, _cluster
from ._verify import read_shares

KINDS = ("none", "deepseek", "refined", "few moves")
"""The policies of the library, by the numbers of ``dualpipe_policy_kind``."""
CALLBACK = 4
"""The number of those of callers."""

MOVES_DTYPE = np.dtype(
    [
        ("same_gpu", "u8"),
        ("same_node", "u8"),
        ("other_node", "u8"),
        ("same_node_bytes", "u8"),
        ("other_node_bytes", "u8"),
    ]
)
"""Slots whose expert is not the one they held before, by where the nearest copy of it was, and bytes."""
WINDOW_DTYPE = np.dtype(
    [
        ("step", "i8"),
        ("num_steps", "i8"),
        ("is_new", "?"),
        ("imbalance", "f8"),
        ("worst_imbalance", "f8"),
        ("lower_bound", "f8"),
        ("away", "f8"),
        ("moves", MOVES_DTYPE),
    ]
)
"""A rebalance before ``step`` and the ``num_steps`` steps until the next; whether it placed anew; in these steps the
mean and the worst imbalance of layers, what no placement could beat (0 without bounds), the share of load away from
home; and what was moved."""


class Past(NamedTuple):
    """What a policy may know: the steps before a rebalance, and where the experts are."""

    loads: Loads
    """[steps, layers, experts], float32, not to be written: the loads of all steps so far."""
    window: Loads
    """[window, layers, experts]: the last of them."""
    phy2log: Map
    """[layers, slots], int64: the expert in each slot now, -1 where there is none."""
    shares: npt.NDArray[np.float64] | None
    """[layers, slots]: the share of its expert's tokens that each slot gets; None for an equal split."""
    cluster: Cluster
    """What the experts are placed on."""

    @property
    def step(self) -> int:
        """The step that is next."""
        return len(self.loads)


class FewMoves:
    """The policy that plans from the placement there is, within a budget that each layer has at each rebalance."""

    def __init__(
        self,
        max_moves: int | None = None,
        *,
        max_price: float | None = None,
        reach: float | None = None,
        same_node_price: float = 1,
        other_node_price: float = 1,
    ) -> None:
        """One of ``max_moves``, ``max_price`` and ``reach``, as for :func:`balance`."""
        self._budget = _budget(max_moves, max_price, reach, same_node_price, other_node_price)
        if self._budget.budget == 0:
            raise InvalidArgument("one of max_moves, max_price and reach must be given")


Policy = Union[str, FewMoves, Callable[[Past], Any]]
"""``"none"``, ``"deepseek"``, ``"refined"``, a :class:`FewMoves`, or what takes a :class:`Past` and returns None to
keep what there is, a new map [layers, slots], a :class:`Plan`, or (map, shares)."""


class Run(NamedTuple):
    """How one policy did. Imbalances are those of the judged steps: the heaviest GPU of every step, summed up / the
    means, summed up; the inverse of vLLM's balancedness."""

    name: str
    """The policy's."""
    imbalance: npt.NDArray[np.float64]
    """[layers] Over all judged steps."""
    lower_bound: npt.NDArray[np.float64] | None
    """[layers] What no placement could beat; None without bounds."""
    windows: npt.NDArray[Any]
    """[rebalances] of :data:`WINDOW_DTYPE`."""
    window_imbalance: npt.NDArray[np.float64]
    """[rebalances, layers]"""
    gpu_loads: npt.NDArray[np.float64]
    """[layers, GPUs] In the last window."""
    moves: dict[str, int]
    """All moves, by the names of :data:`MOVES_DTYPE`."""
    away: float
    """The share of all load that was not on its group's home node; 0 where groups are free."""


class Replay(Closing):
    """How policies did, ``replay[name]`` each. ``str(replay)`` is a table."""

    def __init__(self, handle: Handle, names: list[str], cluster: Cluster, num_layers: int, bounds: bool) -> None:
        """Not to be called by users: ``handle`` is the library's."""
        self._handle = handle
        self._cluster = cluster
        self._text = read_text("dualpipe_replay_text", handle)
        raw = read_values("dualpipe_replay_runs", e.ReplayRun, handle, expected=len(names))
        self.runs = [self._run(i, name, raw[i], num_layers, bounds) for i, name in enumerate(names)]
        """In the order of the policies."""

    def __getitem__(self, name: str) -> Run:
        for run in self.runs:
            if run.name == name:
                return run
        raise KeyError(name)

    def heat_map(self) -> HeatMap:
        """The GPU loads of the last window, a panel for each policy (at most 16)."""
        return heat_map({run.name: run.gpu_loads for run in self.runs}, self._cluster)

    def save_svg(self, path: PathLike) -> None:
        """Writes :meth:`heat_map` to ``path`` as SVG. OSError if that fails."""
        self.heat_map().svg(path)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"<dualpipe.eplb.Replay {', '.join(run.name for run in self.runs)}>"

    def _repr_svg_(self) -> str:
        """What a notebook shows."""
        return self.heat_map().svg()

    def _run(self, i: int, name: str, raw: Any, num_layers: int, bounds: bool) -> Run:
        count = int(raw["num_windows"])
        found = read_values("dualpipe_replay_windows", e.ReplayWindow, self._handle, i, expected=max(count, 1))
        windows = np.zeros(count, WINDOW_DTYPE)
        for field in WINDOW_DTYPE.names or ():
            windows[field] = found[field]

        def layers(window: int) -> npt.NDArray[Any]:
            where = (self._handle, i, window)
            return read_values("dualpipe_replay_layers", e.ReplayLayer, *where, expected=num_layers)

        loads = read_values("dualpipe_replay_gpu_loads", np.float64, self._handle, i)
        whole = layers(NONE)
        return Run(
            name=name,
            imbalance=whole["imbalance"].copy(),
            lower_bound=whole["lower_bound"].copy() if bounds else None,
            windows=windows,
            window_imbalance=np.array([layers(window)["imbalance"] for window in range(count)]),
            gpu_loads=loads.reshape(num_layers, self._cluster.num_gpus),
            moves={field: int(raw["moves"][field]) for field in MOVES_DTYPE.names or ()},
            away=float(raw["away"]),
        )


def replay(
    loads: Any,
    policies: Mapping[str, Policy] | None = None,
    *,
    window: int,
    every: int | None = None,
    num_gpus: int | None = None,
    num_slots: int | None = None,
    num_nodes: int = 1,
    cluster: Cluster | None = None,
    num_groups: int = 1,
    groups: Groups = "free",
    split: str = "equal",
    min_gpus: int = 1,
    min_nodes: int = 1,
    effort: int = 1,
    initial: Any = None,
    expert_bytes: int = 0,
    bounds: bool = True,
    num_threads: int = 0,
) -> Replay:
    """Runs policies over recorded loads, and judges every plan by the steps after it.

    ``loads``: a :class:`LoadHistory`, or [steps, layers, experts], finite and not negative; 2 to 65536 steps. At each
    rebalance a policy sees the steps before it and never more; the last ``window`` of them are what it plans for. What
    it places runs for ``every`` steps (``window`` unless said) and is judged by these alone.

    ``policies``: by name, each ``"none"``, ``"deepseek"``, ``"refined"`` (:func:`balance`, anew each time, numbered so
    that as much as possible stays), a :class:`FewMoves`, or any callable that takes a :class:`Past` and returns None to
    keep what there is, a new map [layers, slots], a :class:`Plan`, or (map, shares). Without: none, deepseek, refined
    and 8 moves, as far as the cluster is one that DeepSeek's policy knows.

    Where to: ``num_gpus``, ``num_slots``, ``num_nodes`` or a ``cluster``; what for: ``num_groups`` … ``effort``; all as
    for :func:`balance`. A placement is only held to its layers and experts, so that a policy that knows nothing of a
    rule can be compared with one that does. ``initial``: the placement at first, a :class:`Plan` or [layers, slots];
    without, the experts in order. ``expert_bytes``: one expert's weights in one layer, what a move carries. ``bounds``:
    also say what no placement could beat, even one made for the judged steps themselves.

    Calls the progress callback (:func:`dualpipe.set_progress`) now and then. Raises
    :class:`~dualpipe.errors.InvalidArgument`, also for a placement that loses tokens;
    :class:`~dualpipe.errors.Cancelled`; whatever a callable raises.
    """
    values = read_loads("loads", loads.loads if isinstance(loads, LoadHistory) else loads)
    if values.ndim != 3:
        raise InvalidArgument(f"loads has shape {list(values.shape)}, must be [steps, layers, experts]")
    num_layers, num_experts = values.shape[1:]
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
    if not 0 <= expert_bytes < 1 << 64:
        raise InvalidArgument(f"expert_bytes is {expert_bytes}, must be 0 to 2^37")
    start = None if initial is None else read_map("initial", initial, placed_on.num_slots, num_layers)
    options = e.ReplayOptions(
        size=c.sizeof(e.ReplayOptions),
        window=uint32("window", window),
        every=uint32("every", window if every is None else every),
        with_bounds=bool(bounds),
        num_threads=uint32("num_threads", num_threads),
        initial=None if start is None else start.ctypes.data,
        num_slots=0 if start is None else start.size,
        expert_bytes=expert_bytes,
    )
    chosen = _default_policies(placed_on) if policies is None else policies
    called = _Called(values, placed_on)
    structs = (e.Policy * max(len(chosen), 1))(*(called.policy(name, what) for name, what in chosen.items()))
    struct = placed_on._as_c()
    where = (c.byref(struct), c.byref(goal), values.ctypes.data, values.size, c.byref(options))
    try:
        handle = create("dualpipe_replay_create", "dualpipe_replay_free", *where, structs, len(chosen))
    except Exception:
        if called.raised is not None:
            raise called.raised from None
        raise
    return Replay(handle, list(chosen), placed_on, num_layers, bool(bounds))


def _default_policies(cluster: Cluster) -> dict[str, Policy]:
    even = Cluster(num_gpus=cluster.num_gpus, num_slots=cluster.num_slots, num_nodes=cluster.num_nodes)
    is_deepseeks = cluster == even and cluster.num_slots % cluster.num_gpus == 0
    deepseek: dict[str, Policy] = {"deepseek": "deepseek"} if is_deepseeks else {}
    return {"none": "none", **deepseek, "refined": "refined", "8 moves": FewMoves(8)}


class _Called:
    """Policies as C calls them, and the first exception that one of them raised."""

    def __init__(self, loads: Loads, cluster: Cluster) -> None:
        self._loads = loads.view()
        self._loads.flags.writeable = False
        self._cluster = cluster
        self._kept: list[Any] = []
        self.raised: BaseException | None = None

    def policy(self, name: str, what: Any) -> e.Policy:
        """``dualpipe_policy``."""
        text = to_c(name)
        struct = e.Policy(name=text)
        self._kept.append(text)
        if isinstance(what, FewMoves):
            budget = what._budget
            struct.kind = KINDS.index("few moves")
            for field in ("budget", "max_moves", "max_price", "imbalance", "same_node_price", "other_node_price"):
                setattr(struct, field, getattr(budget, field))
        elif isinstance(what, str):
            if what not in KINDS[:3]:
                names = ", ".join(map(repr, KINDS[:3]))
                raise InvalidArgument(f"policy {name!r} is {what!r}, must be {names}, a FewMoves or callable")
            struct.kind = KINDS.index(what)
        elif callable(what):
            function = PolicyFunction(self._function(what))
            self._kept.append(function)
            struct.kind, struct.plan = CALLBACK, c.cast(function, c.c_void_p)
        else:
            raise TypeError(f"policy {name!r} is {what!r}, must be a name, a FewMoves or callable")
        return struct

    def _function(self, plan: Callable[[Past], Any]) -> Callable[..., int]:
        def call(_: Any, past: Any, slots: Any, shares: Any) -> int:
            try:
                return self._plan(plan, past.contents, slots, shares)
            except BaseException as error:  # noqa: BLE001, the replay that it ends raises it
                self.raised = error
                return -1

        return call

    def _plan(self, plan: Callable[[Past], Any], past: e.PolicyPast, slots: Any, shares: Any) -> int:
        shape = (past.num_layers, self._cluster.num_slots)
        loads = self._loads[: past.num_steps]
        held = np.ctypeslib.as_array(past.slot_to_expert, shape).copy()
        parts = np.ctypeslib.as_array(past.shares, shape).copy() if past.shares else None
        answer = plan(Past(loads, loads[past.num_steps - past.window :], held, parts, self._cluster))
        if answer is None:
            return 0
        new_shares: Any = None
        if isinstance(answer, tuple):
            answer, new_shares = answer
        elif isinstance(answer, Plan) and answer.split == "weighted":
            new_shares = answer.shares
        np.ctypeslib.as_array(slots, shape)[...] = read_map("the map of the policy", answer, shape[1], shape[0])
        if new_shares is None:
            return 1
        np.ctypeslib.as_array(shares, shape)[...] = read_shares(new_shares, shape)
        return 2
