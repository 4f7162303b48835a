"""Stages for torch's own pipelining, what runs them, and what they give without a pipeline."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from dualpipe import Schedule
from dualpipe.schedule import LOOPED
from dualpipe.torch.schedule_csv import stages_of

WIDTH = 3


def of(which: str | tuple[int, ...], ranks_of_pipeline: int, microbatches: int) -> Schedule:
    """A published schedule, or one of a random order."""
    if isinstance(which, tuple):
        return shuffled(list(which), microbatches, seed=microbatches)
    return Schedule(which, ranks_of_pipeline, microbatches, stages_per_rank=2 if which in LOOPED else 0)


def shuffled(placement: list[int], microbatches: int, seed: int) -> Schedule:
    """Any order that can run, with halves of backwards and pairs in it; the last stage in torch's order."""
    rng, last = random.Random(seed), len(placement) - 1
    done: set[tuple[str, int, int]] = set()
    orders: list[list[tuple[Any, ...]]] = [[] for _ in range(1 + max(placement))]

    def ready() -> Iterator[tuple[str, int, int]]:
        for stage in range(last + 1):
            for i in range(microbatches):
                started = ("F", stage, i) in done
                in_order = stage < last or i == 0 or ("F", stage, i - 1) in done
                if not started and in_order and (stage == 0 or ("F", stage - 1, i) in done):
                    yield "F", stage, i
                if started and ("I", stage, i) not in done and (stage == last or ("I", stage + 1, i) in done):
                    yield "B", stage, i
                    yield "I", stage, i
                if ("I", stage, i) in done and ("W", stage, i) not in done:
                    yield "W", stage, i

    while now := list(ready()):
        kind, stage, i = rng.choice(now)
        order = orders[placement[stage]]
        with_it = [two for two in now if two[0] == "B" and placement[two[1]] == placement[stage]]
        if kind == "F" and with_it and rng.random() < 0.6:
            backward = rng.choice(with_it)
            order.append(("FB", (0, stage), i, (0, backward[1]), backward[2]))
            done |= {("F", stage, i), ("I", *backward[1:]), ("W", *backward[1:])}
        else:
            order.append((kind, (0, stage), i))
            done |= {("I", stage, i), ("W", stage, i)} if kind == "B" else {(kind, stage, i)}
    return Schedule.from_orders(orders, placement=placement, microbatches=microbatches, name="shuffled")


class Layer(torch.nn.Module):
    """A stage of two tensors, the second of which travels along."""

    def __init__(self, stage: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(stage)
        self.weight = torch.nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64))
        self.bias = torch.nn.Parameter(torch.randn(WIDTH, generator=generator, dtype=torch.float64))

    def forward(self, x: Any, carried: Any) -> tuple[Any, Any]:
        return torch.tanh(x @ self.weight + self.bias), carried + x


def loss_of(output: Any, target: Any) -> Any:
    return torch.nn.functional.mse_loss(output[0] + output[1], target)


def data(microbatches: int) -> tuple[Any, Any, Any]:
    generator = torch.Generator().manual_seed(17)
    return tuple(torch.randn(2 * microbatches, WIDTH, generator=generator, dtype=torch.float64) for _ in range(3))


def serial(stages: int, microbatches: int, scale: float) -> tuple[list[float], list[Any], list[Any]]:
    """The losses, outputs, and the gradients of each stage, each micro-batch through all stages after the other."""
    layers = [Layer(stage) for stage in range(stages)]
    losses, outputs = [], []
    for *x, target in zip(*(tensor.chunk(microbatches) for tensor in data(microbatches))):
        for layer in layers:
            x = layer(*x)
        loss = loss_of(x, target)
        (loss / scale).backward()
        losses.append(loss.item())
        outputs.append([tensor.detach() for tensor in x])
    return losses, [torch.cat(parts) for parts in zip(*outputs)], [grads_of(layer) for layer in layers]


def grads_of(layer: Any) -> list[Any]:
    return [parameter.grad.clone() for parameter in layer.parameters()]


def build(schedule: Schedule, rank: int, layer: type = Layer) -> list[Any]:
    from torch.distributed.pipelining import PipelineStage

    device = torch.device("cpu")
    stages = [PipelineStage(layer(stage), stage, schedule.stages, device) for stage in stages_of(schedule, rank)]
    for stage in stages:
        if hasattr(stage, "_get_init_p2p_neighbors_ops"):
            stage._get_init_p2p_neighbors_ops = list  # none: up to torch 2.14 it sends to itself, which gloo cannot
    return stages


def torch_runtime(schedule: Schedule, stages: list[Any]) -> Any:
    """The runtime that torch itself has."""
    from torch.distributed.pipelining.schedules import PipelineScheduleMulti, _PipelineScheduleRuntime

    options = {
        "stage_index_to_group_rank": {stage: schedule.rank_of(stage) for stage in range(schedule.stages)},  # torch 2.6
        "scale_grads": False,  # up to torch 2.9 those of a stage that ends with a W are not scaled
    }
    known = inspect.signature(PipelineScheduleMulti.__init__).parameters
    taken = {name: value for name, value in options.items() if name in known}
    return _PipelineScheduleRuntime(stages, schedule.microbatches, loss_of, **taken)


def step(schedule: Schedule, runtime: Any, how: str = "step") -> dict[str, Any]:
    """What a step gives on this rank."""
    *x, target = data(schedule.microbatches)
    stages = {stage.stage_index: stage for stage in runtime._stages}
    losses: list[Any] = []
    inputs, targets = x if 0 in stages else (), target if schedule.stages - 1 in stages else None
    for stage in stages.values():
        stage.submod.zero_grad()
    output = getattr(runtime, how)(*inputs, target=targets, losses=losses)
    return {
        "losses": [loss.item() for loss in losses],
        "output": [tensor.detach() for tensor in output] if output is not None else None,
        "grads": {index: grads_of(stage.submod) for index, stage in stages.items()} if how == "step" else {},
    }


def check_against_serial(schedule: Schedule, results: list[dict[str, Any]], scale_grads: bool = True) -> None:
    scale = schedule.microbatches if scale_grads else 1
    losses, outputs, grads = serial(schedule.stages, schedule.microbatches, scale)
    last = schedule.rank_of(schedule.stages - 1)
    close = {"rtol": 1e-12, "atol": 1e-12}
    for rank, result in enumerate(results):
        assert result["losses"] == pytest.approx(losses if rank == last else [], rel=1e-12)
        if rank == last:
            torch.testing.assert_close(result["output"], outputs, **close)
        else:
            assert result["output"] is None
        for stage, grad in result["grads"].items():
            assert schedule.rank_of(stage) == rank
            torch.testing.assert_close(grad, grads[stage], **close)
