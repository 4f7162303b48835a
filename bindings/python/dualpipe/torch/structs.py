"""The structs of a task as an engine reads them, several times for each: by address, through views that are made once.

The executor puts a task where the one before was, so there are few addresses. ctypes would make a new object for every
pointer that is followed.
"""

from __future__ import annotations

import ctypes as c
from typing import Any, Callable

from .. import _structs as s


def _with_addresses(name: str, struct: Any) -> Any:
    """The struct with numbers for its pointers."""
    pointer = type(c.POINTER(c.c_int))
    fields = [(field, c.c_void_p if isinstance(kind, pointer) else kind) for field, kind in struct._fields_]
    return type(name, (c.Structure,), {"_fields_": fields})


TaskView = _with_addresses("TaskView", s.Task)
"""``dualpipe_task``; ``forward`` and ``backward`` are addresses."""
PassView = _with_addresses("PassView", s.TaskPass)
"""``dualpipe_task_pass``; ``inputs`` and the others are addresses."""
_OWNER: Any = s.Tensor.owner


class TensorView(c.Structure):
    """``dualpipe_tensor``, of which only this is used."""

    _fields_ = [
        ("data", c.c_void_p),
        ("_rest_of_dl", c.c_byte * (_OWNER.offset - c.sizeof(c.c_void_p))),
        ("owner", c.c_void_p),
        ("is_present", c.c_uint32),
        ("reserved", c.c_uint32),
    ]


assert c.sizeof(TensorView) == c.sizeof(s.Tensor)
TENSOR_SIZE = c.sizeof(TensorView)

_VIEWS_MAX = 10_000


def views_of(struct: Any) -> Callable[[int], Any]:
    """Gives the struct at an address. It is to be read while C says that it is there."""
    views: dict[int, Any] = {}

    def at(address: int) -> Any:
        view = views.get(address)
        if view is None:
            if len(views) >= _VIEWS_MAX:
                views.clear()
            view = views[address] = struct.from_address(address)
        return view

    return at
