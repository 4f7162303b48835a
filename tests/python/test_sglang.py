"""dualpipe-sglang behind SGLang's real EPLB files, plug-in loader and hook registry, on the CPU."""

import importlib
import logging
import re
import sys
import types

import dualpipe
import numpy as np
import pytest
from dualpipe.relabel import moves

import wheels

torch = pytest.importorskip("torch")

ALGORITHMS = "sglang.srt.eplb.eplb_algorithms"
SETTINGS = ("POLICY", "TOPOLOGY", "MOVES", "REACH")
# (slots, slots of a GPU, groups, nodes)
SIZES = [(64, 1, None, 1), (72, 9, None, 2), (80, 5, 8, 4), (72, 3, 8, 3)]


@pytest.fixture(scope="module")
def files():
    """SGLang's files are importable, and dualpipe-sglang is installed."""
    try:
        wheels.files("sglang")
    except wheels.Unavailable as why:
        pytest.skip(str(why))
    with wheels.sglang() as folder, wheels.importable(wheels.plugins(), "dualpipe_sglang"):
        yield folder


@pytest.fixture
def engine(files, monkeypatch):
    """SGLang's modules, as in a process that has just started."""
    for name in ("SGLANG_PLUGINS", "SGLANG_PLATFORM", *(f"DUALPIPE_EPLB_{each}" for each in SETTINGS)):
        monkeypatch.delenv(name, raising=False)
    wheels.forget("sglang", "dualpipe_sglang")
    return types.SimpleNamespace(
        algorithms=importlib.import_module(ALGORITHMS),
        plugins=importlib.import_module("sglang.srt.plugins"),
        registry=importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry,
    )


def load(engine):
    """What every process of SGLang's does when it starts."""
    engine.plugins.load_plugins()
    return engine.algorithms


def loads(seed, steps=2, layers=5, experts=64, noise=0.0):
    """Token counts of some steps, so many that none are equal; with noise those of the next window."""
    counts = np.random.default_rng(seed).lognormal(12, 0.65, (steps, layers, experts))
    counts *= np.random.default_rng(seed + 1000).normal(1, noise, counts.shape)
    return torch.from_numpy(counts.astype(np.int64))


def rebalance(algorithms, counts, sizes, name):
    """As the engine calls it."""
    slots, slots_of_gpu, groups, nodes = sizes
    algorithm = algorithms.compute_algorithm(raw_algorithm=name, num_groups=groups, num_nodes=nodes)
    return algorithms.rebalance_experts(
        tokens_per_expert=counts,
        num_physical_experts=slots,
        num_local_physical_experts=slots_of_gpu,
        num_groups=groups,
        num_nodes=nodes,
        algorithm=algorithm,
    )


def check(maps, slots, experts=64):
    """The three maps are of the engine's types and say the same."""
    phy2log, log2phy, count = maps
    assert all((each.dtype, each.device.type) == (torch.int64, "cpu") for each in maps)
    layers = len(phy2log)
    assert phy2log.shape == (layers, slots)
    assert count.shape == (layers, experts)
    assert log2phy.shape == (layers, experts, count.max())
    for layer in range(layers):
        assert torch.equal(torch.bincount(phy2log[layer], minlength=experts), count[layer])
        for expert, held in enumerate(log2phy[layer]):
            held = held[held >= 0]
            assert len(set(held.tolist())) == count[layer, expert] >= 1
            assert (phy2log[layer, held] == expert).all()
            assert (log2phy[layer, expert, len(held) :] == -1).all()


def test_sglang_finds_the_plugin_and_applies_its_hooks(engine, caplog):
    found = engine.plugins.load_plugins_by_group("sglang.srt.plugins")
    assert {name: dist for name, (_, dist) in found.items()} == {"dualpipe": "dualpipe-sglang"}
    with caplog.at_level(logging.INFO, "sglang"):
        algorithms = load(engine)
    for name in ("compute_algorithm", "rebalance_experts"):
        assert f"Applied 1 hook(s) to {ALGORITHMS}.{name} (from: plugin=dualpipe, dist=dualpipe-sglang)" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    check(rebalance(algorithms, loads(1), SIZES[1], "dualpipe"), 72)


def test_the_plugin_may_be_loaded_again(engine):
    algorithms = load(engine)
    hooked = algorithms.rebalance_experts
    engine.plugins._plugins_loaded = False
    assert load(engine).rebalance_experts is hooked
    assert [len(hooks) for hooks in engine.registry._hooks.values()] == [1, 1]


def test_sglang_can_leave_the_plugin_out(engine, monkeypatch):
    monkeypatch.setenv("SGLANG_PLUGINS", "another")
    with pytest.raises(KeyError):
        rebalance(load(engine), loads(1), SIZES[1], "dualpipe")


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_exact_gives_what_sglangs_own_algorithm_gives(engine, sizes):
    own = rebalance(engine.algorithms, loads(3), sizes, "auto")
    algorithms = load(engine)
    for name in ("auto", "dualpipe", "dualpipe_exact", "dualpipe"):
        maps = rebalance(algorithms, loads(3), sizes, name)
        check(maps, sizes[0])
        assert torch.equal(maps[0], own[0])
        assert torch.equal(maps[1].sort().values, own[1].sort().values)
        assert torch.equal(maps[2], own[2])


def test_names_say_policy_and_topology_and_settings_the_rest(engine, monkeypatch):
    algorithms = load(engine)
    sizes = (80, 5, 8, 4)
    flat = rebalance(algorithms, loads(3), sizes, "deepseek")[0]
    grouped = rebalance(algorithms, loads(3), sizes, "deepseek_hierarchical")[0]
    assert not torch.equal(flat, grouped)
    for name, want in (
        ("dualpipe_flat", flat),
        ("dualpipe-exact-flat", flat),
        ("dualpipe_exact_hierarchical", grouped),
        ("dualpipe_auto", grouped),
    ):
        assert torch.equal(rebalance(algorithms, loads(3), sizes, name)[0], want), name
    monkeypatch.setenv("DUALPIPE_EPLB_TOPOLOGY", "flat")
    assert torch.equal(rebalance(algorithms, loads(3), sizes, "dualpipe_exact")[0], flat)
    assert torch.equal(rebalance(algorithms, loads(3), sizes, "dualpipe_hierarchical")[0], grouped)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_matched_keeps_the_map_of_each_layer_and_moves_fewer_experts(engine, sizes):
    algorithms = load(engine)
    slots, slots_of_gpu = sizes[:2]
    num_gpus = slots // slots_of_gpu
    current = rebalance(algorithms, loads(1), sizes, "dualpipe_matched")[0]
    assert torch.equal(current, rebalance(algorithms, loads(1), sizes, "dualpipe_exact")[0])
    for window in (1, 2, 3):
        counts = loads(1, noise=0.02 * window)
        rebalance(algorithms, loads(9, layers=4), sizes, "dualpipe_matched")  # of another model, kept by itself
        maps = rebalance(algorithms, counts, sizes, "dualpipe_matched")
        check(maps, slots)
        exact = rebalance(algorithms, counts, sizes, "deepseek" if sizes[2] is None else "auto")
        fewer = moves(exact[0].numpy(), current.numpy(), num_gpus) - moves(maps[0].numpy(), current.numpy(), num_gpus)
        assert (fewer >= 0).all()
        assert fewer.sum() > 0 or slots_of_gpu == 1
        assert torch.equal(maps[2], exact[2])
        gpus = [torch.stack([row.reshape(num_gpus, -1).sort().values for row in each[0]]) for each in (maps, exact)]
        for layer in range(len(current)):
            assert sorted(gpus[0][layer].tolist()) == sorted(gpus[1][layer].tolist())
        current = maps[0]


@pytest.mark.parametrize("sizes", SIZES[1:3], ids=str)
def test_refined_is_better_balanced_and_few_moves_moves_few(engine, monkeypatch, sizes):
    monkeypatch.setenv("DUALPIPE_EPLB_MOVES", "3")
    algorithms = load(engine)
    num_gpus = sizes[0] // sizes[1]
    heaviest = {}
    for name in ("auto", "dualpipe_refined", "dualpipe_few_moves"):
        maps = rebalance(algorithms, loads(1), sizes, name)
        if name != "auto":
            check(maps, sizes[0])
        shares = np.take_along_axis((loads(1).sum(dim=0) / maps[2]).numpy(), maps[0].numpy(), axis=1)
        heaviest[name] = shares.reshape(5, num_gpus, -1).sum(axis=2).max(axis=1)
    assert (heaviest["dualpipe_refined"] <= heaviest["auto"] * (1 + 1e-9)).all()
    current = maps[0]
    maps = rebalance(algorithms, loads(1, noise=0.1), sizes, "dualpipe_few_moves")
    check(maps, sizes[0])
    assert (moves(maps[0].numpy(), current.numpy(), num_gpus) <= 3).all()


def context(**moe):
    """SGLang's runtime_context with as much as its expert_location asks for: one rank on the CPU."""
    module = types.ModuleType("sglang.srt.runtime_context")
    resources = types.SimpleNamespace(expert_location_metadata=None)
    execution = types.SimpleNamespace(moe=types.SimpleNamespace(ep_dispatch_algorithm=None, **moe))
    module.get_device = lambda: types.SimpleNamespace(device="cpu")
    module.get_exec = lambda: execution
    module.get_parallel = lambda: types.SimpleNamespace(nnodes=2)
    module.get_resources = lambda: resources
    return module


def test_the_engines_own_caller_takes_it_and_says_where_the_experts_are(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", context(eplb_algorithm="dualpipe_matched"))
    location = importlib.import_module("sglang.srt.eplb.expert_location")
    load(engine)
    metadata_of = location.ExpertLocationMetadata
    model = types.SimpleNamespace(num_layers=5, num_logical_experts=64, num_groups=8)
    common = {"model_config_for_expert_location": model, "num_physical_experts": 80, "ep_size": 16}
    monkeypatch.setattr(metadata_of, "_init_common", staticmethod(lambda config: common))

    engines = metadata_of.init_by_eplb(None, loads(1))
    location.set_global_expert_location_metadata(engines)
    planned = metadata_of.init_by_eplb(None, loads(2))
    # The engine carries out a plan some layers at a time; it may stop in between, and then plans anew.
    engines.update(planned, update_layer_ids=[0, 1])
    current = engines.physical_to_logical_map_cpu.clone()
    again = metadata_of.init_by_eplb(None, loads(1)).physical_to_logical_map
    before = moves(again.numpy(), current.numpy(), 16)
    assert (before[2:] == 0).all(), "these layers are where the first plan put them"
    assert torch.equal(again[2:], current[2:])
    assert (before[:2] > 0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"counts": loads(1)[0]}, r"tokens_per_expert has shape \[5, 64\], must be \[steps, layers, experts\]"),
        (
            {"sizes": (70, 9, None, 1)},
            "num_physical_experts is 70, must be a multiple of num_local_physical_experts, 9",
        ),
        ({"sizes": (72, 0, None, 1)}, "num_physical_experts is 72, .* num_local_physical_experts, 0"),
        ({"sizes": (56, 7, None, 1)}, "56.* must be at least num_experts = 64"),
        ({"sizes": (72, 9, 10, 2)}, "num_groups is 10, must divide num_experts = 64"),
        (
            {"sizes": (72, 9, 8, 3), "name": "dualpipe_hierarchical"},
            "num_groups is 8, must be a multiple of num_nodes, 3",
        ),
        ({"name": "dualpipe_hierarchical"}, "num_groups is None"),
        ({"name": "dualpipe_refind"}, "eplb_algorithm is 'refind'; dualpipe .* has exact, matched, refined, few_moves"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(engine, change, words):
    arguments = {"counts": loads(1), "sizes": SIZES[1], "name": "dualpipe", **change}
    with pytest.raises(dualpipe.InvalidArgument, match=words):
        rebalance(load(engine), **arguments)


def test_a_setting_that_is_not_known_is_told_at_the_start_and_to_who_asks(engine, monkeypatch, caplog):
    monkeypatch.setenv("DUALPIPE_EPLB_POLICY", "no-moves")
    algorithms = load(engine)
    words = "DUALPIPE_EPLB_POLICY is 'no-moves'; dualpipe .* has exact, matched, refined, few_moves"
    assert re.search(words, caplog.text)
    with pytest.raises(dualpipe.InvalidArgument, match=words):
        rebalance(algorithms, loads(1), SIZES[1], "dualpipe")
    check(rebalance(algorithms, loads(1), SIZES[1], "deepseek"), 72)


def no_function(algorithms):
    del algorithms.compute_algorithm


def one_more_parameter(algorithms):
    algorithms.rebalance_experts = lambda tokens_per_expert, num_physical_experts, active_ranks: None


@pytest.mark.parametrize(
    ("change", "words"),
    [(no_function, "compute_algorithm"), (one_more_parameter, "rebalance_experts has the parameters .*, active_ranks")],
)
def test_another_sglang_is_left_alone_with_a_warning(engine, caplog, change, words):
    change(engine.algorithms)
    before = dict(vars(engine.algorithms))
    load(engine)
    assert {name: value for name, value in vars(engine.algorithms).items()} == before
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "dualpipe_sglang"]
    assert f"SGLang {wheels.VERSIONS['sglang']} does not have HookRegistry and {ALGORITHMS} with compute_alg" in warning
    assert re.search(words, warning)
