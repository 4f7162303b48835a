"""What the commands share: which schedule is meant, and how they end."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import Error, InvalidArgument, InvalidSchedule
from ..schedule import KINDS, LOOPED, Schedule
from ..torch.schedule_csv import FORMATS, NEWEST_TORCH, read_schedule_csv, schedule_csv

STDIN = "-"
"""Instead of a file: what comes in by a pipe."""
CANNOT_RUN = 1
"""The exit code for a schedule that cannot run."""
CANNOT_BE_DONE = 2
"""The exit code for what was asked for wrongly, or cannot be read or written; argparse's too."""

KINDS_HELP = f"""kinds of schedules (docs/schedules.md says what each costs and which sizes it admits):
  {", ".join(list(KINDS)[:7])},
  {", ".join(list(KINDS)[7:])}"""


def add_schedule(parser: argparse.ArgumentParser) -> None:
    """Which schedule the command is about."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "schedule",
        metavar="SCHEDULE",
        help="a kind, such as dualpipe, with --ranks and --microbatches; or a file that `schedule` or torch wrote; - "
        "reads what comes in by a pipe",
    )
    sizes = parser.add_argument_group("sizes, of a kind")
    sizes.add_argument("--ranks", type=whole, metavar="P", help="ranks of the pipeline")
    sizes.add_argument("--microbatches", type=whole, metavar="N", help="micro-batches of a step")
    looped = ", ".join(LOOPED)
    sizes.add_argument("--stages-per-rank", type=whole, metavar="V", help=f"stages on each rank, of {looped}")
    sizes.add_argument("--forward-only", action="store_true", help="micro-batches only go forward: inference")


def read_schedule(arguments: argparse.Namespace) -> Schedule:
    """The schedule that is meant."""
    return read_schedule_and_csv(arguments)[0]


def read_schedule_and_csv(
    arguments: argparse.Namespace, torch: str | None = None, format: str | None = None
) -> tuple[Schedule, str | None]:
    """It, and the text that it was read from if that is a CSV of torch's: for this version and in this format, or
    those that the text shows."""
    which = arguments.schedule
    given = {"--ranks": arguments.ranks, "--microbatches": arguments.microbatches}
    extra = {"--stages-per-rank": arguments.stages_per_rank, "--forward-only": arguments.forward_only or None}
    if which in KINDS:
        missing = [flag for flag, value in given.items() if value is None]
        if missing:
            raise InvalidArgument(f"{which} needs {' and '.join(missing)}")
        made = Schedule(
            which,
            arguments.ranks,
            arguments.microbatches,
            arguments.forward_only,
            stages_per_rank=arguments.stages_per_rank or 0,
        )
        return made, None
    unused = [flag for flag, value in {**given, **extra}.items() if value is not None]
    if which != STDIN and not Path(which).exists():
        raise InvalidArgument(f"SCHEDULE is {which!r}, which is neither a file nor one of {', '.join(KINDS)}")
    if unused:
        raise InvalidArgument(f"{', '.join(unused)}: a file has its own sizes")
    return _read_file(which, torch, format)


def _read_file(which: str, torch: str | None, format: str | None) -> tuple[Schedule, str | None]:
    """The schedule of a file, or of a pipe, which is named after it: of a CSV of torch's, or of lines as we write."""
    if which == STDIN:
        text, name, suffix = sys.stdin.read(), "stdin", ""
    else:
        path = Path(which)
        text, name, suffix = path.read_text(encoding="utf-8", errors="replace"), path.stem, path.suffix
    if suffix.lower() == ".csv" or re.match(r'[\s"(,]*[0-9]+[A-Z]', text):
        return read_schedule_csv(text, torch, format, name=name), text
    return Schedule.from_text(text, name), None


def title(schedule: Schedule) -> str:
    """What a schedule is, in a line."""
    stages = f", {schedule.stages} stages" if schedule.stages != schedule.ranks else ""
    copies = ", two directions" if schedule.directions == 2 else ""
    only = ", forward only" if schedule.forward_only else ""
    return f"{schedule.name}: {schedule.ranks} ranks{stages}{copies}, {schedule.microbatches} micro-batches{only}"


def add_csv(out: argparse._ArgumentGroup) -> None:
    """Where a CSV goes, and what it is for."""
    out.add_argument("--csv", type=Path, metavar="FILE", help="the schedule as torch.distributed.pipelining loads it")
    newest = ".".join(map(str, NEWEST_TORCH))
    out.add_argument("--torch", default=newest, metavar="VERSION", help=f"whose CSV it is ({newest})")
    out.add_argument(
        "--format", choices=FORMATS, default=FORMATS[0], help=f"whether the CSV has the messages too ({FORMATS[0]})"
    )


def write_csv(schedule: Schedule, arguments: argparse.Namespace) -> None:
    """Writes the CSV that was asked for."""
    if arguments.csv is not None:
        arguments.csv.write_text(schedule_csv(schedule, arguments.torch, arguments.format), encoding="utf-8")
        print(f"wrote {arguments.csv}")


def guarded(name: str, run: Callable[[], int]) -> int:
    """Runs a command: its exit code, or that of what went wrong, which is said on stderr."""
    try:
        code = run()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # say, head has read enough; nor shall the interpreter complain of it at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Error, OSError) as error:
        print(f"python -m dualpipe {name}: {error}", file=sys.stderr)
        return CANNOT_RUN if isinstance(error, InvalidSchedule) else CANNOT_BE_DONE


def whole(text: str) -> int:
    """A number of things."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < (1 << 32) - 1:
        raise argparse.ArgumentTypeError(f"is {text!r}, must be a whole number from 1 on")
    return int(text)
