"""The tasks of all ranks, drawn. A timeline stays in the process that recorded it; its spans are numpy's and travel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = 100
SIGNS = {"FB": "&", "REDUCE_GRADS": "+"}
"""Of kinds that are no single letter."""
COLORS = {"F": "#6a9fe0", "B": "#db6a52", "I": "#cdb541", "W": "#5cc696", "FB": "#8a6bb8", "REDUCE_GRADS": "#8e8695"}
PIXELS, ROW, LEFT = 1200, 34, 60


def as_text(spans: Sequence[Any]) -> str:
    """A line for each rank. ``spans``: by rank, what :meth:`dualpipe.Timeline.spans` gave there."""
    column = makespan_of(spans) / COLUMNS
    return "\n".join(f"{rank:4} |{_line(own, column)}|" for rank, own in enumerate(spans))


def as_svg(spans: Sequence[Any], path: Path) -> None:
    """Likewise, as a file."""
    scale = PIXELS / makespan_of(spans)
    width, height = LEFT + PIXELS + 10, ROW * len(spans) + 10
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">']
    parts.append('<rect width="100%" height="100%" fill="#fff"/>')
    for rank, own in enumerate(spans):
        top = 8 + ROW * rank
        parts.append(f'<text x="8" y="{top + 18}" font-size="13">rank {rank}</text>')
        parts.append(f'<rect x="{LEFT}" y="{top}" width="{PIXELS}" height="{ROW - 8}" fill="#e8ebee"/>')
        for span in own:
            left, wide = LEFT + span["start"] * scale, (span["end"] - span["start"]) * scale
            box = f'x="{left:.2f}" y="{top}" width="{wide:.2f}" height="{ROW - 8}"'
            opacity = 1 if _copy_of(span) == 0 else 0.6
            what = f"{_name_of(span)}: {1e3 * span['start']:.3f} to {1e3 * span['end']:.3f} ms"
            color = COLORS[str(span["kind"])]
            parts.append(f'<rect {box} fill="{color}" fill-opacity="{opacity}"><title>{what}</title></rect>')
    path.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")


def makespan_of(spans: Sequence[Any]) -> float:
    """Seconds from the start of the step to the end of its last task."""
    return float(max(own["end"].max() for own in spans))


def _line(spans: Any, column: float) -> str:
    """Capital letters are the rank's first parameter copy, small ones its second; a dot is idle."""
    line = ["."] * COLUMNS
    for span in spans:
        kind = str(span["kind"])
        sign = SIGNS.get(kind, kind if _copy_of(span) == 0 else kind.lower())
        first, end = int(span["start"] / column), math.ceil(span["end"] / column)
        line[first:end] = sign * (min(end, COLUMNS) - first)
    return "".join(line)


def _copy_of(span: Any) -> int:
    """Of a pair, that of the forward."""
    return int(span["forward" if span["forward"]["copy"] >= 0 else "backward"]["copy"])


def _name_of(span: Any) -> str:
    passes = [span[half] for half in ("forward", "backward") if span[half]["copy"] >= 0]
    where = (f"stage {one['stage']}, micro-batch {one['microbatch']}, direction {one['direction']}" for one in passes)
    return f"{span['kind']} of {' and '.join(where)}"
