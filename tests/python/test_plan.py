"""Plans: what is found, what is said of it, how progress stops it; and ``python -m dualpipe plan``."""

import os
import signal
import threading
from functools import partial

import dualpipe
import numpy as np
import pytest
from dualpipe import Costs, InvalidArgument, Schedule, Spread

UNIT = Costs(f=1, i=1, w=1, fb=3, activation_bytes=100, parameter_bytes=1000)
UNEVEN = Costs(f=1, i=1.3, w=0.7, fb=2.1)
"""Pairs gain so much that the search goes on as long as it may."""
SMALL = {"ranks": 4, "microbatches": 7, "costs": UNEVEN}


def test_a_plan_is_what_it_says():
    plan = dualpipe.plan(ranks=4, microbatches=10, costs=UNIT, cap=5, iterations=300)
    schedule = plan.schedule
    assert (plan.started_from, plan.start_makespan) == ("dualpipe", 32)
    assert plan.lower_bound <= plan.makespan < plan.start_makespan
    assert plan.gap == pytest.approx(plan.makespan / plan.lower_bound - 1)
    assert plan.stop in ("optimal", "iterations") and plan.iterations <= 300
    timeline = schedule.simulate(UNIT)
    assert timeline.makespan == plan.makespan
    np.testing.assert_array_equal(plan.peak_live, schedule.check())
    np.testing.assert_array_equal(plan.peak_memory, timeline.peak_memory)
    assert plan.peak_live.max() <= 5 and (schedule.kind, schedule.name) == ("custom", "planned")
    assert plan.sampled is plan.sampled_without_spread is plan.sampled_published is plan.objective is None
    plan.close()
    assert schedule.ranks == 4, "it outlives its plan"


def test_a_plan_says_so_in_a_few_lines():
    plan = dualpipe.plan(ranks=2, microbatches=4, costs=UNIT, placement="linear", iterations=100)
    assert str(plan).splitlines() == [
        f"{plan.schedule.name}: 2 ranks, 2 stages, 4 micro-batches",
        "makespan     13 s",
        "lower bound  13 s, gap 0.00 %: nothing better is possible",
        f"started from {plan.started_from}, {plan.start_makespan:g} s",
        f"peak live    {plan.peak_live.max()} activations on a rank, {plan.peak_memory.max() / 1024:.4g} KiB",
        f"searched     {plan.iterations} changes; stopped by the lower bound",
    ]
    assert repr(plan) == "<dualpipe.Plan 13 s, gap 0.00 %>"
    assert plan._repr_svg_().startswith("<svg")


@pytest.mark.parametrize(
    ("placement", "same"),
    [
        ("linear", [[0, 1]]),
        ("v", [[0, 1, 1, 0]]),
        ("bidirectional", [[0, 1], [1, 0]]),
    ],
)
def test_a_placement_by_name_or_by_ranks(placement, same):
    given = {"ranks": 2, "microbatches": 3, "costs": UNIT, "iterations": 50}
    named, listed = (dualpipe.plan(placement=placement, **given) for placement in (placement, same))
    assert named.schedule.placement == listed.schedule.placement == same
    assert str(named.schedule) == str(listed.schedule) and named.started_from == listed.started_from


def test_other_placements_have_plans_too():
    given = {"ranks": 2, "microbatches": 3, "costs": UNIT, "iterations": 50}
    interleaved = dualpipe.plan(placement="interleaved", stages_per_rank=3, **given)
    assert interleaved.schedule.placement == [[0, 1, 0, 1, 0, 1]]
    odd = dualpipe.plan(placement=[0, 1, 0], **given)
    assert odd.started_from == "constructed" and odd.schedule.placement == [[0, 1, 0]]


def test_the_same_arguments_give_the_same_plan_on_any_number_of_threads():
    plans = [dualpipe.plan(**SMALL, iterations=400, seed=3, num_threads=threads) for threads in (1, 3)]
    assert str(plans[0].schedule) == str(plans[1].schedule) and plans[0].iterations == 400


def test_memory_is_capped_for_all_ranks_or_for_each():
    each = dualpipe.plan(ranks=2, microbatches=4, costs=UNIT, placement="v", cap_bytes=[2300, 2400], iterations=50)
    assert (each.peak_memory <= [2300, 2400]).all()
    same = dualpipe.plan(ranks=2, microbatches=4, costs=UNIT, placement="v", cap=np.int64(2), iterations=50)
    assert same.peak_live.max() == 2 and same.makespan >= each.makespan


def test_times_that_spread():
    plan = dualpipe.plan(ranks=4, microbatches=8, costs=UNIT, iterations=300, spread=Spread(0.05, 0.2, 9, seed=2))
    assert plan.objective == "mean"
    best, nominal, published = plan.sampled, plan.sampled_without_spread, plan.sampled_published
    assert best.samples.mean <= min(nominal.samples.mean, published.samples.mean)
    assert plan.lower_bound <= best.samples.mean
    assert plan.gap == pytest.approx(best.samples.mean / plan.lower_bound - 1)
    assert plan.makespan == best.nominal == plan.schedule.simulate(UNIT).makespan
    for one in (best.samples, best.held_out, published.held_out):
        assert one.min <= one.mean <= one.p95 <= one.max
    assert best.samples != best.held_out
    said = str(plan)
    assert "of the mean on samples" in said and f"\n  {plan.started_from} " in said and "\n  this " in said
    slowest = dualpipe.plan(
        ranks=4, microbatches=8, costs=UNIT, iterations=300, spread=Spread(0.05, 0.2, 9), objective="p95"
    )
    assert slowest.objective == "p95"
    assert slowest.sampled.samples.p95 <= slowest.sampled_published.samples.p95
    odd = dualpipe.plan(ranks=2, microbatches=2, costs=UNIT, placement=[0, 1, 0], iterations=50, spread=Spread(0.1))
    assert odd.sampled_published is None and odd.sampled is not None and "\n  planned " in str(odd)


def test_progress_is_told_and_ends_the_search_with_the_best_so_far():
    told = []
    plan = dualpipe.plan(**SMALL, iterations=400, progress=lambda *now: told.append(now))
    assert plan.stop == "iterations" and told and all(0 <= done <= total == 400 for done, total in told)
    told.clear()
    assert dualpipe.plan(**SMALL, time=0.05, progress=lambda *now: told.append(now)).stop == "time"
    assert told and all(0 <= done <= total == 50_000_000 for done, total in told)
    stopped = dualpipe.plan(**SMALL, time=60, progress=lambda done, total: False)
    assert stopped.stop == "cancelled" and stopped.schedule.check().max() <= 7
    robust = dualpipe.plan(**SMALL, time=60, spread=Spread(0.1, samples=4), progress=lambda done, total: False)
    assert robust.stop == "cancelled"


def test_what_progress_raises_comes_out():
    with pytest.raises(ZeroDivisionError):
        dualpipe.plan(**SMALL, time=60, progress=lambda done, total: 1 / 0)
    assert dualpipe.plan(**SMALL, iterations=50).stop == "iterations", "it is not raised again"


def test_the_progress_of_a_call_is_its_own():
    everyone, inner = [], []
    dualpipe.set_progress(lambda *now: everyone.append(now))
    try:
        dualpipe.plan(**SMALL, iterations=100, progress=lambda *now: inner.append(now))
        assert inner and not everyone
        dualpipe.plan(**SMALL, iterations=100)
        assert everyone and (count := len(inner))
        dualpipe.set_progress(lambda *now: False)
        assert dualpipe.plan(**SMALL, time=60).stop == "cancelled"
        dualpipe.set_progress(lambda *now: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dualpipe.plan(**SMALL, time=60)
    finally:
        dualpipe.set_progress(None)
    threads, here = [], {}

    def search(name, stop):
        here[name] = dualpipe.plan(**SMALL, iterations=200, progress=lambda *now: not stop).stop

    for name, stop in (("goes on", False), ("stops", True)):
        threads.append(threading.Thread(target=search, args=(name, stop)))
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert here == {"goes on": "iterations", "stops": "cancelled"} and len(inner) == count


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"ranks": 0}, "options->num_ranks is 0, must be 1 to 4096"),
        ({"ranks": -1}, "ranks is -1, must be 0 to"),
        ({"microbatches": 0}, "num_microbatches is 0, must be 1 to"),
        ({"placement": "w"}, "placement is 'w', must be 'linear', 'v', 'interleaved', 'bidirectional', or the rank"),
        ({"placement": "interleaved"}, "stages_per_rank is 0, must be"),
        ({"placement": [0, 2]}, "options->rank_of[1] is 2, must be 0 to 1"),
        ({"placement": [[0, 1], [0]]}, "placement has rows of 1 and 2 stages"),
        ({"stages_per_rank": 2}, "options->stages_per_rank is 2, must be 0 for DUALPIPE_PLACEMENT_BIDIRECTIONAL"),
        ({"cap": 0}, "is 0, must be"),
        ({"cap": []}, "cap is empty"),
        ({"cap": [2, -1]}, "cap[1] is -1, must be 0 to 2^64 - 1"),
        ({"cap": [2, 2, 2]}, "is 3, must be 1 or 2"),
        ({"cap_bytes": 10}, "the memory cap of rank 0 is 10, must be at least"),
        ({"cap": 2, "cap_bytes": 10}, "cap and cap_bytes are both given"),
        ({"time": 0}, "time is 0, must be above 0"),
        ({"time": float("nan")}, "time is nan, must be above 0"),
        ({"time": float("inf")}, "time is inf, must be above 0 and at most 86400 seconds"),
        ({"iterations": 0}, "iterations is 0, must be 1 to"),
        ({"seed": 1 << 64}, "seed is 18446744073709551616, must be 0 to"),
        ({"objective": "worst"}, "objective is 'worst', must be 'mean' or 'p95'"),
        ({"num_threads": 5000}, "options->num_threads is 5000, must be 0 to 4096"),
        ({"spread": Spread(float("nan"))}, "spread: op_jitter is NaN, must be 0 to 1"),
        ({"spread": Spread(0, -0.5)}, "spread: expert_imbalance is -0.5, must be 0 to 1"),
        ({"spread": Spread(samples=0)}, "spread: samples is 0, must be 1 to 1024"),
        ({"costs": Costs(f=[1, 1, 1], i=1, w=1)}, "3"),
    ],
)
def test_bad_input_is_refused_with_its_range(wrong, says):
    given = {"ranks": 2, "microbatches": 2, "costs": UNIT, "iterations": 10}
    with pytest.raises(InvalidArgument) as refused:
        dualpipe.plan(**{**given, **wrong})
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "wrong",
    [{"costs": 3}, {"ranks": 2.0}, {"cap": 2.5}, {"iterations": "9"}, {"time": "9"}, {"spread": 0.1}, {"seed": None}],
)
def test_another_type_is_refused(wrong):
    with pytest.raises(TypeError):
        dualpipe.plan(**{"ranks": 2, "microbatches": 2, "costs": UNIT, "iterations": 10, **wrong})


@pytest.fixture
def run(run):
    """Runs ``plan``."""
    return partial(run, "plan")


BASE = ("--ranks", 2, "--microbatches", 4, "--iterations", 100)


def test_the_command_prints_the_plan_and_its_schedule(run):
    plan = dualpipe.plan(ranks=2, microbatches=4, costs=Costs(f=1, i=1, w=1), iterations=100)
    assert run(*BASE) == (0, f"{plan}\n\n{plan.schedule}", "")
    plan = dualpipe.plan(
        ranks=2, microbatches=4, costs=Costs(f=1, i=1, w=1), placement=[0, 1, 0], cap=3, iterations=100
    )
    assert run(*BASE, "--placement", "0,1,0", "--cap", 3) == (0, f"{plan}\n\n{plan.schedule}", "")
    out = run(*BASE, "--placement", "0,1:1,0", "--cap-bytes", "4KiB,1MiB", "--activation-bytes", 7)[1]
    assert ", two directions" in out and " B\n" in out
    out = run(*BASE, "--jitter", 0.1, "--imbalance", 0.2, "--samples", 5, "--objective", "p95")[1]
    assert "of the p95 on samples" in out


def test_the_command_writes_files(run, tmp_path):
    paths = {name: tmp_path / f"planned.{name}" for name in ("out", "svg", "trace", "csv")}
    words = [word for name, path in paths.items() for word in (f"--{name}", path)]
    code, out, err = run(*BASE, "--placement", "v", *words)
    assert (code, err) == (0, "") and [line.split()[0] for line in out.splitlines()[-4:]] == ["wrote"] * 4
    assert "0| " not in out and all(path.stat().st_size > 100 for path in paths.values())
    schedule = Schedule.from_text(paths["out"].read_text())
    assert schedule.check().max() <= 8 and paths["svg"].read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--placement", "w"], "--placement is 'w', must be one of linear"),
        (["--placement", "0,x"], "--placement is '0,x'"),
        (["--placement", "0,,1"], "--placement is '0,,1'"),
        (["--cap", "0"], "is '0', must be a whole number from 1 on"),
        (["--cap-bytes", "1"], "the memory cap of rank 0 is 1, must be at least"),
        (["--time", "-1"], "time is -1.0, must be above 0"),
        (["--jitter", "2"], "spread: op_jitter is 2, must be 0 to 1"),
        (["--seed", "-1"], "seed is -1, must be 0 to"),
        (["--objective", "best"], "invalid choice"),
    ],
)
def test_what_is_typed_wrongly_is_said(run, words, says):
    costs = ["--activation-bytes", 7]
    code, out, err = run(*BASE, *costs, *words)
    assert (code, out) == (2, "") and says in err


def test_ctrl_c_ends_the_search_with_the_best_so_far(run):
    words = ("--ranks", 4, "--microbatches", 7, "--i", 1.3, "--f", 1, "--w", 0.7, "--fb", 2.1, "--time", 600)
    before = signal.getsignal(signal.SIGINT)
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        code, out, err = run(*words)
    finally:
        timer.cancel()
    assert (code, err) == (0, "") and "stopped by its progress callback" in out
    assert signal.getsignal(signal.SIGINT) is before


def test_a_newcomer_gets_help(run):
    code, out, _ = run("--help")
    assert code == 0 and "examples:" in out and "lower bound" in out and "--cap" in out
