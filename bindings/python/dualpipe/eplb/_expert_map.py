"""Placements in files: vllm-ascend's expert map, and plain arrays."""

from __future__ import annotations

import ctypes as c
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._library import read_text, read_values
from ..errors import InvalidArgument
from ._arguments import Map
from ._cluster import Cluster
from ._counts import read_integers, read_placement

SUFFIXES = (".json", ".csv", ".npy")
"""What files end in."""


class ExpertMap(NamedTuple):
    """A placement as a file has it."""

    slot_to_expert: Map
    """[layers, slots], int64: the expert in each slot, -1 where there is none."""
    slots_per_gpu: tuple[int, ...] | None
    """The slots of each GPU, for a :class:`~dualpipe.eplb.Cluster`; None if the file does not say."""


def read_expert_map(path: str | os.PathLike[str]) -> ExpertMap:
    """Reads a placement: ``.json``, vllm-ascend's expert map, as its ``expert_map_path`` is; ``.csv``, a line for each
    layer, an expert for each slot, -1 for none; ``.npy``, integers [layers, slots].

    Raises :class:`~dualpipe.errors.InvalidArgument` with the place, OSError.
    """
    path = Path(path)
    end = _suffix(path)
    try:
        if end == ".json":
            return _read_ascend(path.read_bytes())
        values = _read_csv(path.read_text(encoding="utf-8")) if end == ".csv" else _read_npy(path)
        slots = read_integers("the map", values, np.int64, (None, None), whole=True)
        if slots.size == 0 or slots.min() < -1:
            raise InvalidArgument("the map must have experts, or -1 for none")
    except (InvalidArgument, TypeError) as error:
        raise InvalidArgument(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise InvalidArgument(f"{path} is no text") from None
    return ExpertMap(slots, None)


def write_expert_map(path: str | os.PathLike[str], placement: Any, cluster: Cluster | None = None) -> None:
    """Writes a placement, a :class:`~dualpipe.eplb.Plan` or [layers, slots] on a ``cluster``, as
    :func:`read_expert_map` reads it. ``.json`` has no word for a slot without an expert: such a placement, as of a
    cluster with dead GPUs, is refused.

    Raises :class:`~dualpipe.errors.InvalidArgument`, OSError.
    """
    path = Path(path)
    end = _suffix(path)
    slots = getattr(placement, "phy2log", placement)
    num_layers = len(slots)
    given = read_placement("placement", placement, cluster, None, num_layers)
    if end == ".json":
        struct = given.cluster._as_c()
        where = (c.byref(struct), given.slots.ctypes.data, given.slots.size)
        path.write_text(read_text("dualpipe_expert_map_write", *where), encoding="utf-8")
    elif end == ".csv":
        np.savetxt(path, given.slots, fmt="%d", delimiter=",")
    else:
        np.save(path, given.slots, allow_pickle=False)


def _suffix(path: Path) -> str:
    end = path.suffix.lower()
    if end not in SUFFIXES:
        raise InvalidArgument(f"{path} ends in {end or 'nothing'}, must end in {', '.join(SUFFIXES)}")
    return end


def _read_ascend(text: bytes) -> ExpertMap:
    gpus = read_values("dualpipe_expert_map_read_gpus", np.uint32, text, len(text))
    slots = read_values("dualpipe_expert_map_read_slots", np.int64, text, len(text))
    return ExpertMap(slots.reshape(-1, int(gpus.sum())), tuple(gpus.tolist()))


def _read_csv(text: str) -> Any:
    rows: list[list[int]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append([int(word) for word in line.split(",")])
        except ValueError:
            raise InvalidArgument(f"line {number} is not integers with commas between") from None
        if len(rows[-1]) != len(rows[0]):
            raise InvalidArgument(f"line {number} has {len(rows[-1])} slots, must have {len(rows[0])}")
    if not rows:
        raise InvalidArgument("the map must have experts, or -1 for none")
    try:
        return np.array(rows, np.int64)
    except OverflowError:
        raise InvalidArgument("a number is no expert") from None


def _read_npy(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InvalidArgument(f"numpy cannot read it: {error}") from None
