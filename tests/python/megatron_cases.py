"""What ranks do for test_megatron.py: each case runs on all ranks of a pipeline and says what its rank has seen."""

from __future__ import annotations

import copy
import sys
import time
import types
from typing import Any, Callable
from unittest import mock

import dualpipe
import torch
from dualpipe import InvalidArgument, megatron
from dualpipe.megatron import build_model_chunks, forward_backward_func, step, weight_grads
from megatron.core import parallel_state, pipeline_parallel
from megatron.core.pipeline_parallel import schedules
from megatron.core.tensor_parallel import layers
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_cpu import cuda_is_the_host
from megatron_gpt import FusedKernels, Options, Pipeline


def compared(steps: int = 1, **options: Any) -> dict[str, Any]:
    """What one rank sees of such a step, or of the last of several, each from zeroed gradients and with one
    micro-batch more."""
    pipeline = Pipeline(Options(**options))
    losses: list[Any] = []
    for k in range(steps):
        pipeline.zero_grad()
        # Other numbers of micro-batches: DDP must be told of a gradient once in a step, not once in a micro-batch.
        microbatches = pipeline.options.microbatches + k
        want = pipeline.serial_step(num_microbatches=microbatches)
        losses = pipeline.step(num_microbatches=microbatches, data_iterator=pipeline.data(microbatches))
        if not pipeline.options.ddp:
            megatron.add_tied_grads(pipeline.chunks)
    errors = [float((one["loss"] - other["loss"]).abs().max()) for one, other in zip(losses, want)]
    seen = {
        "error": pipeline.largest_error(),
        "names": [name for name, _ in pipeline.named],
        "all names": list(pipeline.weights),
        "losses": len(losses),
        "wanted losses": len(want),
        "loss error": max(errors, default=0.0),
        "needs grad": any(one["loss"].requires_grad for one in losses),
    }
    pipeline.close()
    return seen


def fused(**options: Any) -> dict[str, Any]:
    """Likewise, with kernels that add to ``main_grad``."""
    there = mock.patch.object(layers, "_grad_accum_fusion_available", True)
    kernels = mock.patch.object(layers, "fused_weight_gradient_mlp_cuda", FusedKernels, create=True)
    with there, kernels:
        return compared(steps=2, fused=True, ddp=True, overlap=True, **options)


def w_is_computed_when_the_schedule_says_so() -> dict[str, Any]:
    """How many weight gradients of linears a rank computes within its W, and how many linears its W are of."""
    pipeline = Pipeline(Options(microbatches=5))
    computed: list[int] = []
    real, real_w = weight_grads._weight_grad, step._Step.backward_weight

    def count(*arguments: Any) -> Any:
        computed[-1] += 1
        return real(*arguments)

    def count_from_here(self: Any, copy: int, microbatch: int) -> None:
        computed.append(0)
        real_w(self, copy, microbatch)

    counting = mock.patch.object(weight_grads, "_weight_grad", count)
    with counting, mock.patch.object(step._Step, "backward_weight", count_from_here):
        pipeline.step()
    order = dualpipe.Schedule("dualpipe_v", pipeline.ranks, 5).order(pipeline.rank)
    # Two layers of a pipeline of two ranks are two chunks of one; the output layer is a linear too.
    linears = [4 + chunk.post_process for chunk in pipeline.chunks]
    pipeline.close()
    return {"computed": computed, "linears": [linears[op[1]] for op in order if op[0] == "W"]}


def forward_only() -> dict[str, Any]:
    """An evaluation, with fewer micro-batches than a step may have; and what it collects."""
    pipeline = Pipeline(Options())
    how = {"forward_only": True, "num_microbatches": 2}
    with torch.no_grad():
        want, want_data = pipeline.serial_step(**how), pipeline.serial_step(**how, collect_non_loss_data=True)
        losses = pipeline.step(**how)
        data = pipeline.step(**how, collect_non_loss_data=True)
    same = [torch.equal(one["loss"], other["loss"]) for one, other in zip(losses, want)]
    for one, other in zip(data, want_data):
        same += [torch.equal(one["of each token"], other["of each token"])]
        same += [torch.equal(one["labels"][0], other["labels"][0]), one["labels"][1] == other["labels"][1]]
    seen = {
        "same": same,
        "counts": (len(losses), len(data)),
        "grads": [name for name, p in pipeline.named if p.grad is not None],
    }
    pipeline.close()
    return seen


def aligned_reduction() -> dict[str, Any]:
    """``grad_sync_func``, as Megatron sets it to reduce on all ranks at the same time: how often, and the gradients."""
    pipeline = Pipeline(Options(ddp=True, overlap=True))
    called: list[int] = []

    def sync(k: int) -> Callable[..., None]:
        def start(*parameters: Any) -> None:
            called.append(k)
            pipeline.model[k].start_grad_sync(*parameters)

        return start

    pipeline.config.grad_sync_func = [sync(k) for k in range(len(pipeline.model))]
    for _ in range(2):
        pipeline.zero_grad()
        pipeline.serial_step()
        pipeline.step()
    seen = {"error": pipeline.largest_error(), "called": sorted(called)}
    pipeline.close()
    return seen


def given_schedule() -> dict[str, Any]:
    """A Schedule object, for its own number of micro-batches only."""
    schedule = dualpipe.Schedule("dualpipe_v", 2, 4)
    pipeline = Pipeline(Options(schedule=schedule))
    seen = {"refused": refused(lambda: pipeline.step(num_microbatches=5, data_iterator=pipeline.data(5)))}
    pipeline.zero_grad()
    pipeline.serial_step()
    losses = pipeline.step()
    with torch.no_grad():
        evaluated = pipeline.step(forward_only=True, num_microbatches=3)
    seen.update(error=pipeline.largest_error(), counts=(len(losses), len(evaluated)))
    seen["ranks"] = {op.rank for op in map(_Span, pipeline.function.timeline().spans().tolist())}
    pipeline.close()
    return seen


class _Span:
    def __init__(self, span: Any) -> None:
        self.rank = span[0]


def refused(call: Callable[[], Any]) -> str:
    """The words with which a call is refused."""
    try:
        call()
    except (InvalidArgument, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return "not refused"


def refusals() -> dict[str, str]:
    """What is refused, and how."""
    words = {
        "two directions": refused(lambda: forward_backward_func("dualpipe")),
        "a schedule of two directions": refused(lambda: forward_backward_func(dualpipe.Schedule("dualpipe", 2, 4))),
        "unknown": refused(lambda: forward_backward_func("gpipe")),
        "no schedule": refused(lambda: forward_backward_func(4)),
        "timeout": refused(lambda: forward_backward_func(timeout=0.0)),
    }
    pipeline = Pipeline(Options())
    words["too few"] = refused(lambda: pipeline.step(num_microbatches=2))
    words["shapes"] = refused(lambda: pipeline.step(adjust_tensor_shapes_fn=lambda a, b: (a, b)))
    words["communicator"] = refused(lambda: pipeline.step(p2p_communicator=object()))
    words["one chunk"] = refused(lambda: pipeline.step(model=pipeline.chunks[:1]))
    words["swapped"] = refused(lambda: pipeline.step(model=pipeline.chunks[::-1]))
    words["iterators"] = refused(lambda: pipeline.step(data_iterator=[pipeline.data()]))
    words["serial"] = refused(lambda: pipeline.step(model=[pipeline.serial] * 2))
    group = parallel_state.get_data_parallel_group()
    torchs = [torch.nn.parallel.DistributedDataParallel(one, process_group=group) for one in Pipeline(Options()).chunks]
    words["torch DDP"] = refused(lambda: pipeline.step(model=torchs))
    for name, value in {
        "variable_seq_lengths": True,
        "overlap_moe_expert_parallel_comm": True,
        "virtual_pipeline_model_parallel_size": 2,
        "defer_embedding_wgrad_compute": True,
        "cuda_graph_impl": "local",
        "pipeline_dtype": None,
        "no_sync_func": torch.no_grad,
    }.items():
        before = getattr(pipeline.config, name)
        # On one rank only: all must refuse, and say whose it is.
        setattr(pipeline.config, name, value if pipeline.rank == 1 or name == "pipeline_dtype" else before)
        words[name] = refused(pipeline.step)
        setattr(pipeline.config, name, before)
    uneven = copy.copy(pipeline.config)
    uneven.num_layers = 3
    words["layers"] = refused(lambda: build_model_chunks(pipeline._provide, uneven))
    words["provider"] = refused(lambda: build_model_chunks(lambda pre_process, post_process: None, pipeline.config))
    delayed = Pipeline(Options(delayed=True, ddp=True))
    for one in delayed.model:
        one.ddp_config.delay_wgrad_compute = False
    words["delayed"] = refused(delayed.step)
    # What was refused has changed nothing.
    pipeline.zero_grad()
    pipeline.serial_step()
    pipeline.step()
    words["afterwards"] = f"error {pipeline.largest_error() < 1e-5}"
    pipeline.close()
    return words


def a_rank_fails() -> dict[str, Any]:
    """The forward step of the last rank raises; then a step goes well."""
    pipeline = Pipeline(Options(timed=True))

    def fail(data_iterator: Any, model: Any) -> Any:
        tokens = next(data_iterator)
        if pipeline.rank == pipeline.ranks - 1 and torch.equal(tokens, list(pipeline.data())[2]):
            raise ValueError("the third micro-batch is bad")
        return pipeline.forward_step(iter([tokens]), model)

    start = time.monotonic()
    try:
        pipeline.step(forward_step_func=fail)
        raised = "nothing"
    except Exception as error:  # noqa: BLE001, the test looks at it
        raised = f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - start
    attributes = [one for chunk in pipeline.chunks for one in chunk.modules() if "_forward_impl" in vars(one)]
    pipeline.zero_grad()
    pipeline.serial_step()
    pipeline.step()
    seen = {"raised": raised, "in time": seconds < 20, "left": len(attributes), "error": pipeline.largest_error()}
    pipeline.close()
    return seen


def a_rank_fails_late(which: int) -> dict[str, str]:
    """The last W of rank ``which`` raises, when the other one may be through: it waits for the losses no longer than the
    timeout. Its process group is then of no more use."""
    pipeline = Pipeline(Options())
    function = forward_backward_func(timeout=1.0)
    real = step._Step.backward_weight

    def fail(self: Any, copy: int, microbatch: int) -> None:
        if pipeline.rank == which and sum(self._weights_left.values()) == 1:
            raise MemoryError("no room for W")
        real(self, copy, microbatch)

    with mock.patch.object(step._Step, "backward_weight", fail), mock.patch.object(pipeline, "function", function):
        try:
            pipeline.step()
            raised = "nothing"
        except Exception as error:  # noqa: BLE001, the test looks at it
            raised = f"{type(error).__name__}: {error}"
    pipeline.close()
    return {"raised": raised}


def installed() -> dict[str, Any]:
    """``get_forward_backward_func`` gives the function, and again Megatron's own."""
    homes = (pipeline_parallel, schedules)
    original = schedules.get_forward_backward_func
    user = types.ModuleType("user_of_megatron")
    user.get_forward_backward_func = original  # type: ignore[attr-defined]
    function = megatron.install("1f1b")
    again = megatron.install()
    seen = {
        "gives it": [home.get_forward_backward_func() is again for home in homes],
        "replaced": function is not again,
        "without pipeline": schedules.get_forward_backward_func(1, None) is schedules.forward_backward_no_pipelining,
    }
    megatron.uninstall()
    megatron.uninstall()
    seen["back"] = [home.get_forward_backward_func is original for home in homes]
    with mock.patch.dict(sys.modules, {"user_of_megatron": user}):
        seen["refused"] = refused(megatron.install)
        seen["unchanged"] = schedules.get_forward_backward_func is original
        bound = megatron.install(rebind=True)
        seen["rebound"] = user.get_forward_backward_func() is bound
        megatron.uninstall()
        seen["all back"] = user.get_forward_backward_func is original
    return seen


def placed() -> dict[str, Any]:
    """``place_chunks`` as Megatron's ``get_model`` calls it: the stages, the layers, and what parallel_state says."""
    pipeline = Pipeline(Options(tied=True))
    asked: list[Any] = []

    def provider(**arguments: Any) -> Any:
        asked.append((parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage()))
        return pipeline._provide(**arguments)

    provide = megatron.place_chunks(provider, config=pipeline._config)
    chunks = [provide(pre_process=False, post_process=False, vp_stage=k) for k in range(2)]
    ties = [chunk.shared_embedding_or_output_weight() for chunk in chunks]
    seen = {
        "layers": [[layer.layer_number for layer in chunk.decoder.layers] for chunk in chunks],
        "asked": asked,
        "ties": None if ties[0] is None else torch.equal(*ties),
        "rank": parallel_state.get_pipeline_model_parallel_rank() == pipeline.rank,
    }
    pipeline.close()
    return seen


TWO: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": lambda: compared(microbatches=3),
    "tied, scaled": lambda: compared(tied=True, deallocate=True, loss_scale=128.0),
    "tied, DDP, per token": lambda: compared(tied=True, ddp=True, per_token=True, deallocate=True),
    "DDP overlapped": lambda: compared(steps=2, tied=True, ddp=True, overlap=True),
    "delayed": lambda: compared(delayed=True),
    "delayed, DDP overlapped": lambda: compared(steps=2, delayed=True, ddp=True, overlap=True, microbatches=5),
    "fused": lambda: fused(tied=True),
    "delayed, 1F1B": lambda: compared(schedule="1f1b", delayed=True),
    "1F1B": lambda: compared(steps=2, schedule="1f1b", microbatches=2, tied=True, ddp=True, overlap=True),
    "w": w_is_computed_when_the_schedule_says_so,
    "forward only": forward_only,
    "aligned": aligned_reduction,
    "given": given_schedule,
    "refusals": refusals,
    "failure": a_rank_fails,
    "installed": installed,
    "placed": placed,
    "late failure": lambda: a_rank_fails_late(0),
}
FOUR: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": lambda: compared(microbatches=7),
    "tied, DDP, per token": lambda: compared(tied=True, ddp=True, per_token=True, microbatches=9),
    "DDP": lambda: compared(ddp=True, microbatches=8, deallocate=True),
    "delayed, fused": lambda: fused(delayed=True, microbatches=8),
}
TENSOR_PARALLEL: dict[str, Callable[[], dict[str, Any]]] = {"tied, DDP": lambda: compared(tied=True, ddp=True)}
DATA_PARALLEL: dict[str, Callable[[], dict[str, Any]]] = {
    "tied, DDP overlapped": lambda: compared(steps=2, tied=True, ddp=True, overlap=True, per_token=True)
}


def run(*which: tuple[str, int, int]) -> dict[Any, Any]:
    """Cases by the name of their table, with that pipeline and tensor-parallel size."""

    seen = {}
    for table, pipeline, tensor_parallel in which:
        with cuda_is_the_host():
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=tensor_parallel, pipeline_model_parallel_size=pipeline
            )
            model_parallel_cuda_manual_seed(7)
            try:
                seen.update({(table, name): case() for name, case in globals()[table].items()})
            finally:
                parallel_state.destroy_model_parallel()
    return seen
