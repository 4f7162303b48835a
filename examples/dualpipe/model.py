"""A small language model of bytes, transformer blocks with experts, cut into stages."""

from __future__ import annotations

from typing import Any

import torch
from dualpipe.utils import run_backward
from torch import nn
from torch.nn import functional

BYTES, CONTEXT, WIDTH, HEADS, HIDDEN, EXPERTS, CHOSEN = 256, 32, 64, 4, 64, 4, 2


class Attention(nn.Module):
    """Of each byte to those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, context, WIDTH] to the same."""
        q, k, v = self.project(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Expert(nn.Sequential):
    """[rows, WIDTH] to the same."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, HIDDEN, bias=False), nn.GELU(), nn.Linear(HIDDEN, WIDTH, bias=False))


class Experts(nn.Module):
    """One for every byte, and CHOSEN of EXPERTS for each."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.shared = nn.Linear(WIDTH, EXPERTS, bias=False), Expert()
        self.routed = nn.ModuleList(Expert() for _ in range(EXPERTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, WIDTH] to the same."""
        weights, chosen = self.router(x).softmax(-1).topk(CHOSEN)
        y = self.shared(x)
        for k, expert in enumerate(self.routed):
            row, choice = (chosen == k).nonzero(as_tuple=True)
            y = y.index_add(0, row, expert(x[row]) * weights[row, choice].unsqueeze(-1))
        return y


class Block(nn.Module):
    """[batch, context, WIDTH] to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.norm2, self.experts = nn.LayerNorm(WIDTH), Experts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.experts(self.norm2(x).flatten(0, 1)).view_as(x)


class Embedding(nn.Module):
    """The table that both ends of the model use, by one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(BYTES, WIDTH) / WIDTH**0.5)


class Stage(nn.Module):
    """One stage. The first has the positions, the last the final norm, both the embedding."""

    def __init__(self, blocks: list[Block], embedding: Embedding | None, is_first: bool, is_last: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.embedding = embedding
        self.positions = nn.Parameter(torch.zeros(CONTEXT, WIDTH)) if is_first else None
        self.norm = nn.LayerNorm(WIDTH) if is_last else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, CONTEXT] bytes, int64, at the first stage; [batch, CONTEXT, WIDTH] between stages; [batch, CONTEXT,
        BYTES] logits from the last."""
        if self.positions is not None and self.embedding is not None:
            x = self.embedding.table[x] + self.positions
        x = self.blocks(x)
        if self.norm is not None and self.embedding is not None:
            x = functional.linear(self.norm(x), self.embedding.table)
        return x

    @classmethod
    def overlapped_forward_backward(
        cls,
        module0: Stage,
        inputs0: list[torch.Tensor],
        criterion0: Any,
        labels0: list[torch.Tensor],
        module1: Stage,
        loss1: torch.Tensor | None,
        outputs1: list[torch.Tensor],
        output_grads1: list[torch.Tensor],
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """F&B: the forward of module0 and the backward of module1. Here one after the other; where experts are on other
        GPUs, this is where the all-to-all of either goes under the computation of the other."""
        outputs0 = [module0(*inputs0)]
        loss0 = criterion0(*outputs0, *labels0) if criterion0 is not None else None
        if loss1 is not None:
            loss1.backward()
            loss1.detach_()
        else:
            run_backward(outputs1, output_grads1)
        return outputs0, loss0


def build(stages: list[int], num_stages: int, num_blocks: int, seed: int) -> list[Stage]:
    """Some stages of the model. What they begin with depends on the seed alone, not on who builds which."""
    per_stage = num_blocks // num_stages
    torch.manual_seed(seed)
    embedding = Embedding()
    built = []
    for stage in stages:
        blocks = []
        for block in range(stage * per_stage, (stage + 1) * per_stage):
            torch.manual_seed(1000 * (seed + 1) + block)
            blocks.append(Block())
        is_first, is_last = stage == 0, stage == num_stages - 1
        built.append(Stage(blocks, embedding if is_first or is_last else None, is_first, is_last))
    return built


def loss_of(logits: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """The mean over a micro-batch, for logits [batch, CONTEXT, BYTES] and the bytes that follow [batch, CONTEXT]."""
    return functional.cross_entropy(logits.flatten(0, 1), following.flatten())
