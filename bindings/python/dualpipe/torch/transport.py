"""torch.distributed as an executor's transport: tensors go by gloo from host to host."""

from __future__ import annotations

import ctypes as c
import datetime
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from ..errors import InvalidArgument, Timeout
from ..transport import _OK, _TIMED_OUT, Transport, TransportEnd


class Link:
    """The gloo connections of a pipeline, between the ranks of ``group``: its own, so that its messages mix with
    nobody's and so that a failure can end them without ending the caller's group.

    All ranks of ``group`` create one at the same point of their program. Gloo cannot give up a single transfer: a rank
    that fails closes its connections, which the others hear at once, and the link is then of no more use.
    """

    def __init__(self, group: dist.ProcessGroup, incarnation: int, timeout: float) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.incarnation = incarnation
        self.is_broken = False
        self._store = _store_of(group, incarnation)
        self._kept: list[Any] = []
        # Not by new_group: torch numbers groups, and a group that only some ranks make puts the numbers out of step.
        limit = datetime.timedelta(seconds=timeout)
        try:
            self.gloo: Any = dist.ProcessGroupGloo(self._store, self.rank, self.size, limit)
        except RuntimeError as error:
            text = f"not all ranks of the pipeline came within {timeout:g} s to connect: {error}"
            self._store.set(_BROKEN, "")
            raise Timeout(text) from error

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
        self._store.set(_BROKEN, "")
        for away in range(1, self.size):
            try:
                # A wait that runs out is what makes gloo close all connections of a group; one to a peer that has
                # closed its end does not run out.
                peer = (self.rank + away) % self.size
                self.gloo.recv([torch.empty(1)], peer, _NO_SENDER).wait(datetime.timedelta(milliseconds=1))
            except RuntimeError as error:
                if "imed out" in str(error):
                    return

    def tell(self, rank: int, text: str) -> None:
        """Leaves a failed rank's words for the others; the first ones count."""
        if not self._store.check([_WORDS]):
            self._store.set(_WORDS, f"{rank} {text}")

    def told(self) -> tuple[int, str] | None:
        """Such words, if there are any."""
        if not self._store.check([_WORDS]):
            return None
        rank, text = self._store.get(_WORDS).decode("utf-8", "replace").split(" ", 1)
        return int(rank), text


_BROKEN, _WORDS = "broken", "failed"
"""Keys of a link's store: that it is of no more use, and what the first rank that failed has to say."""
_NO_SENDER = 2**31 - 1
"""A tag that nobody sends with."""

_links: dict[tuple[int, ...], tuple[Any, Link]] = {}


def link_of(group: dist.ProcessGroup, timeout: float) -> Link:
    """The link of these ranks; a new one, for which all of them have to come within ``timeout`` seconds, if there was
    none or it is broken.

    Pipelines of the same ranks share it, so they take turns, in the same order on every rank. Raises
    :class:`~dualpipe.errors.Timeout`.
    """
    ranks = tuple(dist.get_process_group_ranks(group))
    world, link = _links.get(ranks, (None, None))
    incarnation = 0 if link is None or world is not dist.group.WORLD else link.incarnation
    # One may have been broken by others, or have been tried in vain.
    while _store_of(group, incarnation).check([_BROKEN]):
        incarnation += 1
    if link is None or link.incarnation != incarnation or world is not dist.group.WORLD:
        link = Link(group, incarnation, timeout)
        _links[ranks] = dist.group.WORLD, link
    return link


def _store_of(group: dist.ProcessGroup, incarnation: int) -> PrefixStore:
    """The part of the processes' common store that belongs to one link."""
    ranks = "-".join(map(str, dist.get_process_group_ranks(group)))
    return PrefixStore(f"dualpipe/{ranks}/{incarnation}", dist.distributed_c10d._get_default_store())


class ProcessGroupTransport(Transport):
    """One pipeline rank's end of a :class:`Link`, for one executor on the host.

    ``link_ranks``: by pipeline rank, the rank in the link. ``has_gradient``: for each tensor of a boundary whether
    gradients of it travel; those of others are absent everywhere. Every rank must say the same. ``timeout``: the
    executor's, in seconds. ``tensors``: what the executor's memory has at which address.
    """

    def __init__(
        self,
        link: Link,
        link_ranks: Sequence[int],
        has_gradient: Sequence[bool],
        timeout: float,
        tensors: Mapping[int, torch.Tensor] | None = None,
    ) -> None:
        if sorted(link_ranks) != list(range(link.size)):
            raise InvalidArgument(f"link_ranks is {list(link_ranks)}, must be a permutation of 0 to {link.size - 1}")
        self.link, self.link_ranks, self.has_gradient = link, list(link_ranks), list(has_gradient)
        self.timeout = timeout
        self.tensors: Mapping[int, torch.Tensor] = {} if tensors is None else tensors

    def _end(self) -> ProcessGroupEnd:
        return ProcessGroupEnd(self)


class ProcessGroupEnd(TransportEnd):
    """It as C calls it.

    Gloo can only wait for a transfer, not ask whether it has ended, so a test waits; a rank that fails ends it by
    closing its connections.

    This is called several times for each message, so it does without what :class:`TransportEnd` does for everybody. A
    request is the gloo work and its tensor or, once done, the number of bytes.
    """

    def __init__(self, transport: ProcessGroupTransport) -> None:
        self._link = transport.link
        self._gone: str | None = None
        """Gloo's words for a transfer that failed."""
        self._timeout = datetime.timedelta(seconds=max(transport.timeout, 1e-3))  # less is none to gloo: for ever
        self._start_send, self._start_receive = self._link.gloo.send, self._link.gloo.recv
        words = itertools.count(1)
        self._send = self._posting("_start_send", transport, words)  # type: ignore[method-assign]
        self._receive = self._posting("_start_receive", transport, words)  # type: ignore[method-assign]
        super().__init__(transport)

    def _posting(self, start_name: str, transport: ProcessGroupTransport, words: Iterator[int]) -> Any:
        ranks, has_gradient, tensors = transport.link_ranks, transport.has_gradient, transport.tensors

        def post(_: Any, pointer: Any, request: Any) -> int:
            try:
                transfer = pointer.contents
                channel, num_bytes, data = transfer.channel, transfer.num_bytes, transfer.data
                request[0] = word = next(words)
                if num_bytes == 0 or (channel & 1 == _GRADIENT and not has_gradient[transfer.tensor]):
                    self._requests[word] = 0
                    return _OK
                tensor = tensors.get(data)
                if tensor is None or tensor.nbytes != num_bytes:
                    tensor = torch.frombuffer((c.c_char * num_bytes).from_address(data), dtype=torch.uint8)
                # Gloo keeps order for each pair of ranks and tag, as the executor does for each channel. The size is in
                # the tag, too: gloo ends the process when another size comes than was expected.
                tag = channel + 4 * (num_bytes & 0xFFF_FFFF)
                work = getattr(self, start_name)([tensor], ranks[transfer.peer], tag)
                self._requests[word] = work, tensor, num_bytes
                return _OK
            except RuntimeError as error:
                return self._failed(str(error))
            except BaseException as error:  # noqa: BLE001, the step raises it
                return self._fail(error)

        return post

    def _test(self, _: Any, request: int, done: Any, num_bytes: Any) -> int:
        try:
            entry = self._requests[request]
            if type(entry) is tuple:
                entry[0].wait(self._timeout)
                entry = entry[2]
            del self._requests[request]
            done[0], num_bytes[0] = 1, entry
            return _OK
        except RuntimeError as error:
            return self._failed(str(error))
        except BaseException as error:  # noqa: BLE001, Ctrl-C: the step raises it
            return self._fail(error)

    def _withdraw(self, _: Any) -> None:
        in_flight = self._in_flight()
        if in_flight:
            self._link.break_off(in_flight)
        self._requests.clear()

    def _abort(self, _: Any, rank: int, text: bytes) -> None:
        self._run(lambda: self._link.tell(rank, text.decode("utf-8", "replace")))
        self._link.break_off(self._in_flight())

    def _told(self) -> tuple[int, str] | None:
        # Who fails closes its connections, so nobody is told before a transfer has failed.
        return self._link.told() if self._gone is not None else None

    def _in_flight(self) -> list[Any]:
        return [entry for entry in self._requests.values() if type(entry) is tuple]

    def _failed(self, text: str) -> int:
        """What a gloo failure means: the peer is not there any more, or something else, in gloo's words."""
        self._gone = text
        if "imed out" in text:
            self._link.break_off(self._in_flight())
            return _TIMED_OUT
        is_closed = any(word in text for word in ("onnection", "pair closure", "eset by peer"))
        return self._fail(ConnectionError(text) if is_closed else RuntimeError(text))


_GRADIENT = 1
"""The lowest bit of a channel."""
