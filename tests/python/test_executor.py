"""Ranks in threads run a schedule: numbers arrive, views are views, and every failure ends every rank."""

import gc
import signal
import threading
import time

import dualpipe
import numpy as np
import pytest

from conftest import on_threads

RANKS, SHAPE = 4, (2, 3)
TENSORS = [("float32", SHAPE), ("int64", ())]


class Model:
    """Stage s computes x * (s + 2), backward dx = dy * (s + 2); beside it an integer counts the stages passed."""

    def __init__(self, schedule):
        self.schedule, self.seen, self.ends, self.lock = schedule, [], [], threading.Lock()

    def start_of(self, one):
        return np.arange(6, dtype=np.float32).reshape(SHAPE) + 10 * one.microbatch + 1000 * one.direction

    def input_of(self, one):
        return one.inputs[0] if one.inputs else self.start_of(one)

    def expected(self, one):
        return self.start_of(one) * np.prod(np.arange(one.stage) + 2, dtype=np.float32)

    def forward(self, one):
        assert (self.input_of(one) == self.expected(one)).all()
        if one.outputs:
            one.outputs[0][...] = self.input_of(one) * (one.stage + 2)
            one.outputs[1][...] = one.stage + 1

    def backward(self, one):
        assert (self.input_of(one) == self.expected(one)).all(), "inputs are the same from F to W"
        grad = one.output_grads[0] if one.output_grads else np.ones(SHAPE, np.float32)
        if one.input_grads:
            one.input_grads[0][...] = grad * (one.stage + 2)
            one.set_absent(1)
        else:
            self.ends.append(grad * (one.stage + 2))
        assert all(absent is None for absent in one.output_grads[1:])

    def run(self, task):
        with self.lock:
            self.seen.append(task.kind)
        if task.kind in ("F", "FB"):
            self.forward(task.forward)
        if task.kind in ("B", "I", "FB"):
            self.backward(task.backward)


@pytest.fixture
def schedule():
    return dualpipe.Schedule("dualpipe", RANKS, 8)


def run_ranks(schedule, rank_of, tensors=TENSORS, timeout=20.0):
    """``rank_of(executor)`` for each rank in a thread of its own: what each returned or raised."""
    with dualpipe.Inproc(schedule.ranks) as inproc:

        def work(rank):
            options = {"inproc": inproc, "tensors": tensors, "timeout": timeout}
            with dualpipe.Executor(schedule, rank, **options) as executor:
                return rank_of(executor)

        return on_threads(schedule.ranks, work)


def succeed(results):
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.parametrize("kind", ["dualpipe", "dualpipe_v", "1f1b"])
def test_four_ranks_compute_what_one_would(kind):
    schedule = dualpipe.Schedule(kind, RANKS, 8)
    model = Model(schedule)

    def rank_of(executor):
        for _ in range(3):
            executor.step(model.run)
        assert executor.fault is None
        return executor.timeline()

    timelines = succeed(run_ranks(schedule, rank_of))
    gradient = np.prod(np.arange(schedule.stages) + 2, dtype=np.float32)
    assert len(model.ends) == 3 * 8
    assert all((end == gradient).all() for end in model.ends)
    timeline = dualpipe.Timeline.merge(timelines)
    kinds = [op[0] for rank in range(RANKS) for op in schedule.order(rank)]
    spans = timeline.spans()
    assert sorted(spans["kind"][spans["kind"] != "REDUCE_GRADS"]) == sorted(kinds)
    assert (timeline.source, timeline.lower_bound, timeline.gap, timeline.peak_memory) == ("recorded", None, None, None)
    assert 0 < timeline.makespan < 20
    assert len(str(timeline).splitlines()) > RANKS


def test_reductions_name_the_other_rank(schedule):
    told = []

    def rank_of(executor):
        def run(task):
            if task.kind == "REDUCE_GRADS":
                one = task.backward
                told.append((executor.rank, task.reduce_peer, one.direction, one.stage, one.microbatch, one.inputs))
            else:
                assert task.reduce_peer is None

        executor.step(run)

    succeed(run_ranks(schedule, rank_of, tensors=[]))
    want = [(rank, 3 - rank, d, rank if d == 0 else 3 - rank, None, []) for rank in range(4) for d in (0, 1)]
    assert sorted(told) == want


def test_tasks_say_where_they_are(schedule):
    def rank_of(executor):
        tasks = []

        def run(task):
            passes = [one for one in (task.forward, task.backward) if one is not None]
            parts = [part for one in passes for part in (one.copy, one.microbatch)]
            tasks.append((task.kind, *parts))
            for one in passes:
                assert schedule.rank_of(one.stage, one.direction) == executor.rank
                if task.kind != "REDUCE_GRADS":
                    assert bool(one.inputs) == (one.stage > 0)
            assert task.kind in repr(task)

        executor.step(run)
        return [task for task in tasks if task[0] != "REDUCE_GRADS"]

    results = succeed(run_ranks(schedule, rank_of))
    assert results == [schedule.order(rank) for rank in range(RANKS)]


def test_views_have_the_right_type_and_are_guarded():
    dtypes = ["float16", np.float64, np.dtype("uint8"), "bool", "complex64", "bfloat16", "float8_e4m3fn", "torch.int32"]
    views = ["f2", "f8", "u1", "?", "c8", "u2", "u1", "i4"]
    tensors = [(dtype, (k, 2)) for k, dtype in enumerate(dtypes)]
    kept = []

    def rank_of(executor):
        def run(task):
            if task.kind == "F":
                for lent in (task.forward.inputs, task.forward.outputs):
                    assert [view.dtype for view in lent] in ([], [np.dtype(view) for view in views])
                    assert [view.shape for view in lent] in ([], [(k, 2) for k in range(len(views))])
                assert all(view.flags.writeable for view in task.forward.outputs)
                for view in task.forward.inputs[1:]:
                    assert view.ctypes.data % 8 == 0
                    with pytest.raises(ValueError, match="read-only"):
                        view[...] = 1
            elif executor.rank == 1:
                with pytest.raises(IndexError, match="k is 8, must be 0 to 7"):
                    task.backward.set_absent(8)
                kept.append(task)

        executor.step(run)
        if executor.rank == 1:
            with pytest.raises(RuntimeError, match="the task has ended"):
                kept[0].backward.set_absent(0)

    succeed(run_ranks(dualpipe.Schedule("1f1b", 2, 2), rank_of, tensors))


def test_boundaries_and_microbatches_may_have_other_shapes():
    schedule = dualpipe.Schedule("1f1b", 3, 3)

    def rank_of(executor):
        executor.set_boundary(1, [("float32", (5,)), ("int8", (1,))])
        executor.set_microbatch(2, [("float64", (7, 7))])
        shapes = {}

        def run(task):
            if task.kind == "F":
                one = task.forward
                shapes[one.microbatch] = [view.shape for view in one.inputs], [view.shape for view in one.outputs]

        executor.step(run)
        return shapes

    first, second, third = succeed(run_ranks(schedule, rank_of))
    assert first == {0: ([], [SHAPE, ()]), 1: ([], [SHAPE, ()]), 2: ([], [(7, 7)])}
    assert second == {0: ([SHAPE, ()], [(5,), (1,)]), 1: ([SHAPE, ()], [(5,), (1,)]), 2: ([(7, 7)], [(7, 7)])}
    assert third == {0: ([(5,), (1,)], []), 1: ([(5,), (1,)], []), 2: ([(7, 7)], [])}


class OwnError(Exception):
    pass


@pytest.mark.parametrize("how", ["step", "start"])
def test_an_exception_ends_every_rank_and_is_raised_by_its_own(schedule, how):
    error = OwnError("no memory\0 for stage 2")
    cause = KeyError("why")

    def run_rank(executor):
        count = 0

        def run(task):
            nonlocal count
            count += 1
            if executor.rank == 2 and count == 5:
                raise error from cause

        if how == "step":
            executor.step(run)
        else:
            executor.start(run)
            executor.wait()

    def rank_of(executor):
        try:
            run_rank(executor)
        except (OwnError, dualpipe.Error) as raised:
            with pytest.raises(dualpipe.Poisoned):
                executor.step(lambda task: None)
            return raised, executor.fault, executor.timeline()
        raise AssertionError("the step succeeded")

    results = succeed(run_ranks(schedule, rank_of))
    for rank, (raised, fault, timeline) in enumerate(results):
        assert fault.rank == rank
        assert timeline.source == "recorded"
        if rank == 2:
            assert raised is error
            assert raised.__cause__ is cause
            assert fault.status == dualpipe.CallbackFailed.status
        else:
            assert type(raised) is dualpipe.PeerFailed
            assert fault.status == raised.status == dualpipe.PeerFailed.status
            assert fault.peer == 2
            assert "OwnError: no memory? for stage 2" in str(raised)
    if hasattr(error, "__notes__"):
        assert "rank 2" in error.__notes__[0]


def test_an_interrupt_is_raised_as_it_is():
    def run(task):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        alone().step(run)


def alone(**options):
    """The only rank of a pipeline."""
    options = {"inproc": dualpipe.Inproc(1), "tensors": TENSORS, **options}
    return dualpipe.Executor(dualpipe.Schedule("dualpipe_v", 1, 2), 0, **options)


def test_a_rank_whose_peer_does_not_come_times_out(schedule):
    with dualpipe.Executor(schedule, 1, inproc=dualpipe.Inproc(RANKS), tensors=TENSORS, timeout=0.2) as executor:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="rank 1") as caught:
            executor.step(lambda task: None)
        assert 0.15 < time.monotonic() - began < 5
        assert isinstance(caught.value, dualpipe.Timeout)
        assert executor.fault.status == dualpipe.Timeout.status
        assert executor.fault.peer in (0, 2)


def test_a_started_step_that_times_out_is_told_from_one_that_is_running(schedule):
    with dualpipe.Executor(schedule, 1, inproc=dualpipe.Inproc(RANKS), tensors=TENSORS, timeout=0.5) as executor:
        executor.start(lambda task: None)
        with pytest.raises(dualpipe.Timeout, match="still running after 0.01 seconds"):
            executor.wait(0.01)
        with pytest.raises(dualpipe.Timeout, match="rank 1"):
            executor.wait()
        with pytest.raises(dualpipe.InvalidArgument, match="no started step"):
            executor.wait()


def test_a_started_step_runs_beside():
    go, threads = threading.Event(), set()

    def run(task):
        threads.add(threading.get_ident())
        go.wait(10)

    executor = alone()
    executor.start(run)
    for call in (lambda: executor.step(run), lambda: executor.start(run), executor.timeline, lambda: executor.fault):
        with pytest.raises(dualpipe.Busy):
            call()
    with pytest.raises(dualpipe.Timeout, match="still running"):
        executor.wait(0)
    go.set()
    executor.wait(10)
    assert threading.get_ident() not in threads
    executor.step(run)
    assert threading.get_ident() in threads


def test_a_started_step_keeps_its_executor():
    ran, count = [], []
    executor = alone()
    executor.step(lambda task: count.append(task.kind))
    executor.start(lambda task: (time.sleep(0.01), ran.append(task.kind)))
    del executor
    gc.collect()
    deadline = time.monotonic() + 10
    while len(ran) < len(count) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ran == count


def test_waiting_hears_an_interrupt_and_may_be_done_again():
    go, ran = threading.Event(), []
    executor = alone()
    executor.start(lambda task: (go.wait(10), ran.append(task.kind)))
    main = threading.main_thread().ident
    threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        executor.wait()
    gc.collect()
    go.set()
    executor.wait(10)
    assert ran


def test_closing_waits_for_a_started_step():
    ran = []
    executor = alone()
    executor.start(lambda task: (time.sleep(0.02), ran.append(task.kind)))
    executor.close()
    assert ran
    executor.close()
    with pytest.raises(dualpipe.InvalidHandle, match="executor has been freed"):
        executor.step(lambda task: None)


@pytest.mark.parametrize("how", ["step", "start"])
def test_a_callback_may_not_use_its_own_executor(how):
    executor, raised = alone(), []

    def run(task):
        for call in (executor.close, executor.timeline, lambda: executor.step(run), lambda: executor.start(run)):
            with pytest.raises(dualpipe.Busy) as caught:
                call()
            raised.append(caught.value)

    if how == "step":
        executor.step(run)
    else:
        executor.start(run)
        executor.wait()
    assert raised
    executor.step(lambda task: None)


def test_a_kept_view_keeps_its_memory():
    views = []
    executor = alone()
    executor.step(lambda task: views.extend(task.forward.outputs) if task.forward else None)
    del executor
    gc.collect()
    assert views
    for view in views:
        view[...] = 1


def test_bad_options_are_refused_in_words(schedule):
    inproc = dualpipe.Inproc(RANKS)
    for options, words in [
        ({"timeout": 0}, "timeout is 0, must be more than 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"timeout": 86401}, "timeout is 86401"),
        ({"tensors": [("float33", (1,))]}, r"tensors\[0\] has dtype 'float33', must be one of"),
        ({"tensors": [("float32", (1,)), ("datetime64[s]", (1,))]}, r"tensors\[1\] has dtype datetime64"),
        ({"tensors": [("float32", (1, -1))]}, r"tensors\[0\] has shape \[1, -1\]"),
        ({"tensors": [("float32", (1,) * 9)]}, "at most 8 sizes"),
        ({"tensors": [("float32", (2**40,))]}, r"tensors\[0\]"),
        ({"tensors": [("float32", (1,))] * 33}, "num_tensors is 33"),
    ]:
        with pytest.raises(dualpipe.InvalidArgument, match=words):
            dualpipe.Executor(schedule, 0, **{"inproc": inproc, "tensors": TENSORS, **options})
    with pytest.raises(dualpipe.InvalidArgument, match="rank is 4"):
        dualpipe.Executor(schedule, 4, inproc=inproc, tensors=TENSORS)
    taken = dualpipe.Executor(schedule, 0, inproc=inproc, tensors=TENSORS)
    with pytest.raises(dualpipe.InvalidArgument):
        dualpipe.Executor(schedule, 0, inproc=inproc, tensors=TENSORS)
    taken.close()
    with pytest.raises(dualpipe.InvalidArgument):
        dualpipe.Inproc(0)
    executor = alone()
    with pytest.raises(dualpipe.InvalidArgument, match="timeout is nan"):
        executor.wait(float("nan"))
