"""How long expert balancing takes from Python, beside DeepSeek's policy written in numpy; all in one run, as ratios.

    python benches/balance.py [--loads FILE.csv] [--rounds 7]

The numpy version is the algorithm that EPLB publishes, all layers at once; its placements are compared with the
library's before anything is timed. Each figure is the fastest of some rounds in turns. Without ``--loads`` they are
lognormal as DeepSeek-V3's are (sigma 0.65), from a seed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from dualpipe import eplb

SIZES = (
    # slots, groups, nodes, GPUs
    (288, 8, 4, 32),
    (288, 1, 1, 32),
    (320, 1, 1, 40),
    (288, 1, 1, 72),
    (288, 1, 1, 144),
    (320, 1, 1, 160),
)


def pack(weight: Any, num_packs: int) -> tuple[Any, Any]:
    """[rows, n] items heaviest first onto the lightest of equally large packs: the pack of each, its place in there."""
    rows, items = weight.shape
    per_pack = items // num_packs
    if per_pack == 1:
        which = np.broadcast_to(np.arange(items), weight.shape)
        return which, np.zeros_like(which)
    order = np.argsort(-weight, axis=1, kind="stable")
    pack_of, place_of = np.empty((rows, items), np.int64), np.empty((rows, items), np.int64)
    loads, filled = np.zeros((rows, num_packs), np.float32), np.zeros((rows, num_packs), np.int64)
    row = np.arange(rows)
    for item in order.T:
        pack = np.where(filled < per_pack, loads, np.inf).argmin(axis=1)
        pack_of[row, item], place_of[row, item] = pack, filled[row, pack]
        loads[row, pack] += weight[row, item]
        filled[row, pack] += 1
    return pack_of, place_of


def replicate(weight: Any, num_slots: int) -> tuple[Any, Any]:
    """[rows, num_slots] the expert of each replica, [rows, experts] how many replicas each has."""
    rows, experts = weight.shape
    expert_of = np.tile(np.arange(num_slots), (rows, 1))
    counts = np.ones((rows, experts), np.int64)
    row = np.arange(rows)
    for slot in range(experts, num_slots):
        heaviest = (weight / counts.astype(np.float32)).argmax(axis=1)
        expert_of[:, slot] = heaviest
        counts[row, heaviest] += 1
    return expert_of, counts


def rebalance_experts(weight: Any, num_slots: int, num_groups: int, num_nodes: int, num_gpus: int) -> Any:
    """[layers, num_slots]: the expert in each slot, by DeepSeek's three steps."""
    layers, experts = weight.shape
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    group_size = experts // num_groups
    # 1. groups on nodes; experts renumbered node by node
    groups = weight.reshape(layers, num_groups, group_size).sum(axis=2, dtype=np.float32)
    node, place = pack(groups, num_nodes)
    first = ((node * (num_groups // num_nodes) + place) * group_size)[:, :, None] + np.arange(group_size)
    new_name = first.reshape(layers, experts)
    old_name = np.empty_like(new_name)
    np.put_along_axis(old_name, new_name, np.broadcast_to(np.arange(experts), new_name.shape), axis=1)
    # 2. replicas within each node
    by_node = np.take_along_axis(weight, old_name, axis=1).reshape(layers * num_nodes, -1)
    expert_of, counts = replicate(by_node, num_slots // num_nodes)
    # 3. replicas on GPUs
    share = np.take_along_axis(by_node / counts.astype(np.float32), expert_of, axis=1)
    gpu, place = pack(share, num_gpus // num_nodes)
    slot = gpu * (num_slots // num_gpus) + place
    held = np.empty_like(slot)
    np.put_along_axis(held, slot, expert_of, axis=1)
    held = held.reshape(layers, num_nodes, -1) + np.arange(num_nodes)[:, None] * (experts // num_nodes)
    return np.take_along_axis(old_name, held.reshape(layers, -1), axis=1)


def place(loads: Any, policy: str, num_slots: int, num_groups: int, num_nodes: int, num_gpus: int) -> None:
    """A whole plan by the library, with its bounds, on one thread."""
    groups = "whole" if num_groups > 1 else "free"
    sizes = {"num_gpus": num_gpus, "num_slots": num_slots, "num_nodes": num_nodes, "num_groups": num_groups}
    eplb.balance(loads, **sizes, groups=groups, policy=policy, num_threads=1).close()


def fastest(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each function, the fastest of some rounds in turns."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", metavar="FILE.csv", help="a layer a line, an expert a column")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args(words)
    if arguments.loads:
        loads = np.loadtxt(arguments.loads, delimiter=",", dtype=np.float32, ndmin=2)
    else:
        loads = np.random.default_rng(20260217).lognormal(8, 0.65, (58, 256)).round().astype(np.float32)
    print("milliseconds of all layers on one thread         numpy    exact  refined  numpy/exact  numpy/refined")
    for sizes in SIZES:
        same = (eplb.rebalance_experts(loads, *sizes)[0] == rebalance_experts(loads, *sizes)).mean()
        if same < 0.999:
            raise SystemExit(f"{sizes}: only {same:.1%} of the slots are alike")
        times = fastest(
            {
                "numpy": partial(rebalance_experts, loads, *sizes),
                "exact": partial(place, loads, "deepseek", *sizes),
                "refined": partial(place, loads, "refined", *sizes),
            },
            arguments.rounds,
        )
        name = "{} slots, {} groups, {} nodes, {} GPUs".format(*sizes)
        exact, refined = (times["numpy"] / times[ours] for ours in ("exact", "refined"))
        figures = "".join(f"{1e3 * times[name]:9.2f}" for name in times)
        print(f"{name:<45}{figures}{exact:13.1f}{refined:15.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
