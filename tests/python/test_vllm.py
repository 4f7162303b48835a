"""dualpipe-vllm behind vLLM's real policy files and plug-in loader, on the CPU."""

import importlib
import logging
import re
import sys
import types

import dualpipe
import numpy as np
import pytest
from dualpipe import eplb
from dualpipe.relabel import moves

import wheels

torch = pytest.importorskip("torch")

# (num_replicas, num_groups, num_nodes, num_ranks): one slot a GPU, flat, hierarchical; nodes that divide no groups.
SIZES = [(64, 1, 1, 64), (72, 1, 1, 8), (80, 8, 4, 16), (72, 8, 3, 24)]


@pytest.fixture(scope="module")
def files():
    """vLLM's files are importable, and dualpipe-vllm is installed."""
    try:
        wheels.files("vllm")
    except wheels.Unavailable as why:
        pytest.skip(str(why))
    with wheels.vllm() as folder, wheels.importable(wheels.plugins(), "dualpipe_vllm"):
        yield folder


@pytest.fixture
def engine(files, monkeypatch):
    """vLLM's modules, as in a process that has just started."""
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    for name in ("POLICY", "TOPOLOGY", "MOVES", "REACH"):
        monkeypatch.delenv(f"DUALPIPE_EPLB_{name}", raising=False)
    config = sys.modules["vllm.config.parallel"]
    wheels.forget("vllm", "dualpipe_vllm")
    sys.modules[config.__name__] = config
    policy = importlib.import_module("vllm.distributed.eplb.policy")
    plugins = importlib.import_module("vllm.plugins")

    return types.SimpleNamespace(policies=policy.EPLB_POLICIES, policy=policy, plugins=plugins)


def load(engine):
    """What every process of vLLM's does when it starts."""
    engine.plugins.load_general_plugins()
    return engine.policies["default"]


def loads(seed, layers=5, experts=64, noise=0.0, log_mean=12):
    """Token counts of the shape that DeepSeek-V3's have, so many that none are equal; with noise their next window."""
    counts = np.random.default_rng(seed).lognormal(log_mean, 0.65, (layers, experts))
    counts *= np.random.default_rng(seed + 1000).normal(1, noise, counts.shape)
    return torch.from_numpy(counts.astype(np.int64))


def gpu_loads(phy2log, counts, num_gpus):
    """[layers, num_gpus]: of each layer the GPUs' loads in ascending order."""
    shares = [row / np.bincount(each) for row, each in zip(counts.numpy(), phy2log)]
    slots = np.take_along_axis(np.array(shares), phy2log, axis=1)
    return np.sort(slots.reshape(len(slots), num_gpus, -1).sum(axis=2))


def test_vllm_finds_the_plugin_and_takes_its_policy(engine, caplog):
    original = engine.policies["default"]
    found = engine.plugins.load_plugins_by_group("vllm.general_plugins")
    assert list(found) == ["dualpipe"]
    with caplog.at_level(logging.INFO, "vllm.plugins.dualpipe"):
        ours = load(engine)
    assert ours is not original
    assert issubclass(ours, engine.policy.AbstractEplbPolicy)
    assert ours.preserve_intragpu_slots.__func__ is original.preserve_intragpu_slots.__func__
    assert "policy exact, topology auto" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_the_plugin_may_be_loaded_again(engine):
    original = engine.policies["default"]
    ours = load(engine)
    engine.plugins.plugins_loaded = False
    assert load(engine) is ours
    assert ours.__mro__[1] is original


def test_vllm_can_leave_the_plugin_out(engine, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    original = engine.policies["default"]
    assert load(engine) is original


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_exact_gives_what_vllms_own_policy_gives(engine, sizes):
    own, ours = engine.policies["default"], load(engine)
    current = None
    for seed in range(3):
        want = own.rebalance_experts(loads(seed), *sizes, current)
        got = ours.rebalance_experts(loads(seed), *sizes, old_global_expert_indices=current)
        assert (got.dtype, got.device) == (want.dtype, want.device) == (torch.int64, torch.device("cpu"))
        assert torch.equal(got, want)
        current = got
    assert torch.equal(
        ours.rebalance_experts(loads(7), *sizes),
        eplb.rebalance_experts(loads(7), *sizes)[0],
    )


def test_exact_loads_the_gpus_as_vllms_own_policy_does_where_experts_are_equally_heavy(engine):
    counts = loads(5, log_mean=2)
    assert all(len(row.unique()) < 40 for row in counts)
    own, ours = engine.policies["default"], load(engine)
    for num_gpus in (8, 24, 36):
        want, got = (each.rebalance_experts(counts, 72, 1, 1, num_gpus).numpy() for each in (own, ours))
        np.testing.assert_allclose(gpu_loads(got, counts, num_gpus), gpu_loads(want, counts, num_gpus), rtol=1e-12)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_matched_moves_fewer_experts_for_the_same_loads(engine, monkeypatch, sizes):
    own = engine.policies["default"]
    monkeypatch.setenv("DUALPIPE_EPLB_POLICY", "matched")
    ours = load(engine)
    num_gpus = sizes[3]
    current = ours.rebalance_experts(loads(1), *sizes)
    again = loads(1, noise=0.02)
    exact, matched = (policy.rebalance_experts(again, *sizes, current).numpy() for policy in (own, ours))
    fewer = moves(exact, current.numpy(), num_gpus) - moves(matched, current.numpy(), num_gpus)
    assert (fewer >= 0).all()
    assert fewer.sum() > 0 or num_gpus == sizes[0]  # one slot a GPU: loads do not decide where an expert goes
    np.testing.assert_allclose(gpu_loads(exact, again, num_gpus), gpu_loads(matched, again, num_gpus), rtol=1e-12)


@pytest.mark.parametrize("sizes", SIZES[1:3], ids=str)
def test_few_moves_takes_its_budget_from_the_environment(engine, monkeypatch, sizes):
    monkeypatch.setenv("DUALPIPE_EPLB_POLICY", "few-moves")
    monkeypatch.setenv("DUALPIPE_EPLB_MOVES", "3")
    ours = load(engine)
    current = ours.rebalance_experts(loads(1), *sizes)
    later = loads(1, noise=0.1)
    moved = ours.rebalance_experts(later, *sizes, current)
    assert (moves(moved.numpy(), current.numpy(), sizes[3]) <= 3).all()
    heaviest = [gpu_loads(each.numpy(), later, sizes[3])[:, -1].sum() for each in (current, moved)]
    assert heaviest[1] < heaviest[0]
    monkeypatch.setenv("DUALPIPE_EPLB_MOVES", "none")
    engine.plugins.plugins_loaded = False
    with pytest.raises(dualpipe.InvalidArgument, match="DUALPIPE_EPLB_MOVES is 'none', must be a whole number"):
        load(engine)


def test_a_map_with_empty_slots_or_of_another_size_is_taken(engine, monkeypatch):
    monkeypatch.setenv("DUALPIPE_EPLB_POLICY", "matched")
    ours = load(engine)
    sizes = (72, 1, 1, 8)
    current = ours.rebalance_experts(loads(2), *sizes)
    fresh = ours.rebalance_experts(loads(3), *sizes)
    assert torch.equal(ours.rebalance_experts(loads(3), *sizes, current[:, :64]), fresh)
    assert torch.equal(ours.rebalance_experts(loads(3), *sizes, torch.full_like(current, -1)), fresh)
    current[:, 64:] = -1
    assert torch.equal(ours.rebalance_experts(loads(2), *sizes, current)[:, :64], current[:, :64])


def test_the_profile_run_has_no_loads(engine):
    ours = load(engine)
    zeros = torch.zeros(2, 64, dtype=torch.int32)
    placed = ours.rebalance_experts(zeros, 72, 1, 1, 8, torch.arange(72).repeat(2, 1) % 64)
    assert placed.shape == (2, 72)
    assert all(len(set(row.tolist())) == 64 for row in placed)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((70, 1, 1, 8), "num_replicas is 70, must be a multiple of num_ranks, 8"),
        ((72, 1, 1, 0), "num_replicas is 72, must be a multiple of num_ranks, 0"),
        ((56, 1, 1, 8), "56.* must be at least num_experts = 64"),
        ((72, 10, 2, 8), "num_groups is 10, must divide num_experts = 64"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_words(engine, sizes, words):
    ours = load(engine)
    with pytest.raises(dualpipe.InvalidArgument, match=words):
        ours.rebalance_experts(loads(1), *sizes)


def test_what_is_no_tensor_is_a_type_error(engine):
    ours = load(engine)
    with pytest.raises(TypeError, match="weight is ndarray, must be a torch.Tensor"):
        ours.rebalance_experts(loads(1).numpy(), 72, 1, 1, 8)
    with pytest.raises(TypeError, match="old_global_expert_indices is list"):
        ours.rebalance_experts(loads(1), 72, 1, 1, 8, [1])


@pytest.mark.parametrize("name", ["POLICY", "TOPOLOGY"])
def test_a_setting_that_is_not_known_stops_the_start(engine, monkeypatch, name):
    monkeypatch.setenv(f"DUALPIPE_EPLB_{name}", "refind")
    known = "exact, matched, refined, few_moves" if name == "POLICY" else "auto, flat, hierarchical"
    with pytest.raises(dualpipe.InvalidArgument, match=f"DUALPIPE_EPLB_{name} is 'refind'; dualpipe .* has {known}"):
        load(engine)


def test_the_topology_is_a_setting(engine, monkeypatch):
    monkeypatch.setenv("DUALPIPE_EPLB_TOPOLOGY", "flat")
    flat = load(engine).rebalance_experts(loads(4), 80, 8, 4, 16)
    assert torch.equal(flat, eplb.rebalance_experts(loads(4), 80, 1, 1, 16)[0])


def no_policies(policy):
    del policy.EPLB_POLICIES


def no_default(policy):
    policy.EPLB_POLICIES["greedy"] = policy.EPLB_POLICIES.pop("default")


def three_maps(policy):
    """As vLLM had it before it asked for one map only."""

    def rebalance_experts(
        cls, weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices=None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All three maps."""

    policy.AbstractEplbPolicy.rebalance_experts = classmethod(rebalance_experts)


def one_more_parameter(policy):
    def rebalance_experts(cls, weight, num_replicas, num_ranks, active_ranks) -> torch.Tensor:
        """Otherwise."""

    policy.DefaultEplbPolicy.rebalance_experts = classmethod(rebalance_experts)


def one_more_method(policy):
    policy.AbstractEplbPolicy.__abstractmethods__ |= {"plan_rebalance"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (no_policies, "AttributeError: .*EPLB_POLICIES"),
        (no_default, "KeyError: 'default'"),
        (three_maps, "AbstractEplbPolicy.rebalance_experts returns tuple"),
        (one_more_parameter, "DefaultEplbPolicy.rebalance_experts has the parameters .*active_ranks"),
        (one_more_method, "AbstractEplbPolicy also asks for plan_rebalance"),
    ],
)
def test_another_vllm_is_left_alone_with_a_warning(engine, caplog, change, words):
    change(engine.policy)
    before = dict(engine.policies)
    engine.plugins.load_general_plugins()
    assert engine.policies == before
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "vllm.plugins.dualpipe"]
    assert (
        f"vLLM {wheels.VERSIONS['vllm']} does not have vllm.distributed.eplb.policy.EPLB_POLICIES['default']" in warning
    )
    assert re.search(words, warning)
