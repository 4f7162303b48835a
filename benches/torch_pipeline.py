"""What a torch pipeline costs beside the computing: time of a step with modules that do nothing, per instruction.

    python benches/torch_pipeline.py [--peer DIR] [--steps 30] [--rounds 5]

Two ranks, DualPipeV and DualPipe, stages that hand on what they get (and have one parameter). `host`: messages go
nowhere, so that only Python, autograd and the executor are left, of which the thread's CPU time is taken, the mean of
both ranks. `gloo`: they go, and the step's time is taken. `--peer DIR`: a checkout of DeepSeek's DualPipe, measured in
turns with ours, in processes of its own; it is told that its device is the CPU. Needs torch and the package.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES = list(itertools.product(("DualPipeV", "DualPipe"), (1, 2**18), (20, 64)))
"""Class, elements of a message (4 bytes each), micro-batches."""


class Done:
    """A message that has gone nowhere."""

    def wait(self, *_: Any) -> bool:
        return True


def rank_main(rank: int, store: str, is_peer: bool, steps: int) -> None:
    """Both ways of every case on one rank, which prints them."""
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", store=distributed.FileStore(store, 2), rank=rank, world_size=2)
    if is_peer:
        torch.cuda.current_device = lambda: "cpu"  # it asks for the device of the modules' parameters
    import dualpipe

    if is_peer:
        from dualpipe import comm

        comm.build_from_tensor_shapes = lambda: [
            torch.empty(shape, dtype=comm.TENSOR_DTYPE, requires_grad=True) for shape in comm.TENSOR_SHAPES
        ]

    class HandOn(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parameter = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Same.apply(x, self.parameter)

    class Same(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
            return x.detach()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> Any:
            return grad, None

    instructions = {20: {"DualPipeV": 83, "DualPipe": 41}, 64: {"DualPipeV": 259, "DualPipe": 129}}
    results = []
    for kind, size, microbatches in CASES:
        dualpipe.set_p2p_tensor_shapes([(1, size)])
        dualpipe.set_p2p_tensor_dtype(torch.float32)
        for way in ("gloo", "host"):
            model = getattr(dualpipe, kind)([HandOn(), HandOn()])
            x = torch.zeros(microbatches if kind == "DualPipeV" else microbatches // 2, size)
            step = {
                "num_chunks": microbatches,
                "criterion": lambda y: y[0, 0].clone(),
                "labels": [],
            }
            restore = None
            if way == "host":
                restore = send_nowhere(model, x, step, is_peer)
            times = []
            for k in range(steps + 5):
                distributed.barrier()
                clock = time.perf_counter if way == "gloo" else time.thread_time
                start = clock()
                model.step(x, **step)
                if k >= 5:
                    times.append(clock() - start)
            if restore is not None:
                restore()
            count = instructions[microbatches][kind]
            results.append([kind, 4 * size, microbatches, way, min(times) / count, statistics.median(times) / count])
    print(json.dumps(results), flush=True)
    distributed.barrier()
    os._exit(0)


def send_nowhere(model: Any, x: Any, step: dict[str, Any], is_peer: bool) -> Any:
    """From now on what the model sends is not sent; gives what undoes it."""
    from torch import distributed

    if is_peer:
        original = distributed.batch_isend_irecv
        distributed.batch_isend_irecv = lambda ops: [Done() for _ in ops]

        def restore() -> None:
            distributed.batch_isend_irecv = original

        return restore
    model.step(x, **step)
    ends = [ready.engine._executor._transport for ready in model._ready.values()]
    starts = [(end, end._start_send, end._start_receive) for end in ends]
    for end in ends:
        end._start_send = end._start_receive = lambda *_: Done()

    def restore_ours() -> None:
        for end, *both in starts:
            end._start_send, end._start_receive = both

    return restore_ours


def measure(is_peer: bool, peer: str | None, steps: int) -> list[Any]:
    """One run of all cases on two processes."""
    environment = dict(os.environ)
    if is_peer:
        environment["PYTHONPATH"] = str(peer)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--store", str(Path(folder, "store")), "--steps", str(steps)]
        command += ["--is-peer"] if is_peer else []
        ranks = [
            subprocess.Popen([*command, "--rank", str(rank)], env=environment, stdout=subprocess.PIPE, cwd=folder)
            for rank in range(2)
        ]
        texts = [one.communicate()[0] for one in ranks]
        if any(one.returncode for one in ranks):
            raise SystemExit("a rank has failed")
        # The mean of the two ranks: one computes losses, the other hands on from stage to stage.
        pairs = zip(*map(json.loads, texts))
        return [[*one[:4], (one[4] + other[4]) / 2, (one[5] + other[5]) / 2] for one, other in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a checkout of DeepSeek's DualPipe")
    parser.add_argument("--steps", type=int, default=30, help="steps measured in a run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, in turns")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    parser.add_argument("--is-peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        return rank_main(options.rank, options.store, options.is_peer, options.steps)
    sides = [False, True] if options.peer else [False]
    peer = str(Path(options.peer).resolve()) if options.peer else None
    best: dict[tuple[Any, ...], tuple[float, float]] = {}
    for round_ in range(options.rounds):
        for is_peer in sides:
            for *case, fastest, median in measure(is_peer, peer, options.steps):
                key = (is_peer, *case)
                old = best.get(key, (float("inf"), float("inf")))
                best[key] = min(old[0], fastest), min(old[1], median)
        print(f"round {round_ + 1} of {options.rounds}", file=sys.stderr)
    heads = ["microseconds per instruction", "messages", "fastest step", "median step"]
    heads += ["DeepSeek's", "ratio"] if peer else []
    print_row(heads)
    print_row(["---"] * len(heads))
    for kind, size, microbatches in CASES:
        for way in ("host", "gloo"):
            fastest, median = best[False, kind, 4 * size, microbatches, way]
            row = [f"{kind}, {microbatches} micro-batches of {4 * size} bytes", way]
            row += [f"{1e6 * fastest:.1f}", f"{1e6 * median:.1f}"]
            if peer:
                theirs = best[True, kind, 4 * size, microbatches, way]
                row.append(f"{1e6 * theirs[0]:.1f}, {1e6 * theirs[1]:.1f}")
                row.append(f"{fastest / theirs[0]:.2f}, {median / theirs[1]:.2f}")
            print_row(row)


def print_row(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
