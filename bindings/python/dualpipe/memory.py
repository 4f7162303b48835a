"""Memory of the caller's for tensors, so that nothing is copied in or out of the executor."""

from __future__ import annotations

import ctypes as c
import math
from typing import Any

import numpy as np

from . import _structs as s
from ._library import Callbacks
from .errors import InvalidArgument


class Memory:
    """Where tensors that are received go. As it is, each into an array of numpy's of its own; to derive from for
    others, torch's say.

    With it an executor has no buffers of its own, and nothing is copied. ``inputs`` and ``output_grads`` are views that
    stay valid for as long as they are referred to, since they keep their buffer; outputs are where the task has them:
    :meth:`Pass.set_output <dualpipe.Pass.set_output>`, :meth:`Pass.set_input_grad <dualpipe.Pass.set_input_grad>`.

    Its methods are called on the thread that runs the executor's step, :meth:`release` also by
    :meth:`Executor.close <dualpipe.Executor.close>`. What they raise comes out of the step. One may serve several
    executors, if it is safe for their threads.
    """

    def allocate(self, num_bytes: int) -> Any:
        """A buffer of at least ``num_bytes`` bytes, aligned for any element: an array of numpy's or a tensor of torch's,
        dense, with cuda on the executor's device. There it may still be in use by what was enqueued on the compute
        stream before."""
        return np.empty(num_bytes, np.uint8)

    def release(self, buffer: Any) -> None:
        """The executor does not use a buffer any more, or a tensor that a task has set. Whoever has a view of it may."""

    def _end(self) -> MemoryEnd:
        return MemoryEnd(self)


class MemoryEnd(Callbacks):
    """Memory as C calls it, what is in use, and what it has raised. It lives as long as its executor."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._used: dict[int, Any] = {}
        self._next = 0
        self._functions = s.AllocateFunction(self._allocate), s.ReleaseFunction(self._release)

    def table(self) -> s.Memory:
        """The struct, which C copies; its functions are this object's."""
        return s.Memory(c.sizeof(s.Memory), 0, None, *self._functions)

    def keep(self, tensor: Any) -> int:
        """Keeps it until C gives its word back."""
        self._next += 1
        self._used[self._next] = tensor
        return self._next

    def drop(self, word: int) -> None:
        """C never had it."""
        self._used.pop(word, None)

    def owner(self, word: int) -> Any:
        """What is kept under a word."""
        return self._used.get(word)

    def _allocate(self, _: Any, num_bytes: int, data: Any, owner: Any) -> int:
        try:
            buffer = self._memory.allocate(num_bytes)
            if size_of(buffer) < num_bytes:
                raise InvalidArgument(f"allocate gave {size_of(buffer)} bytes, must be at least {num_bytes}")
            data[0] = address_of("what allocate gave", buffer)
            owner[0] = self.keep(buffer)
            return 0
        except BaseException as error:  # noqa: BLE001, the step raises it
            self._keep_raised(error)
            return 1

    def _release(self, _: Any, __: int, owner: int) -> None:
        try:
            tensor = self._used.pop(owner)
            self._memory.release(tensor)
        except BaseException as error:  # noqa: BLE001, the step raises it
            self._keep_raised(error)


def address_of(name: str, tensor: Any) -> int:
    """Where a dense array of numpy's or tensor of torch's begins."""
    if hasattr(tensor, "data_ptr") and hasattr(tensor, "is_contiguous"):
        is_dense, address = tensor.is_contiguous(), tensor.data_ptr()
    elif isinstance(tensor, np.ndarray):
        is_dense, address = tensor.flags.c_contiguous, tensor.ctypes.data
    else:
        raise TypeError(f"{name} is {type(tensor).__name__}, must be an array of numpy's or a tensor of torch's")
    if not is_dense:
        raise InvalidArgument(f"{name} is not dense, must be row-major without gaps")
    return int(address)


def size_of(tensor: Any) -> int:
    """Bytes of its elements."""
    itemsize = tensor.element_size() if hasattr(tensor, "element_size") else tensor.dtype.itemsize
    return int(math.prod(tensor.shape)) * int(itemsize)
