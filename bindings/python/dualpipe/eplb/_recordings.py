"""Arrays of counts in files: numpy's, and what SGLang's recorder saves with torch. Nothing in them is run."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ..errors import InvalidArgument
from ._arguments import Map
from ._counts import array_of, read_integers


class Recording(NamedTuple):
    """What files have."""

    counts: npt.NDArray[Any]
    """[steps, layers, experts], or of slots if there is a map; of one step [layers, experts]."""
    slot_to_expert: Map | None = None
    """[layers, slots]"""
    steps: Sequence[int] | None = None
    """The number of each step, if the files say."""


def read_recordings(paths: Sequence[Path], format: str | None) -> Recording:
    """One recording, or those that the ranks made of the same passes, which are summed.

    Raises OSError, InvalidArgument.
    """
    if not paths:
        raise InvalidArgument("there is no path, must be one or more")
    found = [_read(path, format) for path in paths]
    if len(found) == 1:
        return found[0]
    first = found[0].slot_to_expert
    for path, each in zip(paths, found):
        if first is None or each.slot_to_expert is None or each.steps is None:
            raise InvalidArgument(f"{path} has no records per pass: only those of several ranks can be summed")
        if not np.array_equal(first, each.slot_to_expert):
            raise InvalidArgument(f"{path} has another last_physical_to_logical_map than {paths[0]}")
    steps = [step for each in found for step in each.steps or ()]
    counts = [counts for each in found for counts in each.counts]
    return _summed(steps, counts, first)


def write_recording(path: Path, format: str, loads: npt.NDArray[np.float32]) -> None:
    """Writes [steps, layers, experts], by the name ``logical_count`` where there are names."""
    if format == "pt":
        torch = _torch(path)
        torch.save({"logical_count": torch.from_numpy(loads)}, path)
        return
    # By its name numpy would choose another.
    with path.open("wb") as file:
        if format == "npy":
            np.save(file, loads, allow_pickle=False)
        else:
            np.savez_compressed(file, logical_count=loads)


def _read(path: Path, format: str | None) -> Recording:
    end = format or {".pth": "pt"}.get(path.suffix.lower(), path.suffix.lower()[1:])
    if end not in ("npy", "npz", "pt"):
        raise InvalidArgument(f"{path} is no .npy, .npz or .pt, of which alone there may be several")
    try:
        content = _load(path, end)
        if not hasattr(content, "keys"):
            return Recording(_numbers("its array", content))
        return _of_names(content)
    except (InvalidArgument, TypeError) as error:
        raise InvalidArgument(f"{path}: {error}") from None


def _load(path: Path, end: str) -> Any:
    if end == "pt":
        torch = _torch(path)
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
            raise InvalidArgument(f"torch cannot read it: {str(error).splitlines()[0]}") from None
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            return content if isinstance(content, np.ndarray) else {name: content[name] for name in content.files}
    except (ValueError, EOFError, BadZipFile) as error:
        raise InvalidArgument(f"numpy cannot read it: {error}") from None


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise InvalidArgument(f"{path} takes torch, which is not installed") from None
    return torch


def _of_names(content: Any) -> Recording:
    names = [str(name) for name in content]
    if "logical_count" in names:
        return Recording(_numbers("logical_count", content["logical_count"]))
    if "last_physical_to_logical_map" in names and ("records" in names or "global_physical_count" in names):
        slots = read_integers(
            "last_physical_to_logical_map", content["last_physical_to_logical_map"], np.int64, (None, None)
        )
        if "records" in names:
            return _of_records(content["records"], slots)
        counts = _numbers("global_physical_count", content["global_physical_count"])
        if counts.shape[-2:] != slots.shape:
            raise InvalidArgument(
                f"global_physical_count has shape {list(counts.shape)}, must be {list(slots.shape)} at the end"
            )
        return Recording(counts if counts.ndim == 3 else counts[None], slots)
    if len(names) == 1:
        return Recording(_numbers(names[0], content[names[0]]))
    known = "logical_count, or records and last_physical_to_logical_map, or one array"
    raise InvalidArgument(f"it has {', '.join(names) or 'nothing'}, must have {known}")


def _of_records(records: Any, slots: Map) -> Recording:
    if not isinstance(records, (list, tuple)) or not records:
        raise InvalidArgument("records is no list, or empty")
    steps: list[int] = []
    counts = []
    for index, record in enumerate(records):
        try:
            step, count = record["forward_pass_id"], record["global_physical_count"]
        except (KeyError, TypeError, IndexError):
            raise InvalidArgument(f"records[{index}] has no forward_pass_id and global_physical_count") from None
        name = f"records[{index}]"
        steps.append(read_integers(f"{name}: forward_pass_id", step, np.int64, ()).item())
        if steps[-1] < 0:
            raise InvalidArgument(f"{name}: forward_pass_id is {steps[-1]}, must not be negative")
        counts.append(read_integers(f"{name}: global_physical_count", count, np.int64, slots.shape))
    return _summed(steps, counts, slots)


def _summed(steps: Sequence[int], counts: Sequence[npt.NDArray[Any]], slots: Map | None) -> Recording:
    """By step: ranks, and the halves of a pass, count each for themselves."""
    of_step: dict[int, npt.NDArray[Any]] = {}
    for step, count in zip(steps, counts):
        of_step[step] = of_step[step] + count if step in of_step else count
    numbers = sorted(of_step)
    return Recording(np.stack([of_step[step] for step in numbers]), slots, numbers)


def _numbers(name: str, value: Any) -> npt.NDArray[Any]:
    values = array_of(value)
    if values.dtype.kind not in "biuf" or values.ndim not in (2, 3) or values.size == 0:
        shapes = "numbers [layers, experts] or [steps, layers, experts]"
        raise InvalidArgument(f"{name} has {values.dtype} {list(values.shape)}, must be {shapes}")
    return values
