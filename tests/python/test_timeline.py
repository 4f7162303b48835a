"""Costs become nanoseconds and timelines seconds, with nothing lost on the way."""

import json
import math
from xml.etree import ElementTree

import dualpipe
import numpy as np
import pytest


@pytest.fixture
def timeline():
    costs = dualpipe.Costs(f=1, i=1, w=1, fb=2.5, activation_bytes=3, parameter_bytes=100)
    return dualpipe.Schedule("dualpipe", ranks=8, microbatches=20).simulate(costs)


def test_dualpipe_of_8_ranks_and_20_microbatches(timeline):
    assert timeline.makespan == 59.0
    assert timeline.lower_bound == pytest.approx(56 + 1 / 3)
    assert timeline.gap == pytest.approx(59 / (56 + 1 / 3) - 1)
    assert timeline.bubble == pytest.approx(timeline.idle.mean() / 59)
    assert (timeline.busy + timeline.idle).tolist() == [59.0] * 8
    assert timeline.peak_memory.tolist() == [2 * 100 + 9 * 3] * 8
    assert (timeline.source, timeline.ranks) == ("simulated", 8)


def test_spans_are_the_schedules_ops(timeline):
    spans = timeline.spans()
    schedule = dualpipe.Schedule("dualpipe", ranks=8, microbatches=20)
    for rank in range(8):
        mine = spans[spans["rank"] == rank]
        mine = mine[mine["kind"] != "REDUCE_GRADS"]
        order = schedule.order(rank)
        assert mine["kind"].tolist() == [op[0] for op in order]
        forward = mine[mine["forward"]["stage"] >= 0]
        want = [op[1:3] for op in order if op[0] in ("F", "FB")]
        assert list(zip(forward["forward"]["copy"].tolist(), forward["forward"]["microbatch"].tolist())) == want
        assert (mine["start"][1:] >= mine["end"][:-1]).all()
    assert spans["end"].max() == 59.0
    pairs = spans[spans["kind"] == "FB"]
    assert np.unique(pairs["end"] - pairs["start"]).tolist() == [2.5]
    assert (spans[spans["kind"] == "F"]["backward"]["stage"] == -1).all()


def test_messages_take_the_links_time():
    costs = dualpipe.Costs(f=1, i=1, w=1, latency=0.25, bandwidth=1000, output_bytes=500)
    messages = dualpipe.Schedule("1f1b", 3, 2).simulate(costs).messages()
    assert len(messages) == 2 * 2 * 2
    assert (messages["end"] - messages["start"]).tolist() == [0.75] * 8
    gradients = messages[messages["kind"] == "GRADIENT"]
    assert (gradients["to"] == gradients["from"] - 1).all()
    assert (gradients["to_stage"] == gradients["pass"]["stage"] - 1).all()
    assert (messages["kind"] == "ACTIVATION").sum() == 4


def test_costs_may_differ_from_stage_to_stage():
    schedule = dualpipe.Schedule("1f1b", ranks=2, microbatches=1)
    timeline = schedule.simulate(dualpipe.Costs(f=[1, 2], i=np.array([3.0, 4.0]), w=5))
    assert timeline.busy.tolist() == [9.0, 11.0]
    with pytest.raises(dualpipe.InvalidArgument, match="3"):
        schedule.simulate(dualpipe.Costs(f=[1, 2, 3], i=1, w=1))
    with pytest.raises(dualpipe.InvalidArgument, match="w has 2 values, must have 1 or 3"):
        dualpipe.Costs(f=[1, 2, 3], i=1, w=[1, 1])


def test_without_fb_nothing_overlaps():
    schedule = dualpipe.Schedule("dualpipe", 4, 8)
    costs = {"f": [0.1, 0.2, 0.3, 0.4], "i": 0.7, "w": 0.01}
    alone = schedule.simulate(dualpipe.Costs(**costs))
    same = schedule.simulate(dualpipe.Costs(**costs, fb=[0.81, 0.91, 1.01, 1.11]))
    assert alone.makespan == same.makespan


def test_an_fb_as_long_as_its_b_survives_rounding():
    dualpipe.Schedule("dualpipe", 2, 4).simulate(dualpipe.Costs(f=0, i=1.6e-9, w=1.6e-9, fb=3.2e-9))
    with pytest.raises(dualpipe.InvalidArgument, match="overlapped"):
        dualpipe.Schedule("dualpipe", 2, 4).simulate(dualpipe.Costs(f=1, i=1, w=1, fb=1))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1, -1e-12, 1000.5])
@pytest.mark.parametrize("name", ["f", "i", "w", "fb", "latency"])
def test_bad_times_are_named(name, bad):
    with pytest.raises(dualpipe.InvalidArgument, match=f"^{name} is .*, must be 0 to 1000 seconds"):
        dualpipe.Costs(**{"f": 1, "i": 1, "w": 1, name: bad})


def test_bad_costs_are_named():
    unit = {"f": 1, "i": 1, "w": 1}
    with pytest.raises(dualpipe.InvalidArgument, match=r"^f\[1\] is nan"):
        dualpipe.Costs(**{**unit, "f": [1, math.nan]})
    with pytest.raises(dualpipe.InvalidArgument, match="^f is empty"):
        dualpipe.Costs(**{**unit, "f": []})
    with pytest.raises(dualpipe.InvalidArgument, match="^output_bytes is -1, must be 0 to"):
        dualpipe.Costs(**unit, output_bytes=-1)
    with pytest.raises(TypeError, match="^parameter_bytes is 1.5, must be an integer"):
        dualpipe.Costs(**unit, parameter_bytes=1.5)
    with pytest.raises(TypeError, match="^w is '1', must be a number"):
        dualpipe.Costs(**{**unit, "w": "1"})
    for bandwidth in (0, -1, math.nan, math.inf):
        with pytest.raises(dualpipe.InvalidArgument, match="^bandwidth is"):
            dualpipe.Costs(**unit, bandwidth=bandwidth)
    with pytest.raises(TypeError, match="costs is 3"):
        dualpipe.Schedule("1f1b", 1, 1).simulate(3)


def test_a_timeline_is_drawn(timeline, tmp_path):
    lines = str(timeline).splitlines()
    assert [line for line in lines if line.startswith("7|")]
    assert lines[-1].startswith("makespan 59 s")
    svg = timeline.svg(tmp_path / "t.svg")
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert (tmp_path / "t.svg").read_text(encoding="utf-8") == svg == timeline._repr_svg_()
    assert json.loads(timeline.trace(tmp_path / "t.json"))
    assert "8 ranks, 59 s" in repr(timeline)
    with pytest.raises(OSError, match="nowhere"):
        timeline.svg(tmp_path / "nowhere" / "t.svg")


def test_merge_refuses_what_is_not_one_step(timeline):
    with pytest.raises(dualpipe.InvalidArgument):
        dualpipe.Timeline.merge([])
    with pytest.raises(dualpipe.InvalidArgument):
        dualpipe.Timeline.merge([timeline, timeline])
    timeline.close()
    with pytest.raises(dualpipe.InvalidHandle, match=r"timelines\[0\] has been freed"):
        dualpipe.Timeline.merge([timeline])


def test_timelines_are_compared_in_one_picture(timeline, tmp_path):
    path = tmp_path / "both.svg"
    both = dualpipe.Timeline.compare([timeline, timeline], path)
    assert path.read_text(encoding="utf-8") == both
    assert both.startswith("<svg") and both.count("rank 0") > timeline.svg().count("rank 0")
    with pytest.raises(dualpipe.InvalidArgument, match="count is 0, must be 1 to 64"):
        dualpipe.Timeline.compare([])
