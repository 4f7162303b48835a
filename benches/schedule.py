"""How long a schedule takes to make, check, lower and simulate, beside torch's own; all in one run, as ratios.

    python benches/schedule.py [--quick] [--ranks 4 8 ...] [--microbatches 128 1024 ...] [--longest 30]

DualPipeV and ZB-V, which torch has too. Orders are compared, op by op, before anything is timed. Each figure is CPU
time of the one thread that both sides use, of the fastest run in some rounds in turns, ours, torch's, ours again;
Python collects no garbage meanwhile. What is timed:

- generate: the orders of all ranks. Torch: `_calculate_single_rank_operations` for each rank, on an object of its
  class that has the sizes, which are all that it reads; no stage is made. Ours: `dualpipe.Schedule(...)`.
- read: the same, and the orders as Python tuples, where torch has its own from the start.
- validate: torch's `_validate_schedule`. Ours: `check()` of a new schedule, which also lowers it and proves that no
  rank waits for ever; torch's does neither.
- lower: torch's `_add_unshard_reshard`, `_add_reduce_grad`, `_add_send_recv`. Ours: the programs of all ranks of a
  new schedule, with that proof.
- construct: what a rank does before it trains. Torch: its class on two stages with nothing in them, which generates,
  validates and lowers. Ours: `Schedule(...)` and one program, which has all checked and lowered.
- simulate: torch's `_simulate_comms_compute`, every action one step, on what `_add_send_recv` gives. Ours:
  `simulate()` with a time for each kind of op. Only ZB-V: torch's raises ValueError on OVERLAP_F_B.

Needs the package, and torch 2.15: another version may have these functions, which are private, in another form.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import dualpipe
import torch
from torch.distributed.pipelining import schedules as peer

CLASSES: dict[str, Any] = {"dualpipe_v": peer.ScheduleDualPipeV, "zb_v": peer.ScheduleZBVZeroBubble}
RANKS = (4, 8, 16, 32, 64)
MICROBATCHES = (128, 1024)
STEPS = ("generate", "read", "validate", "lower", "construct", "simulate")
COSTS = dualpipe.Costs(f=1e-3, i=1.27e-3, w=0.38e-3, fb=1.66e-3, latency=1e-5)
FIGURE_SECONDS = 4.0
"""No further round of a figure begins after so long."""
ROUND_SECONDS = 0.02
"""No further run of a round begins after so long."""

Orders = dict[int, list[Any]]


class Way(NamedTuple):
    """One way to do a step: `prepare` makes what `run` works on, anew for each round, and is not timed."""

    prepare: Callable[[], Any]
    run: Callable[[Any], object]


class Case(NamedTuple):
    """A schedule of both sides."""

    kind: str
    ranks: int
    microbatches: int

    def schedule(self) -> dualpipe.Schedule:
        """Ours, new: what it found out about itself is not kept from round to round."""
        return dualpipe.Schedule(self.kind, self.ranks, self.microbatches)

    def generator(self) -> Any:
        """An object of torch's class, as far made as its order functions need."""
        bare = object.__new__(CLASSES[self.kind])
        bare.pp_group_size, bare._n_microbatches = self.ranks, self.microbatches
        bare._num_stages = bare.num_stages = 2 * self.ranks
        return bare

    def orders(self) -> Orders:
        """Torch's orders of all ranks."""
        generator = self.generator()
        return {rank: generator._calculate_single_rank_operations(rank) for rank in range(self.ranks)}

    def rank_of(self, stage: int) -> int:
        """The rank of a stage in the V."""
        return min(stage, 2 * self.ranks - 1 - stage)

    def construct(self) -> Any:
        """Torch's schedule as a rank makes it, of stages that have nothing in them."""
        stages = [SimpleNamespace(**self.stage(stage)) for stage in (0, 2 * self.ranks - 1)]
        return CLASSES[self.kind](stages, self.microbatches)

    def stage(self, index: int) -> dict[str, Any]:
        """What torch's constructor reads of a stage of rank 0."""
        sizes = {"num_stages": 2 * self.ranks, "group_size": self.ranks, "group_rank": 0}
        return {"stage_index": index, "is_last": index == 2 * self.ranks - 1, "submod": None, **sizes}

    def steps(self) -> dict[str, tuple[Way, Way] | None]:
        """For each step, our way and torch's; None where torch cannot do it."""
        orders, stages = self.orders(), 2 * self.ranks
        ways: dict[str, tuple[Way, Way] | None] = {
            "generate": (Way(nothing, lambda _: self.schedule()), Way(nothing, lambda _: self.orders())),
            "read": (Way(nothing, lambda _: our_orders(self.schedule())), Way(nothing, lambda _: self.orders())),
            "validate": (
                Way(self.schedule, dualpipe.Schedule.check),
                Way(nothing, lambda _: peer._validate_schedule(orders, self.ranks, stages, self.microbatches)),
            ),
            "lower": (
                Way(self.schedule, lambda schedule: [schedule.program(rank) for rank in range(self.ranks)]),
                Way(nothing, lambda _: self.torch_lowered(orders)),
            ),
            "construct": (Way(nothing, lambda _: self.schedule().program(0)), Way(nothing, lambda _: self.construct())),
            "simulate": None,
        }
        if self.kind != "dualpipe_v":
            with_messages = peer._add_send_recv(own_lists(orders), self.rank_of, stages)
            ways["simulate"] = (
                Way(self.schedule, lambda schedule: schedule.simulate(COSTS)),
                Way(nothing, lambda _: peer._simulate_comms_compute(with_messages, self.rank_of, stages)),
            )
        return ways

    def torch_lowered(self, orders: Orders) -> Orders:
        """What torch's three passes make of compute-only orders, which they leave as they are."""
        lowered: Orders = {}
        for rank, order in orders.items():
            lowered[rank] = peer._add_unshard_reshard(order)
            lowered[rank] = peer._add_reduce_grad(lowered[rank], self.microbatches)
        return peer._add_send_recv(lowered, self.rank_of, 2 * self.ranks)


def nothing() -> None:
    """For what needs no preparation."""


def own_lists(orders: Orders) -> Orders:
    """Lists that may be emptied, without what stands for a bubble."""
    return {rank: [action for action in order if action is not None] for rank, order in orders.items()}


def our_orders(schedule: dualpipe.Schedule) -> list[list[dualpipe.schedule.OpTuple]]:
    """The orders of all ranks as Python has them."""
    return [schedule.order(rank) for rank in range(schedule.ranks)]


def as_ours(action: Any, ranks: int) -> tuple[Any, ...]:
    """Torch's action as our tuple: the copy is 0 on the way down and 1 on the way back."""
    if action.sub_actions is not None:
        forward, backward = (as_ours(part, ranks) for part in action.sub_actions)
        return ("FB", *forward[1:], *backward[1:])
    return (action.computation_type.value, int(action.stage_index >= ranks), action.microbatch_index)


def demand_same_orders(case: Case) -> int:
    """Stops the program unless torch's orders are ours; gives the number of ops."""
    ours = our_orders(case.schedule())
    for rank, order in own_lists(case.orders()).items():
        theirs = [as_ours(action, case.ranks) for action in order]
        if theirs != ours[rank]:
            raise SystemExit(f"{case}: the orders of rank {rank} differ")
    return sum(map(len, ours))


def fastest(ways: tuple[Way, Way], rounds: int) -> list[float]:
    """Seconds of each way's fastest run in some rounds in turns."""
    best = [float("inf")] * len(ways)
    begin = time.process_time()
    for done in range(rounds):
        if done and time.process_time() - begin > FIGURE_SECONDS:
            break
        for i, way in enumerate(ways):
            best[i] = min(best[i], fastest_of_a_round(way))
    return best


def fastest_of_a_round(way: Way) -> float:
    """One run at least; short ones again and again, since the first finds cold caches."""
    gc.collect()
    gc.disable()
    best, spent = float("inf"), 0.0
    while spent < ROUND_SECONDS:
        prepared = way.prepare()
        start = time.thread_time()
        result = way.run(prepared)
        seconds = time.thread_time() - start
        best, spent = min(best, seconds), spent + seconds
        del prepared, result
    gc.enable()
    return best


class Forecast:
    """How long torch will take for a step, from the schedule before: with P n^2, as its slowest step grows."""

    def __init__(self) -> None:
        self.measured: dict[tuple[str, str], tuple[Case, float]] = {}

    def seconds(self, case: Case, step: str) -> float:
        """At most so many; 0 if nothing was measured before."""
        if (case.kind, step) not in self.measured:
            return 0.0
        before, seconds = self.measured[case.kind, step]
        return seconds * case.ranks / before.ranks * (case.microbatches / before.microbatches) ** 2

    def add(self, case: Case, step: str, seconds: float) -> None:
        """What was measured."""
        self.measured[case.kind, step] = case, seconds


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, metavar="P")
    parser.add_argument("--microbatches", type=int, nargs="+", default=MICROBATCHES, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each figure, at most (default: 5)")
    longest = "leave out what torch would take longer for, as smaller schedules tell (default: 30)"
    parser.add_argument("--longest", type=float, default=30, metavar="SECONDS", help=longest)
    parser.add_argument("--quick", action="store_true", help="small schedules and two rounds: half a minute")
    options = parser.parse_args(words)
    if options.quick:
        options.ranks, options.microbatches, options.rounds = (4, 8, 16), (128,), 2
    if min(options.ranks) < 1 or min(options.microbatches) < 2 * max(options.ranks) or options.rounds < 1:
        parser.error("needs 1 rank, 1 round and, as torch's DualPipeV asks for, 2 P micro-batches at least")

    print(f"Milliseconds of ours, and how many times as long torch {torch.__version__} takes.\n")
    print_row(["schedule", "ops", *STEPS])
    print_row(["---"] * (2 + len(STEPS)))
    forecast, left_out = Forecast(), []
    for kind in CLASSES:
        for microbatches in sorted(options.microbatches):
            for ranks in sorted(options.ranks):
                case = Case(kind, ranks, microbatches)
                num_ops = demand_same_orders(case)
                cells = [measure(case, step, ways, options, forecast) for step, ways in case.steps().items()]
                name = f"{kind}, P = {ranks}, n = {microbatches}"
                print_row([name, str(num_ops), *cells])
                left_out += [f"{step} of {name}" for step, cell in zip(STEPS, cells) if cell == LEFT_OUT]
    if left_out:
        print(f"\nLeft out, as torch would take more than {options.longest:g} seconds: {'; '.join(left_out)}.")
    return 0


LEFT_OUT = "left out"


def measure(
    case: Case, step: str, ways: tuple[Way, Way] | None, options: argparse.Namespace, forecast: Forecast
) -> str:
    """A cell of the table."""
    if ways is None:
        return "torch raises"
    if forecast.seconds(case, step) > options.longest:
        return LEFT_OUT
    ours, theirs = fastest(ways, options.rounds)
    forecast.add(case, step, theirs)
    return f"{1e3 * ours:.3g} ms, {significant(theirs / ours)}"


def significant(ratio: float) -> str:
    """Two digits, without a power of ten."""
    return f"{float(f'{ratio:.2g}'):,g}x"


def print_row(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
