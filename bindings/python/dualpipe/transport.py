"""Transports of the caller's: how messages get from rank to rank where the library's own do not reach."""

from __future__ import annotations

import ctypes as c
import time
from typing import Any

from . import _structs as s
from ._library import Callbacks, to_c, words_of

_OK, _AGAIN, _PEER_GONE, _FAILED = 0, 1, 2, 3
_KINDS = {1: "activation", 2: "gradient"}
_WAIT_MAX = 50e-6
"""How long :meth:`Transport.wait` sleeps, if it is not overridden."""


class Transfer:
    """One tensor of one message, to be sent or received."""

    __slots__ = (
        "channel",
        "data",
        "device",
        "direction",
        "kind",
        "microbatch",
        "num_bytes",
        "peer",
        "stage",
        "step",
        "stream",
        "tag",
        "tensor",
        "to_stage",
    )

    peer: int
    """The other rank."""
    channel: int
    """Direction and kind of the message, 0 to 3. Two ranks send and receive in the same order, within a channel and
    over all; a transport may rely on that instead of the tag."""
    tag: int
    """A number of its own for each tensor of each message of each step, below 2^56, the same on both sides."""
    kind: str
    """"activation" or "gradient"."""
    direction: int
    """The direction of the pass that made the message."""
    stage: int
    """The stage that made it."""
    to_stage: int
    """The stage that it goes to."""
    microbatch: int
    """The micro-batch, counted within its direction."""
    tensor: int
    """Which of the message's tensors, from 0."""
    step: int
    """In which step of the executor, modulo 65536."""
    num_bytes: int
    """How many bytes to send, or at most to receive. An absent gradient is sent as 0 bytes, and must arrive as such."""
    data: Any
    """The bytes, a memoryview [num_bytes] of the executor's memory, without a copy, to be read by send and written by
    receive until the transfer has ended or was withdrawn. On a CUDA device the address, an int."""
    stream: int | None
    """On a CUDA device, the stream in whose order the transfer is: send and receive enqueue it there and return, and
    test is never called. None on the host."""
    device: int
    """On a CUDA device, which one."""

    def __init__(self, transfer: s.Transfer) -> None:
        """Not to be called by users: ``transfer`` is the library's, for the time of the callback."""
        message = transfer.message
        self.peer, self.channel, self.tag = transfer.peer, transfer.channel, transfer.tag
        self.kind, self.to_stage = _KINDS[message.kind], message.to_stage
        which = getattr(message, "pass")
        self.direction, self.stage, self.microbatch = which.direction, which.stage, which.microbatch
        self.tensor, self.step, self.num_bytes = transfer.tensor, transfer.step, transfer.num_bytes
        self.stream, self.device = transfer.stream, transfer.device
        if self.stream is not None:
            self.data = transfer.data or 0
        elif self.num_bytes == 0:
            self.data = memoryview(bytearray())
        else:
            self.data = memoryview((c.c_char * self.num_bytes).from_address(transfer.data)).cast("B")

    def __repr__(self) -> str:
        what = f"{self.kind} of micro-batch {self.microbatch} from stage {self.stage} to {self.to_stage}"
        return f"<dualpipe.Transfer {what}, tensor {self.tensor}, {self.num_bytes} bytes, peer {self.peer}>"


class Transport:
    """A transport of the caller's, one rank's end of it, to derive from (MPI, torch.distributed, UCX, anything that
    sends bytes). It is for one executor.

    Its methods are called on the thread that runs the executor's step, one at a time, and by
    :meth:`Executor.close <dualpipe.Executor.close>`. None but :meth:`wait` may wait. They may not call the executor.
    What they raise fails the step, which raises it; a ConnectionError says that the peer is no longer there. On a CUDA
    device :meth:`abort` and :meth:`poll_abort` are also called by the executor's watchdog, on threads of its own, at
    any time.
    """

    def send(self, transfer: Transfer) -> Any:
        """Starts to send. Returns what :meth:`test` gets, anything but None; None if it cannot yet: it is asked
        again."""
        raise NotImplementedError

    def receive(self, transfer: Transfer) -> Any:
        """Posts a receive, likewise."""
        raise NotImplementedError

    def test(self, request: Any) -> int | None:
        """How many bytes were transferred, if the transfer has ended; None if it has not. It is not asked again after
        it has ended."""
        raise NotImplementedError

    def withdraw(self) -> None:
        """Ends all transfers: when it returns, none of their memory is touched any more."""
        raise NotImplementedError

    def wait(self, timeout: float) -> None:
        """Returns when something may have changed, or after ``timeout`` seconds, or for no reason."""
        time.sleep(min(timeout, _WAIT_MAX))

    def poll_abort(self) -> tuple[int, str] | None:
        """What another rank told by :meth:`abort`, its rank and its words, if any did. Without it failing ranks are
        found by the deadline."""
        return None

    def abort(self, rank: int, text: str) -> None:
        """Tells all other ranks that ``rank`` failed, as far as possible. On a CUDA device it also ends what has been
        enqueued and cannot end any more."""

    def close(self) -> None:
        """The executor has been closed: nothing is called any more."""


class TransportEnd(Callbacks):
    """A transport as C calls it, and what it has raised. It lives as long as its executor."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._requests: dict[int, Any] = {}
        self._next = 0
        self._functions = (
            s.PostFunction(lambda _, transfer, request: self._post(transport.send, transfer, request)),
            s.PostFunction(lambda _, transfer, request: self._post(transport.receive, transfer, request)),
            s.TestFunction(self._test),
            s.WaitFunction(lambda _, timeout_ns: self._run(lambda: transport.wait(timeout_ns * 1e-9))),
            s.PollFunction(self._poll_abort),
            s.AbortFunction(self._abort),
            s.DoneFunction(self._withdraw),
            s.ErrorFunction(self._last_error),
            s.DoneFunction(lambda _: self._run(transport.close)),
        )

    def table(self) -> s.Transport:
        """The struct, which C copies; its functions are this object's."""
        return s.Transport(c.sizeof(s.Transport), 0, None, *self._functions)

    def _fail(self, error: BaseException) -> int:
        if isinstance(error, ConnectionError):
            return _PEER_GONE
        self._keep_raised(error)
        return _FAILED

    def _run(self, method: Any) -> None:
        try:
            method()
        except BaseException as error:  # noqa: BLE001, the step raises it
            self._fail(error)

    def _post(self, method: Any, transfer: Any, request: Any) -> int:
        try:
            started = method(Transfer(transfer.contents))
            if started is None:
                return _AGAIN
            self._next += 1
            self._requests[self._next] = started
            request[0] = self._next
            return _OK
        except BaseException as error:  # noqa: BLE001, the step raises it
            return self._fail(error)

    def _test(self, _: Any, request: int, done: Any, num_bytes: Any) -> int:
        try:
            transferred = self._transport.test(self._requests[request])
            done[0] = transferred is not None
            if transferred is not None:
                num_bytes[0] = transferred
                del self._requests[request]
            return _OK
        except BaseException as error:  # noqa: BLE001, the step raises it
            return self._fail(error)

    def _poll_abort(self, _: Any, rank: Any, text: int, capacity: int) -> int:
        try:
            told = self._transport.poll_abort()
            if told is None:
                return 0
            rank[0] = told[0]
            _write(str(told[1]), text, capacity)
            return 1
        except BaseException as error:  # noqa: BLE001, the step raises it
            self._fail(error)
            return 0

    def _abort(self, _: Any, rank: int, text: bytes) -> None:
        self._run(lambda: self._transport.abort(rank, text.decode("utf-8", "replace")))

    def _withdraw(self, _: Any) -> None:
        self._run(self._transport.withdraw)
        self._requests.clear()

    def _last_error(self, _: Any, text: int, capacity: int) -> None:
        error = self._raised
        _write("" if error is None else words_of(error), text, capacity)


def _write(text: str, to: int, capacity: int) -> None:
    """As much of a text as there is room for, and a NUL."""
    encoded = to_c(text)[: capacity - 1] + b"\0"
    c.memmove(to, encoded, len(encoded))
