"""Loads of experts, counted step by step on many ranks, to plan placements of."""

from __future__ import annotations

import ctypes as c
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _expert_structs as e
from .._library import Closing, Handle, create, lib, read_values, uint32
from ..errors import InvalidArgument
from ._arguments import read_map, real
from ._cluster import Cluster
from ._counts import integer, read_integers, read_placement

KINDS = ("sum", "average", "steps")
"""By the numbers of ``dualpipe_monitor_loads`` from 1 on."""


class Balancedness(NamedTuple):
    """How busy the mean GPU is beside the busiest, above 0 to 1, as vLLM logs it; 0 where there is no load."""

    overall: float
    """Of all layers: the sum of their means / the sum of their greatest."""
    layers: npt.NDArray[np.float64]
    """[layers] Of each."""


class Monitor(Closing):
    """Tokens of the last steps per layer and expert, as integers.

    >>> monitor = Monitor(num_layers=1, num_experts=4, half_life=10)
    >>> for step in range(100):
    ...     kept = monitor.record(step, [[8, 4, 2, 2]])
    >>> monitor.loads()
    array([[8., 4., 2., 2.]], dtype=float32)

    Each rank may record for itself. Monitors that were given the same reports are equal, to the byte of :meth:`save`,
    in whatever order ranks recorded and merged. A monitor copies and pickles with all that it holds. One thread at a
    time: others get :class:`~dualpipe.errors.Busy`.
    """

    def __init__(
        self,
        num_layers: int,
        num_experts: int,
        *,
        window: int | None = None,
        num_ranks: int = 1,
        half_life: float | None = None,
    ) -> None:
        """``window``: step numbers that are kept, the newest and those less than ``window`` before it; 1000 unless said,
        or as many as 2^28 counts are. ``num_ranks``: reports that make a step complete: ranks, if each reports for
        itself, or 1, if one rank has all counts. ``half_life``: steps after which a load weighs half as much in the
        average, may be infinite; a quarter of the window unless said.

        Monitors that are to be merged have the same. Raises :class:`~dualpipe.errors.InvalidArgument`.
        """
        options = e.LoadMonitorOptions(
            size=c.sizeof(e.LoadMonitorOptions),
            num_layers=uint32("num_layers", num_layers),
            num_experts=uint32("num_experts", num_experts),
            window=0 if window is None else _not_0("window", uint32("window", window)),
            num_ranks=_not_0("num_ranks", uint32("num_ranks", num_ranks)),
            half_life=0 if half_life is None else _not_0("half_life", real("half_life", half_life)),
        )
        self._keep(create("dualpipe_load_monitor_create", "dualpipe_load_monitor_free", c.byref(options)))

    def _keep(self, handle: Handle) -> None:
        self._handle = handle
        info = self._info()
        self.num_layers: int = info.num_layers
        """MoE layers."""
        self.num_experts: int = info.num_experts
        """Logical experts of a layer."""
        self.window: int = info.window
        """Step numbers that are kept."""
        self.num_ranks: int = info.num_ranks
        """Reports that make a step complete."""
        self.half_life: float = info.half_life
        """Steps after which a load weighs half as much in the average."""

    @classmethod
    def load(cls, state: bytes) -> Monitor:
        """What :meth:`save` wrote, also on another machine. Raises :class:`~dualpipe.errors.InvalidArgument` for bytes
        of something else, of another version, damaged, or cut off."""
        state = bytes(state)
        monitor = cls.__new__(cls)
        monitor._keep(create("dualpipe_load_monitor_load", "dualpipe_load_monitor_free", state, len(state)))
        return monitor

    def save(self) -> bytes:
        """The whole state. Equal monitors have equal bytes. It has the last reading of :meth:`record_cumulative`'s
        counters: those that outlive a restart are not counted twice."""
        return read_values("dualpipe_load_monitor_save", np.uint8, self._handle).tobytes()

    def record(self, step: int, counts: Any, *, layer: int | None = None) -> bool:
        """One report of a step: ``counts`` [layers, experts], tokens, integers of numpy, what numpy takes, or a tensor;
        with ``layer``, of that one only, [experts]; a step's layers may come in any order.

        Returns whether it is kept, False if the step is older than the window. Raises
        :class:`~dualpipe.errors.InvalidArgument`, also for a step that has all its reports, TypeError for what is no
        integer; nothing is recorded then. So with the other ways to record.
        """
        number = _step(step)
        is_kept = c.c_uint32()
        if layer is None:
            shape: tuple[int | None, ...] = (self.num_layers, self.num_experts)
            values = read_integers("counts", counts, np.uint32, shape)
            lib.dualpipe_load_monitor_record_logical(
                self._handle, number, values.ctypes.data, values.size, c.byref(is_kept)
            )
        else:
            values = read_integers("counts", counts, np.uint32, (self.num_experts,))
            lib.dualpipe_load_monitor_record_layer(
                self._handle, number, uint32("layer", layer), values.ctypes.data, values.size, c.byref(is_kept)
            )
        return is_kept.value == 1

    def record_physical(self, step: int, slot_to_expert: Any, counts: Any) -> bool:
        """One report of a step from slots, a rank's own or all: ``counts`` [layers, slots], tokens, as DeepEP counts
        what it receives, below 2^31 each. They count for the experts in the slots: ``slot_to_expert`` [layers, slots],
        -1 where there is none and no token, or a :class:`~dualpipe.eplb.Plan` whose slots they all are.
        """
        return self._record_slots("physical", "counts", step, slot_to_expert, counts)

    def record_cumulative(self, step: int, slot_to_expert: Any, counters: Any) -> bool:
        """:meth:`record_physical` from counters that only grow, as DeepEP's ``cumulative_local_expert_recv_stats``: what
        they have grown by since this monitor last read them, or since they were 0.

        A counter may run over 2^31, and grow by less than that between two readings. If one of a layer has fallen, the
        layer's were set to 0 and are counted from there; if all have outgrown what they were before, that cannot be
        seen: call :meth:`set_counters` where they are set to 0, also in a new process. A step that was left out has
        read them, an error has not.
        """
        return self._record_slots("cumulative", "counters", step, slot_to_expert, counters)

    def _record_slots(self, how: str, name: str, step: int, slot_to_expert: Any, counts: Any) -> bool:
        values = read_integers(name, counts, np.int32, (self.num_layers, None))
        slots = np.zeros((0, 0), np.int64)
        if values.size > 0:
            slots = read_map("slot_to_expert", slot_to_expert, values.shape[1], self.num_layers)
        is_kept = c.c_uint32()
        where = (self._handle, _step(step), slots.ctypes.data, values.ctypes.data, values.size, c.byref(is_kept))
        getattr(lib, f"dualpipe_load_monitor_record_{how}")(*where)
        return is_kept.value == 1

    def set_counters(self, counters: Any = None) -> None:
        """Says what the counters show now, [layers, slots], of which nothing is to count. None: they have been set to
        0, and there may be another number of them from now on."""
        if counters is None:
            lib.dualpipe_load_monitor_set_counters(self._handle, None, 0)
            return
        values = read_integers("counters", counters, np.int32, (self.num_layers, None))
        lib.dualpipe_load_monitor_set_counters(self._handle, values.ctypes.data, values.size)

    def merge(self, other: Monitor) -> None:
        """Adds what another monitor with the same options has recorded; it stays as it is. Counters are not merged: each
        monitor keeps those that it reads. Raises :class:`~dualpipe.errors.InvalidArgument`, also if a step would have
        more reports than ranks, as after merging a monitor twice; nothing has changed then."""
        lib.dualpipe_load_monitor_merge(self._handle, other._handle)

    def loads(self, kind: str = "average", *, incomplete: bool = False) -> npt.NDArray[np.float32]:
        """Loads for :func:`~dualpipe.eplb.balance`, of the complete steps, or with ``incomplete`` of all: experts of
        ranks that have not reported look idle in these.

        ``"average"``: [layers, experts], tokens per step, with weights that halve with each half-life before the
        newest; ``"sum"``: [layers, experts]; ``"steps"``: [steps, layers, experts], those of :meth:`step_numbers`. 0
        where there is no step.
        """
        if kind not in KINDS:
            raise InvalidArgument(f"kind is {kind!r}, must be {' or '.join(map(repr, KINDS))}")
        where = (self._handle, _reported(incomplete), KINDS.index(kind) + 1)
        expected = 0 if kind == "steps" else self.num_layers * self.num_experts
        values = read_values("dualpipe_load_monitor_loads", np.float32, *where, expected=expected)
        of_step = (self.num_layers, self.num_experts)
        return values.reshape(of_step if kind != "steps" else (values.size // (of_step[0] * of_step[1]), *of_step))

    def counts(self, *, incomplete: bool = False) -> npt.NDArray[np.int64]:
        """[layers, experts] The tokens of the window, exactly."""
        where = (self._handle, _reported(incomplete))
        expected = self.num_layers * self.num_experts
        values = read_values("dualpipe_load_monitor_counts", np.uint64, *where, expected=expected)
        return values.astype(np.int64).reshape(self.num_layers, self.num_experts)

    def step_numbers(self, *, incomplete: bool = False) -> list[int]:
        """The complete steps of the window, in order; with ``incomplete`` all that have a report."""
        where = (self._handle, _reported(incomplete))
        steps: list[int] = read_values("dualpipe_load_monitor_step_numbers", np.uint64, *where).tolist()
        return steps

    def incomplete_steps(self) -> list[int]:
        """The steps that have a report but not all, in order."""
        steps: list[int] = read_values("dualpipe_load_monitor_incomplete_steps", np.uint64, self._handle).tolist()
        return steps

    def reports(self, step: int) -> npt.NDArray[np.int64]:
        """[layers] How many reports there are of a step; 0 of one that is not in the window."""
        where = (self._handle, _step(step))
        return read_values("dualpipe_load_monitor_reports", np.uint32, *where).astype(np.int64)

    @property
    def newest_step(self) -> int | None:
        """The newest step with a report, None if there is none."""
        info = self._info()
        return info.newest_step if info.num_steps else None

    def balancedness(
        self, placement: Any, cluster: Cluster | None = None, *, shares: Any = None, incomplete: bool = False
    ) -> Balancedness:
        """How balanced the window's tokens are on the GPUs of a placement: a :class:`~dualpipe.eplb.Plan`, or [layers,
        slots], -1 where there is no expert, on a ``cluster``, with ``shares`` [layers, slots] of the experts' tokens,
        equal unless said. Raises :class:`~dualpipe.errors.InvalidArgument`."""
        given = read_placement("placement", placement, cluster, shares, self.num_layers)
        struct = given.cluster._as_c()
        overall = c.c_double()
        layers = read_values(
            "dualpipe_load_monitor_balancedness",
            np.float64,
            self._handle,
            _reported(incomplete),
            c.byref(struct),
            given.slots.ctypes.data,
            given.shares_at,
            given.slots.size,
            c.byref(overall),
            expected=self.num_layers,
        )
        return Balancedness(overall.value, layers)

    def __repr__(self) -> str:
        info = self._info()
        steps = f"{info.num_complete_steps} of {info.num_steps} steps complete"
        return f"<dualpipe.eplb.Monitor {self.num_layers} layers of {self.num_experts} experts, {steps}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).load, (self.save(),)

    def _info(self) -> e.LoadMonitorInfo:
        info = e.LoadMonitorInfo(size=c.sizeof(e.LoadMonitorInfo))
        lib.dualpipe_load_monitor_describe(self._handle, c.byref(info))
        return info


def balancedness(gpu_loads: Any, cluster: Cluster | None = None) -> Balancedness:
    """How balanced loads of GPUs are, however they came about: ``gpu_loads`` [layers, GPUs], as of
    :func:`~dualpipe.eplb.gpu_loads` or measured; dead GPUs of the ``cluster`` do not count."""
    values = np.ascontiguousarray(gpu_loads, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise InvalidArgument(f"gpu_loads has shape {list(values.shape)}, must be [layers, GPUs]")
    cluster = cluster or Cluster(num_gpus=values.shape[1], slots_per_gpu=1)
    if values.shape[1] != cluster.num_gpus:
        raise InvalidArgument(f"gpu_loads has shape {list(values.shape)}, must be [layers, {cluster.num_gpus}]")
    struct = cluster._as_c()
    overall = c.c_double()
    where = (c.byref(struct), values.ctypes.data, values.size, c.byref(overall))
    layers = read_values("dualpipe_expert_balancedness", np.float64, *where, expected=max(len(values), 1))
    return Balancedness(overall.value, layers)


def _reported(incomplete: bool) -> int:
    """A ``dualpipe_reported``."""
    return 2 if incomplete else 1


def _step(step: Any) -> int:
    return integer("step", step, (1 << 63) - 1)


def _not_0(name: str, value: Any) -> Any:
    """``value``, as 0 stands for what is left out in C."""
    if value == 0:
        raise InvalidArgument(f"{name} is 0, must be above it")
    return value
