"""verify finds what is wrong with a placement; the same placement has the same hash; GPU loads add up and are drawn."""

import re
import xml.etree.ElementTree as ET

import dualpipe
import numpy as np
import pytest
from dualpipe import eplb
from dualpipe.eplb import Cluster

CLUSTER = Cluster(num_gpus=3, num_slots=6, num_nodes=3, dead=[1])
GOOD = np.array([[0, 1, -1, -1, 2, 0]])


def test_a_good_placement_has_no_findings():
    report = eplb.verify(
        GOOD,
        CLUSTER,
        shares=[[0.25, 1, 0, 0, 1, 0.75]],
        log2phy=[[[5, 0], [1, -1], [4, -1]]],
        logcnt=[[2, 1, 1]],
        loads=[[4.0, 2, 2]],
        max_imbalance=1.25,
    )
    assert (report.ok, str(report), report.findings, report.counts) == (True, "", [], {})
    report.check()


def test_every_finding_says_where_and_what():
    cluster = Cluster(num_gpus=3, num_slots=6, num_nodes=3)
    cases = [
        ({"phy2log": [[0, 1, 1, 0, 0, 1]]}, "missing", {"expert": 2}),
        ({"phy2log": [[0, 1, 2, 0, 1, 1 << 32]]}, "not an expert", {"slot": 5, "found": 1 << 32}),
        ({"phy2log": [[0, 1, 2, 0, 1, -2]]}, "not an expert", {"slot": 5, "found": -2}),
        (
            {"phy2log": np.array([[0, 1, 2, 0, 1, 2**64 - 1]], np.uint64)},
            "not an expert",
            {"slot": 5, "found": 2**63 - 1},
        ),
        ({"phy2log": [[0, 1, 2, 0, 2, 1]], "cluster": CLUSTER}, "on dead GPU", {"slot": 3, "gpu": 1, "expert": 0}),
        ({"min_gpus": 3}, "too few GPUs", {"expert": 2, "found": 2, "wanted": 3}),
        ({"min_nodes": 3}, "too few nodes", {"expert": 2, "found": 2, "wanted": 3}),
        ({"num_groups": 3, "groups": "whole"}, "split group", {"group": 2, "found": 2, "wanted": 1}),
        ({"shares": [[1, 1, 0.5, 0, 0, -0.5]]}, "share", {"slot": 5, "found": -0.5}),
        ({"shares": [[1, 1, 0.5, 0, 0, 0.25]]}, "share sum", {"expert": 2, "found": 0.75, "wanted": 1}),
        ({"logcnt": [[2, 2, 1 << 40]]}, "replica count", {"expert": 2, "found": 1 << 40, "wanted": 2}),
        ({"log2phy": [[[0, 3], [1, 4], [2, 9]]]}, "wrong slot", {"expert": 2, "entry": 1, "found": 9}),
        ({"log2phy": [[[0, 3], [1, 4], [2, -1]]]}, "unlisted", {"expert": 2, "slot": 5}),
        ({"phy2log": [[0, 1, 2, 0, 1, -1]]}, "empty", {"slot": 5, "gpu": 2}),
        ({"phy2log": [[0, 1, 2, 2, 1, 0]]}, "twice", {"gpu": 1, "expert": 2, "found": 2, "avoidable": True}),
        ({"loads": [[1.0, 1, 2]], "max_imbalance": 1.1}, "overloaded", {"gpu": 2, "found": 1.125, "wanted": 1.1}),
    ]
    for given, kind, want in cases:
        arguments = {"phy2log": [[0, 1, 2, 0, 1, 2]], "cluster": cluster, "num_experts": 3, **given}
        report = eplb.verify(**arguments)
        found = [finding for finding in report.findings if finding.kind == kind]
        assert found and report.counts[kind] == len(found), (kind, str(report))
        finding = found[-1]
        assert {name: getattr(finding, name) for name in want} == want, str(report)
        places = {"expert", "slot", "gpu", "group", "entry"} - set(want)
        assert all(getattr(finding, name) is None for name in places), finding
        is_warning = kind in ("empty", "twice", "overloaded")
        assert finding.severity == ("warning" if is_warning else "error")
        assert report.ok == (report.num_errors == 0)
        if is_warning:
            report.check()
        else:
            with pytest.raises(dualpipe.InvalidArgument, match=re.escape(str(report).splitlines()[0])):
                report.check()


def test_many_findings_are_counted():
    report = eplb.verify(np.full((100, 6), 7), Cluster(num_gpus=3, num_slots=6), num_experts=3)
    assert report.counts == {"missing": 300, "not an expert": 600}
    assert len(report.findings) == 128 and "236 more: experts on no live GPU" in str(report)


def test_a_plan_is_right_and_its_loads_add_up():
    loads = np.random.default_rng(1).gamma(1.0, size=(3, 16)).astype(np.float32)
    for split in ("equal", "weighted"):
        plan = eplb.balance(loads, num_gpus=4, num_slots=20, num_nodes=2, split=split)
        tables = {"log2phy": plan.log2phy, "logcnt": plan.logcnt, "shares": plan.shares}
        report = eplb.verify(plan, loads=loads, max_imbalance=plan.imbalance.max() + 1e-9, **tables)
        assert str(report) == ""
        gpus = eplb.gpu_loads(plan, loads)
        assert np.allclose(gpus, plan.gpu_loads) and np.allclose(gpus.sum(1), loads.sum(1))
        assert np.allclose(eplb.node_loads(gpus, plan.cluster), gpus.reshape(3, 2, 2).sum(2))
        by_hand = eplb.gpu_loads(plan.phy2log, loads, plan.cluster, shares=plan.shares)
        assert np.array_equal(by_hand, gpus) or split == "equal"


def test_ranks_that_differ_are_named():
    plan = eplb.balance(np.ones((2, 8)), num_gpus=4, num_slots=8)
    same, other = eplb.hash_of(plan), plan.phy2log.copy()
    assert eplb.hash_of(plan.phy2log, plan.cluster) == same
    other[1, [0, 7]] = other[1, [7, 0]]
    differs = eplb.hash_of(other, plan.cluster)
    assert differs != same and eplb.hash_of(plan, plan.cluster.with_dead([3])) != same
    assert eplb.hash_of(plan, shares=plan.shares) != same
    assert eplb.disagreeing([same, differs, same, differs, same]) == [1, 3]
    assert eplb.disagreeing([same]) == []
    # As src/balance/verify/hash.rs has it, computed elsewhere.
    assert eplb.hash_of([[0, 1, 2, 0]], Cluster(num_gpus=2, num_slots=4)) == 0xC749D0BC92281331


def test_memory_grows_with_the_slots_of_the_whole_cluster():
    sizes = {"num_layers": 58, "num_experts": 256, "top_k": 8, "hidden": 7168, "tokens_per_rank": 128}
    memory = eplb.memory(Cluster(num_gpus=32, num_slots=288), **sizes, expert_bytes=3 * 7168 * 2048)
    assert (memory.slots_max, memory.rows_max, memory.weight_bytes >> 20) == (9, 32768, 21924)
    assert memory.low_latency_bytes >> 20 == 2017
    assert memory.low_latency_bytes_without_redundancy >> 20 == 1793


def test_what_cannot_be_meant_is_refused():
    for given, text in [
        ({"phy2log": [[0, 1]]}, r"phy2log has shape \[1, 2\], must be \[layers, 6\]"),
        ({"num_experts": None}, "num_experts is not given"),
        ({"num_experts": 0}, "num_experts is 0"),
        ({"logcnt": [[1, 2]]}, r"logcnt has shape \[1, 2\], must be \[1, 3\]"),
        ({"log2phy": [[1, 2, 3]]}, r"log2phy has shape \[1, 3\], must be \[1, 3, most\]"),
        ({"shares": [[1.0]]}, r"shares has shape \[1, 1\], must be \[1, 6\]"),
        ({"loads": [[1.0, 2, 3]]}, "loads and max_imbalance must be given together"),
        ({"loads": [[1.0, 2, 3]], "max_imbalance": 0.5}, "imbalance_max is 0.5, must be at least 1"),
        ({"loads": [[1.0, -2, 3]], "max_imbalance": 2}, r"loads\[layer 0, expert 1\] is -2"),
        ({"cluster": None}, "cluster is None"),
    ]:
        arguments = {"phy2log": GOOD, "cluster": CLUSTER, "num_experts": 3, **given}
        with pytest.raises(dualpipe.InvalidArgument, match=text):
            eplb.verify(**arguments)
    with pytest.raises(TypeError, match="phy2log has dtype float64, must be integers"):
        eplb.verify([[0.5] * 6], CLUSTER, num_experts=3)
    with pytest.raises(dualpipe.InvalidArgument, match="must be an expert, or -1 for none"):
        eplb.hash_of([[1 << 32, 1, -1, -1, 2, 0]], CLUSTER)
    with pytest.raises(dualpipe.InvalidArgument, match="expert 2 is 0, must be at least 1: it has load"):
        eplb.gpu_loads([[0, 1, -1, -1, 1, 0]], [[1.0, 1, 1]], CLUSTER)


def test_a_heat_map_shows_before_and_after(tmp_path):
    loads = np.arange(1.0, 33).reshape(2, 16)
    plan = eplb.balance(loads, num_gpus=4, num_slots=20)
    before = eplb.gpu_loads([list(range(16)) + [0, 1, 2, 3]] * 2, loads, plan.cluster)
    picture = eplb.heat_map({"before < after": before, "after": plan}, plan.cluster)
    path = tmp_path / "map.svg"
    svg = picture.svg(path)
    assert path.read_text(encoding="utf-8") == svg == picture._repr_svg_()
    root = ET.fromstring(svg)
    texts = [element.text for element in root.iter() if element.text]
    assert "before < after" in texts and "after" in texts
    lines = str(picture).splitlines()
    assert lines[0] == "before < after" and f"mean imbalance {plan.imbalance.mean():.3f}" in str(picture)
    with pytest.raises(dualpipe.InvalidArgument, match="num_panels is 0, must be 1 to 16"):
        eplb.heat_map({})
    with pytest.raises(dualpipe.InvalidArgument, match="cluster is None, must be given as 'x' is no Plan"):
        eplb.heat_map({"x": before})
    with pytest.raises(dualpipe.InvalidArgument, match=r"panel 0's loads\[layer 0, GPU 1\] is NaN"):
        eplb.heat_map({"x": [[1.0, float("nan"), 1, 1]]}, plan.cluster)


def test_tensors_are_taken_and_given():
    torch = pytest.importorskip("torch")
    loads = torch.arange(1.0, 9).reshape(1, 8)
    slots = torch.arange(8).reshape(1, 8)
    cluster = Cluster(num_gpus=4, num_slots=8)
    gpus = eplb.gpu_loads(slots, loads, cluster)
    assert torch.equal(gpus, torch.tensor([[3.0, 7, 11, 15]], dtype=torch.float64))
    assert eplb.verify(slots, cluster, loads=loads, max_imbalance=2.0, shares=torch.ones(1, 8)).ok
    assert eplb.hash_of(slots, cluster) == eplb.hash_of(slots.numpy(), cluster)
