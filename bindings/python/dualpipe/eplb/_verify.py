"""Whether a placement from anywhere can be trusted, is the same on all ranks, and what memory it asks for."""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _expert_structs as e
from .._library import lib, read_text, read_values, uint32
from .._structs import NONE
from ..errors import InvalidArgument
from ._arguments import Groups, Map, like, make_goal, read_loads, read_map, read_numbers, real
from ._cluster import Cluster
from ._plan import Plan

KINDS = (
    "missing",
    "not an expert",
    "on dead GPU",
    "too few GPUs",
    "too few nodes",
    "split group",
    "share",
    "share sum",
    "replica count",
    "wrong slot",
    "unlisted",
    "empty",
    "twice",
    "overloaded",
)
"""What can be wrong, by the numbers of ``dualpipe_finding_kind`` from 1 on. The last three are warnings."""

FINDINGS_EXPECTED = 64 * len(KINDS)
"""As many as the library gives."""


class Finding(NamedTuple):
    """One thing that is wrong in a layer. What its kind has no use for is None."""

    kind: str
    """One of :data:`KINDS`."""
    severity: str
    """``"error"``: tokens are lost or computed wrongly, or what was asked for is not so; ``"warning"``: memory or time
    is wasted."""
    layer: int
    expert: int | None
    slot: int | None
    gpu: int | None
    group: int | None
    entry: int | None
    """Of "wrong slot": which entry of the expert's slots."""
    found: float
    """The number that is wrong: an expert, a count, a share, a load in multiples of the mean; 0 where none is."""
    wanted: float
    """What it should have been, at least or at most; 0 where that is clear."""
    avoidable: bool
    """Of "twice": whether other experts are left for the slot."""


class Report:
    """What :func:`verify` found. ``str(report)`` is a line for each finding, errors first; "" if there is none."""

    def __init__(self, text: str, findings: list[Finding], counts: dict[str, int], num_errors: int) -> None:
        """Not to be called by users."""
        self._text = text
        self.findings = findings
        """Layer by layer, of each kind the first 64."""
        self.counts = counts
        """How many there were of each kind, all of them; without those of which there were none."""
        self.num_errors = num_errors
        """How many errors there were."""
        self.num_warnings = sum(counts.values()) - num_errors
        """How many warnings there were."""

    @property
    def ok(self) -> bool:
        """Whether there is no error; there may be warnings."""
        return self.num_errors == 0

    def check(self) -> None:
        """Raises :class:`~dualpipe.errors.InvalidArgument` with all that was found unless :attr:`ok`."""
        if not self.ok:
            raise InvalidArgument(f"the placement has {self.num_errors} errors:\n{self._text}")

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"<dualpipe.eplb.Report {self.num_errors} errors, {self.num_warnings} warnings>"


def verify(
    phy2log: Any,
    cluster: Cluster | None = None,
    *,
    num_experts: int | None = None,
    shares: Any = None,
    log2phy: Any = None,
    logcnt: Any = None,
    loads: Any = None,
    max_imbalance: float | None = None,
    num_groups: int = 1,
    groups: Groups = "free",
    min_gpus: int = 1,
    min_nodes: int = 1,
) -> Report:
    """Looks for everything in a placement that is wrong, or worse than it need be.

    A wrong placement seldom fails: tokens are lost, or computed by another expert, and the model is a little worse. So
    nothing is taken for granted here: every number may be any number.

    ``phy2log``: [layers, slots], integers: the expert in each slot, -1 on dead GPUs; or a :class:`Plan`, which brings
    its cluster. ``num_experts``: as many as ``loads``, ``logcnt`` or ``log2phy`` have; without any of them it must be
    said.

    What else is said of the placement, and held against it: ``shares`` [layers, slots], of its expert's tokens;
    ``log2phy`` [layers, experts, most], the slots of each expert in any order, then -1; ``logcnt`` [layers, experts],
    how many slots each expert has; ``loads`` [layers, experts], with ``max_imbalance``, what no GPU may carry more
    than, in multiples of the mean. ``num_groups``, ``groups``, ``min_gpus``, ``min_nodes``: as for :func:`balance`.

    Raises :class:`~dualpipe.errors.InvalidArgument` where it cannot be told what is meant: shapes that do not fit, a
    load that is negative or not finite; TypeError for what is no numbers.
    """
    cluster = cluster_of(phy2log, cluster)
    slots = _wide_map("phy2log", phy2log, cluster.num_slots)
    num_layers = len(slots)
    values = None if loads is None else read_loads("loads", loads, window=False)
    counts = None if logcnt is None else _integers("logcnt", logcnt)
    table = None if log2phy is None else _integers("log2phy", log2phy)
    known = {"loads": values, "logcnt": counts, "log2phy": table}
    if num_experts is None:
        given = [array.shape[1] for array in known.values() if array is not None and array.ndim > 1]
        num_experts = phy2log.num_experts if isinstance(phy2log, Plan) else next(iter(given), None)
    if num_experts is None:
        raise InvalidArgument("num_experts is not given, nor loads, logcnt or log2phy that would say it")
    experts = uint32("num_experts", num_experts)
    for name, array in known.items():
        if array is not None and (array.shape[:2] != (num_layers, experts) or array.ndim != 2 + (name == "log2phy")):
            more = ", most]" if name == "log2phy" else "]"
            raise InvalidArgument(f"{name} has shape {list(array.shape)}, must be [{num_layers}, {experts}{more}")
    if (values is None) != (max_imbalance is None):
        raise InvalidArgument("loads and max_imbalance must be given together")
    parts = None if shares is None else read_shares(shares, slots.shape)
    goal = make_goal(num_layers, experts, num_groups=num_groups, groups=groups, min_gpus=min_gpus, min_nodes=min_nodes)
    struct = cluster._as_c()
    placement = e.UnverifiedPlacement(
        size=c.sizeof(e.UnverifiedPlacement),
        slot_to_expert=slots.ctypes.data,
        num_slots=slots.size,
        shares=None if parts is None else parts.ctypes.data,
        expert_to_slots=None if table is None else table.ctypes.data,
        num_expert_to_slots=0 if table is None else table.size,
        replica_counts=None if counts is None else counts.ctypes.data,
        loads=None if values is None else values.ctypes.data,
        num_experts=0 if counts is None and values is None else num_layers * experts,
        imbalance_max=0.0 if max_imbalance is None else real("max_imbalance", max_imbalance),
    )
    verdict = e.Verdict()
    where = (c.byref(struct), c.byref(goal), c.byref(placement))
    raw = read_values("dualpipe_expert_verify", e.Finding, *where, c.byref(verdict), expected=FINDINGS_EXPECTED)
    text = read_text("dualpipe_expert_verify_text", *where) if len(raw) else ""
    of_kind = {kind: int(verdict.counts[number]) for number, kind in enumerate(KINDS, 1)}
    nonzero = {kind: count for kind, count in of_kind.items() if count}
    return Report(text, [_finding(each) for each in raw], nonzero, int(verdict.num_errors))


def _finding(raw: Any) -> Finding:
    def there(name: str) -> int | None:
        number = int(raw[name])
        return None if number == NONE else number

    is_amount = KINDS[raw["kind"] - 1] in ("share", "share sum", "overloaded")
    found, wanted = (raw["amount"], raw["limit"]) if is_amount else (raw["value"], raw["wanted"])
    return Finding(
        kind=KINDS[raw["kind"] - 1],
        severity="error" if raw["severity"] == 1 else "warning",
        layer=int(raw["layer"]),
        expert=there("expert"),
        slot=there("slot"),
        gpu=there("gpu"),
        group=there("group"),
        entry=there("entry"),
        found=found.item(),
        wanted=wanted.item(),
        avoidable=bool(raw["is_avoidable"]),
    )


def hash_of(phy2log: Any, cluster: Cluster | None = None, *, shares: Any = None) -> int:
    """The hash of a placement and its cluster, 64 bits, the same on every machine.

    Ranks that route by different placements compute wrong results without any error: each hashes its own, they gather
    8 bytes, and :func:`disagreeing` names who differs. ``phy2log``, ``shares``: [layers, slots]; or a :class:`Plan`,
    which brings its cluster, and its shares if they are weighted. docs/trust.md has the hash in words.

    Raises :class:`~dualpipe.errors.InvalidArgument` for a number that can be no expert's.
    """
    cluster = cluster_of(phy2log, cluster)
    slots = _wide_map("phy2log", phy2log, cluster.num_slots)
    parts = shares_of(phy2log, shares, slots.shape)
    struct, found = cluster._as_c(), c.c_uint64()
    pointer = None if parts is None else parts.ctypes.data
    lib.dualpipe_expert_hash(c.byref(struct), slots.ctypes.data, pointer, slots.size, c.byref(found))
    return found.value


def disagreeing(hashes: Sequence[int]) -> list[int]:
    """The ranks whose hash is not what most have, in order. ``hashes``: one for each rank; of equally frequent ones the
    lowest rank's is what most have."""
    values, most = np.array(list(hashes), np.uint64), c.c_uint64()
    where = (values.ctypes.data, values.size, c.byref(most))
    ranks = read_values("dualpipe_expert_hash_agree", np.uint32, *where, expected=max(values.size, 1))
    return [int(rank) for rank in ranks]


class Memory(NamedTuple):
    """What memory a placement asks for on the GPU that needs most."""

    slots_max: int
    """Slots of the fullest live GPU."""
    weight_bytes: int
    """Its weights: slots_max * num_layers * expert_bytes."""
    rows_max: int
    """Rows that its experts compute in one layer when every rank sends it all that it can."""
    low_latency_bytes: int
    """The buffers of a low-latency dispatch (DeepEP's), which grow with the slots of the whole cluster."""
    low_latency_bytes_without_redundancy: int
    """The same with as few slots as hold each expert once: what redundant slots cost is the difference."""


def memory(
    cluster: Cluster,
    *,
    num_layers: int,
    num_experts: int,
    top_k: int,
    hidden: int,
    tokens_per_rank: int,
    expert_bytes: int,
) -> Memory:
    """What memory placements on a cluster ask for: messages and weights, not what a library takes besides.

    ``num_layers``: whose experts are in memory at the same time. ``top_k``: experts of a token. ``hidden``: numbers of
    a token's hidden state, of 2 bytes. ``tokens_per_rank``: that a rank sends in one dispatch, at most.
    ``expert_bytes``: one expert's weights in one layer. Raises :class:`~dualpipe.errors.InvalidArgument`.
    """
    if not 0 <= expert_bytes < 1 << 64:
        raise InvalidArgument(f"expert_bytes is {expert_bytes}, must be 0 to 2^37")
    traffic = e.ExpertTraffic(
        size=c.sizeof(e.ExpertTraffic),
        num_layers=uint32("num_layers", num_layers),
        num_experts=uint32("num_experts", num_experts),
        top_k=uint32("top_k", top_k),
        hidden=uint32("hidden", hidden),
        tokens_per_rank=uint32("tokens_per_rank", tokens_per_rank),
        expert_bytes=expert_bytes,
    )
    struct, found = cluster._as_c(), e.ExpertMemory(size=c.sizeof(e.ExpertMemory))
    lib.dualpipe_expert_buffers(c.byref(struct), c.byref(traffic), c.byref(found))
    return Memory(*(int(getattr(found, name)) for name in Memory._fields))


def gpu_loads(phy2log: Any, loads: Any, cluster: Cluster | None = None, *, shares: Any = None) -> Any:
    """[layers, GPUs], float64: the load of each GPU under a placement, 0 on dead ones; a torch tensor if ``loads`` is
    one.

    ``phy2log``, ``shares``: [layers, slots], without shares an equal split; or a :class:`Plan`, which brings its
    cluster, and its shares if they are weighted. ``loads``: [layers, experts].

    Raises :class:`~dualpipe.errors.InvalidArgument`, also where a load would get lost: an expert that has load and no
    live slot, or shares that do not sum to 1.
    """
    cluster = cluster_of(phy2log, cluster)
    values = read_loads("loads", loads, window=False)
    slots = _wide_map("phy2log", phy2log, cluster.num_slots, len(values))
    parts = shares_of(phy2log, shares, slots.shape)
    struct = cluster._as_c()
    pointer = None if parts is None else parts.ctypes.data
    placed = (c.byref(struct), values.shape[1], slots.ctypes.data, pointer, slots.size)
    where = (*placed, values.ctypes.data, values.size)
    shape = (len(values), cluster.num_gpus)
    found = read_values("dualpipe_expert_gpu_loads", np.float64, *where, expected=shape[0] * shape[1])
    return like(loads)(found.reshape(shape))


def node_loads(gpu_loads: Any, cluster: Cluster) -> Any:
    """[layers, nodes], float64: the load of each node, from those of the GPUs, [layers, GPUs]."""
    values = read_reals("gpu_loads", gpu_loads)
    if values.ndim != 2 or values.shape[1] != cluster.num_gpus:
        raise InvalidArgument(f"gpu_loads has shape {list(values.shape)}, must be [layers, {cluster.num_gpus}]")
    struct = cluster._as_c()
    shape = (len(values), cluster.num_nodes)
    where = (c.byref(struct), values.ctypes.data, values.size)
    found = read_values("dualpipe_expert_node_loads", np.float64, *where, expected=shape[0] * shape[1])
    return like(gpu_loads)(found.reshape(shape))


def cluster_of(placement: Any, cluster: Cluster | None) -> Cluster:
    """The one that is given, or a plan's own."""
    if cluster is not None:
        return cluster
    if isinstance(placement, Plan):
        return placement.cluster
    raise InvalidArgument("cluster is None, must be given unless the placement is a Plan")


def shares_of(placement: Any, shares: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float64] | None:
    """Those that are given, or a plan's own if they are weighted."""
    if shares is None and isinstance(placement, Plan) and placement.split == "weighted":
        shares = placement.shares
    return None if shares is None else read_shares(shares, shape)


def read_shares(shares: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """float64 of this shape."""
    values = read_reals("shares", shares)
    if values.shape != shape:
        raise InvalidArgument(f"shares has shape {list(values.shape)}, must be {list(shape)}")
    return values


def read_reals(name: str, value: Any) -> npt.NDArray[np.float64]:
    """float64, row after row: what numpy takes, or a tensor."""
    return np.ascontiguousarray(read_numbers(name, value, "biuf"), dtype=np.float64)


def _integers(name: str, value: Any) -> Map:
    """int64, row after row; what is more than that stays too much."""
    values = read_numbers(name, value, "iu")
    if values.dtype == np.uint64:
        values = np.minimum(values, np.uint64(np.iinfo(np.int64).max))
    return np.ascontiguousarray(values, dtype=np.int64)


def _wide_map(name: str, value: Any, num_slots: int, num_layers: int | None = None) -> Map:
    """As :func:`read_map`, of numbers of any size."""
    return read_map(name, _integers(name, getattr(value, "phy2log", value)), num_slots, num_layers)
