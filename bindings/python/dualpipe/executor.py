"""Executors: run one rank's part of a schedule, step after step, with the caller's callback for each task."""

from __future__ import annotations

import ctypes as c
import math
import threading
import time
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

from . import _structs as s
from ._library import Closing, TaskAddressFunction, TaskFunction, create, lib, read_text, to_c, uint32, words_of
from .costs import nanoseconds, number
from .cuda import GRAPH_STATES, Cuda, GraphState, Nccl
from .errors import Busy, CallbackFailed, Error, InvalidArgument, Timeout
from .memory import Memory
from .schedule import Program, Schedule
from .task import Task, TensorLike, tensor_spec
from .timeline import Timeline
from .transport import Transport

Callback = Callable[[Task], object]
"""Runs one task. What it returns does not matter; what it raises ends the step on all ranks."""

TIMEOUT_MAX = 86_400.0
"""The longest timeout of an executor: a day."""
_SLICE = 1.0
"""How long a wait stays in the library at a time, so that Ctrl-C is heard."""


class Inproc(Closing):
    """What the ranks of one process share, so that their executors can exchange messages.

    ``ranks``: 1 to 4096. Each rank is for one executor; after a failure create a new one. Any number of threads may
    use it at once. It is useless in a child of ``fork``. It may be closed before the executors that use it.
    """

    def __init__(self, ranks: int) -> None:
        self.ranks = uint32("ranks", ranks)
        self._handle = create("dualpipe_inproc_create", "dualpipe_inproc_free", self.ranks)


class Fault(NamedTuple):
    """Why an executor failed."""

    rank: int
    """The rank that stopped: the executor's."""
    peer: int | None
    """The other rank that it is about, if there is one."""
    instruction: int
    """At which instruction of its program."""
    status: int
    """The ``status`` of the error that ended the step."""


class Executor(Closing):
    """Runs one rank of ``schedule``. Use it as a context manager, or :meth:`close` it.

    ``inproc``: joins the ranks of this process, each of which has an executor in a thread of its own. ``transport``:
    joins them by the caller's own means. ``nccl``: joins ranks in processes of their own, on CUDA devices; it waits
    until all have come. Exactly one of them is given.
    ``cuda``: the device to run on; None is the host. ``memory``: the caller's for tensors; None is the executor's own,
    used again from step to step. ``tensors``: what crosses every boundary between stages,
    [(dtype, shape), ...], at most 32, the same on all ranks; a gradient has the dtype and shape of its activation. A
    dtype is a name ("float32", "bfloat16", ...), a numpy or a torch dtype. ``timeout``: seconds that a single wait for
    a peer may last, at most a day; more than the longest task of any rank.

    One thread at a time: another gets :class:`~dualpipe.errors.Busy`, and so does a callback of its own. After a
    failed step it can only be asked for its :attr:`fault` and its :meth:`timeline`, and closed.

    Raises :class:`~dualpipe.errors.InvalidArgument`, also if the rank's place in the inproc is taken, and
    :class:`~dualpipe.errors.Poisoned` if a rank of the inproc has failed; with ``cuda``
    :class:`~dualpipe.errors.Unavailable` and :class:`~dualpipe.errors.DeviceFailed`, with ``nccl``
    :class:`~dualpipe.errors.Timeout` and :class:`~dualpipe.errors.TransportFailed`.
    """

    def __init__(
        self,
        schedule: Schedule,
        rank: int,
        *,
        inproc: Inproc | None = None,
        transport: Transport | None = None,
        nccl: Nccl | None = None,
        cuda: Cuda | None = None,
        memory: Memory | None = None,
        tensors: Sequence[TensorLike],
        timeout: float = 60.0,
    ) -> None:
        program = Program(schedule, rank)
        timeout_ns = nanoseconds("timeout", timeout, TIMEOUT_MAX)
        if timeout_ns == 0:
            raise InvalidArgument(f"timeout is {timeout}, must be more than 0 seconds")
        specs = _specs(tensors)
        options = s.ExecutorOptions(c.sizeof(s.ExecutorOptions), len(specs), specs, timeout_ns)
        if inproc is not None:
            options.inproc = inproc._handle._as_parameter_
        end = None if transport is None else transport._end()
        if end is not None:
            options.transport = c.pointer(end.table())
        own = None if memory is None else memory._end()
        if own is not None:
            options.memory = c.pointer(own.table())
        if cuda is not None:
            options.cuda = c.pointer(cuda._options())
        if nccl is not None:
            options.nccl = c.pointer(nccl._options())
        self.rank = program.rank
        names = "dualpipe_executor_create", "dualpipe_executor_free"
        self._handle = create(*names, program._handle, c.byref(options), keep_alive=(cuda, end, own))
        self._transport, self._memory = end, own
        self._started: _Step | None = None

    def step(self, callback: Callback) -> None:
        """Runs one step on this thread: ``callback(task)`` for every task, in order, each when what it reads is there.

        On a CUDA device it returns when the device is done, or with ``stream_ordered`` when all of it is enqueued.

        What the callback or a method of the transport or the memory raises, this raises. Other errors name rank,
        instruction and peer:
        :class:`~dualpipe.errors.Timeout`, :class:`~dualpipe.errors.PeerFailed`,
        :class:`~dualpipe.errors.TransportFailed`, :class:`~dualpipe.errors.DeviceFailed`, and
        :class:`~dualpipe.errors.Poisoned` after any of them. All other ranks end with an error too. While it waits for
        a peer it does not hear Ctrl-C; :meth:`start` and :meth:`wait` do.
        """
        self._run_step(_Step(self, lambda task: self._call_with(callback, task)))

    def start(self, callback: Callback) -> None:
        """Like :meth:`step`, but on a thread of the executor's own, and returns at once; :meth:`wait` ends it, and
        until then the executor is not collected.

        Raises :class:`~dualpipe.errors.Busy` if a step is running or has not been waited for.
        """
        step = _Step(self, lambda task: self._call_with(callback, task))
        _RUNNING.add(step)
        try:
            lib.dualpipe_executor_start(self._handle, step.function, None)
        except Error:
            _RUNNING.discard(step)
            raise
        self._started = step

    def wait(self, timeout: float | None = None) -> None:
        """Waits for the step that :meth:`start` began, at most ``timeout`` seconds, or as long as it takes; raises what
        :meth:`step` would have raised.

        Raises :class:`~dualpipe.errors.Timeout` with the text "still running" if it goes on, then wait again;
        :class:`~dualpipe.errors.InvalidArgument` if no step was started.
        """
        _in_slices(timeout, self._has_ended)
        self._forget_started()

    def synchronize(self, timeout: float | None = None) -> None:
        """Waits, at most ``timeout`` seconds or as long as it takes, until the device is done with the last step. On
        the host it always is.

        Raises :class:`~dualpipe.errors.Timeout` with the text "still running" if it is not, then wait again; what
        :meth:`step` raises if the step failed on the device.
        """
        _in_slices(timeout, self._is_done)

    @property
    def graph(self) -> GraphState:
        """How far it is from launching whole steps as CUDA graphs, and why a step could not be captured."""
        state = c.c_uint32()
        reason = read_text("dualpipe_executor_graph", self._handle, c.byref(state))
        return GraphState(GRAPH_STATES[state.value], reason)

    def timeline(self) -> Timeline:
        """This rank's timeline of its last step, which may have failed. :meth:`Timeline.merge` joins the ranks'.

        On a CUDA device it raises :class:`~dualpipe.errors.InvalidArgument` unless the executor is ``timed``, and
        :class:`~dualpipe.errors.Busy` until the step is known to be done.
        """
        return Timeline(create("dualpipe_executor_timeline", "dualpipe_timeline_free", self._handle))

    @property
    def fault(self) -> Fault | None:
        """Why it failed; None if it has not."""
        fault = s.Fault(size=c.sizeof(s.Fault))
        lib.dualpipe_executor_fault(self._handle, c.byref(fault))
        if not fault.has_failed:
            return None
        peer = None if fault.peer == s.NONE else fault.peer
        return Fault(fault.rank, peer, fault.instruction, fault.status)

    def set_boundary(self, stage: int, tensors: Sequence[TensorLike], direction: int = 0) -> None:
        """Other tensors at the boundary after ``stage`` of ``direction``, for every micro-batch, from the next step on.
        Every rank must be told the same."""
        specs = _specs(tensors)
        where = uint32("direction", direction), uint32("stage", stage)
        lib.dualpipe_executor_set_boundary(self._handle, *where, specs, len(specs))

    def set_microbatch(self, microbatch: int, tensors: Sequence[TensorLike], direction: int = 0) -> None:
        """Other tensors for one micro-batch of ``direction``, at every boundary, from the next step on: for example
        another sequence length. It overrides :meth:`set_boundary`. Every rank must be told the same."""
        specs = _specs(tensors)
        where = uint32("direction", direction), uint32("microbatch", microbatch)
        lib.dualpipe_executor_set_microbatch(self._handle, *where, specs, len(specs))

    def close(self) -> None:
        """Frees it: waits for a started step, and tells ranks in the middle of a step that this one is gone.

        Raises :class:`~dualpipe.errors.Busy` in a callback of its own. The views that its callbacks got are dead.
        """
        if getattr(_calling, "executor", None) is self:
            raise Busy("the executor is in use by the caller of this callback")
        self._handle.close()
        self._forget_started()

    def _step_by_address(self, run: Callable[[int], object]) -> None:
        """:meth:`step` for who reads the struct: ``run`` gets its address."""
        outer = getattr(_calling, "executor", None)
        _calling.executor = self
        try:
            self._run_step(_Step(self, run, by_address=True))
        finally:
            _calling.executor = outer

    def _run_step(self, step: _Step) -> None:
        try:
            lib.dualpipe_executor_step(self._handle, step.function, None)
            failure = step.instead_of(None)
        except Error as error:
            failure = step.instead_of(error)
        if failure is not None:
            raise failure

    def _call_with(self, callback: Callback, pointer: Any) -> None:
        task = Task(pointer.contents, self._handle, self._memory)
        try:
            callback(task)
        finally:
            task._end()

    def _has_ended(self, seconds: float) -> bool:
        """Waits for the started step; raises what ended it. False if it is still running."""
        failure: BaseException | None = None
        try:
            lib.dualpipe_executor_wait(self._handle, round(seconds * 1e9))
            if self._started is not None:
                failure = self._started.instead_of(None)
        except (Busy, InvalidArgument):
            raise
        except Error as error:
            if isinstance(error, Timeout) and "still running" in str(error):
                return False
            failure = self._started.instead_of(error) if self._started else error
        if failure is None:
            return True
        self._forget_started()
        raise failure

    def _is_done(self, seconds: float) -> bool:
        """Waits for the device; raises what ended the step. False if it is still running."""
        try:
            lib.dualpipe_executor_synchronize(self._handle, round(seconds * 1e9))
            return True
        except Timeout as error:
            if "still running" in str(error):
                return False
            raise

    def _forget_started(self) -> None:
        if self._started is not None:
            _RUNNING.discard(self._started)
            self._started = None


def _in_slices(timeout: float | None, has_ended: Callable[[float], bool]) -> None:
    """Waits by ``has_ended(seconds)``, a slice at a time; Timeout when it takes longer than ``timeout`` seconds."""
    seconds = math.inf if timeout is None else number("timeout", timeout)
    if not seconds >= 0:
        raise InvalidArgument(f"timeout is {seconds}, must be at least 0 seconds, or None")
    deadline = time.monotonic() + seconds
    while not has_ended(min(max(deadline - time.monotonic(), 0.0), _SLICE)):
        if time.monotonic() >= deadline:
            raise Timeout(f"the step is still running after {seconds:g} seconds")


def _specs(tensors: Sequence[TensorLike]) -> Any:
    specs = [tensor_spec(f"tensors[{k}]", tensor) for k, tensor in enumerate(tensors)]
    return (s.TensorSpec * len(specs))(*specs)


class _Step:
    """What runs the tasks of one step, as C calls it, and what it has raised."""

    def __init__(self, executor: Executor, run: Callable[[Any], object], by_address: bool = False) -> None:
        self._executor, self._task = executor, run
        self._raised: BaseException | None = None
        self._as_called: Any = TaskAddressFunction(self._by_address()) if by_address else TaskFunction(self._run)
        self.function = c.cast(self._as_called, TaskFunction)

    def instead_of(self, failure: Error | None) -> BaseException | None:
        """What to raise for the library's error: what the callback raised, if that is why, or the transport or the
        memory, with a note. Of a step that went well what they raised, if they did.

        To be raised when the library's error is no longer being handled, so that it does not become the context.
        """
        raised = None
        if isinstance(failure, CallbackFailed):
            raised, self._raised = self._raised, None
        for end in (self._executor._transport, self._executor._memory):
            if raised is None and end is not None:
                raised = end.take_raised()
        if raised is None or failure is None:
            return failure if raised is None else raised
        if hasattr(raised, "add_note"):
            raised.add_note(str(failure))
        return raised

    def _run(self, _: Any, pointer: Any) -> int:
        outer = getattr(_calling, "executor", None)
        _calling.executor = self._executor
        try:
            self._task(pointer)
            return 0
        except BaseException as error:  # noqa: BLE001, the call that ends the step raises it
            return self._failed(error)
        finally:
            _calling.executor = outer

    def _by_address(self) -> Callable[[Any, int], int]:
        """Likewise, without what a step need not do for every task."""
        task, failed = self._task, self._failed

        def run(_: Any, address: int) -> int:
            try:
                task(address)
                return 0
            except BaseException as error:  # noqa: BLE001, the call that ends the step raises it
                return failed(error)

        return run

    def _failed(self, error: BaseException) -> int:
        self._raised = error
        lib.dualpipe_task_set_error(to_c(words_of(error)))
        return 1


_calling = threading.local()
"""``executor``: whose callback this thread is in."""
_RUNNING: set[_Step] = set()
"""Started steps: C calls them until they have been waited for."""
