"""Expert plans are DeepSeek's, number for number, from whatever the loads come in."""

import dualpipe
import numpy as np
import pytest
from dualpipe import eplb

from conftest import data

CASES = data("eplb_reference_small.json")


def sizes(case):
    return [case[name] for name in ("num_replicas", "num_groups", "num_nodes", "num_gpus")]


def check(case, result):
    """The replicas of one expert are equally heavy; how the original orders them is up to torch's sort, which is not
    stable on every machine. So the slots of an expert are compared as a set, with the padding behind them."""
    for name, got in zip(("phy2log", "log2phy", "logcnt"), result):
        want = np.array(case[name])
        assert got.shape == want.shape, name
        if name == "log2phy":
            assert ((got < 0) == (want < 0)).all()
            got, want = np.sort(got), np.sort(want)
        assert (got == want).all(), name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_results_are_the_originals(case):
    result = eplb.rebalance_experts(np.array(case["weight"]), *sizes(case))
    check(case, result)
    assert {array.dtype for array in result} == {np.dtype(np.int64)}


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case["name"])
def test_loads_may_be_of_any_real_type_and_layout(case):
    weight = np.array(case["weight"], dtype=np.float32)
    strided = np.zeros((weight.shape[0], 2 * weight.shape[1]), np.float32)
    strided[:, ::2] = weight
    backwards = np.ascontiguousarray(weight[::-1, ::-1])[::-1, ::-1]
    for same in (
        weight.astype(np.float64),
        np.asfortranarray(weight),
        strided[:, ::2],
        backwards,
        weight.astype(">f4"),
    ):
        check(case, eplb.rebalance_experts(same, *sizes(case)))
    check(case, eplb.rebalance_experts(case["weight"], *sizes(case)))
    if (weight == weight.astype(np.int64)).all():
        check(case, eplb.rebalance_experts(weight.astype(np.int64), *sizes(case)))


def test_arguments_may_be_named_as_in_the_original():
    case = CASES[0]
    weight = np.array(case["weight"])
    names = ("num_replicas", "num_groups", "num_nodes", "num_gpus")
    check(case, eplb.rebalance_experts(weight=weight, **{name: case[name] for name in names}))


def test_balance_has_the_same_policy_and_says_how_good_it_is():
    weight = np.random.default_rng(7).gamma(1.0, size=(3, 32))
    on = {"num_gpus": 8, "num_slots": 48, "num_nodes": 2, "policy": "deepseek"}
    for groups, (num_groups, num_nodes) in (("whole", (4, 2)), ("free", (1, 1))):
        plan = eplb.balance(weight, num_groups=4, groups=groups, **on)
        phy2log, _, logcnt = eplb.rebalance_experts(weight, 48, num_groups, num_nodes, 8)
        assert (plan.phy2log == phy2log).all()
        assert (plan.logcnt == logcnt).all()
        assert plan.node_loads.shape == (3, 2)
        assert (plan.lower_bound >= 1).all()
        assert (plan.imbalance >= plan.lower_bound).all()
        for layer in range(3):
            share = weight[layer].astype(np.float32) / logcnt[layer]
            gpus = share[phy2log[layer]].reshape(8, -1).sum(1)
            np.testing.assert_allclose(plan.gpu_loads[layer], gpus, rtol=1e-6)
            assert plan.imbalance[layer] == pytest.approx(gpus.max() / gpus.mean(), rel=1e-5)
        alone = eplb.balance(weight, num_groups=4, groups=groups, num_threads=1, **on)
        assert (alone.phy2log == phy2log).all()


def test_log2phy_is_the_inverse_of_phy2log():
    phy2log, log2phy, logcnt = eplb.rebalance_experts(np.random.default_rng(3).random((2, 16)), 24, 4, 2, 4)
    for layer in range(2):
        for expert, slots in enumerate(log2phy[layer]):
            held = slots[slots >= 0]
            assert len(held) == logcnt[layer, expert]
            assert (phy2log[layer, held] == expert).all()


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        ([1.0, 2.0], r"weight has shape \[2\], must be \[layers, experts\]"),
        (np.ones((1, 2, 2)), r"weight has shape \[1, 2, 2\]"),
        (np.ones((0, 4)), r"weight has shape \[0, 4\]"),
        ([[1.0, np.nan]], "NaN"),
        ([[1.0, -1.0]], "-1"),
        ([[1.0, np.inf]], "inf"),
        ([[1.0, 1e300]], "inf"),
    ],
)
def test_bad_loads_are_refused_in_words(weight, words):
    with pytest.raises(dualpipe.InvalidArgument, match=words):
        eplb.rebalance_experts(weight, 2, 1, 1, 1)


def test_what_is_no_number_is_a_type_error():
    for bad in ([["a", "b"]], np.ones((1, 2), complex), np.array([[None, 1]], dtype=object)):
        with pytest.raises(TypeError, match="weight has dtype .*, must be real numbers"):
            eplb.rebalance_experts(bad, 2, 1, 1, 1)


def test_sizes_that_do_not_fit_are_refused():
    weight = np.ones((1, 8))
    for bad in ((7, 1, 1, 1), (12, 4, 2, 5), (12, 0, 1, 1), (12, 4, 0, 4), (12, 4, 2, 0), (-1, 1, 1, 1)):
        with pytest.raises(dualpipe.InvalidArgument):
            eplb.rebalance_experts(weight, *bad)
    with pytest.raises(TypeError, match="num_gpus is 2.0, must be an integer"):
        eplb.rebalance_experts(weight, 8, 1, 1, 2.0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bfloat16"])
def test_torch_tensors_come_back_as_torch_tensors(dtype):
    torch = pytest.importorskip("torch")
    for case in CASES:
        weight = torch.tensor(case["weight"]).to(getattr(torch, dtype))
        result = eplb.rebalance_experts(weight, *sizes(case))
        assert all(isinstance(array, torch.Tensor) and array.dtype == torch.int64 for array in result)
        assert all(array.device == weight.device for array in result)
        same = eplb.rebalance_experts(weight.to(torch.float32).numpy(), *sizes(case))
        assert all((array.numpy() == want).all() for array, want in zip(result, same))
        transposed = weight.t().contiguous().t().requires_grad_(dtype != "int64")
        again = eplb.rebalance_experts(transposed, *sizes(case))
        assert all(torch.equal(array, want) for array, want in zip(again, result))
