"""`python -m dualpipe doctor` finds what is there, and says what is missing, whatever state it is in."""

import json
import os
import platform
import re
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import dualpipe
import pytest
from dualpipe import __main__ as command
from dualpipe import _library, _probes, doctor

FOLDER = Path(dualpipe.__file__).parent


def python_m_dualpipe(*arguments, cwd=None, **environment):
    """What `python -m dualpipe` prints, and its exit code. A variable that is None is not set."""
    environment = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    program = [sys.executable, "-m", "dualpipe", *arguments]
    ended = subprocess.run(program, env=environment, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    return ended.stdout, ended.stderr, ended.returncode


@pytest.fixture
def look(tmp_path, monkeypatch):
    """Looks for one thing, where some modules come first."""

    def look(name, files=None, timeout=doctor.TIMEOUT):
        for file, text in (files or {}).items():
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(doctor, "CHECKS", [check for check in CHECKS if check.name == name])
        (finding,) = doctor.examine(timeout)
        assert finding.name == name
        assert "\n" not in finding.found + finding.means + finding.next
        return finding

    return look


CHECKS = doctor.CHECKS
DEFAULT = {check.name: (check.means, check.next) for check in CHECKS}


@pytest.fixture(scope="module")
def report():
    """Of this environment as it is."""
    said, errors, code = python_m_dualpipe("doctor", "--json")
    assert code == 0, said + errors
    assert errors == ""
    return json.loads(said)


def test_every_thing_is_looked_for(report):
    findings = report["findings"]
    assert [finding["name"] for finding in findings] == [check.name for check in CHECKS] == list(_probes.PROBES)
    assert (report["ok"], report["python"]) == (True, platform.python_version())
    for finding in findings:
        assert list(finding) == list(doctor.Finding._fields)
        assert finding["state"] in ("ok", "absent"), finding
        assert finding["found"]
        if finding["state"] == "absent":
            assert finding["means"] and finding["next"], finding


def test_what_is_found_is_what_is_there(report):
    found = {finding["name"]: finding for finding in report["findings"]}
    assert found["library"]["facts"] == {
        "path": str(_library.find().resolve()),
        "version": dualpipe.version,
        "abi": "0.1",
        "package": str(FOLDER),
        "makespan": found["library"]["facts"]["makespan"],
    }
    for name, module in (("numpy", "numpy"), ("torch", "torch"), ("megatron", "megatron.core")):
        is_there = util.find_spec(module.split(".")[0]) is not None and util.find_spec(module) is not None
        assert found[name]["state"] == ("ok" if is_there else "absent")
        if is_there:
            version = metadata.version("megatron-core" if name == "megatron" else name)
            assert found[name]["facts"]["version"].split("+")[0] == version
    try:
        assert found["cuda"]["facts"] == dualpipe.cuda_available()._asdict()
    except dualpipe.Unavailable as error:
        assert found["cuda"]["state"] == "absent"
        assert found["cuda"]["found"] in str(error)
    if found["torch"]["state"] == "ok":
        assert found["torch"]["facts"]["pipelining"] in ("custom functions", "CSV")
        assert "gloo" in found["torch"]["facts"]["backends"]
    wheels = [name for name in ("nvidia-nccl-cu12", "nvidia-nccl-cu13") if _probes._version(name)]
    if found["torch"]["state"] == "ok" and wheels and "DUALPIPE_NCCL_LIB" not in os.environ:
        facts = found["nccl"]["facts"]
        assert Path(facts["path"]).is_file()
        if facts["needs_torch"]:
            assert facts["version"] == metadata.version(wheels[0])


def test_a_module_that_raises_is_a_finding(look):
    broken = look("torch", {"torch/__init__.py": "print('hello')\nraise RuntimeError('no\\nluck')"})
    assert (broken.state, broken.found) == ("broken", "RuntimeError: no luck")
    assert (broken.means, broken.next) == DEFAULT["torch"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import os; print('last words', flush=True); os._exit(3)", "ends the process with exit code 3: last words"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ends the process by SIGSEGV"),
        ("__version__ = '2.5.1'", "2.5.1, which is older than 2.6"),
    ],
)
def test_so_is_one_that_ends_the_process_or_is_too_old(look, text, found):
    broken = look("torch", {"torch/__init__.py": text})
    assert (broken.state, broken.found, broken.next) == ("broken", found, 'pip install "torch>=2.6"')


def test_what_hangs_is_killed(look, tmp_path, monkeypatch):
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(doctor.subprocess, "Popen", Popen)
    # Its child has what it prints to, as a helper that a broken driver waits for would.
    text = "import subprocess, sys, time\nsubprocess.Popen(['sleep', '1000'])\ntime.sleep(1000)"
    hanging = look("torch", {"torch/__init__.py": text}, timeout=0.5)
    assert (hanging.state, hanging.found) == ("broken", "gives no answer within 0.5 s")
    assert [process.poll() for process in started] == [-9]


def test_an_engine_without_its_plugin_is_told_of_it(look):
    alone = {"vllm-0.33.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.33.0\n"}
    found = look("vllm", alone)
    assert (found.state, found.found) == ("ok", "0.33.0, no dualpipe-vllm")
    assert found.next.endswith("pip install ./bindings/vllm")


def test_an_engines_plugin_is_found_and_whether_it_is_left_out(look, monkeypatch):
    files = {
        "vllm-0.33.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.33.0\n",
        "dualpipe_vllm-0.1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: dualpipe-vllm\nVersion: 0.1.0\n",
        "dualpipe_vllm-0.1.0.dist-info/entry_points.txt": "[vllm.general_plugins]\ndualpipe = dualpipe_vllm:activate\n",
    }
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    found = look("vllm", files)
    assert (found.state, found.found, found.means) == ("ok", "0.33.0, dualpipe-vllm 0.1.0", "")
    assert found.facts["entry_points"] == ["dualpipe"]
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    assert look("vllm").next == "add dualpipe to VLLM_PLUGINS, or unset it"
    monkeypatch.setenv("VLLM_PLUGINS", "other,dualpipe")
    assert look("vllm").means == ""
    without = {name: text.replace("general_plugins", "other") for name, text in files.items()}
    assert look("vllm", without).state == "broken"


def test_another_eplb_that_comes_first_is_pointed_out(look, tmp_path):
    assert look("eplb").state == "ok"
    found = look("eplb", {"eplb.py": ""})
    assert (found.state, found.found) == ("absent", f"another is found first: {tmp_path}/eplb.py")
    assert found.means == "`import eplb` is not libdualpipe's; `from dualpipe import eplb` is"


@pytest.mark.parametrize("how", ["is not there", "is no library"])
def test_without_the_library_the_doctor_still_answers(tmp_path, how):
    library = tmp_path / "libdualpipe.so"
    if how == "is no library":
        library.write_text("nothing")
    for name in ("torch", "megatron"):  # whose loading takes a while
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {"DUALPIPE_LIBRARY": str(library), "PYTHONPATH": path}
    said, errors, code = python_m_dualpipe("doctor", "--json", **environment)
    assert code == 1, errors
    report = json.loads(said)
    found = {finding["name"]: finding for finding in report["findings"]}
    assert report["ok"] is False
    assert (found["library"]["state"], found["numpy"]["state"]) == ("broken", "ok")
    assert str(library) in found["library"]["found"]
    assert found["library"]["next"].startswith("unset DUALPIPE_LIBRARY, or have it name")
    for name in ("cuda", "nccl"):
        assert (found[name]["state"], found[name]["found"]) == ("unknown", "not asked: the library does not work")


def test_what_to_do_about_a_library_that_does_not_load(monkeypatch):
    monkeypatch.delenv("DUALPIPE_LIBRARY", raising=False)
    too_new = OSError("/lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.99' not found (required by libdualpipe.so)")
    assert _probes._repair(too_new).startswith(f"this system has glibc {platform.libc_ver()[1]}: build the wheel here")
    assert _probes._repair(ModuleNotFoundError("No module named 'numpy'", name="numpy")) == "pip install numpy"
    assert "pip install ./bindings/python" in _probes._repair(ImportError("there is no library"))


def test_the_report_for_people_says_the_same():
    findings = [
        doctor.Finding("library", "ok", "0.1.0, ABI 0.1: here", "", "", {}),
        doctor.Finding("torch", "absent", "not installed", "no torch", "install it", {}),
    ]
    head, *lines = doctor.as_text(findings).splitlines()
    assert head.startswith(f"dualpipe doctor: Python {platform.python_version()}, Linux ")
    assert [line.split(maxsplit=1) for line in lines if line] == [
        ["ok", "library        0.1.0, ABI 0.1: here"],
        ["absent", "torch          not installed"],
        ["means:", "no torch"],
        ["next:", "install it"],
        ["The", "library works."],
    ]
    assert doctor.as_text(findings[1:]).endswith("The library does not work: see the first lines.")


def test_the_command_is_the_doctors_only_if_it_was_asked_for(monkeypatch):
    """A program of that name that has this package imported while Python looks for it keeps its arguments."""
    monkeypatch.setattr(sys, "argv", ["-m", "doctor"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "other", "doctor"], raising=False)
    doctor.run_if_asked()
    monkeypatch.setattr(sys, "argv", ["program", "doctor"])
    doctor.run_if_asked()


def test_a_newcomer_is_helped(capsys):
    assert command.main([]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ +doctor +say what is there", said, re.MULTILINE)
    assert "python -m dualpipe doctor" in said
    with pytest.raises(SystemExit) as ended:
        command.main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"dualpipe {dualpipe.version}\n")
    with pytest.raises(SystemExit) as ended:
        command.main(["docter"])
    assert ended.value.code == 2
    assert "invalid choice: 'docter'" in capsys.readouterr().err


@pytest.mark.parametrize("timeout", ["0", "-1", "soon", "nan"])
def test_a_timeout_is_a_number_of_seconds(timeout, capsys):
    with pytest.raises(SystemExit):
        command.main(["doctor", f"--timeout={timeout}"])
    assert f"is '{timeout}', must be a number of seconds" in capsys.readouterr().err
    with pytest.raises(ValueError, match="must be more than 0 seconds"):
        doctor.examine(0)
