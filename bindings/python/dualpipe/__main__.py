"""``python -m dualpipe``: what can be done from a shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from . import doctor, version
from ._commands import check, compare, draw, front, plan, schedule, simulate
from .eplb import _command as eplb_command

DESCRIPTION = """Pipeline and expert parallelism for large MoE models: schedules checked, simulated and run; experts
placed with a proof."""
EPILOG = """new here?
  python -m dualpipe doctor       what is installed, what is missing, what to do next
  python -m dualpipe draw dualpipe --ranks 4 --microbatches 10
                                  DualPipe on 4 ranks, drawn; each command has --help with examples
  python -m dualpipe simulate dualpipe --ranks 8 --microbatches 20 --f 1 --i 1 --w 1 --fb 2.5
                                  how long a step takes, and what no schedule can beat
  python -m dualpipe plan --ranks 8 --microbatches 20 --f 1 --i 1 --w 1 --fb 2.5 --cap 9
                                  a better schedule than the published ones, for your costs and memory
  python -m dualpipe eplb --help  experts placed for the loads of a file, step by step
  help(dualpipe.Schedule)         in Python: the manual, class by class"""


def parser() -> argparse.ArgumentParser:
    """The arguments. A command is a module with ``add_arguments(parser)`` and ``run(arguments) -> exit code``."""
    root = argparse.ArgumentParser(
        prog="python -m dualpipe",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"dualpipe {version}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND")
    _add(commands, "doctor", doctor, "say what is there, what is missing and what to do next")
    _add(commands, "schedule", schedule, "print a schedule: the order of each rank")
    _add(commands, "check", check, "prove that a schedule can run, or say why not")
    _add(commands, "simulate", simulate, "say how long a step takes, who waits, and what is kept in memory")
    _add(commands, "draw", draw, "draw a schedule over time: text, SVG, Chrome trace")
    _add(commands, "plan", plan, "find the best schedule for your costs and memory, beside what none can beat")
    _add(commands, "front", front, "say what less memory costs in time: the best schedule within each of many caps")
    _add(commands, "compare", compare, "say which placement: schedules of all, ranked, with what each costs")
    _add(commands, "eplb", eplb_command, "place experts for recorded loads, and say how good that is")
    return root


def _add(commands: Any, name: str, module: Any, does: str) -> None:
    command = commands.add_parser(name, help=does, description=module.__doc__.splitlines()[0])
    module.add_arguments(command)
    command.set_defaults(run=module.run)


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command that ``words`` (or the command line) say; its exit code. Without one, the help."""
    root = parser()
    arguments = root.parse_args(words)
    if not hasattr(arguments, "run"):
        root.print_help()
        return 0
    return int(arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
