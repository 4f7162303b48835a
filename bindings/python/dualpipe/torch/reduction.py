"""The gradients of a stage's two parameter copies, summed inside a step."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..errors import Error, PeerFailed, Timeout
from .transport import Link

_TAG = 2**30 + 1
"""Of a message of gradients, with its stage: above the transport's."""


class PairReduction:
    """Sums the gradients of a rank's copies with those of the same stages in the other direction, which one other rank
    has. A sum is under way while the step goes on; both ranks get the same bits.

    ``copies``: the rank's modules by copy, ``stages`` their stages. A parameter that both copies have (tied embeddings
    at the ends of the model) is summed once, when both are final.
    """

    def __init__(
        self,
        copies: Sequence[nn.Module],
        stages: Sequence[int],
        group: dist.ProcessGroup,
        ranks: Sequence[int],
        timeout: float,
    ) -> None:
        self._group, self._ranks, self._stages, self._timeout = group, list(ranks), list(stages), timeout
        self._link: Link | None = None
        both = {id(one) for one in copies[0].parameters()} & {id(one) for one in copies[1].parameters()}
        self._own = [[one for one in _trained(copy) if id(one) not in both] for copy in copies]
        # The other rank has the copies the other way round: the order is that of the lower stage's module.
        lower = min(range(2), key=lambda copy: stages[copy])
        self._both = [one for one in _trained(copies[lower]) if id(one) in both]
        self._final: list[int] = []
        self._pending: list[tuple[list[nn.Parameter], torch.Tensor, torch.Tensor, list[Any], int]] = []

    def start(self, copy: int, peer: int) -> None:
        """The gradients of ``copy`` are final; pipeline rank ``peer`` has its twin."""
        self._final.append(copy)
        self._exchange(self._own[copy], peer, _TAG + self._stages[copy])
        if len(self._final) == 2:
            self._exchange(self._both, peer, _TAG - 1)

    def begin(self, link: Link | None) -> None:
        """Before a step, whose messages go by ``link``; on a device None. The step before may have failed."""
        self._link = link
        self._pending, self._final = [], []

    def finish(self) -> None:
        """Waits for the sums. Raises :class:`~dualpipe.errors.Timeout`, :class:`~dualpipe.errors.PeerFailed`."""
        pending, self._pending = self._pending, []
        for parameters, mine, theirs, works, peer in pending:
            for work in works:
                self._wait(work, peer)
            _unpack(parameters, mine + theirs)

    def _exchange(self, parameters: list[nn.Parameter], peer: int, tag: int) -> None:
        for alike in _by_dtype(parameters):
            mine = torch.cat([_gradient(one).reshape(-1) for one in alike])
            theirs = torch.empty_like(mine)
            if self._link is not None:
                where = self._ranks[peer], tag
                works = [self._link.gloo.send([mine], *where), self._link.gloo.recv([theirs], *where)]
            else:
                rank = dist.get_global_rank(self._group, self._ranks[peer])
                ops = [
                    dist.P2POp(dist.isend, mine, rank, self._group),
                    dist.P2POp(dist.irecv, theirs, rank, self._group),
                ]
                works = dist.batch_isend_irecv(ops)
            self._pending.append((alike, mine, theirs, works, peer))

    def _wait(self, work: Any, peer: int) -> None:
        link = self._link
        if link is None:
            work.wait()
            return
        try:
            work.wait(datetime.timedelta(seconds=self._timeout))
        except RuntimeError as error:
            kind: type[Error]
            what = f"the gradients of a stage's other copy, from rank {peer}"
            if "imed out" in str(error):
                kind, text = Timeout, f"waited {self._timeout:g} s for {what}"
            else:
                told = link.told()
                why = f"rank {told[0]} failed: {told[1]}" if told is not None else str(error)
                kind, text = PeerFailed, f"stopped while this rank waited for {what}: {why}"
            link.break_off(())
            raise kind(text) from error


def _trained(module: nn.Module) -> Iterable[nn.Parameter]:
    return (one for one in module.parameters() if one.requires_grad)


def _by_dtype(parameters: Sequence[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    groups: dict[torch.dtype, list[nn.Parameter]] = {}
    for one in parameters:
        groups.setdefault(one.dtype, []).append(one)
    return groups.values()


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    """A parameter's gradient, or this rank's shard of it; zeros where no micro-batch has made one."""
    grad: Any = parameter.grad
    if grad is None:
        grad = parameter.grad = torch.zeros_like(parameter)
    shard: torch.Tensor = grad.to_local() if hasattr(grad, "to_local") else grad
    return shard


def _unpack(parameters: Sequence[nn.Parameter], sums: torch.Tensor) -> None:
    at = 0
    for one in parameters:
        grad = _gradient(one)
        grad.copy_(sums[at : at + grad.numel()].view_as(grad))
        at += grad.numel()
