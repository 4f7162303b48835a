"""The monitor: ranks merged in any order, slots and counters, a state that goes on in another process."""

import copy
import itertools
import os
import pickle
import random
import subprocess
import sys

import dualpipe
import numpy as np
import pytest
import torch
from dualpipe import eplb

LAYERS, EXPERTS = 2, 3


def monitor(**options):
    return eplb.Monitor(LAYERS, EXPERTS, **{"window": 10, **options})


def counts_of(step, rank=0):
    return np.random.default_rng([step, rank]).integers(0, 300, (LAYERS, EXPERTS))


def test_the_window_is_summed_averaged_and_given_step_by_step():
    whole = monitor(half_life=2)
    assert (whole.window, whole.num_ranks, whole.half_life, whole.newest_step) == (10, 1, 2.0, None)
    assert whole.loads().tolist() == np.zeros((LAYERS, EXPERTS)).tolist()
    assert whole.loads("steps").shape == (0, LAYERS, EXPERTS)
    for step in (5, 7, 9):
        assert whole.record(step, counts_of(step)) is True
    steps = np.stack([counts_of(step) for step in (5, 7, 9)])
    assert whole.step_numbers() == [5, 7, 9] and whole.newest_step == 9
    np.testing.assert_array_equal(whole.loads("steps"), steps)
    np.testing.assert_array_equal(whole.loads("sum"), steps.sum(axis=0))
    np.testing.assert_array_equal(whole.counts(), steps.sum(axis=0))
    weights = np.array([1 / 4, 1 / 2, 1])
    np.testing.assert_allclose(whole.loads(), np.tensordot(weights, steps, 1) / 1.75, rtol=1e-6)
    assert whole.loads().dtype == np.float32 and whole.counts().dtype == np.int64
    assert whole.record(16, counts_of(16)) and whole.step_numbers() == [7, 9, 16]
    assert whole.record(6, counts_of(6)) is False
    defaults = eplb.Monitor(58, 256)
    assert (defaults.window, defaults.half_life) == (1000, 250.0)


def test_ranks_are_merged_in_any_order_to_equal_bytes():
    def rank(number):
        one = monitor(num_ranks=3)
        for step in random.Random(number).sample(range(6), 6):
            one.record(step, counts_of(step, number))
        return one

    states = set()
    for order in itertools.permutations(range(3)):
        first, *others = (rank(number) for number in order)
        for other in others:
            first.merge(other)
        states.add(first.save())
    whole = monitor(num_ranks=3)
    for step, number in itertools.product(range(6), range(3)):
        for layer in (1, 0):
            whole.record(step, counts_of(step, number)[layer], layer=layer)
    assert states == {whole.save()}
    assert whole.step_numbers() == list(range(6)) and whole.incomplete_steps() == []
    with pytest.raises(dualpipe.errors.InvalidArgument, match="number of reports of step 0, layer 0 is 4"):
        whole.merge(rank(0))
    with pytest.raises(dualpipe.errors.InvalidArgument, match="other is monitor itself"):
        whole.merge(whole)
    with pytest.raises(dualpipe.errors.InvalidArgument, match="the other monitor's options is"):
        whole.merge(monitor())


def test_steps_that_not_all_ranks_have_reported_are_told_apart():
    whole = monitor(num_ranks=2)
    whole.record(1, counts_of(1))
    whole.record(1, counts_of(1))
    whole.record(2, counts_of(2))
    whole.record(3, counts_of(3)[0], layer=0)
    assert whole.step_numbers() == [1] and whole.incomplete_steps() == [2, 3]
    assert whole.step_numbers(incomplete=True) == [1, 2, 3]
    assert whole.reports(3).tolist() == [1, 0] and whole.reports(8).tolist() == [0, 0]
    np.testing.assert_array_equal(whole.counts(), 2 * counts_of(1))
    all_steps = 2 * counts_of(1) + counts_of(2)
    all_steps[0] += counts_of(3)[0]
    np.testing.assert_array_equal(whole.counts(incomplete=True), all_steps)
    assert repr(whole) == "<dualpipe.eplb.Monitor 2 layers of 3 experts, 1 of 3 steps complete>"


@pytest.mark.parametrize("kind", [np.asarray, np.ndarray.tolist, torch.from_numpy])
def test_slots_count_for_their_experts(kind):
    loads = np.array([[8, 1, 1], [1, 1, 8]], np.float32)
    plan = eplb.balance(loads, num_gpus=2, num_slots=4)
    got = np.array([[3, 5, 1, 1], [2, 2, 4, 4]], np.int32)
    whole = monitor()
    whole.record_physical(0, plan, kind(got))
    want = np.zeros((LAYERS, EXPERTS))
    np.add.at(want, (np.arange(LAYERS)[:, None], plan.phy2log), got)
    np.testing.assert_array_equal(whole.counts(), want)

    # The same from each GPU, which knows its two slots; one that has none reports too.
    ranks = monitor(num_ranks=3)
    for mine in (slice(0, 2), slice(2, 4), slice(4, 4)):
        ranks.record_physical(0, plan.phy2log[:, mine], kind(got[:, mine]))
    assert ranks.step_numbers() == [0]
    np.testing.assert_array_equal(ranks.counts(), whole.counts())


def test_counters_count_by_what_they_grew_over_their_limit_and_after_a_reset():
    slots = np.array([[0, 1, 2, 0], [2, 1, 0, -1]])
    whole = monitor()

    def grew(step, counters):
        before = whole.counts()
        whole.record_cumulative(step, slots, counters)
        return (whole.counts() - before).tolist()

    assert grew(0, torch.tensor([[5, 6, 7, 8], [1, 2, 3, 0]], dtype=torch.int32)) == [[13, 6, 7], [3, 2, 1]]
    big = 2**31 - 1
    assert grew(1, [[5, 6, 7, big], [1, 2, 3, 0]]) == [[big - 8, 0, 0], [0, 0, 0]]
    assert grew(2, [[5, 6, 9, -(2**31)], [1, 2, 3, 0]]) == [[1, 0, 2], [0, 0, 0]]
    # Layer 1's were set to 0; of layer 0's one has grown.
    assert grew(3, [[6, 6, 9, -(2**31)], [0, 2, 4, 0]]) == [[1, 0, 0], [4, 2, 0]]
    whole.set_counters()
    assert grew(4, [[10, 0, 0, 0], [9, 0, 0, 0]]) == [[10, 0, 0], [0, 0, 9]]
    whole.set_counters([[20, 0, 0, 0], [9, 0, 0, 0]])
    assert grew(5, [[21, 0, 0, 0], [9, 0, 0, 0]]) == [[1, 0, 0], [0, 0, 0]]
    with pytest.raises(dualpipe.errors.InvalidArgument, match="number of counters is 6, must be 8"):
        whole.record_cumulative(6, slots[:, :3], np.zeros((2, 3), int))


GO_ON = """
import sys
from dualpipe import eplb
monitor = eplb.Monitor.load(open(sys.argv[1], "rb").read())
# The counters of an engine that went on; those of this process, which began anew, would need set_counters().
monitor.record_cumulative(1, [[0, 1, 2], [2, 1, 0]], [[11, 22, 33], [40, 50, 60]])
sys.stdout.buffer.write(monitor.save())
"""


def test_a_saved_monitor_goes_on_in_a_new_process(tmp_path):
    slots = [[0, 1, 2], [2, 1, 0]]
    whole = monitor()
    whole.record_cumulative(0, slots, [[10, 20, 30], [40, 50, 60]])
    path = tmp_path / "state"
    path.write_bytes(whole.save())
    state = subprocess.run(
        [sys.executable, "-c", GO_ON, path], stdout=subprocess.PIPE, check=True, env=os.environ
    ).stdout
    after = eplb.Monitor.load(state)
    assert after.loads("steps")[1].tolist() == [[1, 2, 3], [0, 0, 0]]
    whole.record_cumulative(1, slots, [[11, 22, 33], [40, 50, 60]])
    assert after.save() == whole.save()
    for same in (pickle.loads(pickle.dumps(whole)), copy.deepcopy(whole)):
        assert same.save() == state
        same.record(2, counts_of(2))
        assert whole.step_numbers() == [0, 1], "a copy is its own"


def test_a_state_of_something_else_is_refused():
    state = monitor().save()
    damaged = bytearray(state)
    damaged[10] ^= 1
    for bad, why in [
        (b"", "not a monitor's state"),
        (b'{"a": 1}', "not a monitor's state"),
        (state[:-1], "is damaged or cut off"),
        (bytes(damaged), "is damaged or cut off"),
        (state[:7] + b"\2" + state[8:], "has version 2"),
    ]:
        with pytest.raises(dualpipe.errors.InvalidArgument, match=why):
            eplb.Monitor.load(bad)


def test_balancedness_is_what_vllm_logs():
    whole = monitor()
    assert whole.balancedness(eplb.balance(np.ones((2, 3)), num_gpus=2, num_slots=4)).overall == 0
    whole.record(0, [[4, 6, 2], [0, 1, 3]])
    cluster = eplb.Cluster(num_gpus=2, num_slots=4)
    slots = [[0, 1, 0, 2], [0, 1, 2, 2]]
    # GPUs have 8 and 4, mean 6; and 1 and 3, mean 2.
    is_ = whole.balancedness(slots, cluster)
    assert is_.overall == 8 / 11 and is_.layers.tolist() == [6 / 8, 2 / 3]
    shares = [[0, 1, 1, 1], [1, 1, 0.5, 0.5]]
    assert whole.balancedness(slots, cluster, shares=shares).layers.tolist() == [1, 2 / 3]
    plan = eplb.balance(whole.loads("sum"), num_gpus=2, num_slots=4, split="weighted")
    assert whole.balancedness(plan).layers.tolist() == pytest.approx((1 / plan.imbalance).tolist())
    measured = eplb.balancedness([[8, 4, 99], [1, 3, 99]], eplb.Cluster(num_gpus=3, num_slots=6, dead=[2]))
    assert measured.overall == 8 / 11 and eplb.balancedness([[3, 1]]).layers.tolist() == [2 / 3]


INVALID = dualpipe.errors.InvalidArgument


@pytest.mark.parametrize(
    ("call", "error", "why"),
    [
        (lambda m: m.record(0, [[1, 2]]), INVALID, r"counts has shape \[1, 2\], must be \[2, 3\]"),
        (
            lambda m: m.record(0, np.full((2, 3), -1)),
            INVALID,
            r"counts\[0, 0\] is -1, must be a whole number from 0 to",
        ),
        (lambda m: m.record(0, np.full((2, 3), 1 << 32)), INVALID, "is 4294967296, must be a whole number"),
        (lambda m: m.record(0, np.ones((2, 3))), TypeError, "counts has dtype float64, must be integers"),
        (lambda m: m.record(0, [["a"] * 3] * 2), TypeError, "must be integers"),
        (lambda m: m.record(-1, counts_of(0)), INVALID, "step is -1, must be 0 to"),
        (lambda m: m.record(1 << 63, counts_of(0)), INVALID, "step is 9223372036854775808"),
        (lambda m: m.record(0.5, counts_of(0)), TypeError, "step is 0.5, must be an integer"),
        (lambda m: m.record(0, [1, 2, 3], layer=2), INVALID, "layer is 2, must be 0 to 1"),
        (
            lambda m: m.record_physical(0, [[0, 3]] * 2, [[1, 1]] * 2),
            INVALID,
            r"slot_to_expert\[layer 0, slot 1\] is 3",
        ),
        (lambda m: m.record_physical(0, [[0, -1]] * 2, [[1, 1]] * 2), INVALID, "must be 0 where the slot is empty"),
        (lambda m: m.record_physical(0, [[0, 1]] * 2, [[1, -1]] * 2), INVALID, "is -1, must not be negative"),
        (lambda m: m.record_physical(0, [[0, 1]] * 2, [[1, 1 << 31]] * 2), INVALID, "is 2147483648"),
        (lambda m: m.record_physical(0, [[0, 1]], [[1, 1]] * 2), INVALID, r"slot_to_expert has shape \[1, 2\]"),
        (lambda m: m.loads("mean"), INVALID, "kind is 'mean', must be 'sum' or"),
        (lambda m: m.balancedness([[0, 1, 2]] * 2), INVALID, "cluster is None"),
        (lambda _: monitor(window=0), INVALID, "window is 0"),
        (lambda _: monitor(window=1 << 17), INVALID, "window is 131072, must be 1 to 65536"),
        (lambda _: monitor(num_ranks=0), INVALID, "num_ranks is 0"),
        (lambda _: monitor(half_life=-1), INVALID, "half_life is -1, must be above 0"),
        (lambda _: monitor(half_life=float("nan")), INVALID, "half_life is NaN"),
        (lambda _: eplb.Monitor(5000, 3), INVALID, "num_layers is 5000"),
        (lambda _: eplb.balancedness([1, 2]), INVALID, "gpu_loads has shape"),
        (lambda _: eplb.balancedness([[1, -2]]), INVALID, "is -2"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(call, error, why):
    whole = monitor()
    whole.record(3, counts_of(3))
    state = whole.save()
    with pytest.raises(error, match=why):
        call(whole)
    assert whole.save() == state


def test_a_closed_monitor_is_refused():
    with monitor() as whole:
        pass
    with pytest.raises(dualpipe.errors.InvalidHandle):
        whole.record(0, counts_of(0))
