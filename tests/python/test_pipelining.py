"""Schedules run by our runtime for torch's pipelining, against a serial model."""

from __future__ import annotations

import re
from typing import Any

import dualpipe
import pytest
from dualpipe.torch.schedule_csv import parsed_version

torch = pytest.importorskip("torch")

from torch_stages import Layer, build, check_against_serial, data, loss_of, of, step

VERSION = parsed_version(torch.__version__)
needs_runtime = pytest.mark.skipif(VERSION < (2, 10), reason=f"torch {torch.__version__} has no runtime for pairs")

CASES = {
    2: [("dualpipe_v", 3), ("dualpipe_v", 6), ("1f1b", 1), ("1f1b", 5), ((0, 1, 1, 0), 5)],
    4: [("dualpipe_v", 8), ("1f1b", 6), ("interleaved_overlapped", 4), ((2, 0, 3, 1, 2), 5)],
}
"""Schedules with their micro-batches, by ranks; a placement stands for a random order on it."""


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


def run_runtime(rank: int, cases: list[tuple[Any, int]], ranks_of_pipeline: int, function: bool) -> list[Any]:
    from dualpipe.torch.pipelining import PipelineRuntime

    results = []
    for kind, microbatches in cases:
        schedule = of(kind, ranks_of_pipeline, microbatches)
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
        schedule = of(kind, count, microbatches)
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
            'InvalidArgument: .*schedule is dualpipe, of two directions.*"dualpipe_v"',
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
