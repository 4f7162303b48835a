"""A transport of the caller's in Python: messages arrive by it, and what it raises comes out of the step."""

import threading

import dualpipe
import numpy as np
import pytest

from conftest import on_threads

RANKS, MICROBATCHES, SHAPE = 3, 7, (2, 3)


class Post:
    """What the ends share: bytes by (from, to, tag), and who failed."""

    def __init__(self):
        self.lock, self.messages, self.told, self.closed = threading.Lock(), {}, None, []


class End(dualpipe.Transport):
    def __init__(self, post, rank):
        self.post, self.rank, self.seen, self.calls = post, rank, [], 0

    def send(self, transfer):
        self.calls += 1
        if self.calls % 4 == 0:
            return None  # not now
        self.seen.append(transfer)
        with self.post.lock:
            self.post.messages[self.rank, transfer.peer, transfer.tag] = bytes(transfer.data)
        return "sent", transfer.num_bytes

    def receive(self, transfer):
        return "coming", transfer

    def test(self, request):
        what, transfer = request
        if what == "sent":
            return transfer
        with self.post.lock:
            got = self.post.messages.pop((transfer.peer, self.rank, transfer.tag), None)
        if got is None:
            return None
        transfer.data[: len(got)] = got
        return len(got)

    def withdraw(self):
        pass

    def poll_abort(self):
        return self.post.told

    def abort(self, rank, text):
        with self.post.lock:
            self.post.told = self.post.told or (rank, text)

    def close(self):
        self.post.closed.append(self.rank)


def run_ranks(ends, rank_of, kind="dualpipe_v", timeout=20.0):
    schedule = dualpipe.Schedule(kind, len(ends), MICROBATCHES)

    def work(rank):
        options = {"transport": ends[rank], "tensors": [("float32", SHAPE)], "timeout": timeout}
        with dualpipe.Executor(schedule, rank, **options) as executor:
            return rank_of(executor)

    return on_threads(len(ends), work)


def ends_of(post, kind=End):
    return [kind(post, rank) for rank in range(RANKS)]


class Adder:
    """Stage s adds s + 1; the last keeps what comes. Gradients of even micro-batches are absent."""

    def __init__(self):
        self.kept, self.absent = [], 0

    def __call__(self, task):
        if task.forward is not None:
            one = task.forward
            got = one.inputs[0] if one.inputs else np.full(SHAPE, one.microbatch, np.float32)
            if one.outputs:
                one.outputs[0][...] = got + one.stage + 1
            else:
                self.kept.append(float(got[1, 2]) + one.stage + 1)
        if task.kind in ("B", "I", "FB"):
            one = task.backward
            self.absent += sum(grad is None for grad in one.output_grads)
            if one.input_grads and one.microbatch % 2 == 0:
                one.set_absent(0)
            elif one.input_grads:
                one.input_grads[0][...] = 1


def test_messages_travel_by_it():
    post, adders = Post(), [Adder() for _ in range(RANKS)]
    ends = ends_of(post)

    def rank_of(executor):
        for _ in range(3):
            executor.step(adders[executor.rank])
        return executor.timeline().source

    assert run_ranks(ends, rank_of) == ["recorded"] * RANKS
    # The last of the 6 stages is on rank 0.
    assert sorted(adders[0].kept) == sorted(3 * [m + 21.0 for m in range(MICROBATCHES)])
    assert sum(adder.absent for adder in adders) == 3 * 5 * 4
    assert post.messages == {}
    assert sorted(post.closed) == list(range(RANKS))


def test_a_transfer_says_which_message_it_is_of():
    ends = ends_of(Post())
    assert run_ranks(ends, lambda executor: executor.step(Adder())) == [None] * RANKS
    seen = [transfer for end in ends for transfer in end.seen]
    activations = {(t.stage, t.to_stage, t.microbatch) for t in seen if t.kind == "activation"}
    # Stages 2 and 3 are both on the last rank: nothing is sent between them.
    want = {(stage, stage + 1, m) for stage in (0, 1, 3, 4) for m in range(MICROBATCHES)}
    assert activations == want
    gradients = {(t.stage, t.to_stage, t.microbatch) for t in seen if t.kind == "gradient"}
    assert gradients == {(stage + 1, stage, m) for stage, _, m in want}
    for t in seen:
        assert (t.direction, t.tensor, t.stream, t.device) == (0, 0, None, 0)
        assert t.channel == (t.kind == "gradient") and t.step in (0, 1)
        assert t.num_bytes == (0 if t.kind == "gradient" and t.microbatch % 2 == 0 else 24)
    assert "activation of micro-batch" in repr(seen[0])


class Cut(RuntimeError):
    pass


@pytest.mark.parametrize("method", ["send", "receive", "test", "wait", "poll_abort"])
def test_what_it_raises_comes_out_of_the_step(method):
    def fails(self, *_):
        raise Cut(f"{method} is cut")

    failing = type("Failing", (End,), {method: fails})
    post = Post()
    ends = [End(post, 0), failing(post, 1), End(post, 2)]
    results = run_ranks(ends, lambda executor: executor.step(Adder()), timeout=2.0)
    if method in ("wait", "poll_abort"):
        # They have no way to fail in C: the step goes on, and raises at its end, or when its deadline has passed.
        assert isinstance(results[1], Cut)
        return
    assert isinstance(results[1], Cut) and str(results[1]) == f"{method} is cut"
    for rank in (0, 2):
        assert isinstance(results[rank], dualpipe.PeerFailed)
        assert f"Cut: {method} is cut" in str(results[rank])
    assert sorted(post.closed) == [0, 1, 2]


def test_a_peer_that_is_gone_is_named():
    class Gone(End):
        def test(self, request):
            if request[0] == "coming":
                raise ConnectionResetError("by peer")
            return super().test(request)

    post = Post()
    results = run_ranks([Gone(post, 0), *ends_of(post)[1:]], lambda executor: executor.step(Adder()), timeout=2.0)
    assert isinstance(results[0], dualpipe.Error) and not isinstance(results[0], dualpipe.Timeout)
    assert "rank 1" in str(results[0])


def test_a_silent_peer_ends_in_a_timeout():
    post = Post()
    schedule = dualpipe.Schedule("1f1b", 2, 2)
    options = {"transport": End(post, 1), "tensors": [("float32", SHAPE)], "timeout": 0.2}
    with dualpipe.Executor(schedule, 1, **options) as executor, pytest.raises(dualpipe.Timeout, match="from rank 0"):
        executor.step(Adder())
    assert post.closed == [1]


def test_a_transport_that_waits_itself_says_when_it_has_waited_long_enough():
    class Waiting(End):
        def test(self, request):
            if request[0] == "coming":
                raise TimeoutError
            return super().test(request)

    post = Post()
    schedule = dualpipe.Schedule("1f1b", 2, 2)
    options = {"transport": Waiting(post, 1), "tensors": [("float32", SHAPE)], "timeout": 7.0}
    words = "rank 1, instruction 1 .*waited 7s for the activation of micro-batch 0 .*, from rank 0"
    with dualpipe.Executor(schedule, 1, **options) as executor, pytest.raises(dualpipe.Timeout, match=words):
        executor.step(Adder())


def test_exactly_one_link_is_given():
    schedule = dualpipe.Schedule("1f1b", 1, 1)
    with pytest.raises(dualpipe.InvalidArgument, match="none of inproc, transport and nccl"):
        dualpipe.Executor(schedule, 0, tensors=[])
    post = Post()
    with dualpipe.Inproc(1) as inproc, pytest.raises(dualpipe.InvalidArgument, match="inproc and transport"):
        dualpipe.Executor(schedule, 0, tensors=[], inproc=inproc, transport=End(post, 0))
    assert post.closed == []
