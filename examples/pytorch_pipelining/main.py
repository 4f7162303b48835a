"""Trains a small model by torch's pipelining with a schedule of dualpipe's, on processes of this machine.

It shows the schedule, then the losses of each step beside those of the same model trained in one piece.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import dualpipe
import torch
import torch.nn.functional as F
from dualpipe.torch.pipelining import PipelineRuntime, stages_of
from torch import distributed, multiprocessing, nn
from torch.distributed.pipelining import PipelineStage

WIDTH = 32
ROWS = 8
"""Of a micro-batch."""
LEARNING_RATE = 0.1


class Block(nn.Module):
    """One stage of the model."""

    def __init__(self, stage: int) -> None:
        super().__init__()
        torch.manual_seed(stage)
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))

    @classmethod
    def overlapped_forward_backward(
        cls,
        module0: Block,
        inputs0: list[torch.Tensor],
        criterion0: Any,
        labels0: list[torch.Tensor],
        module1: Block,
        loss1: torch.Tensor | None,
        outputs1: list[torch.Tensor],
        output_grads1: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The forward of module0 and the backward of module1. Here one after the other; on a GPU this is where the
        communication of either goes under the computation of the other."""
        output = module0(*inputs0)
        loss = criterion0(output, *labels0) if criterion0 else None
        if loss1 is not None:
            loss1.backward()
        else:
            torch.autograd.backward(outputs1, output_grads1)
        return output, loss


def batch(step: int, microbatches: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(microbatches * ROWS, WIDTH, generator=generator)
    return x, x.flip(-1)


def pipeline_rank(rank: int, schedule: tuple[str, int, int], steps: int, folder: str) -> None:
    """What each process does: the lines that a trainer needs are these."""
    planned = dualpipe.Schedule(*schedule)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=planned.ranks)
    torch.set_num_threads(1)
    blocks = {stage: Block(stage) for stage in stages_of(planned, rank)}
    cpu = torch.device("cpu")
    stages = [PipelineStage(block, stage, planned.stages, cpu) for stage, block in blocks.items()]
    pipeline = PipelineRuntime(planned, stages, loss_fn=F.mse_loss)
    optimizer = torch.optim.SGD([p for block in blocks.values() for p in block.parameters()], lr=LEARNING_RATE)
    first, last = 0 in blocks, planned.stages - 1 in blocks
    means = []
    for step in range(steps):
        x, target = batch(step, planned.microbatches)
        losses: list[torch.Tensor] = []
        optimizer.zero_grad()
        pipeline.step(*([x] if first else []), target=target if last else None, losses=losses)
        optimizer.step()
        if last:
            means.append(torch.stack(losses).mean().item())
    if last:
        torch.save(means, Path(folder, "losses"))
    distributed.destroy_process_group()


def serial_losses(stages: int, microbatches: int, steps: int) -> list[float]:
    """Of the same model, data and steps in one piece."""
    model = nn.Sequential(*(Block(stage) for stage in range(stages)))
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    means = []
    for step in range(steps):
        x, target = batch(step, microbatches)
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        means.append(loss.item())
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", default="dualpipe_v", choices=["dualpipe_v", "1f1b"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="processes (default: 2, then 4)")
    parser.add_argument("--microbatches", type=int, help="of a step (default: 3 for each rank)")
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    for ranks in options.ranks:
        schedule = dualpipe.Schedule(options.schedule, ranks, options.microbatches or 3 * ranks)
        print(schedule.simulate(dualpipe.Costs(f=1, i=1, w=1)))
        with tempfile.TemporaryDirectory() as folder:
            arguments = ((schedule.kind, ranks, schedule.microbatches), options.steps, folder)
            multiprocessing.spawn(pipeline_rank, arguments, nprocs=ranks)
            losses = torch.load(Path(folder, "losses"))
        expected = serial_losses(schedule.stages, schedule.microbatches, options.steps)
        for step, (loss, other) in enumerate(zip(losses, expected)):
            print(f"  step {step}   loss {loss:.6f}   in one piece {other:.6f}")
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
        print()


if __name__ == "__main__":
    main()
