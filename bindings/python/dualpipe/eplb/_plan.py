"""Expert balancing: which slots hold which replicas of which experts.

:func:`rebalance_experts` has the signature and the results of DeepSeek's EPLB (github.com/deepseek-ai/EPLB), number for
number; of equal loads the lower index comes first, where the original leaves it to torch's sort. That includes the
replicas of one expert, which are equally heavy: their order in log2phy. :func:`balance` says in addition how good a
placement is.
"""

from __future__ import annotations

import ctypes as c
import sys
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _structs as s
from ._library import create, read_values, uint32
from .errors import InvalidArgument


class Placement(NamedTuple):
    """Where the replicas of every layer's experts lie, and how well they are balanced. Arrays are numpy's, or torch's
    on the device of the loads if those were torch's."""

    phy2log: Any
    """[layers, num_replicas], int64: the expert in each slot. GPU g holds num_replicas / num_gpus slots, from
    g * num_replicas / num_gpus on."""
    log2phy: Any
    """[layers, experts, most replicas of any expert], int64: the slots of each expert, -1 behind the last."""
    logcnt: Any
    """[layers, experts], int64: how many replicas each expert has."""
    imbalance: Any
    """[layers], float64: load of the heaviest GPU / mean load of the GPUs, at least 1."""
    lower_bound: Any
    """[layers], float64: no placement has a lower imbalance (if groups stay on their nodes: none that keeps them
    there)."""


def rebalance_experts(
    weight: Any, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> tuple[Any, Any, Any]:
    """Places the experts of every layer, with replicas of the heavy ones: DeepSeek's EPLB.

    ``weight``: [layers, experts], the load of each expert, finite and not negative; anything that numpy takes, or a
    torch tensor; taken as float32. ``num_replicas``: slots of all GPUs together, at least experts. If ``num_nodes``
    divides ``num_groups``, groups of experts stay on one node, and then ``num_groups`` must divide experts,
    ``num_nodes`` must divide ``num_gpus``, and ``num_gpus`` must divide ``num_replicas``.

    Returns (phy2log, log2phy, logcnt) as :class:`Placement` describes them. Raises
    :class:`~dualpipe.errors.InvalidArgument` with the nearest numbers that would do; TypeError for loads that are no
    real numbers.
    """
    placement = balance(weight, num_replicas, num_groups, num_nodes, num_gpus)
    return placement.phy2log, placement.log2phy, placement.logcnt


def balance(
    weight: Any, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int, *, num_threads: int = 0
) -> Placement:
    """Like :func:`rebalance_experts`, with each layer's imbalance and its lower bound.

    ``num_threads``: 0 is as many as there are cores. The result does not depend on it. Calls the progress callback
    (:func:`dualpipe.set_progress`) now and then.
    """
    # Not imported for this: who has no torch loaded has no tensors.
    torch: Any = sys.modules.get("torch")
    is_tensor = torch is not None and isinstance(weight, torch.Tensor)
    loads = _loads(_from_torch(torch, weight) if is_tensor else weight)
    num_layers, num_experts = loads.shape
    options = s.BalanceOptions(
        c.sizeof(s.BalanceOptions),
        num_layers,
        num_experts,
        uint32("num_replicas", num_replicas),
        uint32("num_groups", num_groups),
        uint32("num_nodes", num_nodes),
        uint32("num_gpus", num_gpus),
        uint32("num_threads", num_threads),
    )
    where = (c.byref(options), loads.ctypes.data, loads.size)
    plan = create("dualpipe_expert_plan_create", "dualpipe_expert_plan_free", *where)
    layers = read_values("dualpipe_expert_plan_layers", s.LayerBalance, plan)
    slots = read_values("dualpipe_expert_plan_expert_to_slots", np.int64, plan)
    placement = Placement(
        read_values("dualpipe_expert_plan_slot_to_expert", np.int64, plan).reshape(num_layers, -1),
        slots.reshape(num_layers, num_experts, -1),
        read_values("dualpipe_expert_plan_replica_counts", np.int64, plan).reshape(num_layers, num_experts),
        layers["imbalance"].copy(),
        layers["lower_bound"].copy(),
    )
    plan.close()
    return Placement(*(torch.from_numpy(array).to(weight.device) for array in placement)) if is_tensor else placement


def _from_torch(torch: Any, weight: Any) -> npt.NDArray[Any]:
    """A tensor's values, wherever it lies, whatever its type, as numpy has them."""
    if weight.is_complex():
        raise TypeError(f"weight has dtype {weight.dtype}, must be real numbers")
    on_cpu = weight.detach().to(device="cpu", dtype=torch.float32)
    values: npt.NDArray[Any] = on_cpu.contiguous().numpy()
    return values


def _loads(weight: Any) -> npt.NDArray[np.float32]:
    """[layers, experts] float32, row after row."""
    values = np.asarray(weight)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"weight has dtype {values.dtype}, must be real numbers")
    if values.ndim != 2:
        raise InvalidArgument(f"weight has shape {list(values.shape)}, must be [layers, experts]")
    if values.size == 0:
        raise InvalidArgument(f"weight has shape {list(values.shape)}, must have layers and experts")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which the library refuses
        return np.ascontiguousarray(values, dtype=np.float32)
