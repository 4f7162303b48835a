"""How good the planner's schedules are, and how soon: the gap to the bound over the time of the search.

    python benches/planner.py [--seeds 3] [--iterations 1000 30000 1000000] [--svg FILE] [CASE ...]

Each case is planned anew with each number of iterations and seed; the time is that of the whole call. ``--svg`` draws
it with matplotlib, which nothing else here needs. Cases: those of docs/planning.md, F = 1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import dualpipe
from dualpipe import Costs, Plan

ITERATIONS = (1, 1_000, 10_000, 100_000, 1_000_000, 3_000_000)


class Case(NamedTuple):
    """What is planned, and what was known before."""

    known: float
    costs: dict[str, Any]
    ranks: int = 8
    microbatches: int = 20
    cap: int = 9
    placement: str = "bidirectional"


def uniform(fb: float, i: float = 1.0, w: float = 1.0, **more: float) -> dict[str, Any]:
    return {"f": 1.0, "i": i, "w": w, "fb": fb, **more}


def uneven(factors: Sequence[float], share: float) -> dict[str, Any]:
    """Stages that cost so many times as much; pairs take ``share`` of F + B."""
    each = list(factors)
    return {"f": each, "i": each, "w": each, "fb": [3 * share * factor for factor in each]}


CASES = {
    "F&B=3": Case(63, uniform(3)),
    "I=1.63, W=.83, no overlap": Case(73.1, uniform(3.46, 1.63, 0.83)),
    "F&B=2.6": Case(59.6, uniform(2.6)),
    "F&B=2.5": Case(58.5, uniform(2.5)),
    "F&B=2": Case(51, uniform(2)),
    "trace": Case(47.63, uniform(1.66, 1.27, 0.38)),
    "V, p2p .3, F&B=3": Case(64.7, uniform(3, latency=0.3), 4, 10, 9, "v"),
    "V, p2p .3, F&B=2.5": Case(61.9, uniform(2.5, latency=0.3), 4, 10, 9, "v"),
    "last stage +50 %": Case(61.33, uneven([1.0] * 7 + [1.5], 2 / 3)),
    "middle stages +40 %": Case(68.8, uneven([1.0] * 3 + [1.4] * 2 + [1.0] * 3, 2 / 3)),
    "P=16, n=32, F&B=3": Case(107, uniform(3), 16, 32, 17),
    "n=4": Case(19, uniform(3), microbatches=4),
    "n=8": Case(27, uniform(3), microbatches=8),
    "n=12": Case(39, uniform(3), microbatches=12),
    **{f"cap {cap}": Case(known, uniform(3), cap=cap) for cap, known in zip(range(4, 9), (71, 68, 65, 64, 63))},
    "n=12, trace": Case(33.5, uniform(1.66, 1.27, 0.38), microbatches=12),
    "cap 5, F&B=2.5": Case(68, uniform(2.5), cap=5),
    "cap 7, F&B=2.5": Case(62.5, uniform(2.5), cap=7),
}
DRAWN = ("I=1.63, W=.83, no overlap", "F&B=2.5", "trace", "last stage +50 %", "V, p2p .3, F&B=2.5", "cap 6")


class Try(NamedTuple):
    """A plan, and how long it took."""

    plan: Plan
    seconds: float


def plan(case: Case, iterations: int, seed: int) -> Try:
    began = time.perf_counter()
    found = dualpipe.plan(
        ranks=case.ranks,
        microbatches=case.microbatches,
        costs=Costs(**case.costs),
        placement=case.placement,
        cap=case.cap,
        iterations=iterations,
        seed=seed,
    )
    return Try(found, time.perf_counter() - began)


def row(name: str, case: Case, tries: Sequence[Sequence[Try]]) -> str:
    """Of the longest searches: what came out of each seed."""
    last = tries[-1]
    first = last[0].plan
    spans = sorted(found.plan.makespan for found in last)
    makespans = f"{spans[0]:.2f}" if spans[0] == spans[-1] else f"{spans[0]:.2f} to {spans[-1]:.2f}"
    mean_gap = sum(found.plan.gap for found in last) / len(last)
    seconds = max(found.seconds for found in last)
    start = f"{first.start_makespan:.2f} {first.started_from}"
    return (
        f"| {name} | {start} | {case.known:g} | {makespans} | {first.lower_bound:.2f} "
        f"| {100 * mean_gap:.2f} % | {seconds:.2f} s |"
    )


def draw(path: str, found: dict[str, list[list[Try]]]) -> None:
    """The mean gap of each case over the mean time of its searches."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "planner"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.2), layout="constrained")
    for marker, (name, tries) in zip("osD^vP", found.items()):
        seconds = [sum(one.seconds for one in level) / len(level) for level in tries]
        gaps = [100 * sum(one.plan.gap for one in level) / len(level) for level in tries]
        axes.plot(seconds, gaps, marker=marker, label=name)
    axes.set(xscale="log", xlabel="seconds of search", ylabel="gap to the lower bound, %", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--seeds", type=int, default=3, help="how many (%(default)s)")
    parser.add_argument("--iterations", type=int, nargs="+", default=ITERATIONS, help="(%(default)s)")
    parser.add_argument("--svg", metavar="FILE", help=f"draw {', '.join(DRAWN)}")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.cases if name not in CASES]
    if unknown:
        parser.error(f"no case {unknown[0]!r}")
    names = arguments.cases or list(CASES)
    found: dict[str, list[list[Try]]] = {}
    print("| case | start | known | found | bound | gap | time |\n| --- | --- | --- | --- | --- | --- | --- |")
    for name in names:
        # To draw takes every level; the table only the last.
        levels = arguments.iterations if arguments.svg and name in DRAWN else arguments.iterations[-1:]
        found[name] = [[plan(CASES[name], level, seed) for seed in range(arguments.seeds)] for level in levels]
        print(row(name, CASES[name], found[name]), flush=True)
    gaps = [one.plan.gap for tries in found.values() for one in tries[-1]]
    print(f"\nmean gap {100 * sum(gaps) / len(gaps):.2f} % over {len(names)} cases")
    if arguments.svg:
        draw(arguments.svg, {name: found[name] for name in DRAWN if name in found})


if __name__ == "__main__":
    main()
