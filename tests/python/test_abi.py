"""The structs in ctypes are those of the ABI that tests/abi describes: the binding's, and every public one."""

import ctypes
import re

import dualpipe
import pytest
from dualpipe import _structs

from conftest import ROOT

VERSION = ".".join(dualpipe.__version__.split(".")[:2])


def described():
    """Each struct of abi.txt: its size, its alignment, and its fields as (name, type, offset, size)."""
    structs, fields = {}, []
    for line in (ROOT / "tests" / "abi" / VERSION / "abi.txt").read_text().splitlines():
        head = re.fullmatch(r"struct (\w+): (\d+) bytes, aligned to (\d+)", line)
        field = re.fullmatch(r"  at (\d+), (\d+) bytes: (.*?)(\w+)(\[\d+\])?", line)
        if head:
            fields = []
            structs[head[1]] = (int(head[2]), int(head[3]), fields)
        elif field:
            fields.append((field[4], field[3].strip() + (field[5] or ""), int(field[1]), int(field[2])))
    return structs


DESCRIBED = described()
NUMBERS = {
    "double": ctypes.c_double,
    "size_t": ctypes.c_size_t,
    **{f"{u}int{bits}_t": getattr(ctypes, f"c_{u}int{bits}") for u in ("", "u") for bits in (8, 16, 32, 64)},
}


def in_ctypes(kind):
    """A type of abi.txt; a struct is made of its fields' types."""
    array = re.fullmatch(r"(.*)\[(\d+)\]", kind)
    if array:
        return in_ctypes(array[1]) * int(array[2])
    if kind in DESCRIBED:
        fields = [(name, in_ctypes(kind)) for name, kind, *_ in DESCRIBED[kind][2]]
        return type(kind, (ctypes.Structure,), {"_fields_": fields})
    is_pointer = kind.endswith("*") or re.fullmatch(r"dualpipe_\w+_(fn|t)", kind)
    return ctypes.c_void_p if is_pointer else NUMBERS[kind]


def laid_out(struct):
    """A struct of ctypes as abi.txt describes it, without the types."""
    places = [(name, getattr(struct, name)) for name, *_ in struct._fields_]
    fields = [(name, place.offset, place.size) for name, place in places]
    return ctypes.sizeof(struct), ctypes.alignment(struct), fields


def without_types(name):
    size, align, fields = DESCRIBED[name]
    return size, align, [(field, offset, num_bytes) for field, _, offset, num_bytes in fields]


def test_the_description_is_read():
    assert len(DESCRIBED) > 25
    assert DESCRIBED["dualpipe_pass"][:2] == (16, 4)
    assert ("shape", "int64_t[8]", 8, 64) in DESCRIBED["dualpipe_tensor_spec"][2]
    assert set(_structs.STRUCTS) - set(DESCRIBED) == set(), "not in the ABI"


@pytest.mark.parametrize("name", _structs.STRUCTS)
def test_a_struct_of_the_binding_is_laid_out_as_described(name):
    assert laid_out(_structs.STRUCTS[name]) == without_types(name)


@pytest.mark.parametrize("name", DESCRIBED)
def test_every_public_struct_is_laid_out_alike_in_ctypes(name):
    assert laid_out(in_ctypes(name)) == without_types(name)


def test_a_wrong_layout_is_noticed():
    class Pass(ctypes.Structure):
        _fields_ = [("direction", ctypes.c_uint32), ("stage", ctypes.c_uint16), ("microbatch", ctypes.c_uint32)]

    assert laid_out(Pass) != without_types("dualpipe_pass")
