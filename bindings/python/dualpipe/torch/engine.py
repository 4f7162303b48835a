"""The executor with torch's tensors: what a rank computes is a :class:`Compute`, when is the library's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Callable, NamedTuple

import torch
import torch.distributed as dist

from ..cuda import Cuda, Nccl, nccl_unique_id
from ..errors import InvalidArgument
from ..executor import Executor
from ..memory import Memory
from ..schedule import Schedule
from ..timeline import Timeline
from .transport import ProcessGroupTransport, link_of

Tensors = list[torch.Tensor]
MaybeTensors = Sequence["torch.Tensor | None"]


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


class Compute:
    """What a rank computes; to derive from. Its methods are called one at a time, on the thread that runs
    :meth:`Engine.step`, on a CUDA device with the step's stream current.

    ``copy``: which of the rank's parameter copies; in "dualpipe" the direction, in "dualpipe_v" 0 on the way down and 1
    on the way back. ``microbatch`` counts within its direction. What a method raises ends the step on all ranks.
    """

    def forward(self, copy: int, microbatch: int, inputs: Tensors) -> Sequence[torch.Tensor]:
        """F. ``inputs``: what the stage before gave, as leaves without a graph, [] at the first stage. They may be kept.
        Returns what goes to the next stage, of the dtypes and shapes agreed, which is sent without a copy; at the last
        stage it is not looked at."""
        raise NotImplementedError

    def backward(self, copy: int, microbatch: int, output_grads: MaybeTensors, for_input_only: bool) -> MaybeTensors:
        """B, or I if ``for_input_only``: then :meth:`backward_weight` of the same pass follows later. ``output_grads``:
        one for each output, [] at the last stage, None where no gradient travels. Returns one gradient for each input,
        None where there is none; at the first stage it is not looked at."""
        raise NotImplementedError

    def backward_weight(self, copy: int, microbatch: int) -> None:
        """W."""
        raise NotImplementedError

    def forward_backward(
        self, forward: tuple[int, int, Tensors], backward: tuple[int, int, MaybeTensors]
    ) -> tuple[Sequence[torch.Tensor], MaybeTensors]:
        """F&B: (copy, microbatch, inputs) forward and (copy, microbatch, output_grads) backward, in any order or
        overlapped. Returns what :meth:`forward` and :meth:`backward` return."""
        outputs = self.forward(*forward)
        return outputs, self.backward(*backward, False)

    def reduce_grads(self, copy: int, peer: int) -> None:
        """All gradients of a copy are final; pipeline rank ``peer`` has the same stage in the other direction."""

    def release(self, tensor: torch.Tensor) -> None:
        """The executor does not need a tensor any more: one that came, or one that was given to it."""


class Engine:
    """Runs one pipeline rank's part of ``schedule``, step after step.

    ``group``: the process group of the pipeline, the default one if None; ``ranks``: by pipeline rank, the rank in the
    group, in order if None. ``device``: of all tensors; on the host messages go by a gloo group of the pipeline's own
    (:class:`~dualpipe.torch.transport.Link`), on a CUDA device by the library's NCCL. ``tensors``: a
    :class:`TensorSpec` or (dtype, shape) for each tensor of a boundary; a gradient that is None where one travels is
    sent as zeros. ``timeout``: seconds that a single wait may last. ``timed``: on a CUDA device, whether there is a
    :meth:`timeline`; on the host there always is.

    All ranks create it at the same point of their program, and it is for one thread. After a failed step it can only be
    asked for its timeline and closed, and so on every rank; then new ones can be created. Raises what
    :class:`~dualpipe.Executor` raises.
    """

    def __init__(
        self,
        schedule: Schedule,
        rank: int,
        compute: Compute,
        *,
        group: dist.ProcessGroup | None = None,
        ranks: Sequence[int] | None = None,
        device: torch.device,
        tensors: Sequence[TensorSpec | tuple[torch.dtype, Sequence[int]]],
        timeout: float = 60.0,
        timed: bool = False,
    ) -> None:
        self._compute, self._device = compute, torch.device(device)
        self._specs = specs_of("tensors", tensors)
        self._memory = _TensorMemory(self._device, compute.release)
        self._memory.expect(self._specs)
        self._of_microbatch: dict[tuple[int, int], list[TensorSpec]] = {}
        group = world() if group is None else group
        ranks = range(schedule.ranks) if ranks is None else ranks
        if dist.get_world_size(group) != schedule.ranks:
            size = dist.get_world_size(group)
            raise InvalidArgument(f"group has {size} ranks, must have {schedule.ranks}, as many as the schedule")
        wires = [(spec.dtype, spec.shape) for spec in self._specs]
        options: dict[str, Any] = {"tensors": wires, "timeout": timeout, "memory": self._memory}
        self._stream: Any = None
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            options["cuda"] = Cuda(
                self._device.index or 0, compute_stream=self._stream, stream_ordered=True, timed=timed
            )
            options["nccl"] = Nccl(_shared_unique_id(schedule, group, ranks))
        elif self._device.type == "cpu":
            self._link = link_of(group)
            self._link.agree(f"{schedule!r} of {self._specs}", timeout)
            has_gradient = [spec.has_gradient for spec in self._specs]
            options["transport"] = ProcessGroupTransport(self._link, ranks, has_gradient)
        else:
            raise InvalidArgument(f"device is {self._device}, must be cpu or cuda")
        self._executor = Executor(schedule, rank, **options)
        self._tasks = self._tasks_of(schedule, rank)
        self._at = 0

    def step(self) -> None:
        """Runs one step. On a CUDA device what the current stream holds comes before it, what is enqueued there
        afterwards comes after it, and nothing is waited for.

        Raises what the compute raised, and what :meth:`Executor.step <dualpipe.Executor.step>` raises.
        """
        self._at = 0
        if self._stream is None:
            try:
                return self._executor._step(self._run)
            except BaseException:
                self._link.break_off(())
                raise
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                self._executor._step(self._run)
        finally:
            current.wait_stream(self._stream)

    def set_microbatch(
        self, microbatch: int, tensors: Sequence[TensorSpec | tuple[torch.dtype, Sequence[int]]], direction: int = 0
    ) -> None:
        """Other shapes for one micro-batch, as :meth:`Executor.set_microbatch <dualpipe.Executor.set_microbatch>`: every
        rank must be told the same. As many tensors as there were, with the same dtypes."""
        specs = specs_of("tensors", tensors)
        if [(one.dtype, one.has_gradient) for one in specs] != [(one.dtype, one.has_gradient) for one in self._specs]:
            raise InvalidArgument(f"tensors is {specs}, must have the dtypes of {self._specs}")
        self._executor.set_microbatch(microbatch, [(spec.dtype, spec.shape) for spec in specs], direction)
        self._memory.expect(specs)
        self._of_microbatch[direction, microbatch] = specs

    def timeline(self) -> Timeline:
        """This rank's timeline of its last step; on a CUDA device waits for its end."""
        self._executor.synchronize()
        return self._executor.timeline()

    def close(self) -> None:
        """Frees it; other ranks that are in the middle of a step end with an error."""
        self._executor.close()

    def _tasks_of(self, schedule: Schedule, rank: int) -> list[Callable[[Any], None]]:
        """What to do for each task of a step, in order: the program says it beforehand, so that nothing of a task but
        its tensors has to be read."""
        run: dict[str, Callable[..., Callable[[Any], None]]] = {
            "F": self._forward,
            "B": lambda copy, microbatch: self._backward(copy, microbatch, for_input_only=False),
            "I": lambda copy, microbatch: self._backward(copy, microbatch, for_input_only=True),
            "W": self._weight,
            "FB": self._forward_backward,
            "REDUCE_GRADS": self._reduce,
        }
        ops = [one.op for one in schedule.program(rank).instructions() if one.op is not None]
        # In a direction a rank has one stage, or in "dualpipe_v" two.
        self._direction_of = {copy: copy if schedule.directions == 2 else 0 for copy in range(2)}
        return [run[op[0]](*op[1:]) for op in ops]

    def _run(self, task: Any) -> None:
        self._at += 1
        self._tasks[self._at - 1](task.contents)

    def _forward(self, copy: int, microbatch: int) -> Callable[[Any], None]:
        forward, where = self._compute.forward, (self._direction_of[copy], microbatch)

        def run(task: Any) -> None:
            lent = task.forward.contents
            self._send(lent, forward(copy, microbatch, self._inputs(lent)), where)

        return run

    def _backward(self, copy: int, microbatch: int, for_input_only: bool) -> Callable[[Any], None]:
        backward, where = self._compute.backward, (self._direction_of[copy], microbatch)

        def run(task: Any) -> None:
            lent = task.backward.contents
            grads = backward(copy, microbatch, self._output_grads(lent), for_input_only)
            self._send_grads(lent, grads, where)

        return run

    def _weight(self, copy: int, microbatch: int) -> Callable[[Any], None]:
        return lambda _: self._compute.backward_weight(copy, microbatch)

    def _forward_backward(self, copy: int, microbatch: int, copy2: int, microbatch2: int) -> Callable[[Any], None]:
        where, where2 = (self._direction_of[copy], microbatch), (self._direction_of[copy2], microbatch2)

        def run(task: Any) -> None:
            forward, backward = task.forward.contents, task.backward.contents
            outputs, grads = self._compute.forward_backward(
                (copy, microbatch, self._inputs(forward)), (copy2, microbatch2, self._output_grads(backward))
            )
            self._send(forward, outputs, where)
            self._send_grads(backward, grads, where2)

        return run

    def _reduce(self, copy: int) -> Callable[[Any], None]:
        return lambda task: self._compute.reduce_grads(copy, task.reduce_peer)

    def _inputs(self, lent: Any) -> Tensors:
        owner, tensors = self._executor._memory.owner, lent.inputs  # type: ignore[union-attr]
        return [self._memory.typed(owner(tensors[k].owner), tensors[k].dl) for k in range(lent.num_inputs)]

    def _output_grads(self, lent: Any) -> list[torch.Tensor | None]:
        owner, tensors = self._executor._memory.owner, lent.output_grads  # type: ignore[union-attr]
        return [
            self._memory.typed(owner(tensors[k].owner), tensors[k].dl) if tensors[k].is_present else None
            for k in range(lent.num_output_grads)
        ]

    def _send(self, lent: Any, outputs: Sequence[torch.Tensor], where: tuple[int, int]) -> None:
        count = lent.num_outputs
        if count == 0:
            return
        if len(outputs) != count:
            raise InvalidArgument(f"the stage has {len(outputs)} outputs, must have {count}, as its boundary")
        specs, tensors = self._of_microbatch.get(where, self._specs), lent.outputs
        for k, output in enumerate(outputs):
            self._set(tensors[k], output, specs[k], "output", k)

    def _send_grads(self, lent: Any, grads: MaybeTensors, where: tuple[int, int]) -> None:
        count = lent.num_input_grads
        if count == 0:
            return
        if len(grads) != count:
            raise InvalidArgument(f"the stage has {len(grads)} input gradients, must have {count}, as its boundary")
        specs, tensors = self._of_microbatch.get(where, self._specs), lent.input_grads
        for k, grad in enumerate(grads):
            spec = specs[k]
            if not spec.has_gradient:
                tensors[k].is_present = 0
                continue
            if grad is None:
                grad = torch.zeros(spec.shape, dtype=spec.dtype, device=self._device)
            self._set(tensors[k], grad, spec, "input gradient", k)

    def _set(self, lent: Any, tensor: torch.Tensor, spec: TensorSpec, name: str, k: int) -> None:
        if tensor.dtype is not spec.dtype or tensor.shape != spec.shape or tensor.device != self._device:
            got = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            wanted = f"{spec.dtype} {list(spec.shape)} on {self._device}"
            raise InvalidArgument(f"{name} {k} is {got}, must be {wanted}, as its boundary")
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
        lent.dl.data = tensor.data_ptr()
        lent.owner = self._executor._memory.keep(tensor)  # type: ignore[union-attr]


class _TensorMemory(Memory):
    """What is received goes into tensors of torch's."""

    def __init__(self, device: torch.device, release: Callable[[torch.Tensor], None]) -> None:
        self._device, self._release = device, release
        self._specs: dict[int, TensorSpec | None] = {}

    def expect(self, specs: Iterable[TensorSpec]) -> None:
        """Tensors of these shapes may come: who knows the size of one usually knows which."""
        for spec in specs:
            num_bytes = spec.dtype.itemsize
            for size in spec.shape:
                num_bytes *= size
            known = self._specs.get(num_bytes, spec)
            is_alike = known is not None and (known.shape, known.dtype) == (spec.shape, spec.dtype)
            self._specs[num_bytes] = spec if is_alike else None

    def allocate(self, num_bytes: int) -> torch.Tensor:
        spec = self._specs.get(num_bytes)
        if spec is None:
            return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        return torch.empty(spec.shape, dtype=spec.dtype, device=self._device)

    def release(self, buffer: torch.Tensor) -> None:
        self._release(buffer)

    def typed(self, buffer: torch.Tensor, dl: Any) -> torch.Tensor:
        """A buffer as the tensor that a task gets, without a graph."""
        if buffer.dtype is torch.uint8 and (dl.dtype.code, dl.dtype.bits) != (1, 8):
            buffer = buffer.view(_DTYPES[dl.dtype.code, dl.dtype.bits])
        shape = tuple(dl.shape[: dl.ndim])
        return buffer.detach() if buffer.shape == shape else buffer.detach().view(shape)


_DTYPES = {
    (2, 16): torch.float16,
    (2, 32): torch.float32,
    (2, 64): torch.float64,
    (4, 16): torch.bfloat16,
    (0, 8): torch.int8,
    (0, 16): torch.int16,
    (0, 32): torch.int32,
    (0, 64): torch.int64,
    (1, 8): torch.uint8,
    (5, 64): torch.complex64,
    (5, 128): torch.complex128,
    (6, 8): torch.bool,
    (10, 8): torch.float8_e4m3fn,
    (12, 8): torch.float8_e5m2,
}
"""By what DLPack calls an element: (code, bits)."""


def specs_of(name: str, tensors: Sequence[Any]) -> list[TensorSpec]:
    """Each as a :class:`TensorSpec`; a pair is (dtype, shape). TypeError, InvalidArgument."""
    specs = []
    for k, one in enumerate(tensors):
        spec = one if isinstance(one, TensorSpec) else None
        if spec is None and isinstance(one, (tuple, list)) and len(one) == 2:
            spec = TensorSpec(tuple(one[1]), one[0])
        if spec is None or not isinstance(spec.dtype, torch.dtype):
            raise TypeError(f"{name}[{k}] is {one!r}, must be a TensorSpec or (torch.dtype, shape)")
        specs.append(TensorSpec(tuple(int(size) for size in spec.shape), spec.dtype, bool(spec.requires_grad)))
    return specs


def world() -> dist.ProcessGroup:
    """The default group. InvalidArgument if there is none."""
    if not dist.is_initialized():
        raise InvalidArgument("group is None and there is no default group: call torch.distributed.init_process_group")
    default = dist.group.WORLD
    assert default is not None
    return default


def _shared_unique_id(schedule: Schedule, group: dist.ProcessGroup, ranks: Sequence[int]) -> bytes:
    """NCCL's ids for the pipeline, made on its rank 0."""
    first = dist.get_global_rank(group, ranks[0])
    ids: list[Any] = [nccl_unique_id(schedule) if dist.get_rank() == first else None]
    dist.broadcast_object_list(ids, src=first, group=group)
    unique_id: bytes = ids[0]
    return unique_id
