"""Schedules say what the library says, in the words of the published implementations."""

import dualpipe
import numpy as np
import pytest
from dualpipe.schedule import KINDS, LOOPED

from conftest import data

PUBLISHED = {"dualpipe": "dualpipe", "dualpipev": "dualpipe_v"}


@pytest.mark.parametrize("case", data("dualpipe_orders_small.json"), ids=lambda c: f"{c['schedule']}-{c['ranks']}")
def test_orders_are_the_published_implementations(case):
    schedule = dualpipe.Schedule(PUBLISHED[case["schedule"]], ranks=case["ranks"], microbatches=case["chunks"])
    for rank, order in enumerate(case["orders"]):
        assert schedule.order(rank) == [tuple(op) for op in order if op[0] != "COMM"]


def test_a_schedule_says_what_it_is():
    schedule = dualpipe.Schedule("dualpipe", ranks=8, microbatches=20)
    sizes = schedule.ranks, schedule.stages, schedule.directions, schedule.microbatches
    assert sizes == (8, 8, 2, 20)
    assert (schedule.kind, schedule.forward_only) == ("dualpipe", False)
    assert eval(repr(schedule)).order(3) == schedule.order(3)
    folded = dualpipe.Schedule("dualpipe_v", 4, 10)
    assert (folded.stages, folded.directions) == (8, 1)
    assert dualpipe.Schedule("1f1b", 4, 10).kind == "1f1b"


IN_A_V = ("dualpipe_v", "zb_v", "v_half", "v_min")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_complete_and_no_faster_than_its_bound(kind):
    looped = {"stages_per_rank": 3} if kind in LOOPED else {}
    schedule = dualpipe.Schedule(kind, 4, 8, **looped)
    assert (schedule.kind, schedule.ranks, schedule.microbatches) == (kind, 4, 8)
    assert schedule.stages == 4 * looped.get("stages_per_rank", 2 if kind in IN_A_V else 1)
    forwards = [op for rank in range(4) for op in schedule.order(rank) if op[0] in ("F", "FB")]
    assert len(forwards) == schedule.stages * 8
    timeline = schedule.simulate(dualpipe.Costs(f=1, i=1, w=1, fb=2.5))
    assert timeline.makespan >= timeline.lower_bound > 0
    assert eval(repr(schedule)).order(3) == schedule.order(3)
    with pytest.raises(dualpipe.InvalidArgument, match="stages_per_rank is"):
        dualpipe.Schedule(kind, 4, 8, stages_per_rank=0 if looped else 1)


def test_stages_lie_where_the_directions_say():
    both = dualpipe.Schedule("dualpipe", 4, 8)
    assert [both.rank_of(stage) for stage in range(4)] == [0, 1, 2, 3]
    assert [both.rank_of(stage, direction=1) for stage in range(4)] == [3, 2, 1, 0]
    folded = dualpipe.Schedule("dualpipe_v", 2, 4)
    assert [folded.rank_of(stage) for stage in range(4)] == [0, 1, 1, 0]


def test_forward_only_has_only_forwards():
    schedule = dualpipe.Schedule("dualpipe", ranks=4, microbatches=8, forward_only=True)
    assert schedule.forward_only
    assert "forward_only=True" in repr(schedule)
    assert {op[0] for rank in range(4) for op in schedule.order(rank)} == {"F"}


def test_check_gives_the_most_activations_alive():
    peaks = dualpipe.Schedule("dualpipe", 8, 20).check()
    assert peaks.tolist() == [9] * 8
    assert dualpipe.Schedule("1f1b", 4, 10).check().tolist() == [4, 3, 2, 1]
    assert peaks.dtype == np.int64


def test_a_schedule_as_text_has_a_line_for_each_rank():
    text = str(dualpipe.Schedule("1f1b", 2, 2))
    assert text.splitlines() == ["0| 0F0 0F1 0B0 0B1", "1| 1F0 1B0 1F1 1B1"]


def test_a_schedule_is_drawn_with_unit_costs(tmp_path):
    schedule = dualpipe.Schedule("1f1b", 2, 2)
    assert schedule.svg(tmp_path / "a.svg") == (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert schedule.trace(str(tmp_path / "a.json")) == (tmp_path / "a.json").read_text(encoding="utf-8")
    assert schedule.svg().startswith("<svg")


def test_a_program_has_the_schedules_ops_and_its_messages():
    schedule = dualpipe.Schedule("dualpipe", 4, 8)
    sent, received = [], []
    for rank in range(4):
        program = schedule.program(rank)
        instructions = program.instructions()
        ops = [i.op for i in instructions if i.kind == "RUN" and i.op[0] != "REDUCE_GRADS"]
        assert ops == schedule.order(rank)
        assert [i.op[0] for i in instructions if i.kind == "RUN"].count("REDUCE_GRADS") == 2
        for instruction in instructions:
            if instruction.kind == "SEND":
                sent.append((rank, instruction.peer, instruction.message))
            if instruction.kind == "RECEIVE":
                received.append((instruction.peer, rank, instruction.message))
            assert instruction.buffer is None or instruction.buffer < len(program.buffers())
    assert sorted(sent) == sorted(received)
    assert len(sent) == 3 * 8 * 2


def test_closed_schedules_leave_what_was_made_from_them():
    with dualpipe.Schedule("1f1b", 2, 2) as schedule:
        program, timeline = schedule.program(1), schedule.simulate(dualpipe.Costs(f=1, i=1, w=1))
    schedule.close()
    assert program.instructions()
    assert timeline.makespan == 9.0
    with pytest.raises(dualpipe.InvalidHandle, match="schedule has been freed"):
        schedule.order(0)
