"""Plans: better than DeepSeek's and never below their bounds, on any cluster, for a window, and with few moves."""

import copy
import pickle

import dualpipe
import numpy as np
import pytest
from dualpipe import eplb


def lognormal(layers=6, experts=64, seed=1, sigma=0.65):
    """Loads of the shape that DeepSeek-V3's have."""
    return np.random.default_rng(seed).lognormal(12, sigma, (layers, experts)).astype(np.float32)


def later(loads, noise=0.02):
    return (loads * np.random.default_rng(99).lognormal(0, noise, loads.shape)).astype(np.float32)


def check(plan, loads):
    """All that a plan says follows from its slots, its shares and the loads."""
    cluster, slots, shares = plan.cluster, plan.phy2log, plan.shares
    steps = loads if loads.ndim == 3 else loads[None]
    live = np.ones(cluster.num_gpus, bool)
    live[list(cluster.dead)] = False
    live &= np.array(cluster.slots_per_gpu) > 0
    assert ((slots == -1) == ~live[cluster.gpu_of_slot]).all()
    gpus = np.zeros((len(steps), plan.num_layers, cluster.num_gpus))
    for layer, row in enumerate(slots):
        held = row >= 0
        assert (np.bincount(row[held], minlength=plan.num_experts) == plan.logcnt[layer]).all()
        assert (plan.logcnt[layer] >= 1).all()
        for expert, places in enumerate(plan.log2phy[layer]):
            assert sorted(places[places >= 0].tolist()) == np.flatnonzero(row == expert).tolist()
        of_expert = np.bincount(row[held], shares[layer, held], plan.num_experts)
        np.testing.assert_allclose(of_expert, 1, rtol=1e-9)
        if plan.split == "equal":
            np.testing.assert_allclose(shares[layer, held], 1 / plan.logcnt[layer][row[held]])
        for step, of_step in enumerate(steps):
            load = shares[layer, held] * of_step[layer][row[held]]
            gpus[step, layer] = np.bincount(cluster.gpu_of_slot[held], load, cluster.num_gpus)
    np.testing.assert_allclose(plan.gpu_loads, gpus.sum(axis=0), rtol=1e-9)
    np.testing.assert_allclose(plan.gpu_loads_of(loads), gpus if loads.ndim == 3 else gpus[0], rtol=1e-9)
    nodes = np.zeros((plan.num_layers, cluster.num_nodes))
    np.add.at(nodes.T, list(cluster.node_of_gpu), plan.gpu_loads.T)
    np.testing.assert_allclose(plan.node_loads, nodes, rtol=1e-9)
    heaviest, mean = gpus.max(axis=2).sum(axis=0), gpus.sum(axis=(0, 2)) / live.sum()
    np.testing.assert_allclose(plan.imbalance, heaviest / mean, rtol=1e-6)
    bounds = [plan.joint_bound, plan.node_bound] + [plan.equal_bound] * (plan.split == "equal")
    np.testing.assert_array_equal(plan.lower_bound, np.max(bounds, axis=0))
    assert (plan.lower_bound >= 1).all()
    assert (plan.gap >= -1e-9).all()
    np.testing.assert_allclose(plan.gap, plan.imbalance / plan.lower_bound - 1)


def duplicates(plan):
    """How often a GPU holds an expert that it has already."""
    gpu = plan.cluster.gpu_of_slot
    pairs = [(layer, g, e) for layer, row in enumerate(plan.phy2log) for g, e in zip(gpu, row) if e >= 0]
    return len(pairs) - len(set(pairs))


@pytest.mark.parametrize(
    ("num_slots", "num_gpus", "gap"), [(72, 8, 0.005), (72, 24, 0.05), (96, 48, 0.05), (80, 40, 0.1)]
)
def test_refined_is_nowhere_worse_than_deepseeks(num_slots, num_gpus, gap):
    loads = lognormal()
    on = {"num_slots": num_slots, "num_gpus": num_gpus}
    theirs, ours = (eplb.balance(loads, policy=policy, **on) for policy in ("deepseek", "refined"))
    for plan in (theirs, ours):
        check(plan, loads)
    np.testing.assert_array_equal(ours.lower_bound, theirs.lower_bound)
    assert (ours.imbalance <= theirs.imbalance + 1e-9).all()
    assert ours.imbalance.mean() < theirs.imbalance.mean()
    assert ours.gap.mean() < gap
    assert duplicates(ours) == 0


def test_groups_are_free_whole_or_have_a_price():
    loads = lognormal()
    on = {"num_slots": 72, "num_gpus": 8, "num_nodes": 4, "num_groups": 8}
    theirs = eplb.balance(loads, groups="whole", policy="deepseek", **on)
    whole, free = (eplb.balance(loads, groups=groups, **on) for groups in ("whole", "free"))
    check(whole, loads)
    assert (whole.imbalance <= theirs.imbalance + 1e-9).all()
    assert (whole.imbalance > free.imbalance).all()
    assert whole.gap.mean() < 0.002
    by_node = np.sort(whole.phy2log.reshape(6, 4, 18) // 8, axis=2)
    assert ((np.diff(by_node, axis=2) > 0).sum(axis=2) == 1).all()
    priced = [eplb.balance(loads, groups=price, **on) for price in (0, 0.05, 0.5, 1000)]
    for plan in priced:
        check(plan, loads)
    away = [plan.away.mean() for plan in priced]
    assert away == sorted(away, reverse=True)
    assert away[0] > 0.3
    assert away[-1] < 0.05
    assert priced[0].imbalance.mean() < priced[-1].imbalance.mean()
    for plan, price in zip(priced[1:3], (0.05, 0.5)):
        for other in (priced[0], priced[-1]):
            assert (plan.imbalance + price * plan.away).mean() <= (other.imbalance + price * other.away).mean() + 1e-9


def test_flashlbs_example_is_optimal_with_both_splits():
    loads = np.array([[600, 560, 120, 120, 20, 10, 10, 10]], np.float32)
    for split, heaviest in (("equal", 590 / 3), ("weighted", 181.25)):
        plan = eplb.balance(loads, num_gpus=8, num_slots=16, split=split)
        check(plan, loads)
        assert plan.gpu_loads.max() == pytest.approx(heaviest, rel=1e-6)


def test_weighted_shares_get_to_the_joint_bound():
    loads = lognormal(layers=3)
    for num_slots, num_gpus in ((72, 8), (80, 40)):
        plan = eplb.balance(loads, num_slots=num_slots, num_gpus=num_gpus, split="weighted")
        check(plan, loads)
        assert (plan.imbalance <= 1.01 * plan.joint_bound).all()


def test_nothing_needs_to_divide():
    loads = lognormal(layers=2, experts=19)
    cluster = eplb.Cluster(slots_per_gpu=[5, 3, 0, 7, 4], node_of_gpu=[0, 0, 1, 1, 1])
    plan = eplb.balance(loads, cluster=cluster)
    check(plan, loads)
    plan = eplb.balance(loads, num_gpus=7, num_slots=32, num_nodes=3, num_groups=5, groups="whole")
    check(plan, loads)
    assert plan.cluster.slots_per_gpu == (5, 5, 5, 5, 4, 4, 4)
    group = np.repeat(np.arange(5), [4, 4, 4, 4, 3])
    node = np.array(plan.cluster.node_of_gpu)[plan.cluster.gpu_of_slot]
    for row in plan.phy2log:
        assert all(len(set(node[group[row] == each])) == 1 for each in range(5))


def test_experts_survive_dead_gpus():
    loads = lognormal(layers=3, experts=32)
    cluster = eplb.Cluster(num_gpus=8, num_slots=96, num_nodes=4)
    before = eplb.balance(loads, cluster=cluster, min_gpus=2, min_nodes=2)
    check(before, loads)
    for dead in ([2], [2, 3], [6, 7]):
        degraded = cluster.with_dead(dead)
        # A node is lost and no expert with it.
        stale = np.where(np.isin(cluster.gpu_of_slot, dead), -1, before.phy2log)
        check(eplb.Plan.of_slots(stale, degraded, loads=loads), loads)
        after = eplb.balance(loads, cluster=degraded, current=before, max_moves=8, min_gpus=2)
        check(after, loads)
        assert (after.moves.lost == 0).all()
        assert (after.moves.total <= 8 + 12 * len(dead)).all()
        assert (after.imbalance <= eplb.Plan.of_slots(stale, degraded, loads=loads).imbalance).all()
        for row in after.phy2log:
            on = [len(set(cluster.gpu_of_slot[row == expert])) for expert in range(32)]
            assert min(on) >= 2


def test_a_window_is_planned_for_its_steps():
    base = lognormal(layers=4)
    window = np.stack([np.roll(base, 5 * step, axis=1) * (1 + step) for step in range(4)])
    on = {"num_slots": 72, "num_gpus": 24}
    of_window = eplb.balance(window, **on)
    check(of_window, window)
    of_sum = eplb.Plan.of_slots(eplb.balance(window.sum(axis=0), **on).phy2log, of_window.cluster, loads=window)
    check(of_sum, window)
    np.testing.assert_array_equal(of_sum.lower_bound, of_window.lower_bound)
    assert of_window.imbalance.mean() < of_sum.imbalance.mean()


def test_few_moves_and_their_curve():
    loads = lognormal(experts=64)
    on = {"num_slots": 72, "num_gpus": 8, "num_nodes": 2}
    current = eplb.balance(loads, **on)
    assert current.moves is None
    after = later(loads, 0.05)
    stale = eplb.Plan.of_slots(current.phy2log, current.cluster, loads=after)
    few = eplb.balance(after, current=current, max_moves=5, **on)
    check(few, after)
    assert (few.moves.total <= 5).all()
    assert (few.imbalance < stale.imbalance).all()
    differ = (few.phy2log != current.phy2log).sum(axis=1)
    np.testing.assert_array_equal(differ, few.moves.total + few.moves.same_gpu)
    counted = eplb.moves(current, few, current.cluster)
    for mine, theirs in zip(counted, few.moves):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(counted.total, counted.same_node + counted.other_node + counted.lost)

    reached = eplb.balance(after, current=current.phy2log.tolist(), reach=1.01, **on)
    assert (reached.imbalance <= 1.01).all()
    anew = eplb.balance(after, current=current, **on)
    assert (reached.moves.total < anew.moves.total).all()
    assert (anew.imbalance <= reached.imbalance).all()
    priced = eplb.balance(after, current=current, max_price=6, same_node_price=1, other_node_price=3, **on)
    assert (priced.moves.same_node + 3 * priced.moves.other_node <= 6).all()
    assert priced.moves.same_node.max() > 2, "those are the cheap ones"

    curves = eplb.move_curve(after, current, current.cluster)
    assert len(curves) == 6
    for layer, curve in enumerate(curves):
        assert curve.moves[0] == 0
        assert curve.imbalance[0] == pytest.approx(stale.imbalance[layer])
        assert (np.diff(curve.moves) > 0).all()
        assert (np.diff(curve.imbalance) < 0).all()
        assert curve.imbalance[-1] < 1.01
    short = eplb.move_curve(after, current, current.cluster, max_moves=3)
    assert all(curve.moves[-1] <= 3 for curve in short)


def test_plans_of_slots_are_checked():
    cluster = eplb.Cluster(num_gpus=2, num_slots=4)
    plan = eplb.Plan.of_slots([[0, 1, 2, 0]], cluster, shares=[[0.25, 1, 1, 0.75]], loads=[[100, 50, 10]])
    assert plan.split == "weighted"
    assert plan.gpu_loads.tolist() == [[75, 85]]
    assert plan.imbalance[0] == pytest.approx(85 / 80)
    assert eplb.Plan.of_slots([[0, 1, 2, 0]], cluster).gpu_loads is None
    for slots, words in (
        ([[0, 2, 2, 0]], "layer 0: expert 1 is on no live GPU"),
        ([[0, 1, 2]], r"phy2log has shape \[1, 3\], must be \[layers, 4\]"),
        ([0, 1, 2, 0], r"phy2log has shape \[4\]"),
    ):
        with pytest.raises(dualpipe.InvalidArgument, match=words):
            eplb.Plan.of_slots(slots, cluster)
    with pytest.raises(TypeError, match="phy2log has dtype float64, must be integers"):
        eplb.Plan.of_slots([[0.0, 1.0, 2.0, 0.0]], cluster)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"policy": "best"}, "policy is 'best', must be 'refined' or 'deepseek'"),
        ({"split": "even"}, "split is 'even', must be 'equal' or 'weighted'"),
        ({"groups": "some"}, "groups is 'some', must be 'free', 'whole' or a price"),
        ({"groups": -1}, "price is -1, must be finite and not negative"),
        ({"groups": float("nan")}, "price is NaN"),
        ({"num_gpus": 0}, "num_gpus is 0, must be 1 to 1048576"),
        ({"num_gpus": None}, "num_gpus is not given"),
        ({"num_slots": None}, "one of num_slots and slots_per_gpu must be given"),
        ({"num_slots": 6}, "the number of live slots is 6, must be at least 8"),
        ({"num_nodes": 5}, "num_nodes is 5, must be 1 to 4"),
        ({"num_groups": 9}, "num_groups is 9, must be 1 to 8"),
        ({"min_gpus": 0}, "min_gpus is 0, must be at least 1"),
        ({"min_gpus": 5}, "min_gpus is 5, must be 1 to 4"),
        ({"effort": 1001}, "effort is 1001, must be 1 to 1000"),
        ({"max_moves": 3}, "current is None, must be a placement"),
        ({"current": [[0] * 12], "max_moves": 3, "reach": 1.5}, "only one of max_moves, max_price and reach"),
        ({"current": [[0] * 12], "reach": 0.5}, "the imbalance to reach is 0.5, must be finite and at least 1"),
        ({"current": [[0] * 11]}, r"current has shape \[1, 11\], must be \[1, 12\]"),
        ({"current": [[8] * 12]}, "must be less than num_experts = 8"),
        ({"cluster": eplb.Cluster(num_gpus=4, num_slots=12)}, "cluster is given, beside it"),
        ({"policy": "deepseek", "split": "weighted"}, "which knows nothing of a weighted split"),
        ({"policy": "deepseek", "current": [[0] * 12]}, "which knows nothing of a current placement"),
        ({"policy": "deepseek", "groups": 1.0}, "which knows nothing of a price for groups"),
        ({"policy": "deepseek", "min_gpus": 2}, "which knows nothing of min_gpus and min_nodes"),
    ],
)
def test_what_cannot_be_is_refused_in_words(arguments, words):
    with pytest.raises(dualpipe.InvalidArgument, match=words):
        eplb.balance(np.ones((1, 8)), **{"num_gpus": 4, "num_slots": 12, **arguments})


def test_what_is_of_another_type_is_refused():
    for arguments, words in (
        ({"groups": None}, "groups is None, must be a number"),
        ({"num_gpus": 4.0}, "num_gpus is 4.0, must be an integer"),
        ({"current": [[0] * 12], "reach": "low"}, "reach is 'low', must be a number"),
        ({"current": np.zeros((1, 12))}, "current has dtype float64, must be integers"),
    ):
        with pytest.raises(TypeError, match=words):
            eplb.balance(np.ones((1, 8)), **{"num_gpus": 4, "num_slots": 12, **arguments})


def test_clusters_are_values():
    cluster = eplb.Cluster(num_gpus=4, num_slots=10, num_nodes=3)
    assert cluster == eplb.Cluster(slots_per_gpu=[3, 3, 2, 2], node_of_gpu=[0, 0, 1, 2])
    assert eplb.Cluster(num_gpus=2, slots_per_gpu=3) == eplb.Cluster(num_gpus=2, num_slots=6)
    dead = cluster.with_dead([3, 1])
    assert dead != cluster
    assert (dead.dead, dead.num_slots, dead.num_gpus, dead.num_nodes) == ((1, 3), 10, 4, 3)
    assert dead.gpu_of_slot.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    assert len({cluster, dead, dead.with_dead([])}) == 2
    assert pickle.loads(pickle.dumps(dead)) == copy.deepcopy(dead) == dead
    assert str(dead) == "10 slots on 4 GPUs of 3 nodes (2 dead)"
    for arguments, words in (
        ({"num_gpus": 4}, "one of num_slots and slots_per_gpu must be given, not both"),
        ({"num_gpus": 4, "num_slots": 3}, "num_slots is 3, must be 4 to 1048576"),
        ({"num_gpus": 3, "slots_per_gpu": [1, 2]}, "slots_per_gpu has 2 numbers, must have num_gpus, 3"),
        ({"slots_per_gpu": []}, "the length of slots_per_gpu is 0"),
        ({"num_gpus": 4, "num_slots": 8, "node_of_gpu": [0]}, "node_of_gpu has 1 numbers, must have num_gpus, 4"),
        ({"num_gpus": 2, "num_slots": 8, "node_of_gpu": [0, 2]}, r"node_of_gpu\[1\] is 2, must be 0 to 1"),
        ({"num_gpus": 4, "num_slots": 8, "num_nodes": 2, "node_of_gpu": [0] * 4}, "one of num_nodes and node_of_gpu"),
        ({"num_gpus": 4, "num_slots": 8, "dead": [4]}, "dead has 4, must be less than num_gpus, 4"),
        ({"num_gpus": 1 << 21, "num_slots": 1 << 22}, "num_gpus is 2097152, must be 1 to 1048576"),
    ):
        with pytest.raises(dualpipe.InvalidArgument, match=words):
            eplb.Cluster(**arguments)


def test_a_plan_closes_and_sums_itself_up():
    loads = lognormal(layers=2)
    with eplb.balance(loads, num_slots=72, num_gpus=8) as plan:
        kept = plan.phy2log
        lines = str(eplb.balance(later(loads), num_slots=72, num_gpus=8, current=plan, max_moves=2)).splitlines()
    assert lines[0] == "2 layers of 64 experts in 72 slots on 8 GPUs, equal split"
    assert [line.split("  ")[0] for line in lines[2:]] == ["imbalance", "lower bound", "gap", "moves"]
    assert lines[-1].split() == ["moves", "2.0", "2"]
    assert kept.shape == (2, 72)
    with pytest.raises(dualpipe.InvalidHandle):
        plan.phy2log  # noqa: B018


def test_the_plan_is_the_same_on_any_number_of_threads():
    loads = lognormal(layers=7)
    plans = [eplb.balance(loads, num_slots=80, num_gpus=40, num_threads=threads).phy2log for threads in (1, 2, 0)]
    assert all((plan == plans[0]).all() for plan in plans)


def test_torch_tensors_come_back_as_torch_tensors():
    torch = pytest.importorskip("torch")
    loads = torch.from_numpy(lognormal(layers=2))
    current = eplb.balance(loads.numpy(), num_slots=72, num_gpus=8)
    plan = eplb.balance(loads, num_slots=72, num_gpus=8, current=torch.from_numpy(current.phy2log), max_moves=3)
    for name in ("phy2log", "log2phy", "logcnt"):
        assert getattr(plan, name).dtype == torch.int64
    for name in ("shares", "gpu_loads", "node_loads", "imbalance", "lower_bound", "gap", "away"):
        assert getattr(plan, name).dtype == torch.float64
    assert plan.gpu_loads_of(torch.stack([loads, loads])).shape == (2, 2, 8)
    assert (plan.phy2log.numpy() == current.phy2log).all()
    assert (eplb.moves(current.phy2log, plan, plan.cluster).total == 0).all()
