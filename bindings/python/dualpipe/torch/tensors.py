"""torch's tensors as an executor's memory: what comes is received into them, what a stage gives is sent from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from ..errors import InvalidArgument
from ..memory import Memory, MemoryEnd


class TensorSpec(NamedTuple):
    """A tensor that crosses a boundary between stages."""

    shape: tuple[int, ...]
    """At most 8 sizes."""
    dtype: torch.dtype = torch.float32
    """Any that torch has; integers and bools have no gradient."""
    requires_grad: bool = True
    """Whether the next stage gives a gradient back for it. False for what only goes along: masks, positions."""

    @property
    def has_gradient(self) -> bool:
        """Whether gradients of it travel."""
        return self.requires_grad and (self.dtype.is_floating_point or self.dtype.is_complex)

    @property
    def num_bytes(self) -> int:
        """Of all elements together."""
        return self.shape_size * self.dtype.itemsize

    @property
    def shape_size(self) -> int:
        """The number of elements."""
        size = 1
        for one in self.shape:
            size *= one
        return size


def specs_of(name: str, tensors: Sequence[Any]) -> list[TensorSpec]:
    """Each as a :class:`TensorSpec`; a pair is (dtype, shape). TypeError."""
    specs = []
    for k, one in enumerate(tensors):
        spec = one if isinstance(one, TensorSpec) else None
        if spec is None and isinstance(one, (tuple, list)) and len(one) == 2:
            spec = TensorSpec(tuple(one[1]), one[0])
        if spec is None or not isinstance(spec.dtype, torch.dtype):
            raise TypeError(f"{name}[{k}] is {one!r}, must be a TensorSpec or (torch.dtype, shape)")
        specs.append(TensorSpec(tuple(int(size) for size in spec.shape), spec.dtype, bool(spec.requires_grad)))
    return specs


class TensorMemory(Memory):
    """Memory of an executor that is read and written as tensors of torch's, on ``device``.

    ``frees_outputs``: the memory of a tensor that was set and has a graph is given back when the executor does not need
    it any more; the graph stays.
    """

    def __init__(self, device: torch.device, frees_outputs: bool) -> None:
        self.device, self.frees_outputs = device, frees_outputs
        self.at: dict[int, torch.Tensor] = {}
        """What is in use, by address."""

    def _end(self) -> TensorMemoryEnd:
        return TensorMemoryEnd(self)


class TensorMemoryEnd(MemoryEnd):
    """It as C calls it. Every tensor is known by a word, and, while in use, by its address.

    This is called several times for each message, so it does without what :class:`MemoryEnd` does for everybody.
    """

    def __init__(self, memory: TensorMemory) -> None:
        super().__init__(memory)
        self._device, self._frees_outputs = memory.device, memory.frees_outputs
        self._is_cuda = memory.device.type == "cuda"
        self._empty = torch.empty(0, device=memory.device)
        self._specs: dict[int, TensorSpec | None] = {}
        self.at = memory.at

    def expect(self, specs: Iterable[TensorSpec]) -> None:
        """Tensors of these shapes may come: who knows the size of one usually knows which."""
        for spec in specs:
            known = self._specs.get(spec.num_bytes, spec)
            is_alike = known is not None and (known.shape, known.dtype) == (spec.shape, spec.dtype)
            self._specs[spec.num_bytes] = spec if is_alike else None

    def received(self, lent: Any, spec: TensorSpec) -> torch.Tensor:
        """What came, as a tensor without a graph, whose memory it keeps."""
        word: int = lent.owner
        tensor: torch.Tensor = self._used[word]
        if word & 1:  # not received: the stage before is on this rank
            tensor = tensor.detach()
        if tensor.dtype is not spec.dtype:
            tensor = tensor.view(spec.dtype)
        return tensor if tensor.shape == spec.shape else tensor.view(spec.shape)

    def set(self, lent: Any, tensor: torch.Tensor, spec: TensorSpec, name: str, k: int) -> None:
        """Hands a tensor out, without a copy if it is dense. InvalidArgument if it is not as agreed."""
        if tensor.dtype is not spec.dtype or tensor.shape != spec.shape or tensor.is_cuda is not self._is_cuda:
            got = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            wanted = f"{spec.dtype} {list(spec.shape)} on {self._device}"
            raise InvalidArgument(f"{name} {k} is {got}, must be {wanted}, as its boundary")
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
        self._next += 2
        address = lent.data = tensor.data_ptr()
        lent.owner = word = self._next | 1
        self._used[word] = self.at[address] = tensor

    def _allocate(self, _: Any, num_bytes: int, data: Any, owner: Any) -> int:
        try:
            spec = self._specs.get(num_bytes)
            if spec is None:
                tensor = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
            else:
                tensor = torch.empty(spec.shape, dtype=spec.dtype, device=self._device)
            self._next += 2
            word, address = self._next & ~1, tensor.data_ptr()
            self._used[word] = self.at[address] = tensor
            data[0], owner[0] = address, word
            return 0
        except BaseException as error:  # noqa: BLE001, the step raises it
            self._keep_raised(error)
            return 1

    def _release(self, _: Any, address: int, word: int) -> None:
        tensor = self._used.pop(word)
        if self.at.get(address) is tensor:
            del self.at[address]
        # Only what a stage gave has a graph. A view's memory is the whole tensor's.
        if word & 1 and tensor.requires_grad and self._frees_outputs and not tensor.is_leaf and tensor._base is None:
            tensor.data = self._empty
