"""What :mod:`dualpipe.doctor` asks, one question to a process of its own: what crashes or hangs there is a finding.

Run as a program, ``_probes.py NAME PATH``: PATH is the ``sys.path`` to look on, as JSON. The answer is JSON on its
standard output. Nothing but the standard library is imported before a question needs it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Callable

Answer = dict[str, Any]
"""``state`` (ok, absent, broken or unknown), ``found`` (a line), ``facts`` (of JSON's types), and where the usual ones
of :data:`dualpipe.doctor.CHECKS` will not do, ``means`` and ``next``."""

TORCH_MIN, NUMPY_MIN, MEGATRON_MIN = (2, 6), (1, 22), (0, 16)
"""As pyproject.toml has them."""


def library() -> Answer:
    """Loads libdualpipe and has it simulate a schedule."""
    try:
        import dualpipe
        from dualpipe import _library
    except Exception as error:  # noqa: BLE001, whatever it is it is the answer
        return _answer("broken", words(error), next=_repair(error))
    timeline = dualpipe.Schedule("dualpipe", 2, 4).simulate(dualpipe.Costs(f=1, i=1, w=1))
    facts = {
        "path": str(_library.find().resolve()),
        "version": dualpipe.version,
        "abi": ".".join(map(str, _library.ABI)),
        "package": str(Path(dualpipe.__file__).parent),
        "makespan": timeline.makespan,
    }
    if not 0 < (timeline.lower_bound or 0) <= timeline.makespan:
        return _answer("broken", f"a step of {timeline.makespan} s is simulated below its lower bound", facts)
    return _answer("ok", f"{facts['version']}, ABI {facts['abi']}: {facts['path']}", facts)


def _repair(error: Exception) -> str:
    named = os.environ.get("DUALPIPE_LIBRARY")
    if isinstance(error, ModuleNotFoundError):
        return f"pip install {error.name}"
    if "GLIBC_" in str(error):
        return f"this system has glibc {platform.libc_ver()[1]}: build the wheel here, from a checkout, with cargo"
    if named:
        return "unset DUALPIPE_LIBRARY, or have it name a libdualpipe.so of this package's version"
    return "install the wheel again, or from a checkout, with cargo: pip install ./bindings/python"


def numpy() -> Answer:
    """Imports numpy."""
    return _module("numpy", "numpy", "numpy", NUMPY_MIN)


def cuda() -> Answer:
    """Asks the library for the driver and its devices."""
    dualpipe = _dualpipe()
    try:
        info = dualpipe.cuda_available()
    except dualpipe.Unavailable as error:
        return _answer("absent", _what_is_missing(error))
    facts = {"devices": info.devices, "driver_version": info.driver_version}
    newest = f"{info.driver_version // 1000}.{info.driver_version % 1000 // 10}"
    return _answer("ok", f"{_count(info.devices, 'device')}, driver for CUDA up to {newest}", facts)


def nccl() -> Answer:
    """Asks the library for NCCL, where torch is not loaded: :func:`torch` asks where it is."""
    try:
        return _nccl()
    except _dualpipe().Unavailable as error:
        return _answer("absent", _what_is_missing(error))


def _nccl() -> Answer:
    number = _dualpipe().nccl_version()
    version = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    path = next((name for name in _mapped_files() if Path(name).name.startswith("libnccl.so")), None)
    return _answer("ok", f"{version}: {path}", {"version": version, "path": path, "needs_torch": False})


def torch() -> Answer:
    """Imports torch, its distributed backends and its pipelining."""
    answer = _module("torch", "torch", "torch", TORCH_MIN)
    if answer["state"] != "ok":
        return answer
    module: Any = sys.modules["torch"]
    facts = answer["facts"]
    facts["cuda"] = module.version.cuda
    facts["devices"] = module.cuda.device_count() if module.version.cuda else 0
    distributed = module.distributed
    facts["backends"] = []
    if distributed.is_available():
        asked = ((name, getattr(distributed, f"is_{name}_available", None)) for name in ("gloo", "nccl", "mpi"))
        facts["backends"] = [name for name, available in asked if available is not None and available()]
    facts["pipelining"] = _pipelining()
    # The library takes the copy that the process has, and looks once: a program has to import torch before that.
    with contextlib.suppress(Exception):
        facts["nccl"] = _nccl()["facts"]
    answer["found"] += f" for CUDA {facts['cuda']}" if facts["cuda"] else " without CUDA"
    answer["found"] += f", {_count(facts['devices'], 'device')}"
    answer["found"] += f"; distributed: {', '.join(facts['backends']) or 'none'}"
    answer["found"] += f"; pipelining: {facts['pipelining']}"
    if not facts["backends"]:
        answer["means"] = "ranks in several processes cannot be joined by torch.distributed"
        answer["next"] = "install a torch that is built with torch.distributed"
    elif facts["pipelining"] != "custom functions":
        answer["means"] = "torch's pipelining runs our schedules from CSV, without overlapped F&B"
        answer["next"] = "for overlapped F&B there: torch 2.10 or newer"
    return answer


def _pipelining() -> str:
    """What torch's pipelining runtime takes: ``custom functions``, ``CSV`` or ``none``."""
    try:
        schedules: Any = importlib.import_module("torch.distributed.pipelining.schedules")
    except Exception:  # noqa: BLE001, a build without torch.distributed has none
        return "none"
    runtime = getattr(schedules, "_PipelineScheduleRuntime", None)
    if runtime is None:
        return "none"
    return "custom functions" if hasattr(runtime, "register_custom_function") else "CSV"


def megatron() -> Answer:
    """Imports what the Megatron plug-in needs of megatron-core."""
    return _module("megatron-core", "megatron.core", "megatron.core.pipeline_parallel.schedules", MEGATRON_MIN)


def vllm() -> Answer:
    """Looks vLLM and its plug-in up. Not imported: that takes longer than all else together."""
    answer = _engine("vllm", "dualpipe-vllm", "vllm.general_plugins")
    chosen = os.environ.get("VLLM_PLUGINS")
    names = answer["facts"]["entry_points"]
    if answer["state"] == "ok" and names and chosen is not None and not set(names) & set(chosen.split(",")):
        answer["means"] = f"vLLM leaves the plug-in out, because VLLM_PLUGINS is {chosen!r}"
        answer["next"] = f"add {names[0]} to VLLM_PLUGINS, or unset it"
    return answer


def sglang() -> Answer:
    """Looks SGLang and its plug-in up."""
    return _engine("sglang", "dualpipe-sglang", "sglang.srt.plugins")


def _engine(engine: str, plugin: str, group: str) -> Answer:
    version, plugin_version = _version(engine), _version(plugin)
    names: list[str] = []
    if plugin_version is not None:
        entries = metadata.distribution(plugin).entry_points
        names = [entry.name for entry in entries if entry.group == group]
    facts = {"version": version, "plugin": plugin_version, "entry_points": names}
    with_plugin = f"{plugin} {plugin_version}" if plugin_version else f"no {plugin}"
    if version is None:
        return _answer("absent", f"not installed, {with_plugin}", facts)
    answer = _answer("ok", f"{version}, {with_plugin}", facts)
    if plugin_version is None:
        answer["means"] = f"{engine} balances experts by its own policy"
        answer["next"] = f"to have it balance by libdualpipe, from a checkout: pip install ./bindings/{engine}"
    elif not names:
        answer["state"] = "broken"
        answer["means"] = f"{plugin} announces nothing under {group}, so {engine} does not load it"
        answer["next"] = f"install {plugin} again, from a checkout: pip install ./bindings/{engine}"
    return answer


def eplb() -> Answer:
    """Which module ``import eplb`` gets."""
    spec = importlib.util.find_spec("eplb")
    if spec is None:
        return _answer("absent", "there is no module of that name")
    origin = str(spec.origin)
    ours = Path(__file__).resolve().parent.parent / "eplb" / "__init__.py"
    facts = {"path": origin, "ours": Path(origin).resolve() == ours}
    if not facts["ours"]:
        return _answer("absent", f"another is found first: {origin}", facts)
    return _answer("ok", f"libdualpipe's: {origin}", facts)


PROBES: dict[str, Callable[[], Answer]] = {
    probe.__name__: probe for probe in (library, numpy, cuda, nccl, torch, megatron, vllm, sglang, eplb)
}
"""By name."""


class Unknown(Exception):
    """The question cannot be asked."""


def _dualpipe() -> Any:
    try:
        return importlib.import_module("dualpipe")
    except Exception:  # noqa: BLE001, it is the answer to another question
        raise Unknown("not asked: the library does not work") from None


def _module(package: str, name: str, needed: str, least: tuple[int, ...]) -> Answer:
    """Imports module ``needed`` of ``package``; its version is that of module ``name``, or the package's."""
    try:
        is_there = importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        return _answer("absent", "not installed")
    try:
        importlib.import_module(needed)
    except Exception as error:  # noqa: BLE001, whatever it is it is the answer
        return _answer("broken", words(error), {"version": _version(package)})
    module = sys.modules[name]
    version = str(getattr(module, "__version__", None) or _version(package) or "unknown")
    facts = {"version": version, "path": str(module.__file__)}
    if _numbers(version) and _numbers(version) < least:
        needs = ".".join(map(str, least))
        answer = _answer("broken", f"{version}, which is older than {needs}", facts)
        answer["next"] = f'pip install "{package}>={needs}"'
        return answer
    return _answer("ok", version, facts)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 15) of "2.15.0+cu130"; () if it does not start like that."""
    parts = version.split(".")[:2]
    return tuple(map(int, parts)) if len(parts) == 2 and all(part.isdigit() for part in parts) else ()


def _mapped_files() -> list[str]:
    """The files that are mapped into this process."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/maps").read_text().splitlines()
        return [fields[5] for fields in (line.split(maxsplit=5) for line in lines) if len(fields) == 6]
    return []


def _answer(state: str, found: str, facts: dict[str, Any] | None = None, **words: str) -> Answer:
    return {"state": state, "found": found, "facts": facts or {}, **words}


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _what_is_missing(error: BaseException) -> str:
    """What the library says, without where it says it."""
    text = str(error)
    for prefix in ("dualpipe_cuda_available: ", "dualpipe_nccl_version: ", "cuda: ", "nccl: "):
        text = text.removeprefix(prefix)
    return text


def words(error: BaseException) -> str:
    """Its type and what it says, on one line."""
    try:
        said = " ".join(str(error).split())
    except Exception:  # noqa: BLE001, an exception that cannot be printed is still one
        said = ""
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _main() -> None:
    # Whatever prints while it is imported shall not get into the answer.
    output = os.dup(1)
    os.dup2(2, 1)
    name, path = sys.argv[-2:]
    sys.path[:] = json.loads(path)
    try:
        answer = PROBES[name]()
    except Unknown as error:
        answer = _answer("unknown", str(error))
    except BaseException as error:  # noqa: BLE001, SystemExit too: it is the answer
        answer = _answer("broken", words(error))
    with open(output, "w", encoding="utf-8") as file:
        json.dump(answer, file)
    # Nor shall what hangs or crashes at exit.
    os._exit(0)


if __name__ == "__main__":
    _main()
