"""Memory against time: ``dualpipe.memory_time_front`` and ``python -m dualpipe front``."""

import xml.etree.ElementTree

import dualpipe
import pytest

COSTS = dualpipe.Costs(f=0.01, i=0.01, w=0.01, fb=0.025, activation_bytes=1 << 20, parameter_bytes=1 << 22)
SMALL = {"ranks": 4, "microbatches": 8, "costs": COSTS, "iterations": 60}
WORDS = ["--ranks", 4, "--microbatches", 8, "--f", "10ms", "--i", "10ms", "--w", "10ms", "--fb", "25ms"]


def check_front(front, costs):
    """Every point is as it says, and along the front nothing rises."""
    for point in front.points:
        timeline = point.schedule.simulate(costs)
        kept = point.schedule.check() if front.unit == "activations" else timeline.peak_memory
        assert max(kept) == point.peak <= point.cap
        assert timeline.makespan == point.makespan >= point.lower_bound > 0
        assert point.gap == pytest.approx(point.makespan / point.lower_bound - 1)
        assert point.started_from
    for smaller, larger in zip(front.points, front.points[1:]):
        assert smaller.cap < larger.cap
        assert smaller.makespan >= larger.makespan and smaller.lower_bound >= larger.lower_bound


def test_given_caps_have_a_point_each(tmp_path):
    front = dualpipe.memory_time_front(**SMALL, caps=[2, 3, 5])
    assert [point.cap for point in front.points] == [2, 3, 5] and front.unit == "activations" and not front.is_stopped
    check_front(front, COSTS)
    assert [published.name for published in front.published] == ["chimera", "dualpipe"]
    dualpipe_itself = front.published[1]
    assert dualpipe_itself.makespan == dualpipe.Schedule("dualpipe", 4, 8).simulate(COSTS).makespan
    assert dualpipe_itself.peak == 5 and front.points[-1].makespan <= dualpipe_itself.makespan
    assert str(front) == front.text and str(front).startswith("4 ranks, 8 micro-batches: memory cap on each rank")
    svg = front.svg(tmp_path / "front.svg")
    assert (tmp_path / "front.svg").read_text(encoding="utf-8") == svg == front._repr_svg_()
    assert xml.etree.ElementTree.fromstring(svg).tag.endswith("svg")
    assert "3 caps" in repr(front) and "cap 2" in repr(front.points[0])


@pytest.mark.parametrize("placement", ["linear", "v", "bidirectional", [0, 1, 1, 0]])
def test_all_caps_go_from_the_least_to_where_more_gains_nothing(placement):
    given = {**SMALL, "ranks": 2, "microbatches": 5, "placement": placement}
    front = dualpipe.memory_time_front(**given)
    in_bytes = dualpipe.memory_time_front(**given, caps_bytes="all")
    assert front.points[0].cap == (1 if placement == "linear" else 2)
    stages = 1 if placement == "linear" else 2
    assert in_bytes.unit == "bytes" and in_bytes.points[0].cap == stages * ((1 << 22) + (1 << 20))
    for each in (front, in_bytes):
        check_front(each, COSTS)
        assert len(each.points) <= 24
        assert all(point.makespan > each.points[-1].makespan for point in each.points[:-1])


def test_the_same_iterations_and_seed_give_the_same_schedules():
    fronts = [dualpipe.memory_time_front(**SMALL, caps=[3, 4], seed=7, num_threads=n) for n in (1, 2)]
    orders = [[str(point.schedule) for point in front.points] for front in fronts]
    assert orders[0] == orders[1]
    fronts[0].close()
    with pytest.raises(dualpipe.InvalidHandle):
        fronts[0].svg()


def test_progress_is_told_stops_and_raises():
    given = {**SMALL, "placement": "linear"}
    told = []
    front = dualpipe.memory_time_front(**given, caps=[3, 5], progress=lambda done, total: told.append((done, total)))
    assert not front.is_stopped and told == sorted(told) and {total for _, total in told} == {120}
    front = dualpipe.memory_time_front(**given, caps=[3, 5], progress=lambda done, total: False)
    assert front.is_stopped and [point.cap for point in front.points] == [3, 5]
    with pytest.raises(ZeroDivisionError):
        dualpipe.memory_time_front(**given, caps=[3, 5], progress=lambda done, total: 1 // 0)
    by_time = {**given, "iterations": None, "time": 0.02}
    told.clear()
    dualpipe.memory_time_front(**by_time, caps=[3, 5], progress=lambda done, total: told.append((done, total)))
    assert {total for _, total in told} <= {40_000_000} and all(done <= total for done, total in told)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"caps": [4, 3]}, dualpipe.InvalidArgument, r"caps\[1\] is 3, must be more than 4"),
        ({"caps": []}, dualpipe.InvalidArgument, "caps is empty"),
        ({"caps": "some"}, dualpipe.InvalidArgument, "caps is 'some', must be 'all' or numbers that rise"),
        (
            {"caps": [1], "placement": "v"},
            dualpipe.InvalidArgument,
            "the memory cap of rank 0 is 1, must be at least 2",
        ),
        ({"caps": [-1]}, dualpipe.InvalidArgument, "caps is -1, must be 0 to"),
        ({"caps": [2.5]}, TypeError, "caps is 2.5, must be an integer"),
        ({"caps": range(1, 259)}, dualpipe.InvalidArgument, "num_caps is 258, must be 1 to 256"),
        ({"caps": [3], "caps_bytes": [3]}, dualpipe.InvalidArgument, "caps and caps_bytes are both given"),
        ({"caps_bytes": [1 << 60]}, dualpipe.InvalidArgument, "is 1152921504606846976, must be 0 to"),
        ({"costs": 3}, TypeError, "costs is 3, must be dualpipe.Costs"),
        ({"placement": "round"}, dualpipe.InvalidArgument, "placement is 'round', must be 'linear'"),
        ({"time": float("nan")}, dualpipe.InvalidArgument, "time is nan"),
        ({"seed": -1}, dualpipe.InvalidArgument, "seed is -1"),
    ],
)
def test_what_is_wrong_is_said(given, error, words):
    with pytest.raises(error, match=words):
        dualpipe.memory_time_front(**{**SMALL, **given})


def test_the_command_prints_and_draws(run, tmp_path):
    code, out, err = run("front", *WORDS, "--caps", "3,5", "--iterations", 60)
    given = {**SMALL, "costs": dualpipe.Costs(f=0.01, i=0.01, w=0.01, fb=0.025)}
    assert (code, out, err) == (0, str(dualpipe.memory_time_front(**given, caps=[3, 5])), "")
    path = tmp_path / "front.svg"
    code, out, _ = run("front", *WORDS, "--placement", "v", "--iterations", 50, "--svg", path)
    assert (code, out) == (0, f"wrote {path}\n") and "dualpipe_v" in path.read_text()
    code, out, _ = run("front", *WORDS, "--caps-bytes", "1GiB,2GiB", "--activation-bytes", "100MiB", "--iterations", 50)
    assert code == 0 and "in GiB" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([*WORDS, "--caps", "5,3"], "caps[1] is 3, must be more than 5"),
        ([*WORDS, "--caps", "3", "--caps-bytes", "3GiB"], "--caps and --caps-bytes are both given"),
        ([*WORDS, "--caps", "0"], "must be a whole number from 1 on"),
        (WORDS[:2], "--microbatches"),
        ([*WORDS, "--placement", "round"], "--placement is 'round', must be one of"),
    ],
)
def test_the_command_refuses(run, words, says):
    code, out, err = run("front", *words)
    assert (code, out) == (2, "") and says in err


def test_the_examples_of_the_help_run(run, tmp_path, monkeypatch):
    code, out, _ = run("front", "--help")
    assert code == 0 and "examples:" in out and "python -m dualpipe front --ranks 8 --microbatches 20" in out
    monkeypatch.chdir(tmp_path)
    (tmp_path / "costs.json").write_text('{"f": 1, "i": 1, "w": 1, "activation_bytes": 1024}')
    examples = [line.split()[3:] for line in out.splitlines() if line.strip().startswith("python -m dualpipe front")]
    assert len(examples) == 3
    for example in examples:
        if "--time" in example:
            del example[example.index("--time") :][:2]
        code, _, err = run(*example, "--iterations", 1)
        assert code == 0, err
