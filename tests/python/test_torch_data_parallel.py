"""Pipelines of stages in DistributedDataParallel and fully_shard: 2 pipeline ranks by 2 data parallel ones."""

import pytest

torch = pytest.importorskip("torch")

from dualpipe.torch import DualPipe, DualPipeV, set_p2p_tensor_dtype, set_p2p_tensor_shapes
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from torch_models import BATCH, WIDTH, Plain, batch, criterion, serial

MICROBATCHES = 6


def grids(rank):
    """The pipeline's and the data parallel group of a rank of 2 by 2, and its ranks there."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    return mesh["pp"].get_group(), mesh["dp"], rank // 2, rank % 2


def reference_grads(stages):
    """The mean over the two data parallel ranks, which have batches of their own, of what a step adds up."""
    sums = [Plain(seed) for seed in range(stages)]
    for seed in range(2):
        x, label = batch(MICROBATCHES, seed)
        serial(sums, x, label, MICROBATCHES)
    for stage in sums:
        for one in stage.parameters():
            one.grad /= 2
    return sums


def assert_mean(module, reference):
    for (name, one), want in zip(module.named_parameters(), reference.parameters()):
        got = one.grad.full_tensor() if hasattr(one.grad, "full_tensor") else one.grad
        torch.testing.assert_close(got, want.grad, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def replicated_rank(rank, kind):
    set_p2p_tensor_shapes([(BATCH, 3, WIDTH)])
    set_p2p_tensor_dtype(torch.float32)
    group, data, at, replica = grids(rank)
    x, label = batch(MICROBATCHES, replica)
    held, stages = ([at, 3 - at], 4) if kind is DualPipeV else ([at, 1 - at], 2)
    modules = [DistributedDataParallel(Plain(stage), process_group=data.get_group()) for stage in held]
    options = {} if kind is DualPipeV else {"reduce_gradients": True}
    model = kind(modules, process_group=group, split_weight_grads=True, **options)
    if kind is DualPipe:
        x, label = x.chunk(2)[at], label.chunk(2)[1 - at]
    reference = reference_grads(stages)

    def step(**options):
        model.step(x, num_chunks=MICROBATCHES, criterion=criterion, labels=[label], **options)

    step()
    for module, stage in zip(modules, held):
        assert_mean(module.module, reference[stage])
    model.zero_grad()
    # Gradients of three steps, reduced with the last.
    with modules[0].no_sync(), modules[1].no_sync():
        step()
    step(sync_gradients=False)
    mine = modules[0].module.first.weight.grad
    other = torch.empty_like(mine)
    for work in (distributed.isend(mine, rank ^ 1), distributed.irecv(other, rank ^ 1)):
        work.wait()
    assert not torch.equal(mine, other)
    step()
    for module, stage in zip(modules, held):
        for one in reference[stage].parameters():
            one.grad *= 3
        assert_mean(module.module, reference[stage])


@pytest.mark.parametrize("kind", [DualPipeV, DualPipe])
def test_replicated_stages_reduce_once(ranks, kind):
    ranks.run(4, replicated_rank, kind)


def sharded_rank(rank):
    from torch.distributed.fsdp import fully_shard

    set_p2p_tensor_shapes([(BATCH, 3, WIDTH)])
    set_p2p_tensor_dtype(torch.float32)
    group, data, at, replica = grids(rank)
    x, label = batch(MICROBATCHES, replica)
    held = [at, 3 - at]
    modules = [Plain(stage) for stage in held]
    for module in modules:
        fully_shard(module.first, mesh=data)
        fully_shard(module, mesh=data)
    model = DualPipeV(modules, process_group=group, split_weight_grads=True)
    reference = reference_grads(4)
    for _ in range(2):
        model.step(x, num_chunks=MICROBATCHES, criterion=criterion, labels=[label])
        for module, stage in zip(modules, held):
            assert_mean(module, reference[stage])
        model.zero_grad()
    with torch.no_grad():
        _, outputs = model.step(x, num_chunks=MICROBATCHES, return_outputs=True)
    assert at != 0 or torch.equal(outputs, serial([Plain(seed) for seed in range(4)], x, label, MICROBATCHES)[1])


def test_sharded_stages_reduce_once(ranks):
    ranks.run(4, sharded_rank)
