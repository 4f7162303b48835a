"""Prints a schedule: the order of each rank, a line each, that the other commands read.

``python -m dualpipe schedule``. :class:`dualpipe.Schedule` does the work.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ._common import KINDS_HELP, add_csv, add_schedule, guarded, read_schedule, write_csv

EPILOG = f"""examples:
  python -m dualpipe schedule dualpipe --ranks 8 --microbatches 20
      a line for each rank: 1F0 is the forward of micro-batch 0 in stage 1; B, I, W are whole backward, backward for the
      input, for the weights; small letters are of direction 1; 2F3&5b1 is an overlapped pair
  python -m dualpipe schedule dualpipe_v --ranks 4 --microbatches 10 --csv dualpipe_v.csv
      for torch.distributed.pipelining
  python -m dualpipe schedule zb_v --ranks 4 --microbatches 8 --out mine.txt
      to be edited by hand; `check mine.txt` says whether it can run

{KINDS_HELP}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_schedule(parser)
    parser.epilog = EPILOG
    out = parser.add_argument_group("what is written, instead of printed")
    out.add_argument("--out", type=Path, metavar="FILE", help="the same text")
    add_csv(out)


def run(arguments: argparse.Namespace) -> int:
    """Prints or writes the orders; an exit code."""
    return guarded("schedule", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    schedule = read_schedule(arguments)
    if arguments.out is not None:
        arguments.out.write_text(str(schedule), encoding="utf-8")
        print(f"wrote {arguments.out}")
    write_csv(schedule, arguments)
    if arguments.out is None and arguments.csv is None:
        print(schedule, end="")
    return 0
