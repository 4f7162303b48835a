"""Transports of the caller's: how messages get from rank to rank where the library's own do not reach."""

from __future__ import annotations

import ctypes as c
import time
from typing import Any

from . import _structs as s
from ._library import Callbacks, to_c, words_of

_OK, _AGAIN, _PEER_GONE, _FAILED, _TIMED_OUT = 0, 1, 2, 3, 4
_KINDS = {1: "activation", 2: "gradient"}
_WAIT_MAX = 50e-6
"""How long :meth:`Transport.wait` sleeps, if it is not overridden."""


class Transfer:
    """One tensor of one message, to be sent or received."""

    __slots__ = ("_data", "_struct")

    def __init__(self, transfer: s.Transfer) -> None:
        """Not to be called by users: ``transfer`` is the library's, for the time of the callback."""
        self._struct = s.Transfer.from_buffer_copy(transfer)
        self._data: Any = None

    @property
    def peer(self) -> int:
        """The other rank."""
        return int(self._struct.peer)

    @property
    def channel(self) -> int:
        """Direction and kind of the message, 0 to 3. Two ranks send and receive in the same order, within a channel and
        over all; a transport may rely on that instead of the tag."""
        return int(self._struct.channel)

    @property
    def tag(self) -> int:
        """A number of its own for each tensor of each message of each step, below 2^56, the same on both sides."""
        return int(self._struct.tag)

    @property
    def kind(self) -> str:
        """ "activation" or "gradient"."""
        return _KINDS[self._struct.message.kind]

    @property
    def direction(self) -> int:
        """The direction of the pass that made the message."""
        return int(self._pass.direction)

    @property
    def stage(self) -> int:
        """The stage that made it."""
        return int(self._pass.stage)

    @property
    def to_stage(self) -> int:
        """The stage that it goes to."""
        return int(self._struct.message.to_stage)

    @property
    def microbatch(self) -> int:
        """The micro-batch, counted within its direction."""
        return int(self._pass.microbatch)

    @property
    def tensor(self) -> int:
        """Which of the message's tensors, from 0."""
        return int(self._struct.tensor)

    @property
    def step(self) -> int:
        """In which step of the executor, modulo 65536."""
        return int(self._struct.step)

    @property
    def num_bytes(self) -> int:
        """How many bytes to send, or at most to receive. An absent gradient is sent as 0 bytes, and must arrive as
        such."""
        return int(self._struct.num_bytes)

    @property
    def data(self) -> Any:
        """The bytes, a memoryview [num_bytes] of the executor's memory, without a copy, to be read by send and written
        by receive until the transfer has ended or was withdrawn. On a CUDA device the address, an int."""
        if self._data is None:
            address, num_bytes = self._struct.data, self._struct.num_bytes
            if self._struct.stream is not None:
                self._data = address or 0
            elif num_bytes == 0:
                self._data = memoryview(bytearray())
            else:
                self._data = memoryview((c.c_char * num_bytes).from_address(address)).cast("B")
        return self._data

    @property
    def stream(self) -> int | None:
        """On a CUDA device, the stream in whose order the transfer is: send and receive enqueue it there and return, and
        test is never called. None on the host."""
        stream: int | None = self._struct.stream
        return stream

    @property
    def device(self) -> int:
        """On a CUDA device, which one."""
        return int(self._struct.device)

    @property
    def _pass(self) -> Any:
        return getattr(self._struct.message, "pass")

    def __repr__(self) -> str:
        what = f"{self.kind} of micro-batch {self.microbatch} from stage {self.stage} to {self.to_stage}"
        return f"<dualpipe.Transfer {what}, tensor {self.tensor}, {self.num_bytes} bytes, peer {self.peer}>"


class Transport:
    """A transport of the caller's, one rank's end of it, to derive from (MPI, torch.distributed, UCX, anything that
    sends bytes). It is for one executor.

    Its methods are called on the thread that runs the executor's step, one at a time, and by
    :meth:`Executor.close <dualpipe.Executor.close>`. None but :meth:`wait` may wait, and :meth:`test` if there is no
    way to ask without: for as long as the executor's timeout at most, then it raises TimeoutError, and it returns at
    once when another rank fails. They may not call the executor.
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

    def _end(self) -> TransportEnd:
        return TransportEnd(self)


class TransportEnd(Callbacks):
    """A transport as C calls it, and what it has raised. It lives as long as its executor."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._requests: dict[int, Any] = {}
        self._next = 0
        self._functions = (
            s.PostFunction(self._send),
            s.PostFunction(self._receive),
            s.TestFunction(self._test),
            s.WaitFunction(self._wait),
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
        if isinstance(error, TimeoutError):
            return _TIMED_OUT
        self._keep_raised(error)
        return _FAILED

    def _run(self, method: Any) -> None:
        try:
            method()
        except BaseException as error:  # noqa: BLE001, the step raises it
            self._fail(error)

    def _send(self, _: Any, transfer: Any, request: Any) -> int:
        return self._post(self._transport.send, transfer, request)

    def _receive(self, _: Any, transfer: Any, request: Any) -> int:
        return self._post(self._transport.receive, transfer, request)

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

    def _wait(self, _: Any, timeout_ns: int) -> None:
        self._run(lambda: self._transport.wait(timeout_ns * 1e-9))

    def _told(self) -> tuple[int, str] | None:
        return self._transport.poll_abort()

    def _poll_abort(self, _: Any, rank: Any, text: int, capacity: int) -> int:
        try:
            told = self._told()
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
