"""From a painter to bytes: one style, three formats, nothing that depends on the day."""

from __future__ import annotations

import base64
import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from twinbench.foundation.registry import Registry
from twinbench.reports.layout import Table
from twinbench.reports.records import RunInfo
from twinbench.reports.study import FigureSpec, TableSpec

FORMATS = ("svg", "png", "pdf")
LINE = 28
"""The most characters in a line of a label that names a row or a run."""
_DPI = 160
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.titley": 1.0,  # fixed: found anew at every drawing, it costs as much as the ticks
    "svg.hashsalt": "twinbench",
    "text.parse_math": False,  # a name with dollar signs is a name
    "svg.fonttype": "path",
    "path.simplify": True,
}
_OPTIONS: dict[str, dict[str, Any]] = {  # what would tell the day is left out
    "svg": {"metadata": {"Date": None, "Creator": None, "Format": None, "Type": None}},
    # This level takes half the time of the usual one and makes files that are hardly larger.
    "png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 4}},
    "pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
}


@dataclass(frozen=True)
class Drawing:
    """A finished figure: its name, title, what it shows in words, and the bytes for each format.

    ``files`` is empty where there was nothing to draw; ``caption`` then says why.
    """

    name: str
    title: str
    caption: str
    files: dict[str, bytes]


@dataclass(frozen=True)
class Shown:
    """A table as it was declared, as it is finished, and the runs behind it: what a figure is a view of."""

    declared: TableSpec
    table: Table
    runs: Sequence[RunInfo]


Drawer = Callable[[FigureSpec, Shown, Shown], Drawing]
"""Draws a figure of a table, against another one, which is the same unless the figure names it."""

FIGURE_KINDS = Registry[Drawer]("figure kind")


def draws(kind: str) -> Callable[[Drawer], Drawer]:
    """Decorator of the function that draws the figures of a kind."""
    return partial(FIGURE_KINDS.add, kind)


def draw(
    spec: FigureSpec, title: str, caption: str, size: tuple[float, float], paint: Callable[[Figure], None]
) -> Drawing:
    """Paint a figure of ``size`` inches in the common style, and render it."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=_DPI)
        FigureCanvasAgg(figure)
        paint(figure)
        files = _render(figure)
    return Drawing(spec.name, title, caption, files)


def _render(figure: Figure) -> dict[str, bytes]:
    """The bytes of the figure in each format.

    Its panels are placed once, and the part of it with something in it is found once: as an engine of the figure and
    with ``bbox_inches="tight"`` matplotlib would do both anew for each format, which takes longer than the drawing.
    """
    ConstrainedLayoutEngine().execute(figure)
    box = figure.get_tightbbox().padded(mpl.rcParams["savefig.pad_inches"])
    files = {}
    for name in FORMATS:
        buffer = io.BytesIO()
        figure.savefig(buffer, format=name, dpi=_DPI, bbox_inches=box, **_OPTIONS[name])
        files[name] = buffer.getvalue()
    # Browsers would leave out lines of a picture that they show smaller than it is.
    files["svg"] = files["svg"].replace(b"image-rendering:crisp-edges;image-rendering:pixelated", b"")
    files["svg"] = re.sub(rb"(?<=data:image/png;base64,)[^\"]+", _with_palette, files["svg"])
    return files


def _with_palette(found: re.Match[bytes]) -> bytes:
    """An embedded PNG with a palette, the same to the pixel and half as large; of more than 256 colours as it is."""
    with Image.open(io.BytesIO(base64.b64decode(found[0]))) as picture:
        pixels = np.ascontiguousarray(picture.convert("RGBA"))
    colours, places = np.unique(pixels.view(np.uint32), return_inverse=True)
    palette = colours.view(np.uint8).reshape(-1, 4)
    if len(colours) > 256 or (palette[:, 3] < 255).any():
        return found[0]
    reduced = Image.fromarray(places.reshape(pixels.shape[:2]).astype(np.uint8))
    reduced.putpalette(palette[:, :3].tobytes())
    out = io.BytesIO()
    reduced.save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue())


def nothing_drawn(spec: FigureSpec, title: str, why: str) -> Drawing:
    """What stands in a figure's place, with the reason."""
    return Drawing(spec.name, title, f"Not drawn: {why}.", {})


def panels_of(figure: Figure, count: int, columns: int | None = None) -> list[Axes]:
    """``count`` axes in a grid, with few ticks: the panels are small, and ticks are most of the work."""
    columns = columns or _grid_columns(count)
    rows = math.ceil(count / columns)
    panels = [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
    for axes in panels:
        axes.locator_params(nbins=5)
    return panels


def wrapped(label: str) -> str:
    """A label, which may be as long as names of files and variants are, in lines of a width that a panel has."""
    return textwrap.fill(label, LINE, break_on_hyphens=False)


def grid_size(count: int, width: float, height: float, columns: int | None = None) -> tuple[float, float]:
    """The size in inches of a figure of ``count`` panels of ``width`` and ``height``."""
    columns = columns or _grid_columns(count)
    return max(columns * width, 3.6), math.ceil(count / columns) * height


def _grid_columns(count: int) -> int:
    return count if count <= 3 else 4 if count in (4, 7, 8) or count > 9 else 3
