"""The Python example of README.md does what it says."""

from __future__ import annotations

import pathlib

import pytest

README = pathlib.Path(__file__).parents[2] / "README.md"


def test_the_example_runs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = README.read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example, str(README), "exec"), names)  # noqa: S102, it is what users run
    order, times, *rest = capsys.readouterr().out.splitlines()
    assert order.startswith("[('F', 0, 0), ('F', 0, 1), ('F', 0, 2)] [9 9 ")
    assert times.startswith("59.0 ")
    assert (tmp_path / "dualpipe.svg").read_text().startswith("<svg")
    assert names["phy2log"].shape == (58, 288)
    assert rest[:2] == ["planned: 8 ranks, 8 stages, two directions, 20 micro-batches", "makespan     58 s"]
    assert "58 layers of 256 experts in 288 slots on 32 GPUs, equal split" in rest
