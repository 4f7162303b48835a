"""Ranks for the tests: processes that have torch loaded and join a gloo group of the size a test asks for.

They are started once and used again, since loading torch takes longer than most tests.
"""

from __future__ import annotations

import datetime
import faulthandler
import multiprocessing
import os
import sys
import traceback
from typing import Any, Callable

from torch.distributed import TCPStore

WAIT = 60.0
"""Seconds that a test's ranks may take, unless it says otherwise."""


class Died:
    """What a rank gives that ended its process."""

    def __init__(self, code: int | None) -> None:
        self.code = code


class Raised:
    """What a rank gives whose function raised."""

    def __init__(self, error: BaseException) -> None:
        self.kind, self.text = type(error).__name__, str(error)
        self.kinds = [kind.__name__ for kind in type(error).__mro__]
        self.traceback = "".join(traceback.format_exception(type(error), error, error.__traceback__))

    def __repr__(self) -> str:
        return self.traceback


class Ranks:
    """Processes to run functions of test modules on, as the ranks of a gloo group."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[tuple[Any, Any]] = []
        self._groups = 0
        # Through it the ranks of each group find one another; a file would do, but is polled slowly.
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def results(self, count: int, function: Callable[..., Any], *args: Any, wait: float = WAIT) -> list[Any]:
        """``function(rank, *args)`` on each of ``count`` ranks: what each returned, or :class:`Raised`, :class:`Died`.

        The function is one of a module's own; arguments and results can be pickled. AssertionError if it hangs."""
        while len(self._workers) < count:
            self._workers.append(self._start())
        self._groups += 1
        group = self._store.port, f"group {self._groups}"
        for rank, (_, pipe) in enumerate(self._workers[:count]):
            pipe.send((group, rank, count, function, args))
        results: list[Any] = []
        deadline = datetime.datetime.now() + datetime.timedelta(seconds=wait)
        for rank in range(count):
            process, pipe = self._workers[rank]
            left = (deadline - datetime.datetime.now()).total_seconds()
            try:
                if not pipe.poll(max(left, 0.0)):
                    self.close()
                    raise AssertionError(f"rank {rank} hangs: it has not ended after {wait:g} s")
                results.append(pipe.recv())
            except (EOFError, ConnectionResetError):
                process.join(5)
                results.append(Died(process.exitcode))
        if any(isinstance(result, (Died, Raised)) for result in results):
            self.close()
        return results

    def run(self, count: int, function: Callable[..., Any], *args: Any, wait: float = WAIT) -> list[Any]:
        """Likewise; AssertionError, with the traceback, if a rank raised or died."""
        results = self.results(count, function, *args, wait=wait)
        for rank, result in enumerate(results):
            assert not isinstance(result, Died), f"rank {rank} died with exit code {result.code}"
            assert not isinstance(result, Raised), f"rank {rank} raised\n{result.traceback}"
        return results

    def close(self) -> None:
        """Ends the processes; the next run starts new ones."""
        for process, _ in self._workers:
            process.kill()
        for process, pipe in self._workers:
            process.join()
            pipe.close()
        self._workers.clear()

    def _start(self) -> tuple[Any, Any]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return process, ours


def _serve(pipe: Any) -> None:
    """What each process does: runs what comes, one after another."""
    faulthandler.enable()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    while True:
        try:
            (port, name), rank, count, function, args = pipe.recv()
        except EOFError:
            sys.exit(0)
        distributed.init_process_group(
            "gloo",
            store=distributed.PrefixStore(name, distributed.TCPStore("127.0.0.1", port, is_master=False)),
            rank=rank,
            world_size=count,
            timeout=datetime.timedelta(seconds=30),
        )
        try:
            result: Any = function(rank, *args)
        except BaseException as error:  # noqa: BLE001, the test looks at it
            result = Raised(error)
        pipe.send(result)
        if isinstance(result, Raised):
            os._exit(1)  # its group is of no use any more, and may hang in its destructor
        distributed.destroy_process_group()
