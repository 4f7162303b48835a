"""Simulates a schedule for given costs: how long a step takes, who waits, what it keeps in memory.

``python -m dualpipe simulate``. :meth:`dualpipe.Schedule.simulate` does the work.
"""

from __future__ import annotations

import argparse

from .._units import seconds, size
from ..schedule import Schedule
from ..timeline import Timeline
from ._common import KINDS_HELP, add_schedule, guarded, read_schedule, title
from ._costs import COSTS_HELP, add_costs, read_costs

EPILOG = f"""examples:
  python -m dualpipe simulate dualpipe --ranks 8 --microbatches 20 --f 1 --i 1 --w 1 --fb 2.5
      a step takes 59 s, and no schedule of these stages on these ranks less than the lower bound
  python -m dualpipe simulate 1f1b --ranks 4 --microbatches 16 --f 10ms --i 11ms --w 9ms,9ms,9ms,14ms
      the last stage is heavier
  python -m dualpipe simulate mine.txt --costs costs.json --latency 30us --bandwidth 50GB --output-bytes 64MiB
      a schedule and costs from files; messages take time

words: the makespan is when the last op ends. The bubble is the share of it that a rank idles. No order of the ops on
this placement is faster than the lower bound; the gap is makespan / lower bound - 1.

{COSTS_HELP}

{KINDS_HELP}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_schedule(parser)
    add_costs(parser)
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Prints the figures; an exit code."""
    return guarded("simulate", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    schedule = read_schedule(arguments)
    timeline = schedule.simulate(read_costs(arguments))
    print(f"{title(schedule)}\n")
    print("\n".join(_figures(timeline)))
    print("\n".join(("", *_ranks(schedule, timeline))))
    return 0


def _figures(timeline: Timeline) -> list[str]:
    bound, gap = timeline.lower_bound or 0.0, timeline.gap or 0.0
    return [
        f"makespan     {seconds(timeline.makespan)}",
        f"lower bound  {seconds(bound)}",
        f"gap          {100 * gap:.2f} %",
        f"bubble       {100 * timeline.bubble:.2f} %",
    ]


def _ranks(schedule: Schedule, timeline: Timeline) -> list[str]:
    lines = [f"rank{'busy':>14}{'idle':>14}{'peak live':>12}{'peak memory':>14}"]
    memory, busy, idle = timeline.peak_memory, timeline.busy, timeline.idle
    for rank, peak in enumerate(schedule.check()):
        kept = size(int(memory[rank])) if memory is not None else ""
        lines.append(f"{rank:4}{seconds(busy[rank]):>14}{seconds(idle[rank]):>14}{peak:12}{kept:>14}")
    return lines
