"""What experts are placed on: GPUs with their slots, on nodes; some of them perhaps dead."""

from __future__ import annotations

import ctypes as c
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _expert_structs as e
from .._library import uint32
from ..errors import InvalidArgument

GPUS_MAX = 1 << 20
"""The library's limit, for what is made here before the library sees it."""


class Cluster:
    """GPUs, their slots for the experts of one layer, and their nodes. It never changes; equal ones are equal.

    >>> Cluster(num_gpus=4, num_slots=10, num_nodes=2, dead=[3])
    Cluster(slots_per_gpu=(3, 3, 2, 2), node_of_gpu=(0, 0, 1, 1), dead=(3,))

    Slots are numbered GPU by GPU, those of dead GPUs too: a number means the same slot before and after a failure. A
    slot of a dead GPU holds no expert, -1.
    """

    __slots__ = ("_dead", "_node_of_gpu", "_slots_per_gpu")

    def __init__(
        self,
        *,
        num_gpus: int | None = None,
        num_slots: int | None = None,
        num_nodes: int | None = None,
        slots_per_gpu: int | Sequence[int] | None = None,
        node_of_gpu: Sequence[int] | None = None,
        dead: Iterable[int] = (),
    ) -> None:
        """``num_gpus``: may be left out where ``slots_per_gpu`` is a sequence.

        ``num_slots``: of all GPUs together; where they do not divide, the first GPUs have one more. Or
        ``slots_per_gpu``: one number for all GPUs, or one for each, which may be 0.

        ``num_nodes``: consecutive GPUs share a node; where they do not divide, the first nodes have one more; 1 if
        nothing is said. Or ``node_of_gpu``: the node of each GPU.

        ``dead``: the GPUs that are not there any more.

        Raises :class:`~dualpipe.errors.InvalidArgument`, TypeError for what is no integer.
        """
        listed = _slots(num_gpus, num_slots, slots_per_gpu)
        self._slots_per_gpu = listed
        self._node_of_gpu = _nodes(len(listed), num_nodes, node_of_gpu)
        self._dead = tuple(sorted({uint32("dead", gpu) for gpu in dead}))
        if self._dead and self._dead[-1] >= len(listed):
            raise InvalidArgument(f"dead has {self._dead[-1]}, must be less than num_gpus, {len(listed)}")

    @property
    def num_gpus(self) -> int:
        """GPUs, dead ones too."""
        return len(self._slots_per_gpu)

    @property
    def num_slots(self) -> int:
        """Slots of a layer, those of dead GPUs too."""
        return sum(self._slots_per_gpu)

    @property
    def num_nodes(self) -> int:
        """Nodes, those of dead GPUs too."""
        return max(self._node_of_gpu) + 1

    @property
    def slots_per_gpu(self) -> tuple[int, ...]:
        """[num_gpus] The slots of each GPU."""
        return self._slots_per_gpu

    @property
    def node_of_gpu(self) -> tuple[int, ...]:
        """[num_gpus] The node of each GPU."""
        return self._node_of_gpu

    @property
    def dead(self) -> tuple[int, ...]:
        """The dead GPUs, in order."""
        return self._dead

    @property
    def gpu_of_slot(self) -> npt.NDArray[np.int64]:
        """[num_slots] The GPU of each slot."""
        return np.repeat(np.arange(self.num_gpus), self._slots_per_gpu)

    def with_dead(self, dead: Iterable[int]) -> Cluster:
        """The same with these GPUs dead, and no others."""
        return Cluster(slots_per_gpu=self._slots_per_gpu, node_of_gpu=self._node_of_gpu, dead=dead)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cluster) and self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash(self._parts())

    def __repr__(self) -> str:
        slots, nodes, dead = self._parts()
        return f"Cluster(slots_per_gpu={slots}, node_of_gpu={nodes}, dead={dead})"

    def __str__(self) -> str:
        parts = [f"{self.num_slots} slots on {self.num_gpus} GPUs"]
        if self.num_nodes > 1:
            parts.append(f"of {self.num_nodes} nodes")
        if self._dead:
            parts.append(f"({len(self._dead)} dead)")
        return " ".join(parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return _of_parts, self._parts()

    def _parts(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        return self._slots_per_gpu, self._node_of_gpu, self._dead

    def _as_c(self) -> e.Cluster:
        """``dualpipe_cluster``, which keeps what it points to."""
        slots = np.array(self._slots_per_gpu, np.uint32)
        nodes = np.array(self._node_of_gpu, np.uint32)
        alive = np.ones(self.num_gpus, np.uint8)
        alive[list(self._dead)] = 0
        struct = e.Cluster(
            size=c.sizeof(e.Cluster),
            num_gpus=self.num_gpus,
            slots_per_gpu=slots.ctypes.data,
            node_of_gpu=nodes.ctypes.data,
            is_alive=alive.ctypes.data,
        )
        struct.keep_alive = (slots, nodes, alive)
        return struct


def _of_parts(slots: tuple[int, ...], nodes: tuple[int, ...], dead: tuple[int, ...]) -> Cluster:
    return Cluster(slots_per_gpu=slots, node_of_gpu=nodes, dead=dead)


def _slots(num_gpus: int | None, num_slots: int | None, slots_per_gpu: int | Sequence[int] | None) -> tuple[int, ...]:
    if (num_slots is None) == (slots_per_gpu is None):
        raise InvalidArgument("one of num_slots and slots_per_gpu must be given, not both")
    if slots_per_gpu is not None and np.ndim(slots_per_gpu) > 0:
        listed: Any = slots_per_gpu
        slots = tuple(uint32(f"slots_per_gpu[{gpu}]", each) for gpu, each in enumerate(listed))
        if num_gpus is not None and num_gpus != len(slots):
            raise InvalidArgument(f"slots_per_gpu has {len(slots)} numbers, must have num_gpus, {num_gpus}")
        in_range("the length of slots_per_gpu", len(slots), 1, GPUS_MAX)
        return slots
    if num_gpus is None:
        raise InvalidArgument("num_gpus is not given")
    num_gpus = in_range("num_gpus", num_gpus, 1, GPUS_MAX)
    if slots_per_gpu is not None:
        return (in_range("slots_per_gpu", slots_per_gpu, 1, GPUS_MAX // num_gpus),) * num_gpus
    return _even(in_range("num_slots", num_slots, num_gpus, GPUS_MAX), num_gpus)


def _nodes(num_gpus: int, num_nodes: int | None, node_of_gpu: Sequence[int] | None) -> tuple[int, ...]:
    if node_of_gpu is None:
        gpus = _even(num_gpus, in_range("num_nodes", 1 if num_nodes is None else num_nodes, 1, num_gpus))
        return tuple(node for node, count in enumerate(gpus) for _ in range(count))
    if num_nodes is not None:
        raise InvalidArgument("one of num_nodes and node_of_gpu may be given, not both")
    if len(node_of_gpu) != num_gpus:
        raise InvalidArgument(f"node_of_gpu has {len(node_of_gpu)} numbers, must have num_gpus, {num_gpus}")
    return tuple(in_range(f"node_of_gpu[{gpu}]", node, 0, num_gpus - 1) for gpu, node in enumerate(node_of_gpu))


def _even(items: int, parts: int) -> tuple[int, ...]:
    """How many items each part has, the first one more if they do not divide."""
    least, more = divmod(items, parts)
    return (least + 1,) * more + (least,) * (parts - more)


def in_range(name: str, value: Any, least: int, most: int) -> int:
    """``value`` as an integer of this range."""
    number = uint32(name, value)
    if not least <= number <= most:
        raise InvalidArgument(f"{name} is {number}, must be {least} to {most}")
    return number
