"""Memory of the caller's: nothing is copied, what is received can be kept, and all of it comes back."""

import gc
import threading
import weakref

import dualpipe
import numpy as np
import pytest

from conftest import on_threads

RANKS, MICROBATCHES, SHAPE = 3, 7, (2, 3)


class Counted(dualpipe.Memory):
    """Arrays of numpy's, of which it knows how many are out; a lock, since all ranks share it."""

    def __init__(self, most=1000):
        self.lock, self.out, self.allocations, self.most = threading.Lock(), 0, 0, most

    def allocate(self, num_bytes):
        with self.lock:
            if self.allocations == self.most:
                raise MemoryError("no more of it")
            self.allocations, self.out = self.allocations + 1, self.out + 1
        return super().allocate(num_bytes)

    def release(self, buffer):
        assert isinstance(buffer, np.ndarray)
        with self.lock:
            self.out -= buffer.dtype == np.uint8  # what a task has set is not counted


def run_ranks(memory_of, callback_of, tensors=(("float32", SHAPE),), steps=1, kind="dualpipe_v", ranks=RANKS):
    schedule = dualpipe.Schedule(kind, ranks, MICROBATCHES)
    with dualpipe.Inproc(ranks) as inproc:

        def work(rank):
            options = {"inproc": inproc, "tensors": tensors, "timeout": 20.0, "memory": memory_of(rank)}
            with dualpipe.Executor(schedule, rank, **options) as executor:
                for _ in range(steps):
                    executor.step(callback_of(rank))

        return on_threads(ranks, work)


class Adder:
    """Stage s makes a new array, s + 1 more than it got, and keeps all that it got."""

    def __init__(self):
        self.kept, self.inputs, self.grads = [], [], []

    def __call__(self, task):
        if task.forward is not None:
            one = task.forward
            assert one.outputs in ([], [None])
            got = one.inputs[0] if one.inputs else np.full(SHAPE, one.microbatch, np.float32)
            self.inputs.append((got, float(got[1, 2])))
            if one.outputs:
                one.set_output(0, got + np.float32(one.stage + 1))
            else:
                self.kept.append(float(got[1, 2]) + one.stage + 1)
        if task.kind in ("B", "I", "FB"):
            one = task.backward
            self.grads += [(grad, grad is None) for grad in one.output_grads]
            if one.input_grads and one.microbatch % 2 == 0:
                one.set_absent(0)
            elif one.input_grads:
                one.set_input_grad(0, np.ones(SHAPE, np.float32))
                assert one.input_grads[0].shape == SHAPE


def succeed(results):
    for result in results:
        if isinstance(result, BaseException):
            raise result


def test_what_is_received_can_be_kept():
    memory, adders = Counted(), [Adder() for _ in range(RANKS)]
    succeed(run_ranks(lambda _: memory, adders.__getitem__, steps=3))
    assert sorted(adders[0].kept) == sorted(3 * [m + 21.0 for m in range(MICROBATCHES)])
    # Every view is as it was, though its executor is gone: no buffer was used again.
    for adder in adders:
        assert all((array == value).all() for array, value in adder.inputs)
        assert all(is_absent or (grad == 1).all() for grad, is_absent in adder.grads)
    assert memory.out == 0 and memory.allocations > 0


def test_nothing_is_kept_by_the_executor():
    memory, refs = Counted(), []

    def run(task):
        if task.forward is not None and task.forward.outputs:
            output = np.zeros(SHAPE, np.float32)
            refs.append(weakref.ref(output))
            task.forward.set_output(0, output)
        if task.backward is not None and task.kind != "W" and task.backward.input_grads:
            task.backward.set_input_grad(0, np.zeros(SHAPE, np.float32))

    succeed(run_ranks(lambda _: memory, lambda _: run))
    gc.collect()
    assert len(refs) == 5 * MICROBATCHES and not any(ref() is not None for ref in refs)


def test_outputs_are_not_copied():
    """On one rank the next stage reads the very array that the task before has set."""
    addresses = []

    def run(task):
        one = task.forward
        if one is not None and one.outputs:
            output = np.arange(6, dtype=np.float32).reshape(SHAPE)
            addresses.append(output.ctypes.data)
            one.set_output(0, output)
        elif one is not None:
            assert one.inputs[0].ctypes.data == addresses[one.microbatch]
        if task.backward is not None and task.kind != "W" and task.backward.input_grads:
            task.backward.set_absent(0)

    succeed(run_ranks(lambda _: dualpipe.Memory(), lambda _: run, ranks=1))
    assert len(addresses) == MICROBATCHES


def test_what_allocate_raises_comes_out_of_the_step():
    memories, adders = [Counted(), Counted(most=4), Counted()], [Adder() for _ in range(RANKS)]
    results = run_ranks(memories.__getitem__, adders.__getitem__)
    assert isinstance(results[1], MemoryError) and str(results[1]) == "no more of it"
    for rank in (0, 2):
        assert isinstance(results[rank], dualpipe.PeerFailed)
        assert "rank 1" in str(results[rank]) and "memory.allocate returned 1" in str(results[rank])
    assert [memory.out for memory in memories] == [0, 0, 0]


@pytest.mark.parametrize(
    ("tensor", "error", "words"),
    [
        (
            np.zeros((3, 2), np.float32),
            dualpipe.InvalidArgument,
            r"output 0 is float32 \[3, 2\], must be float32 \[2, 3\]",
        ),
        (np.zeros(SHAPE, np.float64), dualpipe.InvalidArgument, r"output 0 is float64 \[2, 3\], must be"),
        (np.zeros((3, 2), np.float32).T, dualpipe.InvalidArgument, "output 0 is not dense"),
        ([[0.0] * 3] * 2, TypeError, "output 0 is list, must be an array"),
    ],
)
def test_what_is_no_such_tensor_is_refused(tensor, error, words):
    def run(task):
        if task.forward is not None and task.forward.outputs:
            with pytest.raises(error, match=words):
                task.forward.set_output(0, tensor)
            with pytest.raises(IndexError):
                task.forward.set_output(1, np.zeros(SHAPE, np.float32))
            raise KeyError("seen")

    assert isinstance(run_ranks(lambda _: dualpipe.Memory(), lambda _: run, ranks=1)[0], KeyError)


def test_an_output_that_was_not_set_is_told():
    (result,) = run_ranks(lambda _: dualpipe.Memory(), lambda _: lambda task: None, ranks=1)
    assert isinstance(result, dualpipe.CallbackFailed) and "it left output 0 without memory" in str(result)


def test_without_such_memory_outputs_are_written_into():
    def run(task):
        if task.forward is not None and task.forward.outputs:
            with pytest.raises(RuntimeError, match=r"write into outputs\[0\]"):
                task.forward.set_output(0, np.zeros(SHAPE, np.float32))

    succeed(run_ranks(lambda _: None, lambda _: run, ranks=1))


def test_tensors_without_elements_need_no_memory():
    def run(task):
        one = task.forward
        if one is not None and one.inputs:
            assert one.inputs[0].shape == (0, 3)

    succeed(run_ranks(lambda _: dualpipe.Memory(), lambda _: run, tensors=[("float32", (0, 3))]))
