"""Whether to rebalance: worked examples, and noise that is not chased."""

import dualpipe
import numpy as np
import pytest
import torch
from dualpipe import eplb

CLUSTER = eplb.Cluster(num_gpus=2, num_slots=4)
CURRENT, PLANNED = [[0, 1, 2, 3]], [[0, 2, 1, 3]]
"""Loads 5, 3, 1, 3: from 8 and 4 to 6 and 6."""
STEPS = np.array([[[5, 3, 1, 3]]] * 8)


def ask(counts=STEPS, current=CURRENT, planned=PLANNED, cluster=CLUSTER, **options):
    known = {"expert_seconds": 1, "horizon": 100}
    price = {} if "bytes_per_expert" in options else {"price_seconds": 0}
    return eplb.should_rebalance(counts, current, planned, cluster, **{**known, **price, **options})


def test_the_gain_is_a_share_of_the_steps_time_over_the_horizon():
    found = ask(price_seconds=24)
    assert found and found.rebalance and found.reason == "worthwhile"
    # 2 of 8 tokens of the heaviest GPU, of a second, 100 times.
    assert (found.gain_seconds, found.gain_error_seconds, found.cost_seconds) == (25, 0, 24)
    assert found.current_imbalance == pytest.approx(8 / 6) and found.planned_imbalance == 1
    assert found.noise_floor == 1 and found.moved_replicas == 2
    assert str(found) == (
        "rebalance: the gain exceeds the cost, beyond doubt"
        " (imbalance 1.333 to 1.000, gain 25 s +- 0 s, cost 24 s for 2 replicas)"
    )
    dear = ask(price_seconds=26)
    assert not dear and dear.reason == "below cost" and str(dear).startswith("stay: the gain is real")
    # Each GPU receives an expert.
    assert ask(bytes_per_expert=1000, bytes_per_second=500).cost_seconds == 2


def test_each_reason_has_its_name():
    assert ask(planned=CURRENT).reason == "same placement"
    assert ask(STEPS[:3]).reason == "too few steps" and ask(STEPS[:3]).gain_error_seconds == np.inf
    assert ask(current=PLANNED, planned=CURRENT).reason == "no gain"
    noisy = STEPS.repeat(2, axis=0)
    noisy[::2, :, 0] = 0  # a gain of 2 and a loss in turn
    assert ask(noisy).reason in ("within noise", "no gain")
    assert set(eplb.REASONS) >= {ask(noisy).reason}


def test_counts_may_be_a_monitor_a_tensor_or_whole_floats():
    monitor = eplb.Monitor(1, 4)
    for step, counts in enumerate(STEPS):
        monitor.record(step, counts)
    want = ask()
    for counts in (monitor, torch.tensor(STEPS), STEPS.astype(np.float32), STEPS.tolist()):
        assert ask(counts) == want


def test_plans_come_with_their_cluster_and_their_shares():
    loads = STEPS[0].astype(np.float32)
    plan = eplb.balance(loads, num_gpus=2, num_slots=6, split="weighted")
    now = eplb.Plan.of_slots([[0, 1, 2, 3, 3, 0]], plan.cluster, loads=loads)
    found = ask(current=now, planned=plan, cluster=None)
    assert found.planned_imbalance == pytest.approx(1) and found.rebalance
    same = ask(current=now.phy2log, planned=plan.phy2log, cluster=plan.cluster, planned_shares=plan.shares)
    assert same == found


def test_noise_is_not_chased_and_a_change_of_popularity_is():
    random = np.random.default_rng(5)
    popularity = random.lognormal(0, 0.65, 32)
    popularity /= popularity.sum()
    drifted = popularity * random.lognormal(0, 0.5, 32)

    def steps(of):
        return random.multinomial(4096, of / of.sum(), (32, 1))

    plan = eplb.balance(steps(popularity).sum(axis=0), num_gpus=8, num_slots=40)
    for of, wanted in ((popularity, False), (drifted, True)):
        counts = steps(of)
        older, newer = counts[:16], counts[16:]
        trial = eplb.balance(older.sum(axis=0), num_gpus=8, num_slots=40)
        assert ask(newer, plan, trial, None).rebalance is wanted
    assert (
        ask(counts, plan, trial, None, plan_saw_counts=True).planned_imbalance
        > ask(counts, plan, trial, None).planned_imbalance
    )


def test_a_plan_is_judged_by_steps_that_it_has_not_seen():
    counts = np.concatenate([STEPS, STEPS + np.arange(8)[:, None, None]])
    asked = []

    def plan(loads):
        asked.append(loads.tolist())
        return PLANNED if len(asked) == 1 else [[0, 1, 2, 3][::-1]]

    stakes = {"expert_seconds": 1, "horizon": 100}
    decision, best = eplb.plan_and_judge(counts, CURRENT, plan, CLUSTER, **stakes, price_seconds=0)
    assert asked == [STEPS.sum(axis=0).tolist(), counts.sum(axis=0).tolist()]
    # The gain is that of the trial on the newer half, the moves are those of the plan of all.
    trial = ask(counts[8:])
    assert decision and best == [[3, 2, 1, 0]]
    assert (decision.gain_seconds, decision.moved_replicas) == (trial.gain_seconds, 4)
    # The trial moves one expert to each GPU, the last plan two.
    gain = trial.gain_seconds - 3 * trial.gain_error_seconds
    asked.clear()
    bytes_moved = {"bytes_per_expert": gain / 1.5, "bytes_per_second": 1}
    decision, best = eplb.plan_and_judge(counts, CURRENT, plan, CLUSTER, **stakes, **bytes_moved)
    assert (decision.reason, best, len(asked)) == ("below cost", None, 2)
    decision, best = eplb.plan_and_judge(counts, PLANNED, lambda _: CURRENT, CLUSTER, **stakes, price_seconds=0)
    assert (decision.reason, best) == ("no gain", None)
    placements = [PLANNED, CURRENT]
    decision, best = eplb.plan_and_judge(
        counts, CURRENT, lambda _: placements.pop(0), CLUSTER, **stakes, price_seconds=0
    )
    assert (decision.reason, best) == ("same placement", None)


INVALID = dualpipe.errors.InvalidArgument


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"counts": STEPS[0]}, INVALID, "counts has shape"),
        ({"counts": STEPS + 0.5}, INVALID, r"counts\[0, 0, 0\] is 5.5, must be a whole number"),
        ({"counts": -STEPS}, INVALID, "is -5, must be a whole number"),
        ({"counts": np.full((8, 1, 4), np.nan)}, INVALID, "is nan, must be a whole number"),
        ({"cluster": None}, INVALID, "cluster is None, must be given as current is no Plan"),
        ({"planned": [[0, 1, 2, 2]]}, INVALID, "expert 3"),
        ({"planned": [[0, 1]]}, INVALID, r"planned has shape \[1, 2\]"),
        ({"planned_shares": [[1, 1]]}, INVALID, "the shares of planned have shape"),
        ({"planned_shares": [[1, 1, 1, 0.5]]}, INVALID, "share"),
        ({"horizon": 1.5}, TypeError, "horizon is 1.5"),
        ({"horizon": -1}, INVALID, "horizon is -1"),
        ({"expert_seconds": -1}, INVALID, "expert_seconds is -1"),
        ({"expert_seconds": float("nan")}, INVALID, "expert_seconds is NaN"),
        ({"standard_errors": 101}, INVALID, "standard_errors is 101"),
        ({"price_seconds": -1}, INVALID, "price in seconds is -1"),
        ({"price_seconds": None}, INVALID, "the price must be price_seconds, or"),
        ({"bytes_per_expert": 1}, INVALID, "the price must be price_seconds, or"),
        ({"bytes_per_expert": 1, "bytes_per_second": 0}, INVALID, "bytes_per_second is 0"),
        ({"bytes_per_expert": 1, "bytes_per_second": 0.5}, INVALID, "bandwidth is 0.5"),
    ],
)
def test_what_cannot_be_is_refused(options, error, why):
    with pytest.raises(error, match=why):
        ask(**options)
