"""Says what is there of libdualpipe and of what it works with, what is missing, and what to do next.

``python -m dualpipe doctor``, or :func:`examine`. Each question is asked in a process of its own, so that an import
that raises, crashes or hangs is a finding like others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

TIMEOUT = 60.0
"""Seconds after which a question is given up, unless the caller says otherwise."""


class Finding(NamedTuple):
    """What was found of one thing."""

    name: str
    """Of what: one of :data:`CHECKS`."""
    state: str
    """``ok``; ``absent``: not there; ``broken``: there and of no use; ``unknown``: it could not be asked."""
    found: str
    """A line: the version and where it is, or what went wrong."""
    means: str
    """A line: what cannot be done; "" if nothing."""
    next: str
    """A line: what to do about it; "" if nothing."""
    facts: dict[str, Any]
    """The same for programs, of JSON's types: versions, paths, numbers."""


class Check(NamedTuple):
    """A thing to look for, with what it means that it is not there, and what to do next."""

    name: str
    title: str
    means: str
    next: str


CHECKS = (
    Check(
        "library",
        "library",
        "nothing of this package works",
        "install the wheel again, or from a checkout, with cargo: pip install ./bindings/python",
    ),
    Check("numpy", "numpy", "nothing of this package works", 'pip install "numpy>=1.22"'),
    Check(
        "cuda",
        "CUDA",
        "executors run on the CPU only; schedules, simulation and expert placement need no device",
        "nothing, unless this machine has an NVIDIA GPU: then install its driver",
    ),
    Check(
        "nccl",
        "NCCL",
        "ranks on several devices cannot be joined by dualpipe.Nccl",
        "install NCCL (torch for CUDA brings it), or set DUALPIPE_NCCL_LIB to the path of its libnccl.so.2",
    ),
    Check(
        "torch",
        "torch",
        "what runs torch modules cannot be used; schedules, executors and expert placement need no torch",
        'pip install "torch>=2.6"',
    ),
    Check(
        "megatron",
        "megatron-core",
        "dualpipe.megatron cannot be used",
        'pip install "torch>=2.6" "megatron-core>=0.16" "packaging>=24.2"',
    ),
    Check("vllm", "vLLM", "there is no vLLM to balance the experts of", "nothing, unless you serve with vLLM"),
    Check("sglang", "SGLang", "there is no SGLang to balance the experts of", "nothing, unless you serve with SGLang"),
    Check(
        "eplb",
        "eplb",
        "`import eplb` is not libdualpipe's; `from dualpipe import eplb` is",
        "to have it: take the other off Python's path; if there is none, install the wheel again",
    ),
)
"""All that is looked for, in the order of the report."""


def examine(timeout: float = TIMEOUT) -> list[Finding]:
    """Looks for everything of :data:`CHECKS`, as this interpreter with its ``sys.path`` would import it.

    Starts a process for each, all at once; what has not answered after ``timeout`` seconds, more than 0, is killed and
    found ``broken``. Raises ValueError for another timeout, OSError if no process can be started. Any thread may call
    it.
    """
    if not timeout > 0:
        raise ValueError(f"timeout is {timeout}, must be more than 0 seconds")
    # Not pipes: those would wait for whoever has inherited their other end.
    with tempfile.TemporaryDirectory() as folder:
        deadline = time.monotonic() + timeout
        probes: list[_Probe] = []
        try:
            for check in CHECKS:
                probes.append(_Probe(check, Path(folder)))
            return _with_torchs_nccl([probe.finding(deadline, timeout) for probe in probes])
        finally:
            for probe in probes:
                probe.kill()


def _with_torchs_nccl(findings: list[Finding]) -> list[Finding]:
    """The findings, where NCCL that is only found once torch is loaded counts as found."""
    facts = next((finding.facts.get("nccl") for finding in findings if finding.name == "torch"), None)
    if facts is None:
        return findings
    torchs = Finding(
        "nccl",
        "ok",
        f"{facts['version']}: {facts['path']}, once torch is loaded",
        "it is found where torch is loaded, which has it",
        "import torch before an executor with NCCL is created, or set DUALPIPE_NCCL_LIB to that path",
        {**facts, "needs_torch": True},
    )
    is_missing = [finding.name == "nccl" and finding.state == "absent" for finding in findings]
    return [torchs if missing else finding for missing, finding in zip(is_missing, findings)]


class _Probe:
    """A process that looks for one thing."""

    def __init__(self, check: Check, folder: Path) -> None:
        self.check = check
        self.stdout, self.stderr = folder / f"{check.name}.out", folder / f"{check.name}.err"
        # As a file it would have this folder on its path, and the modules in it under the wrong names.
        run = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
        program = str(Path(__file__).with_name("_probes.py"))
        with self.stdout.open("wb") as stdout, self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", run, program, check.name, json.dumps(sys.path)],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def finding(self, deadline: float, timeout: float) -> Finding:
        """What it answers; that it does not, if so."""
        try:
            code = self.process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            return self._broken(f"gives no answer within {timeout:g} s")
        try:
            answer = json.loads(self.stdout.read_bytes())
        except ValueError:
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            return self._broken(f"ends the process {how}{self._last_line()}")
        means = next_ = ""
        if answer["state"] in ("absent", "broken"):
            means, next_ = self.check.means, self.check.next
        means, next_ = answer.get("means", means), answer.get("next", next_)
        return Finding(self.check.name, answer["state"], answer["found"], means, next_, answer["facts"])

    def _broken(self, found: str) -> Finding:
        return Finding(self.check.name, "broken", found, self.check.means, self.check.next, {})

    def _last_line(self) -> str:
        lines = self.stderr.read_text("utf-8", "replace").strip().splitlines()
        return f": {lines[-1].strip()}" if lines else ""

    def kill(self) -> None:
        """Ends it with all that it started. One that hangs in a driver may not end; it is not waited for."""
        if self.process.poll() is not None:
            return
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)


def works(findings: Sequence[Finding]) -> bool:
    """Whether the library itself does."""
    return any(finding.name == "library" and finding.state == "ok" for finding in findings)


def as_json(findings: Sequence[Finding]) -> str:
    """For programs: ``ok``, ``python``, ``system``, ``glibc``, and ``findings`` with the fields of :class:`Finding`."""
    report = {"ok": works(findings), **_machine(), "findings": [finding._asdict() for finding in findings]}
    return json.dumps(report, indent=2)


def as_text(findings: Sequence[Finding]) -> str:
    """For people: a line for each thing, and under what is missing what that means and what to do next."""
    machine = _machine()
    lines = [f"dualpipe doctor: Python {machine['python']}, {machine['system']}, glibc {machine['glibc'] or '-'}", ""]
    titles = {check.name: check.title for check in CHECKS}
    for finding in findings:
        lines.append(f"{finding.state:8}{titles[finding.name]:15}{finding.found}")
        for label, text in (("means", finding.means), ("next", finding.next)):
            if text:
                lines.append(f"{'':8}{'':15}{label}: {text}")
    end = "The library works." if works(findings) else "The library does not work: see the first lines."
    return "\n".join([*lines, "", end])


def _machine() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "glibc": platform.libc_ver()[1],
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=TIMEOUT,
        metavar="SECONDS",
        help="give a question up after that long (default: %(default)g)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the report; 0 if the library itself works, else 1."""
    findings = examine(arguments.timeout)
    try:
        print(as_json(findings) if arguments.json else as_text(findings), flush=True)
    except BrokenPipeError:  # say, head has read enough; nor shall the interpreter complain of it at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0 if works(findings) else 1


def run_if_asked() -> None:
    """Runs the command and ends the interpreter if that is what it was started for.

    Called by this package before it loads the library: ``python -m dualpipe doctor`` is for those where that fails.
    """
    # While Python looks for the module that -m names, sys.argv[0] is "-m"; orig_argv is new in 3.10.
    if sys.argv[:2] != ["-m", "doctor"]:
        return
    started_with = list(getattr(sys, "orig_argv", [])) or _command_line()
    if started_with[-len(sys.argv) - 1 :] != ["-m", "dualpipe", *sys.argv[1:]]:
        return
    parser = argparse.ArgumentParser(prog="python -m dualpipe doctor", description=__doc__.splitlines()[0])
    add_arguments(parser)
    sys.exit(run(parser.parse_args(sys.argv[2:])))


def _command_line() -> list[str]:
    try:
        return [os.fsdecode(word) for word in Path("/proc/self/cmdline").read_bytes().split(b"\0")[:-1]]
    except OSError:
        return []


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError(f"is {text!r}, must be a number of seconds, more than 0 and at most 86400")
    return seconds
