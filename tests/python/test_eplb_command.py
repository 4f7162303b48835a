"""``python -m dualpipe eplb``: what a newcomer types, what comes out, what is refused."""

import json
from functools import partial

import numpy as np
import pytest
from dualpipe import eplb

GPUS = ["--gpus", "4", "--slots", "24", "--nodes", "2"]


@pytest.fixture
def loads(tmp_path):
    """A file of 6 steps, 3 layers, 16 experts, and what is in it."""
    rng = np.random.default_rng(3)
    hot = rng.permuted(np.tile(1000.0 / np.arange(2, 18), (3, 1)), axis=1)
    values = (hot * rng.uniform(0.9, 1.1, size=(6, 3, 16))).astype(np.float32)
    np.save(tmp_path / "loads.npy", values)
    return tmp_path / "loads.npy", values


@pytest.fixture
def run(run):
    """Runs ``eplb``."""
    return partial(run, "eplb")


def number(out, line):
    """The mean in a line of the summary."""
    return float(next(row for row in out.splitlines() if row.startswith(line)).removeprefix(line).split()[0])


def test_a_plan_is_printed_drawn_and_written(run, loads, tmp_path):
    path, values = loads
    for name in ("plan.json", "plan.csv", "plan.npy"):
        code, out, err = run(path, *GPUS, "--map", tmp_path / name, "--svg", tmp_path / "map.svg")
        assert (code, err) == (0, "")
        plan = eplb.balance(values, num_gpus=4, num_slots=24, num_nodes=2)
        assert number(out, "imbalance") == round(plan.imbalance.mean(), 4)
        assert number(out, "lower bound") == round(plan.lower_bound.mean(), 4)
        assert number(out, "experts in order") > number(out, "imbalance")
        assert f"{plan.imbalance.argmax():12}{plan.imbalance.max():12.4f}" in out
        assert "experts in order" in (tmp_path / "map.svg").read_text(encoding="utf-8")
        code, out, err = run(path, *GPUS, "--verify", tmp_path / name)
        assert (code, err) == (0, "") and out.startswith("nothing is wrong with the placement\n")
        assert number(out, "imbalance") == round(plan.imbalance.mean(), 4)
    layers = json.loads((tmp_path / "plan.json").read_text())["layer_list"]
    assert [device["device_expert"] for device in layers[1]["device_list"]] == plan.phy2log[1].reshape(4, 6).tolist()


def test_a_current_placement_is_changed_by_few_moves(run, loads, tmp_path):
    path, _ = loads
    slots = np.tile(np.arange(24) % 16, (3, 1))
    eplb_map = tmp_path / "now.csv"
    np.savetxt(eplb_map, slots, fmt="%d", delimiter=",")
    code, out, _ = run(path, *GPUS, "--current", eplb_map, "--moves", 2)
    assert code == 0 and 0 < number(out, "moves") <= 2
    assert number(out, "imbalance") < number(out, "current placement")
    code, out, _ = run(path, *GPUS, "--current", eplb_map, "--reach", 1.3)
    assert code == 0 and number(out, "imbalance") <= 1.3
    code, out, _ = run(path, *GPUS, "--current", eplb_map, "--dead", 0)
    assert code == 0 and "(1 dead)" in out and "before: tokens would be lost" in out


def test_policies_are_replayed(run, loads, tmp_path):
    path, _ = loads
    code, out, _ = run(path, *GPUS, "--replay", 2, 1, "--moves", 3, "--svg", tmp_path / "replay.svg")
    assert code == 0
    names = [line.split()[0] for line in out.splitlines()[3:8]]
    assert names == ["policy", "none", "deepseek", "refined", "3"]
    assert "3 moves" in (tmp_path / "replay.svg").read_text(encoding="utf-8")
    code, out, _ = run(path, *GPUS, "--replay", 2, 2, "--dead", 1, "--reach", 1.2)
    assert code == 0 and "deepseek" not in out and "reach 1.2" in out


def test_options_reach_the_planner(run, loads):
    path, values = loads
    total = values.sum(0)
    for words, options in [
        (["--policy", "deepseek"], {"policy": "deepseek"}),
        (["--split", "weighted", "--last", "1"], {"split": "weighted"}),
        (["--groups", "4", "--group-rule", "whole", "--last", "1"], {"num_groups": 4, "groups": "whole"}),
        (["--groups", "4", "--group-rule", "0.5", "--last", "1"], {"num_groups": 4, "groups": 0.5}),
        (["--min-nodes", "1", "--min-gpus", "1", "--effort", "3", "--last", "1"], {"effort": 3}),
    ]:
        code, out, err = run(path, *GPUS, *words)
        assert (code, err) == (0, "")
        of = values[-1] if "--last" in words else total
        plan = eplb.balance(of, num_gpus=4, num_slots=24, num_nodes=2, **options)
        assert number(out, "imbalance") == round(plan.imbalance.mean(), 4)
    code, out, _ = run(path, "--slots-per-gpu", "9,5,5,5", "--gpus", "4", "--last", "1")
    assert code == 0 and "24 slots on 4 GPUs" in out
    code, out, _ = run(path, "--slots-per-gpu", "6", "--gpus", "4", "--last", "1")
    assert code == 0 and "24 slots on 4 GPUs" in out
    code, out, _ = run(path, "--gpus", "4", "--last", "1")
    assert code == 0 and "16 slots on 4 GPUs" in out


def test_loads_are_read_from_each_kind_of_file(run, loads, tmp_path):
    path, values = loads
    steps = ["\n".join(",".join(str(float(load)) for load in layer) for layer in step) for step in values]
    (tmp_path / "loads.csv").write_text("\n\n".join(steps))
    np.savez(tmp_path / "loads.npz", logical_count=values, other=[1])
    _, want, _ = run(path, *GPUS)
    for name in ("loads.csv", "loads.npz"):
        code, out, err = run(tmp_path / name, *GPUS)
        assert (code, err, out) == (0, "", want)


def test_a_wrong_placement_is_said_to_be_wrong(run, loads, tmp_path):
    path, _ = loads
    slots = np.tile(np.arange(24) % 16, (3, 1))
    slots[1, 1] = 0
    np.save(tmp_path / "wasteful.npy", slots)
    code, out, _ = run(path, *GPUS, "--verify", tmp_path / "wasteful.npy")
    assert (
        code == 0 and out.startswith("warning: layer 1: GPU 0 holds 2 replicas of expert 0, ") and "1 warnings" in out
    )
    slots[1] = 0
    np.save(tmp_path / "wrong.npy", slots)
    code, out, _ = run(path, *GPUS, "--verify", tmp_path / "wrong.npy")
    assert code == 1 and "error: layer 1: expert 1 is on no live GPU\n" in out
    assert "the placement must not be used" in out


def test_what_cannot_be_done_is_said(run, loads, tmp_path):
    path, _ = loads
    (tmp_path / "bad.csv").write_text("1,2\n3,x\n")
    (tmp_path / "ragged.csv").write_text("1,2\n3\n")
    (tmp_path / "map.json").write_text("{}")
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    for words, text in [
        ([tmp_path / "none.npy", *GPUS], "none.npy"),
        ([tmp_path / "bad.csv", *GPUS], "bad.csv: "),
        ([tmp_path / "ragged.csv", *GPUS], "line 2 has 1 numbers, must have 2"),
        ([tmp_path / "text.npy", *GPUS], "text.npy"),
        ([tmp_path / "loads.txt", *GPUS], "loads.txt"),
        ([path, "--gpus", 4, "--slots", 8], "must be at least 16"),
        ([path, *GPUS, "--verify", tmp_path / "map.json"], "map.json"),
        ([path, *GPUS, "--map", tmp_path / "map.txt"], "ends in .txt, must end in .json"),
        ([path, "--slots", 20], "num_gpus is not given"),
        ([path, *GPUS, "--moves", 3], "current is None"),
        ([path, *GPUS, "--dead", 9], "dead has 9, must be less than num_gpus, 4"),
        ([path, *GPUS, "--replay", 6, 1], "window is 6, must be 1 to 5"),
    ]:
        code, _, err = run(*words)
        assert code == 2 and text in err, err
    for words in [["--gpus", "0"], ["--gpus", "x"], ["--dead", "1;2"], ["--group-rule", "half"], ["--replay", "3"]]:
        code, _, err = run(path, *words)
        assert code == 2 and words[0] in err


def test_help_has_examples(run):
    code, out, _ = run("--help")
    assert code == 0 and "examples:" in out and "--replay WINDOW EVERY" in out
    assert max(map(len, out.splitlines())) <= 120
