"""``python -m dualpipe schedule``, ``check``, ``simulate``, ``draw``: what is typed, what comes out, what is refused."""

import io
import json
import xml.etree.ElementTree

import dualpipe
import pytest
from dualpipe.torch.schedule_csv import schedule_csv

DUALPIPE = ["dualpipe", "--ranks", 8, "--microbatches", 20]
UNIT = ["--f", 1, "--i", 1, "--w", 1]
COMMANDS = ("schedule", "check", "simulate", "draw")


def figure(out, line):
    """The number in a line of the summary."""
    return float(next(row for row in out.splitlines() if row.startswith(line)).removeprefix(line).split()[0])


def test_a_schedule_is_printed_and_read_again(run, tmp_path, monkeypatch):
    schedule = dualpipe.Schedule("dualpipe", 8, 20)
    code, out, err = run("schedule", *DUALPIPE)
    assert (code, out, err) == (0, str(schedule), "")
    path = tmp_path / "mine.txt"
    assert run("schedule", *DUALPIPE, "--out", path) == (0, f"wrote {path}\n", "")
    assert run("schedule", path) == (0, str(schedule), "")
    monkeypatch.setattr("sys.stdin", io.StringIO(str(schedule)))
    assert run("schedule", "-") == (0, str(schedule), "")
    only = run("schedule", "looped_bfs", "--ranks", 2, "--microbatches", 2, "--stages-per-rank", 2, "--forward-only")
    assert only == (0, "0| 0F0 0F1 2F0 2F1\n1| 1F0 1F1 3F0 3F1\n", "")


def test_a_schedule_is_written_for_torch(run, tmp_path):
    schedule = dualpipe.Schedule("dualpipe_v", 2, 4)
    words = ["dualpipe_v", "--ranks", 2, "--microbatches", 4, "--csv", tmp_path / "a.csv"]
    for command in ("schedule", "draw"):
        assert run(command, *words) == (0, f"wrote {tmp_path / 'a.csv'}\n", "")
        assert (tmp_path / "a.csv").read_text() == schedule_csv(schedule)
    assert run("schedule", *words, "--torch", "2.8")[0] == 0
    assert (tmp_path / "a.csv").read_text() == schedule_csv(schedule, "2.8") != schedule_csv(schedule)
    assert run("schedule", *words, "--format", "compute_comms")[0] == 0
    assert (tmp_path / "a.csv").read_text() == schedule_csv(schedule, format="compute_comms")
    code, out, err = run("schedule", *DUALPIPE, "--csv", tmp_path / "b.csv")
    assert (code, out) == (2, "") and "of two directions" in err and not (tmp_path / "b.csv").exists()


def test_a_check_says_what_was_proved(run):
    code, out, err = run("check", *DUALPIPE)
    assert (code, err) == (0, "")
    assert out.startswith(
        "dualpipe: 8 ranks, two directions, 20 micro-batches\nit can run:\n- every micro-batch has its F "
    )
    rows = [list(map(int, row.split())) for row in out.splitlines()[-8:]]
    orders = [dualpipe.Schedule("dualpipe", 8, 20).order(rank) for rank in range(8)]
    assert rows == [[rank, len(order), 2, 9] for rank, order in enumerate(orders)]
    code, out, _ = run("check", "v_half", "--ranks", 2, "--microbatches", 3, "--forward-only")
    assert code == 0 and out.startswith("v_half: 2 ranks, 4 stages, 3 micro-batches, forward only\n")


def test_what_cannot_run_is_said_with_its_place(run, tmp_path):
    path = tmp_path / "broken.txt"
    path.write_text("0| 0F0 0B0\n1| 1B0 1F0\n")
    for command in ("check", "simulate", "draw"):
        code, out, err = run(command, path)
        assert (code, out) == (1, "")
        assert err.startswith(f"python -m dualpipe {command}: dualpipe_")
        assert "broken: rank 1, position 0 (1B0): this backward comes before its F" in err
    assert run("schedule", path)[0] == 0


def test_a_simulation_gives_the_figures(run):
    code, out, err = run("simulate", *DUALPIPE, *UNIT, "--fb", 2.5, "--activation-bytes", "1GiB")
    assert (code, err) == (0, "")
    timeline = dualpipe.Schedule("dualpipe", 8, 20).simulate(dualpipe.Costs(f=1, i=1, w=1, fb=2.5))
    assert figure(out, "makespan") == timeline.makespan == 59
    assert figure(out, "lower bound") == pytest.approx(timeline.lower_bound, rel=1e-5)
    assert figure(out, "gap") == pytest.approx(100 * timeline.gap, abs=0.006)
    assert figure(out, "bubble") == pytest.approx(100 * timeline.bubble, abs=0.006)
    assert out.splitlines()[-1].split() == ["7", *f"{timeline.busy[7]:g} s {timeline.idle[7]:g} s 9 9 GiB".split()]


def test_costs_come_by_options_and_from_a_file(run, tmp_path):
    words = ["simulate", "1f1b", "--ranks", 2, "--microbatches", 4]
    schedule = dualpipe.Schedule("1f1b", 2, 4)
    given = {"f": [0.01, 0.012], "i": 0.011, "w": 0.009, "latency": 2e-5, "bandwidth": 5e10, "output_bytes": 2097152}
    want = schedule.simulate(dualpipe.Costs(**given)).makespan
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(given))
    options = ["--f", "10ms,12ms", "--i", "0.011", "--w", "9000us", "--latency", "20us"]
    options += ["--bandwidth", "50GB", "--output-bytes", "2MiB"]
    for costs in (options, ["--costs", path], ["--costs", path, "--w", "9000000ns"]):
        code, out, err = run(*words, *costs)
        assert (code, err) == (0, "")
        assert figure(out, "makespan") == pytest.approx(1e3 * want, rel=1e-5)
    slower = figure(run(*words, "--costs", path, "--w", "20ms")[1], "makespan")
    assert slower > 1e3 * want
    # Without any, all are one second.
    assert figure(run(*words)[1], "makespan") == schedule.simulate(dualpipe.Costs(f=1, i=1, w=1)).makespan


def test_pairs_come_by_options_and_from_a_file(run, tmp_path):
    words = ["simulate", "dualpipe", "--ranks", 2, "--microbatches", 6]
    pairs = {(0, 1): 2.0, (1, 0): 2.25}
    want = dualpipe.Schedule("dualpipe", 2, 6).simulate(dualpipe.Costs(f=1, i=1, w=1, pairs=pairs)).makespan
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"f": 1, "i": 1, "w": 1, "fb": None, "pairs": [[0, 1, 2.0], [1, 0, 3.0]]}))
    by_options = run(*words, *UNIT, "--pair", "0,1,2", "--pair", "1,0,2250ms")
    by_file = run(*words, "--costs", path, "--pair", "1,0,2.25s")
    assert by_options == by_file and by_options[0] == 0
    assert figure(by_options[1], "makespan") == want < figure(run(*words, *UNIT)[1], "makespan")


def test_a_schedule_is_drawn(run, tmp_path):
    timeline = dualpipe.Schedule("dualpipe", 8, 20).simulate(dualpipe.Costs(f=1, i=1, w=1, fb=2.5))
    words = ["draw", *DUALPIPE, *UNIT, "--fb", 2.5]
    assert run(*words) == (0, str(timeline), "")
    svg, trace = tmp_path / "a.svg", tmp_path / "a.json"
    assert run(*words, "--svg", svg, "--trace", trace) == (0, f"wrote {svg}\nwrote {trace}\n", "")
    assert svg.read_text(encoding="utf-8") == timeline.svg() and trace.read_text(encoding="utf-8") == timeline.trace()
    assert xml.etree.ElementTree.parse(svg).getroot().tag.endswith("svg")


def test_what_cannot_be_done_is_said(run, tmp_path):
    def file(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    simulate = ["simulate", "1f1b", "--ranks", 2, "--microbatches", 2]
    text = file("good.txt", "0| 0F0 0B0\n")
    for words, want in [
        (["check", "no_such"], "SCHEDULE is 'no_such', which is neither a file nor one of dualpipe, dualpipe_v, 1f1b"),
        (["check", tmp_path], "Is a directory"),
        (["check", "dualpipe", "--ranks", 4], "dualpipe needs --microbatches"),
        (["check", "dualpipe", "--ranks", 3, "--microbatches", 8], "num_ranks is 3, must be even"),
        (
            ["check", "1f1b", "--ranks", 3, "--microbatches", 8, "--stages-per-rank", 2],
            "stages_per_rank is 2, must be 0",
        ),
        (["check", text, "--ranks", 1, "--forward-only"], "--ranks, --forward-only: a file has its own sizes"),
        (["check", file("bad.txt", "0| 0F0 0X0\n")], 'schedule text: line 1, column 8 is "0X0"'),
        (["draw", *DUALPIPE, "--svg", tmp_path / "no" / "a.svg"], "No such file or directory"),
        (["schedule", *DUALPIPE, "--csv", tmp_path / "a.csv", "--torch", "1.0"], "must be at least 2.6"),
        ([*simulate, "--f", "1"], "of the costs i, w are not given"),
        ([*simulate, "--f", "1", "--i", "1"], "of the costs w is not given"),
        ([*simulate, "--fb", "1"], "of the costs f, i, w are not given"),
        ([*simulate, *UNIT, "--fb", "1"], "overlapped_ns is 1000000000, must be at least 2000000000"),
        ([*simulate, *UNIT, "--latency", "-1"], "latency is -1.0, must be 0 to 1000 seconds"),
        ([*simulate, "--f", "1,2,3", "--i", 1, "--w", 1], "the number of stages is 3, must be 1 or 2"),
        ([*simulate, *UNIT, "--pair", "0,1,1"], "pairs[0, 1] is 1, must be at least 2"),
        ([*simulate, "--costs", tmp_path / "none.json"], "No such file"),
        ([*simulate, "--costs", file("a.json", "{")], "a.json: "),
        ([*simulate, "--costs", file("b.json", "[1]")], "b.json: must be an object of JSON"),
        ([*simulate, "--costs", file("c.json", '{"g": 1}')], "c.json: has 'g', must be one of f, i, w, fb, latency"),
        ([*simulate, "--costs", file("d.json", '{"f": "1", "i": 1, "w": 1}')], "d.json: f is '1', must be a number"),
        (
            [*simulate, "--costs", file("e.json", '{"f": 1, "i": 1, "w": 1, "pairs": {}}')],
            "e.json: pairs must be a list",
        ),
        (
            [*simulate, "--costs", file("f.json", '{"f": 1, "i": 1, "w": 1, "pairs": [["a", [], 3]]}')],
            "f.json: pairs has",
        ),
        ([*simulate, "--costs", file("g.json", '{"f": 1, "i": NaN, "w": 1}')], "i is nan, must be 0 to 1000"),
        ([*simulate, "--costs", file("h.json", "[" * 100000)], "h.json: "),
    ]:
        code, out, err = run(*words)
        assert (code, out) == (2, ""), words
        assert err.startswith(f"python -m dualpipe {words[0]}: ") and want in err, err
    for words in [
        ["check"],
        ["check", *DUALPIPE, "--ranks", "0"],
        ["check", *DUALPIPE, "--microbatches", "x"],
        [*simulate, "--f", "1h"],
        [*simulate, "--f", "1,,2"],
        [*simulate, "--bandwidth", "inf"],
        [*simulate, "--pair", "0,1"],
        [*simulate, "--pair", "a,1,2"],
    ]:
        code, out, err = run(*words)
        assert (code, out) == (2, "") and "error: " in err, words


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_that_run(command, run, tmp_path, monkeypatch):
    code, out, _ = run(command, "--help")
    assert code == 0 and "examples:" in out and max(map(len, out.splitlines())) <= 120
    for kind in dualpipe.schedule.KINDS:
        assert kind in out
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text(str(dualpipe.Schedule("dualpipe", 2, 4)))
    theirs = schedule_csv(dualpipe.Schedule("zb_v", 2, 4), "2.15", "compute_comms")
    (tmp_path / "theirs.csv").write_text(theirs)
    (tmp_path / "costs.json").write_text(json.dumps({"f": 1, "i": [1, 2], "w": 1, "fb": 4, "pairs": [[0, 1, 3]]}))
    examples = [line for line in out.splitlines() if line.startswith(f"  python -m dualpipe {command} ")]
    assert len(examples) >= 2
    for example in examples:
        code, _, err = run(*example.split()[3:])
        assert (code, err) == (0, ""), example


def test_the_first_help_names_the_commands(run):
    code, out, _ = run()
    assert code == 0 and all(f"\n    {command} " in out for command in (*COMMANDS, "eplb", "doctor"))
