"""A small GPT of Megatron's for the tests: serial and as the chunks of a pipeline, with the same weights and data."""

from __future__ import annotations

import copy
import queue
from collections.abc import Iterator
from typing import Any, NamedTuple

import dualpipe.megatron
import torch
from dualpipe.megatron import StageGroup
from dualpipe.megatron.placement import OnlyThisRank
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.pipeline_parallel import schedules
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.timers import Timers
from megatron.core.transformer import TransformerConfig

SEQUENCE, BATCH, VOCABULARY, HIDDEN = 8, 2, 32, 16


class Options(NamedTuple):
    """What differs from case to case."""

    schedule: Any = "dualpipe_v"
    microbatches: int = 4
    tied: bool = False
    ddp: bool = False
    overlap: bool = False
    """DDP reduces each bucket as soon as it is ready."""
    per_token: bool = False
    loss_scale: float = 1.0
    timed: bool = False
    """Megatron's timers run."""
    deallocate: bool = False
    fused: bool = False
    """W is added to ``main_grad`` by the kernel that computes it."""
    delayed: bool = False
    """Linears that put off their W themselves, as Transformer Engine's do."""


class Pipeline:
    """Both models on one rank, and what their steps give."""

    def __init__(self, options: Options) -> None:
        self.options = options
        groups = ProcessGroupCollection.use_mpu_process_groups()
        self.rank, self.ranks = groups.pp.rank(), groups.pp.size()
        # Without pipeline: the whole model on every rank. The group is for the broadcast of num_tokens only.
        self.alone = copy.copy(groups)
        self.alone.pp = StageGroup(0, 1)
        self.alone.embd = self.alone.pos_embd = None
        torch.manual_seed(1)
        self.serial = self._provide(True, True, self._config(), self.alone, delayed=False)
        self.chunks = dualpipe.megatron.build_model_chunks(self._provide, self._config(), options.schedule)
        self.weights = dict(self.serial.named_parameters())
        if options.tied:
            self.weights["output_layer.weight"] = self.weights["embedding.word_embeddings.weight"]
        self.named = [(global_name(chunk, name), p) for chunk in self.chunks for name, p in chunk.named_parameters()]
        with torch.no_grad():
            for name, p in self.named:
                p.copy_(self.weights[name])
        self.config = self.chunks[0].config
        self.reference, self.model = self._wrap(self.serial, False), [self._wrap(one, True) for one in self.chunks]
        if options.ddp:
            for config in (self.config, self.serial.config):
                config.finalize_model_grads_func = finalize_model_grads
        for config in (self.config, self.serial.config):
            config.grad_scale_func = lambda loss: loss * options.loss_scale
        if options.timed:
            self.config.timers = Timers(2, "minmax")
        if options.overlap:
            self.serial.config.no_sync_func = self.reference.no_sync
            functions = [one.no_sync for one in self.model]
            self.config.no_sync_func = functions if len(functions) > 1 else functions[0]
        self.function = dualpipe.megatron.forward_backward_func(options.schedule, timeout=20.0)

    def zero_grad(self) -> None:
        for one in (self.reference, *self.model):
            one.zero_grad_buffer() if self.options.ddp else one.zero_grad()

    def step(self, **how: Any) -> list[Any]:
        """The pipeline's step."""
        arguments = {
            "forward_step_func": self.forward_step,
            "data_iterator": self.data(),
            "model": self.model,
            "num_microbatches": self.options.microbatches,
            "seq_length": SEQUENCE,
            "micro_batch_size": BATCH,
        }
        return self.function(**{**arguments, **how})

    def serial_step(self, **how: Any) -> list[Any]:
        """The whole model's step, by Megatron's own function without pipeline."""
        groups = copy.copy(self.alone)
        groups.pp = parallel_state.get_pipeline_model_parallel_group()
        groups.embd = groups.pos_embd = OnlyThisRank()
        arguments = {
            "forward_step_func": self.forward_step,
            "data_iterator": self.data(how.get("num_microbatches")),
            "model": [self.reference],
            "num_microbatches": self.options.microbatches,
            "seq_length": SEQUENCE,
            "micro_batch_size": BATCH,
            "pg_collection": groups,
        }
        return schedules.forward_backward_no_pipelining(**{**arguments, **how})

    def data(self, microbatches: int | None = None) -> Iterator[torch.Tensor]:
        """Tokens, [batch, sequence + 1], one for each micro-batch; others on each data-parallel rank."""
        generator = torch.Generator().manual_seed(3 + parallel_state.get_data_parallel_rank())
        for _ in range(microbatches or self.options.microbatches):
            yield torch.randint(0, VOCABULARY, (BATCH, SEQUENCE + 1), generator=generator)

    def forward_step(self, data_iterator: Any, model: Any) -> Any:
        tokens = next(data_iterator)
        labels = tokens[:, 1:]
        output = model(tokens[:, :-1], torch.arange(SEQUENCE).expand(BATCH, SEQUENCE), None, labels=labels)

        def loss(output: torch.Tensor, non_loss_data: bool = False) -> Any:
            if non_loss_data:
                return {"of each token": output, "labels": [labels, "as they came"]}
            if self.options.per_token:
                counts = labels % 3 > 0
                total, count = (output * counts).sum(), counts.sum().to(torch.int)
                return total, count, {"loss": torch.stack([total.detach(), count.float()])}
            return output.mean(), {"loss": output.mean().detach()}

        return output, loss

    def largest_error(self) -> float:
        """Of this rank's gradients, relative to the largest entry of the serial model's. No gradient may be zero."""
        worst = 0.0
        for name, p in self.named:
            got, want = gradient(p), gradient(self.weights[name])
            assert got is not None, f"{name} has no gradient"
            assert want.abs().max() > 0, f"{name} has gradient 0 in the serial model"
            worst = max(worst, float((got - want).abs().max() / want.abs().max()))
        return worst

    def close(self) -> None:
        self.function.close()

    def _config(self) -> Any:
        options = self.options
        tensor_parallel = parallel_state.get_tensor_model_parallel_world_size()
        return TransformerConfig(
            num_layers=2 * self.ranks,
            hidden_size=HIDDEN,
            num_attention_heads=2,
            use_cpu_initialization=True,
            gradient_accumulation_fusion=options.fused,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            bias_dropout_fusion=False,
            pipeline_dtype=torch.float32,
            tensor_model_parallel_size=tensor_parallel,
            calculate_per_token_loss=options.per_token,
            deallocate_pipeline_outputs=options.deallocate,
        )

    def _provide(
        self,
        pre_process: bool,
        post_process: bool,
        config: Any,
        pg_collection: Any,
        vp_stage: int | None = None,
        delayed: bool | None = None,
    ) -> Any:
        spec = get_gpt_layer_local_spec()
        if self.options.delayed if delayed is None else delayed:
            config.delay_wgrad_compute = True
            spec.submodules.self_attention.submodules.linear_qkv = DelayedLinear
            spec.submodules.mlp.submodules.linear_fc2 = DelayedLinear
        return GPTModel(
            config=config,
            transformer_layer_spec=spec,
            vocab_size=VOCABULARY,
            max_sequence_length=SEQUENCE,
            pre_process=pre_process,
            post_process=post_process,
            share_embeddings_and_output_weights=self.options.tied,
            pg_collection=pg_collection,
            vp_stage=vp_stage,
        )

    def _wrap(self, model: Any, is_chunk: bool) -> Any:
        if not self.options.ddp:
            return model
        delay = is_chunk and self.options.delayed
        settings = DistributedDataParallelConfig(overlap_grad_reduce=self.options.overlap, delay_wgrad_compute=delay)
        return DistributedDataParallel(config=model.config, ddp_config=settings, module=model)


def global_name(chunk: Any, name: str) -> str:
    """A chunk's parameter by the serial model's name: layers are counted through."""
    parts = name.split(".")
    if parts[:2] == ["decoder", "layers"]:
        parts[2] = str(chunk.decoder.layers[int(parts[2])].layer_number - 1)
    return ".".join(parts)


def gradient(weight: Any) -> Any:
    main_grad = getattr(weight, "main_grad", None)
    return weight.grad if main_grad is None else main_grad


class DelayedLinear(torch.nn.Module):
    """Stands for a linear of Transformer Engine's that puts off its W: the same attributes, and what they do."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        config: Any,
        init_method: Any,
        bias: bool,
        skip_bias_add: bool,
        **_: Any,
    ) -> None:
        super().__init__()
        self.config, self.skip_bias_add = config, skip_bias_add
        self.wgrad_store = DelayedLinear.Store()
        self.weight = torch.nn.Parameter(torch.empty(output_size, input_size))
        init_method(self.weight)
        self.weight.skip_backward_post_hook = True
        self.bias = torch.nn.Parameter(torch.zeros(output_size)) if bias else None
        self._hooks: list[Any] = []

    class Store:
        def __init__(self) -> None:
            self.context: queue.Queue[tuple[torch.Tensor, torch.Tensor]] = queue.Queue()

        def delay_wgrad_compute(self) -> bool:
            return True

    def forward(self, input: torch.Tensor) -> Any:
        output = _DelayedFunction.apply(input, self.weight, self)
        return (output, self.bias) if self.skip_bias_add else (output + self.bias, None)

    def register_wgrad_accumulation_and_reduce_hooks(self, hook: Any) -> None:
        self._hooks.append(hook)

    def backward_dw(self) -> None:
        if not self.config.delay_wgrad_compute:
            return
        input, output_grad = self.wgrad_store.context.get(block=False)
        grad = output_grad.flatten(0, 1).t() @ input.flatten(0, 1)
        if self.config.gradient_accumulation_fusion:
            self.weight.main_grad.add_(grad)
        else:
            self.weight.grad = grad
        for hook in self._hooks:
            hook()


class _DelayedFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.save_for_backward(input, weight)
        ctx.layer = layer
        return input @ weight.t()

    @staticmethod
    def backward(ctx: Any, *output_grads: torch.Tensor) -> Any:
        input, weight = ctx.saved_tensors
        ctx.layer.wgrad_store.context.put((input, output_grads[0]))
        of_no_meaning = None
        if ctx.layer.config.gradient_accumulation_fusion:
            ctx.layer.weight.grad_added_to_main_grad = True
            of_no_meaning = torch.full_like(weight, torch.nan)
        return output_grads[0] @ weight, of_no_meaning, None


class FusedKernels:
    """Stands for Apex's fused_weight_gradient_mlp_cuda."""

    @staticmethod
    def wgrad_gemm_accum_fp32(input: torch.Tensor, output_grad: torch.Tensor, main_grad: torch.Tensor) -> None:
        main_grad.add_(output_grad.t() @ input)
