"""GPU loads as a picture: a row for each layer, a column for each GPU, the colour says how far from the mean."""

from __future__ import annotations

import ctypes as c
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

from .. import _expert_structs as e
from .._library import read_text, to_c
from ..errors import InvalidArgument
from ._cluster import Cluster
from ._plan import Plan
from ._verify import read_reals

PathLike = Union[str, "os.PathLike[str]"]


class HeatMap:
    """Loads of GPUs, drawn: ``str(picture)`` for a terminal, :meth:`svg` for a browser; a notebook shows it."""

    def __init__(self, panels: Mapping[str, Any], cluster: Cluster | None = None) -> None:
        """As :func:`heat_map`."""
        self._panels = (e.HeatMapPanel * max(len(panels), 1))()
        self._num_panels = len(panels)
        kept: list[Any] = []
        for panel, (title, what) in zip(self._panels, panels.items()):
            of = cluster if cluster is not None or not isinstance(what, Plan) else what.cluster
            if of is None:
                raise InvalidArgument(f"cluster is None, must be given as {title!r} is no Plan")
            loads = what.gpu_loads if isinstance(what, Plan) else what
            if loads is None:
                raise InvalidArgument(f"the plan {title!r} was made without loads")
            values = read_reals(f"the loads of {title!r}", loads)
            if values.ndim != 2 or values.shape[1] != of.num_gpus:
                shape = list(values.shape)
                raise InvalidArgument(f"the loads of {title!r} have shape {shape}, must be [layers, {of.num_gpus}]")
            struct, text = of._as_c(), to_c(title)
            panel.title, panel.cluster = text, c.pointer(struct)
            panel.loads, panel.num_loads = values.ctypes.data, values.size
            kept += [struct, text, values]
        self._kept = kept
        self._text = self._draw(1)

    def svg(self, path: PathLike | None = None) -> str:
        """A self-contained SVG, also written to ``path`` if there is one. OSError if that fails."""
        text = self._draw(2)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"<dualpipe.eplb.HeatMap of {self._num_panels}>"

    def _repr_svg_(self) -> str:
        """What a notebook shows."""
        return self.svg()

    def _draw(self, drawing: int) -> str:
        return read_text("dualpipe_heat_map", self._panels, self._num_panels, drawing)


def heat_map(panels: Mapping[str, Any], cluster: Cluster | None = None) -> HeatMap:
    """Draws GPU loads by layer: 1 to 16 panels on one scale, ``{"before": …, "after": …}``.

    Each is a :class:`Plan`, or [layers, GPUs] as of :func:`gpu_loads`, and then the ``cluster`` must be given. Lines
    separate nodes, dead GPUs are grey, bars are the imbalances of layers. Of more than 128 layers or 256 GPUs a cell
    is the heaviest of several, and the picture says of how many.

    Raises :class:`~dualpipe.errors.InvalidArgument`.
    """
    return HeatMap(panels, cluster)
