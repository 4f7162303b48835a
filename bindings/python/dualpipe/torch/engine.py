"""The executor with torch's tensors: what a rank computes is a :class:`Compute`, when is the library's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, cast

import torch
import torch.distributed as dist

from ..cuda import Cuda, Nccl, nccl_unique_id
from ..errors import InvalidArgument
from ..executor import Executor
from ..schedule import Schedule
from ..timeline import Timeline
from .structs import TENSOR_SIZE, PassView, TaskView, TensorView, views_of
from .tensors import TensorMemory, TensorMemoryEnd, TensorSpec, specs_of
from .transport import Link, ProcessGroupTransport, link_of

Tensors = list[torch.Tensor]
MaybeTensors = Sequence["torch.Tensor | None"]


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


class Engine:
    """Runs one pipeline rank's part of ``schedule``, step after step.

    ``group``: the process group of the pipeline, the default one if None; ``ranks``: by pipeline rank, the rank in the
    group, in order if None. ``device``: of all tensors; on the host messages go by a gloo group of the pipeline's own
    (:class:`~dualpipe.torch.transport.Link`), on a CUDA device by the library's NCCL. ``tensors``: a
    :class:`TensorSpec` or (dtype, shape) for each tensor of a boundary; a gradient that is None where one travels is
    sent as zeros. ``timeout``: seconds that a single wait may last. ``timed``: on a CUDA device, whether there is a
    :meth:`timeline`; on the host there always is. ``frees_outputs``: an output that has been sent keeps its graph only.

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
        frees_outputs: bool = False,
    ) -> None:
        self._compute, self._device = compute, torch.device(device)
        self._specs = specs_of("tensors", tensors)
        self._has_gradient = [spec.has_gradient for spec in self._specs]
        self._directions = schedule.directions
        self.has_own_shapes = False
        """Whether :meth:`set_microbatch` was called."""
        memory = TensorMemory(self._device, frees_outputs)
        self._of_microbatch: dict[tuple[int, int], list[TensorSpec]] = {}
        group = world() if group is None else group
        ranks = range(schedule.ranks) if ranks is None else ranks
        if dist.get_world_size(group) != schedule.ranks:
            size = dist.get_world_size(group)
            raise InvalidArgument(f"group has {size} ranks, must have {schedule.ranks}, as many as the schedule")
        wires = [(spec.dtype, spec.shape) for spec in self._specs]
        options: dict[str, Any] = {"tensors": wires, "timeout": timeout, "memory": memory}
        self._stream: Any = None
        self.link: Link | None = None
        """What messages go by, on the host."""
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            options["cuda"] = Cuda(
                self._device.index or 0, compute_stream=self._stream, stream_ordered=True, timed=timed
            )
            options["nccl"] = Nccl(_shared_unique_id(schedule, group, ranks))
        elif self._device.type == "cpu":
            self.link = link_of(group, timeout)
            self.link.agree(f"{schedule!r} of {self._specs}", timeout)
            options["transport"] = ProcessGroupTransport(self.link, ranks, self._has_gradient, timeout, memory.at)
        else:
            raise InvalidArgument(f"device is {self._device}, must be cpu or cuda")
        self._executor = Executor(schedule, rank, **options)
        self._memory = cast(TensorMemoryEnd, self._executor._memory)
        self._memory.expect(self._specs)
        self._tasks = self._tasks_of(schedule, rank)

    def step(self) -> None:
        """Runs one step. On a CUDA device what the current stream holds comes before it, what is enqueued there
        afterwards comes after it, and nothing is waited for.

        Raises what the compute raised, and what :meth:`Executor.step <dualpipe.Executor.step>` raises.
        """
        tasks = iter(self._tasks)

        def run(address: int) -> None:
            next(tasks)(_task_at(address))

        if self.link is not None:
            try:
                return self._executor._step_by_address(run)
            except BaseException:
                self.link.break_off(())
                raise
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                self._executor._step_by_address(run)
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
        if self._of_microbatch.get((direction, microbatch)) == specs:
            return
        self.has_own_shapes = True
        self._executor.set_microbatch(microbatch, [(spec.dtype, spec.shape) for spec in specs], direction)
        self._memory.expect(specs)
        self._of_microbatch.setdefault((direction, microbatch), [])[:] = specs

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
        self._stages = [stage for _, stage in schedule.copies(rank)]
        self._last = schedule.stages - 1
        run: dict[str, Callable[..., Callable[[Any], None]]] = {
            "F": self._forward,
            "B": lambda copy, microbatch: self._backward(copy, microbatch, for_input_only=False),
            "I": lambda copy, microbatch: self._backward(copy, microbatch, for_input_only=True),
            "W": self._weight,
            "FB": self._forward_backward,
            "REDUCE_GRADS": self._reduce,
        }
        ops = [one.op for one in schedule.program(rank).instructions() if one.op is not None]
        return [run[op[0]](*op[1:]) for op in ops]

    def _specs_of(self, copy: int, microbatch: int) -> list[TensorSpec]:
        """Of one micro-batch: a list of its own, in which :meth:`set_microbatch` puts others."""
        direction = copy if self._directions == 2 else 0
        return self._of_microbatch.setdefault((direction, microbatch), list(self._specs))

    def _forward(self, copy: int, microbatch: int) -> Callable[[Any], None]:
        forward = self._compute.forward
        inputs_of, send = self._taking_inputs(copy, microbatch), self._sending_outputs(copy, microbatch)

        def run(task: Any) -> None:
            lent = _pass_at(task.forward)
            send(lent, forward(copy, microbatch, inputs_of(lent)))

        return run

    def _backward(self, copy: int, microbatch: int, for_input_only: bool) -> Callable[[Any], None]:
        backward = self._compute.backward
        grads_of, send = self._taking_grads(copy, microbatch), self._sending_grads(copy, microbatch)

        def run(task: Any) -> None:
            lent = _pass_at(task.backward)
            send(lent, backward(copy, microbatch, grads_of(lent), for_input_only))

        return run

    def _weight(self, copy: int, microbatch: int) -> Callable[[Any], None]:
        return lambda _: self._compute.backward_weight(copy, microbatch)

    def _forward_backward(self, copy: int, microbatch: int, copy2: int, microbatch2: int) -> Callable[[Any], None]:
        forward_backward = self._compute.forward_backward
        inputs_of, send = self._taking_inputs(copy, microbatch), self._sending_outputs(copy, microbatch)
        grads_of, send_grads = self._taking_grads(copy2, microbatch2), self._sending_grads(copy2, microbatch2)

        def run(task: Any) -> None:
            forward, backward = _pass_at(task.forward), _pass_at(task.backward)
            outputs, grads = forward_backward(
                (copy, microbatch, inputs_of(forward)), (copy2, microbatch2, grads_of(backward))
            )
            send(forward, outputs)
            send_grads(backward, grads)

        return run

    def _reduce(self, copy: int) -> Callable[[Any], None]:
        return lambda task: self._compute.reduce_grads(copy, task.reduce_peer)

    def _taking_inputs(self, copy: int, microbatch: int) -> Callable[[Any], Tensors]:
        specs, received = self._specs_of(copy, microbatch), self._memory.received
        if self._stages[copy] == 0:
            return lambda _: []
        if len(specs) == 1:
            return lambda lent: [received(_tensor_at(lent.inputs), specs[0])]
        return lambda lent: list(map(received, _tensors_at(lent.inputs, len(specs)), specs))

    def _taking_grads(self, copy: int, microbatch: int) -> Callable[[Any], MaybeTensors]:
        specs, received = self._specs_of(copy, microbatch), self._memory.received
        if self._stages[copy] == self._last:
            return lambda _: []
        if self._has_gradient == [True]:
            return lambda lent: [received(_tensor_at(lent.output_grads), specs[0])]
        return lambda lent: [
            received(one, spec) if has_gradient else None
            for one, spec, has_gradient in zip(_tensors_at(lent.output_grads, len(specs)), specs, self._has_gradient)
        ]

    def _sending_outputs(self, copy: int, microbatch: int) -> Callable[[Any, Sequence[torch.Tensor]], None]:
        specs, set_ = self._specs_of(copy, microbatch), self._memory.set
        if self._stages[copy] == self._last:
            return lambda lent, outputs: None

        def send_one(lent: Any, outputs: Sequence[torch.Tensor]) -> None:
            if len(outputs) != 1:
                self._check_count("outputs", outputs)
            set_(_tensor_at(lent.outputs), outputs[0], specs[0], "output", 0)

        def send(lent: Any, outputs: Sequence[torch.Tensor]) -> None:
            self._check_count("outputs", outputs)
            address = lent.outputs
            for k, output in enumerate(outputs):
                set_(_tensor_at(address + k * TENSOR_SIZE), output, specs[k], "output", k)

        return send_one if len(specs) == 1 else send

    def _sending_grads(self, copy: int, microbatch: int) -> Callable[[Any, MaybeTensors], None]:
        specs, set_ = self._specs_of(copy, microbatch), self._memory.set
        if self._stages[copy] == 0:
            return lambda lent, grads: None

        def send_one(lent: Any, grads: MaybeTensors) -> None:
            if len(grads) != 1 or grads[0] is None:
                send(lent, grads)
            else:
                set_(_tensor_at(lent.input_grads), grads[0], specs[0], "input gradient", 0)

        def send(lent: Any, grads: MaybeTensors) -> None:
            self._check_count("input gradients", grads)
            address = lent.input_grads
            for k, grad in enumerate(grads):
                one, spec = _tensor_at(address + k * TENSOR_SIZE), specs[k]
                if not self._has_gradient[k] and self._stream is None:
                    one.is_present = 0
                    continue
                if grad is None:  # on a device, where nothing tells that one is absent, for the others, too
                    grad = torch.zeros(spec.shape, dtype=spec.dtype, device=self._device)
                set_(one, grad, spec, "input gradient", k)

        return send_one if self._has_gradient == [True] else send

    def _check_count(self, name: str, given: Sequence[Any]) -> None:
        if len(given) != len(self._specs):
            raise InvalidArgument(
                f"the stage has {len(given)} {name}, must have {len(self._specs)}, as its boundary has tensors"
            )


_task_at, _pass_at, _tensor_at = views_of(TaskView), views_of(PassView), views_of(TensorView)


def _tensors_at(address: int, count: int) -> list[Any]:
    return [_tensor_at(address + k * TENSOR_SIZE) for k in range(count)]


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
