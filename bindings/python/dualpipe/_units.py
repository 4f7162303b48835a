"""Times and sizes as people read them."""

from __future__ import annotations


def seconds(value: float) -> str:
    """A time as people read it."""
    for scale, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= scale:
            return f"{value / scale:.6g} {unit}"
    return f"{round(value * 1e9)} ns"


def size(value: int) -> str:
    """A number of bytes as people read it."""
    for scale, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= scale:
            return f"{value / scale:.4g} {unit}"
    return f"{value} B"
