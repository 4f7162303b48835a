"""Plans within many memory caps: what less memory costs in time, as a table or a picture.

``python -m dualpipe front``. :func:`dualpipe.memory_time_front` does the work.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import InvalidArgument
from ..front import ALL, memory_time_front
from ..plan import PLACEMENTS
from ._common import guarded, whole
from ._costs import COSTS_HELP, add_costs, read_costs, sizes
from ._search import add_search, read_placement, stopped_by_ctrl_c

EPILOG = f"""examples:
  python -m dualpipe front --ranks 8 --microbatches 20 --f 1 --i 1 --w 1 --fb 2.5
      a line for each cap: DualPipe's placement, from one micro-batch of each direction at a time to where more memory
      gains nothing
  python -m dualpipe front --ranks 8 --microbatches 20 --placement v --caps 8,10,12,14,17 --svg front.svg
      five caps on the V placement, as a picture for a browser
  python -m dualpipe front --ranks 4 --microbatches 16 --costs costs.json --caps-bytes all --time 2
      caps in bytes, parameters included; 2 seconds of search for each

words: a plan keeps to its cap and to every larger one. No schedule that keeps to the cap takes less than the bound; the
gap is makespan / bound - 1. Published schedules stand beside. Ctrl-C ends the search, with what was found until then.

{COSTS_HELP}"""


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
        help=f"{', '.join(PLACEMENTS)} (bidirectional); or the rank of each stage, as of `plan`",
    )
    problem.add_argument("--stages-per-rank", type=whole, metavar="V", help="stages on each rank, of interleaved")
    problem.add_argument(
        "--caps", type=_caps, metavar="N[,N...]", help="activations that may be alive at once on a rank; all (all)"
    )
    problem.add_argument(
        "--caps-bytes", type=_caps_bytes, metavar="B[,B...]", help="or bytes, parameters included; all"
    )
    add_costs(parser)
    add_search(parser, "cap")
    out = parser.add_argument_group("what is written, instead of printed")
    out.add_argument("--svg", type=Path, metavar="FILE", help="a picture")
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Prints or draws the front; an exit code."""
    return guarded("front", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.caps is not None and arguments.caps_bytes is not None:
        raise InvalidArgument("--caps and --caps-bytes are both given, must be one of them")
    costs = read_costs(arguments)
    with stopped_by_ctrl_c() as progress:
        front = memory_time_front(
            ranks=arguments.ranks,
            microbatches=arguments.microbatches,
            costs=costs,
            placement=read_placement(arguments.placement),
            stages_per_rank=arguments.stages_per_rank,
            caps=arguments.caps,
            caps_bytes=arguments.caps_bytes,
            time=arguments.time,
            iterations=arguments.iterations,
            seed=arguments.seed,
            progress=progress,
        )
    if arguments.svg is not None:
        front.svg(arguments.svg)
        print(f"wrote {arguments.svg}")
    else:
        print(front, end="")
    return 0


def _caps(text: str) -> Any:
    return ALL if text == ALL else [whole(word.strip()) for word in text.split(",")]


def _caps_bytes(text: str) -> Any:
    return ALL if text == ALL else sizes(text)
