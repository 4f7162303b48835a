"""Compares placements: published schedules and planned ones on equal devices, with what each costs.

``python -m dualpipe compare``. :func:`dualpipe.compare` does the work.
"""

from __future__ import annotations

import argparse

from ..comparison import Comparison, compare
from ..errors import InvalidArgument
from ._common import guarded, whole
from ._costs import COSTS_HELP, add_costs, read_costs, sizes
from ._search import add_search, read_caps, stopped_by_ctrl_c

EPILOG = f"""examples:
  python -m dualpipe compare --ranks 8 --microbatches 20 --f 1 --i 1 --w 1 --fb 2.5 --cap 9
      a line for each schedule, the best first; half a second of search for each placement
  python -m dualpipe compare --ranks 8 --microbatches 32 --costs costs.json --cap-bytes 60GiB --time 2
      what fits 60 GiB, parameters included
  python -m dualpipe plan --placement choose --ranks 8 --microbatches 20 --cap 9 --out best.txt
      the same table, and the schedule of its first line

words: activations are the most alive at once on a rank, counted in those of one micro-batch on a rank's share of the
model; parameters are in copies of the model, of which a bidirectional placement has two; messages are those that the
rank sends that sends most. Where costs have bytes, they stand beside. The gap is to what no schedule on the placement
can beat; the excess is what does not fit the cap.

Costs are of a rank's share of the model, or of the finest stages that the model is to be cut into: then as many as
ranks, or a multiple.

{COSTS_HELP}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    problem = parser.add_argument_group("what to compare for")
    problem.add_argument("--ranks", type=whole, metavar="P", required=True, help="ranks of the pipeline")
    problem.add_argument("--microbatches", type=whole, metavar="N", required=True, help="micro-batches of a step")
    problem.add_argument("--cap", type=read_caps, metavar="N[,N...]", help="activations that a rank may keep, or each")
    problem.add_argument(
        "--cap-bytes", type=sizes, metavar="B[,B...]", help="bytes that a rank may keep, parameters included"
    )
    add_costs(parser)
    add_search(parser, "placement")
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Prints the table; an exit code."""
    return guarded("compare", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    print(compared(arguments), end="")
    return 0


def compared(arguments: argparse.Namespace) -> Comparison:
    """The comparison that was asked for."""
    if arguments.cap is not None and arguments.cap_bytes is not None:
        raise InvalidArgument("--cap and --cap-bytes are both given, must be one of them")
    costs = read_costs(arguments)
    with stopped_by_ctrl_c() as progress:
        return compare(
            ranks=arguments.ranks,
            microbatches=arguments.microbatches,
            costs=costs,
            cap=arguments.cap,
            cap_bytes=arguments.cap_bytes,
            time=arguments.time,
            iterations=arguments.iterations,
            seed=arguments.seed,
            progress=progress,
        )
