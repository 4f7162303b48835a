"""Schedules as torch's CSV, and run by torch's pipelining, against a serial model."""

from __future__ import annotations

import inspect
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dualpipe
import pytest
from dualpipe.torch.schedule_csv import FORMATS, parsed_version, schedule_csv, stages_of

torch = pytest.importorskip("torch")
VERSION = parsed_version(torch.__version__)
needs_runtime = pytest.mark.skipif(VERSION < (2, 10), reason=f"torch {torch.__version__} has no runtime for pairs")

WIDTH = 3
CASES = {
    2: [("dualpipe_v", 3), ("dualpipe_v", 6), ("1f1b", 1), ("1f1b", 5)],
    4: [("dualpipe_v", 8), ("1f1b", 6)],
}
"""Schedules with their micro-batches, by ranks."""


class Layer(torch.nn.Module):
    """A stage of two tensors, the second of which travels along."""

    def __init__(self, stage: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(stage)
        self.weight = torch.nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64))
        self.bias = torch.nn.Parameter(torch.randn(WIDTH, generator=generator, dtype=torch.float64))

    def forward(self, x: Any, carried: Any) -> tuple[Any, Any]:
        return torch.tanh(x @ self.weight + self.bias), carried + x


class OverlappedLayer(Layer):
    """Likewise, with DeepSeek's protocol."""

    pairs = 0

    @classmethod
    def overlapped_forward_backward(
        cls, module0, inputs0, criterion0, labels0, module1, loss1, outputs1, output_grads1
    ):
        assert isinstance(module0, cls) and isinstance(module1, cls)
        cls.pairs += 1
        return overlapped(module0, inputs0, criterion0, labels0, module1, loss1, outputs1, output_grads1)


def overlapped(module0, inputs0, criterion0, labels0, module1, loss1, outputs1, output_grads1):
    """As the protocol wants it: the backward first, to tell it from forward, then backward."""
    if loss1 is not None:
        assert outputs1 == [] and output_grads1 == []
        loss1.backward()
        loss1.detach_()
    else:
        torch.autograd.backward(outputs1, output_grads1)
    outputs0 = module0(*inputs0)
    return outputs0, criterion0(*outputs0, *labels0) if criterion0 else None


def loss_of(output: Any, target: Any) -> Any:
    return torch.nn.functional.mse_loss(output[0] + output[1], target)


def data(microbatches: int) -> tuple[Any, Any, Any]:
    generator = torch.Generator().manual_seed(17)
    return tuple(torch.randn(2 * microbatches, WIDTH, generator=generator, dtype=torch.float64) for _ in range(3))


def serial(stages: int, microbatches: int, scale: float) -> tuple[list[float], list[Any], list[Any]]:
    """The losses, outputs, and the gradients of each stage, each micro-batch through all stages after the other."""
    layers = [Layer(stage) for stage in range(stages)]
    losses, outputs = [], []
    for *x, target in zip(*(tensor.chunk(microbatches) for tensor in data(microbatches))):
        for layer in layers:
            x = layer(*x)
        loss = loss_of(x, target)
        (loss / scale).backward()
        losses.append(loss.item())
        outputs.append([tensor.detach() for tensor in x])
    return losses, [torch.cat(parts) for parts in zip(*outputs)], [grads_of(layer) for layer in layers]


def grads_of(layer: Any) -> list[Any]:
    return [parameter.grad.clone() for parameter in layer.parameters()]


def build(schedule: dualpipe.Schedule, rank: int, layer: type = Layer) -> list[Any]:
    from torch.distributed.pipelining import PipelineStage

    device = torch.device("cpu")
    stages = [PipelineStage(layer(stage), stage, schedule.stages, device) for stage in stages_of(schedule, rank)]
    for stage in stages:
        if hasattr(stage, "_get_init_p2p_neighbors_ops"):
            stage._get_init_p2p_neighbors_ops = list  # none: up to torch 2.14 it sends to itself, which gloo cannot
    return stages


def torch_runtime(schedule: dualpipe.Schedule, stages: list[Any]) -> Any:
    """The runtime that torch itself has."""
    from torch.distributed.pipelining.schedules import PipelineScheduleMulti, _PipelineScheduleRuntime

    options = {
        "stage_index_to_group_rank": {stage: schedule.rank_of(stage) for stage in range(schedule.stages)},  # torch 2.6
        "scale_grads": False,  # up to torch 2.9 those of a stage that ends with a W are not scaled
    }
    known = inspect.signature(PipelineScheduleMulti.__init__).parameters
    taken = {name: value for name, value in options.items() if name in known}
    return _PipelineScheduleRuntime(stages, schedule.microbatches, loss_of, **taken)


def step(schedule: dualpipe.Schedule, runtime: Any, how: str = "step") -> dict[str, Any]:
    """What a step gives on this rank."""
    *x, target = data(schedule.microbatches)
    stages = {stage.stage_index: stage for stage in runtime._stages}
    losses: list[Any] = []
    inputs, targets = x if 0 in stages else (), target if schedule.stages - 1 in stages else None
    for stage in stages.values():
        stage.submod.zero_grad()
    output = getattr(runtime, how)(*inputs, target=targets, losses=losses)
    return {
        "losses": [loss.item() for loss in losses],
        "output": [tensor.detach() for tensor in output] if output is not None else None,
        "grads": {index: grads_of(stage.submod) for index, stage in stages.items()} if how == "step" else {},
    }


def check_against_serial(schedule: dualpipe.Schedule, results: list[dict[str, Any]], scale_grads: bool = True) -> None:
    scale = schedule.microbatches if scale_grads else 1
    losses, outputs, grads = serial(schedule.stages, schedule.microbatches, scale)
    last = schedule.rank_of(schedule.stages - 1)
    close = {"rtol": 1e-12, "atol": 1e-12}
    for rank, result in enumerate(results):
        assert result["losses"] == pytest.approx(losses if rank == last else [], rel=1e-12)
        if rank == last:
            torch.testing.assert_close(result["output"], outputs, **close)
        else:
            assert result["output"] is None
        for stage, grad in result["grads"].items():
            assert schedule.rank_of(stage) == rank
            torch.testing.assert_close(grad, grads[stage], **close)


# The CSV


def actions(row: str) -> list[str]:
    """The cells of a row, pairs as their two."""
    return [part for cell in row.split(",") for part in cell.replace(")OVERLAP_F_B", "").lstrip("(").split(";")]


def test_a_cell_is_an_op_of_the_schedule() -> None:
    text = schedule_csv(dualpipe.Schedule("dualpipe_v", 2, 4))
    pairs = "(0F3;3B1)OVERLAP_F_B,(3F2;0B0)OVERLAP_F_B,3B2,(3F3;0B1)OVERLAP_F_B"
    assert text.splitlines()[0] == f"0F0,0F1,0F2,3F0,3I0,3W0,3F1,{pairs},3B3,0I2,0W2,0I3,0W3"
    assert schedule_csv(dualpipe.Schedule("1f1b", 2, 2)) == "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n"


@pytest.mark.parametrize("version", ["2.6.0", "2.8.0+cu128", "2.9.1", "2.10.0", "2.14.0", "2.15.0a0+git1"])
def test_a_version_gets_the_cells_it_knows(version: str) -> None:
    minor = int(version.split(".")[1])
    schedule = dualpipe.Schedule("dualpipe_v", 4, 9)
    compute, comms = (schedule_csv(schedule, version, format) for format in FORMATS)
    assert ("OVERLAP_F_B" in compute) == (minor >= 9)
    assert ("OVERLAP_F_B" in comms) == (minor >= 10)
    assert ("REDUCE_GRAD" in comms) == (minor >= 10)
    assert ("WAIT_" in comms) == (minor >= 15)
    assert not re.search("SEND|RECV|UNSHARD|REDUCE", compute)
    for row, lowered in zip(compute.splitlines(), comms.splitlines()):
        assert actions(row) == [cell for cell in actions(lowered) if re.fullmatch(r"\d+[FBIW]\d+", cell)]
        ready, sent = set(), set()
        for cell in actions(lowered):
            assert cell not in sent, "once each"
            sent.add(cell)
            if wait := re.fullmatch(r"(\d+)WAIT_(\w+)", cell):
                assert wait.expand(r"\1\2") in sent
            if received := re.fullmatch(r"(\d+)RECV_([FB])(\d+)", cell):
                ready.add(received.groups())
        needed = {("F", schedule.stages, -1, 0), ("[BI]", schedule.stages, 1, schedule.stages - 1)}
        for kind, _, towards, end in needed:
            for cell in actions(row):
                if found := re.fullmatch(rf"(\d+){kind}(\d+)", cell):
                    stage = int(found[1])
                    remote = stage != end and schedule.rank_of(stage + towards) != schedule.rank_of(stage)
                    assert ((found[1], kind.strip("[I]"), found[2]) in ready) == remote


@pytest.mark.parametrize("kind", ["dualpipe_v", "1f1b"])
@pytest.mark.parametrize("ranks_of_pipeline", [1, 2, 3, 8])
def test_messages_are_put_in_as_torch_does(kind: str, ranks_of_pipeline: int, tmp_path: Path) -> None:
    schedule = dualpipe.Schedule(kind, ranks_of_pipeline, 2 * ranks_of_pipeline + 3)
    stage = SimpleNamespace(num_stages=schedule.stages, group_size=schedule.ranks, group_rank=0, submod=None)
    runtime = torch_runtime(schedule, [stage])
    path = tmp_path / "schedule.csv"
    path.write_text(schedule_csv(schedule, torch.__version__))
    runtime._load_csv(str(path))
    runtime._dump_csv(str(path))
    assert path.read_text().replace("\r", "") == schedule_csv(schedule, torch.__version__, "compute_comms")
    assert stage.stage_index_to_group_rank == {i: schedule.rank_of(i) for i in range(schedule.stages)}


def test_what_torch_cannot_run_is_refused() -> None:
    v = dualpipe.Schedule("dualpipe_v", 2, 4)
    for arguments, text in [
        ((dualpipe.Schedule("dualpipe", 4, 8),), "of two directions: each stage is on two ranks.*'dualpipe_v'"),
        ((dualpipe.Schedule("1f1b", 2, 4, forward_only=True),), r"forward_only.*eval\(\)"),
        ((v, (2, 5)), r"torch_version is \(2, 5\), must be at least 2.6"),
        ((v, "two"), "torch_version is 'two', must be like"),
        ((v, (2, 16), "compute_comms"), "must be at most 2.15"),
        ((v, (2, 15), "comms"), "format is 'comms', must be one of 'compute_only', 'compute_comms'"),
    ]:
        with pytest.raises(dualpipe.InvalidArgument, match=text):
            schedule_csv(*arguments)
    assert schedule_csv(v, (3, 0)) == schedule_csv(v)
    late = SimpleNamespace(
        ranks=1, stages=1, directions=1, microbatches=2, forward_only=False,
        rank_of=lambda stage: 0, copies=lambda rank: [(0, 0)],
        order=lambda rank: [("F", 0, 1), ("F", 0, 0), ("B", 0, 1), ("B", 0, 0)],
    )  # fmt: skip
    with pytest.raises(dualpipe.InvalidArgument, match=r"stage 0 in the order \[1, 0\]"):
        schedule_csv(late)
    with pytest.raises(dualpipe.InvalidArgument, match="rank is 2, must be 0 to 1"):
        stages_of(v, 2)
    assert [stages_of(v, rank) for rank in range(2)] == [[0, 3], [1, 2]]


# The runtimes


def run_csv(rank: int, cases: list[tuple[str, int]], ranks_of_pipeline: int) -> list[Any]:
    results = []
    for kind, microbatches in cases:
        schedule = dualpipe.Schedule(kind, ranks_of_pipeline, microbatches)
        for format in FORMATS:
            runtime = torch_runtime(schedule, build(schedule, rank))
            with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
                file.write(schedule_csv(schedule, torch.__version__, format))
                file.flush()
                runtime._load_csv(file.name, format)
            results.append(step(schedule, runtime))
    return results


@pytest.mark.parametrize("count", list(CASES))
def test_torch_runs_the_csv(ranks: Any, count: int) -> None:
    results = iter(zip(*ranks.run(count, run_csv, CASES[count], count)))
    for kind, microbatches in CASES[count]:
        for _ in FORMATS:
            check_against_serial(dualpipe.Schedule(kind, count, microbatches), next(results), scale_grads=False)


def run_runtime(rank: int, cases: list[tuple[str, int]], ranks_of_pipeline: int, function: bool) -> list[Any]:
    from dualpipe.torch.pipelining import PipelineRuntime

    results = []
    for kind, microbatches in cases:
        schedule = dualpipe.Schedule(kind, ranks_of_pipeline, microbatches)
        OverlappedLayer.pairs = 0
        calls: list[Any] = []

        def counted(*arguments: Any, calls: list[Any] = calls) -> Any:
            calls.append(arguments)
            return overlapped(*arguments)

        runtime = PipelineRuntime(
            schedule,
            build(schedule, rank, Layer if function else OverlappedLayer)[::-1],
            microbatches,
            loss_of,
            scale_grads=not function,
            overlapped_forward_backward=counted if function else None,
        )
        with torch.no_grad():
            evaluated = step(schedule, runtime, "eval")
        steps = [step(schedule, runtime) for _ in range(2)]
        results.append((steps, evaluated, step(schedule, runtime, "eval"), len(calls), OverlappedLayer.pairs))
    return results


@needs_runtime
@pytest.mark.parametrize("function", [False, True], ids=["method", "function"])
@pytest.mark.parametrize("count", list(CASES))
def test_the_runtime_runs_pairs_by_their_function(ranks: Any, count: int, function: bool) -> None:
    results = ranks.run(count, run_runtime, CASES[count], count, function)
    for (kind, microbatches), case in zip(CASES[count], zip(*results)):
        schedule = dualpipe.Schedule(kind, count, microbatches)
        for i in range(2):
            check_against_serial(schedule, [steps[i] for steps, *_ in case], scale_grads=not function)
        check_against_serial(schedule, [before for _, before, *_ in case])
        check_against_serial(schedule, [after for _, _, after, *_ in case])
        for rank, (*_, calls, pairs) in enumerate(case):
            planned = 2 * sum(op[0] == "FB" for op in schedule.order(rank))
            assert (calls, pairs) == ((planned, 0) if function else (0, planned))
    assert function or sum(pairs for case in results for *_, pairs in case) > 0


def run_plain(rank: int) -> dict[str, Any]:
    from dualpipe.torch.pipelining import PipelineRuntime

    schedule = dualpipe.Schedule("dualpipe_v", 2, 4)
    classes = iter((OverlappedLayer, Layer))
    runtime = PipelineRuntime(schedule, build(schedule, rank, lambda stage: next(classes)(stage)), loss_fn=loss_of)
    result = step(schedule, runtime)
    assert OverlappedLayer.pairs == 0 or rank, "modules of two classes are not overlapped by one of them"
    return result


@needs_runtime
def test_pairs_of_two_classes_run_one_after_the_other(ranks: Any) -> None:
    check_against_serial(dualpipe.Schedule("dualpipe_v", 2, 4), ranks.run(2, run_plain))


def run_errors(rank: int) -> list[str]:
    from dualpipe.torch import pipelining
    from dualpipe.torch.pipelining import PipelineRuntime

    v, linear = dualpipe.Schedule("dualpipe_v", 2, 4), dualpipe.Schedule("1f1b", 2, 4)
    stages, whole = build(v, rank), dualpipe.Schedule("dualpipe_v", 4, 8)
    hooked = build(v, rank, OverlappedLayer)
    texts = []

    def refused(*arguments: Any, **options: Any) -> None:
        try:
            PipelineRuntime(*arguments, **options)
        except (dualpipe.Error, TypeError) as error:
            texts.append(f"{type(error).__name__}: {error}")

    refused(dualpipe.Schedule("dualpipe", 2, 4), stages)
    refused("dualpipe_v", stages)
    refused(v, stages, n_microbatches=5)
    refused(v, stages[:1])
    refused(v, [])
    refused(v, stages[0])
    refused(linear, stages)
    refused(whole, build(whole, rank))
    stages[0].submod = torch.compile(stages[0].submod, backend="eager")
    refused(v, stages)
    stages[0].submod = torch.nn.parallel.DistributedDataParallel(Layer(0))
    refused(v, stages)
    runtime = PipelineRuntime(v, hooked, loss_fn=loss_of)
    try:
        runtime.step(*(data(4)[:2] if rank == 0 else ()), target=data(4)[2], mask=torch.ones(4))
    except dualpipe.InvalidArgument as error:
        texts.append(f"{type(error).__name__}: {error}")
    hooked[1].__class__ = type("Own", (type(hooked[1]),), {"backward_maybe_with_nosync": refused})
    hooked[1].__class__.backward_maybe_with_nosync = eval("lambda self, *rest: None", {})
    refused(v, hooked)
    real = torch.__version__
    torch.__version__ = "2.9.1"
    refused(v, stages)
    torch.__version__ = real
    saved = pipelining.torch_schedules._wait_batch_p2p
    del pipelining.torch_schedules._wait_batch_p2p
    refused(v, stages)
    pipelining.torch_schedules._wait_batch_p2p = saved
    return texts


@needs_runtime
def test_what_does_not_fit_is_refused_before_anything_runs(ranks: Any) -> None:
    for rank, texts in enumerate(ranks.run(2, run_errors)):
        held = [[0, 3], [1, 2]][rank]
        expected = [
            "InvalidArgument: schedule is 'dualpipe', of two directions.*'dualpipe_v'",
            "TypeError: schedule is 'dualpipe_v', must be dualpipe.Schedule",
            "InvalidArgument: n_microbatches is 5, must be 4, that of the schedule",
            rf"InvalidArgument: stages of rank {rank} are \[{held[0]}\], must be \[{held[0]}, {held[1]}\]",
            "InvalidArgument: stages is empty",
            "TypeError: stages is .*, must be a list",
            f"InvalidArgument: stage {held[0]} is one of 4 stages, must be of 2",
            "InvalidArgument: stage .* has a group of 2 ranks, must be of 4",
            "InvalidArgument: stage .* has modules of torch.compile",
            "InvalidArgument: stage .* is in DistributedDataParallel",
            "InvalidArgument: mask is given by keyword",
            "InvalidArgument: stage .* is a Own, whose backward_maybe_with_nosync is not torch's",
            "Unavailable: torch is 2.9.1, must be at least 2.10",
            "Unavailable: torch is .* has no _wait_batch_p2p",
        ]
        assert len(texts) == len(expected), texts
        for pattern, text in zip(expected, texts):
            assert re.match(pattern, text), text


@pytest.mark.skipif(VERSION >= (2, 10), reason=f"torch {torch.__version__} has what the runtime needs")
def test_an_old_torch_is_refused() -> None:
    from dualpipe.torch.pipelining import PipelineRuntime

    with pytest.raises(dualpipe.Unavailable, match=r"must be at least 2\.10.*schedule_csv"):
        PipelineRuntime(dualpipe.Schedule("1f1b", 2, 4), [])
