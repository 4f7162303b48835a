"""Routing: the heaviest GPU is as light as can be, and ranks that do not talk send every token where it should go."""

import threading

import dualpipe
import numpy as np
import pytest
from dualpipe import eplb

# GPU 0 has experts 0 and 1, GPU 1 has 1 and 2.
TWO_GPUS = eplb.Cluster(num_gpus=2, num_slots=4)
SLOTS = [[0, 1, 1, 2]]


def placed(layers=3, experts=64, gpus=8, slots=80, nodes=2, seed=5):
    """A plan, and the loads that it was made for."""
    loads = np.random.default_rng(seed).gamma(1.0, size=(layers, experts))
    return eplb.balance(loads, num_gpus=gpus, num_slots=slots, num_nodes=nodes), loads


def step(loads, tokens, top_k=4, seed=1):
    """[tokens, top_k]: experts chosen by their loads, no two alike for a token."""
    random = np.random.default_rng(seed)
    keys = random.exponential(size=(tokens, len(loads))) / loads
    return np.argsort(keys, axis=1)[:, :top_k]


def check(routing, router, plan, layer, counts):
    """What the routing says of itself is so, and its bottleneck proves that nothing is better."""
    totals = counts if counts.ndim == 1 else counts.sum(0)
    experts, gpu_of_slot = plan.phy2log[layer], plan.cluster.gpu_of_slot
    got = np.bincount(experts, weights=routing.quotas, minlength=router.num_experts)
    assert (got == totals).all()
    loads = np.bincount(gpu_of_slot, weights=routing.quotas, minlength=router.num_gpus)
    assert (loads == routing.gpu_loads).all() and loads.max() == routing.heaviest
    assert routing.bound <= routing.heaviest < routing.bound + 1
    assert routing.bound == pytest.approx(routing.bottleneck_load / len(routing.bottleneck))
    captive = [
        expert for expert in range(router.num_experts) if set(gpu_of_slot[experts == expert]) <= set(routing.bottleneck)
    ]
    assert totals[captive].sum() == routing.bottleneck_load


def test_the_heaviest_gpu_is_as_light_as_can_be():
    plan, loads = placed()
    router = eplb.Router(plan)
    assert (router.num_layers, router.num_experts, router.num_slots, router.num_gpus) == (3, 64, 80, 8)
    for layer in range(3):
        counts = np.bincount(step(loads[layer], 500).ravel(), minlength=64)
        routing = router.route(layer, counts)
        check(routing, router, plan, layer, counts)
        assert routing.source_quotas is None and routing.tokens_on_gpu == routing.tokens_on_node == 0
        assert routing.quotas.dtype == routing.gpu_loads.dtype == np.int64
        # Equal shares, which engines use, are heavier.
        equal = np.bincount(plan.cluster.gpu_of_slot, weights=(counts / plan.logcnt[layer])[plan.phy2log[layer]])
        assert routing.heaviest <= np.ceil(equal.max())


def test_a_small_case_is_as_computed_by_hand():
    router = eplb.Router(SLOTS, TWO_GPUS)
    routing = router.route(0, [30, 40, 10])
    assert routing.quotas.tolist() == [30, 10, 30, 10] and routing.gpu_loads.tolist() == [40, 40]
    routing = router.route(0, [50, 20, 10])
    assert routing.quotas.tolist() == [50, 0, 20, 10]
    assert (routing.heaviest, routing.bottleneck.tolist(), routing.bottleneck_load) == (50, [0], 50)
    assert router.route(0, [30, 40, 10], tile=16).heaviest == 48
    near = router.route(0, [[20, 15, 5], [10, 25, 5]])
    assert (near.tokens_on_gpu, near.tokens_on_node, near.heaviest) == (60, 80, 40)
    assert (near.source_quotas.sum(0) == near.quotas).all()


def test_senders_keep_what_they_can():
    plan, loads = placed()
    router = eplb.Router(plan)
    counts = np.stack([np.bincount(step(loads[0], 60, seed=gpu).ravel(), minlength=64) for gpu in range(8)])
    near = router.route(0, counts)
    check(near, router, plan, 0, counts)
    assert (near.source_quotas.sum(0) == near.quotas).all()
    for gpu in range(8):
        sent = np.bincount(plan.phy2log[0], weights=near.source_quotas[gpu], minlength=64)
        assert (sent == counts[gpu]).all()
    on_gpu = sum(near.source_quotas[gpu][plan.cluster.gpu_of_slot == gpu].sum() for gpu in range(8))
    assert on_gpu == near.tokens_on_gpu <= near.tokens_on_node <= counts.sum()
    anyhow = router.route(0, counts, gpu_price=0, node_price=0)
    assert anyhow.heaviest == near.heaviest == router.route(0, counts.sum(0)).heaviest
    assert (anyhow.quotas == router.route(0, counts.sum(0)).quotas).all()
    assert near.tokens_on_node > anyhow.tokens_on_node


def test_ranks_that_do_not_talk_make_one_map_and_meet_the_quotas_exactly():
    plan, loads = placed()
    choices = [step(loads[0], 60 + 7 * rank, seed=rank) for rank in range(8)]
    counts = np.stack([np.bincount(each.ravel(), minlength=64) for each in choices])
    before = np.cumsum(counts, axis=0) - counts
    maps = []

    def rank(number):
        # Each rank has a router of its own, made from the same map, and knows the counts of all.
        router = eplb.Router(plan.phy2log, plan.cluster, num_experts=64)
        routing = router.route(0, counts)
        mine = router.slots(0, choices[number], routing.source_quotas[number])
        of_all = [router.slots(0, each, routing.quotas, before=before[i]) for i, each in enumerate(choices)]
        maps.append((number, routing, mine, of_all))

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(maps) == 8
    sent = np.zeros(80, np.int64)
    for number, routing, mine, of_all in maps:
        assert (plan.phy2log[0][mine] == choices[number]).all()
        assert (np.bincount(mine.ravel(), minlength=80) == routing.source_quotas[number]).all()
        sent += np.bincount(mine.ravel(), minlength=80)
        for others, known in zip(of_all, maps[0][3]):
            assert (others == known).all()
    assert (sent == maps[0][1].quotas).all()
    without_senders = np.concatenate([each.ravel() for each in maps[0][3]])
    assert (np.bincount(without_senders, minlength=80) == maps[0][1].quotas).all()


def test_tokens_may_be_sent_in_chunks():
    plan, loads = placed()
    router = eplb.Router(plan)
    choices = step(loads[0], 300)
    counts = np.bincount(choices.ravel(), minlength=64)
    quotas = router.route(0, counts).quotas
    whole = router.slots(0, choices, quotas)
    first = np.bincount(choices[:111].ravel(), minlength=64)
    parts = [router.slots(0, choices[:111], quotas), router.slots(0, choices[111:], quotas, before=first)]
    assert (np.concatenate(parts) == whole).all()
    with pytest.raises(dualpipe.InvalidArgument, match="must be at most its quotas"):
        router.slots(0, choices, quotas, before=first)


def test_shares_need_no_counts():
    plan, loads = placed()
    router = eplb.Router(plan)
    choices = step(loads[1], 2000, top_k=2)
    shares, heaviest = router.shares(1, loads[1])
    of_expert = np.bincount(plan.phy2log[1], weights=shares, minlength=64)
    assert of_expert == pytest.approx(np.ones(64))
    carried = np.bincount(plan.cluster.gpu_of_slot, weights=shares * loads[1].astype(np.float32)[plan.phy2log[1]])
    assert carried.max() == pytest.approx(heaviest)
    slots = router.slots(1, choices, shares=shares, phase=3)
    assert (plan.phy2log[1][slots] == choices).all()
    counts = np.bincount(choices.ravel(), minlength=64)
    assert np.abs(np.bincount(slots.ravel(), minlength=80) - shares * counts[plan.phy2log[1]]).max() < 5
    assert (router.slots(1, choices, shares=shares, phase=4) != slots).any()
    # The plan's own, which are equal.
    equal = np.bincount(router.slots(1, choices).ravel(), minlength=80)
    assert np.abs(equal - (counts / plan.logcnt[1])[plan.phy2log[1]]).max() < 5


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.int16, np.uint32])
def test_slots_are_what_choices_are(dtype):
    router = eplb.Router(SLOTS, TWO_GPUS)
    routing = router.route(0, [3, 4, 1])
    choices = np.array([[1, 0], [1, 2], [1, 0], [1, 0]])
    slots = router.slots(0, choices.astype(dtype), routing.quotas)
    assert slots.dtype == dtype and slots.shape == (4, 2)
    assert (slots == router.slots(0, np.asfortranarray(choices), routing.quotas)).all()
    assert (slots == router.slots(0, choices.tolist(), routing.quotas.astype(np.uint32))).all()
    if np.iinfo(dtype).min < 0:
        assert router.slots(0, np.array([-1, 0, -1], dtype), routing.quotas).tolist() == [-1, 0, -1]
    assert router.slots(0, np.zeros((0, 2), dtype), routing.quotas).shape == (0, 2)


def test_tensors_come_back_as_tensors():
    torch = pytest.importorskip("torch")
    router = eplb.Router(torch.tensor(SLOTS), TWO_GPUS)
    routing = router.route(0, torch.tensor([[2, 1, 0], [1, 3, 1]]))
    for name in ("quotas", "source_quotas", "gpu_loads", "bottleneck"):
        assert getattr(routing, name).dtype == torch.int64, name
    for dtype in (torch.int32, torch.int64):
        choices = torch.tensor([[1, 0], [1, 2], [1, 0], [1, 0]], dtype=dtype)
        slots = router.slots(0, choices, routing.quotas)
        assert slots.dtype == dtype and slots.shape == choices.shape
        assert (slots.numpy() == router.slots(0, choices.numpy(), routing.quotas)).all()
        assert (
            router.slots(0, choices.T, routing.quotas).T == router.slots(0, choices.T.contiguous(), routing.quotas).T
        ).all()
    routings = eplb.route(SLOTS, torch.tensor([[2, 4, 1]]), TWO_GPUS)
    assert routings.quotas.shape == (1, 4) and isinstance(routings.bottleneck[0], torch.Tensor)


def test_all_layers_are_routed_at_once():
    plan, loads = placed()
    counts = np.stack(
        [[np.bincount(step(loads[i], 50, seed=g).ravel(), minlength=64) for g in range(8)] for i in range(3)]
    )
    router = eplb.Router(plan)
    for given in (counts, counts.sum(1)):
        routings = eplb.route(plan, given, tile=8)
        assert routings.quotas.shape == (3, 80) and routings.gpu_loads.shape == (3, 8)
        assert (routings.source_quotas is None) == (given.ndim == 2)
        for layer in range(3):
            routing = router.route(layer, given[layer], tile=8)
            for name in eplb.Routing._fields:
                if getattr(routing, name) is not None:
                    assert np.array_equal(getattr(routings, name)[layer], getattr(routing, name)), name


def test_a_dead_gpu_gets_nothing():
    cluster = eplb.Cluster(num_gpus=3, num_slots=6, dead=[1])
    router = eplb.Router([[0, 1, 2, 0, 1, 2]], cluster)
    routing = router.route(0, [9, 8, 7])
    assert routing.quotas.tolist()[2:4] == [0, 0] and routing.gpu_loads[1] == 0
    lost = eplb.Router([[0, 1, 2, 0, 1, 1]], cluster)
    with pytest.raises(dualpipe.InvalidArgument, match="the count of expert 2 is 7, must be 0: no live GPU"):
        lost.route(0, [9, 8, 7])


WRONG = [
    (lambda r: r.route(1, [1, 1, 1]), "layer is 1, must be 0 to 0"),
    (lambda r: r.route(-1, [1, 1, 1]), "layer is -1"),
    (lambda r: r.route(0, [1, 1]), r"counts has shape \[2\], must be \[3\] or \[2, 3\]"),
    (lambda r: r.route(0, [1, -1, 1]), "counts has -1, must be 0 to 4294967295"),
    (lambda r: r.route(0, [1, 1 << 32, 1]), "counts has 4294967296"),
    (lambda r: r.route(0, [1 << 31, 1 << 31, 1]), "the sum of counts is 4294967297"),
    (lambda r: r.route(0, [1, 1, 1], tile=0), "tile is 0, must be 1 to 65536"),
    (lambda r: r.route(0, [1, 1, 1], tile=65537), "tile is 65537, must be 1 to 65536"),
    (lambda r: r.route(0, [1, 1, 1], node_price=1001), "node_price is 1001"),
    (lambda r: r.slots(0, [3], [1, 1, 1, 1]), r"experts\[0\] is 3, must be less than 3"),
    (lambda r: r.slots(0, [1], [1, 1, 1]), "num_quotas is 3, must be 4 to 4"),
    (lambda r: r.slots(0, [1], [1, 1, 1, 1], before=[0]), "num_before is 1, must be 3 to 3"),
    (lambda r: r.slots(0, [1], [1, 1, 1, 1], shares=[1, 1, 1, 1]), "quotas and shares are both given"),
    (lambda r: r.slots(0, [1], before=[0, 0, 0]), "before is given without quotas"),
    (lambda r: r.slots(0, [1], shares=[1, float("nan"), 1, 1]), "NaN"),
    (lambda r: r.shares(0, [1, 1]), "num_loads is 2, must be 3 to 3"),
    (lambda r: r.shares(0, [1, -1, 1]), r"loads\[expert 1\] is -1"),
    (lambda r: eplb.Router(SLOTS), "cluster is not given"),
    (lambda r: eplb.Router(SLOTS, TWO_GPUS, num_experts=2), r"slot_to_expert\[3\] is 2, must be -1 to 1"),
    (lambda r: eplb.route(SLOTS, [1, 1, 1], TWO_GPUS), r"counts has shape \[3\]"),
    (lambda r: eplb.route(SLOTS, [[1, 1, 1]] * 2, TWO_GPUS), r"counts has shape \[2, 3\], must be \[1, 3\]"),
]


@pytest.mark.parametrize(("call", "text"), WRONG, ids=[text for _, text in WRONG])
def test_what_is_wrong_is_said(call, text):
    with pytest.raises(dualpipe.InvalidArgument, match=text):
        call(eplb.Router(SLOTS, TWO_GPUS))


def test_types_that_cannot_be_are_refused():
    router = eplb.Router(SLOTS, TWO_GPUS)
    for call in (
        lambda: router.route(0, [1.5, 1, 1]),
        lambda: router.route("0", [1, 1, 1]),
        lambda: router.slots(0, [1.0], [1, 1, 1, 1]),
        lambda: router.slots(0, [1], phase="x"),
        lambda: router.slots(0, [1], phase=1.5),
        lambda: router.slots(0, [1], shares=["1"]),
    ):
        with pytest.raises(TypeError):
            call()


def test_a_closed_router_is_refused():
    with eplb.Router(SLOTS, TWO_GPUS) as router:
        router.route(0, [1, 1, 1])
    with pytest.raises(dualpipe.InvalidHandle):
        router.route(0, [1, 1, 1])
