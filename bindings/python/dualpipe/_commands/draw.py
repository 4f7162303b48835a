"""Draws a schedule over time: as text for the terminal, as a picture, or for a trace viewer.

``python -m dualpipe draw``. :class:`dualpipe.Timeline` does the work.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ._common import KINDS_HELP, add_csv, add_schedule, guarded, read_schedule, write_csv
from ._costs import COSTS_HELP, add_costs, read_costs

EPILOG = f"""examples:
  python -m dualpipe draw dualpipe --ranks 4 --microbatches 10
      a line for each rank, time from left to right; F3&b1 is an overlapped pair, a dot is idle
  python -m dualpipe draw dualpipe_v --ranks 4 --microbatches 10 --f 1 --i 1 --w 1 --fb 2.5 --svg dualpipe_v.svg
      a picture for a browser
  python -m dualpipe draw mine.txt --costs costs.json --trace mine.json
      for ui.perfetto.dev or chrome://tracing

{COSTS_HELP}

{KINDS_HELP}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_schedule(parser)
    add_costs(parser)
    out = parser.add_argument_group("what is written, instead of text to the terminal")
    out.add_argument("--svg", type=Path, metavar="FILE", help="a picture")
    out.add_argument("--trace", type=Path, metavar="FILE", help="a Chrome trace")
    add_csv(out)
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Prints or writes the drawing; an exit code."""
    return guarded("draw", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    schedule = read_schedule(arguments)
    timeline = schedule.simulate(read_costs(arguments))
    if arguments.svg is not None:
        timeline.svg(arguments.svg)
        print(f"wrote {arguments.svg}")
    if arguments.trace is not None:
        timeline.trace(arguments.trace)
        print(f"wrote {arguments.trace}")
    write_csv(schedule, arguments)
    if arguments.svg is None and arguments.trace is None and arguments.csv is None:
        print(timeline, end="")
    return 0
