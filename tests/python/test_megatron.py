"""Megatron-core's GPTModel on the library's schedules: on gloo, against Megatron's own serial step.

Each case is a step from zeroed gradients, after which each parameter's gradient is compared: a second step would hide a
W that reaches ``main_grad`` one step late.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("megatron") is None or importlib.util.find_spec("megatron.core") is None:
    pytest.skip("megatron-core is not installed", allow_module_level=True)


def run_cases(_: int, *which: tuple[str, int, int]) -> dict[Any, Any]:
    """On a rank, see megatron_cases. Megatron is loaded there only, which takes some seconds."""
    warnings.simplefilter("ignore")
    import megatron_cases

    return megatron_cases.run(*which)


@pytest.fixture(scope="module")
def two(ranks: Any) -> list[dict[Any, Any]]:
    return ranks.run(2, run_cases, ("TWO", 2, 1), wait=150.0)


@pytest.fixture(scope="module")
def four(ranks: Any) -> list[dict[Any, Any]]:
    return ranks.run(4, run_cases, ("FOUR", 4, 1), ("TENSOR_PARALLEL", 2, 2), ("DATA_PARALLEL", 2, 1), wait=150.0)


def expect_serial_gradients(seen: list[dict[str, Any]], pipelines: int = 1) -> None:
    """``seen`` by rank; the ranks of a pipeline are ``pipelines`` apart."""
    for first in range(pipelines):
        own = seen[first::pipelines]
        assert sorted({name for one in own for name in one["names"]}) == sorted(own[0]["all names"])
        assert max(one["error"] for one in own) < 1e-5
        assert [one["losses"] for one in own] == [0] * (len(own) - 1) + [own[-1]["wanted losses"]]
        assert own[-1]["loss error"] < 1e-6
        assert not own[-1]["needs grad"]


GRADIENTS = [
    "fused",
    "delayed, 1F1B",
    "plain",
    "tied, scaled",
    "tied, DDP, per token",
    "DDP overlapped",
    "delayed",
    "delayed, DDP overlapped",
    "1F1B",
]


@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients_and_losses_on_two_ranks_are_the_serial_models(two: Any, case: str) -> None:
    expect_serial_gradients([one["TWO", case] for one in two])


@pytest.mark.parametrize("case", ["plain", "tied, DDP, per token", "DDP", "delayed, fused"])
def test_gradients_and_losses_on_four_ranks_are_the_serial_models(four: Any, case: str) -> None:
    expect_serial_gradients([one["FOUR", case] for one in four])


def test_tensor_parallel_ranks_have_the_serial_models_gradients(four: Any) -> None:
    expect_serial_gradients([one["TENSOR_PARALLEL", "tied, DDP"] for one in four], pipelines=2)


def test_data_parallel_ranks_have_the_serial_models_gradients(four: Any) -> None:
    expect_serial_gradients([one["DATA_PARALLEL", "tied, DDP overlapped"] for one in four], pipelines=2)


def test_w_is_computed_when_the_schedule_says_so(two: Any) -> None:
    for seen in (one["TWO", "w"] for one in two):
        assert seen["computed"] == seen["linears"]
        assert sum(seen["computed"]) > 0


def test_evaluation_gives_losses_and_collected_outputs_on_the_last_rank(two: Any) -> None:
    assert [one["TWO", "forward only"]["counts"] for one in two] == [(0, 0), (2, 2)]
    assert two[1]["TWO", "forward only"]["same"] == [True] * 8
    assert [one["TWO", "forward only"]["grads"] for one in two] == [[], []]


def test_aligned_reductions_start_once_for_each_chunk(two: Any) -> None:
    for seen in (one["TWO", "aligned"] for one in two):
        assert seen["called"] == [0, 0, 1, 1]
        assert seen["error"] < 1e-5


def test_a_schedule_object_runs_its_own_number_of_micro_batches(two: Any) -> None:
    for rank, seen in enumerate(one["TWO", "given"] for one in two):
        assert "num_microbatches is 5, must be 4" in seen["refused"]
        assert seen["error"] < 1e-5
        assert seen["counts"] == ((0, 0), (4, 3))[rank]


REFUSED = {
    "two directions": "one: it keeps every stage twice",
    "a schedule of two directions": "one: it keeps every stage twice",
    "unknown": "schedule is 'gpipe', must be one of 'dualpipe_v', '1f1b'",
    "no schedule": "TypeError: schedule is 4",
    "timeout": "timeout is 0.0",
    "too few": "num_microbatches is 2, must be at least 3 for 'dualpipe_v' on 2 pipeline ranks",
    "shapes": "adjust_tensor_shapes_fn is set, must be None",
    "communicator": "p2p_communicator is given and pg_collection is not",
    "one chunk": "model has 1 chunks, must have 2",
    "swapped": "model[0] was built as stage 3 of 4, must be 0 of 4",
    "iterators": "data_iterator has 1 iterators, must have 2",
    "serial": "model[0] was built for 1 pipeline stages, must be for 4",
    "torch DDP": "model[0] is a DistributedDataParallel",
    "variable_seq_lengths": "pipeline rank 1: config.variable_seq_lengths is True, must be False",
    "overlap_moe_expert_parallel_comm": "config.overlap_moe_expert_parallel_comm is True, must be False",
    "virtual_pipeline_model_parallel_size": "config.virtual_pipeline_model_parallel_size is 2, must be None",
    "defer_embedding_wgrad_compute": "config.defer_embedding_wgrad_compute is True, must be False",
    "cuda_graph_impl": "config.cuda_graph_impl is 'local', must be 'none'",
    "pipeline_dtype": "config.pipeline_dtype is None",
    "no_sync_func": "config.no_sync_func is 1 function(s), must be one for each of 2 model chunks",
    "layers": "config.num_layers is 3, must be divisible by 4",
    "provider": "model_provider_func does not take config, pg_collection",
    "delayed": "ddp_config.delay_wgrad_compute is False, must be True",
    "afterwards": "error True",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_work_is_refused_on_all_ranks(two: Any, what: str) -> None:
    for seen in two:
        assert REFUSED[what] in seen["TWO", "refusals"][what]


def test_a_rank_that_fails_ends_the_step_on_all(two: Any) -> None:
    seen = [one["TWO", "failure"] for one in two]
    assert seen[1]["raised"] == "ValueError: the third micro-batch is bad"
    assert seen[0]["raised"].startswith("PeerFailed: ")
    assert "the third micro-batch is bad" in seen[0]["raised"]
    assert [one["in time"] for one in seen] == [True, True]
    assert [one["left"] for one in seen] == [0, 0]
    assert max(one["error"] for one in seen) < 1e-5


def test_a_rank_that_fails_at_the_end_leaves_no_other_waiting(two: Any) -> None:
    assert two[0]["TWO", "late failure"]["raised"].startswith("MemoryError: no room for W")
    assert two[1]["TWO", "late failure"]["raised"].startswith("Timeout: losses could not be handed over from rank 0")


def test_the_example_trains(root: Path) -> None:
    command = [sys.executable, root / "examples" / "megatron" / "train.py", "--steps", "2", "--microbatches", "3"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert said.returncode == 0, said.stderr
    losses = [float(line.split()[3]) for line in said.stdout.splitlines() if line.startswith("step")]
    assert len(losses) == 2
    assert losses[1] < losses[0] < 6.0
    # gloo writes to stdout too, and not always whole lines.
    assert re.findall(r"rank (\d) computed in", said.stdout) == ["0", "1"]


def test_install_puts_the_function_where_megatron_looks(two: Any) -> None:
    seen = two[0]["TWO", "installed"]
    assert "imported by name in user_of_megatron" in seen.pop("refused")
    assert all(value if isinstance(value, bool) else all(value) for value in seen.values()), seen


def test_chunks_are_placed_as_a_v(two: Any) -> None:
    first, last = (one["TWO", "placed"] for one in two)
    assert first["layers"] == [[1], [4]]
    assert last["layers"] == [[2], [3]]
    assert first["asked"] == [(True, False), (False, True)]
    assert last["asked"] == [(False, False), (False, False)]
    assert (first["ties"], last["ties"]) == (True, None)
    assert first["rank"]
    assert last["rank"]
