"""The wheel holds the library, and what is tested is what was installed."""

import ctypes
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import dualpipe
import pytest


@pytest.fixture(scope="session")
def wheel(root, tmp_path_factory):
    """The wheel that cargo and pip make, once: it takes a while."""
    folder = tmp_path_factory.mktemp("wheel")
    environment = {name: value for name, value in os.environ.items() if name != "DUALPIPE_LIBRARY"}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder]
    subprocess.run([*command, root / "bindings" / "python"], check=True, env=environment, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_is_for_every_python_3_of_this_platform(wheel):
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name == f"dualpipe-{dualpipe.version}-py3-none-{platform}.whl"
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"dualpipe-{dualpipe.version}.dist-info/WHEEL").decode()
    assert "Root-Is-Purelib: false" in text


def test_the_wheel_has_the_library_and_nothing_of_the_build(wheel, root, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        library = archive.extract("dualpipe/libdualpipe.so", tmp_path)
    sources = {f"dualpipe/{file.name}" for file in (root / "bindings/python/dualpipe").glob("*.py")}
    assert set(names) == sources | {"dualpipe/py.typed", "dualpipe/libdualpipe.so", "dualpipe/LICENSE"}
    assert ctypes.CDLL(library).dualpipe_version() == 100


def test_the_installed_package_is_tested_and_not_the_sources(root):
    assert root / "bindings" not in Path(dualpipe.__file__).resolve().parents


def test_versions_agree(root):
    manifest = (root / "Cargo.toml").read_text()
    crate = re.search(r'^version = "(.*)"', manifest, re.MULTILINE)[1]
    assert crate == dualpipe.version == dualpipe.__version__ == metadata.version("dualpipe")


def test_all_that_is_named_is_there():
    for name in dualpipe.__all__:
        assert getattr(dualpipe, name) is not None


def test_a_library_named_for_the_build_is_taken_as_it_is(root, tmp_path):
    named = tmp_path / "other.so"
    named.write_bytes(b"anything")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path]
    environment = {**os.environ, "DUALPIPE_LIBRARY": str(named)}
    subprocess.run([*command, root / "bindings" / "python"], check=True, env=environment, cwd=tmp_path)
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        assert archive.read("dualpipe/libdualpipe.so") == b"anything"


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_readme_runs(root, monkeypatch, tmp_path):
    """Its blocks, one after the other, as one program."""
    monkeypatch.chdir(tmp_path)
    text = (root / "bindings" / "python" / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    names = {}
    for block in blocks:
        if "weight" in block and "weight" not in names:
            import numpy as np

            names["weight"] = np.random.default_rng(1).random((4, 256))
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102, it is what users run
    assert names["timeline"].makespan == 59.0
    assert (tmp_path / "dualpipe.svg").is_file()
    assert all(names["timelines"])
    assert names["Wire"].network == {}  # all that was sent was received
