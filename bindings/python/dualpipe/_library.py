"""The shared library: found, loaded, its functions typed; failures become exceptions."""

from __future__ import annotations

import ctypes as c
import operator
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import _expert_structs as e
from . import _structs as s
from ._front_structs import front_signatures
from .errors import BufferTooSmall, InvalidArgument, of_status

if TYPE_CHECKING:
    from typing_extensions import Self

ABI = (0, 1)
"""MAJOR and MINOR of the headers that :mod:`dualpipe._structs` is written after."""

TaskFunction = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.POINTER(s.Task))
"""``dualpipe_task_fn``."""
TaskAddressFunction = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_void_p)
"""Likewise, for who reads the task by its address."""
PartFunction = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_uint32, c.c_uint32, c.c_void_p)
"""``dualpipe_part_fn``."""
LogFunction = c.CFUNCTYPE(None, c.c_void_p, c.c_uint32, c.c_char_p)
"""``dualpipe_log_fn``."""
ProgressFunction = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_uint64, c.c_uint64)
"""``dualpipe_progress_fn``."""
PolicyFunction = c.CFUNCTYPE(
    c.c_int32, c.c_void_p, c.POINTER(e.PolicyPast), c.POINTER(c.c_int64), c.POINTER(c.c_double)
)
"""``dualpipe_policy_fn``."""

_HANDLE, _OUT_HANDLE, _U32 = c.c_void_p, c.POINTER(c.c_void_p), c.c_uint32
# Where values go, and texts: (buffer, capacity, count or length).
_OUT = (c.c_void_p, c.c_size_t, c.POINTER(c.c_size_t))
# Where values come from: (values, count).
_IN = (c.c_void_p, c.c_size_t)

SIGNATURES: dict[str, Sequence[Any]] = {
    "dualpipe_set_log": (LogFunction, c.c_void_p),
    "dualpipe_set_progress": (ProgressFunction, c.c_void_p),
    "dualpipe_schedule_create": (c.POINTER(s.ScheduleOptions), _OUT_HANDLE),
    "dualpipe_schedule_free": (_HANDLE,),
    "dualpipe_schedule_describe": (_HANDLE, c.POINTER(s.ScheduleInfo)),
    "dualpipe_schedule_order": (_HANDLE, _U32, *_OUT),
    "dualpipe_schedule_rank_of": (_HANDLE, _U32, _U32, c.POINTER(_U32)),
    "dualpipe_schedule_check": (_HANDLE, *_OUT),
    "dualpipe_schedule_to_text": (_HANDLE, *_OUT),
    "dualpipe_schedule_create_from_orders": (c.POINTER(s.ScheduleOrders), _OUT_HANDLE),
    "dualpipe_schedule_create_from_text": (*_IN, c.c_char_p, _OUT_HANDLE),
    "dualpipe_schedule_name": (_HANDLE, *_OUT),
    "dualpipe_schedule_to_torch_csv": (_HANDLE, _U32, _U32, _U32, *_OUT),
    "dualpipe_schedule_create_from_torch_csv": (*_IN, _U32, _U32, _U32, c.c_char_p, _OUT_HANDLE),
    "dualpipe_plan_create": (c.POINTER(s.PlanOptions), c.POINTER(s.Costs), _OUT_HANDLE),
    "dualpipe_plan_create_robust": (
        c.POINTER(s.PlanOptions),
        c.POINTER(s.Costs),
        c.POINTER(s.Spread),
        _U32,
        _OUT_HANDLE,
    ),
    "dualpipe_plan_free": (_HANDLE,),
    "dualpipe_plan_describe": (_HANDLE, c.POINTER(s.PlanInfo)),
    "dualpipe_plan_started_from": (_HANDLE, *_OUT),
    "dualpipe_plan_peaks": (_HANDLE, *_OUT),
    "dualpipe_plan_sampled": (_HANDLE, _U32, c.POINTER(s.Sampled)),
    "dualpipe_plan_schedule": (_HANDLE, _OUT_HANDLE),
    **front_signatures(s.PlanOptions, s.Costs),
    "dualpipe_simulate": (_HANDLE, c.POINTER(s.Costs), _OUT_HANDLE),
    "dualpipe_timeline_merge": (c.POINTER(c.c_void_p), c.c_size_t, _OUT_HANDLE),
    "dualpipe_timeline_compare": (c.POINTER(c.c_void_p), c.c_size_t, *_OUT),
    "dualpipe_timeline_free": (_HANDLE,),
    "dualpipe_timeline_summarize": (_HANDLE, c.POINTER(s.TimelineSummary)),
    "dualpipe_timeline_ranks": (_HANDLE, *_OUT),
    "dualpipe_timeline_spans": (_HANDLE, *_OUT),
    "dualpipe_timeline_messages": (_HANDLE, *_OUT),
    "dualpipe_timeline_draw": (_HANDLE, _U32, *_OUT),
    "dualpipe_program_create": (_HANDLE, _U32, _OUT_HANDLE),
    "dualpipe_program_free": (_HANDLE,),
    "dualpipe_program_instructions": (_HANDLE, *_OUT),
    "dualpipe_program_buffers": (_HANDLE, *_OUT),
    "dualpipe_program_actions": (_HANDLE, *_OUT),
    "dualpipe_schedule_verify": (_HANDLE, c.POINTER(s.ScheduleVerifyOptions), _OUT_HANDLE),
    "dualpipe_schedule_verify_torch_csv": (
        *_IN,
        _U32,
        _U32,
        _U32,
        c.POINTER(s.ScheduleVerifyOptions),
        _OUT_HANDLE,
    ),
    "dualpipe_verification_free": (_HANDLE,),
    "dualpipe_verification_describe": (_HANDLE, c.POINTER(s.VerificationInfo)),
    "dualpipe_verification_ranks": (_HANDLE, *_OUT),
    "dualpipe_verification_findings": (_HANDLE, *_OUT),
    "dualpipe_verification_finding_ranks": (_HANDLE, _U32, *_OUT),
    "dualpipe_verification_finding_passes": (_HANDLE, _U32, *_OUT),
    "dualpipe_verification_finding_text": (_HANDLE, _U32, *_OUT),
    "dualpipe_verification_counterexample": (_HANDLE, _U32, _OUT_HANDLE),
    "dualpipe_verification_counterexample_actions": (_HANDLE, _U32, _U32, *_OUT),
    "dualpipe_verification_counterexample_text": (_HANDLE, _U32, *_OUT),
    "dualpipe_verification_trials": (_HANDLE, *_OUT),
    "dualpipe_verification_to_text": (_HANDLE, *_OUT),
    "dualpipe_inproc_create": (_U32, _OUT_HANDLE),
    "dualpipe_inproc_free": (_HANDLE,),
    "dualpipe_executor_create": (_HANDLE, c.POINTER(s.ExecutorOptions), _OUT_HANDLE),
    "dualpipe_executor_free": (_HANDLE,),
    "dualpipe_executor_set_boundary": (_HANDLE, _U32, _U32, c.POINTER(s.TensorSpec), _U32),
    "dualpipe_executor_set_microbatch": (_HANDLE, _U32, _U32, c.POINTER(s.TensorSpec), _U32),
    "dualpipe_executor_step": (_HANDLE, TaskFunction, c.c_void_p),
    "dualpipe_executor_start": (_HANDLE, TaskFunction, c.c_void_p),
    "dualpipe_executor_wait": (_HANDLE, c.c_uint64),
    "dualpipe_executor_synchronize": (_HANDLE, c.c_uint64),
    "dualpipe_executor_graph": (_HANDLE, c.POINTER(_U32), *_OUT),
    "dualpipe_executor_timeline": (_HANDLE, _OUT_HANDLE),
    "dualpipe_executor_fault": (_HANDLE, c.POINTER(s.Fault)),
    "dualpipe_task_set_error": (c.c_char_p,),
    "dualpipe_cuda_available": (c.POINTER(s.CudaInfo),),
    "dualpipe_nccl_version": (c.POINTER(_U32),),
    "dualpipe_nccl_unique_id": (_HANDLE, *_OUT),
    "dualpipe_overlap_create": (_U32, _OUT_HANDLE),
    "dualpipe_overlap_free": (_HANDLE,),
    "dualpipe_overlap_run": (_HANDLE, c.c_void_p, c.c_void_p, _U32, _U32, PartFunction, c.c_void_p),
    "dualpipe_expert_plan_create": (c.POINTER(e.BalanceOptions), c.c_void_p, c.c_size_t, _OUT_HANDLE),
    "dualpipe_expert_plan_free": (_HANDLE,),
    "dualpipe_expert_plan_slot_to_expert": (_HANDLE, *_OUT),
    "dualpipe_expert_plan_expert_to_slots": (_HANDLE, *_OUT),
    "dualpipe_expert_plan_replica_counts": (_HANDLE, *_OUT),
    "dualpipe_expert_plan_layers": (_HANDLE, *_OUT),
    "dualpipe_expert_plan_balance": (
        c.POINTER(e.Cluster),
        c.POINTER(e.Goal),
        *_IN,
        c.POINTER(e.CurrentPlacement),
        _U32,
        _OUT_HANDLE,
    ),
    "dualpipe_expert_plan_create_from_slots": (
        c.POINTER(e.Cluster),
        c.POINTER(e.Goal),
        *_IN,
        *_IN,
        *_IN,
        _OUT_HANDLE,
    ),
    "dualpipe_expert_plan_describe": (_HANDLE, c.POINTER(e.ExpertPlanInfo)),
    "dualpipe_expert_plan_shares": (_HANDLE, *_OUT),
    "dualpipe_expert_plan_gpu_loads": (_HANDLE, *_IN, *_OUT),
    "dualpipe_expert_plan_node_loads": (_HANDLE, *_IN, *_OUT),
    "dualpipe_expert_moves": (c.POINTER(e.Cluster), _U32, c.c_void_p, c.c_void_p, c.c_size_t, *_OUT),
    "dualpipe_expert_move_curve": (c.POINTER(e.Cluster), c.POINTER(e.Goal), *_IN, *_IN, _U32, *_OUT),
    "dualpipe_expert_verify": (
        c.POINTER(e.Cluster),
        c.POINTER(e.Goal),
        c.POINTER(e.UnverifiedPlacement),
        c.POINTER(e.Verdict),
        *_OUT,
    ),
    "dualpipe_expert_verify_text": (
        c.POINTER(e.Cluster),
        c.POINTER(e.Goal),
        c.POINTER(e.UnverifiedPlacement),
        *_OUT,
    ),
    "dualpipe_expert_hash": (c.POINTER(e.Cluster), c.c_void_p, c.c_void_p, c.c_size_t, c.POINTER(c.c_uint64)),
    "dualpipe_expert_hash_agree": (*_IN, c.POINTER(c.c_uint64), *_OUT),
    "dualpipe_expert_buffers": (c.POINTER(e.Cluster), c.POINTER(e.ExpertTraffic), c.POINTER(e.ExpertMemory)),
    "dualpipe_expert_gpu_loads": (c.POINTER(e.Cluster), _U32, c.c_void_p, *_IN, *_IN, *_OUT),
    "dualpipe_expert_node_loads": (c.POINTER(e.Cluster), *_IN, *_OUT),
    "dualpipe_heat_map": (c.POINTER(e.HeatMapPanel), c.c_size_t, _U32, *_OUT),
    "dualpipe_replay_create": (
        c.POINTER(e.Cluster),
        c.POINTER(e.Goal),
        *_IN,
        c.POINTER(e.ReplayOptions),
        c.POINTER(e.Policy),
        c.c_size_t,
        _OUT_HANDLE,
    ),
    "dualpipe_replay_free": (_HANDLE,),
    "dualpipe_replay_runs": (_HANDLE, *_OUT),
    "dualpipe_replay_windows": (_HANDLE, _U32, *_OUT),
    "dualpipe_replay_layers": (_HANDLE, _U32, _U32, *_OUT),
    "dualpipe_replay_gpu_loads": (_HANDLE, _U32, *_OUT),
    "dualpipe_replay_text": (_HANDLE, *_OUT),
    "dualpipe_load_monitor_create": (c.POINTER(e.LoadMonitorOptions), _OUT_HANDLE),
    "dualpipe_load_monitor_free": (_HANDLE,),
    "dualpipe_load_monitor_record_logical": (_HANDLE, c.c_uint64, *_IN, c.POINTER(_U32)),
    "dualpipe_load_monitor_record_layer": (_HANDLE, c.c_uint64, _U32, *_IN, c.POINTER(_U32)),
    "dualpipe_load_monitor_record_physical": (_HANDLE, c.c_uint64, c.c_void_p, *_IN, c.POINTER(_U32)),
    "dualpipe_load_monitor_record_cumulative": (_HANDLE, c.c_uint64, c.c_void_p, *_IN, c.POINTER(_U32)),
    "dualpipe_load_monitor_set_counters": (_HANDLE, *_IN),
    "dualpipe_load_monitor_merge": (_HANDLE, _HANDLE),
    "dualpipe_load_monitor_describe": (_HANDLE, c.POINTER(e.LoadMonitorInfo)),
    "dualpipe_load_monitor_loads": (_HANDLE, _U32, _U32, *_OUT),
    "dualpipe_load_monitor_counts": (_HANDLE, _U32, *_OUT),
    "dualpipe_load_monitor_step_numbers": (_HANDLE, _U32, *_OUT),
    "dualpipe_load_monitor_incomplete_steps": (_HANDLE, *_OUT),
    "dualpipe_load_monitor_reports": (_HANDLE, c.c_uint64, *_OUT),
    "dualpipe_load_monitor_save": (_HANDLE, *_OUT),
    "dualpipe_load_monitor_load": (*_IN, _OUT_HANDLE),
    "dualpipe_load_monitor_balancedness": (
        _HANDLE,
        _U32,
        c.POINTER(e.Cluster),
        c.c_void_p,
        *_IN,
        c.POINTER(c.c_double),
        *_OUT,
    ),
    "dualpipe_expert_balancedness": (c.POINTER(e.Cluster), *_IN, c.POINTER(c.c_double), *_OUT),
    "dualpipe_load_history_create": (c.POINTER(e.LoadHistoryOptions), _OUT_HANDLE),
    "dualpipe_load_history_read": (*_IN, _U32, _OUT_HANDLE),
    "dualpipe_load_history_free": (_HANDLE,),
    "dualpipe_load_history_append": (_HANDLE, c.c_uint64, *_IN),
    "dualpipe_load_history_append_slots": (_HANDLE, c.c_uint64, c.c_void_p, *_IN),
    "dualpipe_load_history_describe": (_HANDLE, c.POINTER(e.LoadHistoryInfo)),
    "dualpipe_load_history_model": (_HANDLE, *_OUT),
    "dualpipe_load_history_loads": (_HANDLE, *_OUT),
    "dualpipe_load_history_step_numbers": (_HANDLE, *_OUT),
    "dualpipe_load_history_slot_to_expert": (_HANDLE, c.c_uint64, *_OUT),
    "dualpipe_load_history_slot_loads": (_HANDLE, c.c_uint64, *_OUT),
    "dualpipe_load_history_write": (_HANDLE, _U32, *_OUT),
    "dualpipe_expert_map_read_slots": (*_IN, *_OUT),
    "dualpipe_expert_map_read_gpus": (*_IN, *_OUT),
    "dualpipe_expert_map_write": (c.POINTER(e.Cluster), *_IN, *_OUT),
    "dualpipe_expert_logical_loads": (_U32, _U32, *_IN, *_IN, *_OUT),
    "dualpipe_should_rebalance": (
        c.POINTER(e.Cluster),
        c.POINTER(e.RebalanceProposal),
        c.POINTER(e.RebalanceDecision),
    ),
    "dualpipe_router_create": (_HANDLE, _OUT_HANDLE),
    "dualpipe_router_create_from_slots": (c.POINTER(e.Cluster), _U32, *_IN, _OUT_HANDLE),
    "dualpipe_router_free": (_HANDLE,),
    "dualpipe_router_describe": (_HANDLE, c.POINTER(e.RouterInfo)),
    "dualpipe_router_route": (_HANDLE, _U32, c.POINTER(e.RouteOptions), *_IN, *_OUT, c.POINTER(e.Routing)),
    "dualpipe_router_route_from": (_HANDLE, _U32, c.POINTER(e.RouteOptions), *_IN, *_OUT, c.POINTER(e.Routing)),
    "dualpipe_router_source_quotas": (_HANDLE, _U32, _U32, _U32, *_OUT),
    "dualpipe_router_gpu_loads": (_HANDLE, _U32, *_OUT),
    "dualpipe_router_bottleneck": (_HANDLE, _U32, *_OUT),
    "dualpipe_router_shares": (_HANDLE, _U32, *_IN, *_OUT, c.POINTER(c.c_double)),
    "dualpipe_router_slots_by_quotas": (_HANDLE, _U32, *_IN, *_IN, c.c_void_p, _U32, c.c_size_t, *_OUT),
    "dualpipe_router_slots_by_shares": (_HANDLE, _U32, *_IN, c.c_uint64, c.c_void_p, _U32, c.c_size_t, *_OUT),
    "dualpipe_expert_transfers_create": (
        c.POINTER(e.Cluster),
        _U32,
        c.c_void_p,
        *_IN,
        c.POINTER(e.ExpertTransferOptions),
        _OUT_HANDLE,
    ),
    "dualpipe_expert_transfers_free": (_HANDLE,),
    "dualpipe_expert_transfers_describe": (_HANDLE, c.POINTER(e.ExpertTransfersInfo)),
    "dualpipe_expert_transfers_layers": (_HANDLE, *_OUT),
    "dualpipe_expert_transfers_copies": (_HANDLE, *_OUT),
    "dualpipe_expert_transfers_for_gpu": (_HANDLE, _U32, *_OUT),
    "dualpipe_expert_transfers_staging": (_HANDLE, *_OUT),
    "dualpipe_expert_transfers_lost": (_HANDLE, *_OUT),
    "dualpipe_expert_transfers_placement_after": (_HANDLE, _U32, *_OUT),
    "dualpipe_expert_transfers_check": (_HANDLE,),
}
"""Every function used that returns a status, with the types of its arguments."""


def find() -> Path:
    """Where the library is: ``$DUALPIPE_LIBRARY``, or this package's own.

    Raises ImportError if it is in neither place.
    """
    named = os.environ.get("DUALPIPE_LIBRARY")
    path = Path(named) if named else Path(__file__).with_name("libdualpipe" + suffix())
    if not path.is_file():
        where = "which DUALPIPE_LIBRARY names" if named else "where the wheel puts it"
        raise ImportError(f"there is no {path}, {where}; build it with `cargo build --release`")
    return path


def suffix() -> str:
    """What a shared library's name ends with on this system."""
    return ".dylib" if sys.platform == "darwin" else ".so"


raised_in_progress = threading.local()
"""``error``: what the progress callback raised on this thread, for the call that it stopped."""


def take_raised_in_progress() -> BaseException | None:
    """It, once."""
    raised: BaseException | None = getattr(raised_in_progress, "error", None)
    raised_in_progress.error = None
    return raised


def _check(status: int, function: Any, arguments: Any) -> int:
    """Every status passes here; raises unless it is 0."""
    if status == 0:
        return status
    text = lib.dualpipe_last_error().decode("utf-8", "replace")
    raised = take_raised_in_progress()
    if raised is not None and status == 12:
        raise raised
    raise of_status(status, text)


def _load() -> c.CDLL:
    path = find()
    library = c.CDLL(str(path))
    library.dualpipe_version.restype = c.c_uint32
    number = library.dualpipe_version()
    if (number // 10_000, number // 100 % 100) != ABI:
        found = f"{number // 10_000}.{number // 100 % 100}"
        raise ImportError(f"{path} is version {found}, this package needs {ABI[0]}.{ABI[1]}")
    for name in ("dualpipe_version_string", "dualpipe_last_error", "dualpipe_status_name"):
        getattr(library, name).restype = c.c_char_p
    library.dualpipe_status_name.argtypes = [c.c_uint32]
    for name, types in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype, function.errcheck = list(types), c.c_uint32, _check
    return library


lib = _load()
version: str = lib.dualpipe_version_string().decode()


class Handle:
    """Owns one object of the library and frees it once: by :meth:`close`, when collected, or at exit.

    It is passed to functions as it is. After :meth:`close` they raise :class:`~dualpipe.errors.InvalidHandle`. In a
    child of ``fork`` it frees the child's copy only.
    """

    def __init__(self, value: int | None, free: str, keep_alive: object = None) -> None:
        self._as_parameter_ = c.c_void_p(value)
        self._finalizer = weakref.finalize(self, _free, free, value, keep_alive)

    def close(self) -> None:
        """Frees the object. The second time it does nothing."""
        self._finalizer()


class Closing:
    """An object with a handle: a context manager that closes it."""

    _handle: Handle

    def close(self) -> None:
        """Frees it now instead of when it is collected. What was made from it stays usable."""
        self._handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.close()


def _free(free: str, value: int | None, keep_alive: object) -> None:
    # A function object of its own, without the check: nobody is there to be told of a failure.
    function = lib[free]
    function.argtypes, function.restype = [c.c_void_p], c.c_uint32
    function(value)


class Callbacks:
    """Methods of an object of the caller's as C calls them, and the first exception that one of them raised."""

    _raised: BaseException | None = None

    def take_raised(self) -> BaseException | None:
        """The first exception, once."""
        raised, self._raised = self._raised, None
        return raised

    def _keep_raised(self, error: BaseException) -> None:
        if self._raised is None:
            self._raised = error


def words_of(error: BaseException) -> str:
    """Its type and what it says."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001, an exception that cannot be printed is still one
        return type(error).__name__


def to_c(text: str) -> bytes:
    """A text as C can take it, without the NUL at its end."""
    return text.encode("utf-8", "replace").replace(b"\0", b"?")


def create(function: str, free: str, *arguments: Any, keep_alive: object = None) -> Handle:
    """Calls a create function, whose last argument is where the handle goes.

    ``keep_alive`` lives until the object has been freed.
    """
    value = c.c_void_p()
    getattr(lib, function)(*arguments, c.byref(value))
    return Handle(value.value, free, keep_alive)


def read_values(function: str, dtype: Any, *arguments: Any, expected: int = 0) -> npt.NDArray[Any]:
    """What a function writes to (values, capacity, count), as an array [count] of ``dtype``.

    ``expected``: if there are no more than that, the function is called once.
    """
    count = c.c_size_t()
    if expected:
        values = np.zeros(expected, dtype)
        try:
            getattr(lib, function)(*arguments, values.ctypes.data, expected, c.byref(count))
            return values[: count.value]
        except BufferTooSmall:
            pass
    else:
        getattr(lib, function)(*arguments, None, 0, c.byref(count))
    values = np.zeros(count.value, dtype)
    getattr(lib, function)(*arguments, values.ctypes.data, count.value, c.byref(count))
    return values


def read_text(function: str, *arguments: Any) -> str:
    """What a function writes to (text, capacity, length)."""
    length = c.c_size_t()
    getattr(lib, function)(*arguments, None, 0, c.byref(length))
    text = c.create_string_buffer(length.value + 1)
    getattr(lib, function)(*arguments, text, len(text), c.byref(length))
    return text.value.decode("utf-8")


def uint32(name: str, value: Any) -> int:
    """``value`` if C can take it; its range proper is the library's to check. TypeError if it is not an integer."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, must be an integer") from None
    if not 0 <= number < s.NONE:
        raise InvalidArgument(f"{name} is {number}, must be 0 to {s.NONE - 1}")
    return number
