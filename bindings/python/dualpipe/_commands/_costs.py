"""Costs on the command line: one option each, or a file of JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Callable

from ..costs import Costs
from ..errors import InvalidArgument

TIMES = {"f": "F", "i": "I, the backward for the input", "w": "W, the backward for the weights"}
SIZES = {
    "output_bytes": "what a stage sends to the next, and the gradient that comes back",
    "activation_bytes": "what a micro-batch keeps on a stage from its F to its W",
    "parameter_bytes": "parameters, gradients and optimizer state of a stage, for each copy",
}
NAMES = (*TIMES, "fb", "latency", "bandwidth", *SIZES, "pairs")
"""What a file of costs may have: the arguments of :class:`dualpipe.Costs`."""
TIME_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
BINARY_UNITS = {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}
BYTE_UNITS = {**BINARY_UNITS, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}

COSTS_HELP = """costs: one number for all stages, or one for each with commas between. Times are seconds, or have a unit
(250us, 10ms); sizes are bytes, or have one (2MiB, 50GB). Without any, F = I = W = 1 second and no overlap.

--costs FILE has an object of JSON with the arguments of dualpipe.Costs, in seconds and bytes, and pairs as a list:
  {"f": 0.010, "i": [0.011, 0.012], "w": 0.009, "fb": 0.024, "latency": 2e-5, "bandwidth": 5e10,
   "output_bytes": 2097152, "activation_bytes": 0, "parameter_bytes": 0, "pairs": [[0, 1, 0.023]]}"""


def add_costs(parser: argparse.ArgumentParser) -> None:
    """What stages and messages cost."""
    costs = parser.add_argument_group("costs (an option overrides the file)")
    costs.add_argument("--costs", type=Path, metavar="FILE", help="costs in JSON, see below")
    for name, what in TIMES.items():
        costs.add_argument(f"--{name}", type=_times, metavar="S[,S...]", help=f"time of {what}")
    costs.add_argument("--fb", type=_times, metavar="S[,S...]", help="time of an overlapped F and B (F + I + W)")
    costs.add_argument(
        "--pair",
        type=_pair,
        action="append",
        metavar="F,B,S",
        help="time of the F of a stage overlapped with the B of a stage; may be given again",
    )
    costs.add_argument("--latency", type=_time, metavar="S", help="time of a message without bytes (0)")
    costs.add_argument("--bandwidth", type=_size, metavar="B", help="bytes per second of a link (bytes take no time)")
    for name, what in SIZES.items():
        costs.add_argument(f"--{name.replace('_', '-')}", type=sizes, metavar="B[,B...]", help=f"{what} (0)")


def read_costs(arguments: argparse.Namespace) -> Costs:
    """The costs that were given."""
    given = _file(arguments.costs) if arguments.costs is not None else {}
    options = {name: getattr(arguments, name) for name in NAMES if name != "pairs"}
    given.update({name: value for name, value in options.items() if value is not None})
    if arguments.pair is not None:
        given["pairs"] = {**given.get("pairs", {}), **dict(arguments.pair)}
    missing = [name for name in TIMES if name not in given]
    if len(missing) == len(TIMES) and "fb" not in given and "pairs" not in given:
        given.update(dict.fromkeys(TIMES, 1.0))
    elif missing:
        raise InvalidArgument(f"of the costs {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not given")
    try:
        return Costs(**given)
    except TypeError as error:
        raise InvalidArgument(f"{arguments.costs}: {error}") from None


def _file(path: Path) -> dict[str, Any]:
    try:
        given = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{path}: {error}") from None
    if not isinstance(given, dict):
        raise InvalidArgument(f"{path}: must be an object of JSON")
    unknown = [name for name in given if name not in NAMES]
    if unknown:
        raise InvalidArgument(f"{path}: has {unknown[0]!r}, must be one of {', '.join(NAMES)}")
    given = {name: value for name, value in given.items() if value is not None}
    if "pairs" in given:
        pairs = given["pairs"]
        if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 3 for pair in pairs):
            raise InvalidArgument(f"{path}: pairs must be a list of [stage of F, stage of B, seconds]")
        given["pairs"] = {(_hashable(f), _hashable(b)): time for f, b, time in pairs}
    return given


def _hashable(stage: Any) -> Any:
    return stage if isinstance(stage, (int, float, str)) else repr(stage)


def _quantity(text: str, units: dict[str, float]) -> float:
    unit = next((unit for unit in sorted(units, key=len, reverse=True) if text.endswith(unit)), "")
    try:
        return float(text.removesuffix(unit)) * units.get(unit, 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {text!r}, must be a number, perhaps with {', '.join(units)}") from None


def _time(text: str) -> float:
    return _quantity(text, TIME_UNITS)


def _size(text: str) -> int:
    value = _quantity(text, BYTE_UNITS)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"is {text!r}, must be 0 to 2^63 bytes")
    return round(value)


def _list(text: str, convert: Callable[[str], Any]) -> Any:
    values = [convert(word.strip()) for word in text.split(",")]
    return values[0] if len(values) == 1 else values


def _times(text: str) -> Any:
    return _list(text, _time)


def sizes(text: str) -> Any:
    """Bytes: one number, or a list."""
    return _list(text, _size)


def _pair(text: str) -> tuple[tuple[int, int], float]:
    words = text.split(",")
    if len(words) != 3 or not all(word.isascii() and word.isdigit() for word in words[:2]):
        raise argparse.ArgumentTypeError(f"is {text!r}, must be a stage, a stage and a time, such as 2,5,23ms")
    return (int(words[0]), int(words[1])), _time(words[2])
