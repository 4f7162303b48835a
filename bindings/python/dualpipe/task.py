"""Tasks: what an executor's callback is handed, with its tensors as numpy views, or as tensors on a device."""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _structs as s
from .cuda import DeviceTensor
from .errors import InvalidArgument
from .memory import MemoryEnd, address_of
from .timeline import OP_KINDS

# What DLPack calls an element: (code, bits).
_CODES: dict[str, tuple[int, int]] = {
    **{f"int{bits}": (0, bits) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (1, bits) for bits in (8, 16, 32, 64)},
    **{f"float{bits}": (2, bits) for bits in (16, 32, 64)},
    "bfloat16": (4, 16),
    "complex64": (5, 64),
    "complex128": (5, 128),
    "bool": (6, 8),
    "float8_e4m3fn": (10, 8),
    "float8_e5m2": (12, 8),
}
# numpy has no such elements: their bits.
_AS_BITS = {"bfloat16": np.uint16, "float8_e4m3fn": np.uint8, "float8_e5m2": np.uint8}
_DTYPES = {code: np.dtype(_AS_BITS.get(name, name)) for name, code in _CODES.items()}

TensorLike = tuple[Any, Sequence[int]]
"""dtype and shape of a tensor: ``("float32", (4, 8))``."""


def tensor_spec(name: str, tensor: TensorLike) -> s.TensorSpec:
    """The struct of (dtype, shape). A dtype is a name, a numpy or a torch dtype; at most 8 dimensions."""
    dtype, shape = tensor
    text = dtype if isinstance(dtype, str) else str(dtype)
    text = text.removeprefix("torch.")
    if text not in _CODES:
        try:
            text = np.dtype(dtype).name
        except TypeError:
            text = repr(dtype)
    if text not in _CODES:
        raise InvalidArgument(f"{name} has dtype {text}, must be one of {', '.join(_CODES)}")
    sizes = [int(size) for size in shape]
    if len(sizes) > 8 or not all(0 <= size < 2**63 for size in sizes):
        raise InvalidArgument(f"{name} has shape {sizes}, must be at most 8 sizes from 0 on")
    code, bits = _CODES[text]
    return s.TensorSpec(s.DLDataType(code, bits, 1), len(sizes), (c.c_int64 * 8)(*sizes))


class Pass:
    """One micro-batch at one stage, and its tensors: views of the executor's memory, without a copy. On the host they
    are numpy arrays, on a CUDA device each is a :class:`~dualpipe.DeviceTensor`.

    At the first stage there are no ``inputs`` and no ``input_grads``, at the last no ``outputs`` and no
    ``output_grads``. A view is valid until the callback returns, with memory of the caller's for as long as it is
    referred to; ``inputs`` are the same again from F to W. bfloat16
    is seen as its bits, uint16, and float8 as uint8: ``torch.from_numpy(view).view(torch.bfloat16)``.
    """

    __slots__ = (
        "_memory",
        "_tensors",
        "copy",
        "direction",
        "input_grads",
        "inputs",
        "microbatch",
        "output_grads",
        "outputs",
        "stage",
    )

    direction: int
    """Where the micro-batch entered: 0, stage 0 is at rank 0; 1, stage 0 is at the last rank."""
    stage: int
    """0 to stages - 1."""
    microbatch: int | None
    """Counted within its direction; None in REDUCE_GRADS, which is of all."""
    copy: int
    """Which of the rank's parameter copies."""
    inputs: list[Any]
    """Activations from the previous stage. Read-only."""
    outputs: list[Any]
    """Activations for the next stage, to be filled by F. With memory of the caller's each is None until
    :meth:`set_output`."""
    output_grads: list[Any]
    """Gradients from the next stage; None for one that does not exist. Read-only."""
    input_grads: list[Any]
    """Gradients for the previous stage, to be filled by B or I, or :meth:`set_absent`. With memory of the caller's each
    is None until :meth:`set_input_grad`."""

    def __init__(
        self,
        which: s.Pass,
        tensors: s.TaskPass | None,
        owner: object,
        stream: int | None,
        memory: MemoryEnd | None,
    ) -> None:
        """Not to be called by users: ``tensors`` is the library's, for the time of the callback."""
        self.direction, self.stage, self.copy = which.direction, which.stage, which.copy
        self.microbatch = None if which.microbatch == s.NONE else which.microbatch
        self.inputs, self.outputs, self.output_grads, self.input_grads = [], [], [], []
        self._tensors, self._memory = tensors, memory
        if tensors is None:
            return

        def view(tensor: s.Tensor, writeable: bool) -> Any:
            if memory is None:
                return _view(tensor, owner, writeable, stream) if writeable or tensor.is_present else None
            is_there = not writeable and tensor.is_present
            return _view(tensor, memory.owner(tensor.owner), False, stream) if is_there else None

        def views(lent: Any, count: int, writeable: bool) -> list[Any]:
            return [view(lent[k], writeable) for k in range(count)]

        self.inputs = views(tensors.inputs, tensors.num_inputs, False)
        self.outputs = views(tensors.outputs, tensors.num_outputs, True)
        self.output_grads = views(tensors.output_grads, tensors.num_output_grads, False)
        self.input_grads = views(tensors.input_grads, tensors.num_input_grads, True)

    def set_absent(self, k: int) -> None:
        """Says that gradient ``k`` of ``input_grads`` does not exist: the previous stage gets None. IndexError."""
        if not 0 <= k < len(self.input_grads):
            raise IndexError(f"k is {k}, must be 0 to {len(self.input_grads) - 1}")
        if self._tensors is None:
            raise RuntimeError("the task has ended")
        self._tensors.input_grads[k].is_present = 0

    def set_output(self, k: int, tensor: Any) -> None:
        """With memory of the caller's: output ``k`` is ``tensor``, without a copy, an array of numpy's or a tensor of
        torch's, dense, of the dtype and shape agreed. The executor keeps it until it has been sent and freed.

        Raises IndexError, TypeError, InvalidArgument, and RuntimeError without such memory, or when the task has ended.
        """
        self._set("output", self.outputs, k, tensor)

    def set_input_grad(self, k: int, tensor: Any) -> None:
        """Likewise for gradient ``k`` of ``input_grads``."""
        self._set("input_grad", self.input_grads, k, tensor)

    def _set(self, name: str, tensors: list[Any], k: int, tensor: Any) -> None:
        if not 0 <= k < len(tensors):
            raise IndexError(f"k is {k}, must be 0 to {len(tensors) - 1}")
        if self._tensors is None:
            raise RuntimeError("the task has ended")
        if self._memory is None:
            raise RuntimeError(f"the executor has memory of its own: write into {name}s[{k}]")
        lent = (self._tensors.outputs if name == "output" else self._tensors.input_grads)[k]
        dl = lent.dl
        shape = tuple(dl.shape[: dl.ndim])
        address = address_of(f"{name} {k}", tensor)
        got = str(tensor.dtype).removeprefix("torch.")
        names = [of for of, code in _CODES.items() if code == (dl.dtype.code, dl.dtype.bits)]
        if got not in (*names, _DTYPES[dl.dtype.code, dl.dtype.bits].name) or tuple(tensor.shape) != shape:
            wanted = f"{names[0]} {list(shape)}"
            raise InvalidArgument(f"{name} {k} is {got} {list(tensor.shape)}, must be {wanted}")
        self._memory.drop(lent.owner or 0)
        dl.data, dl.byte_offset, lent.owner = address, 0, self._memory.keep(tensor)
        tensors[k] = tensor

    def _end(self) -> None:
        self._tensors = None
        for one in (*self.inputs, *self.outputs, *self.output_grads, *self.input_grads):
            if isinstance(one, DeviceTensor):
                one._end()

    def __repr__(self) -> str:
        return (
            f"<dualpipe.Pass direction={self.direction} stage={self.stage} "
            f"microbatch={self.microbatch} copy={self.copy}>"
        )


class Task:
    """What to do now.

    F reads ``inputs`` and writes ``outputs``; B (full backward) and I (for input) read ``inputs`` and
    ``output_grads`` and write ``input_grads``; W (for weight) reads ``inputs`` and ``output_grads``; FB does F of
    ``forward`` and B of ``backward``, whose work may overlap. REDUCE_GRADS has no tensors: every weight gradient of
    the copy in ``backward`` is final; sum it with that of the same stage in the other direction, which rank
    ``reduce_peer`` has.

    On a CUDA device the callback only enqueues, on the task's streams, and waits for nothing.
    """

    __slots__ = ("backward", "comm_stream", "compute_stream", "forward", "kind", "reduce_peer")

    kind: str
    """F, B, I, W, FB or REDUCE_GRADS."""
    forward: Pass | None
    """The pass to run forward: in F and FB."""
    backward: Pass | None
    """The pass to run backward: in B, I, W and FB; and the copy that REDUCE_GRADS is about."""
    reduce_peer: int | None
    """REDUCE_GRADS: the rank that has the other copy."""
    compute_stream: int | None
    """On a CUDA device, the stream to compute on: what the task reads is there in its order. None on the host."""
    comm_stream: int | None
    """On a CUDA device, a stream for expert communication, if the executor has one. The task's work on it comes after
    all earlier tasks, and before all later ones."""

    def __init__(self, task: s.Task, owner: object, memory: MemoryEnd | None = None) -> None:
        """Not to be called by users: ``task`` is the library's, for the time of the callback."""
        self.kind = OP_KINDS[task.op.kind]
        self.reduce_peer = None if task.reduce_peer == s.NONE else task.reduce_peer
        self.forward = self.backward = None
        self.compute_stream, self.comm_stream = task.compute_stream, task.comm_stream
        stream = self.compute_stream
        if task.op.forward.direction != s.NONE:
            self.forward = Pass(task.op.forward, task.forward.contents if task.forward else None, owner, stream, memory)
        if task.op.backward.direction != s.NONE:
            self.backward = Pass(
                task.op.backward, task.backward.contents if task.backward else None, owner, stream, memory
            )

    def _end(self) -> None:
        for one in (self.forward, self.backward):
            if one is not None:
                one._end()

    def __repr__(self) -> str:
        passes = [f"{name}={one!r}" for name in ("forward", "backward") if (one := getattr(self, name)) is not None]
        return f"<dualpipe.Task {self.kind} {' '.join(passes)}>"


def _view(tensor: s.Tensor, owner: object, writeable: bool, stream: int | None) -> npt.NDArray[Any] | DeviceTensor:
    """A tensor as an array, which keeps ``owner`` alive: its memory is the owner's. With a stream, one on a device."""
    dl = tensor.dl
    dtype = _DTYPES[dl.dtype.code, dl.dtype.bits]
    if stream is not None:
        return DeviceTensor(dl, dtype, stream, owner, writeable)
    shape = tuple(dl.shape[: dl.ndim])
    num_bytes = dtype.itemsize
    for size in shape:
        num_bytes *= size
    if num_bytes == 0:
        return np.zeros(shape, dtype)
    memory: Any = (c.c_char * num_bytes).from_address(dl.data + dl.byte_offset)
    memory.owner = owner
    view: npt.NDArray[Any] = np.ndarray(shape, dtype, memory)
    view.flags.writeable = writeable
    return view
