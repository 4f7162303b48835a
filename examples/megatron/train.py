"""Trains a small GPT of Megatron-core's with DualPipeV: two pipeline ranks, processes on this machine's CPU, over gloo.

python examples/megatron/train.py
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

ROOT = Path(__file__).resolve().parents[2]
SEQUENCE, BATCH, BYTES = 64, 4, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--schedule",
        default="dualpipe_v",
        choices=("dualpipe_v", "1f1b", "megatron"),
        help="dualpipe's, or Megatron's own 1F1B",
    )
    parser.add_argument("--ranks", type=int, default=2, help="pipeline ranks, 2 or more")
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--text", type=Path, default=ROOT / "README.md", help="what to learn, byte by byte")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(rank_main, (options, f"file://{folder}/store"), nprocs=options.ranks)


def rank_main(rank: int, options: argparse.Namespace, store: str) -> None:
    """One pipeline rank."""
    warnings.simplefilter("ignore")  # Megatron's, of what is not installed
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.ranks))
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=options.ranks)
    from host import CudaIsTheHost

    with CudaIsTheHost():
        train(options)
    dist.destroy_process_group()


def train(options: argparse.Namespace) -> None:
    import dualpipe.megatron
    from megatron.core import parallel_state, pipeline_parallel
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer import TransformerConfig

    parallel_state.initialize_model_parallel(pipeline_model_parallel_size=options.ranks)
    model_parallel_cuda_manual_seed(1)
    torch.manual_seed(1)
    config = TransformerConfig(
        num_layers=4 * options.ranks,
        hidden_size=64,
        num_attention_heads=4,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        deallocate_pipeline_outputs=True,
    )
    # With pretrain(): place_chunks(model_provider), and install before megatron.training is imported.
    is_ours = options.schedule != "megatron"
    chunks = dualpipe.megatron.build_model_chunks(model_provider, config, options.schedule if is_ours else "1f1b")
    if is_ours:
        function = dualpipe.megatron.install(options.schedule)

    ddp_config = DistributedDataParallelConfig()
    config = chunks[0].config
    model = [DistributedDataParallel(config=config, ddp_config=ddp_config, module=chunk) for chunk in chunks]
    optimizer = get_megatron_optimizer(OptimizerConfig(optimizer="adam", lr=3e-3, clip_grad=0.0), model)
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    forward_backward = pipeline_parallel.get_forward_backward_func()

    is_last = parallel_state.is_pipeline_last_stage()
    data, start = batches(options.text), time.monotonic()
    for step in range(options.steps):
        for chunk in model:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
        losses = forward_backward(
            forward_step_func=forward_step,
            data_iterator=data,
            model=model,
            num_microbatches=options.microbatches,
            seq_length=SEQUENCE,
            micro_batch_size=BATCH,
        )
        optimizer.step()
        if is_last and (step % 5 == 0 or step == options.steps - 1):
            loss = sum(float(one["lm loss"]) for one in losses) / len(losses)
            print(f"step {step:4}   loss {loss:.3f}   {time.monotonic() - start:5.1f} s", flush=True)

    if is_ours:
        rank = parallel_state.get_pipeline_model_parallel_rank()
        timeline = function.timeline()
        busy: list[Any] = [None] * options.ranks
        dist.all_gather_object(busy, float(timeline.busy[rank] / timeline.makespan))
        if is_last:
            for other, share in enumerate(busy):
                print(f"rank {other} computed in {share:.0%} of the last step", flush=True)


def model_provider(pre_process: bool, post_process: bool, config: Any, pg_collection: Any, vp_stage: Any = None) -> Any:
    """A chunk of the model, as Megatron's scripts have it."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    return GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(),
        vocab_size=BYTES,
        max_sequence_length=SEQUENCE,
        pre_process=pre_process,
        post_process=post_process,
        share_embeddings_and_output_weights=True,
        pg_collection=pg_collection,
        vp_stage=vp_stage,
    )


def forward_step(data_iterator: Iterator[torch.Tensor], model: Any) -> Any:
    """As Megatron's scripts have it: what the model gives, and what makes a loss of that."""
    text = next(data_iterator)
    positions = torch.arange(SEQUENCE).expand(BATCH, SEQUENCE)
    output = model(text[:, :-1], positions, None, labels=text[:, 1:])

    def loss_func(losses: torch.Tensor) -> Any:
        loss = losses.mean()
        return loss, {"lm loss": loss.detach().clone()}  # Megatron divides the loss in place

    return output, loss_func


def batches(path: Path) -> Iterator[torch.Tensor]:
    """[batch, sequence + 1] bytes from anywhere in the text, the same on every rank."""
    text = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(1)
    while True:
        starts = torch.randint(0, len(text) - SEQUENCE - 1, (BATCH,), generator=generator)
        yield torch.stack([text[at : at + SEQUENCE + 1] for at in starts.tolist()])


if __name__ == "__main__":
    main()
