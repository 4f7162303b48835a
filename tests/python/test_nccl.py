"""The real NCCL, from its wheel: found by name and in the process, asked for its version and for ids. No device is
needed for that; that one is missing is said when an executor is created."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

# The smallest that has all that is needed: 2.18 or newer.
PACKAGE, VERSION = "nvidia-nccl-cu12==2.19.3", 21903


@pytest.fixture(scope="module")
def nccl(root):
    """The path of libnccl.so.2, kept in target/nccl from one run to the next."""
    folder = root / "target" / "nccl"
    library = folder / "nvidia" / "nccl" / "lib" / "libnccl.so.2"
    if not library.is_file():
        install(folder)
    assert library.is_file(), f"{PACKAGE} has no {library}"
    return library


def install(folder):
    """Puts the wheel's files into a folder, or skips the test. Two may do it at once: nobody sees a half."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch, "made")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--retries", "1", "--target", made, PACKAGE]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"{PACKAGE} could not be had from the package index in 300 s")
        if ended.returncode != 0:
            pytest.skip(f"{PACKAGE} could not be had from the package index: {ended.stderr.strip()[-500:]}")
        shutil.rmtree(folder, ignore_errors=True)
        # Unless another was faster.
        with contextlib.suppress(OSError):
            made.rename(folder)


def python(text, **environment):
    """What a program prints; NCCL of the machine's own is not in its way."""
    base = {name: value for name, value in os.environ.items() if name != "DUALPIPE_NCCL_LIB"}
    base["NCCL_SOCKET_IFNAME"] = "lo"
    base.update(environment)
    command = [sys.executable, "-W", "error", "-c", f"import dualpipe\n{text}"]
    ended = subprocess.run(command, env=base, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


ASK = """
print(dualpipe.nccl_version())
for schedule in (dualpipe.Schedule("dualpipe", 2, 4), dualpipe.Schedule("1f1b", 4, 4)):
    unique_id, other = dualpipe.nccl_unique_id(schedule), dualpipe.nccl_unique_id(schedule)
    links = len(unique_id) // 128
    parts = {part[128 * k : 128 * k + 128] for part in (unique_id, other) for k in range(links)}
    print(type(unique_id).__name__, len(unique_id), len(parts))
"""
WANT = f"{VERSION}\nbytes 256 4\nbytes 768 12\n"


def test_the_library_that_the_environment_names_is_taken(nccl):
    assert python(ASK, DUALPIPE_NCCL_LIB=str(nccl)) == WANT


def test_the_copy_that_the_process_has_is_taken(nccl):
    assert python(f"import ctypes\nctypes.CDLL({str(nccl)!r})\n{ASK}") == WANT


def test_the_copy_on_the_loaders_path_is_taken(nccl):
    assert python(ASK, LD_LIBRARY_PATH=str(nccl.parent)) == WANT


def test_an_executor_needs_a_driver_as_well(nccl):
    text = """
schedule = dualpipe.Schedule("dualpipe", 2, 4)
options = {"nccl": dualpipe.Nccl(dualpipe.nccl_unique_id(schedule)), "cuda": dualpipe.Cuda(), "timeout": 1.0}
try:
    dualpipe.cuda_available()
    print("there is a driver")
except dualpipe.Unavailable:
    try:
        dualpipe.Executor(schedule, 0, tensors=[("float32", (4,))], **options)
    except dualpipe.Unavailable as error:
        print(error)
"""
    said = python(text, DUALPIPE_NCCL_LIB=str(nccl))
    if "there is a driver" in said:
        pytest.skip("there is a CUDA driver on this machine")
    assert said.startswith("dualpipe_executor_create: cuda: libcuda.so.1 was not found: no NVIDIA driver is installed")


def test_what_is_no_nccl_is_said_to_be_none(tmp_path):
    text = """
try:
    dualpipe.nccl_version()
except dualpipe.Unavailable as error:
    print(error)
"""
    said = python(text, DUALPIPE_NCCL_LIB=str(tmp_path / "libnccl.so.2"))
    assert "NCCL was not found" in said
    assert "set DUALPIPE_NCCL_LIB to the path of its libnccl.so.2" in said
    libc = next(Path("/").glob("lib*/**/libc.so.6"), None)
    if libc is not None:
        said = python(text, DUALPIPE_NCCL_LIB=str(libc))
        assert "the NCCL that was found has no ncclGetVersion" in said
