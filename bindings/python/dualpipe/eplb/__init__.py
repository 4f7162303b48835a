"""Expert balancing: which slots hold which replicas of which experts, with a proof of how good that is.

:func:`rebalance_experts` has the signature and the results of DeepSeek's EPLB (github.com/deepseek-ai/EPLB), number for
number; of equal loads the lower index comes first, where the original leaves it to torch's sort. That includes the
replicas of one expert, which are equally heavy: their order in log2phy. :func:`balance` finds better placements, on any
:class:`Cluster`, also with few moves from the one that is there, and says what none can beat.
"""

from __future__ import annotations

from ._cluster import Cluster
from ._expert_map import ExpertMap, read_expert_map, write_expert_map
from ._heat_map import HeatMap, heat_map
from ._history import LoadHistory, SlotLoads, logical_loads
from ._monitor import Balancedness, Monitor, balancedness
from ._moves import MoveCurve, Moves, move_curve, moves
from ._plan import Plan, balance, rebalance_experts
from ._replay import FewMoves, Past, Replay, Run, replay
from ._route import Router, Routing, Routings, route
from ._transfers import LINKS, GpuRound, LinkBytes, Transfers, transfers
from ._trigger import REASONS, Decision, plan_and_judge, should_rebalance
from ._verify import Finding, Memory, Report, disagreeing, gpu_loads, hash_of, memory, node_loads, verify

__all__ = [
    "LINKS",
    "REASONS",
    "Balancedness",
    "Cluster",
    "Decision",
    "ExpertMap",
    "FewMoves",
    "Finding",
    "GpuRound",
    "HeatMap",
    "LinkBytes",
    "LoadHistory",
    "Memory",
    "Monitor",
    "MoveCurve",
    "Moves",
    "Past",
    "Plan",
    "Replay",
    "Report",
    "Router",
    "Routing",
    "Routings",
    "Run",
    "SlotLoads",
    "Transfers",
    "balance",
    "balancedness",
    "disagreeing",
    "gpu_loads",
    "hash_of",
    "heat_map",
    "logical_loads",
    "memory",
    "move_curve",
    "moves",
    "node_loads",
    "plan_and_judge",
    "read_expert_map",
    "rebalance_experts",
    "replay",
    "route",
    "should_rebalance",
    "transfers",
    "verify",
    "write_expert_map",
]
