"""What the rank with the loss hands to the rank that reads it.

In a V the loss is on pipeline rank 0; Megatron's ``train_step`` reads it on the last, and ``finalize_model_grads``
broadcasts the number of tokens from there.
"""

from __future__ import annotations

import datetime
import pickle
import time
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from ..errors import Timeout, TransportFailed

_TAG = 7001


class _Slot(NamedTuple):
    """Where tensor ``number`` was."""

    number: int


def hand_over(
    values: list[Any], num_tokens: torch.Tensor, source: int, target: int, group: Any, timeout: float
) -> list[Any]:
    """Moves what a step has collected from rank ``source`` of ``group`` to rank ``target``; called on both.

    ``values``: anything that can be pickled; tensors within dicts, lists and tuples arrive detached, on the device of
    ``num_tokens`` if they were on an accelerator. ``num_tokens`` is written on ``target``. Returns the values there, []
    on ``source``. ``timeout``: seconds to wait for the other rank; then :class:`~dualpipe.Timeout`, or
    :class:`~dualpipe.TransportFailed` if it is gone before.
    """
    wire = _Wire(group, _device_of(group, num_tokens.device), timeout)
    if dist.get_rank(group) == source:
        tensors: list[torch.Tensor] = []
        header = pickle.dumps((_take_out(values, tensors), [_about(one) for one in tensors]))
        wire.send(torch.tensor([len(header)]), target)
        wire.send(torch.frombuffer(bytearray(header), dtype=torch.uint8), target)
        for one in (*tensors, num_tokens):
            wire.send(one, target)
        return []
    length = wire.receive((1,), torch.int64, source)
    header = wire.receive((int(length),), torch.uint8, source).cpu().numpy().tobytes()
    structure, about = pickle.loads(header)
    arrived = []
    for shape, dtype, is_on_host in about:
        one = wire.receive(shape, dtype, source)
        arrived.append(one.cpu() if is_on_host else one.to(num_tokens.device))
    num_tokens.copy_(wire.receive(num_tokens.shape, num_tokens.dtype, source))
    moved: list[Any] = _put_in(structure, arrived)
    return moved


class _Wire:
    def __init__(self, group: Any, device: torch.device, timeout: float) -> None:
        self._group, self._device = group, device
        self._timeout = datetime.timedelta(seconds=timeout)

    def send(self, tensor: torch.Tensor, to: int) -> None:
        raw = _bytes_of(tensor.to(self._device))
        if raw.numel():
            self._wait(dist.isend(raw, dist.get_global_rank(self._group, to), self._group, _TAG), f"to rank {to}")

    def receive(self, shape: Any, dtype: torch.dtype, source: int) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype, device=self._device)
        raw = _bytes_of(tensor)
        if raw.numel():
            peer = dist.get_global_rank(self._group, source)
            self._wait(dist.irecv(raw, peer, self._group, _TAG), f"from rank {source}")
        return tensor

    def _wait(self, work: Any, which: str) -> None:
        start = time.monotonic()
        try:
            work.wait(self._timeout)
        except RuntimeError as error:
            is_late = time.monotonic() - start >= self._timeout.total_seconds()
            kind = Timeout if is_late else TransportFailed
            raise kind(f"losses could not be handed over {which} of the pipeline: {error}") from error


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a tensor, which may be of no dimension."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _about(tensor: torch.Tensor) -> tuple[tuple[int, ...], torch.dtype, bool]:
    return tuple(tensor.shape), tensor.dtype, tensor.device.type == "cpu"


def _device_of(group: Any, device: torch.device) -> torch.device:
    """Where the group's backend takes tensors from."""
    name = dist.get_backend(group)
    return torch.device("cpu") if name in ("gloo", "mpi") else device


def _take_out(value: Any, tensors: list[torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors.append(value.detach())
        return _Slot(len(tensors) - 1)
    return _map(value, lambda one: _take_out(one, tensors))


def _put_in(value: Any, tensors: list[torch.Tensor]) -> Any:
    if isinstance(value, _Slot):
        return tensors[value.number]
    return _map(value, lambda one: _put_in(one, tensors))


def _map(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {key: change(one) for key, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(change, value))
    return type(value)(map(change, value)) if type(value) in (list, tuple) else value
