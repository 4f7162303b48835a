"""Models for the tests of torch pipelines, and what they give without a pipeline."""

from __future__ import annotations

from typing import Any

import torch
from dualpipe.utils import WeightGradStore, run_backward
from torch import nn
from torch.nn import functional

WIDTH, BATCH = 6, 2


class PutOff(torch.autograd.Function):
    """A product whose weight gradient waits in the WeightGradStore, as models for DeepSeek's DualPipe have it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors

        def add() -> None:
            of_weight = grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
            weight.grad = of_weight if weight.grad is None else weight.grad + of_weight

        if WeightGradStore.enabled:
            WeightGradStore.put(add)
        else:
            add()
        return grad @ weight, None


class Stage(nn.Module):
    """One stage of a model for DeepSeek's DualPipe. ``seed`` says which."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed)) / 2)
        self.shift = nn.Parameter(torch.full((WIDTH,), seed / 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(PutOff.apply(x, self.weight) + self.shift) * 1.5


class OverlappedStage(Stage):
    """One that runs F&B by itself, and counts how often."""

    pairs = 0

    @classmethod
    def overlapped_forward_backward(
        cls, module0, inputs0, criterion0, labels0, module1, loss1, outputs1, output_grads1
    ) -> Any:
        cls.pairs += 1
        if loss1 is not None:
            loss1.backward()
            loss1.detach_()
        else:
            run_backward(outputs1, output_grads1)
        outputs0 = [module0(*inputs0)]
        return outputs0, None if criterion0 is None else criterion0(*outputs0, *labels0)


class Plain(nn.Module):
    """A stage of torch's own modules."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.norm, self.second = (
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.LayerNorm(2 * WIDTH),
            nn.Linear(2 * WIDTH, WIDTH),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(functional.gelu(self.norm(self.first(x))))


def criterion(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return functional.mse_loss(output, label).clone()


def batch(microbatches: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels [microbatches * BATCH, 3, WIDTH]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (microbatches * BATCH, 3, WIDTH)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def serial(stages: list[nn.Module], x: torch.Tensor, label: torch.Tensor, microbatches: int) -> Any:
    """Losses and outputs of the stages one after another; their gradients are added."""
    losses, outputs = [], []
    for one, of_one in zip(x.chunk(microbatches), label.chunk(microbatches)):
        for stage in stages:
            one = stage(one)
        loss = criterion(one, of_one)
        loss.backward()
        losses.append(loss.detach())
        outputs.append(one.detach())
    return torch.stack(losses), torch.cat(outputs)


def grads(module: nn.Module) -> dict[str, torch.Tensor]:
    """The gradients by name."""
    return {name: one.grad for name, one in module.named_parameters()}


def assert_same_grads(module: nn.Module, reference: nn.Module, exact: bool = True) -> None:
    """Bit for bit, or within rounding."""
    of_module, of_reference = grads(module), grads(reference)
    assert of_module.keys() == of_reference.keys()
    for name, got in of_module.items():
        want = of_reference[name]
        assert got is not None and want is not None, name
        if exact:
            assert torch.equal(got, want), f"{name}: {(got - want).abs().max()}"
        else:
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
