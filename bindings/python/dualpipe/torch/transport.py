"""torch.distributed as an executor's transport: tensors go by gloo from host to host."""

from __future__ import annotations

import datetime
import hashlib
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from ..errors import InvalidArgument, Timeout
from ..transport import Transfer, Transport


class Link:
    """The gloo connections of a pipeline, between the ranks of ``group``: its own, so that its messages mix with nobody's
    and so that a failure can end them without ending the caller's group.

    All ranks of ``group`` create one at the same point of their program. Gloo cannot give up a single transfer: a rank
    that fails closes its connections, which the others hear at once, and the link is then of no more use.
    """

    def __init__(self, group: dist.ProcessGroup, incarnation: int) -> None:
        ranks = dist.get_process_group_ranks(group)
        self.rank, self.size = dist.get_rank(group), len(ranks)
        self.is_broken = False
        # Not by new_group: torch numbers groups, and a group that only some ranks make puts the numbers out of step.
        name = f"dualpipe/{'-'.join(map(str, ranks))}/{incarnation}"
        self._store = PrefixStore(name, dist.distributed_c10d._get_default_store())
        self.gloo: Any = dist.ProcessGroupGloo(self._store, self.rank, self.size, _CONNECT_MAX)
        self._kept: list[Any] = []

    def agree(self, what: str, timeout: float) -> None:
        """Every rank says the same, or InvalidArgument. All ranks of the link call it."""
        mine = torch.frombuffer(bytearray(hashlib.sha256(what.encode()).digest()), dtype=torch.uint8)
        of_all = [torch.empty_like(mine) for _ in range(self.size)]
        try:
            self.gloo.allgather([of_all], [mine]).wait(datetime.timedelta(seconds=timeout))
        except RuntimeError as error:
            self.break_off(())
            raise Timeout(f"not all ranks were there after {timeout:g} s for: {what}") from error
        others = [rank for rank, digest in enumerate(of_all) if not torch.equal(digest, mine)]
        if others:
            raise InvalidArgument(
                f"ranks {others} of the group want another step than rank {self.rank}, which has {what}"
            )

    def break_off(self, in_flight: Iterable[Any]) -> None:
        """Closes the connections to all ranks. Afterwards no memory of a transfer is touched, as far as gloo goes; to be
        safe ``in_flight`` is kept for good."""
        self._kept.extend(in_flight)
        if self.is_broken:
            return
        self.is_broken = True
        if self.size == 1:
            return
        try:
            # A wait that runs out is what makes gloo close all connections of a group.
            peer = (self.rank + 1) % self.size
            self.gloo.recv([torch.empty(1)], peer, _NO_SENDER).wait(datetime.timedelta(milliseconds=1))
        except RuntimeError:
            pass

    def tell(self, rank: int, text: str) -> None:
        """Leaves a failed rank's words for the others; the first ones count."""
        if not self._store.check(["failed"]):
            self._store.set("failed", f"{rank} {text}")

    def told(self) -> tuple[int, str] | None:
        """Such words, if there are any."""
        if not self._store.check(["failed"]):
            return None
        rank, text = self._store.get("failed").decode("utf-8", "replace").split(" ", 1)
        return int(rank), text


_CONNECT_MAX = datetime.timedelta(seconds=60)
"""How long ranks may take to come."""
_NO_SENDER = 2**31 - 1
"""A tag that nobody sends with."""

_links: dict[tuple[int, ...], tuple[Any, int, Link]] = {}


def link_of(group: dist.ProcessGroup) -> Link:
    """The link of these ranks; a new one if there was none or it is broken, which all ranks then know.

    Pipelines of the same ranks share it, so they take turns, in the same order on every rank.
    """
    ranks = tuple(dist.get_process_group_ranks(group))
    world, incarnation, link = _links.get(ranks, (None, 0, None))
    if link is None or link.is_broken or world is not dist.group.WORLD:
        link = Link(group, incarnation)
        _links[ranks] = dist.group.WORLD, incarnation + 1, link
    return link


class _Request:
    """A transfer that has been started, with the tensor that keeps its memory described."""

    __slots__ = ("error", "is_done", "num_bytes", "tensor", "work")

    def __init__(self, work: Any, tensor: Any, num_bytes: int) -> None:
        self.work, self.tensor, self.num_bytes = work, tensor, num_bytes
        self.is_done = work is None
        self.error: str | None = None


class ProcessGroupTransport(Transport):
    """One pipeline rank's end of a :class:`Link`, for one executor on the host.

    ``link_ranks``: by pipeline rank, the rank in the link. ``has_gradient``: for each tensor of a boundary whether
    gradients of it travel; those of others are absent everywhere. Every rank must say the same.

    Gloo can only wait for a transfer, not ask whether it has ended; so :meth:`test` remembers what it was asked for and
    :meth:`wait` waits for that, as long as the executor lets it.
    """

    def __init__(self, link: Link, link_ranks: Sequence[int], has_gradient: Sequence[bool]) -> None:
        if sorted(link_ranks) != list(range(link.size)):
            raise InvalidArgument(f"link_ranks is {list(link_ranks)}, must be a permutation of 0 to {link.size - 1}")
        self._link, self._gloo = link, link.gloo
        self._link_ranks, self._has_gradient = list(link_ranks), list(has_gradient)
        self._in_flight: set[_Request] = set()
        self._awaited: _Request | None = None
        self._may_be_told = False

    def send(self, transfer: Transfer) -> _Request:
        return self._post(transfer, self._gloo.send)

    def receive(self, transfer: Transfer) -> _Request:
        return self._post(transfer, self._gloo.recv)

    def test(self, request: _Request) -> int | None:
        if request.is_done:
            self._in_flight.discard(request)
            return request.num_bytes
        if request.error is not None:
            raise _error(request.error)
        self._awaited = request
        return None

    def wait(self, timeout: float) -> None:
        request = self._awaited
        if request is None:
            return super().wait(timeout)
        # At least a millisecond: less is none to gloo, and none is for ever.
        limit = datetime.timedelta(seconds=max(timeout, 1e-3))
        start = time.monotonic()
        try:
            request.work.wait(limit)
            request.is_done = True
        except RuntimeError as error:
            self._may_be_told = True
            if time.monotonic() - start < timeout:
                request.error = str(error)
            else:  # the executor looks at its clock and says what it has waited for
                self._awaited = None
                self._link.break_off(self._in_flight)

    def withdraw(self) -> None:
        if self._in_flight:
            self._link.break_off(self._in_flight)
            self._in_flight.clear()

    def abort(self, rank: int, text: str) -> None:
        self._link.tell(rank, text)
        self._link.break_off(self._in_flight)

    def poll_abort(self) -> tuple[int, str] | None:
        # Who fails closes its connections, so nobody is told before a transfer has failed.
        return self._link.told() if self._may_be_told else None

    def _post(self, transfer: Transfer, start: Any) -> _Request:
        raw = transfer._struct
        num_bytes = raw.num_bytes
        channel = raw.channel
        if channel & 1 == _GRADIENT and not self._has_gradient[raw.tensor]:
            return _Request(None, None, 0)
        if num_bytes == 0:
            return _Request(None, None, 0)
        tensor = torch.frombuffer(transfer.data, dtype=torch.uint8)
        try:
            # Gloo keeps order for each pair of ranks and tag, as the executor does for each channel. The size is in the
            # tag, too: gloo ends the process when another size comes than was expected.
            work = start([tensor], self._link_ranks[raw.peer], channel + 4 * (num_bytes % 2**28))
        except RuntimeError as error:
            self._may_be_told = True
            raise _error(str(error)) from error
        request = _Request(work, tensor, num_bytes)
        self._in_flight.add(request)
        return request


_GRADIENT = 1
"""The lowest bit of a channel."""


def _error(text: str) -> Exception:
    """What a gloo failure means: the peer is not there any more, or something else, in gloo's words."""
    is_gone = any(word in text for word in ("onnection", "pair closure", "eset by peer"))
    return ConnectionError(text) if is_gone else RuntimeError(text)
