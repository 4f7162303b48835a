"""Whether a planned placement is worth moving to."""

from __future__ import annotations

import ctypes as c
from dataclasses import dataclass, replace
from typing import Any, Callable

import numpy as np
import numpy.typing as npt

from .. import _expert_structs as e
from .._library import lib
from ..errors import InvalidArgument
from ._arguments import real
from ._cluster import Cluster
from ._counts import integer, read_integers, read_placement
from ._monitor import Monitor

REASONS = {
    "worthwhile": "the gain exceeds the cost, beyond doubt",
    "same placement": "the placements are the same",
    "too few steps": "there are too few steps to know how far gains vary",
    "no gain": "the plan is not better",
    "within noise": "the gain is within what chance may bring",
    "below cost": "the gain is real and not certain to exceed the cost",
}
"""By the numbers of ``dualpipe_rebalance_reason`` from 1 on, with what they mean."""


@dataclass(frozen=True)
class Decision:
    """Whether to move, and why. It is true if so, and ``str(decision)`` is a sentence."""

    rebalance: bool
    """Whether the move pays."""
    reason: str
    """What decided: a key of :data:`REASONS`."""
    current_imbalance: float
    """Now: the heaviest GPU's load / the mean, of sums over steps and layers."""
    planned_imbalance: float
    """After the move: the same, as expected of steps that the plan has not seen."""
    noise_floor: float
    """What the planned imbalance would be if only its steps differed, each from their mean: 1 or a little more than the
    sampling of tokens makes inevitable."""
    gain_seconds: float
    """What is expected to be saved over the horizon; negative if the plan is worse."""
    gain_error_seconds: float
    """The standard error of that; infinite with too few steps."""
    cost_seconds: float
    """The price of the move."""
    moved_replicas: int
    """Replicas that GPUs have to receive, in all layers."""

    def __bool__(self) -> bool:
        return self.rebalance

    def __str__(self) -> str:
        imbalance = f"imbalance {self.current_imbalance:.3f} to {self.planned_imbalance:.3f}"
        gain = f"gain {self.gain_seconds:.3g} s +- {self.gain_error_seconds:.2g} s"
        cost = f"cost {self.cost_seconds:.3g} s for {self.moved_replicas} replicas"
        verdict = "rebalance" if self.rebalance else "stay"
        return f"{verdict}: {REASONS[self.reason]} ({imbalance}, {gain}, {cost})"


def should_rebalance(
    counts: Any,
    current: Any,
    planned: Any,
    cluster: Cluster | None = None,
    *,
    expert_seconds: float,
    horizon: int,
    price_seconds: float | None = None,
    bytes_per_expert: float | None = None,
    bytes_per_second: float | None = None,
    standard_errors: float = 3,
    plan_saw_counts: bool = False,
    current_shares: Any = None,
    planned_shares: Any = None,
) -> Decision:
    """Whether to move from ``current`` to ``planned``: if (gain per step - ``standard_errors`` * its standard error) *
    ``horizon`` exceeds the cost.

    ``counts``: the tokens of the last steps, [steps, layers, experts], whole numbers; or a
    :class:`~dualpipe.eplb.Monitor`, of which the complete steps are taken. At least 4 steps; more than 16 tell more. A
    plan looks better on steps that it was made of: ``plan_saw_counts`` discounts that. Better still, plan of older
    steps and judge on newer ones: :func:`plan_and_judge`.

    ``current``, ``planned``: a :class:`~dualpipe.eplb.Plan` each, with its shares, or [layers, slots], integers, -1
    where there is no expert, with equal shares unless said; if neither is a plan, a ``cluster`` is needed. ``cluster``
    is what they are judged on, with GPUs that may have died since.

    ``expert_seconds``: what the experts of all layers take of a step now, as far as it grows with the heaviest GPU's
    tokens. ``horizon``: steps that the move has to pay for itself in. What it costs: ``price_seconds`` that it holds up
    steps; or ``bytes_per_expert`` of one layer at ``bytes_per_second`` that a GPU receives, layers one after the other,
    each as long as its busiest GPU takes.

    Raises :class:`~dualpipe.errors.InvalidArgument`, also for a placement under which the counts do not arrive;
    TypeError.
    """
    values = _counts_of(counts)
    for placement in (current, planned):
        cluster = cluster if cluster is not None else getattr(placement, "cluster", None)
    now = read_placement("current", current, cluster, current_shares, values.shape[1])
    then = read_placement("planned", planned, cluster, planned_shares, values.shape[1])
    price = _price(price_seconds, bytes_per_expert, bytes_per_second)
    errors = real("standard_errors", standard_errors)
    proposal = e.RebalanceProposal(
        size=c.sizeof(e.RebalanceProposal),
        num_layers=values.shape[1],
        num_experts=values.shape[2],
        plan_saw_counts=bool(plan_saw_counts),
        counts=values.ctypes.data,
        num_counts=values.size,
        current=now.slots.ctypes.data,
        current_shares=now.shares_at,
        planned=then.slots.ctypes.data,
        planned_shares=then.shares_at,
        num_slots=now.slots.size,
        horizon=integer("horizon", horizon, 1 << 53),
        expert_seconds=real("expert_seconds", expert_seconds),
        price_seconds=price[0],
        bytes_per_expert=price[1],
        bytes_per_second=price[2],
        # 0 stands for 3 in C: this is as good as none.
        standard_errors=errors if errors != 0 else 1e-300,
    )
    struct = now.cluster._as_c()
    found = e.RebalanceDecision(size=c.sizeof(e.RebalanceDecision))
    lib.dualpipe_should_rebalance(c.byref(struct), c.byref(proposal), c.byref(found))
    return Decision(
        rebalance=found.rebalance == 1,
        reason=list(REASONS)[found.reason - 1],
        current_imbalance=found.current_imbalance,
        planned_imbalance=found.planned_imbalance,
        noise_floor=found.noise_floor,
        gain_seconds=found.gain_seconds,
        gain_error_seconds=found.gain_error_seconds,
        cost_seconds=found.cost_seconds,
        moved_replicas=found.moved_replicas,
    )


def plan_and_judge(
    counts: Any,
    current: Any,
    plan: Callable[[npt.NDArray[np.float32]], Any],
    cluster: Cluster | None = None,
    *,
    standard_errors: float = 3,
    **stakes: Any,
) -> tuple[Decision, Any]:
    """Plans and judges without letting a plan be judged by what it has seen.

    ``plan(loads)`` gets the loads of the older half of the steps, [layers, experts], summed, and returns a placement,
    which is judged on the newer half. If that pays, it gets the loads of all steps, and this is the placement to move
    to, at the cost of its own moves. Returns the decision, and the placement or None. At least 8 steps; a change is
    noticed once it fills more than half of them.

    The rest is as for :func:`should_rebalance`; ``planned_shares`` of maps cannot be said: return a
    :class:`~dualpipe.eplb.Plan`.
    """
    values = _counts_of(counts)
    middle = len(values) // 2

    def judge(planned: Any) -> Decision:
        return should_rebalance(values[middle:], current, planned, cluster, standard_errors=standard_errors, **stakes)

    def sum_of(steps: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return np.asarray(steps.sum(axis=0, dtype=np.float64), np.float32)

    decision = judge(plan(sum_of(values[:middle])))
    if not decision:
        return decision, None
    best = plan(sum_of(values))
    # Of what has seen the steps only the moves are of interest.
    seen = judge(best)
    decision = replace(decision, cost_seconds=seen.cost_seconds, moved_replicas=seen.moved_replicas)
    certain = decision.gain_seconds - standard_errors * decision.gain_error_seconds
    if seen.reason == "same placement":
        decision = replace(decision, rebalance=False, reason=seen.reason)
    elif certain <= decision.cost_seconds:
        decision = replace(decision, rebalance=False, reason="below cost")
    return decision, best if decision else None


def _counts_of(counts: Any) -> npt.NDArray[np.uint32]:
    if isinstance(counts, Monitor):
        counts = counts.loads("steps")
    return read_integers("counts", counts, np.uint32, (None, None, None), whole=True)


def _price(seconds: float | None, per_expert: float | None, per_second: float | None) -> tuple[float, float, float]:
    if (per_expert is None) != (per_second is None) or (seconds is None) == (per_expert is None):
        raise InvalidArgument("the price must be price_seconds, or bytes_per_expert and bytes_per_second")
    if seconds is not None:
        return real("price_seconds", seconds), 0, 0
    rate = real("bytes_per_second", per_second)
    if rate == 0:
        raise InvalidArgument("bytes_per_second is 0, must be 1 to 1e18")
    return 0, real("bytes_per_expert", per_expert), rate
