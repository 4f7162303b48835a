"""Transfers: run on memory, GPU by GPU or on a thread each, they leave every weight where the new plan wants it."""

import queue

import dualpipe
import numpy as np
import pytest
from dualpipe import eplb

from conftest import on_threads

# Weights, scales, and optimizer state: tensors of different shapes and types.
SHAPES = [((3, 4), np.float32), ((3,), np.float16), ((2, 2, 2), np.float64)]


def weights(layer, expert):
    """The tensors of an expert, unlike those of any other."""
    return [
        np.full(shape, 1000 * layer + expert, dtype) + np.arange(np.prod(shape)).reshape(shape).astype(dtype) / 16
        for shape, dtype in SHAPES
    ]


def two_plans(seed=3, max_moves=None, layers=3):
    """A plan, and the next one: made anew, or with few moves."""
    random = np.random.default_rng(seed)
    cluster = eplb.Cluster(num_gpus=8, num_slots=42, num_nodes=2)
    loads = random.gamma(1.0, size=(layers, 32))
    current = eplb.balance(loads, cluster=cluster)
    loads = loads * random.gamma(4.0, 0.25, size=loads.shape)
    budget = {} if max_moves is None else {"current": current, "max_moves": max_moves}
    return current, eplb.balance(loads, cluster=cluster, **budget)


class Gpu:
    """The memory of a GPU: a copy of an expert's tensors in each room, slots and staging buffers."""

    def __init__(self, number, plan, transfers):
        cluster = plan.cluster
        self.rooms = {}
        for layer, slots in enumerate(plan.phy2log):
            for slot in np.flatnonzero(cluster.gpu_of_slot == number):
                self.rooms[layer, slot] = weights(layer, slots[slot])
        for buffer in range(transfers.staging[number]):
            self.rooms[None, cluster.num_slots + buffer] = weights(0, 0)
        self.num_slots = cluster.num_slots

    def room(self, layer, number):
        """The tensors in a room; buffers are the same for all layers."""
        return self.rooms[layer if number < self.num_slots else None, number]

    def write(self, layer, number, tensors):
        for mine, theirs in zip(self.room(layer, number), tensors, strict=True):
            mine[...] = theirs

    def check(self, plan):
        for (layer, slot), tensors in self.rooms.items():
            if layer is not None:
                for got, want in zip(tensors, weights(layer, plan.phy2log[layer][slot]), strict=True):
                    assert (got == want).all(), (layer, slot)


@pytest.mark.parametrize("options", [{}, {"staging_per_gpu": 2}, {"sends_per_gpu": 2, "copies_per_node_link": 1}])
@pytest.mark.parametrize("max_moves", [None, 5])
def test_gpus_on_threads_move_every_tensor_to_its_place(options, max_moves):
    current, new = two_plans(max_moves=max_moves)
    transfers = eplb.transfers(current, new, **options)
    transfers.check()
    gpus = [Gpu(number, current, transfers) for number in range(8)]
    wires = {(a, b): queue.Queue() for a in range(8) for b in range(8)}

    def run(rank):
        # No barriers: a GPU waits for what it receives, and for nothing else.
        mine = gpus[rank]
        for step in transfers.for_gpu(rank):
            for copy in step.sends:
                tensors = [tensor.copy() for tensor in mine.room(step.layer, copy["from"])]
                wires[rank, copy["to_gpu"]].put((copy, tensors))
            for copy in step.local:
                mine.write(step.layer, copy["to"], mine.room(step.layer, copy["from"]))
            for copy in step.receives:
                sent, tensors = wires[copy["from_gpu"], rank].get(timeout=20)
                assert sent == copy
                mine.write(step.layer, copy["to"], tensors)

    assert on_threads(8, run) == [None] * 8
    assert all(wire.empty() for wire in wires.values())
    for gpu in gpus:
        gpu.check(new)


def test_rounds_run_at_once_in_any_order():
    current, new = two_plans(seed=9)
    transfers = eplb.transfers(current, new)
    gpus = [Gpu(number, current, transfers) for number in range(8)]
    for layer in transfers.layers["layer"]:
        for copies in transfers.rounds(layer):
            # The last first: it does not matter, for nothing is read and written in the same round.
            for copy in copies[::-1]:
                gpus[copy["to_gpu"]].write(layer, copy["to"], gpus[copy["from_gpu"]].room(layer, copy["from"]))
    for gpu in gpus:
        gpu.check(new)


def test_few_moves_are_few_copies():
    current, new = two_plans(max_moves=4)
    transfers = eplb.transfers(current, new)
    between = (transfers.copies["link"] > 0).sum()
    assert 0 < between <= transfers.num_layers * 4
    assert transfers.layers["num_copies"].sum() == len(transfers.copies)
    with eplb.transfers(new, new) as nothing:
        assert len(nothing.copies) == nothing.num_rounds == 0 and nothing.for_gpu(0) == []


def test_bytes_rounds_and_text_agree_with_the_copies():
    current, new = two_plans()
    transfers = eplb.transfers(current, new, tensor_bytes=[1000, 24])
    copies = transfers.copies
    assert transfers.bytes_per_expert == 1024
    assert transfers.bytes == tuple(1024 * (copies["link"] == link).sum() for link in range(3))
    node, first = np.array(new.cluster.node_of_gpu), 0
    assert ((copies["link"] == 2) == (node[copies["from_gpu"]] != node[copies["to_gpu"]])).all()
    for layer in transfers.layers:
        rounds = transfers.rounds(layer["layer"])
        assert len(rounds) == layer["num_rounds"] >= layer["least_rounds"]
        assert sum(map(len, rounds)) == layer["num_copies"] and layer["first_copy"] == first
        for number, part in enumerate(rounds):
            assert (part["round"] == number).all() and (part["layer"] == layer["layer"]).all()
            between = part[part["link"] > 0]
            assert np.bincount(between["from_gpu"]).max(initial=0) <= 1
            assert np.bincount(between["to_gpu"]).max(initial=0) <= 1
        first += layer["num_copies"]
    assert transfers.num_rounds == transfers.layers["num_rounds"].sum()
    assert transfers.least_rounds == transfers.layers["least_rounds"].sum()
    text = str(transfers)
    assert f"{len(copies)} copies" in text and f"{transfers.bytes.other_node:,}" in text and "lost" not in text


def test_the_layer_that_gains_most_comes_first_and_transfers_can_be_resumed():
    current, new = two_plans()
    transfers = eplb.transfers(current, new, gains=[0.5, 2.0, 1.0])
    assert transfers.layers["layer"].tolist() == [1, 2, 0]
    after = transfers.placement_after(1)
    assert (after[1] == new.phy2log[1]).all() and (after[[0, 2]] == current.phy2log[[0, 2]]).all()
    rest = eplb.transfers(after, new)
    rest.check()
    assert len(rest.copies) == transfers.layers["num_copies"][1:].sum()


def test_what_a_dead_gpu_alone_had_is_lost():
    cluster = eplb.Cluster(num_gpus=3, num_slots=6, dead=[2])
    transfers = eplb.transfers([[0, 1, 1, 2, 3, 0]], [[0, 3, 1, 2, -1, -1]], cluster)
    transfers.check()
    (lost,) = transfers.lost
    assert (lost["layer"], lost["expert"], lost["slot"]) == (0, 3, 1)
    assert "1 experts, to be loaded" in str(transfers)
    assert transfers.placement_after(1).tolist() == [[0, 3, 1, 2, -1, -1]]


CLUSTER = eplb.Cluster(num_gpus=2, num_slots=4)
WRONG = [
    (lambda m: eplb.transfers(m, m), "cluster is not given"),
    (lambda m: eplb.transfers(m, m + m, CLUSTER), r"new has shape \[2, 4\], must be \[1, 4\]"),
    (lambda m: eplb.transfers([[0, 1]], m, CLUSTER), r"current has shape \[1, 2\]"),
    (lambda m: eplb.transfers(m, m, CLUSTER, num_experts=2), "is 2, must be less than num_experts = 2"),
    (lambda m: eplb.transfers(m, m, CLUSTER, gains=[1, 2]), "the number of gains is 2, must be num_layers = 1"),
    (lambda m: eplb.transfers(m, m, CLUSTER, gains=[float("inf")]), r"gains\[0\] is inf, must be finite"),
    (lambda m: eplb.transfers(m, m, CLUSTER, tensor_bytes=[-1]), "tensor_bytes has -1"),
    (lambda m: eplb.transfers(m, m, CLUSTER, tensor_bytes=[1 << 63, 1 << 63]), r"tensor_bytes is 2\^64 or more"),
    (lambda m: eplb.transfers(m, m, CLUSTER, sends_per_gpu=0), "sends_per_gpu is 0, must be at least 1"),
    (lambda m: eplb.transfers(m, m, CLUSTER, copies_per_node_link=0), "copies_per_node_link is 0"),
    (lambda m: eplb.transfers(m, m, CLUSTER, staging_per_gpu=1025), "staging_per_gpu is 1025"),
    (lambda m: eplb.transfers(m, [[0, 1, 1, 2]], CLUSTER.with_dead([1])), "its GPU is dead"),
    (lambda m: eplb.transfers(m, m, CLUSTER).for_gpu(2), "gpu is 2, must be 0 to 1"),
    (lambda m: eplb.transfers(m, m, CLUSTER).rounds(1), "layer is 1, must be 0 to 0"),
    (lambda m: eplb.transfers(m, m, CLUSTER).placement_after(2), "layers_done is 2, must be 0 to 1"),
]


def test_bytes_are_integers():
    for wrong in (1.5, "8", None):
        with pytest.raises(TypeError, match="tensor_bytes has"):
            eplb.transfers([[0, 1, 1, 2]], [[0, 1, 1, 2]], CLUSTER, tensor_bytes=[wrong])


@pytest.mark.parametrize(("call", "text"), WRONG, ids=[text for _, text in WRONG])
def test_what_is_wrong_is_said(call, text):
    with pytest.raises(dualpipe.InvalidArgument, match=text):
        call([[0, 1, 1, 2]])
