"""Whatever goes wrong on a rank of a torch pipeline ends in an exception on all of them, and the next step may run."""

import os
import time

import pytest

torch = pytest.importorskip("torch")

import dualpipe
from dualpipe.torch import DualPipe, DualPipeV, set_p2p_tensor_dtype, set_p2p_tensor_shapes
from torch import distributed

from ranks import Died, Raised
from torch_models import BATCH, WIDTH, Stage, assert_same_grads, batch, criterion, serial

MICROBATCHES = 8


class Faulty(Stage):
    """Does something at its third forward."""

    def __init__(self, seed, what=None):
        super().__init__(seed)
        self.what, self.forwards = what, 0

    def forward(self, x):
        self.forwards += 1
        if self.forwards == 3 and self.what is not None:
            what, self.what = self.what, None
            what()
        return super().forward(x)


def complain():
    raise ValueError("the model has had enough")


def die():
    os._exit(3)


def sleep():
    time.sleep(1.5)


WHAT = {"complain": complain, "die": die, "sleep": sleep}


def faulty_rank(rank, kind, at, what, timeout, then_step):
    """A step in which rank ``at`` does ``what``, and what it ended with; then perhaps one that runs."""
    set_p2p_tensor_shapes([(BATCH, 3, WIDTH)])
    set_p2p_tensor_dtype(torch.float32)
    size = distributed.get_world_size()
    stages = [rank, 2 * size - 1 - rank] if kind is DualPipeV else [rank, size - 1 - rank]
    modules = [Faulty(stages[0], WHAT[what] if rank == at else None), Stage(stages[1])]
    model = kind(modules, timeout=timeout)
    x, label = batch(MICROBATCHES)
    if kind is DualPipe:
        x, label = x.chunk(2)[0], label.chunk(2)[0]
    step = {"num_chunks": MICROBATCHES, "criterion": criterion, "labels": (label,)}
    with pytest.raises(Exception) as caught:
        model.step(x, **step)
    if then_step:
        model.zero_grad()
        model.step(x, **step)
        reference = [Stage(seed) for seed in range(2 * size)]
        serial(reference, x, label, MICROBATCHES)
        for module, stage in zip(modules, stages):
            assert_same_grads(module, reference[stage])
    return Raised(caught.value).kinds, str(caught.value)


@pytest.mark.parametrize("size", [2, 4])
def test_what_a_module_raises_is_heard_by_all_and_the_next_step_runs(ranks, size):
    at = size - 1
    results = ranks.run(size, faulty_rank, DualPipeV, at, "complain", 20.0, True)
    for rank, (kinds, text) in enumerate(results):
        if rank == at:
            assert kinds[0] == "ValueError" and text == "the model has had enough"
        else:
            assert kinds[0] == "PeerFailed" and f"rank {at}, instruction" in text, text
            assert "ValueError: the model has had enough" in text


def test_a_hang_ends_within_the_deadline(ranks):
    results = ranks.run(2, faulty_rank, DualPipeV, 1, "sleep", 0.3, False)
    (kinds, text), (of_sleeper, sleepers) = results
    assert "TimeoutError" in kinds
    assert text.startswith("dualpipe_executor_step: rank 0, instruction ") and "(RUN " in text
    assert "waited 3" in text and "from rank 1" in text
    assert of_sleeper[0] == "PeerFailed" and "rank 0" in sleepers


@pytest.mark.parametrize("kind", [DualPipe, DualPipeV])
def test_a_rank_that_dies_is_missed_at_once(ranks, kind):
    results = ranks.results(4, faulty_rank, kind, 1, "die", 20.0, False)
    assert isinstance(results[1], Died) and results[1].code == 3
    for rank in (0, 2, 3):
        kinds, text = results[rank]
        assert kinds[0] in ("TransportFailed", "PeerFailed"), text
        assert f"rank {rank}, instruction" in text
    assert any("rank 1" in results[rank][1] for rank in (0, 2))


def late_rank(rank, kind):
    """Rank 1 fails in its last W, when rank 0 is through with all but the reduction of its copies."""
    set_p2p_tensor_shapes([(BATCH, 3, WIDTH)])
    set_p2p_tensor_dtype(torch.float32)
    x, label = batch(MICROBATCHES)
    last = 3 if kind is DualPipeV else 1
    options = {} if kind is DualPipeV else {"reduce_gradients": True}
    model = kind([Stage(rank), Stage(last - rank)], timeout=20.0, **options)
    if kind is DualPipe:
        mine, of_other = x.chunk(2)[rank], label.chunk(2)[1 - rank]
    else:
        mine, of_other = x, label
    step = {"num_chunks": MICROBATCHES, "criterion": criterion, "labels": (of_other,)}
    model.step(mine, **step)
    (ready,) = model._ready.values()
    weights = sum(op[0] == "W" for op in ready.schedule.order(rank))
    backward_weight, done = ready.stages.backward_weight, []

    def fail_late(copy, microbatch):
        done.append(microbatch)
        if len(done) == weights:
            time.sleep(0.2)
            raise ValueError("the optimizer has had enough")
        backward_weight(copy, microbatch)

    if rank == 1:
        ready.stages.backward_weight = fail_late
        with pytest.raises(ValueError, match="the optimizer has had enough"):
            model.step(mine, **step)
    else:
        if kind is DualPipeV:
            model.step(mine, **step)
        else:  # it looks for the sums when the other one has failed already
            finish = model._reduction.finish
            model._reduction.finish = lambda: (time.sleep(0.6), finish())
        with pytest.raises(dualpipe.PeerFailed, match="rank 1.*the optimizer has had enough"):
            model.step(mine, **step)
    model.zero_grad()
    model.step(mine, **step)
    reference = [Stage(seed) for seed in range(last + 1)]
    serial(reference, x, label, MICROBATCHES)
    assert_same_grads(model.module[0], reference[rank], exact=kind is DualPipeV)


@pytest.mark.parametrize("kind", [DualPipe, DualPipeV])
def test_a_rank_that_fails_when_others_are_through_is_heard_when_they_need_it_next(ranks, kind):
    ranks.run(2, late_rank, kind)


def disagreeing_rank(rank):
    set_p2p_tensor_shapes([(BATCH, 3 + rank, WIDTH)])
    set_p2p_tensor_dtype(torch.float32)
    model = DualPipeV([Stage(rank), Stage(3 - rank)], timeout=5.0)
    x = torch.zeros(3 * BATCH, 3 + rank, WIDTH)
    with pytest.raises(dualpipe.Error) as caught:
        model.step(x, num_chunks=3, criterion=criterion, labels=[x])
    return str(caught.value)


def test_ranks_that_do_not_agree_say_so(ranks):
    for rank, text in enumerate(ranks.run(2, disagreeing_rank)):
        assert f"ranks [{1 - rank}] of the group want another step than rank {rank}" in text
        assert f"TensorSpec(shape=(2, {3 + rank}, 6)" in text
