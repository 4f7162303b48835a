"""What pipelines of torch modules do beyond the original: schedules, boundaries, weight gradients, parameters."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch")

import dualpipe
from dualpipe.torch import (
    DualPipe,
    DualPipeV,
    Pipeline,
    TensorSpec,
    set_p2p_tensor_dtype,
    set_p2p_tensor_shapes,
    split_weight_grads,
)
from torch import nn
from torch.nn import functional

from torch_models import BATCH, WIDTH, Plain, Stage, assert_same_grads, batch, criterion, serial

SHAPE = (BATCH, 3, WIDTH)


def set_up():
    set_p2p_tensor_shapes([SHAPE])
    set_p2p_tensor_dtype(torch.float32)


def schedules_rank(rank):
    """Any schedule by name and as an object, and its timeline."""
    set_up()
    x, label = batch(5)
    published = dualpipe.Schedule("1f1b", 2, 5)
    orders = [published.order(rank) for rank in range(2)]
    own = dualpipe.Schedule.from_orders(orders, placement=[0, 1], microbatches=5)
    for schedule in ("1f1b", published, own):
        reference = [Stage(seed) for seed in range(2)]
        losses, _ = serial(reference, x, label, 5)
        stage = Stage(rank)
        model = Pipeline([stage], schedule=schedule)
        count = 5 if schedule == "1f1b" else 0
        loss, _, timeline = model.step(x, num_chunks=count, criterion=criterion, labels=label, return_timeline=True)
        assert (loss is None) == (rank == 0)
        assert rank == 0 or torch.equal(loss, losses)
        assert_same_grads(stage, reference[rank])
        assert timeline.source == "recorded" and len(timeline.spans()) == 10
        with torch.no_grad():
            loss, _ = model.step(x, num_chunks=count, criterion=criterion, labels=label)
        assert rank == 0 or torch.equal(loss, losses)


def test_schedules_by_name_and_as_objects(ranks):
    ranks.run(2, schedules_rank)


def split_rank(rank, kind):
    """torch's own Linear with I and W apart."""
    set_up()
    reference = [kind(seed) for seed in range(4)]
    x, label = batch(6)
    losses, _ = serial(reference, x, label, 6)
    modules = [kind(rank), kind(3 - rank)]
    model = DualPipeV(modules, split_weight_grads=True)
    assert split_weight_grads(model) == 0  # they are already
    loss, _ = model.step(x, num_chunks=6, criterion=criterion, labels=(label,))
    assert rank != 0 or torch.equal(loss, losses)
    for module, stage in zip(modules, (rank, 3 - rank)):
        assert_same_grads(module, reference[stage], exact=False)


class Delayed(nn.Module):
    """A linear layer with Transformer Engine's protocol: its weight gradients wait until backward_dw, oldest first."""

    def __init__(self, seed):
        super().__init__()
        self.inner = Stage(seed)
        self.waiting, self.most = [], 0

    def forward(self, x):
        return torch.tanh(_Delayed.apply(x, self.inner.weight, self) + self.inner.shift) * 1.5

    def backward_dw(self):
        x, grad = self.waiting.pop(0)
        of_weight, weight = grad.flatten(0, -2).t() @ x.flatten(0, -2), self.inner.weight
        weight.grad = of_weight if weight.grad is None else weight.grad + of_weight


class _Delayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, module):
        ctx.save_for_backward(x, weight)
        ctx.module = module
        return x @ weight.t()

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        ctx.module.waiting.append((x, grad))
        ctx.module.most = max(ctx.module.most, len(ctx.module.waiting))
        return grad @ weight, None, None


def delayed_rank(rank):
    set_up()
    reference = [Stage(seed) for seed in range(8)]
    x, label = batch(8)
    serial(reference, x, label, 8)
    modules = [Delayed(rank), Delayed(7 - rank)]
    DualPipeV(modules).step(x, num_chunks=8, criterion=criterion, labels=(label,))
    for module, stage in zip(modules, (rank, 7 - rank)):
        assert not module.waiting
        assert_same_grads(module.inner, reference[stage])
    return max(module.most for module in modules)


def test_weight_gradients_of_linear_layers_wait_for_w(ranks):
    ranks.run(2, split_rank, Plain)


def test_modules_that_put_weight_gradients_off_themselves_are_asked_for_them(ranks):
    assert max(ranks.run(4, delayed_rank)) > 1  # some W did wait


def test_split_linear_layers_are_torchs():
    torch.manual_seed(0)
    for bias in (True, False):
        for shape in ((5,), (4, 5), (2, 3, 5)):
            one = nn.Linear(5, 3, bias=bias)
            other = nn.Linear(5, 3, bias=bias)
            other.load_state_dict(one.state_dict())
            assert split_weight_grads(nn.Sequential(other)) == 1
            x, x2 = torch.randn(shape, requires_grad=True), None
            x2 = x.detach().requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=len(shape) == 2):
                y, y2 = one(x), other(x2)
            assert y.dtype == y2.dtype and torch.equal(y, y2)
            y.float().square().sum().backward()
            y2.float().square().sum().backward()
            torch.testing.assert_close(x2.grad, x.grad)
            assert_same_grads(other, one, exact=False)
    twin = copy.deepcopy(other)
    twin.weight.data.zero_()
    assert torch.equal(twin(x.detach()), torch.zeros(2, 3, 3)) and not torch.equal(other.weight, twin.weight)
    assert torch.equal(pickle.loads(pickle.dumps(other)).weight, other.weight)
    fired = []
    other.weight.register_post_accumulate_grad_hook(lambda weight: fired.append(weight.grad))
    dualpipe.WeightGradStore.clear()
    dualpipe.WeightGradStore.enabled = True
    other.weight.grad = None
    other(torch.ones(1, 5)).sum().backward()
    assert other.weight.grad is None
    dualpipe.WeightGradStore.enabled = False
    dualpipe.WeightGradStore.flush()
    dualpipe.WeightGradStore.pop()
    assert torch.equal(fired[-1], torch.ones(3, 5))


class Wide(nn.Module):
    """Takes and gives three tensors: activations, positions (integers) and a mask without gradient. With names it does so
    by dicts and keywords. ``length`` may differ between micro-batches."""

    def __init__(self, seed, stage, last, named):
        super().__init__()
        self.inner, self.stage, self.last, self.named = Stage(seed), stage, last, named

    def forward(self, hidden, positions, mask):
        assert positions.dtype == torch.int64 and not positions.requires_grad and not mask.requires_grad
        hidden = self.inner(hidden * mask) + positions.unsqueeze(-1) / 100
        if self.last:
            return {"logits": hidden, "aux": hidden.mean()} if self.named else (hidden, hidden.mean())
        if self.named:
            return {"mask": mask, "hidden": hidden, "positions": positions + 1}
        return hidden, positions + 1, mask


def wide_criterion(hidden, aux, label):
    return functional.mse_loss(hidden, label) + aux


def named_criterion(outputs, label):
    return functional.mse_loss(outputs["logits"], label) + outputs["aux"]


def wide_rank(rank, named, kind):
    lengths = [3, 5, 2, 4, 3, 1]
    shapes = [
        {"hidden": (BATCH, length, WIDTH), "positions": (BATCH, length), "mask": (BATCH, length, 1)}
        for length in lengths
    ]
    specs = {
        "hidden": TensorSpec(shapes[0]["hidden"]),
        "positions": TensorSpec(shapes[0]["positions"], torch.int64),
        "mask": TensorSpec(shapes[0]["mask"], requires_grad=False),
    }
    set_p2p_tensor_shapes(specs if named else list(specs.values()))
    stages, size = (2, 1) if kind == "1f1b" else (4, 2), 2
    count = stages[0]
    generator = torch.Generator().manual_seed(3)
    hidden = [torch.randn(shape["hidden"], generator=generator) for shape in shapes]
    positions = [torch.arange(length).expand(BATCH, length) for length in lengths]
    mask = [(torch.rand(shape["mask"], generator=generator) > 0.3).float() for shape in shapes]
    label = [torch.randn(shape["hidden"], generator=generator) for shape in shapes]
    reference = [Wide(seed, seed, seed == count - 1, False) for seed in range(count)]
    losses, finals = [], []
    for one in zip(hidden, positions, mask):
        for stage in reference:
            one = stage(*one)
        loss = wide_criterion(*one, label[len(losses)])
        loss.backward()
        losses.append(loss.detach())
        finals.append(one)
    held = [rank] if kind == "1f1b" else [rank, 2 * size - 1 - rank]
    modules = [Wide(stage, stage, stage == count - 1, named) for stage in held]
    model = Pipeline(modules, schedule=kind)
    loss, outputs = model.step(
        hidden,
        positions,
        mask,
        num_chunks=6,
        criterion=named_criterion if named else wide_criterion,
        labels=[label],
        return_outputs=True,
        microbatch_shapes=shapes if named else [list(shape.values()) for shape in shapes],
    )
    for module, stage in zip(modules, held):
        assert_same_grads(module, reference[stage])
    if count - 1 in held:
        assert torch.equal(loss, torch.stack(losses))
        logits, aux = (outputs["logits"], outputs["aux"]) if named else outputs
        assert torch.equal(aux, torch.stack([final[1] for final in finals]))
        assert len(logits) == 6 and all(torch.equal(one, final[0]) for one, final in zip(logits, finals))
    else:
        assert loss is None and outputs is None


@pytest.mark.parametrize("kind", ["1f1b", "dualpipe_v"])
@pytest.mark.parametrize("named", [False, True])
def test_boundaries_of_several_tensors(ranks, named, kind):
    ranks.run(2, wide_rank, named, kind)


class Embedding(nn.Module):
    """The first and the last stage of a model share ``table``."""

    def __init__(self, table, is_last):
        super().__init__()
        self.table, self.is_last = table, is_last
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return (x * self.scale) @ self.table.t() if self.is_last else self.table[x] * self.scale


def tied_rank(rank, kind):
    """Tied embeddings: both ends of a V, and of each direction, are on one rank."""
    set_up()
    microbatches, rows = 8, 7
    generator = torch.Generator().manual_seed(1)
    start = torch.randn((rows, WIDTH), generator=generator)
    tokens = torch.randint(rows, (microbatches * BATCH, 3), generator=generator)
    targets = torch.randint(rows, (microbatches * BATCH, 3), generator=generator)

    def cross_entropy(logits, target):
        return functional.cross_entropy(logits.flatten(0, 1), target.flatten())

    last = 3 if kind == "dualpipe_v" else 1

    def build(stages):
        table = nn.Parameter(start.clone())
        return [Embedding(table, stage == last) if stage in (0, last) else Stage(stage) for stage in stages]

    reference = build(range(last + 1))
    for one, target in zip(tokens.chunk(microbatches), targets.chunk(microbatches)):
        for stage in reference:
            one = stage(one)
        cross_entropy(one, target).backward()
    if kind == "dualpipe_v":
        held = [rank, 3 - rank]
        modules = build(held)
        model = DualPipeV(modules, split_weight_grads=True)
        model.step(tokens, num_chunks=microbatches, criterion=cross_entropy, labels=[targets])
    else:
        held = [rank, 1 - rank]
        modules = build(held)
        model = DualPipe(modules, reduce_gradients=True)
        mine, of_other = tokens.chunk(2)[rank], targets.chunk(2)[1 - rank]
        model.step(mine, num_chunks=microbatches, criterion=cross_entropy, labels=[of_other])
    for module, stage in zip(modules, held):
        assert_same_grads(module, reference[stage], exact=False)


@pytest.mark.parametrize("kind", ["dualpipe", "dualpipe_v"])
def test_tied_parameters_have_one_gradient(ranks, kind):
    ranks.run(2, tied_rank, kind)


def refused_rank(rank):
    set_p2p_tensor_shapes([SHAPE])
    set_p2p_tensor_dtype(torch.float32)
    model = DualPipeV([Stage(rank), Stage(3 - rank)])
    x, label = batch(4)
    complaints = []

    def refused(error, call, **options):
        with pytest.raises(error) as caught:
            call(**options)
        complaints.append(str(caught.value))

    step = {"num_chunks": 4, "criterion": criterion, "labels": (label,)}
    refused(dualpipe.InvalidArgument, lambda: DualPipeV([Stage(0)]))
    refused(dualpipe.InvalidArgument, lambda: DualPipeV([Stage(0), Stage(1)], rank_mapping=[0, 0]))
    refused(dualpipe.InvalidArgument, lambda: DualPipeV([Stage(0), Stage(1)], reduce_gradients=True))
    refused(dualpipe.InvalidArgument, lambda: Pipeline([Stage(0)], schedule="zero"))
    refused(dualpipe.InvalidArgument, lambda: Pipeline([Stage(0)], schedule=dualpipe.Schedule("1f1b", 3, 4)))
    refused(dualpipe.InvalidArgument, model.step, **{**step, "num_chunks": 2})
    refused(dualpipe.InvalidArgument, model.step, **step, microbatch_shapes=[[SHAPE]])
    if rank == 0:
        refused(dualpipe.InvalidArgument, lambda **o: model.step(x, **o), **{**step, "criterion": None})
        refused(dualpipe.InvalidArgument, lambda **o: model.step(x[:3], **o), **step)
        refused(dualpipe.InvalidArgument, lambda **o: model.step([x, x], **o), **step)
        refused(TypeError, lambda **o: model.step("x", **o), **step)
    # Nothing has happened: both ranks still step.
    loss, _ = model.step(x, **step)
    set_p2p_tensor_shapes([(BATCH, 3, WIDTH + 1)])
    with pytest.raises(dualpipe.Error, match="must be torch.float32 .2, 3, 7. on cpu, as its boundary|peer|rank"):
        model.step(x, **step)
    set_p2p_tensor_shapes([SHAPE])
    again, _ = model.step(x, **step)
    assert rank != 0 or torch.equal(loss, again)
    return complaints


def test_what_cannot_be_is_refused_before_anything_runs(ranks):
    complaints, of_other = ranks.run(2, refused_rank)
    words = [
        "modules has 1, must have 2",
        "rank_mapping is [0, 0], must be a permutation of 0 to 1",
        "reduce_gradients is True, must be False",
        "'zero'",
        "schedule has 3 ranks, must have 2",
        "must be at least 3",
        "microbatch_shapes has 1, must have 4",
        "criterion is None",
        "inputs[0] has 3 along its batch dimension 0, must have at least 4",
        "inputs[0] has 2 micro-batches, must have 4",
        "inputs[0] is str",
    ]
    assert len(complaints) == len(words) and len(of_other) == 7
    for complaint, word in zip(complaints, words):
        assert word in complaint


def test_shapes_and_dtypes_are_checked_when_they_are_set():
    with pytest.raises(TypeError, match="dtype is 'float32', must be a torch.dtype"):
        set_p2p_tensor_dtype("float32")
    with pytest.raises(TypeError, match=r"shapes\[0\] is 3, must be a shape"):
        set_p2p_tensor_shapes([3])
