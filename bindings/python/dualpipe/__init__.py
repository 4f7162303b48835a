"""Pipeline and expert parallelism: schedules checked, simulated and run; experts placed with a proof.

>>> import dualpipe
>>> schedule = dualpipe.Schedule("dualpipe", ranks=8, microbatches=20)
>>> timeline = schedule.simulate(dualpipe.Costs(f=1, i=1, w=1, fb=2.5))
>>> timeline.makespan
59.0

Times are seconds, sizes bytes. Every failure is an :class:`Error` with the library's own words.
"""

from . import eplb
from ._library import set_log, set_progress, version
from .costs import Costs
from .errors import (
    BufferTooSmall,
    Busy,
    CallbackFailed,
    Cancelled,
    Error,
    Forked,
    Internal,
    InvalidArgument,
    InvalidHandle,
    InvalidSchedule,
    Panic,
    PeerFailed,
    Poisoned,
    Timeout,
    TransportFailed,
)
from .executor import Executor, Fault, Inproc
from .schedule import Instruction, Program, Schedule
from .task import Pass, Task
from .timeline import Timeline

__version__ = version

__all__ = [
    "BufferTooSmall",
    "Busy",
    "CallbackFailed",
    "Cancelled",
    "Costs",
    "Error",
    "Executor",
    "Fault",
    "Forked",
    "Inproc",
    "Instruction",
    "Internal",
    "InvalidArgument",
    "InvalidHandle",
    "InvalidSchedule",
    "Panic",
    "Pass",
    "PeerFailed",
    "Poisoned",
    "Program",
    "Schedule",
    "Task",
    "Timeline",
    "Timeout",
    "TransportFailed",
    "eplb",
    "set_log",
    "set_progress",
    "version",
]
