"""Ranks on threads run steps on CUDA, by a driver that is called by ctypes: what test_cuda.py starts as a program of
its own, since the loader's path is read at the start. Its argument is a function below; it ends with 0 if all is right.
"""

from __future__ import annotations

import ctypes as c
import sys

import dualpipe

from conftest import on_threads

RANKS, MICROBATCHES, SIZE = 2, 4, 8
TENSORS = [("uint8", (SIZE,)), ("bfloat16", (2, 2))]


class Driver:
    """The driver's functions, which raise when they fail; the stand-in's, which do not."""

    def __init__(self):
        self.library = c.CDLL("libcuda.so.1", mode=c.RTLD_GLOBAL)
        self("cuInit", 0)

    def __call__(self, name, *arguments):
        code = self.library[name](*arguments)
        if code:
            raise RuntimeError(f"{name}: {code}")

    def reset(self, seed, mode=0):
        self.library["standin_reset"](c.c_uint64(seed), mode, 1, 0)

    def report(self):
        text = c.create_string_buffer(1 << 16)
        self.library["standin_report"](text, len(text))
        return text.value.decode()

    def live(self, kind):
        function = self.library["standin_live"]
        function.restype = c.c_uint64
        return function(kind.encode())

    def assert_clean(self):
        assert self.report() == "", self.report()
        for kind in ("streams", "events", "allocations", "host_allocations", "graphs", "graph_execs", "contexts"):
            assert self.live(kind) == 0, kind


cu = Driver()


def pointer(value):
    return c.c_void_p(value)


def copy(to, source, size, stream):
    cu("cuMemcpyAsync", pointer(to), pointer(source), c.c_size_t(size), pointer(stream))


def fill(to, byte, size, stream):
    cu("cuMemsetD8Async", pointer(to), c.c_ubyte(byte), c.c_size_t(size), pointer(stream))


class Rank:
    """A rank's own stream and memory, and its tasks: a stage copies what it gets and puts its mark into it."""

    def __init__(self, rank, exchanges=False):
        self.rank, self.exchanges, self.tasks, self.comm_seen = rank, exchanges, 0, 0
        self.context, self.stream, self.kept = c.c_void_p(), c.c_void_p(), c.c_void_p()
        cu("cuDevicePrimaryCtxRetain", c.byref(self.context), 0)
        cu("cuCtxSetCurrent", self.context)
        cu("cuStreamCreate", c.byref(self.stream), 1)
        # By direction: the last stage's inputs, then the first stage's gradients.
        cu("cuMemAlloc_v2", c.byref(self.kept), c.c_size_t(4 * MICROBATCHES * SIZE))

    def close(self):
        cu("cuMemFree_v2", self.kept)
        cu("cuStreamDestroy_v2", self.stream)
        cu("cuDevicePrimaryCtxRelease_v2", 0)

    def place(self, one, is_gradient):
        return self.kept.value + ((2 * is_gradient + one.direction) * MICROBATCHES + one.microbatch) * SIZE

    def size(self, one):
        return SIZE - one.microbatch if self.exchanges else SIZE

    def check(self, tensor, one, task):
        assert isinstance(tensor, dualpipe.DeviceTensor)
        assert tensor.__dlpack_device__() == (2, 0)
        assert (tensor.shape, tensor.nbytes, tensor.dtype) == ((self.size(one),), self.size(one), "uint8")
        interface = tensor.__cuda_array_interface__
        assert interface == {
            "shape": tensor.shape,
            "typestr": "|u1",
            "data": (tensor.data_ptr, False),
            "strides": None,
            "version": 3,
            "stream": task.compute_stream,
        }
        assert tensor.data_ptr % 256 == 0
        return tensor.data_ptr

    def go_on(self, task, one, sources, targets, is_gradient):
        stream = task.compute_stream
        if self.exchanges and targets:
            targets[0].set_shape([self.size(one)])
        target = self.check(targets[0], one, task) if targets else self.place(one, is_gradient)
        if sources:
            copy(target, self.check(sources[0], one, task), self.size(one), stream)
        else:
            fill(target, 0, self.size(one), stream)
        mark = 100 * is_gradient + 50 * one.direction + 10 * one.microbatch + one.stage + 1
        fill(target + one.stage, mark, 1, stream)
        for tensor in (sources[1:2] + targets[1:2]) if not self.exchanges else []:
            assert (tensor.dtype, tensor.shape, tensor.nbytes) == ("uint16", (2, 2), 8)
            assert tensor.__cuda_array_interface__["typestr"] == "<u2"

    def run(self, task):
        self.tasks += 1
        assert isinstance(task.compute_stream, int)
        self.comm_seen += task.comm_stream is not None
        if task.kind in ("F", "FB"):
            self.go_on(task, task.forward, task.forward.inputs, task.forward.outputs, 0)
        if task.kind in ("B", "I", "FB"):
            self.go_on(task, task.backward, task.backward.output_grads, task.backward.input_grads, 1)

    def assert_kept(self, where=None):
        """What came through both stages, in both directions."""
        data = (c.c_ubyte * (4 * MICROBATCHES * SIZE))()
        cu("cuMemcpyDtoH_v2", data, pointer(where or self.kept.value), c.c_size_t(len(data)))
        for is_gradient in (0, 1):
            # Stage 0 of direction 0 is here at rank 0; the last one of direction 1, too.
            direction = self.rank ^ 1 if not is_gradient else self.rank
            for k in range(MICROBATCHES // 2):
                at = ((2 * is_gradient + direction) * MICROBATCHES + k) * SIZE
                mark = 100 * is_gradient + 50 * direction + 10 * k
                got = list(data[at : at + 4])
                assert got == [mark + 1, mark + 2, 0, 0], (self.rank, is_gradient, k, got)


def ranks(work, options, *, exchanges=False, seed=0, tensors=TENSORS, make_link=None):
    """``work(rank, executor)`` on a thread for each rank; what each returned."""
    cu.reset(seed)
    schedule = dualpipe.Schedule("dualpipe", RANKS, MICROBATCHES)
    link = make_link(schedule) if make_link else {"inproc": dualpipe.Inproc(RANKS)}

    def one(number):
        rank = Rank(number, exchanges)
        how = {"cuda": dualpipe.Cuda(**options(rank)), "tensors": tensors, "timeout": 20.0, **link}
        with dualpipe.Executor(schedule, number, **how) as executor:
            result = work(rank, executor)
        rank.close()
        return result

    results = on_threads(RANKS, one)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    if "inproc" in link:
        link["inproc"].close()
    cu.assert_clean()
    return results


def plain():
    """Steps that are done when they return, on streams of the executor's own and on the caller's."""

    def work(rank, executor):
        for _ in range(3):
            executor.step(rank.run)
            rank.assert_kept()
        executor.synchronize()
        assert executor.graph == ("off", "")
        assert executor.fault is None
        raises(dualpipe.InvalidArgument, "is_timed", executor.timeline)
        return rank.comm_seen > 0

    assert ranks(work, lambda rank: {}) == [False, False]
    assert ranks(work, lambda rank: {"has_comm_stream": True}) == [True, True]

    def own_stream(rank, executor):
        streams = set()
        executor.step(lambda task: (streams.add(task.compute_stream), rank.run(task)))
        assert streams == {rank.stream.value}
        rank.assert_kept()

    class TorchLike:
        def __init__(self, number):
            self.cuda_stream = number

    ranks(own_stream, lambda rank: {"compute_stream": rank.stream.value})
    ranks(own_stream, lambda rank: {"compute_stream": TorchLike(rank.stream.value)})


def stream_ordered():
    """What is enqueued on the compute stream after a step comes after it; nobody has to wait in between."""

    def work(rank, executor):
        copied = c.c_void_p()
        size = 4 * MICROBATCHES * SIZE
        cu("cuMemAlloc_v2", c.byref(copied), c.c_size_t(size))
        for _ in range(3):
            executor.step(rank.run)
            copy(copied.value, rank.kept.value, size, rank.stream.value)
            fill(rank.kept.value, 0xEE, size, rank.stream.value)
        executor.synchronize(timeout=20.0)
        cu("cuStreamSynchronize", rank.stream)
        rank.assert_kept(copied.value)
        cu("cuMemFree_v2", copied)

    ranks(work, lambda rank: {"compute_stream": rank.stream.value, "stream_ordered": True})


def not_done():
    """A device that does nothing yet: a step that is not over is waited for, no longer than told."""
    schedule = dualpipe.Schedule("dualpipe_v", 1, 2)
    cu.reset(0, mode=1)
    how = {"cuda": dualpipe.Cuda(stream_ordered=True), "tensors": TENSORS, "timeout": 20.0}
    with dualpipe.Executor(schedule, 0, inproc=dualpipe.Inproc(1), **how) as executor:
        scratch, context = c.c_void_p(), c.c_void_p()
        cu("cuDevicePrimaryCtxRetain", c.byref(context), 0)
        cu("cuCtxSetCurrent", context)
        cu("cuMemAlloc_v2", c.byref(scratch), c.c_size_t(1))
        executor.step(lambda task: fill(scratch.value, 1, 1, task.compute_stream))
        for seconds in (0, 0.01):
            raises(dualpipe.Timeout, "still running", executor.synchronize, seconds)
        cu.library["standin_run"]()
        executor.synchronize(20.0)
        cu("cuMemFree_v2", scratch)
        cu("cuDevicePrimaryCtxRelease_v2", 0)
    cu.assert_clean()


def graph():
    """The first step as usual, the second captured, the others launched without a call of the callback."""

    def work(rank, executor):
        assert executor.graph == ("cold", "")
        counts = []
        for k in range(4):
            executor.step(rank.run)
            rank.assert_kept()
            counts.append(rank.tasks)
            assert executor.graph == (("warm" if k == 0 else "captured"), "")
        once = counts[0]
        assert counts == [once, 2 * once, 2 * once, 2 * once]

    for seed in range(4):
        ranks(work, lambda rank: {"graph": True, "timed": True}, seed=seed)


def overlap():
    """The parts of a pair of blocks, in the order of the trace, each on its stream; what a part raises comes out."""

    def work(rank, executor):
        seen = []

        def run(task):
            rank.run(task)
            both = task.kind == "FB"
            enqueue = lambda part, block, stream: seen.append((part, block, stream == task.comm_stream))  # noqa: E731
            if both:
                halves.run(task, 1, 1, enqueue)

        halves = dualpipe.Overlap()
        executor.step(run)
        order = ["combine_b", "attention_f", "dispatch_f", "mlp_b", "dispatch_b", "mlp_w", "mlp_f", "combine_f"]
        order += ["attention_b", "attention_w"]
        want = [(part, 0, part.startswith(("combine", "dispatch"))) for part in order]
        assert seen and seen == want * (len(seen) // len(want)), seen

        def fails(task):
            rank.run(task)
            halves.run(task, 2, 0, lambda part, block, stream: {}[part])

        try:
            executor.step(fails)
        except (KeyError, dualpipe.PeerFailed):
            return
        finally:
            halves.close()
        raise AssertionError("the error was lost")

    ranks(work, lambda rank: {"has_comm_stream": True})


def graph_that_falls_back():
    """A callback that waits for the device cannot be captured; steps go on, and say why."""

    def work(rank, executor):
        def waits(task):
            rank.run(task)
            cu("cuStreamSynchronize", pointer(task.compute_stream))

        for _ in range(3):
            executor.step(waits if rank.rank == 1 else rank.run)
            rank.assert_kept()
        state = executor.graph
        assert state.state == "fell_back"
        assert "cannot be captured" in state.reason

    ranks(work, lambda rank: {"graph": True})


def timeline():
    """Tasks and messages have times, by the device's events."""

    def work(rank, executor):
        executor.step(rank.run)
        raises(dualpipe.Busy, "synchronize first", executor.timeline)
        executor.synchronize()
        return executor.timeline(), rank.tasks

    results = ranks(work, lambda rank: {"timed": True, "stream_ordered": True})
    merged = dualpipe.Timeline.merge([part for part, _ in results])
    spans, messages = merged.spans(), merged.messages()
    assert len(spans) == sum(tasks for _, tasks in results)
    assert len(messages) == 2 * MICROBATCHES
    assert merged.source == "recorded"
    assert 0 < merged.makespan < 20


def shapes():
    """Tensors that are made smaller than agreed arrive so."""

    def work(rank, executor):
        executor.step(rank.run)
        rank.assert_kept()
        kept = []

        def run(task):
            rank.run(task)
            if task.kind == "F":
                kept.extend(task.forward.outputs)
                for tensor in task.forward.inputs:
                    raises(ValueError, "is an input", tensor.set_shape, [1])
                for tensor in task.forward.outputs:
                    raises(ValueError, "must be 1 sizes", tensor.set_shape, [1, 1])
                    raises(ValueError, "must be 1 sizes", tensor.set_shape, [-1])

        executor.step(run)
        assert kept
        raises(RuntimeError, "the task has ended", kept[0].set_shape, [1])

    tensors = [("uint8", (SIZE,))]
    ranks(work, lambda rank: {"exchange_shapes": True}, exchanges=True, tensors=tensors)


def raises(kind, words, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"no {kind}")


def nccl():
    """The same over NCCL, each rank on a thread: the stand-in minds no more than that."""

    def make_link(schedule):
        unique_id = dualpipe.nccl_unique_id(schedule)
        assert len(unique_id) == 128 * 2
        assert dualpipe.nccl_version() >= 21800
        return {"nccl": dualpipe.Nccl(unique_id, max_ctas=4)}

    def work(rank, executor):
        for _ in range(2):
            executor.step(rank.run)
            rank.assert_kept()

    ranks(work, lambda rank: {}, make_link=make_link)


def errors():
    """What is refused, and how the ranks end when one fails."""
    info = dualpipe.cuda_available()
    assert info == dualpipe.CudaInfo(devices=1, driver_version=13000), info
    schedule = dualpipe.Schedule("dualpipe", RANKS, MICROBATCHES)
    some = {"tensors": TENSORS, "cuda": dualpipe.Cuda()}
    refused = [
        ({"inproc": dualpipe.Inproc(2), "cuda": dualpipe.Cuda(3)}, "device is 3, must be 0 to 0"),
        ({"nccl": dualpipe.Nccl(b"")}, "must be 256 for the 2 links"),
        ({"nccl": dualpipe.Nccl(bytes(100))}, "the length of unique_id is 100, must be 256"),
        ({"nccl": dualpipe.Nccl(bytes(256), 65)}, "max_ctas is 65, must be 0 to 64"),
    ]
    for options, words in refused:
        raises(dualpipe.InvalidArgument, words, dualpipe.Executor, schedule, 0, **{**some, **options})

    def work(rank, executor):
        def run(task):
            rank.run(task)
            if rank.rank == 1 and rank.tasks == 3:
                raise KeyError("as planned")

        try:
            executor.step(run)
            executor.synchronize(20.0)
        except (KeyError, dualpipe.Error) as error:
            return type(error), executor.fault.status

    assert ranks(work, lambda rank: {}) == [(dualpipe.PeerFailed, 6), (KeyError, 7)]


if __name__ == "__main__":
    globals()[sys.argv[1]]()
