"""replay shows policies the past only, judges them by what comes next, and runs callables."""

import dualpipe
import numpy as np
import pytest
from dualpipe import eplb
from dualpipe.eplb import Cluster, FewMoves

SIZES = {"num_gpus": 4, "num_slots": 12, "num_nodes": 2}


def drifting(num_steps=12, layers=3, experts=8):
    """Loads whose hot experts move on."""
    step, layer, expert = np.ogrid[:num_steps, :layers, :experts]
    return 10.0 + 50.0 * ((expert - step // 4 - layer) % experts == 0)


def test_policies_are_compared_in_a_table(tmp_path):
    policies = {"none": "none", "deepseek": "deepseek", "refined": "refined", "few": FewMoves(1)}
    result = eplb.replay(drifting(), policies, window=4, every=2, expert_bytes=1000, **SIZES)
    assert [run.name for run in result.runs] == list(policies)
    lines = str(result).splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["policy", *policies]
    none, refined, few = result["none"], result["refined"], result["few"]
    for run, line in zip(result.runs, lines[1:]):
        assert run.windows["step"].tolist() == [4, 6, 8, 10]
        assert run.windows["num_steps"].tolist() == [2, 2, 2, 2]
        assert np.all(run.lower_bound <= run.imbalance) and np.all(run.lower_bound >= 1)
        assert run.window_imbalance.shape == (4, 3) and run.gpu_loads.shape == (3, 4)
        # All steps weigh alike here.
        assert np.allclose(run.window_imbalance.mean(0), run.imbalance)
        assert np.allclose(run.window_imbalance.mean(1), run.windows["imbalance"])
        assert np.array_equal(run.window_imbalance.max(1), run.windows["worst_imbalance"])
        assert line.split()[1] == f"{run.imbalance.mean():.4f}"
        total = {name: int(run.windows["moves"][name].sum()) for name in run.moves}
        assert total == run.moves
        assert run.moves["same_node_bytes"] == 1000 * run.moves["same_node"]
    assert not any(none.windows["is_new"]) and all(refined.windows["is_new"])
    assert none.moves["same_node"] + none.moves["other_node"] == 0
    assert 0 < few.moves["same_node"] + few.moves["other_node"] <= 4 * 3
    with pytest.raises(KeyError):
        result["nobody"]
    result.save_svg(tmp_path / "replay.svg")
    assert (tmp_path / "replay.svg").read_text(encoding="utf-8") == result._repr_svg_()
    assert all(name in result._repr_svg_() for name in policies)


def test_a_callable_sees_the_past_and_no_more():
    loads = drifting()
    seen = []

    def mine(past):
        seen.append((past.step, past.loads.copy(), past.window.copy(), past.phy2log))
        assert past.shares is None and past.cluster == Cluster(**SIZES)
        with pytest.raises(ValueError):
            past.loads[0] = 0
        if past.step == 6:
            return None
        return eplb.balance(past.window, cluster=past.cluster, num_threads=1)

    result = eplb.replay(loads, {"mine": mine, "refined": "refined"}, window=4, every=2, **SIZES)
    assert [step for step, *_ in seen] == [4, 6, 8, 10]
    for step, past, window, _ in seen:
        assert np.array_equal(past, loads[:step]) and np.array_equal(window, loads[step - 4 : step])
    assert np.array_equal(seen[0][3], np.tile(np.arange(12) % 8, (3, 1)))
    mine, refined = result.runs
    assert mine.windows["is_new"].tolist() == [True, False, True, True]
    same = [0, 2, 3]
    assert np.array_equal(mine.window_imbalance[same], refined.window_imbalance[same])
    assert np.array_equal(seen[1][3], seen[2][3]), "kept"


def test_shares_count():
    slots = np.array([[0, 0, 1, 1]])
    loads = np.tile([[[3.0, 1.0]]], (3, 1, 1))

    def shared(past):
        if past.step == 2:
            assert past.shares.tolist() == [[1 / 3, 2 / 3, 0.0, 1.0]]
            return slots, None
        return slots, [[1 / 3, 2 / 3, 0.0, 1.0]]

    run = eplb.replay(loads, {"shared": shared}, window=1, num_gpus=4, num_slots=4).runs[0]
    assert np.allclose(run.window_imbalance[:, 0], [2.0, 1.5])


def test_what_a_callable_raises_comes_out():
    class Mine(Exception):
        pass

    def raises(past):
        raise Mine("enough")

    def interrupts(past):
        raise KeyboardInterrupt

    for policy, error, text in [
        (raises, Mine, "enough"),
        (interrupts, KeyboardInterrupt, None),
        (lambda past: past.phy2log[:, :3], dualpipe.InvalidArgument, r"must be \[3, 12\]"),
        (lambda past: past.phy2log * 0, dualpipe.InvalidArgument, "at step 4: layer 0: expert 1 is on no live GPU"),
        (lambda past: past.phy2log + (1 << 32), dualpipe.InvalidArgument, r"slot_to_expert\[0\] is 4294967296"),
        (lambda past: "what", TypeError, "must be integers"),
    ]:
        with pytest.raises(error, match=text):
            eplb.replay(drifting(), {"mine": policy}, window=4, **SIZES)


def test_a_replay_can_be_stopped():
    seen = []

    def progress(done, total):
        seen.append((done, total))
        return len(seen) < 3

    dualpipe.set_progress(progress)
    try:
        with pytest.raises(dualpipe.Cancelled):
            eplb.replay(drifting(), {"none": "none"}, window=4, every=2, **SIZES)
    finally:
        dualpipe.set_progress(None)
    assert seen == [(1, 4), (2, 4), (3, 4)]


def test_defaults_suit_the_cluster():
    result = eplb.replay(drifting(), window=4, **SIZES)
    assert [run.name for run in result.runs] == ["none", "deepseek", "refined", "8 moves"]
    dead = Cluster(**SIZES, dead=[1])
    result = eplb.replay(
        drifting(), window=4, cluster=dead, initial=np.tile([0, 1, 2, -1, -1, -1, 3, 4, 5, 6, 7, 0], (3, 1))
    )
    assert [run.name for run in result.runs] == ["none", "refined", "8 moves"]
    assert result.runs[0].gpu_loads[:, 1].tolist() == [0, 0, 0]


def test_numbers_out_of_range_are_refused():
    for given, text in [
        ({"loads": drifting()[0]}, r"loads has shape \[3, 8\], must be \[steps, layers, experts\]"),
        ({"window": 0}, "window is 0, must be 1 to 11"),
        ({"window": 12}, "window is 12, must be 1 to 11"),
        ({"every": 0}, "every is 0"),
        ({"expert_bytes": 1 << 64}, "expert_bytes is 18446744073709551616"),
        ({"expert_bytes": 1 << 40}, "expert_bytes is 1099511627776"),
        ({"policies": {}}, "num_policies is 0, must be 1 to 64"),
        ({"policies": {"x": "best"}}, "policy 'x' is 'best', must be 'none', 'deepseek', 'refined'"),
        ({"initial": np.zeros((3, 12), int)}, "the initial placement: layer 0: expert 1 is on no live GPU"),
        ({"num_gpus": 5, "policies": {"x": "deepseek"}}, "deepseek: num_slots is 12, must be a multiple of num_gpus"),
        ({"num_threads": 5000}, "num_threads is 5000, must be 0 to 4096"),
    ]:
        arguments = {"loads": drifting(), "window": 4, **SIZES, **given}
        with pytest.raises(dualpipe.InvalidArgument, match=text):
            eplb.replay(**arguments)
    with pytest.raises(TypeError, match="policy 'x' is 3"):
        eplb.replay(drifting(), {"x": 3}, window=4, **SIZES)
    with pytest.raises(dualpipe.InvalidArgument, match="one of max_moves, max_price and reach must be given"):
        FewMoves()


def test_a_history_is_replayed():
    history = eplb.LoadHistory.of(drifting())
    policies = {"refined": "refined"}
    run = eplb.replay(history, policies, window=4, **SIZES).runs[0]
    assert np.array_equal(run.windows, eplb.replay(drifting(), policies, window=4, **SIZES).runs[0].windows)
