"""Places experts for recorded loads: says how good the placement is, what none could beat, and draws it.

``python -m dualpipe eplb``. :func:`dualpipe.eplb.balance`, :func:`~dualpipe.eplb.verify` and
:func:`~dualpipe.eplb.replay` do the work.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._commands._common import guarded
from ..errors import Error, InvalidArgument
from ._arguments import Map, read_map
from ._cluster import Cluster
from ._expert_map import SUFFIXES, read_expert_map, write_expert_map
from ._heat_map import heat_map
from ._history import LoadHistory
from ._plan import Plan, balance
from ._replay import FewMoves, Policy, replay
from ._verify import verify

MAPS = ", ".join(SUFFIXES)
"""What files of placements end in."""
WORST = 5
"""Layers in the table of the worst."""

EPILOG = """examples:
  python -m dualpipe eplb loads.csv --gpus 32 --slots 288
      how even can 32 GPUs of 9 slots be made? prints the imbalance, and a bound that nobody beats
  python -m dualpipe eplb loads.csv --gpus 32 --slots 288 --nodes 4 --groups 8 --group-rule whole --svg map.svg
      groups of experts stay on a node; a picture of the GPUs' loads before and after
  python -m dualpipe eplb loads.npy --gpus 32 --slots 288 --current now.json --moves 10 --map next.json
      from the placement that is there, at most 10 moved experts in each layer
  python -m dualpipe eplb loads.npy --gpus 32 --slots 288 --dead 5 --current now.json --reach 1.05
      GPU 5 is gone: the fewest moves to at most 5 % above the mean
  python -m dualpipe eplb history.npy --gpus 32 --slots 288 --replay 10 10
      which policy would have done best? plans from 10 steps, judged by the next 10
  python -m dualpipe eplb loads.csv --gpus 32 --slots 288 --verify theirs.json
      is that placement right, and how good is it?

words: a slot is room for one expert's weights on a GPU; an expert may have replicas in several, which share its
tokens. Imbalance is the heaviest GPU's load / the mean: all GPUs wait for the heaviest, so 1.25 means that a fifth of
the time is lost; 1 is perfect."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument(
        "loads",
        metavar="LOADS",
        nargs="+",
        type=Path,
        help="loads by layer and expert, perhaps by step: .csv, vLLM's .jsonl, .json, .npy, .npz, or SGLang's .pt; of "
        "its records per pass the files of all ranks",
    )
    placed = parser.add_argument_group("what experts are placed on")
    placed.add_argument("--gpus", type=_count, metavar="N", help="GPUs")
    placed.add_argument(
        "--slots", type=_count, metavar="N", help="slots of all GPUs together, at least as many as experts"
    )
    placed.add_argument("--slots-per-gpu", type=_counts, metavar="N[,N...]", help="instead: of each GPU")
    placed.add_argument("--nodes", type=_count, default=1, metavar="N", help="nodes, each of consecutive GPUs (1)")
    placed.add_argument("--dead", type=_counts, default=(), metavar="GPU[,GPU...]", help="GPUs that are gone")
    goal = parser.add_argument_group("what makes a placement good")
    goal.add_argument("--groups", type=_count, default=1, metavar="N", help="groups of experts that a router chooses")
    goal.add_argument(
        "--group-rule",
        type=_rule,
        default="free",
        metavar="RULE",
        help="free: groups do not matter (default); whole: each stays on a node; a number: the price of leaving",
    )
    goal.add_argument("--split", choices=("equal", "weighted"), default="equal", help="how replicas share (equal)")
    goal.add_argument("--min-gpus", type=_count, default=1, metavar="K", help="every expert on K GPUs at least")
    goal.add_argument("--min-nodes", type=_count, default=1, metavar="K", help="every expert on K nodes at least")
    goal.add_argument("--effort", type=_count, default=1, metavar="N", help="search N times as long, 1 to 1000")
    how = parser.add_argument_group("how")
    how.add_argument("--policy", choices=("refined", "deepseek"), default="refined", help="refined, or DeepSeek's EPLB")
    how.add_argument("--last", type=_count, metavar="N", help="plan for the last N steps (all)")
    how.add_argument("--current", type=Path, metavar="MAP", help=f"the placement that is there: {MAPS}")
    budget = how.add_mutually_exclusive_group()
    budget.add_argument("--moves", type=int, metavar="N", help="move at most N experts of each layer")
    budget.add_argument("--reach", type=float, metavar="X", help="move as few as it takes to an imbalance of X")
    instead = parser.add_argument_group("instead of a plan").add_mutually_exclusive_group()
    instead.add_argument(
        "--replay", type=_count, nargs=2, metavar=("WINDOW", "EVERY"), help="compare policies over all steps"
    )
    instead.add_argument("--verify", type=Path, metavar="MAP", help=f"say what is wrong with a placement: {MAPS}")
    how.add_argument(
        "--expert-bytes", type=_count, default=0, metavar="N", help="one expert's weights in a layer, for --replay"
    )
    out = parser.add_argument_group("what is written")
    out.add_argument("--svg", type=Path, metavar="FILE", help="a picture of the GPUs' loads")
    out.add_argument("--map", type=Path, metavar="FILE", help=f"the placement: {MAPS}")


def run(arguments: argparse.Namespace) -> int:
    """Prints what was asked for; 0, or 1 if a placement is wrong, or 2 if that could not be done."""
    return guarded("eplb", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    loads: npt.NDArray[Any] = LoadHistory.read(arguments.loads).loads
    if arguments.last is not None:
        loads = loads[-arguments.last :]
    cluster = _cluster(arguments, loads.shape[-1])
    if arguments.replay is not None:
        return _replay(arguments, loads, cluster)
    if arguments.verify is not None:
        return _verify(arguments, loads, cluster)
    return _plan(arguments, loads, cluster)


def _plan(arguments: argparse.Namespace, loads: npt.NDArray[Any], cluster: Cluster) -> int:
    current = None if arguments.current is None else _read_map(arguments.current, cluster)
    by_deepseek = arguments.policy == "deepseek"
    plan = balance(
        loads.sum(axis=0) if by_deepseek or len(loads) == 1 else loads,
        cluster=cluster,
        current=current,
        max_moves=arguments.moves,
        reach=arguments.reach,
        split=arguments.split,
        effort=arguments.effort,
        policy=arguments.policy,
        **_goal(arguments),
    )
    before = _before(loads, cluster, current)
    name = "current placement" if current is not None else "experts in order"
    print(_summary(plan, before, name))
    print(f"\n{_worst(plan)}")
    if arguments.svg is not None:
        panels = {name: before, arguments.policy: plan} if before is not None else {arguments.policy: plan}
        heat_map(panels, cluster).svg(arguments.svg)
        print(f"\nwrote {arguments.svg}")
    if arguments.map is not None:
        write_expert_map(arguments.map, plan)
        print(f"\nwrote {arguments.map}")
    return 0


def _replay(arguments: argparse.Namespace, loads: npt.NDArray[Any], cluster: Cluster) -> int:
    window, every = arguments.replay
    budget = FewMoves(reach=arguments.reach) if arguments.reach is not None else FewMoves(arguments.moves or 8)
    few = f"reach {arguments.reach:g}" if arguments.reach is not None else f"{arguments.moves or 8} moves"
    even = Cluster(num_gpus=cluster.num_gpus, num_slots=cluster.num_slots, num_nodes=cluster.num_nodes)
    policies: dict[str, Policy] = {"none": "none"}
    if cluster == even and cluster.num_slots % cluster.num_gpus == 0:
        policies["deepseek"] = "deepseek"
    policies.update({"refined": "refined", few: budget})
    replayed = replay(
        loads,
        policies,
        window=window,
        every=every,
        cluster=cluster,
        split=arguments.split,
        effort=arguments.effort,
        initial=None if arguments.current is None else _read_map(arguments.current, cluster),
        expert_bytes=arguments.expert_bytes,
        **_goal(arguments),
    )
    steps, layers, experts = loads.shape
    print(f"{steps} steps, {layers} layers of {experts} experts; {cluster}")
    print(f"planned from {window} steps, every {every} steps; judged by the steps after each plan\n")
    print(replayed, end="")
    if arguments.svg is not None:
        replayed.save_svg(arguments.svg)
        print(f"\nwrote {arguments.svg}")
    return 0


def _verify(arguments: argparse.Namespace, loads: npt.NDArray[Any], cluster: Cluster) -> int:
    slots = _read_map(arguments.verify, cluster)
    report = verify(slots, cluster, num_experts=loads.shape[-1], **_goal(arguments))
    print(report, end="")
    if not report.ok:
        print(f"{report.num_errors} errors, {report.num_warnings} warnings: the placement must not be used")
        return 1
    wasteful = f"{report.num_warnings} warnings, no errors: the placement can be used"
    warnings = wasteful if report.num_warnings else "nothing is wrong with the placement"
    print(f"{warnings}\n")
    groups = {name: value for name, value in _goal(arguments).items() if not name.startswith("min_")}
    plan = Plan.of_slots(slots, cluster, loads=loads if len(loads) > 1 else loads[0], **groups)
    print(f"{_summary(plan, None, '')}\n\n{_worst(plan)}")
    if arguments.svg is not None:
        heat_map({arguments.verify.name: plan}, cluster).svg(arguments.svg)
        print(f"\nwrote {arguments.svg}")
    return 0


def _before(loads: npt.NDArray[Any], cluster: Cluster, current: Map | None) -> Plan | None:
    """What there is without a plan; None if tokens would be lost by it."""
    if current is None:
        live = np.isin(cluster.gpu_of_slot, cluster.dead, invert=True)
        row = np.full(cluster.num_slots, -1, np.int64)
        row[live] = np.arange(live.sum()) % loads.shape[-1]
        current = np.tile(row, (loads.shape[1], 1))
    try:
        return Plan.of_slots(current, cluster, loads=loads if len(loads) > 1 else loads[0])
    except Error:
        return None


def _summary(plan: Plan, before: Plan | None, name: str) -> str:
    lines = [f"{plan.num_layers} layers of {plan.num_experts} experts; {plan.cluster}; {plan.split} split", ""]
    lines.append(f"{'':18}{'mean':>9}{'worst':>9}")

    def line(what: str, values: npt.NDArray[Any], means: str, percent: bool = False) -> None:
        scaled = [100 * values.mean(), 100 * values.max()] if percent else [values.mean(), values.max()]
        cells = "".join(f"{value:7.2f} %" if percent else f"{value:9.4f}" for value in scaled)
        lines.append(f"{what:18}{cells}   {means}")

    if before is not None:
        line(name, before.imbalance, "before: the heaviest GPU's load / the mean")
    elif name:
        lines.append(f"{name:18}{'-':>9}{'-':>9}   before: tokens would be lost")
    lost = 100 * (1 - 1 / plan.imbalance.mean())
    line("imbalance", plan.imbalance, f"the plan: GPUs wait {lost:.2f} % of the time for the heaviest")
    line("lower bound", plan.lower_bound, "no placement is better")
    line("gap", plan.gap, "what is left to be gained, at most", percent=True)
    if plan.away.any():
        line("away", plan.away, "load that is not on its group's node", percent=True)
    if plan.moves is not None:
        total = plan.moves.total
        where = f"{plan.moves.other_node.sum()} of all {total.sum()} between nodes"
        lines.append(f"{'moves':18}{total.mean():9.1f}{total.max():9}   experts that come to a GPU; {where}")
    return "\n".join(lines)


def _worst(plan: Plan) -> str:
    order = np.argsort(-plan.imbalance, kind="stable")[:WORST]
    lines = ["worst layers   imbalance    bound      gap   heaviest GPU   most replicated expert"]
    loads, counts = plan.gpu_loads, plan.logcnt
    for layer in order:
        expert = counts[layer].argmax()
        lines.append(
            f"{layer:12}{plan.imbalance[layer]:12.4f}{plan.lower_bound[layer]:9.4f}{100 * plan.gap[layer]:7.2f} %"
            f"{loads[layer].argmax():15}   {expert} (in {counts[layer, expert]} slots)"
        )
    return "\n".join(lines)


def _read_map(path: Path, cluster: Cluster) -> Map:
    placement = read_expert_map(path)
    if placement.slots_per_gpu not in (None, cluster.slots_per_gpu):
        raise InvalidArgument(f"{path} is for GPUs of {placement.slots_per_gpu} slots, not {cluster.slots_per_gpu}")
    return read_map(str(path), placement.slot_to_expert, cluster.num_slots)


def _cluster(arguments: argparse.Namespace, num_experts: int) -> Cluster:
    slots, per_gpu, gpus = arguments.slots, arguments.slots_per_gpu, arguments.gpus
    if per_gpu is not None and len(per_gpu) == 1:
        per_gpu = per_gpu[0]
    if slots is None and per_gpu is None:
        slots = num_experts
    return Cluster(
        num_gpus=gpus, num_slots=slots, slots_per_gpu=per_gpu, num_nodes=arguments.nodes, dead=arguments.dead
    )


def _goal(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "num_groups": arguments.groups,
        "groups": arguments.group_rule,
        "min_gpus": arguments.min_gpus,
        "min_nodes": arguments.min_nodes,
    }


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 1 << 32:
        raise argparse.ArgumentTypeError(f"is {text!r}, must be a whole number from 1 on")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isascii() and word.isdigit() and int(word) < 1 << 32 for word in words):
        raise argparse.ArgumentTypeError(f"is {text!r}, must be whole numbers with commas between")
    return tuple(map(int, words))


def _rule(text: str) -> str | float:
    if text in ("free", "whole"):
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {text!r}, must be free, whole or a price") from None
