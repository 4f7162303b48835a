"""CUDA from Python: without a driver clear errors, on the stand-in driver whole steps, in programs of their own."""

import os
import subprocess
import sys
from pathlib import Path

import dualpipe
import pytest

HERE = Path(__file__).parent
SCENES = [
    "plain",
    "stream_ordered",
    "not_done",
    "graph",
    "graph_that_falls_back",
    "overlap",
    "timeline",
    "shapes",
    "nccl",
    "errors",
]


def has_driver():
    try:
        dualpipe.cuda_available()
    except dualpipe.Unavailable:
        return False
    return True


without_driver = pytest.mark.skipif(has_driver(), reason="there is a CUDA driver on this machine")


@pytest.fixture(scope="session")
def standins(root):
    """A folder with the stand-in libcuda.so.1 and libnccl.so.2, as the Rust and C tests have it."""
    folder = root / "target" / "standin"
    for which in ("cuda_standin", "nccl_standin"):
        subprocess.run([root / "tests" / which / "build", folder], check=True)
    return folder


@pytest.mark.parametrize("scene", SCENES)
def test_ranks_on_the_stand_in(scene, standins):
    environment = {**os.environ, "LD_LIBRARY_PATH": str(standins), "PYTHONPATH": str(HERE)}
    environment.pop("DUALPIPE_NCCL_LIB", None)
    command = [sys.executable, "-W", "error", HERE / "cuda_ranks.py", scene]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@without_driver
def test_without_a_driver_everything_says_so():
    words = "libcuda.so.1 was not found: no NVIDIA driver is installed"
    with pytest.raises(dualpipe.Unavailable, match=words) as caught:
        dualpipe.cuda_available()
    assert isinstance(caught.value, dualpipe.Error)
    assert caught.value.status == dualpipe.Unavailable.status == 16
    schedule = dualpipe.Schedule("dualpipe", 2, 4)
    options = {"tensors": [("float32", (4,))], "cuda": dualpipe.Cuda()}
    with dualpipe.Inproc(2) as inproc:
        with pytest.raises(dualpipe.Unavailable, match=words):
            dualpipe.Executor(schedule, 0, inproc=inproc, **options)
        # The rank's place is as free as before.
        dualpipe.Executor(schedule, 0, inproc=inproc, **{**options, "cuda": None}).close()
    with pytest.raises(dualpipe.Unavailable, match=words):
        dualpipe.Executor(schedule, 0, nccl=dualpipe.Nccl(bytes(256)), **options)


def test_options_that_are_wrong_are_found_before_the_driver_is_asked_for():
    schedule = dualpipe.Schedule("dualpipe", 2, 4)
    inproc, cuda, nccl = dualpipe.Inproc(2), dualpipe.Cuda(), dualpipe.Nccl(bytes(256))
    both = dualpipe.Cuda(graph=True, exchange_shapes=True)
    for options, words in [
        ({}, "options has none of inproc, transport and nccl, must have exactly one"),
        ({"cuda": cuda}, "options has none of inproc, transport and nccl"),
        ({"inproc": inproc, "nccl": nccl, "cuda": cuda}, "options has inproc and nccl of inproc, transport and nccl"),
        ({"nccl": nccl}, "options->nccl is given without options->cuda"),
        ({"nccl": dualpipe.Nccl(bytes(256), max_ctas=65), "cuda": cuda}, "max_ctas is 65, must be 0 to 64"),
        ({"inproc": inproc, "cuda": both}, "uses_graph is 1, must be 0 with exchanges_shapes"),
    ]:
        with pytest.raises(dualpipe.InvalidArgument, match=words):
            dualpipe.Executor(schedule, 0, tensors=[], **options)
    with pytest.raises(dualpipe.InvalidArgument, match="device is -1"):
        dualpipe.Cuda(-1)
    with pytest.raises(dualpipe.InvalidArgument, match="max_ctas is -1"):
        dualpipe.Nccl(b"", -1)
    with pytest.raises(TypeError):
        dualpipe.Nccl("text")


def test_streams_are_numbers_or_objects_that_have_one():
    class Torch:
        cuda_stream = 0x1230

    class Cupy:
        ptr = 0x4560

    class Protocol:
        def __cuda_stream__(self):
            return 0, 0x7890

    given = [None, 0, 1, 2, 0xABC0, Torch(), Cupy(), Protocol()]
    want = [None, 1, 1, 2, 0xABC0, 0x1230, 0x4560, 0x7890]
    assert [dualpipe.Cuda(compute_stream=stream).compute_stream for stream in given] == want
    assert [dualpipe.Cuda(comm_stream=stream).comm_stream for stream in given] == want
    for bad in ("stream", -1, 2**64, 1.5, True):
        with pytest.raises(TypeError, match="compute_stream is "):
            dualpipe.Cuda(compute_stream=bad)


def test_on_the_host_a_step_is_done_when_it_returns_and_has_no_streams():
    schedule = dualpipe.Schedule("dualpipe_v", 1, 2)
    streams = set()
    with dualpipe.Executor(schedule, 0, inproc=dualpipe.Inproc(1), tensors=[("float32", (2,))]) as executor:
        executor.step(lambda task: streams.add((task.compute_stream, task.comm_stream)))
        executor.synchronize(0)
        executor.synchronize()
        assert executor.graph == dualpipe.GraphState("off", "")
        with pytest.raises(dualpipe.InvalidArgument, match="timeout is nan"):
            executor.synchronize(float("nan"))
        raised = []

        def run(task):
            for call in (executor.synchronize, lambda: executor.graph):
                with pytest.raises(dualpipe.Busy) as caught:
                    call()
                raised.append(caught.value)

        executor.step(run)
        assert raised
    assert streams == {(None, None)}
    with pytest.raises(dualpipe.InvalidHandle):
        executor.synchronize()
