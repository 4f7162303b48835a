"""Schedules as torch's CSV: written, read, and run by torch's own runtime, against a serial model."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dualpipe
import pytest
from dualpipe import Schedule
from dualpipe.__main__ import main
from dualpipe.torch.schedule_csv import FORMATS, parsed_version, read_schedule_csv, schedule_csv, stages_of

torch = pytest.importorskip("torch")

from torch_stages import build, check_against_serial, of, shuffled, step, torch_runtime

VERSION = parsed_version(torch.__version__)
VERSIONS = [f"2.{minor}" for minor in range(6, 16)]
KINDS = (
    ("dualpipe_v", "1f1b", "gpipe", "zb_h1", "zb_h2", "zb_v", "v_half", "v_min")
    + ("interleaved_1f1b", "interleaved_overlapped", "interleaved_zero_bubble", "looped_bfs")
)  # fmt: skip
"""Those of one direction."""
RUN = {
    2: [
        *[("dualpipe_v", 3), ("dualpipe_v", 6), ("1f1b", 1), ("1f1b", 5), ("zb_v", 4), ("v_min", 5)],
        *[("interleaved_1f1b", 4), ("interleaved_overlapped", 4), ("interleaved_zero_bubble", 4)],
        *[((0, 1, 1, 0), 5), ((1, 0, 1), 3), ((0, 0, 1), 4), ((0, 1, 0, 1), 4)],
    ],
    4: [
        *[("dualpipe_v", 8), ("1f1b", 6), ("zb_v", 5), ("interleaved_1f1b", 8), ("interleaved_overlapped", 4)],
        *[((0, 1, 2, 3, 3, 2, 1, 0), 6), ((2, 0, 3, 1, 2), 5)],
    ],
}
"""What torch runs, by ranks: a kind, or a placement for an order that no system ships, with micro-batches."""


def actions(row: str) -> list[str]:
    """The cells of a row, pairs as their two."""
    return [part for cell in row.split(",") for part in cell.replace(")OVERLAP_F_B", "").lstrip("(").split(";")]


def without_stages(schedule: Schedule) -> Any:
    """A runtime of torch's that loads and dumps, and cannot run."""
    group = {"group_size": schedule.ranks, "group_rank": 0}
    return torch_runtime(schedule, [SimpleNamespace(num_stages=schedule.stages, submod=None, stage_index=0, **group)])


# Written


def test_a_cell_is_an_op_of_the_schedule() -> None:
    text = schedule_csv(Schedule("dualpipe_v", 2, 4))
    pairs = "(0F3;3B1)OVERLAP_F_B,(3F2;0B0)OVERLAP_F_B,3B2,(3F3;0B1)OVERLAP_F_B"
    assert text.splitlines()[0] == f"0F0,0F1,0F2,3F0,3I0,3W0,3F1,{pairs},3B3,0I2,0W2,0I3,0W3"
    assert schedule_csv(Schedule("1f1b", 2, 2)) == "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n"


@pytest.mark.parametrize("version", ["2.6.0", "2.8.0+cu128", "2.9.1", "2.10.0", "2.14.0", "2.15.0a0+git1"])
def test_a_version_gets_the_cells_it_knows(version: str) -> None:
    minor = int(version.split(".")[1])
    schedule = Schedule("dualpipe_v", 4, 9)
    compute, comms = (schedule_csv(schedule, version, format) for format in FORMATS)
    assert ("OVERLAP_F_B" in compute) == (minor >= 9)
    assert ("OVERLAP_F_B" in comms) == (minor >= 10)
    assert ("REDUCE_GRAD" in comms) == (minor >= 10)
    assert ("WAIT_" in comms) == (minor >= 15)
    assert not re.search("SEND|RECV|UNSHARD|REDUCE", compute)
    for row, lowered in zip(compute.splitlines(), comms.splitlines()):
        assert actions(row) == [cell for cell in actions(lowered) if re.fullmatch(r"\d+[FBIW]\d+", cell)]
        ready, sent = set(), set()
        for cell in actions(lowered):
            assert cell not in sent, "once each"
            sent.add(cell)
            if wait := re.fullmatch(r"(\d+)WAIT_(\w+)", cell):
                assert wait.expand(r"\1\2") in sent
            if received := re.fullmatch(r"(\d+)RECV_([FB])(\d+)", cell):
                ready.add(received.groups())
        needed = {("F", schedule.stages, -1, 0), ("[BI]", schedule.stages, 1, schedule.stages - 1)}
        for kind, _, towards, end in needed:
            for cell in actions(row):
                if found := re.fullmatch(rf"(\d+){kind}(\d+)", cell):
                    stage = int(found[1])
                    remote = stage != end and schedule.rank_of(stage + towards) != schedule.rank_of(stage)
                    assert ((found[1], kind.strip("[I]"), found[2]) in ready) == remote


@pytest.mark.parametrize("which", ["dualpipe_v", "1f1b", "zb_v", "interleaved_overlapped", "interleaved_zero_bubble"])
@pytest.mark.parametrize("ranks_of_pipeline", [1, 2, 3, 8])
def test_messages_are_put_in_as_torch_does(which: str, ranks_of_pipeline: int, tmp_path: Path) -> None:
    published = of(which, ranks_of_pipeline, 3 * ranks_of_pipeline)
    placement = [published.rank_of(stage) for stage in range(published.stages)]
    for schedule in (published, shuffled(placement, 4, seed=ranks_of_pipeline)):
        runtime = without_stages(schedule)
        path = tmp_path / "schedule.csv"
        path.write_text(schedule_csv(schedule, torch.__version__))
        runtime._load_csv(str(path))
        runtime._dump_csv(str(path))
        assert path.read_text().replace("\r", "") == schedule_csv(schedule, torch.__version__, "compute_comms")
        stages = dict(enumerate(placement))
        assert {stage: runtime.stage_index_to_group_rank[stage] for stage in stages} == stages
        assert str(read_schedule_csv(path)) == str(schedule)


def test_what_torch_cannot_run_is_refused() -> None:
    v = Schedule("dualpipe_v", 2, 4)
    late = Schedule.from_text("0| 0F1 0F0 0B1 0B0")
    for arguments, text in [
        ((Schedule("dualpipe", 4, 8),), 'of two directions: each stage is on two ranks.*"dualpipe_v"'),
        ((Schedule("1f1b", 2, 4, forward_only=True),), r"forward_only.*eval\(\)"),
        ((v, (2, 5)), "torch_version is 2.5, must be at least 2.6"),
        ((v, "two"), "torch_version is 'two', must be like"),
        ((v, (2,)), r"torch_version is \(2,\), must be like"),
        ((v, (2, 1 << 40)), "torch_version is 1099511627776, must be"),
        ((v, (2, 16), "compute_comms"), "must be at most 2.15"),
        ((v, (2, 15), "comms"), "format is 'comms', must be one of 'compute_only', 'compute_comms'"),
        ((late,), "with the forwards of stage 0 out of order, 1 before 0"),
    ]:
        with pytest.raises(dualpipe.InvalidArgument, match=text):
            schedule_csv(*arguments)
    assert schedule_csv(v, (3, 0)) == schedule_csv(v)
    with pytest.raises(dualpipe.InvalidSchedule, match=r"custom: rank 0, position 0 \(0B0\)"):
        schedule_csv(Schedule.from_text("0| 0B0 0F0"))
    with pytest.raises(TypeError, match="schedule is '1f1b', must be dualpipe.Schedule"):
        schedule_csv("1f1b")
    with pytest.raises(dualpipe.InvalidArgument, match="rank is 2, must be 0 to 1"):
        stages_of(v, 2)
    with pytest.raises(dualpipe.InvalidArgument, match="schedule is 'chimera', of two directions"):
        stages_of(Schedule("chimera", 2, 4), 0)
    assert [stages_of(v, rank) for rank in range(2)] == [[0, 3], [1, 2]]


# Read


def unpaired(text: str) -> str:
    """With each pair as forward, then backward."""
    return re.sub(r"(\S+)&(\S+)", r"\1 \2", text)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(kind: str, tmp_path: Path) -> None:
    schedule = of(kind, 4, 8)
    for version in VERSIONS:
        for format in FORMATS:
            text = schedule_csv(schedule, version, format)
            has_pairs = parsed_version(version) >= ((2, 9) if format == "compute_only" else (2, 10))
            expected = str(schedule) if has_pairs else unpaired(str(schedule))
            for read in (read_schedule_csv(text), read_schedule_csv(text, version, format, name="mine")):
                assert str(read) == expected and read.kind == "custom" and read.placement == schedule.placement
                assert schedule_csv(read, version, format) == text
                read.check()
            assert read.name == "mine"
    (tmp_path / "own.csv").write_bytes(schedule_csv(schedule).replace("\n", "\r\n").encode())
    from_file = read_schedule_csv(tmp_path / "own.csv")
    assert from_file.name == "own" and str(from_file) == str(schedule)
    assert read_schedule_csv(schedule_csv(schedule)).name == "custom"


def dumped(name: str, ranks_of_pipeline: int, microbatches: int, path: Path) -> dict[str, str]:
    """What torch dumps of a schedule of its own, by format."""
    from torch.distributed.pipelining import schedules

    v = name in ("ScheduleZBVZeroBubble", "ScheduleDualPipeV")
    held = [0, 2 * ranks_of_pipeline - 1] if v else [0, ranks_of_pipeline]
    stages = [SimpleNamespace(num_stages=2 * ranks_of_pipeline, group_size=ranks_of_pipeline, group_rank=0,
                              submod=torch.nn.Identity(), stage_index=index) for index in held]  # fmt: skip
    schedule = getattr(schedules, name)(stages, microbatches)
    texts = {}
    for format in FORMATS:
        schedule._dump_csv(str(path), format)
        texts[format] = path.read_text()
    return texts


@pytest.mark.skipif(VERSION < (2, 15), reason="what older ones dump is their own")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ScheduleInterleaved1F1B", "interleaved_1f1b"),
        ("ScheduleInterleavedZeroBubble", "interleaved_zero_bubble"),
        ("ScheduleLoopedBFS", "looped_bfs"),
        ("ScheduleZBVZeroBubble", "zb_v"),
        ("ScheduleDualPipeV", "dualpipe_v"),
    ],
)
@pytest.mark.parametrize("ranks_of_pipeline", [2, 4])
def test_what_torch_dumps_is_read(name: str, kind: str, ranks_of_pipeline: int, tmp_path: Path) -> None:
    microbatches = 4 * ranks_of_pipeline
    own = of(kind, ranks_of_pipeline, microbatches)
    for format, text in dumped(name, ranks_of_pipeline, microbatches, tmp_path / "torch.csv").items():
        for given in ((), (torch.__version__, format)):
            read = read_schedule_csv(text, *given)
            assert (read.placement, read.microbatches) == (own.placement, microbatches)
            read.check()
            assert str(read) == str(own)


def test_what_a_torch_would_misread_is_refused() -> None:
    schedule = Schedule("dualpipe_v", 2, 4)
    newest, pairs = schedule_csv(schedule, format="compute_comms"), schedule_csv(schedule)
    for arguments, text in [
        ((newest, "2.14", "compute_comms"), r"row 1, column \d+ \(rank 0\) is \"0WAIT_SEND_F0\", .*torch 2.14"),
        ((newest, "2.15", "compute_only"), r"row 1, column 1 \(rank 0\) is \"0UNSHARD\""),
        ((pairs, "2.8"), "torch 2.8 has no OVERLAP_F_B in format compute_only; since 2.9"),
        ((pairs, None, "comms"), "format is 'comms', must be one of"),
        ((pairs, "1.0"), "must be at least 2.6"),
        (("",), "the text is empty, must have a row for each rank"),
        (("0F0x,0B0",), 'is "0F0x", must end after 0F0: torch takes that and leaves the rest'),
        (("0F0,0B0\n0F1,0B1",), "stage 0 is on rank 0, and torch has each stage on one rank"),
        (("schedule.csv",), 'is "schedule.csv", must begin with a stage'),
        (("0F0,\x00",), "row 1, column 2"),
        (("0F0,0B\ud800",), "row 1, column 2"),
    ]:
        with pytest.raises(dualpipe.InvalidArgument, match=text):
            read_schedule_csv(*arguments)
    with pytest.raises(FileNotFoundError):
        read_schedule_csv(Path("no_such.csv"))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"0F0,\xff")
    with pytest.raises(dualpipe.InvalidArgument, match="text is not UTF-8 from byte 4 on"):
        read_schedule_csv(tmp_path / "a.csv")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("file", ["a.csv", "a.txt"])
def test_the_commands_read_it(file: str, format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule, path = Schedule("dualpipe_v", 4, 9), str(tmp_path / file)
    Path(path).write_text(schedule_csv(schedule, format=format))
    assert main(["schedule", path]) == 0 and capsys.readouterr().out == str(schedule)
    assert main(["check", path]) == 0 and capsys.readouterr().out.startswith("a: 4 ranks, 8 stages, 9 micro-batches\n")
    assert main(["schedule", path, "--csv", path, "--torch", "2.8"]) == 0
    assert Path(path).read_text() == schedule_csv(schedule, "2.8")
    Path(tmp_path / "b.csv").write_text("0| 0F0 0B0\n")
    assert main(["check", str(tmp_path / "b.csv")]) == 2
    assert "torch csv: row 1, column 1 (rank 0)" in capsys.readouterr().err


# Run by torch


def run_csv(rank: int, ranks_of_pipeline: int) -> list[Any]:
    results = []
    for which, microbatches in RUN[ranks_of_pipeline]:
        schedule = of(which, ranks_of_pipeline, microbatches)
        for format in FORMATS:
            runtime = torch_runtime(schedule, build(schedule, rank))
            with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
                file.write(schedule_csv(schedule, torch.__version__, format))
                file.flush()
                runtime._load_csv(file.name, format)
            results.append(step(schedule, runtime))
    return results


@pytest.mark.parametrize("count", list(RUN))
def test_torch_runs_it(ranks: Any, count: int) -> None:
    results = iter(zip(*ranks.run(count, run_csv, count)))
    for which, microbatches in RUN[count]:
        for _ in FORMATS:
            check_against_serial(of(which, count, microbatches), next(results), scale_grads=False)
