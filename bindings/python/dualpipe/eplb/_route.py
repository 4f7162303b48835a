"""Routing one step: how many tokens of each expert go to each of its replicas, and which token goes where."""

from __future__ import annotations

import ctypes as c
import operator
from typing import Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _expert_structs as e
from .._library import Closing, create, lib, uint32
from ..errors import InvalidArgument
from ._arguments import as_shares, experts_in, in_row, like, read_loads, read_map, read_numbers, torch_of
from ._cluster import Cluster
from ._plan import Plan

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Routing(NamedTuple):
    """How a step is routed in one layer. Arrays are numpy's, or torch's on the device of the counts if those were."""

    quotas: Any
    """[slots], int64: the tokens that each slot gets. Those of an expert's slots add up to the expert's."""
    source_quotas: Any
    """[gpus, slots], int64: how many of them each GPU sends; None if the counts were not per sender. Tokens stay on
    their GPU if they can, else on their node."""
    gpu_loads: Any
    """[gpus], int64: each GPU's load: tokens, or tiles times the tokens of a tile."""
    heaviest: int
    """The heaviest GPU's load. No whole-numbered routing has a lighter one."""
    bound: float
    """What no routing can beat, even of parts of tokens or tiles: load / GPUs of the bottleneck. ``heaviest`` is less
    than one token (one tile) above it."""
    bottleneck: Any
    """Some GPUs, int64, in order: the experts that are on no others have ``bottleneck_load``, which stays there however
    it is routed. Another replica helps only where it takes some of this load elsewhere."""
    bottleneck_load: int
    """The load of the bottleneck."""
    tokens_on_gpu: int
    """Tokens that stay on their sender's GPU; 0 if the counts were not per sender."""
    tokens_on_node: int
    """Tokens that stay on their sender's node, or GPU; 0 if the counts were not per sender."""


class Routings(NamedTuple):
    """How a step is routed in all layers: of each what :class:`Routing` has."""

    quotas: Any
    """[layers, slots], int64."""
    source_quotas: Any
    """[layers, gpus, slots], int64, or None."""
    gpu_loads: Any
    """[layers, gpus], int64."""
    heaviest: Any
    """[layers], int64."""
    bound: Any
    """[layers], float64."""
    bottleneck: list[Any]
    """Of each layer some GPUs, int64."""
    bottleneck_load: Any
    """[layers], int64."""
    tokens_on_gpu: Any
    """[layers], int64."""
    tokens_on_node: Any
    """[layers], int64."""


class Router(Closing):
    """Routes the tokens of steps, of any layer of a placement. Steps do not influence each other: from the same counts
    every rank makes the same routing, and from the same quotas the same slots.

    One thread at a time: a second gets :class:`~dualpipe.errors.Busy`, so give each its own.
    """

    def __init__(self, placement: Any, cluster: Cluster | None = None, *, num_experts: int | None = None) -> None:
        """``placement``: a :class:`~dualpipe.eplb.Plan`, or [layers, slots], integers, the expert in each slot of the
        ``cluster``, -1 where there is none; then ``num_experts`` is as many as it speaks of, unless said.

        Raises :class:`~dualpipe.errors.InvalidArgument`.
        """
        if isinstance(placement, Plan):
            if cluster is not None or num_experts is not None:
                raise InvalidArgument("placement is a plan, which has a cluster and num_experts of its own")
            self._handle = create("dualpipe_router_create", "dualpipe_router_free", placement._handle)
        else:
            if cluster is None:
                raise InvalidArgument("cluster is not given, must be unless placement is a plan")
            slots = read_map("placement", placement, cluster.num_slots)
            experts = max(experts_in(slots), 1) if num_experts is None else uint32("num_experts", num_experts)
            struct = cluster._as_c()
            where = (c.byref(struct), experts, slots.ctypes.data, slots.size)
            self._handle = create("dualpipe_router_create_from_slots", "dualpipe_router_free", *where)
        self._info = e.RouterInfo(size=c.sizeof(e.RouterInfo))
        lib.dualpipe_router_describe(self._handle, c.byref(self._info))

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return int(self._info.num_layers)

    @property
    def num_experts(self) -> int:
        """Logical experts of a layer."""
        return int(self._info.num_experts)

    @property
    def num_slots(self) -> int:
        """Slots of a layer, those of dead GPUs too."""
        return int(self._info.num_slots)

    @property
    def num_gpus(self) -> int:
        """GPUs, dead ones too."""
        return int(self._info.num_gpus)

    def route(self, layer: int, counts: Any, *, tile: int = 1, gpu_price: int = 1, node_price: int = 8) -> Routing:
        """Makes the heaviest GPU as light as can be: exactly, with the GPUs that prove it.

        ``counts``: the tokens of this step, integers, [experts]; or [gpus, experts], those that each GPU sends. Then of
        all such routings it takes one of the least price: ``gpu_price`` for a token that leaves its GPU, ``node_price``
        more if it leaves its node; both 0 to 1000, and with both 0 senders play no part in the quotas.

        ``tile``: a slot's load counts as a whole number of so many tokens, 1 to 65536.

        Raises :class:`~dualpipe.errors.InvalidArgument`, also for more than 2^32 - 1 tokens, or any of an expert that
        no live GPU has; TypeError for counts that are no integers.
        """
        values = _uints("counts", counts)
        experts, gpus = self.num_experts, self.num_gpus
        if values.shape not in ((experts,), (gpus, experts)):
            shapes = f"[{experts}] or [{gpus}, {experts}], [experts] or [gpus, experts]"
            raise InvalidArgument(f"counts has shape {list(values.shape)}, must be {shapes}")
        routing = self._route(layer, values, _options(tile, gpu_price, node_price))
        return routing if torch_of(counts) is None else _back(routing, like(counts))

    def shares(self, layer: int, loads: Any) -> tuple[Floats, float]:
        """The share of its expert's tokens that each slot should get if the experts have these ``loads`` ([experts],
        real, finite, not negative): [slots], float64, and the heaviest GPU's load by it, which is the least.

        Raises :class:`~dualpipe.errors.InvalidArgument`, also for a load of an expert that no live GPU has.
        """
        values = np.asarray(loads) if torch_of(loads) is None else loads
        if values.ndim != 1:
            raise InvalidArgument(f"loads has shape {list(values.shape)}, must be [{self.num_experts}]")
        row = read_loads("loads", values[None], window=False)[0]
        shares, heaviest, count = np.empty(self.num_slots), c.c_double(), c.c_size_t()
        where = (row.ctypes.data, row.size, shares.ctypes.data, shares.size, c.byref(count), c.byref(heaviest))
        lib.dualpipe_router_shares(self._handle, uint32("layer", layer), *where)
        return shares, heaviest.value

    def slots(
        self,
        layer: int,
        choices: Any,
        quotas: Any = None,
        *,
        before: Any = None,
        shares: Any = None,
        phase: int = 0,
    ) -> Any:
        """The slot of each of a rank's tokens: shape, type and device of ``choices``, -1 where there is no expert.

        ``choices``: the experts of the tokens in this rank's order, say [tokens, top_k], integers, -1 for none: numpy's
        or a torch tensor. Of int32 and int64 nothing is copied if they lie in a row in the memory of the CPU.

        With ``quotas``, [slots], each slot gets its quota exactly when all tokens have been sent that they were made
        for. They are those of this rank's tokens alone (``routing.source_quotas[rank]``); or those of all ranks' tokens
        (``routing.quotas``), and ``before`` is [experts]: the number of each expert's tokens on lower ranks. If a rank
        sends its tokens in chunks, those of its earlier chunks are added to it.

        Without, each slot gets about its share of any tokens in a row: ``shares``, [slots], of which only proportions
        matter; by default the plan's, or equal ones. ``phase``: another for each rank and step, such as step * gpus +
        rank, lest all begin with the same replica.

        Raises :class:`~dualpipe.errors.InvalidArgument`, also if an expert has more tokens than its quotas; TypeError.
        """
        ids, make = _choices(choices)
        slots = np.empty(ids.shape, np.int32)
        count = c.c_size_t()
        where = (ids.ctypes.data, ids.itemsize, ids.size, slots.ctypes.data, ids.size, c.byref(count))
        number = uint32("layer", layer)
        if quotas is None:
            if before is not None:
                raise InvalidArgument("before is given without quotas")
            parts = None if shares is None else as_shares(shares)
            lib.dualpipe_router_slots_by_shares(self._handle, number, *in_row(parts), _phase(phase), *where)
        else:
            if shares is not None:
                raise InvalidArgument("quotas and shares are both given")
            amounts = _uints("quotas", quotas)
            lower = None if before is None else _uints("before", before)
            lib.dualpipe_router_slots_by_quotas(self._handle, number, *in_row(amounts), *in_row(lower), *where)
        return make(slots)

    def _route(self, layer: int, counts: npt.NDArray[np.uint32], options: e.RouteOptions) -> Routing:
        number = uint32("layer", layer)
        has_senders = counts.ndim == 2
        function = lib.dualpipe_router_route_from if has_senders else lib.dualpipe_router_route
        quotas, count = np.empty(self.num_slots, np.uint32), c.c_size_t()
        routing = e.Routing(size=c.sizeof(e.Routing))
        where = (counts.ctypes.data, counts.size, quotas.ctypes.data, quotas.size, c.byref(count), c.byref(routing))
        function(self._handle, number, c.byref(options), *where)
        sources: Any = None
        if has_senders:
            rows = np.empty((self.num_gpus, self.num_slots), np.uint32)
            all_gpus = (0, len(rows), rows.ctypes.data, rows.size, c.byref(count))
            lib.dualpipe_router_source_quotas(self._handle, number, *all_gpus)
            sources = rows.astype(np.int64)
        loads = np.empty(self.num_gpus, np.uint64)
        lib.dualpipe_router_gpu_loads(self._handle, number, loads.ctypes.data, loads.size, c.byref(count))
        gpus = np.empty(routing.num_bottleneck_gpus, np.uint32)
        lib.dualpipe_router_bottleneck(self._handle, number, gpus.ctypes.data, gpus.size, c.byref(count))
        return Routing(
            quotas.astype(np.int64),
            sources,
            loads.astype(np.int64),
            routing.heaviest,
            routing.bound,
            gpus.astype(np.int64),
            routing.bottleneck_load,
            routing.tokens_on_gpu,
            routing.tokens_on_node,
        )


def route(
    placement: Any,
    counts: Any,
    cluster: Cluster | None = None,
    *,
    tile: int = 1,
    gpu_price: int = 1,
    node_price: int = 8,
) -> Routings:
    """Routes a step in all layers at once. Who routes every step keeps a :class:`Router`.

    ``placement`` and ``cluster``: as for :class:`Router`. ``counts``: the tokens of this step, integers, [layers,
    experts], or [layers, gpus, experts], those that each GPU sends. ``tile``, ``gpu_price``, ``node_price`` and what it
    raises: as :meth:`Router.route`.
    """
    values = _uints("counts", counts)
    if values.ndim not in (2, 3):
        shapes = "[layers, experts] or [layers, gpus, experts]"
        raise InvalidArgument(f"counts has shape {list(values.shape)}, must be {shapes}")
    num_experts = None if isinstance(placement, Plan) else values.shape[-1]
    options = _options(tile, gpu_price, node_price)
    with Router(placement, cluster, num_experts=num_experts) as router:
        layers, experts, gpus = router.num_layers, router.num_experts, router.num_gpus
        if values.shape not in ((layers, experts), (layers, gpus, experts)):
            shapes = f"[{layers}, {experts}] or [{layers}, {gpus}, {experts}]"
            raise InvalidArgument(f"counts has shape {list(values.shape)}, must be {shapes}")
        of_layers = [router._route(layer, row, options) for layer, row in enumerate(values)]
    make = like(counts)
    fields: dict[str, Any] = {}
    for name in Routing._fields:
        each = [getattr(routing, name) for routing in of_layers]
        if name == "bottleneck":
            fields[name] = [make(gpus) for gpus in each]
        else:
            fields[name] = None if each[0] is None else make(np.array(each))
    return Routings(**fields)


def _back(routing: Routing, make: Callable[[npt.NDArray[Any]], Any]) -> Routing:
    arrays = {name: make(value) for name, value in routing._asdict().items() if isinstance(value, np.ndarray)}
    return routing._replace(**arrays)


def _options(tile: int, gpu_price: int, node_price: int) -> e.RouteOptions:
    """``dualpipe_route_options``. Ranges are the library's to check, except for 0, which has a meaning there."""
    number = uint32("tile", tile)
    if number == 0:
        raise InvalidArgument("tile is 0, must be 1 to 65536")
    prices = uint32("gpu_price", gpu_price), uint32("node_price", node_price)
    return e.RouteOptions(c.sizeof(e.RouteOptions), number, *prices, prices == (0, 0))


def _uints(name: str, value: Any) -> npt.NDArray[np.uint32]:
    """uint32, row after row, of whatever shape: integers of 0 to 2^32 - 1 that numpy takes, or a tensor."""
    values = read_numbers(name, value, "iu")
    if values.dtype != np.uint32:
        if values.size and not (0 <= values.min() and values.max() < 1 << 32):
            wrong = values[(values < 0) | (values >= 1 << 32)].flat[0]
            raise InvalidArgument(f"{name} has {wrong}, must be 0 to {(1 << 32) - 1}")
        values = values.astype(np.uint32)
    return np.ascontiguousarray(values)


def _choices(choices: Any) -> tuple[npt.NDArray[Any], Callable[[npt.NDArray[np.int32]], Any]]:
    """Experts as int32 or int64 in a row, and what makes of slots what the choices are."""
    ids = read_numbers("choices", choices, "iu")
    dtype = ids.dtype
    if dtype not in (np.int32, np.int64):
        ids = ids.astype(np.int64)
    back = like(choices)
    return np.ascontiguousarray(ids), lambda slots: back(slots.astype(dtype, copy=False))


def _phase(phase: Any) -> int:
    try:
        return operator.index(phase) % (1 << 64)
    except TypeError:
        raise TypeError(f"phase is {phase!r}, must be an integer") from None
