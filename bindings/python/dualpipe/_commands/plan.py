"""Plans a schedule: the best that can be found for your costs and memory, beside what no schedule can beat.

``python -m dualpipe plan``. :func:`dualpipe.plan` does the work.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InvalidArgument
from ..plan import OBJECTIVES, PLACEMENTS, Spread, plan
from ..schedule import Schedule
from ..timeline import Timeline
from ._common import add_csv, guarded, whole, write_csv
from ._costs import COSTS_HELP, add_costs, read_costs, sizes
from ._search import read_caps, read_placement, stopped_by_ctrl_c
from .compare import compared

EPILOG = f"""examples:
  python -m dualpipe plan --ranks 8 --microbatches 20 --f 1 --i 1 --w 1 --fb 2.5 --cap 9
      DualPipe's placement, at most 9 activations on a rank: 2 seconds of search
  python -m dualpipe plan --ranks 8 --microbatches 13 --placement v --costs costs.json --cap-bytes 60GiB --time 10
      two stages on each rank, in a V; any number of micro-batches will do
  python -m dualpipe plan --ranks 4 --microbatches 16 --placement linear --iterations 100000 --out planned.txt
      the same on every machine; `simulate planned.txt`, `draw planned.txt` and so on go on from there
  python -m dualpipe plan --ranks 4 --microbatches 10 --jitter 0.05 --imbalance 0.2 --objective p95
      for times that spread: what 95 of 100 steps do not exceed is made small

  python -m dualpipe plan --ranks 8 --microbatches 20 --placement choose --f 1 --i 1 --w 1 --fb 2.5 --cap 9
      what `compare` says of each placement, searched for --time (0.5) each, then the best schedule of all

words: the makespan is when the last op of a step ends. No schedule on the placement that keeps to the cap takes less
than the lower bound; the gap is makespan / lower bound - 1. A plan starts from the best published schedule that is
possible, and is never slower. Ctrl-C ends the search early, with the best so far.

{COSTS_HELP}"""


CHOOSE = "choose"
"""The placement that is found by comparing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    problem = parser.add_argument_group("what to plan for")
    problem.add_argument("--ranks", type=whole, metavar="P", required=True, help="ranks of the pipeline")
    problem.add_argument("--microbatches", type=whole, metavar="N", required=True, help="micro-batches of a step")
    problem.add_argument(
        "--placement",
        default="bidirectional",
        metavar="WHERE",
        help=f"{', '.join(PLACEMENTS)} (bidirectional); or the rank of each stage, 0,1,1,0, with a colon between two "
        f"directions; {CHOOSE} compares placements and takes the best",
    )
    problem.add_argument("--stages-per-rank", type=whole, metavar="V", help="stages on each rank, of interleaved")
    problem.add_argument(
        "--cap", type=read_caps, metavar="N[,N...]", help="activations that may be alive at once on a rank, or on each"
    )
    problem.add_argument(
        "--cap-bytes", type=sizes, metavar="B[,B...]", help="bytes that a rank may keep, parameters included"
    )
    add_costs(parser)
    spread = parser.add_argument_group("times that spread")
    spread.add_argument("--jitter", type=float, metavar="X", help="relative standard deviation of each op, 0 to 1")
    spread.add_argument(
        "--imbalance", type=float, metavar="X", help="that of each micro-batch at a stage: uneven experts, 0 to 1"
    )
    spread.add_argument("--objective", choices=OBJECTIVES, default="mean", help="what of the makespans is small (mean)")
    spread.add_argument("--samples", type=whole, metavar="K", help="how many are searched on (64)")
    search = parser.add_argument_group("the search")
    search.add_argument("--time", type=float, metavar="S", help="seconds (2, unless --iterations is given)")
    search.add_argument("--iterations", type=whole, metavar="K", help="changes to try: the same on every machine")
    search.add_argument("--seed", type=int, default=0, metavar="K", help="another one searches another way (0)")
    out = parser.add_argument_group("what is written, instead of the schedule's text behind the summary")
    out.add_argument("--out", type=Path, metavar="FILE", help="the same text")
    out.add_argument("--svg", type=Path, metavar="FILE", help="a picture")
    out.add_argument("--trace", type=Path, metavar="FILE", help="a Chrome trace")
    add_csv(out)
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan; an exit code."""
    return guarded("plan", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.placement == CHOOSE:
        return _choose(arguments)
    costs = read_costs(arguments)
    with stopped_by_ctrl_c() as progress:
        made = plan(
            ranks=arguments.ranks,
            microbatches=arguments.microbatches,
            costs=costs,
            placement=read_placement(arguments.placement),
            stages_per_rank=arguments.stages_per_rank,
            cap=arguments.cap,
            cap_bytes=arguments.cap_bytes,
            time=arguments.time,
            iterations=arguments.iterations,
            seed=arguments.seed,
            spread=_spread(arguments),
            objective=arguments.objective,
            progress=progress,
        )
    print(made)
    _write(made.schedule, made.schedule.simulate(costs), arguments)
    return 0


def _choose(arguments: argparse.Namespace) -> int:
    """Compares the placements, and goes on with the best."""
    of_one = {"--stages-per-rank": arguments.stages_per_rank, "--jitter": arguments.jitter}
    of_one.update({"--imbalance": arguments.imbalance, "--samples": arguments.samples})
    unused = [flag for flag, value in of_one.items() if value is not None]
    if unused:
        raise InvalidArgument(f"{', '.join(unused)}: not with --placement {CHOOSE}")
    comparison = compared(arguments)
    print(comparison, end="")
    best = comparison.best
    if best is None:
        raise InvalidArgument("no schedule on any of these placements keeps to the cap")
    _write(best.schedule, best.timeline, arguments)
    return 0


def _write(schedule: Schedule, timeline: Timeline, arguments: argparse.Namespace) -> None:
    if arguments.out is not None:
        arguments.out.write_text(str(schedule), encoding="utf-8")
        print(f"wrote {arguments.out}")
    for path, draw in ((arguments.svg, timeline.svg), (arguments.trace, timeline.trace)):
        if path is not None:
            draw(path)
            print(f"wrote {path}")
    write_csv(schedule, arguments)
    if all(path is None for path in (arguments.out, arguments.svg, arguments.trace, arguments.csv)):
        print(f"\n{schedule}", end="")


def _spread(arguments: argparse.Namespace) -> Spread | None:
    given = {"op_jitter": arguments.jitter, "expert_imbalance": arguments.imbalance, "samples": arguments.samples}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return None
    return Spread(**given, seed=arguments.seed)
