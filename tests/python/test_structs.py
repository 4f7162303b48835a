"""The hand-written structs and signatures are those of the headers: every size, offset, argument and number."""

import ctypes
import re
import subprocess

import pytest
from dualpipe import _library, _structs, cuda, eplb, errors, front, schedule, timeline


@pytest.fixture(scope="module")
def headers(root):
    """The text of include/, without comments."""
    files = [root / "include" / "dualpipe.h", *sorted((root / "include" / "dualpipe").glob("*.h"))]
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", "\n".join(file.read_text() for file in files), flags=re.DOTALL)


def test_every_struct_is_laid_out_as_c_lays_it_out(root, headers, tmp_path):
    defined = set(re.findall(r"typedef struct (\w+) \{", headers))
    assert set(_structs.STRUCTS) - defined == set(), "not in the headers"
    lines, want = [], []
    for name, struct in _structs.STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        want.append(f"{name} {ctypes.sizeof(struct)}")
        for field, *_ in struct._fields_:
            lines.append(
                f'printf("{name}.{field} %zu %zu\\n", offsetof(struct {name}, {field}), '
                f"sizeof(((struct {name} *)0)->{field}));"
            )
            of = getattr(struct, field)
            want.append(f"{name}.{field} {of.offset} {of.size}")
    source, program = tmp_path / "layout.c", tmp_path / "layout"
    body = "\n  ".join(lines)
    source.write_text(
        f"#include <dualpipe.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {{\n  {body}\n  return 0;\n}}\n"
    )
    subprocess.run(["cc", "-std=c99", "-Werror", "-I", root / "include", source, "-o", program], check=True)
    assert subprocess.check_output([program], text=True).splitlines() == want


@pytest.mark.parametrize("name", _structs.STRUCTS)
def test_every_field_has_its_name_and_place(headers, name):
    found = re.search(rf"typedef struct {name} \{{(.*?)\}} {name};", headers, re.DOTALL)
    assert found, f"{name} is not in the headers"
    fields = re.findall(r"(\w+)(?:\[\d+\])?;", found[1])
    assert [field for field, *_ in _structs.STRUCTS[name]._fields_] == fields


def c_class(text):
    """What kind of argument a C parameter is."""
    kind = text.strip()
    if "*" in kind or re.search(r"_(t|fn)\b", re.sub(r"\b(u?int\d+|size)_t\b", "", kind)):
        return "pointer"
    return {"uint32_t": "u32", "uint64_t": "u64", "size_t": "u64"}[kind.split()[0]]


def python_class(kind):
    return {ctypes.c_uint32: "u32", ctypes.c_uint64: "u64", ctypes.c_size_t: "u64"}.get(kind, "pointer")


@pytest.mark.parametrize("name", _library.SIGNATURES)
def test_every_function_takes_what_its_prototype_says(headers, name):
    found = re.search(rf"\bdualpipe_status {name}\((.*?)\);", headers, re.DOTALL)
    assert found, f"{name} is not in the headers"
    want = [c_class(argument) for argument in found[1].split(",")]
    assert [python_class(kind) for kind in _library.SIGNATURES[name]] == want


CALLBACKS = {
    "task": _library.TaskFunction,
    "log": _library.LogFunction,
    "progress": _library.ProgressFunction,
    "part": _library.PartFunction,
    "memory_allocate": _structs.AllocateFunction,
    "memory_release": _structs.ReleaseFunction,
    "transport_post": _structs.PostFunction,
    "transport_test": _structs.TestFunction,
    "transport_wait": _structs.WaitFunction,
    "transport_poll": _structs.PollFunction,
    "transport_abort": _structs.AbortFunction,
    "transport_done": _structs.DoneFunction,
    "transport_error": _structs.ErrorFunction,
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_every_callback_takes_what_its_type_says(headers, name):
    found = re.search(rf"typedef (\w+) \(\*dualpipe_{name}_fn\)\((.*?)\);", headers, re.DOTALL)
    assert found, f"dualpipe_{name}_fn is not in the headers"
    function = CALLBACKS[name]
    assert [python_class(kind) for kind in function._argtypes_] == [c_class(a) for a in found[2].split(",")]
    assert function._restype_ == {"void": None, "int32_t": ctypes.c_int32, "uint32_t": ctypes.c_uint32}[found[1]]


def numbers(headers, prefix):
    return {int(number): name for name, number in re.findall(rf"\b{prefix}(\w+) = (\d+)", headers)}


def test_every_number_has_its_name(headers):
    assert numbers(headers, "DUALPIPE_OP_") == timeline.OP_KINDS
    assert numbers(headers, "DUALPIPE_MESSAGE_") == timeline.MESSAGE_KINDS
    assert numbers(headers, "DUALPIPE_INSTRUCTION_") == schedule.INSTRUCTION_KINDS
    kinds = {number: name.lower() for number, name in numbers(headers, "DUALPIPE_KIND_").items()}
    assert kinds == {schedule.CUSTOM: "custom", **{number: name for name, number in schedule.KINDS.items()}}
    statuses = {number: name.replace("_", "").lower() for number, name in numbers(headers, "DUALPIPE_ERROR_").items()}
    classes = {number: kind.__name__.lower() for number, kind in errors.CLASSES.items()}
    assert classes == {**statuses, 8: "transportfailed", 15: "devicefailed"}
    states = {number: name.lower() for number, name in numbers(headers, "DUALPIPE_GRAPH_").items()}
    assert states == cuda.GRAPH_STATES
    units = {number: name.lower() for number, name in numbers(headers, "DUALPIPE_MEMORY_").items()}
    assert units == front.UNITS
    links = {number: name.lower() for number, name in numbers(headers, "DUALPIPE_LINK_").items()}
    assert links == dict(enumerate(eplb.LINKS))
