"""From one placement to the next: which expert is copied from where to where, in rounds."""

from __future__ import annotations

import ctypes as c
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _expert_structs as e
from .._library import Closing, Handle, create, lib, read_values, uint32
from ..errors import InvalidArgument
from ._arguments import at_least_1, experts_in, read_map, real
from ._cluster import Cluster
from ._plan import Plan

LINKS = ("same_gpu", "same_node", "other_node")
"""How far an expert is copied, by the numbers of ``dualpipe_expert_link``."""

Rows = npt.NDArray[Any]
"""A structured array."""


class LinkBytes(NamedTuple):
    """Bytes, by how far they go."""

    same_gpu: int
    """Copied within GPUs."""
    same_node: int
    """Between GPUs of a node."""
    other_node: int
    """Between nodes."""


class GpuRound(NamedTuple):
    """What a GPU does in one round, all of it at once. Rows are those of :attr:`Transfers.copies`."""

    layer: int
    """The layer."""
    round: int
    """The round of its layer, from 0. Those in which the GPU has nothing to do are left out."""
    sends: Rows
    """``from`` is a room of this GPU, ``to_gpu`` who receives."""
    receives: Rows
    """``to`` is a room of this GPU, ``from_gpu`` who sends."""
    local: Rows
    """``from`` and ``to`` are rooms of this GPU."""


class Transfers(Closing):
    """The copies that lead from one placement to another, in rounds: made by :func:`transfers`.

    All copies of a round may run at once: nothing is read and written in the same round, no slot is overwritten while
    it is an expert's only source, and no GPU or link does more than was allowed. Layers do not depend on each other. A
    GPU that does its own copies round by round needs no barrier.

    It never changes; any number of threads may use it at once. ``str(transfers)`` is a summary.
    """

    def __init__(self, handle: Handle, cluster: Cluster) -> None:
        """Not to be called by users: ``handle`` is the library's."""
        self._handle = handle
        self._cluster = cluster
        self._info = e.ExpertTransfersInfo(size=c.sizeof(e.ExpertTransfersInfo))
        lib.dualpipe_expert_transfers_describe(handle, c.byref(self._info))

    @property
    def cluster(self) -> Cluster:
        """What the experts are placed on."""
        return self._cluster

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return int(self._info.num_layers)

    @property
    def num_rounds(self) -> int:
        """Rounds of all layers, one after the other."""
        return int(self._info.num_rounds)

    @property
    def least_rounds(self) -> int:
        """No plan for these layers has fewer."""
        return int(self._info.least_rounds)

    @property
    def copies(self) -> Rows:
        """All copies, layer after layer in the order of :attr:`layers`, in a layer round after round: ``layer``,
        ``round``, ``expert``, ``from_gpu``, ``from``, ``to_gpu``, ``to``, ``link``, uint32 each.

        ``from`` and ``to`` are rooms: below ``cluster.num_slots`` a slot, ``cluster.num_slots + i`` the staging buffer
        i of that GPU. ``link`` is an index of :data:`LINKS`.
        """
        return read_values("dualpipe_expert_transfers_copies", e.ExpertCopy, self._handle)

    @property
    def layers(self) -> Rows:
        """[layers] in the order in which they are to be done: ``layer``, ``num_rounds``, ``least_rounds`` (no plan for
        this layer has fewer), ``num_copies``, ``same_gpu``, ``same_node``, ``other_node``, ``num_lost``,
        ``first_copy``."""
        return read_values("dualpipe_expert_transfers_layers", e.ExpertLayerTransfers, self._handle)

    @property
    def bytes(self) -> LinkBytes:
        """The bytes of all copies, by how far they go."""
        info = self._info
        return LinkBytes(info.same_gpu_bytes, info.same_node_bytes, info.other_node_bytes)

    @property
    def bytes_per_expert(self) -> int:
        """The bytes of all tensors of an expert."""
        return int(self._info.bytes_per_expert)

    @property
    def staging(self) -> npt.NDArray[np.int64]:
        """[gpus], int64: the staging buffers that each GPU needs, each with room for one expert."""
        return read_values("dualpipe_expert_transfers_staging", np.uint32, self._handle).astype(np.int64)

    @property
    def lost(self) -> Rows:
        """What no live slot held and must be loaded from elsewhere, after the last round of its layer: ``layer``,
        ``expert``, ``slot``."""
        return read_values("dualpipe_expert_transfers_lost", e.LostExpert, self._handle)

    def rounds(self, layer: int) -> list[Rows]:
        """The copies of each round of a layer, as in :attr:`copies`."""
        number = uint32("layer", layer)
        if number >= self.num_layers:
            raise InvalidArgument(f"layer is {number}, must be 0 to {self.num_layers - 1}")
        layers = self.layers
        (of_layer,) = layers[layers["layer"] == number]
        copies = self.copies[of_layer["first_copy"] :][: of_layer["num_copies"]]
        bounds = np.searchsorted(copies["round"], np.arange(of_layer["num_rounds"] + 1))
        return [copies[first:end] for first, end in zip(bounds, bounds[1:])]

    def for_gpu(self, gpu: int) -> list[GpuRound]:
        """What a GPU sends, receives and copies within itself, round by round in the order in which it is to be done.

        Within a round two GPUs list what they have for each other in the same order.
        """
        number = uint32("gpu", gpu)
        mine = read_values("dualpipe_expert_transfers_for_gpu", e.ExpertCopy, self._handle, number)
        steps = []
        is_new = (np.diff(mine["layer"]) != 0) | (np.diff(mine["round"]) != 0)
        for part in np.split(mine, np.flatnonzero(is_new) + 1) if len(mine) else []:
            sends, receives = part["from_gpu"] == number, part["to_gpu"] == number
            layer, nth = int(part["layer"][0]), int(part["round"][0])
            steps.append(GpuRound(layer, nth, part[sends & ~receives], part[receives & ~sends], part[sends & receives]))
        return steps

    def placement_after(self, layers_done: int) -> npt.NDArray[np.int64]:
        """[layers, slots], int64: the placement when the first ``layers_done`` layers have been done, and what they
        lost has been loaded. After a failure, what remains is planned from it."""
        function = "dualpipe_expert_transfers_placement_after"
        number = uint32("layers_done", layers_done)
        return read_values(function, np.int64, self._handle, number).reshape(self.num_layers, -1)

    def check(self) -> None:
        """Proves it right by replaying it; raises :class:`~dualpipe.errors.InvalidSchedule` with the first fault, which
        would be a defect of the library."""
        lib.dualpipe_expert_transfers_check(self._handle)

    def __str__(self) -> str:
        info, layers = self._info, self.layers
        lines = [f"{info.num_copies} copies of experts in {self.num_layers} layers, {self._cluster}"]
        lines.append(f"{'':12}{'copies':>9}{'bytes':>20}")
        for name, num_bytes in zip(LINKS, self.bytes):
            lines.append(f"{name.replace('_', ' '):12}{layers[name].sum():9}{num_bytes:20,}")
        worst = layers["num_rounds"].max()
        lines.append(
            f"{'rounds':12}{self.num_rounds:9} (none has fewer than {self.least_rounds}), at most {worst} of a layer"
        )
        lines.append(f"{'staging':12}{info.num_staging:9} buffers, at most {self.staging.max()} on a GPU")
        if info.num_lost:
            lines.append(f"{'lost':12}{info.num_lost:9} experts, to be loaded from elsewhere")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<dualpipe.eplb.Transfers {self._info.num_copies} copies, {self.num_layers} layers, {self._cluster}>"


def transfers(
    current: Any,
    new: Any,
    cluster: Cluster | None = None,
    *,
    num_experts: int | None = None,
    tensor_bytes: Sequence[int] = (),
    gains: Any = None,
    sends_per_gpu: int = 1,
    receives_per_gpu: int = 1,
    copies_per_node_link: int | None = None,
    staging_per_gpu: int = 0,
) -> Transfers:
    """The copies that lead from placement ``current`` to placement ``new``, in rounds.

    Both are a :class:`~dualpipe.eplb.Plan` or [layers, slots], integers: the expert in each slot, -1 where there is
    none; in a live slot of ``new`` that says that it does not matter. ``cluster``: as it is now, what was on a dead GPU
    is not there any more; unless said that of the new plan. ``num_experts``: as many as they speak of, unless said.

    ``tensor_bytes``: the bytes of each tensor of an expert (weights, scales, optimizer state), all of which a copy
    moves. ``gains``: [layers], what each layer gains; the greatest is done first.

    A round: a GPU sends and receives at most ``sends_per_gpu`` and ``receives_per_gpu`` experts to and from others, and
    at most ``copies_per_node_link`` go from one node to another, each direction for itself (None: no limit). Each GPU
    and each node gets an expert from outside once, and only if it has no replica, except where that would stop
    everything. Staging buffers are the fewest with which it can be done, at most one on a GPU; with ``staging_per_gpu``
    more may be used to save rounds: 2 bring them near their least number.

    Raises :class:`~dualpipe.errors.InvalidArgument`.
    """
    if cluster is None:
        if not isinstance(new, Plan):
            raise InvalidArgument("cluster is not given, must be unless new is a plan")
        cluster = new.cluster
    before = read_map("current", current, cluster.num_slots)
    after = read_map("new", new, cluster.num_slots, len(before))
    if num_experts is None:
        known = [plan.num_experts for plan in (current, new) if isinstance(plan, Plan)]
        num_experts = max(experts_in(before, after), 1, *known)
    tensors = np.array([uint64("tensor_bytes", each) for each in tensor_bytes], np.uint64)
    order = np.array([] if gains is None else [real("gains", gain) for gain in gains], np.float64)
    options = e.ExpertTransferOptions(
        size=c.sizeof(e.ExpertTransferOptions),
        sends_per_gpu=at_least_1("sends_per_gpu", sends_per_gpu),
        receives_per_gpu=at_least_1("receives_per_gpu", receives_per_gpu),
        copies_per_node_link=_limit(copies_per_node_link),
        staging_per_gpu=uint32("staging_per_gpu", staging_per_gpu),
        num_tensors=len(tensors),
        num_gains=len(order),
        tensor_bytes=tensors.ctypes.data,
        gains=order.ctypes.data,
    )
    struct = cluster._as_c()
    experts = uint32("num_experts", num_experts)
    where = (c.byref(struct), experts, before.ctypes.data, after.ctypes.data, before.size, c.byref(options))
    handle = create("dualpipe_expert_transfers_create", "dualpipe_expert_transfers_free", *where)
    return Transfers(handle, cluster)


def uint64(name: str, value: Any) -> int:
    """``value`` as an integer that C can take."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} has {value!r}, must be integers") from None
    if not 0 <= number < 1 << 64:
        raise InvalidArgument(f"{name} has {number}, must be 0 to {(1 << 64) - 1}")
    return number


def _limit(copies_per_node_link: int | None) -> int:
    """0 stands for no limit in C."""
    return 0 if copies_per_node_link is None else at_least_1("copies_per_node_link", copies_per_node_link)
