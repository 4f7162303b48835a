"""Loads of a recorded run, step by step, in the files of other programs."""

from __future__ import annotations

import ctypes as c
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union

import numpy as np
import numpy.typing as npt

from .. import _expert_structs as e
from .._library import Closing, Handle, create, lib, read_text, read_values, to_c, uint32
from .._structs import NONE
from ..errors import InvalidArgument
from ._arguments import Map, experts_in, read_loads, read_map, torch_of
from ._counts import array_of, integer, read_integers
from ._recordings import Recording, read_recordings, write_recording

Source = Union[str, "os.PathLike[str]"]

TEXTS = {"vllm": 1, "json": 2, "csv": 3}
"""Formats that are text, by the numbers of ``dualpipe_load_format``."""
ARRAYS = ("npy", "npz", "pt")
"""Formats that are arrays."""
SUFFIXES = {".jsonl": "vllm", ".csv": "csv", ".npy": "npy", ".npz": "npz", ".pt": "pt", ".pth": "pt"}
"""What the end of a name says; ``.json`` and others are told apart by what the file begins with."""


class SlotLoads(NamedTuple):
    """A step as slots got it."""

    slot_to_expert: Map
    """[layers, slots], int64: the expert in each slot, -1 where there was none."""
    loads: npt.NDArray[np.float32]
    """[layers, slots] What each got."""


class LoadHistory(Closing):
    """Loads of layers and experts for a number of steps, as ``history.loads`` [steps, layers, experts].

    >>> LoadHistory.read("12,3\\n4,5\\n\\n11,4\\n4,6\\n").loads.shape
    (2, 2, 2)

    Where the placement was recorded, :meth:`placement` has it. It pickles. One thread at a time.
    """

    def __init__(
        self,
        num_layers: int,
        num_experts: int,
        *,
        model: str | None = None,
        num_ranks: int | None = None,
        num_groups: int | None = None,
        num_nodes: int | None = None,
    ) -> None:
        """A history without steps, to :meth:`append` to. Only the sizes are needed; the others are for vLLM's first
        line: the model's name, GPUs that share the experts, groups of experts, nodes.

        Raises :class:`~dualpipe.errors.InvalidArgument`.
        """
        options = e.LoadHistoryOptions(
            size=c.sizeof(e.LoadHistoryOptions),
            num_layers=uint32("num_layers", num_layers),
            num_experts=uint32("num_experts", num_experts),
            num_ranks=uint32("num_ranks", num_ranks or 0),
            num_groups=uint32("num_groups", num_groups or 0),
            num_nodes=uint32("num_nodes", num_nodes or 0),
            model=None if model is None else to_c(model),
        )
        self._handle = create("dualpipe_load_history_create", "dualpipe_load_history_free", c.byref(options))

    @classmethod
    def read(cls, source: Source | Iterable[Source], format: str | None = None) -> LoadHistory:
        """Reads a file, or a text, which is told by a line break or a ``{`` at its start.

        ``"vllm"``: vLLM's JSON lines. ``"json"``: ``{"load_history": [{"logical_expert_load": [[...]]}]}``. ``"csv"``:
        a line for each layer, a number for each expert, an empty line between steps. ``"npy"``, ``"npz"``, ``"pt"``:
        arrays [layers, experts] or [steps, layers, experts], the only one or ``logical_count``, as SGLang's recorder
        writes; or its records per pass, of one rank each: give the files of all ranks, and they are summed by
        ``forward_pass_id``. Unless ``format`` says, the end of the name does, or what the file begins with. ``.pt``
        needs torch, which then runs no code of the file; the others are numpy's, without pickles.

        Raises :class:`~dualpipe.errors.InvalidArgument` with line and place for what is not so, or has a number that is
        negative or not finite; OSError.
        """
        if not isinstance(source, (str, os.PathLike)):
            paths = [Path(path) for path in source]
            if len(paths) != 1:
                return cls._of_arrays(paths, format)
            source = paths[0]
        text = _text(source)
        path = None if text is not None else Path(source)
        if format is None and path is not None:
            format = SUFFIXES.get(path.suffix.lower())
        if path is not None and format in ARRAYS:
            return cls._of_arrays([path], format)
        content = text.encode() if text is not None else Path(source).read_bytes()
        number = _text_format(format or _looks_like(content))
        try:
            made = create("dualpipe_load_history_read", "dualpipe_load_history_free", content, len(content), number)
        except InvalidArgument as error:
            raise InvalidArgument(str(error) if path is None else f"{path}: {error}") from None
        return cls._of_handle(made)

    @classmethod
    def of(cls, loads: Any) -> LoadHistory:
        """Of loads [steps, layers, experts] or [layers, experts], finite and not negative, numbered from 0: numpy's,
        what numpy takes, or a tensor; taken as float32."""
        values = read_loads("loads", loads)
        history = cls(*values.shape[-2:])
        history.append(0, values)
        return history

    @classmethod
    def _of_handle(cls, handle: Handle) -> LoadHistory:
        history = cls.__new__(cls)
        history._handle = handle
        return history

    @classmethod
    def _of_arrays(cls, paths: Sequence[Path], format: str | None) -> LoadHistory:
        found = read_recordings(paths, format)
        try:
            return cls._of_recording(found)
        except InvalidArgument as error:
            raise InvalidArgument(f"{paths[0]}: {error}") from None

    @classmethod
    def _of_recording(cls, found: Recording) -> LoadHistory:
        slots = found.slot_to_expert
        if slots is None:
            return cls.of(found.counts)
        history = cls(len(slots), experts_in(slots))
        for step, counts in zip(found.steps or range(len(found.counts)), found.counts):
            history.append_slots(step, slots, counts)
        return history

    def append(self, step: int, loads: Any) -> None:
        """Adds a step, ``loads`` [layers, experts], or several, [steps, layers, experts], numbered from ``step`` on.

        Raises :class:`~dualpipe.errors.InvalidArgument`; nothing has been added then.
        """
        values = read_loads("loads", loads)
        if values.shape[-2:] != (self.num_layers, self.num_experts):
            must_be = f"must be [{self.num_layers}, {self.num_experts}] at the end"
            raise InvalidArgument(f"loads has shape {list(values.shape)}, {must_be}")
        number = integer("step", step, (1 << 64) - 1)
        lib.dualpipe_load_history_append(self._handle, number, values.ctypes.data, values.size)

    def append_slots(self, step: int, slot_to_expert: Any, loads: Any) -> None:
        """Adds a step as slots got it, ``loads`` [layers, slots], and the expert that each held, [layers, slots], -1
        where there was none and no load, or a :class:`~dualpipe.eplb.Plan`.

        Raises :class:`~dualpipe.errors.InvalidArgument`; nothing has been added then.
        """
        values = read_loads("loads", loads, window=False)
        if len(values) != self.num_layers:
            raise InvalidArgument(f"loads has shape {list(values.shape)}, must be [{self.num_layers}, slots]")
        slots = read_map("slot_to_expert", slot_to_expert, values.shape[1], self.num_layers)
        number = integer("step", step, (1 << 64) - 1)
        where = (slots.ctypes.data, values.ctypes.data, values.size)
        lib.dualpipe_load_history_append_slots(self._handle, number, *where)

    @property
    def loads(self) -> npt.NDArray[np.float32]:
        """[steps, layers, experts] What :func:`~dualpipe.eplb.balance` and :func:`~dualpipe.eplb.replay` take."""
        info = self._info()
        shape = (info.num_steps, info.num_layers, info.num_experts)
        expected = int(np.prod(shape))
        values = read_values("dualpipe_load_history_loads", np.float32, self._handle, expected=expected)
        return values.reshape(shape)

    @property
    def step_numbers(self) -> list[int]:
        """The number of each step, as the file has it, or from 0."""
        steps: list[int] = read_values("dualpipe_load_history_step_numbers", np.uint64, self._handle).tolist()
        return steps

    @property
    def num_steps(self) -> int:
        """Steps."""
        return int(self._info().num_steps)

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return int(self._info().num_layers)

    @property
    def num_experts(self) -> int:
        """Logical experts of a layer."""
        return int(self._info().num_experts)

    @property
    def num_ranks(self) -> int | None:
        """GPUs that share the experts, None if nothing says."""
        return self._info().num_ranks or None

    @property
    def num_groups(self) -> int | None:
        """Groups of experts, None if nothing says."""
        return self._info().num_groups or None

    @property
    def num_nodes(self) -> int | None:
        """Nodes of the GPUs, None if nothing says."""
        return self._info().num_nodes or None

    @property
    def model(self) -> str | None:
        """The model's name, None if nothing says."""
        return read_text("dualpipe_load_history_model", self._handle) or None

    def placement(self, index: int) -> SlotLoads | None:
        """How step ``index``, counted from 0, was placed and what each slot got; None if that was not recorded."""
        number = integer("index", index, NONE)
        slots = read_values("dualpipe_load_history_slot_to_expert", np.int64, self._handle, number)
        if slots.size == 0:
            return None
        where = (self._handle, number)
        loads = read_values("dualpipe_load_history_slot_loads", np.float32, *where, expected=slots.size)
        return SlotLoads(slots.reshape(self.num_layers, -1), loads.reshape(self.num_layers, -1))

    def text(self, format: str) -> str:
        """It in the format ``"vllm"``, ``"json"`` or ``"csv"``. Only the first keeps the numbers of steps and what
        slots got; a step without a placement gets a slot for each expert there, as vLLM wants one."""
        return read_text("dualpipe_load_history_write", self._handle, _text_format(format))

    def write(self, path: Source, format: str | None = None) -> None:
        """Writes it as :meth:`read` reads it, in the format that the end of the name or ``format`` says: ``.jsonl``,
        ``.json``, ``.csv``, ``.npy`` ([steps, layers, experts]), ``.npz`` and ``.pt`` (that as ``logical_count``, as
        SGLang's recorder). Raises OSError, :class:`~dualpipe.errors.InvalidArgument`."""
        path = Path(path)
        if format is None:
            end = path.suffix.lower()
            format = {**SUFFIXES, ".json": "json"}.get(end)
            if format is None:
                raise InvalidArgument(f"{path} ends in {end or 'nothing'}, must end in {', '.join(SUFFIXES)}, .json")
        if format in ARRAYS:
            write_recording(path, format, self.loads)
        else:
            path.write_text(self.text(format), encoding="utf-8")

    def __repr__(self) -> str:
        info = self._info()
        return (
            f"<dualpipe.eplb.LoadHistory {info.num_steps} steps, {info.num_layers} layers, {info.num_experts} experts>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        info = self._info()
        said = (self.model, info.num_ranks, info.num_groups, info.num_nodes)
        steps = [
            (step, placed if (placed := self.placement(index)) is not None else loads)
            for index, (step, loads) in enumerate(zip(self.step_numbers, self.loads))
        ]
        return _of_steps, (info.num_layers, info.num_experts, said, steps)

    def _info(self) -> e.LoadHistoryInfo:
        info = e.LoadHistoryInfo(size=c.sizeof(e.LoadHistoryInfo))
        lib.dualpipe_load_history_describe(self._handle, c.byref(info))
        return info


def logical_loads(counts: Any, slot_to_expert: Any, *, num_experts: int | None = None) -> Any:
    """Tokens of slots as loads of their experts: ``counts`` [steps, layers, slots] or [layers, slots], integers, as
    SGLang's ``global_physical_count``; ``slot_to_expert`` [layers, slots], -1 where there is none and no token.

    Returns float32 [steps, layers, experts] or [layers, experts]. ``num_experts``: as many as the map speaks of, unless
    said. Raises :class:`~dualpipe.errors.InvalidArgument`, TypeError.
    """
    values = array_of(counts)
    one = values.ndim == 2
    values = read_integers("counts", values[None] if one else values, np.int64, (None, None, None))
    num_steps, num_layers, num_slots = values.shape
    slots = read_map("slot_to_expert", slot_to_expert, num_slots, num_layers)
    experts = max(experts_in(slots), 1) if num_experts is None else uint32("num_experts", num_experts)
    where = (num_layers, experts, slots.ctypes.data, slots.size, values.ctypes.data, values.size)
    loads = read_values("dualpipe_expert_logical_loads", np.float32, *where, expected=num_steps * num_layers * experts)
    loads = loads.reshape(num_steps, num_layers, experts)
    torch = torch_of(counts)
    loads = loads[0] if one else loads
    return loads if torch is None else torch.from_numpy(loads).to(counts.device)


def _of_steps(
    num_layers: int, num_experts: int, said: tuple[str | None, int, int, int], steps: Sequence[tuple[int, Any]]
) -> LoadHistory:
    """What was pickled."""
    model, ranks, groups, nodes = said
    history = LoadHistory(num_layers, num_experts, model=model, num_ranks=ranks, num_groups=groups, num_nodes=nodes)
    for step, loads in steps:
        if isinstance(loads, SlotLoads):
            history.append_slots(step, *loads)
        else:
            history.append(step, loads)
    return history


def _text(source: Source) -> str | None:
    """``source`` if it is a text and no path."""
    is_text = isinstance(source, str) and ("\n" in source or source.lstrip()[:1] == "{")
    return str(source) if is_text else None


def _looks_like(content: bytes) -> str:
    """Which format of text it is."""
    start = content.lstrip()
    if start[:1] != b"{":
        return "csv"
    first_line = start.split(b"\n", 1)[0]
    return "vllm" if b'"record_type"' in first_line[:65536] else "json"


def _text_format(format: str) -> int:
    if format not in TEXTS:
        raise InvalidArgument(f"format is {format!r}, must be {' or '.join(map(repr, TEXTS))}")
    return TEXTS[format]
