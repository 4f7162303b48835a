"""What the tests share. They run against the installed package, from outside the source tree: see run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the project."""
    return ROOT


def data(name: str) -> list[dict[str, Any]]:
    """A file of tests/data."""
    return json.loads((ROOT / "tests" / "data" / name).read_text())


def on_threads(count: int, run: Callable[[int], Any], seconds: float = 60.0) -> list[Any]:
    """``run(rank)`` on a thread for each rank: what each returned or raised."""
    results: list[Any] = [None] * count

    def work(rank: int) -> None:
        try:
            results[rank] = run(rank)
        except BaseException as error:  # noqa: BLE001, the caller looks at it
            results[rank] = error

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    return results


@pytest.fixture(scope="session")
def ranks() -> Iterator[Any]:
    """Processes with torch, for functions that are ranks of a group."""
    pytest.importorskip("torch")
    from ranks import Ranks

    pool = Ranks()
    yield pool
    pool.close()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    """Runs ``python -m dualpipe`` with words: exit code, output, errors."""
    from dualpipe.__main__ import main

    def run(*words: object) -> tuple[Any, str, str]:
        try:
            code: Any = main([str(word) for word in words])
        except SystemExit as stopped:
            code = stopped.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
