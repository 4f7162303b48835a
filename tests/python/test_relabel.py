"""Renumbered placements: what is balanced stays so, and what can stay where it is does."""

from itertools import permutations

import dualpipe
import numpy as np
import pytest
from dualpipe import eplb, serving
from dualpipe.relabel import assign, keep_slots, moves, relabel

# (num_replicas, num_groups, num_nodes, num_gpus)
SIZES = [(72, 1, 1, 8), (80, 8, 4, 16), (96, 8, 2, 8), (64, 1, 1, 64)]


def two_maps(sizes, seed=1, noise=0.02, layers=6):
    """DeepSeek's placements for a window of loads and for the next one, and that one's loads."""
    weight = np.random.default_rng(seed).lognormal(12, 0.65, (layers, 64))
    later = weight * np.random.default_rng(seed + 1).lognormal(0, noise, weight.shape)
    return eplb.rebalance_experts(weight, *sizes)[0], eplb.rebalance_experts(later, *sizes)[0], later


def as_sets(phy2log, num_gpus):
    """What each GPU of each layer holds, without its slots' order."""
    return [[tuple(sorted(gpu)) for gpu in row.reshape(num_gpus, -1).tolist()] for row in phy2log]


@pytest.mark.parametrize("n", range(1, 7))
def test_an_assignment_is_as_good_as_the_best_of_all(n):
    for high in (2, 5, 1 << 20):
        gains = np.random.default_rng(n).integers(0, high, (40, n, n))
        columns = assign(gains)
        assert (np.sort(columns) == np.arange(n)).all()
        got = np.take_along_axis(gains, columns[:, :, None], axis=2).sum(axis=(1, 2))
        every = np.array(list(permutations(range(n))))
        assert (got == gains[:, np.arange(n), every].sum(axis=2).max(axis=1)).all()


def test_a_large_assignment_finds_what_was_hidden_in_it():
    rng = np.random.default_rng(3)
    hidden = np.stack([rng.permutation(60) for _ in range(5)])
    gains = rng.integers(0, 8, (5, 60, 60))
    np.put_along_axis(gains, hidden[:, :, None], 9, axis=2)
    assert (assign(gains) == hidden).all()


def test_no_assignments_are_none():
    assert assign(np.zeros((0, 3, 3), int)).shape == (0, 3)
    assert (assign(np.zeros((2, 3, 3), int)) == np.arange(3)).all()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_nothing_moves_if_only_the_numbers_differ(sizes):
    _, _, num_nodes, num_gpus = sizes
    current, _, _ = two_maps(sizes)
    rng = np.random.default_rng(5)
    other = np.empty_like(current)
    for layer, row in enumerate(current):
        nodes = rng.permutation(row.reshape(num_nodes, num_gpus // num_nodes, -1))
        nodes = [rng.permutation(node) for node in nodes]
        other[layer] = np.concatenate([rng.permutation(gpu) for node in nodes for gpu in node])
    assert (moves(other, current, num_gpus) > 0).any()
    assert (relabel(other, current, num_nodes, num_gpus) == current).all()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.5])
def test_gpus_hold_the_same_experts_and_fewer_of_them_move(sizes, noise):
    _, _, num_nodes, num_gpus = sizes
    current, new, _ = two_maps(sizes, noise=noise)
    renumbered = relabel(new, current, num_nodes, num_gpus)
    by_node = num_gpus // num_nodes
    for before, after in zip(as_sets(new, num_gpus), as_sets(renumbered, num_gpus)):
        nodes = [
            sorted(tuple(sorted(gpus[n * by_node : (n + 1) * by_node])) for n in range(num_nodes))
            for gpus in (before, after)
        ]
        assert nodes[0] == nodes[1]
    for places in (num_gpus, num_nodes):
        assert (moves(renumbered, current, places) <= moves(new, current, places)).all()
    if noise == 0:
        assert (renumbered == current).all()


def test_the_fewest_possible_experts_move():
    """Against all numberings of 2 nodes with 3 GPUs."""
    sizes = (24, 4, 2, 6)
    weight = np.random.default_rng(8).lognormal(0, 0.65, (30, 16))
    later = weight * np.random.default_rng(9).normal(1, 0.1, weight.shape)
    current, new = (eplb.rebalance_experts(each, *sizes)[0] for each in (weight, later))
    renumbered = relabel(new, current, 2, 6)
    best = np.full(30, 99)
    for nodes in permutations(range(2)):
        for first in permutations(range(3)):
            for second in permutations(range(3)):
                order = [3 * node + gpu for node, gpus in zip(nodes, (first, second)) for gpu in gpus]
                numbered = new.reshape(30, 6, 4)[:, order].reshape(30, 24)
                best = np.minimum(best, moves(numbered, current, 6))
    assert (moves(renumbered, current, 6) == best).all()
    assert (best < moves(new, current, 6)).any()


def test_neither_gpus_nor_nodes_get_more_from_others_whatever_the_maps():
    rng = np.random.default_rng(11)
    new, current = (np.stack([rng.permutation(12) for _ in range(3000)]) for _ in range(2))
    # By the most that stays on a GPU, 6 instead of 5 experts of this layer would have to come from another node.
    new[0] = 7, 3, 5, 8, 9, 0, 1, 6, 2, 11, 10, 4
    current[0] = 1, 8, 5, 4, 9, 6, 7, 3, 10, 2, 11, 0
    renumbered = relabel(new, current, 3, 6)
    for places in (6, 3):
        assert (moves(renumbered, current, places) <= moves(new, current, places)).all()
    assert [moves(each[:1], current[:1], 6).item() for each in (new, renumbered)] == [9, 8]


def test_where_nodes_bind_no_experts_any_gpu_may_get_any_number_and_of_equals_its_own_node():
    current, new, _ = two_maps((72, 1, 1, 12), noise=0.1, layers=40)
    bound = relabel(new, current, 3, 12)
    blind = relabel(new, current, 1, 12)
    free = relabel(new, current, 3, 12, hierarchical=False)
    for renumbered in (blind, free):
        for before, after in zip(as_sets(new, 12), as_sets(renumbered, 12)):
            assert sorted(before) == sorted(after)
    assert (moves(free, current, 12) == moves(blind, current, 12)).all()
    assert moves(free, current, 12).sum() < moves(bound, current, 12).sum()
    assert (moves(free, current, 3) <= moves(blind, current, 3)).all()
    assert moves(free, current, 3).sum() < moves(blind, current, 3).sum()


def test_a_free_slot_is_filled_in_order_and_an_expert_that_stays_keeps_its_slot():
    current = np.array([[0, 1, 2, 3, 4, 5]])
    new = np.array([[7, 2, 0, 4, 4, 6]])
    assert keep_slots(new, current, 2).tolist() == [[0, 7, 2, 4, 4, 6]]
    assert moves(new, current, 2).tolist() == [2]
    assert moves(new, np.full((1, 6), -1), 2).tolist() == [6]
    assert moves(np.array([[3, 1, 2, 0, 4, 6]]), current, 1).tolist() == [1]


def test_bad_maps_are_refused_in_words():
    good = np.zeros((1, 6), int)
    for words, arguments in (
        (r"phy2log has shape \[6\], must be \[layers, slots\]", (good[0], good, 1, 2)),
        (r"current has shape \[1, 4\], must be phy2log's, \[1, 6\]", (good, good[:, :4], 1, 2)),
        ("phy2log has an expert -1, must be at least 0", (good - 1, good, 1, 2)),
        ("num_gpus is 4, must divide slots of phy2log, 6", (good, good, 1, 4)),
        ("num_nodes is 2, must divide num_gpus, 3", (good, good, 2, 3)),
        ("num_nodes is 0", (good, good, 0, 3)),
    ):
        with pytest.raises(dualpipe.InvalidArgument, match=words):
            relabel(*arguments)
    with pytest.raises(TypeError, match="current has dtype float64, must be integers"):
        relabel(good, good * 1.0, 1, 2)


@pytest.mark.parametrize("policy", serving.POLICIES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_policy_gives_maps_that_agree_and_loads_that_its_imbalance_says(policy, sizes):
    current, _, later = two_maps(sizes)
    chosen = serving.checked(policy, "auto")
    placement = serving.place(later, serving.Sizes(*sizes), chosen, current)
    for layer, row in enumerate(placement.phy2log):
        assert (np.bincount(row, minlength=64) == placement.logcnt[layer]).all()
        for expert, slots in enumerate(placement.log2phy[layer]):
            assert sorted(slots[slots >= 0].tolist()) == np.flatnonzero(row == expert).tolist()
        gpus = (later[layer] / placement.logcnt[layer])[row].reshape(sizes[3], -1).sum(axis=1)
        assert gpus.max() / gpus.mean() == pytest.approx(placement.imbalance[layer], rel=1e-5)


def test_the_topology_decides_whether_groups_stay_on_a_node():
    _, _, weight = two_maps((80, 8, 4, 16))
    sizes = serving.Sizes(80, 8, 4, 16)
    for topology, groups_and_nodes in (("flat", (1, 1)), ("auto", (8, 4)), ("hierarchical", (8, 4))):
        want = eplb.rebalance_experts(weight, 80, *groups_and_nodes, 16)[0]
        for policy in serving.POLICIES:
            phy2log = serving.place(weight, sizes, serving.checked(policy, topology)).phy2log
            assert (phy2log == want).all() or policy in ("refined", "few_moves")
            groups = np.sort(phy2log.reshape(-1, 4, 20) // 8, axis=2)
            of_node = (np.diff(groups, axis=2) > 0).sum(axis=2) + 1
            assert (of_node == 2).all() == (topology != "flat")
    with pytest.raises(dualpipe.InvalidArgument, match="num_groups is 8, must be a multiple of num_nodes, 3"):
        serving.place(weight, sizes._replace(num_nodes=3), serving.checked("exact", "hierarchical"))


def test_settings_come_from_the_environment():
    assert serving.settings({}) == ("exact", "auto", None, None)
    found = serving.settings({"DUALPIPE_EPLB_POLICY": "matched", "DUALPIPE_EPLB_TOPOLOGY": "flat"})
    assert found == ("matched", "flat", None, None)
    assert serving.settings({"DUALPIPE_EPLB_POLICY": ""}).policy == "exact"
    few = {"DUALPIPE_EPLB_POLICY": "few-moves", "DUALPIPE_EPLB_REACH": ""}
    assert serving.settings({**few, "DUALPIPE_EPLB_MOVES": "0"}) == ("few_moves", "auto", 0, None)
    assert serving.settings({**few, "DUALPIPE_EPLB_REACH": "1.01"}) == ("few_moves", "auto", None, 1.01)
    with pytest.raises(dualpipe.InvalidArgument, match="DUALPIPE_EPLB_TOPOLOGY is 'Flat'"):
        serving.settings({"DUALPIPE_EPLB_TOPOLOGY": "Flat"})
    for name, bad, words in (
        ("MOVES", ("-1", "1.5", "ten", "99999999999"), "a whole number of at least 0"),
        ("REACH", ("0.99", "nan", "inf", "1 %"), "a number of at least 1"),
    ):
        for value in bad:
            with pytest.raises(dualpipe.InvalidArgument, match=f"DUALPIPE_EPLB_{name} is '{value}', must be {words}"):
                serving.settings({f"DUALPIPE_EPLB_{name}": value})
    with pytest.raises(dualpipe.InvalidArgument, match="MOVES and DUALPIPE_EPLB_REACH are both set"):
        serving.settings({"DUALPIPE_EPLB_MOVES": "3", "DUALPIPE_EPLB_REACH": "1.01"})


@pytest.mark.parametrize("sizes", SIZES[:3], ids=str)
def test_refined_is_better_balanced_and_few_moves_keeps_to_its_budget(sizes):
    first, _, later = two_maps(sizes, noise=0.1)
    placed_on = serving.Sizes(*sizes)
    # A window's refined map: DeepSeek's may have an expert twice on a GPU, which is mended beyond any budget.
    current = serving.place(two_maps(sizes, noise=0)[2], placed_on, serving.Settings("refined"), first).phy2log

    def place(policy, **settings):
        placement = serving.place(later, placed_on, serving.Settings(policy, **settings), current)
        return placement, moves(placement.phy2log, current, sizes[3])

    exact, exact_moves = place("exact")
    refined, refined_moves = place("refined")
    few, few_moves = place("few_moves", max_moves=4)
    reach = 1.03 * refined.lower_bound.max()
    reached, reached_moves = place("few_moves", reach=reach)
    assert (refined.imbalance <= exact.imbalance + 1e-9).all()
    assert refined_moves.sum() < exact_moves.sum()
    assert (few_moves <= 4).all()
    before = stale(current, later, sizes[3])
    assert (few.imbalance <= before + 1e-9).all()
    assert few.imbalance.mean() < before.mean()
    assert (reached.imbalance <= reach).all()
    assert reached_moves.sum() < refined_moves.sum()


def stale(current, weight, num_gpus):
    """[layers]: the imbalance of a map of an earlier window."""
    shares = [row / np.bincount(slots, minlength=len(row)) for row, slots in zip(weight, current)]
    gpus = np.take_along_axis(np.array(shares), current, axis=1).reshape(len(current), num_gpus, -1).sum(axis=2)
    return gpus.max(axis=1) / gpus.mean(axis=1)


def test_a_current_map_of_another_shape_is_no_current_map_and_floats_are_none():
    weight, sizes = np.ones((2, 8)), serving.Sizes(12, 1, 1, 4)
    chosen = serving.checked("matched", "auto")
    fresh = serving.place(weight, sizes, chosen)
    assert (serving.place(weight, sizes, chosen, np.zeros((1, 12), int)).phy2log == fresh.phy2log).all()
    with pytest.raises(TypeError, match="current has dtype float64, must be integers"):
        serving.place(weight, sizes, chosen, np.zeros((2, 12)))
    for bad in (sizes._replace(num_nodes=0), sizes._replace(num_gpus=0)):
        for topology in serving.TOPOLOGIES:
            with pytest.raises(dualpipe.InvalidArgument, match="is 0, must be at least 1"):
                serving.place(weight, bad, serving.checked("matched", topology), fresh.phy2log)
