"""Trains a small language model of bytes with DualPipeV or DualPipe, and compares it with the same model in one piece.

It starts its own processes; under torchrun it is the rank that torchrun says. On CUDA where each rank has a device.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import picture
import torch
import torch.distributed as dist
import torch.multiprocessing
from dualpipe import DualPipe, DualPipeV, set_p2p_tensor_dtype, set_p2p_tensor_shapes
from model import CONTEXT, WIDTH, build, loss_of
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
ROWS = 4
"""Of a micro-batch."""
LEARNING_RATE = 3e-3
TOLERANCE = 1e-3
"""Between the losses of the two, which add gradients up in different orders."""


class Ends:
    """What enters and leaves the pipeline on this rank."""

    def __init__(self, is_v: bool, rank: int) -> None:
        self.is_v, self.rank = is_v, rank

    def inputs_of(self, bytes_: torch.Tensor) -> torch.Tensor:
        """With two directions, the first half of a batch enters at rank 0, the second at the last rank."""
        return bytes_ if self.is_v else bytes_.chunk(2)[0 if self.rank == 0 else 1]

    def labels_of(self, following: torch.Tensor) -> torch.Tensor:
        """And each leaves where the other enters."""
        return following if self.is_v else following.chunk(2)[1 if self.rank == 0 else 0]


def main() -> None:
    options = parse()
    if "RANK" in os.environ:
        options.ranks = int(os.environ["WORLD_SIZE"])
        check(options)
        train(int(os.environ["RANK"]), options, "env://")
        return
    check(options)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (options, f"file://{folder}/group")
        torch.multiprocessing.start_processes(train, arguments, options.ranks, start_method="spawn")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", default="dualpipe_v", choices=["dualpipe_v", "dualpipe"])
    parser.add_argument("--ranks", type=int, default=2, help="processes, unless torchrun starts them (2)")
    parser.add_argument("--microbatches", type=int, default=8, help="of a step, of both directions together (8)")
    parser.add_argument("--steps", type=int, default=20, help="(20)")
    parser.add_argument("--seed", type=int, default=1, help="of parameters and batches (1)")
    parser.add_argument("--text", type=Path, default=ROOT / "README.md", help="what to learn (this project's README)")
    parser.add_argument("--svg", type=Path, help="draws the last step there, too")
    parser.add_argument(
        "--compare",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="trains the model in one piece as well, in the first process",
    )
    return parser.parse_args()


def check(options: argparse.Namespace) -> None:
    """Says what cannot be in words."""
    least = {"dualpipe_v": 2 * options.ranks - 1, "dualpipe": max(2, 2 * options.ranks - 2)}[options.schedule]
    complaint = None
    if options.schedule == "dualpipe" and (options.ranks < 2 or options.ranks % 2 or options.microbatches % 2):
        complaint = "--schedule dualpipe needs even numbers of --ranks and --microbatches"
    elif options.ranks < 1 or options.steps < 1:
        complaint = "--ranks and --steps must be at least 1"
    elif options.microbatches < least:
        complaint = f"--microbatches is {options.microbatches}, must be at least {least}"
    elif not options.text.is_file() or options.text.stat().st_size < CONTEXT + 2:
        complaint = f"--text is {options.text}, must be a file of at least {CONTEXT + 2} bytes"
    if complaint is not None:
        print(complaint, file=sys.stderr)
        sys.exit(2)


def train(rank: int, options: argparse.Namespace, group: str) -> None:
    """One rank."""
    ranks, microbatches, is_v = options.ranks, options.microbatches, options.schedule == "dualpipe_v"
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    on_cuda = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    device = torch.device("cuda", local_rank) if on_cuda else torch.device("cpu")
    if on_cuda:
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if on_cuda else "gloo", init_method=group, rank=rank, world_size=ranks)

    # The pipeline: two parameter copies on each rank. Both ends of the model are on one rank, and share the embedding.
    num_blocks, num_stages = 2 * ranks, 2 * ranks if is_v else ranks
    set_p2p_tensor_shapes([(ROWS, CONTEXT, WIDTH)])
    set_p2p_tensor_dtype(torch.float32)
    copies = [stage.to(device) for stage in build([rank, num_stages - 1 - rank], num_stages, num_blocks, options.seed)]
    if is_v:
        pipeline: DualPipe | DualPipeV = DualPipeV(copies, split_weight_grads=True)
    else:
        pipeline = DualPipe(copies, split_weight_grads=True, reduce_gradients=True)
    optimizer = torch.optim.Adam(pipeline.parameters(), lr=LEARNING_RATE)

    def criterion(logits: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        return loss_of(logits, following) / microbatches  # gradients are summed over micro-batches

    whole = Whole(num_blocks, options.seed) if rank == 0 and options.compare else None
    text = torch.frombuffer(bytearray(options.text.read_bytes()), dtype=torch.uint8).long()
    ends, worst = Ends(is_v, rank), 0.0
    if rank == 0:
        size = sum(one.numel() for stage in build([0, 1], 2, num_blocks, 0) for one in stage.parameters())
        print(f"{num_blocks} blocks, {size} parameters, in {num_stages} stages; {options.text.name}, {len(text)} bytes")
        print(
            f"{options.schedule}, {ranks} ranks on {device.type}, {microbatches} micro-batches of {ROWS} x {CONTEXT}\n"
        )
    for step in range(options.steps):
        bytes_, following = batch(text, microbatches, 1000 * options.seed + step)
        is_final = step == options.steps - 1
        if is_final:
            dist.barrier()  # each timeline counts from the start of its rank's step
        optimizer.zero_grad()
        loss, _, *timeline = pipeline.step(
            ends.inputs_of(bytes_).to(device),
            num_chunks=microbatches,
            criterion=criterion,
            labels=[ends.labels_of(following).to(device)],
            return_timeline=is_final,
        )
        optimizer.step()
        mean = sum_over_ranks(loss, device)
        if rank == 0:
            line = f"  step {step:4}   loss {mean:.6f}"
            if whole is not None:
                other = whole.step(bytes_, following, microbatches)
                worst = max(worst, abs(mean - other))
                line += f"   in one piece {other:.6f}"
            if step % max(1, options.steps // 10) == 0 or is_final:
                print(line, flush=True)
    show(timeline[0], rank, options)
    dist.destroy_process_group()
    if worst > TOLERANCE:
        sys.exit(f"the losses differ by {worst:.2g}")


class Whole:
    """The same model in one piece, on the host."""

    def __init__(self, num_blocks: int, seed: int) -> None:
        self.model = nn.Sequential(*build([0, 1], 2, num_blocks, seed))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)

    def step(self, bytes_: torch.Tensor, following: torch.Tensor, microbatches: int) -> float:
        """The mean loss before the step."""
        self.optimizer.zero_grad()
        total = 0.0
        for one, next_ in zip(bytes_.chunk(microbatches), following.chunk(microbatches)):
            loss = loss_of(self.model(one), next_) / microbatches
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        return total


def batch(text: torch.Tensor, microbatches: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[microbatches * ROWS, CONTEXT] bytes from anywhere in the text, and those that follow; the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - CONTEXT, (microbatches * ROWS, 1), generator=generator)
    windows = text[starts + torch.arange(CONTEXT + 1)]
    return windows[:, :-1], windows[:, 1:]


def sum_over_ranks(loss: torch.Tensor | None, device: torch.device) -> float:
    """Of all micro-batches, wherever they left the pipeline."""
    total = torch.zeros((), device=device) if loss is None else loss.sum()
    dist.all_reduce(total)
    return total.item()


def show(timeline: Any, rank: int, options: argparse.Namespace) -> None:
    """Draws the last step of all ranks, on the first."""
    spans: list[Any] = [None] * options.ranks
    dist.all_gather_object(spans, timeline.spans()[timeline.spans()["rank"] == rank])
    if rank != 0:
        return
    makespan = picture.makespan_of(spans)
    busy = " ".join(f"{(own['end'] - own['start']).sum() / makespan:.0%}" for own in spans)
    print(f"\nThe last step, {1e3 * makespan:.1f} ms; ranks were busy for {busy} of it")
    print(picture.as_text(spans))
    if options.svg is not None:
        picture.as_svg(spans, options.svg)


if __name__ == "__main__":
    main()
