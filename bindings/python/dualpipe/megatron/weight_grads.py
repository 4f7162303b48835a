"""The W of a split backward: linear layers put their weight gradients off and compute them when the schedule says so.

Megatron's local linears (ColumnParallelLinear, RowParallelLinear) go, during a training step, through a function of
ours: the same arithmetic, but autograd does not know the weight. Its gradient is added here, straight into
``main_grad`` where Megatron's DistributedDataParallel has one, since the hook that would do that runs in the backward
for input, when there is no gradient yet. Transformer Engine's linears put their W off by themselves; they are told when
by their ``backward_dw``. What is neither (norms, embeddings, biases, legacy grouped GEMMs) is computed in I.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Callable, TypeVar

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import layers

from ..errors import InvalidArgument

_F = TypeVar("_F", bound=Callable[..., Any])
_custom_fwd: Callable[[_F], _F] = layers.custom_fwd
_custom_bwd: Callable[[_F], _F] = layers.custom_bwd
_Base: Any = layers.LinearWithGradAccumulationAndAsyncCommunication


class ChunkWeightGrads:
    """Weight gradients of one model chunk during one step: from :meth:`attach` to :meth:`detach` its linears come here."""

    def __init__(self, chunk: Any) -> None:
        self._ddp = ddp_of(chunk)
        self._is_overlapped = self._ddp is not None and self._ddp.ddp_config.overlap_grad_reduce
        self._local = [one for one in chunk.modules() if _is_local_linear(one)]
        self._delayed = delayed_modules(chunk)
        self._put_off: dict[int, list[Callable[[], None]]] = {}
        self._collecting: list[Callable[[], None]] | None = None
        self._is_last = False

    def attach(self) -> None:
        """Before the step."""
        for module in self._local:
            module._forward_impl = functools.partial(self._linear, module._forward_impl)

    def detach(self) -> None:
        """After it, also if it failed: the chunk is as it was."""
        for module in self._local:
            module.__dict__.pop("_forward_impl", None)
        self._put_off.clear()
        for module in self._delayed:  # of a step that failed
            context = module.wgrad_store.context
            while context is not None and not context.empty():
                context.get()

    def begin(self, microbatch: int, for_input_only: bool, is_last: bool) -> None:
        """Before a backward: whether it puts W off, and whether it is the last to add to weights of this chunk."""
        self._is_last = is_last
        self._collecting = self._put_off.setdefault(microbatch, []) if for_input_only else None

    def compute(self, microbatch: int, is_last: bool) -> None:
        """The W of a backward that put it off."""
        self._is_last = is_last
        for one in self._put_off.pop(microbatch):
            one()
        self.compute_delayed()

    @torch.no_grad()
    def compute_delayed(self) -> None:
        """What Transformer Engine's linears have put off in the oldest backward."""
        for module in self._delayed:
            weights = list(module.parameters(recurse=False))
            if self._ddp is not None:
                if self._is_overlapped:
                    _show_added(weights)
                module.backward_dw()
                continue
            # It sets a gradient, where there may be a sum so far.
            before = [(weight, weight.grad) for weight in weights if weight.grad is not None]
            for weight, _ in before:
                weight.grad = None
            module.backward_dw()
            for weight, grad in before:
                weight.grad = grad if weight.grad is None else grad.add_(weight.grad)

    def _linear(self, megatrons: Callable[..., Any], input: Any, weight: Any, **how: Any) -> Any:
        """In place of a linear's ``_forward_impl``."""
        is_ours = (
            torch.is_grad_enabled()
            and input.requires_grad
            and weight.requires_grad
            and how.get("grad_output_buffer") is None
            and not has_hooks(weight)
        )
        if not is_ours:
            return megatrons(input=input, weight=weight, **how)
        bias = how.get("bias")
        group = layers.get_tensor_model_parallel_group_if_none(how.get("tp_group"))
        is_fused, is_reduced = how["gradient_accumulation_fusion"], how["allreduce_dgrad"]
        output = _SplitLinear.apply(input, (self, weight), is_fused, is_reduced, how["sequence_parallel"], group)
        return output if bias is None else output + bias

    def _add(self, weight: Any, grad: Any) -> None:
        """What the hook of DDP does when autograd has a gradient; ``grad`` is None if it is in main_grad already."""
        bucket_groups = {} if self._ddp is None else self._ddp.param_to_bucket_group
        if weight not in bucket_groups:
            if grad is not None:
                weight.grad = grad.to(weight.dtype) if weight.grad is None else weight.grad.add_(grad)
            return
        if grad is not None:
            weight.main_grad.add_(grad)
        if self._is_overlapped and self._is_last:
            bucket_groups[weight].register_grad_ready(weight, self._ddp.force_all_reduce)


class _SplitLinear(torch.autograd.Function):
    """Megatron's linear, whose weight comes beside autograd."""

    @staticmethod
    @_custom_fwd
    def forward(
        ctx: Any,
        input: torch.Tensor,
        owner: tuple[ChunkWeightGrads, torch.nn.Parameter],
        is_fused: bool,
        allreduce_dgrad: bool,
        sequence_parallel: bool,
        group: Any,
    ) -> Any:
        ctx.grads, ctx.weight = owner
        return _Base.forward(
            ctx, input, ctx.weight, None, is_fused, allreduce_dgrad, sequence_parallel, None, None, group
        )

    @staticmethod
    @_custom_bwd
    def backward(ctx: Any, *output_grads: torch.Tensor) -> Any:
        (output_grad,) = output_grads
        nothing = (None,) * 5
        grads: ChunkWeightGrads = ctx.grads
        if grads._collecting is None:
            input_grad, weight_grad, *_ = _Base.backward(ctx, output_grad)
            grads._add(ctx.weight, None if ctx.gradient_accumulation_fusion else weight_grad)
            return (input_grad, *nothing)
        input, weight = ctx.saved_tensors
        input_grad = output_grad.matmul(weight)
        if ctx.sequence_parallel:
            part = torch.empty(input.shape, dtype=input_grad.dtype, device=input_grad.device)
            layers.dist_reduce_scatter_func(part, input_grad.contiguous(), group=ctx.tp_group)
            input_grad = part
        elif ctx.allreduce_dgrad:
            input_grad = input_grad.contiguous()
            dist.all_reduce(input_grad, group=ctx.tp_group)
        autocast = getattr(ctx, "_fwd_used_autocast", False), getattr(ctx, "_dtype", None)
        group = ctx.tp_group if ctx.sequence_parallel else None
        is_fused, param = ctx.gradient_accumulation_fusion, ctx.weight

        def compute() -> None:
            with torch.no_grad(), torch.autocast("cuda", dtype=autocast[1], enabled=autocast[0]):
                grads._add(param, _weight_grad(param, input.detach(), output_grad, group, is_fused))

        grads._collecting.append(compute)
        return (input_grad, *nothing)


def _weight_grad(weight: Any, input: torch.Tensor, output_grad: torch.Tensor, group: Any, is_fused: bool) -> Any:
    """[out, in], or None if the fused kernel has added it to ``main_grad``. ``group``: the ranks that have a part of the
    sequence each."""
    if group is not None:
        whole = torch.empty((input.shape[0] * group.size(), *input.shape[1:]), dtype=input.dtype, device=input.device)
        layers.dist_all_gather_func(whole, input.contiguous(), group=group)
        input = whole
    output_grad, input = layers.prepare_input_tensors_for_wgrad_compute(output_grad, input)
    if not is_fused:
        return output_grad.t().matmul(input)
    kernels: Any = layers.fused_weight_gradient_mlp_cuda
    is_float32 = weight.main_grad.dtype == torch.float32
    add = kernels.wgrad_gemm_accum_fp32 if is_float32 else kernels.wgrad_gemm_accum_fp16
    add(input, output_grad, weight.main_grad)
    return None


def _show_added(weights: list[Any]) -> None:
    """The hook of DDP wants to see a gradient, also where a fused kernel adds to ``main_grad``. The backward leaves one
    of no meaning, which the hook drops: so it is there for the first W only of several that were put off."""
    for weight in weights:
        if weight.grad is None and getattr(weight, "grad_added_to_main_grad", False):
            weight.grad = torch.empty((), dtype=weight.dtype, device=weight.device).expand(weight.shape)


def ddp_of(chunk: Any) -> Any:
    """Megatron's DistributedDataParallel around a chunk, None if there is none."""
    while chunk is not None and not hasattr(chunk, "param_to_bucket_group"):
        chunk = getattr(chunk, "module", None)
    return chunk


def delayed_modules(chunk: Any) -> list[Any]:
    """Transformer Engine's linears of a chunk that put off their W."""
    found = []
    for module in chunk.modules():
        store = getattr(module, "wgrad_store", None)
        if store is not None and callable(getattr(module, "backward_dw", None)) and store.delay_wgrad_compute():
            found.append(module)
    return found


def has_hooks(weight: Any) -> bool:
    """Whether somebody else waits for autograd to bring this weight its gradient."""
    return bool(getattr(weight, "_backward_hooks", None) or getattr(weight, "_post_accumulate_grad_hooks", None))


def check_delayed(chunk: Any) -> None:
    """:class:`~dualpipe.InvalidArgument` if gradients that Transformer Engine puts off would get lost."""
    delayed = delayed_modules(chunk)
    if not delayed:
        return
    ddp = ddp_of(chunk)
    if ddp is not None and not ddp.ddp_config.delay_wgrad_compute:
        raise InvalidArgument(
            "ddp_config.delay_wgrad_compute is False, must be True: linears of Transformer Engine put off their weight "
            "gradients, and DDP would miss them"
        )
    for module in delayed:
        config: Any = getattr(module, "config", None)
        if config is not None and not getattr(config, "delay_wgrad_compute", True):
            raise InvalidArgument(
                f"config.delay_wgrad_compute of a {type(module).__name__} is False, must be True: it puts off its weight "
                "gradient, and its backward_dw does nothing"
            )


def _is_local_linear(module: Any) -> bool:
    return isinstance(module, (layers.ColumnParallelLinear, layers.RowParallelLinear))


def microbatch_counts(order: Sequence[tuple[Any, ...]]) -> tuple[dict[int, int], dict[int, int]]:
    """By parameter copy: how many backward passes an order has, B and I, and how many times it computes weights, B and
    W."""
    backwards: dict[int, int] = {}
    weights: dict[int, int] = {}
    for name, *where in order:
        copy = where[2] if name == "FB" else where[0]
        if name in ("B", "I", "FB"):
            backwards[copy] = backwards.get(copy, 0) + 1
        if name in ("B", "W", "FB"):
            weights[copy] = weights.get(copy, 0) + 1
    return backwards, weights
