"""The structs and functions of ``include/dualpipe/front.h`` and ``comparison.h``, field by field."""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence
from typing import Any


class FrontInfo(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("unit", c.c_uint32),
        ("num_points", c.c_uint32),
        ("num_published", c.c_uint32),
        ("is_stopped", c.c_uint32),
        ("reserved", c.c_uint32),
    ]


class FrontPoint(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("reserved", c.c_uint32),
        ("cap", c.c_uint64),
        ("peak", c.c_uint64),
        ("makespan_ns", c.c_uint64),
        ("lower_bound_ns", c.c_uint64),
    ]


class FrontPublished(c.Structure):
    _fields_ = [("peak", c.c_uint64), ("makespan_ns", c.c_uint64)]


class ComparisonOptions(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("num_ranks", c.c_uint32),
        ("num_microbatches", c.c_uint32),
        ("num_threads", c.c_uint32),
        ("cap_activations", c.POINTER(c.c_uint64)),
        ("num_cap_activations", c.c_size_t),
        ("cap_bytes", c.POINTER(c.c_uint64)),
        ("num_cap_bytes", c.c_size_t),
        ("iterations", c.c_uint64),
        ("time_limit_ns", c.c_uint64),
        ("seed", c.c_uint64),
    ]


class Candidate(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("placement", c.c_uint32),
        ("stages_per_rank", c.c_uint32),
        ("is_planned", c.c_uint32),
        ("is_possible", c.c_uint32),
        ("fits", c.c_uint32),
        ("parameter_copies", c.c_uint32),
        ("reserved", c.c_uint32),
        ("makespan_ns", c.c_uint64),
        ("lower_bound_ns", c.c_uint64),
        ("bubble_share", c.c_double),
        ("parameter_bytes", c.c_uint64),
        ("peak_activations", c.c_double),
        ("peak_activation_bytes", c.c_uint64),
        ("sent_messages", c.c_uint64),
        ("sent_bytes", c.c_uint64),
        ("excess_activations", c.c_double),
        ("excess_bytes", c.c_uint64),
    ]


FRONT_STRUCTS: dict[str, type[c.Structure]] = {
    "dualpipe_front_info": FrontInfo,
    "dualpipe_front_point": FrontPoint,
    "dualpipe_front_published": FrontPublished,
    "dualpipe_comparison_options": ComparisonOptions,
    "dualpipe_candidate": Candidate,
}
"""Every one by its C name."""


def front_signatures(options: Any, costs: Any) -> dict[str, Sequence[Any]]:
    """Their functions that return a status, with the types of their arguments: ``options`` and ``costs`` are the
    structs of a plan.
    """
    handle, number, out_handle = c.c_void_p, c.c_uint32, c.POINTER(c.c_void_p)
    out = (c.c_void_p, c.c_size_t, c.POINTER(c.c_size_t))
    return {
        "dualpipe_front_create": (
            c.POINTER(options),
            c.POINTER(costs),
            number,
            c.POINTER(c.c_uint64),
            c.c_size_t,
            out_handle,
        ),
        "dualpipe_front_free": (handle,),
        "dualpipe_front_describe": (handle, c.POINTER(FrontInfo)),
        "dualpipe_front_describe_point": (handle, number, c.POINTER(FrontPoint)),
        "dualpipe_front_started_from": (handle, number, *out),
        "dualpipe_front_schedule": (handle, number, out_handle),
        "dualpipe_front_published_schedules": (handle, *out),
        "dualpipe_front_published_name": (handle, number, *out),
        "dualpipe_front_draw": (handle, number, *out),
        "dualpipe_comparison_create": (c.POINTER(ComparisonOptions), c.POINTER(costs), out_handle),
        "dualpipe_comparison_free": (handle,),
        "dualpipe_comparison_count": (handle, c.POINTER(number)),
        "dualpipe_comparison_candidate": (handle, number, c.POINTER(Candidate)),
        "dualpipe_comparison_name": (handle, number, *out),
        "dualpipe_comparison_reason": (handle, number, *out),
        "dualpipe_comparison_schedule": (handle, number, out_handle),
        "dualpipe_comparison_timeline": (handle, number, out_handle),
        "dualpipe_comparison_text": (handle, *out),
    }
