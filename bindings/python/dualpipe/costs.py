"""What a model costs: seconds and bytes of each stage, and of the links between ranks."""

from __future__ import annotations

import ctypes as c
import math
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

from . import _structs as s
from .errors import InvalidArgument

if TYPE_CHECKING:
    import numpy.typing as npt

Seconds = Union[float, Sequence[float], "npt.NDArray[Any]"]
"""One time for all stages, or one for each."""
Pairs = Mapping[tuple[int, int], float]
"""Times of pairs: ``{(stage of F, stage of B): seconds}``."""
Bytes = Union[int, Sequence[int], "npt.NDArray[Any]"]
"""One number of bytes for all stages, or one for each."""

SECONDS_MAX = 1000.0
"""The longest time that a cost may be."""
STAGES_MAX = 8192
"""The most stages of a model."""
BYTES_MAX = 2**50
"""The most bytes that a cost may be."""


class Costs:
    """The costs of a model: one value for all stages, or a sequence with one for each.

    ``f``, ``i``, ``w``: seconds of a micro-batch's forward, backward for input, and backward for weight; a full
    backward takes ``i + w``. ``fb``: seconds of an overlapped forward and backward, ``f + i + w`` (no overlap) if
    None. ``latency``: seconds of a message without bytes; ``bandwidth``: bytes per second of a link, None if bytes
    take no time. ``output_bytes``: what a stage sends to the next, and the size of the gradient that comes back.
    ``activation_bytes``: what a micro-batch keeps on a stage from its F to its W. ``parameter_bytes``: parameters,
    gradients and optimizer state of a stage, for each copy.

    ``pairs``: seconds of the overlapped forward of one stage and backward of another, where they were measured:
    ``{(2, 5): 0.023}``. In other pairs each shrinks as its own stage's ``fb`` says.

    Raises :class:`~dualpipe.errors.InvalidArgument` for times that are NaN, negative or above 1000 seconds, bytes
    that are negative or above 2^50, and sequences of different lengths; TypeError for what is no number.

    >>> Costs(f=0.010, i=0.011, w=0.009, fb=0.024, latency=20e-6, bandwidth=50e9, output_bytes=2 << 20)
    """

    def __init__(
        self,
        *,
        f: Seconds,
        i: Seconds,
        w: Seconds,
        fb: Seconds | None = None,
        latency: float = 0.0,
        bandwidth: float | None = None,
        output_bytes: Bytes = 0,
        activation_bytes: Bytes = 0,
        parameter_bytes: Bytes = 0,
        pairs: Pairs | None = None,
    ) -> None:
        given = {"f": f, "i": i, "w": w, "fb": fb}
        sizes = {
            "output_bytes": output_bytes,
            "activation_bytes": activation_bytes,
            "parameter_bytes": parameter_bytes,
        }
        times = {name: _each(name, value, nanoseconds) for name, value in given.items() if value is not None}
        whole = {name: _each(name, value, _bytes) for name, value in sizes.items()}
        columns = {**times, **whole}
        num_stages = max(len(values) for values in columns.values())
        for name, values in columns.items():
            if len(values) not in (1, num_stages):
                raise InvalidArgument(f"{name} has {len(values)} values, must have 1 or {num_stages}, as others have")
            columns[name] = values * (num_stages // len(values))
        columns["fb"] = _overlapped(columns["f"], columns["i"], columns["w"], columns.get("fb"))
        names = ("f", "i", "w", "fb", *sizes)
        self._stages = [s.StageCosts(*row) for row in zip(*(columns[name] for name in names))]
        self._latency_ns = nanoseconds("latency", latency)
        self._bandwidth = 0 if bandwidth is None else _bytes_per_second(bandwidth)
        self._pairs = [self._pair(key, seconds) for key, seconds in (pairs or {}).items()]

    @property
    def num_stages(self) -> int:
        """The stages that there are costs for; 1 if all stages cost the same."""
        return len(self._stages)

    def _pair(self, key: Any, seconds: Any) -> s.PairCosts:
        """One of ``pairs``; the library knows how long it must be."""
        try:
            forward, backward = (operator.index(stage) for stage in key)
        except (TypeError, ValueError):
            raise TypeError(f"pairs has {key!r}, must have (stage of F, stage of B)") from None
        stages = self.num_stages if self.num_stages > 1 else STAGES_MAX
        for stage in (forward, backward):
            if not 0 <= stage < stages:
                raise InvalidArgument(f"pairs has stage {stage}, must be 0 to {stages - 1}")
        f, b = (self._stages[min(stage, self.num_stages - 1)] for stage in (forward, backward))
        least = max(f.forward_ns, b.input_ns + b.weight_ns)
        pair = nanoseconds(f"pairs[{forward}, {backward}]", seconds)
        if pair + 1 < least:
            given = f"pairs[{forward}, {backward}] is {pair / 1e9:g}"
            raise InvalidArgument(f"{given}, must be at least {least / 1e9:g}, the longer of F and B")
        return s.PairCosts(forward, backward, max(pair, least))

    def _struct(self) -> s.Costs:
        stages = (s.StageCosts * len(self._stages))(*self._stages)
        pairs = (s.PairCosts * len(self._pairs))(*self._pairs)
        return s.Costs(
            c.sizeof(s.Costs),
            0,
            c.cast(stages, c.POINTER(s.StageCosts)),
            len(stages),
            self._latency_ns,
            self._bandwidth,
            c.cast(pairs, c.POINTER(s.PairCosts)),
            len(pairs),
        )

    def __repr__(self) -> str:
        first = self._stages[0]
        names = {"f": "forward_ns", "i": "input_ns", "w": "weight_ns", "fb": "overlapped_ns"}
        times = ", ".join(f"{name}={getattr(first, field) / 1e9:g}" for name, field in names.items())
        return f"<dualpipe.Costs {times} s{'' if self.num_stages == 1 else f' (first of {self.num_stages} stages)'}>"


def nanoseconds(name: str, seconds: Any, most: float = SECONDS_MAX) -> int:
    """Seconds as whole nanoseconds; raises unless they are 0 to ``most``."""
    value = number(name, seconds)
    if not 0 <= value <= most:
        raise InvalidArgument(f"{name} is {value}, must be 0 to {most:g} seconds")
    return round(value * 1e9)


def number(name: str, value: Any) -> float:
    """``value`` as a float; TypeError if it is no number. Text is none."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__") and not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r}, must be a number")
    return float(value)


def _bytes(name: str, value: Any) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, must be an integer") from None
    if not 0 <= count <= BYTES_MAX:
        raise InvalidArgument(f"{name} is {count}, must be 0 to 2^50")
    return count


def _bytes_per_second(value: Any) -> int:
    bandwidth = number("bandwidth", value)
    if not (math.isfinite(bandwidth) and 1 <= bandwidth < 2**63):
        raise InvalidArgument(f"bandwidth is {bandwidth}, must be 1 to 2^63 bytes per second, or None")
    return round(bandwidth)


def _each(name: str, value: Any, convert: Any) -> list[int]:
    """``value`` of each stage; a number counts as one stage's."""
    is_list = hasattr(value, "__len__") and not isinstance(value, (str, bytes)) and getattr(value, "ndim", 1) != 0
    if not is_list:
        return [convert(name, value)]
    if len(value) == 0:
        raise InvalidArgument(f"{name} is empty, must have a value for each stage")
    return [convert(f"{name}[{k}]", one) for k, one in enumerate(value)]


def _overlapped(f: list[int], i: list[int], w: list[int], fb: list[int] | None) -> list[int]:
    alone = [(forward, input_ + weight) for forward, input_, weight in zip(f, i, w)]
    if fb is None:
        return [forward + backward for forward, backward in alone]
    # Rounded to nanoseconds one by one, an FB that is as long as its B can come out one shorter.
    return [least if pair + 1 == least else pair for pair, least in zip(fb, map(max, alone))]
