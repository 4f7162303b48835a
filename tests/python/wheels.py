"""The policy files of vLLM and SGLang, out of their wheels: real files, without the rest of the engines.

:func:`files` has pip download a wheel (336 MB vLLM's, 39 MB SGLang's), and keeps the few files that are needed in the
folder target/engines, so that this happens once. :func:`vllm` and :func:`sglang` make them importable. Also used by
examples/serving.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import fnmatch
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import types
import typing
import zipfile
from collections.abc import Iterator
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / "target" / "engines"

VERSIONS = {
    "vllm": os.environ.get("DUALPIPE_TEST_VLLM", "0.33.0"),
    "sglang": os.environ.get("DUALPIPE_TEST_SGLANG", "0.5.23"),
}
"""What the plug-ins are written after; another release is tested by setting its number."""

NEEDED = {
    "vllm": (
        "vllm/envs.py",
        "vllm/config/parallel.py",
        "vllm/distributed/eplb/__init__.py",
        "vllm/distributed/eplb/policy/*.py",
        "vllm/plugins/__init__.py",
        "*.dist-info/METADATA",
    ),
    "sglang": (
        "sglang/srt/environ.py",
        "sglang/srt/eplb/expert_location.py",
        "sglang/srt/eplb/eplb_algorithms/*.py",
        "sglang/srt/plugins/*.py",
        "*.dist-info/METADATA",
    ),
}


class Unavailable(Exception):
    """The wheel cannot be had; the text says why."""


def files(engine: str, download: bool = True) -> Path:
    """The folder with an engine's files. Raises :class:`Unavailable`."""
    folder = CACHE / f"{engine}-{VERSIONS[engine]}"
    if folder.is_dir():
        return folder
    wheel = f"{engine}=={VERSIONS[engine]}"
    if not download:
        raise Unavailable(f"{wheel} is not in target/engines")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        pip += ["--no-cache-dir", "--only-binary", ":all:", "--retries", "1", "--dest", scratch, wheel]
        try:
            run = subprocess.run(pip, check=False, capture_output=True, text=True, timeout=240)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"pip could not download {wheel} within 240 s") from None
        if run.returncode:
            lines = [line for line in run.stderr.splitlines() if line.strip()] or ["it says nothing"]
            raise Unavailable(f"pip cannot download {wheel}: {lines[-1]}")
        (archive,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(archive) as packed:
            names = [name for name in packed.namelist() if any(fnmatch.fnmatch(name, p) for p in NEEDED[engine])]
            packed.extractall(Path(scratch) / "files", names)
        with contextlib.suppress(FileExistsError):
            os.rename(Path(scratch) / "files", folder)
    return folder


@contextlib.contextmanager
def vllm(download: bool = True) -> Iterator[Path]:
    """``vllm.distributed.eplb.policy`` and ``vllm.plugins`` are vLLM's inside. Of vllm.config.parallel, which needs all
    of vLLM, they get the one name that they import, with the value that the file gives it."""
    folder = files("vllm", download)
    config = types.ModuleType("vllm.config.parallel")
    config.__dict__["EPLBPolicyOption"] = _value_of("EPLBPolicyOption", folder / "vllm" / "config" / "parallel.py")
    with importable(folder, "vllm"):
        sys.modules[config.__name__] = config
        yield folder


@contextlib.contextmanager
def sglang(download: bool = True) -> Iterator[Path]:
    """``sglang.srt.eplb.eplb_algorithms``, ``sglang.srt.plugins`` and ``sglang.srt.environ`` are SGLang's inside."""
    folder = files("sglang", download)
    with importable(folder, "sglang"):
        yield folder


@functools.cache
def plugins() -> Path:
    """A folder that dualpipe-vllm and dualpipe-sglang are built and installed into, until the process ends."""
    bindings = CACHE.parents[1] / "bindings"
    folder = Path(tempfile.mkdtemp(prefix="dualpipe-plugins-"))
    atexit.register(shutil.rmtree, folder)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    if importlib.util.find_spec("hatchling"):
        pip += ["--no-build-isolation"]
    pip += ["--target", str(folder), str(bindings / "vllm"), str(bindings / "sglang")]
    subprocess.run(pip, check=True)
    return folder


@contextlib.contextmanager
def importable(folder: Path, *packages: str) -> Iterator[None]:
    """The packages come from the folder, afresh; afterwards they are as if never imported."""
    sys.path.insert(0, str(folder))
    forget(*packages)
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        forget(*packages)


def forget(*packages: str) -> None:
    """The next import of these packages is the first."""
    for name in list(sys.modules):
        if name.split(".")[0] in packages:
            del sys.modules[name]


def _value_of(name: str, source: Path) -> object:
    """What a module assigns to a name as a ``Literal``."""
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            return eval(ast.unparse(node.value), {"Literal": typing.Literal})
    raise Unavailable(f"{source} has no {name}")
