"""``python -m dualpipe``: what can be done from a shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from . import doctor, version
from .eplb import _command as eplb_command

DESCRIPTION = """Pipeline and expert parallelism for large MoE models: schedules checked, simulated and run; experts
placed with a proof."""
EPILOG = """new here?
  python -m dualpipe doctor       what is installed, what is missing, what to do next
  python -m dualpipe eplb --help  experts placed for the loads of a file, step by step
  python -c 'import dualpipe as d; print(d.Schedule("dualpipe", 8, 20).simulate(d.Costs(f=1, i=1, w=1)))'
                                  DualPipe on 8 ranks, drawn
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
