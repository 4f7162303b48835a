"""Proves that a schedule can run, or says why not: rank, position, op and reason, and a smallest counterexample.

``python -m dualpipe check``. :meth:`dualpipe.Schedule.check` and :meth:`dualpipe.Schedule.verify` do the work.
"""

from __future__ import annotations

import argparse

from ..errors import InvalidArgument, InvalidSchedule
from ..schedule import Schedule
from ..torch.schedule_csv import FORMATS, has_messages, verify_schedule_csv
from ..verification import TRANSPORTS, Verification
from ._common import KINDS_HELP, add_schedule, guarded, read_schedule_and_csv, title

EPILOG = f"""examples:
  python -m dualpipe check mine.txt
      a file that `python -m dualpipe schedule` wrote, or in the same form
  python -m dualpipe check dualpipe --ranks 8 --microbatches 20
      a published schedule: how many activations does each rank keep?
  python -m dualpipe check theirs.csv --torch 2.15 --format compute_comms
      a file of torch's with its messages: does each find its receive, does no rank wait for ever?
  python -m dualpipe check theirs.csv --transport rendezvous
      the same for sends that wait until their receive has been posted

transports: the k-th receive from a rank gets that rank's k-th send; with _tagged a receive finds its message by name.
  asynchronous  neither a send nor a receive waits, an op does: torch with gloo
  rendezvous    a send waits until its receive has been posted
  grouped       the sends and receives between two ops are one group, and all of it is waited for

exit code: 0 if it can run, 1 if not, 2 if there is no such schedule.

{KINDS_HELP}"""

PROVED = """it can run:
- every micro-batch has its {ops} at every stage: exactly once, on the stage's rank
- every message is sent once and received once, between the right ranks
- no rank waits for ever, {transports}"""
OF_PROGRAMS = "neither with asynchronous sends nor with exchanges that block until both sides are there"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_schedule(parser)
    parser.epilog = EPILOG
    file = parser.add_argument_group("of a CSV of torch's, where its words do not show it")
    file.add_argument("--torch", metavar="VERSION", help="whose it is")
    file.add_argument("--format", choices=FORMATS, help="whether it has the messages too")
    parser.add_argument(
        "--transport",
        metavar="NAME[,NAME...]",
        help=f"what to hold for, of {', '.join(TRANSPORTS)} (all; for the messages of a file: asynchronous)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints what was proved; an exit code."""
    return guarded("check", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    schedule, csv = read_schedule_and_csv(arguments, arguments.torch, arguments.format)
    if csv is None and (arguments.torch is not None or arguments.format is not None):
        raise InvalidArgument("--torch, --format: SCHEDULE is no CSV of torch's")
    has_own = csv is not None and (has_messages(csv) if arguments.format is None else arguments.format == FORMATS[1])
    wanted = arguments.transport.split(",") if arguments.transport is not None else None
    every = list(TRANSPORTS)
    verification = (
        verify_schedule_csv(csv, arguments.torch, arguments.format, transports=every)
        if csv is not None and has_own
        else schedule.verify(transports=every)
    )
    needed = wanted if wanted is not None else ["asynchronous"] if has_own else every
    unknown = [name for name in needed if name not in TRANSPORTS]
    if unknown:
        raise InvalidArgument(f"--transport is {unknown[0]!r}, must be of {', '.join(TRANSPORTS)}")
    if not all(name in verification.holds_for for name in needed):
        raise InvalidSchedule(_why_not(schedule, verification, needed))
    _print(schedule, verification, has_own)
    return 0


def _why_not(schedule: Schedule, verification: Verification, needed: list[str]) -> str:
    try:
        schedule.check()
        head = f"{schedule.name}: its messages do not do it"
    except InvalidSchedule as error:
        head = str(error)
    lines = [head, ""]
    for finding in verification.findings:
        if any(name in finding.transports for name in needed):
            lines.append(f"{finding.kind}, {_under(finding.transports)}: {finding.text}")
            if finding.counterexample is not None:
                lines.append(finding.counterexample.text)
    if verification.omitted:
        lines.append(f"and {verification.omitted} more")
    return "\n".join(lines)


def _under(transports: list[str]) -> str:
    return "whatever the transport" if len(transports) == len(TRANSPORTS) else ", ".join(transports)


def _print(schedule: Schedule, verification: Verification, has_own: bool) -> None:
    holds = verification.holds_for
    proved = OF_PROGRAMS if not has_own else f"with the messages as they stand in the file: {', '.join(holds)}"
    print(title(schedule))
    ops = "F" if schedule.forward_only else "F and then its B, or its I and then its W,"
    print(PROVED.format(ops=ops, transports=proved))
    for finding in verification.findings:
        print(f"- but {_under(finding.transports)}: {finding.kind}: {finding.text.splitlines()[0]}")
    holders = [rank for row in schedule.placement for rank in row]
    print("\nrank   ops   stages   activations alive at most")
    for rank, peak in enumerate(verification.peak_live):
        print(f"{rank:4}{len(schedule.order(rank)):6}{holders.count(rank):9}{peak:11}")
