"""DeepSeek's names on the library's executor: what they give is what a model without a pipeline gives, to the bit."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

import dualpipe
from dualpipe import DualPipe, DualPipeV, set_p2p_tensor_dtype, set_p2p_tensor_shapes
from torch import distributed

from torch_models import BATCH, WIDTH, OverlappedStage, Stage, assert_same_grads, batch, criterion, serial


def set_up():
    set_p2p_tensor_shapes([(BATCH, 3, WIDTH)])
    set_p2p_tensor_dtype(torch.float32)


def v_rank(rank, kind, microbatches, mapping=None):
    """Training twice, then inference, with DualPipeV."""
    set_up()
    size = distributed.get_world_size()
    at = rank if mapping is None else mapping[rank]
    reference = [kind(seed) for seed in range(2 * size)]
    modules = [kind(at), kind(2 * size - 1 - at)]
    model = DualPipeV(modules, rank_mapping=mapping)
    assert list(model.state_dict()) == ["module.0.weight", "module.0.shift", "module.1.weight", "module.1.shift"]
    x, label = batch(microbatches)
    for _ in range(2):
        losses, outputs = serial(reference, x, label, microbatches)
        mine = (x,) if at == 0 else ()
        loss, out = model.step(
            *mine, num_chunks=microbatches, criterion=criterion, labels=(label,) if at == 0 else [], return_outputs=True
        )
        if at == 0:
            assert torch.equal(loss, losses) and torch.equal(out, outputs)
        else:
            assert loss is None and out is None
        assert_same_grads(modules[0], reference[at])
        assert_same_grads(modules[1], reference[2 * size - 1 - at])
    with torch.no_grad():
        loss, out = model.step(
            x if at == 0 else None, num_chunks=microbatches, criterion=criterion, labels=(label,), return_outputs=True
        )
        nothing, out2 = model.step(x if at == 0 else None, num_chunks=microbatches, return_outputs=True)
    assert nothing is None
    if at == 0:
        assert torch.equal(loss, losses) and torch.equal(out, outputs) and torch.equal(out2, outputs)
    else:
        assert loss is None and out is None and out2 is None
    return getattr(kind, "pairs", None)


@pytest.mark.parametrize(("size", "microbatches"), [(1, 3), (2, 3), (2, 8), (4, 11)])
def test_dualpipe_v_gives_what_the_model_gives(ranks, size, microbatches):
    ranks.run(size, v_rank, Stage, microbatches)


def test_ranks_may_be_mapped(ranks):
    ranks.run(4, v_rank, Stage, 8, [2, 0, 3, 1])


def test_pairs_are_run_by_the_module_that_can(ranks):
    pairs = ranks.run(2, v_rank, OverlappedStage, 8)
    order = [dualpipe.Schedule("dualpipe_v", 2, 8).order(rank) for rank in range(2)]
    assert pairs == [2 * sum(op[0] == "FB" for op in ops) for ops in order]


def dualpipe_rank(rank, kind, microbatches, reduce_gradients):
    """Training, then inference, with DualPipe: half of the batch from each end."""
    set_up()
    size, half = distributed.get_world_size(), microbatches // 2
    references = [[kind(seed) for seed in range(size)] for _ in range(2)]
    x, label = batch(microbatches)
    ends = [serial(stages, *part, half) for stages, part in zip(references, zip(x.chunk(2), label.chunk(2)))]
    modules = [kind(rank), kind(size - 1 - rank)]
    model = DualPipe(modules, reduce_gradients=reduce_gradients)
    is_end = rank in (0, size - 1)
    mine = x.chunk(2)[0 if rank == 0 else 1] if is_end else None
    labels = (label.chunk(2)[1 if rank == 0 else 0],) if is_end else (None,)
    loss, out = model.step(mine, num_chunks=microbatches, criterion=criterion, labels=labels)
    with torch.no_grad():
        loss2, out2 = model.step(mine, num_chunks=microbatches, criterion=criterion, labels=labels, return_outputs=True)
    assert out is None
    if is_end:
        losses, outputs = ends[1 if rank == 0 else 0]
        assert torch.equal(loss, losses) and torch.equal(loss2, losses) and torch.equal(out2, outputs)
    else:
        assert loss is None and loss2 is None and out2 is None
    if reduce_gradients:
        for first, second in zip(*references):
            for one, other in zip(first.parameters(), second.parameters()):
                one.grad = other.grad = one.grad + other.grad
    assert_same_grads(modules[0], references[0][rank])
    assert_same_grads(modules[1], references[1][size - 1 - rank])


@pytest.mark.parametrize("reduce_gradients", [False, True])
@pytest.mark.parametrize(("size", "microbatches"), [(2, 2), (2, 8), (4, 12)])
def test_dualpipe_gives_what_the_model_gives(ranks, size, microbatches, reduce_gradients):
    ranks.run(size, dualpipe_rank, Stage, microbatches, reduce_gradients)


def test_dualpipe_runs_pairs_by_the_module_that_can(ranks):
    ranks.run(2, dualpipe_rank, OverlappedStage, 6, True)


def test_names_are_those_of_the_original():
    import dualpipe.comm
    import dualpipe.utils

    assert dualpipe.comm.set_p2p_tensor_shapes is set_p2p_tensor_shapes
    assert dualpipe.DualPipe is DualPipe and dualpipe.WeightGradStore is dualpipe.utils.WeightGradStore
    store = dualpipe.WeightGradStore
    ran = []
    store.clear()
    for k in range(3):
        store.put(lambda k=k: ran.append(k))
        store.flush()
    for _ in range(3):
        store.pop()
    assert ran == [0, 1, 2]
    with pytest.raises(IndexError, match="there is no W left"):
        store.pop()
    with pytest.raises(AttributeError, match="no attribute 'DualPipeX'"):
        _ = dualpipe.DualPipeX


def test_torch_is_not_loaded_before_it_is_needed():
    program = (
        "import sys, dualpipe; assert 'torch' not in sys.modules; dualpipe.DualPipeV; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
