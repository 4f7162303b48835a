"""Schedules from outside: of orders, of a text; and what is made of them. Costs of pairs."""

import threading

import dualpipe
import numpy as np
import pytest
from dualpipe import Schedule
from dualpipe.schedule import KINDS, LOOPED

PLACED = {"placement": [0], "microbatches": 1}


def copied(schedule, **changes):
    orders = [schedule.order(rank) for rank in range(schedule.ranks)]
    given = {"placement": schedule.placement, "microbatches": schedule.microbatches}
    return Schedule.from_orders(orders, **{**given, "forward_only": schedule.forward_only, **changes})


@pytest.mark.parametrize("forward_only", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_schedule_gives_makes_another_like_it(kind, forward_only):
    schedule = Schedule(kind, 4, 8, forward_only, stages_per_rank=3 if kind in LOOPED else 0)
    costs = dualpipe.Costs(f=1, i=1, w=1, fb=2.5, latency=0.1, activation_bytes=3)
    for other in (copied(schedule), Schedule.from_text(str(schedule))):
        assert other.kind == "custom" and other.name == "custom" and schedule.name != "custom"
        assert (str(other), other.placement) == (str(schedule), schedule.placement)
        assert (other.stages, other.directions) == (schedule.stages, schedule.directions)
        assert (other.microbatches, other.forward_only) == (8, forward_only)
        assert other.check().tolist() == schedule.check().tolist()
        assert other.program(2).instructions() == schedule.program(2).instructions()
        one, two = other.simulate(costs), schedule.simulate(costs)
        assert (one.makespan, one.lower_bound) == (two.makespan, two.lower_bound)
        assert one.peak_memory.tolist() == two.peak_memory.tolist()


def test_a_copy_is_a_number_or_a_direction_and_a_stage():
    by_number = [[("F", 0, 0), ("FB", 0, 1, 1, 0), ("I", 1, 1), ("W", 1, 1)]]
    by_name = [[("F", (0, 0), 0), ["FB", (0, 0), 1, [1, 0], 0], ("I", (1, 0), np.int64(1)), ("W", (1, 0), 1)]]
    for orders in (by_number, by_name):
        made = Schedule.from_orders(orders, placement=[[0], [0]], microbatches=2, name="mine")
        assert str(made) == "0| 0F0 0F1&0b0 0i1 0w1\n"
        assert repr(made) == "<dualpipe.Schedule 'mine': 1 ranks, 1 stages, 2 micro-batches>"
        with pytest.raises(dualpipe.InvalidSchedule, match=r"mine: rank 0, position 1 \(0F1&0b0\)"):
            made.check()


def test_a_rank_may_have_any_stages_or_none():
    orders = [[("F", 0, 0), ("F", 1, 0), ("B", 1, 0), ("B", 0, 0)], [], [("F", 0, 0), ("B", 0, 0)]]
    schedule = Schedule.from_orders(orders, placement=(0, 2, 0), microbatches=1)
    assert schedule.check().tolist() == [2, 0, 1]
    assert schedule.copies(0) == [(0, 0), (0, 2)] and schedule.copies(1) == []
    assert schedule.simulate(dualpipe.Costs(f=1, i=1, w=1)).makespan == 9
    assert schedule.svg().startswith("<svg") and "custom" in schedule.svg()


def test_a_step_of_an_own_order_runs():
    # Stage 1 is on rank 0 too, and the second micro-batch goes first.
    orders = [
        [(kind, int(copy), int(microbatch)) for kind, copy, microbatch in ops.split()]
        for ops in ("F01 F11 F00 I11 F10 W11 B01 B10 B00", "F01 B01 F00 B00")
    ]
    schedule = Schedule.from_orders(orders, placement=[0, 0, 1], microbatches=2)
    inproc, ran, sums = dualpipe.Inproc(2), [[], []], []

    def run(rank):
        def task(task):
            ran[rank].append(task.kind)
            if task.kind == "F":
                own = task.forward
                x = own.inputs[0] if own.inputs else np.full((2,), 1.0 + own.microbatch)
                for y in own.outputs:
                    y[...] = 2 * x
                sums.extend([float(x.sum())] if not own.outputs else [])
            elif task.kind in ("B", "I"):
                for dx in task.backward.input_grads:
                    dx[...] = 1

        with dualpipe.Executor(schedule, rank, inproc=inproc, tensors=[("float64", (2,))], timeout=20) as executor:
            executor.step(task)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert ran == [[op[0] for op in order] for order in orders]
    assert sums == [16.0, 8.0]


@pytest.mark.parametrize(
    ("orders", "given", "text"),
    [
        ([[("X", 0, 0)]], {}, r"orders\[0\]\[0\] is \('X', 0, 0\), must begin with one of 'F', 'B', 'I', 'W', 'FB'"),
        ([[("REDUCE_GRADS", 0)]], {}, "must begin with one of"),
        ([["0F0"]], {}, r"orders\[0\]\[0\] is '0F0', must begin with"),
        ([[()]], {}, "must begin with"),
        ([[("F", 0)]], {}, r"must be \(kind, copy, micro-batch\)"),
        ([[("FB", 0, 0)]], {}, r"must be \(kind, copy, micro-batch\)"),
        ([[("F", 0, 0), ("F", 1, 0)]], {}, r"orders\[0\]\[1\] is \('F', 1, 0\), but rank 0 has 1 parameter copies"),
        ([[("F", (0,), 0)]], {}, "must have a copy's number, or its direction and stage"),
        ([[("F", (2, 0), 0)]], {}, "forward.direction is 2, must be 0 to 1"),
        ([[("B", (0, 9999), 0)]], {}, "backward.stage is 9999, must be 0 to 8191"),
        ([[("F", 0, 1 << 20)]], {}, "forward.microbatch is 1048576, must be 0 to 1048575"),
        ([[("F", 0, -1)]], {}, r"orders\[0\]\[0\]: micro-batch is -1"),
        ([], {}, "placement has rank 0 for stage 0 of direction 0, but there are 0 orders"),
        ([[]], {"placement": []}, "num_stages is 0, must be 1 to 8192"),
        ([[]], {"placement": [[0], [0, 0]]}, "placement has rows of 1 and 2 stages"),
        ([[]], {"placement": [[0], [0], [0]]}, "num_directions is 3, must be 1 to 2"),
        ([[]], {"placement": [1]}, "placement has rank 1 for stage 0 of direction 0, but there are 1 orders"),
        ([[]], {"microbatches": 0}, "custom: num_microbatches is 0, must be 1 to 1048576"),
        ([[]], {"name": "a\nb"}, "must have no control characters"),
    ],
)
def test_what_is_no_order_is_refused(orders, given, text):
    with pytest.raises(dualpipe.InvalidArgument, match=text):
        Schedule.from_orders(orders, **{**PLACED, **given})


def test_what_is_no_number_is_refused():
    for orders, given in [([[("F", "0", 0)]], {}), ([[("F", 0, 0.5)]], {}), ([[]], {"placement": ["0"]})]:
        with pytest.raises(TypeError, match="must be an integer"):
            Schedule.from_orders(orders, **{**PLACED, **given})


def test_what_the_placement_lacks_is_found_by_the_check():
    for op, text in [
        (("F", (0, 3), 0), r"custom: rank 0, position 0 \(3F0\): no such stage: there are 1 in 1 direction"),
        (("F", (1, 0), 0), r"custom: rank 0, position 0 \(0f0\): no such stage"),
        (("F", 0, 1), r"custom: rank 0, position 0 \(0F1\): no such micro-batch: direction 0 has 1"),
        (("B", 0, 0), r"custom: rank 0, position 0 \(0B0\): this backward comes before its F"),
    ]:
        made = Schedule.from_orders([[op]], **PLACED)
        for use in (made.check, lambda made=made: made.program(0), lambda made=made: made.svg()):
            with pytest.raises(dualpipe.InvalidSchedule, match=text):
                use()


def test_a_bad_text_is_refused_with_its_place():
    for text, want in [("", "the number of ops is 0"), ("0| 0F0\n1| 1X0", 'line 2, column 4 is "1X0", must be STAGE')]:
        with pytest.raises(dualpipe.InvalidArgument, match=want):
            Schedule.from_text(text)
    assert Schedule.from_text("0| 0F0 0B0", "größe").name == "größe"


def test_a_pair_may_have_a_time_of_its_own():
    schedule = Schedule("dualpipe", 4, 8)
    pairs = {(f, b): 2.0 for f in range(4) for b in range(4)}
    measured = schedule.simulate(dualpipe.Costs(f=1, i=1, w=1, fb=3, pairs=pairs)).makespan
    assert measured == schedule.simulate(dualpipe.Costs(f=1, i=1, w=1, fb=2)).makespan
    assert measured < schedule.simulate(dualpipe.Costs(f=1, i=1, w=1)).makespan
    # A nanosecond that rounding took is given back.
    dualpipe.Costs(f=0.1, i=0.1000000004, w=0.1000000004, pairs={(0, 1): 0.2000000008})


@pytest.mark.parametrize(
    ("pairs", "error", "text"),
    [
        ({(0, 1): 1.9}, dualpipe.InvalidArgument, r"pairs\[0, 1\] is 1.9, must be at least 2, the longer of F and B"),
        ({(0, 1): 2000}, dualpipe.InvalidArgument, r"pairs\[0, 1\] is 2000.0, must be 0 to 1000 seconds"),
        ({(0, 2): 2}, dualpipe.InvalidArgument, "pairs has stage 2, must be 0 to 1"),
        ({(-1, 0): 2}, dualpipe.InvalidArgument, "pairs has stage -1, must be 0 to 1"),
        ({0: 2}, TypeError, r"pairs has 0, must have \(stage of F, stage of B\)"),
        ({(0, 1, 2): 2}, TypeError, "must have"),
        ({(0, 1): "2"}, TypeError, "must be a number"),
    ],
)
def test_a_bad_pair_is_refused(pairs, error, text):
    with pytest.raises(error, match=text):
        dualpipe.Costs(f=[1, 1], i=1, w=1, pairs=pairs)
