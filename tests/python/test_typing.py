"""The package's type hints hold under mypy --strict, and are those that programs need."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import dualpipe
import pytest

PACKAGES = Path(dualpipe.__file__).parent.parent

RIGHT = """
from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import dualpipe
import eplb
import numpy as np
import numpy.typing as npt
from dualpipe import doctor
from dualpipe.torch.schedule_csv import read_schedule_csv, schedule_csv
from typing_extensions import assert_type


class Wire(dualpipe.Transport):
    def send(self, transfer: dualpipe.Transfer) -> Any:
        assert_type(transfer.peer, int)
        assert_type(transfer.kind, str)
        return transfer.num_bytes

    def receive(self, transfer: dualpipe.Transfer) -> Any:
        return transfer

    def test(self, request: Any) -> int | None:
        return None

    def withdraw(self) -> None:
        pass


class Pool(dualpipe.Memory):
    def allocate(self, num_bytes: int) -> Any:
        return np.empty(num_bytes, np.uint8)


def run(task: dualpipe.Task) -> None:
    assert_type(task.kind, str)
    if task.forward is not None:
        assert_type(task.forward, dualpipe.Pass)
        task.forward.set_output(0, task.forward.inputs[0])


def enqueue(part: str, block: int, stream: int) -> None:
    print(part, block, stream)


schedule = dualpipe.Schedule("dualpipe", ranks=2, microbatches=4)
assert_type(schedule.order(0), list[tuple[Any, ...]])
assert_type(schedule.rank_of(1, direction=1), int)
assert_type(schedule.placement, list[list[int]])
orders = [[("F", 0, 0), ("B", 0, 0)]]
assert_type(dualpipe.Schedule.from_orders(orders, placement=[0], microbatches=1), dualpipe.Schedule)
dualpipe.Schedule.from_orders([schedule.order(0)], placement=schedule.placement, microbatches=4, name="mine")
assert_type(dualpipe.Schedule.from_text("0| 0F0 0B0").name, str)
assert_type(read_schedule_csv(Path("a.csv"), (2, 10), "compute_comms", name="mine"), dualpipe.Schedule)
assert_type(schedule_csv(read_schedule_csv("0F0,0B0"), "2.10.0"), str)
dualpipe.Costs(f=1, i=1, w=1, pairs={(0, 1): 2.5})
unit = dualpipe.Costs(f=1, i=1, w=1)
planned = dualpipe.plan(ranks=2, microbatches=3, costs=unit, placement=[[0, 1], [1, 0]], cap=[3, 3])
assert_type(planned, dualpipe.Plan)
assert_type(planned.schedule, dualpipe.Schedule)
assert_type(planned.peak_live, npt.NDArray[np.int64])
assert_type(planned.sampled, Optional[dualpipe.Sampled])
dualpipe.plan(
    ranks=2,
    microbatches=3,
    costs=unit,
    placement="v",
    cap_bytes=1 << 30,
    spread=dualpipe.Spread(0.1),
    progress=print,
)
assert_type(schedule.check(), npt.NDArray[np.int64])
assert_type(schedule.program(0).instructions(), list[dualpipe.Instruction])
timeline = schedule.simulate(dualpipe.Costs(f=1, i=[1.0, 2.0], w=(1.0, 2.0), fb=2.5, latency=1e-6))
assert_type(timeline, dualpipe.Timeline)
assert_type(timeline.lower_bound, Optional[float])
assert_type(dualpipe.Timeline.merge([timeline]).svg("step.svg"), str)
inproc = dualpipe.Inproc(2)
with dualpipe.Executor(schedule, 0, inproc=inproc, tensors=[("float32", (4, 8))], timeout=30) as executor:
    assert_type(executor, dualpipe.Executor)
    executor.step(run)
    assert_type(executor.timeline(), dualpipe.Timeline)
    assert_type(executor.fault, Optional[dualpipe.Fault])
dualpipe.Executor(schedule, 0, transport=Wire(), memory=Pool(), tensors=[(np.float32, [4, 8])])
nccl = dualpipe.Nccl(dualpipe.nccl_unique_id(schedule), zero_cta=True)
dualpipe.Executor(schedule, 0, nccl=nccl, cuda=dualpipe.Cuda(0), tensors=[("bfloat16", (4, 8))])
assert_type(dualpipe.cuda_available().devices, int)
assert_type(executor.graph.reason, str)
cluster = dualpipe.eplb.Cluster(num_gpus=2, num_slots=4, dead=[0])
with dualpipe.eplb.balance([[1.0, 2.0]], cluster=cluster, groups=0.5, reach=1.01, current=[[0, 1, 0, 1]]) as plan:
    assert_type(plan, dualpipe.eplb.Plan)
    assert_type(plan.moves, Optional[dualpipe.eplb.Moves])
    assert_type(dualpipe.eplb.move_curve([[1, 2]], plan, plan.cluster)[0].moves, npt.NDArray[np.int64])
phy2log, log2phy, logcnt = eplb.rebalance_experts(np.ones((1, 2)), 4, num_groups=1, num_nodes=1, num_gpus=2)
assert_type(phy2log, Any)
router = dualpipe.eplb.Router([[0, 1, 1, 2]], dualpipe.eplb.Cluster(num_gpus=2, num_slots=4))
routing = router.route(0, [1, 2, 3], tile=16)
assert_type(routing, dualpipe.eplb.Routing)
assert_type(routing.heaviest, int)
assert_type(router.slots(0, np.zeros((2, 2), np.int32), routing.quotas), Any)
two_gpus = dualpipe.eplb.Cluster(num_gpus=2, num_slots=4)
with dualpipe.eplb.transfers(phy2log, phy2log, two_gpus, tensor_bytes=[8]) as transfers:
    assert_type(transfers, dualpipe.eplb.Transfers)
    assert_type(transfers.for_gpu(0)[0].round, int)
    assert_type(transfers.bytes.other_node, int)
assert_type(doctor.examine()[0].facts, dict[str, Any])
dualpipe.set_log(lambda level, text: print(level, text))
dualpipe.set_progress(None)
try:
    schedule.close()
except dualpipe.InvalidArgument as error:
    assert_type(error.status, int)
except ValueError:
    pass
"""

WRONG = """
import dualpipe
import eplb
from typing_extensions import assert_type

schedule = dualpipe.Schedule("dualpipe", ranks="2", microbatches=4)  # [arg-type]
schedule.ranks = 3  # [misc]
assert_type(schedule.ranks, str)  # [assert-type]
schedule.orders(0)  # [attr-defined]
makespan: str = schedule.simulate(dualpipe.Costs(f=1, i=1, w=1)).makespan  # [assignment]
bound: float = schedule.simulate(dualpipe.Costs(f=1, i=1, w=1)).lower_bound  # [assignment]
dualpipe.Costs(f=1, i=1, w=1, speed=2)  # [call-arg]
dualpipe.Schedule.from_orders([[("F", 0, 0)]], microbatches=1)  # [call-arg]
dualpipe.Executor(schedule, 0, tensors=[("float32", (4, 8))], timeout="30")  # [arg-type]
dualpipe.Executor(schedule, 0, tensors=[]).step(len)  # [arg-type]
dualpipe.Timeline.merge(dualpipe.Inproc(2))  # [arg-type]
eplb.rebalance_experts([[1.0]], 2, 1, 1)  # [call-arg]
dualpipe.eplb.balance([[1.0]], 2)  # [call-arg]
dualpipe.eplb.Cluster(num_gpus="2", num_slots=4)  # [arg-type]
dualpipe.set_log(print, 1)  # [call-arg]


class Wire(dualpipe.Transport):
    def send(self, transfer: int) -> int:  # [override]
        return transfer
"""


def modules(has_torch: bool) -> list[str]:
    """What is installed; without what imports torch where torch is not."""
    names = []
    for package in ("dualpipe", "eplb"):
        for file in sorted((PACKAGES / package).rglob("*.py")):
            if has_torch or not re.search(r"^ *(import|from) (torch|megatron)\b", file.read_text(), re.MULTILINE):
                parts = file.relative_to(PACKAGES).with_suffix("").parts
                names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


@pytest.fixture(scope="module")
def said(root):
    """What mypy says of the package and of two programs, in one run: ``{file: [(line, severity, text)]}``."""
    pytest.importorskip("mypy")
    # Always the same: mypy's cache has the paths of the last time.
    folder = root / "target" / "typing"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "right.py").write_text(RIGHT)
    (folder / "wrong.py").write_text(WRONG)
    has_torch = importlib.util.find_spec("torch") is not None
    command = [sys.executable, "-m", "mypy", "--strict", "--no-color-output", "--no-error-summary", "--no-pretty"]
    command += ["--show-absolute-path", f"--config-file={root / 'bindings' / 'python' / 'pyproject.toml'}"]
    command += [f"--cache-dir={folder / 'cache'}"]
    for module in ("right", "wrong", *modules(has_torch)):
        command += ["-m", module]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    lines: dict[str, list[tuple[int, str, str]]] = {"right": [], "wrong": [], "package": []}
    for line in ended.stdout.splitlines():
        parts = re.fullmatch(r"(.*?)(?::(\d+))?: (error|note): (.*)", line)
        assert parts, ended.stdout + ended.stderr
        path = Path(parts[1])
        name = path.stem if path.parent == folder else "package"
        assert name != "package" or PACKAGES in path.parents, line
        text = parts[4] if name != "package" else f"{path}:{parts[2]}: {parts[4]}"
        lines[name].append((int(parts[2] or 0), parts[3], text))
    assert ended.stderr == ""
    return lines


def test_the_package_is_typed(said):
    assert [text for _, severity, text in said["package"] if severity == "error"] == []
    for package in ("dualpipe", "eplb"):
        assert (PACKAGES / package / "py.typed").is_file()


def test_programs_get_the_types_that_they_need(said):
    assert said["right"] == []


def test_a_wrong_program_is_refused(said):
    comments = {number: line.partition("  # ")[2] for number, line in enumerate(WRONG.splitlines(), 1)}
    found: dict[int, list[str]] = {}
    for number, severity, text in said["wrong"]:
        if severity == "error":
            found.setdefault(number, []).append(re.search(r"\[[\w-]+\]$", text)[0])
    assert {number: sorted(set(codes)) for number, codes in found.items()} == {
        number: [code] for number, code in comments.items() if code
    }
