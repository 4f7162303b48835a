"""CUDA and NCCL: what an executor is told of them, what there is of them, and tensors in a device's memory."""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _structs as s
from ._library import lib, read_values, uint32
from .schedule import Schedule

GRAPH_STATES = {0: "off", 1: "cold", 2: "warm", 3: "captured", 4: "fell_back"}
"""``dualpipe_graph_state``."""

_LEGACY_STREAM = 1
_CUDA_DEVICE = 2


class CudaInfo(NamedTuple):
    """What CUDA there is."""

    devices: int
    """How many, at least 1."""
    driver_version: int
    """The newest CUDA that the driver knows: 1000 * major + 10 * minor."""


def cuda_available() -> CudaInfo:
    """What CUDA there is on this machine.

    Raises :class:`~dualpipe.errors.Unavailable`, which says what is missing: the driver, a function of it, a device.
    """
    info = s.CudaInfo(size=c.sizeof(s.CudaInfo))
    lib.dualpipe_cuda_available(c.byref(info))
    return CudaInfo(info.num_devices, info.driver_version)


def nccl_version() -> int:
    """The version of NCCL that is found: 10000 * major + 100 * minor + patch.

    It is the library that ``$DUALPIPE_NCCL_LIB`` names; else ``libnccl.so.2``, of which the copy that the process has,
    such as torch's, is taken. Raises :class:`~dualpipe.errors.Unavailable`, which says what is missing.
    """
    version = c.c_uint32()
    lib.dualpipe_nccl_version(c.byref(version))
    return version.value


def nccl_unique_id(schedule: Schedule) -> bytes:
    """New ids for the ranks of ``schedule`` to find one another by: 128 bytes for each pair of ranks that exchange
    messages and way between them.

    One rank asks for them and hands them to all others by whatever it has; each is for one :class:`Nccl` on each rank.
    That rank's process must live while the others join. Raises :class:`~dualpipe.errors.Unavailable` without NCCL,
    :class:`~dualpipe.errors.TransportFailed` with NCCL's own words.
    """
    return read_values("dualpipe_nccl_unique_id", np.uint8, schedule._handle).tobytes()


class Nccl:
    """How NCCL joins the ranks, each in a process of its own.

    ``unique_id``: what :func:`nccl_unique_id` gave on one rank. ``max_ctas``: multiprocessors that each communicator
    uses at most, 1 to 64; 0 is 2. ``zero_cta``: messages are put by copy engines where NCCL can (2.29 or newer, with a
    graph 2.30, not with ``exchange_shapes``); after a fault another process should then take over; every rank must say
    the same.
    """

    def __init__(self, unique_id: bytes, max_ctas: int = 0, *, zero_cta: bool = False) -> None:
        self.unique_id = bytes(memoryview(unique_id))
        self.max_ctas = uint32("max_ctas", max_ctas)
        self.zero_cta = bool(zero_cta)

    def _options(self) -> s.NcclOptions:
        """Its memory is this object's."""
        pointer = c.cast(c.c_char_p(self.unique_id), c.c_void_p)
        size, length = c.sizeof(s.NcclOptions), len(self.unique_id)
        return s.NcclOptions(size, self.max_ctas, pointer, length, self.zero_cta)


class Cuda:
    """How an executor uses a CUDA device.

    ``device``: which, from 0; its primary context is used, as by torch. ``compute_stream``, ``comm_stream``: streams
    for tasks, as numbers, or torch's or cupy's; 0 is the legacy default stream, None is one of the executor's own, and
    for ``comm_stream`` none unless ``has_comm_stream``. ``timed``: tasks and messages are timed by events, for
    :meth:`Executor.timeline`. ``stream_ordered``: a step returns when it is enqueued, and :meth:`Executor.synchronize`
    waits for it; what is enqueued on the compute stream afterwards comes after it. ``graph``: the second step is
    captured as a CUDA graph, which later ones launch without calling the callback; every rank must say the same; see
    :attr:`Executor.graph`. ``exchange_shapes``: a task may make its outputs and gradients smaller than agreed
    (:meth:`DeviceTensor.set_shape`); every rank must say the same, and there is then no ``graph``.
    """

    def __init__(
        self,
        device: int = 0,
        *,
        compute_stream: Any = None,
        comm_stream: Any = None,
        has_comm_stream: bool = False,
        timed: bool = False,
        stream_ordered: bool = False,
        graph: bool = False,
        exchange_shapes: bool = False,
    ) -> None:
        self.device = uint32("device", device)
        # The objects too: a stream lives as long as they do.
        self._streams = compute_stream, comm_stream
        self.compute_stream = _stream("compute_stream", compute_stream)
        self.comm_stream = _stream("comm_stream", comm_stream)
        self.has_comm_stream = bool(has_comm_stream)
        self.timed, self.stream_ordered = bool(timed), bool(stream_ordered)
        self.graph, self.exchange_shapes = bool(graph), bool(exchange_shapes)

    def _options(self) -> s.CudaOptions:
        return s.CudaOptions(
            c.sizeof(s.CudaOptions),
            self.device,
            self.compute_stream,
            self.comm_stream,
            self.has_comm_stream,
            self.timed,
            self.stream_ordered,
            self.graph,
            self.exchange_shapes,
            0,
        )


def _stream(name: str, stream: Any) -> int | None:
    """A stream as a number that is not 0: a number, torch's, cupy's, or by the ``__cuda_stream__`` protocol."""
    if stream is None:
        return None
    number = stream
    if hasattr(stream, "__cuda_stream__"):
        number = stream.__cuda_stream__()[1]
    elif hasattr(stream, "cuda_stream"):
        number = stream.cuda_stream
    elif hasattr(stream, "ptr"):
        number = stream.ptr
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**64:
        raise TypeError(f"{name} is {stream!r}, must be a stream of torch's or cupy's, its number, or None")
    return number or _LEGACY_STREAM


class GraphState(NamedTuple):
    """How far an executor is from launching whole steps."""

    state: str
    """``off``: graphs were not asked for; ``cold``: the next step runs as usual; ``warm``: the next is captured;
    ``captured``: steps are launched; ``fell_back``: a step could not be captured, they run as usual."""
    reason: str
    """Why a step could not be captured; "" if none was tried or it could."""


class DeviceTensor:
    """A tensor of a message in the memory of a CUDA device, which is the executor's: valid until the callback returns,
    and for what the callback enqueues on the task's streams.

    ``torch.as_tensor(tensor, device="cuda")`` and ``cupy.asarray(tensor)`` see it without a copy, by
    ``__cuda_array_interface__``. bfloat16 is seen as its bits, uint16, and float8 as uint8.
    """

    __slots__ = ("_header", "_owner", "_writeable", "data_ptr", "device", "dtype", "shape", "stream")

    shape: tuple[int, ...]
    """Elements in each dimension; dense, row-major."""
    dtype: np.dtype[Any]
    """Of its elements."""
    data_ptr: int
    """The address of its first element on the device."""
    device: int
    """Which device."""
    stream: int
    """The task's compute stream, in whose order its memory is read and written."""

    def __init__(self, header: s.DLTensor, dtype: np.dtype[Any], stream: int, owner: object, writeable: bool) -> None:
        """Not to be called by users: ``header`` is the library's, for the time of the callback."""
        self._header, self._owner, self._writeable = header, owner, writeable
        self.shape = tuple(header.shape[: header.ndim])
        self.dtype, self.stream, self.device = dtype, stream, header.device.device_id
        self.data_ptr = (header.data or 0) + header.byte_offset

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3. Inputs are not to be written, though torch wants to hear that they may be."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.data_ptr, False),
            "strides": None,
            "version": 3,
            "stream": self.stream,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's kDLCUDA, and which device."""
        return _CUDA_DEVICE, self.device

    def set_shape(self, shape: Sequence[int]) -> None:
        """Makes an output or gradient smaller than agreed, in as many dimensions: where shapes are exchanged.

        ValueError for a tensor that is not to be written, or another number of dimensions; RuntimeError when the task
        has ended. Too large a shape ends the step when the callback returns.
        """
        sizes = tuple(int(size) for size in shape)
        if not self._writeable:
            raise ValueError("the tensor is an input, its shape is the sender's")
        if len(sizes) != len(self.shape) or not all(0 <= size < 2**63 for size in sizes):
            raise ValueError(f"shape is {sizes}, must be {len(self.shape)} sizes from 0 on, as {self.shape}")
        if self._header is None:
            raise RuntimeError("the task has ended")
        for k, size in enumerate(sizes):
            self._header.shape[k] = size
        self.shape = sizes

    def _end(self) -> None:
        self._header = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<dualpipe.DeviceTensor {self.dtype} {list(self.shape)} at {self.data_ptr:#x} on device {self.device}>"
