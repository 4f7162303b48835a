"""Expert balancing as an engine does it, whole: ranks that count, plan, agree, copy and route, with numpy for a network.

    python examples/experts/main.py [--windows 6] [--seed 1]

Eight ranks on two nodes, a thread each, serve four MoE layers. What is popular drifts, and in the middle changes at
once. Every rank keeps its weights in slots and computes its own tokens; after each window all decide, each for itself
and all alike, whether to move experts. An expert "computes" by saying its own number, so that every token shows
whether it came to the right one.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from dualpipe import eplb

LAYERS, EXPERTS, TOP_K, TOKENS = 4, 64, 4, 2048
CLUSTER = eplb.Cluster(num_gpus=8, num_slots=80, num_nodes=2)
PER_GPU = CLUSTER.num_slots // CLUSTER.num_gpus
STEPS = 16
"""Of a window."""
MOVES = 6
"""In a layer, at most."""
STAKES = {"expert_seconds": 2e-3, "horizon": 500, "bytes_per_expert": 44e6, "bytes_per_second": 40e9}
"""Of a step and layer; steps that a placement is for; what a move costs."""


class Network:
    """What ranks of different machines would have NCCL for."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(CLUSTER.num_gpus, timeout=60)
        self.board: dict[Any, Any] = {}

    def gather(self, rank: int, value: Any) -> list[Any]:
        """What every rank says, on every rank."""
        self.board["gather", rank] = value
        self.barrier.wait()
        values = [self.board["gather", other] for other in range(CLUSTER.num_gpus)]
        self.barrier.wait()
        return values


class Rank:
    """One GPU: its tokens, its slots, its copy of everything that all must agree on."""

    def __init__(self, rank: int, network: Network, seed: int) -> None:
        self.rank, self.network = rank, network
        self.tokens = np.random.default_rng((seed, rank))
        self.drift = np.random.default_rng(seed)  # the same on all ranks: the world that sends the tokens
        self.popularity = self.drift.normal(0, 0.6, (LAYERS, EXPERTS))
        self.monitor = eplb.Monitor(LAYERS, EXPERTS, window=STEPS, num_ranks=CLUSTER.num_gpus)
        in_order = np.tile(np.arange(CLUSTER.num_slots) % EXPERTS, (LAYERS, 1))
        self.plan = eplb.Plan.of_slots(in_order, CLUSTER, num_experts=EXPERTS)
        own = slice(PER_GPU * rank, PER_GPU * (rank + 1))
        self.first = PER_GPU * rank
        # Two tensors of each expert, weights and scales; here both only say whose they are.
        self.weights = self.plan.phy2log[:, own].astype(np.float32)
        self.scales = self.plan.phy2log[:, own].astype(np.float16)
        self.report: list[str] = []

    def run(self, windows: int) -> None:
        for window in range(windows):
            if window == windows // 2:
                self.popularity = self.drift.normal(0, 0.6, (LAYERS, EXPERTS))
            heaviest = total = 0
            with eplb.Router(self.plan) as router:
                for step in range(window * STEPS, (window + 1) * STEPS):
                    self.popularity += self.drift.normal(0, 0.01, self.popularity.shape)
                    busiest, tokens = self.step(step, router)
                    heaviest, total = heaviest + busiest, total + tokens
            self.rebalance(window, heaviest / (total / CLUSTER.num_gpus))

    def step(self, step: int, router: eplb.Router) -> tuple[int, int]:
        """Every layer's tokens to slots; the heaviest GPU's tokens and all tokens, summed over the layers."""
        chance = self.popularity + self.tokens.gumbel(size=(TOKENS, LAYERS, EXPERTS))
        chosen = np.argpartition(-chance, TOP_K, axis=2)[:, :, :TOP_K].swapaxes(0, 1)  # [layers, tokens, top_k]
        mine = np.stack([np.bincount(layer.ravel(), minlength=EXPERTS) for layer in chosen]).astype(np.uint32)
        counts = np.stack(self.network.gather(self.rank, mine))  # [gpus, layers, experts]
        self.monitor.record(step, mine)
        heaviest = 0
        weights = np.concatenate(self.network.gather(self.rank, self.weights), axis=1)  # as a dispatch would reach them
        for layer in range(LAYERS):
            routing = router.route(layer, counts[:, layer])
            slots = router.slots(layer, chosen[layer], routing.source_quotas[self.rank])
            assert (weights[layer, slots] == chosen[layer]).all(), "a token came to another expert"
            heaviest += routing.heaviest
        return heaviest, int(counts.sum())

    def rebalance(self, window: int, imbalance: float) -> None:
        """Decides with all that all ranks have counted. Nobody is asked: the same numbers give the same plan."""
        first, *others = [eplb.Monitor.load(state) for state in self.network.gather(self.rank, self.monitor.save())]
        for other in others:
            first.merge(other)
        decision, plan = eplb.plan_and_judge(
            first,
            self.plan,
            lambda loads: eplb.balance(loads, cluster=CLUSTER, current=self.plan, max_moves=MOVES, split="weighted"),
            **STAKES,
        )
        done = "stay"
        if plan is not None:
            differ = eplb.disagreeing(self.network.gather(self.rank, eplb.hash_of(plan)))
            assert not differ, f"ranks {differ} have another plan"
            eplb.verify(plan, CLUSTER).check()
            copies = eplb.transfers(self.plan, plan, tensor_bytes=[40_000_000, 4_000_000])
            self.copy(copies)
            self.plan = plan
            done = f"{len(copies.copies)} copies in {copies.num_rounds} rounds"
        self.report.append(f"{window:6}   {imbalance:9.3f}   {done:24}   {decision}")

    def copy(self, transfers: eplb.Transfers) -> None:
        """Its part, round by round; what it sends lies on the board until the round is over."""
        rooms = {}  # of staging buffers
        mine = {(each.layer, each.round): each for each in transfers.for_gpu(self.rank)}
        for layer, num_rounds in transfers.layers[["layer", "num_rounds"]]:
            for number in range(num_rounds):
                todo = mine.get((layer, number))
                for copy in [] if todo is None else [*todo.sends, *todo.local]:
                    self.network.board["copy", copy["to_gpu"], copy["to"]] = self.read(rooms, copy)
                self.network.barrier.wait()
                for copy in [] if todo is None else [*todo.receives, *todo.local]:
                    self.write(rooms, copy, self.network.board.pop(("copy", self.rank, copy["to"])))
                self.network.barrier.wait()

    def read(self, rooms: dict[int, Any], copy: Any) -> Any:
        if copy["from"] >= CLUSTER.num_slots:
            return rooms[copy["from"]]
        slot = copy["from"] - self.first
        return self.weights[copy["layer"], slot], self.scales[copy["layer"], slot]

    def write(self, rooms: dict[int, Any], copy: Any, tensors: Any) -> None:
        if copy["to"] >= CLUSTER.num_slots:
            rooms[copy["to"]] = tensors
            return
        slot = copy["to"] - self.first
        self.weights[copy["layer"], slot], self.scales[copy["layer"], slot] = tensors


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=6, help=f"windows of {STEPS} steps (6)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(words)
    network = Network()
    ranks = [Rank(rank, network, arguments.seed) for rank in range(CLUSTER.num_gpus)]
    failed = []

    def run(rank: Rank) -> None:
        try:
            rank.run(arguments.windows)
        except BaseException as error:  # noqa: BLE001, said below, once for all ranks
            failed.append((rank.rank, error))
            network.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise SystemExit(f"rank {failed[0][0]}: {failed[0][1]!r}")
    print(f"{LAYERS} layers of {EXPERTS} experts in {CLUSTER.num_slots} slots, {CLUSTER.num_gpus} GPUs on 2 nodes")
    print("window   imbalance   then")
    print("\n".join(ranks[0].report))
    for rank in ranks:
        held = rank.plan.phy2log[:, rank.first : rank.first + PER_GPU]
        assert (rank.weights == held).all() and (rank.scales == held).all(), "a slot holds another expert"
        assert rank.report == ranks[0].report, "the ranks did not do the same"
    print("every token came to its expert; every rank did the same, unasked")
    return 0


if __name__ == "__main__":
    sys.exit(main())
