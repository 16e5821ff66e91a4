"""Pictures that runs and evaluations have left: views, nearest neighbours, detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from twinbench.reports import names
from twinbench.reports.figures.drawing import (
    Drawing,
    Shown,
    draw,
    draws,
    grid_size,
    nothing_drawn,
    panels_of,
    wrapped,
)
from twinbench.reports.figures.measured import target_of
from twinbench.reports.records import RunInfo
from twinbench.reports.study import FigureSpec

_NEIGHBOURS = (
    " The first column is the test image; after the gap stand its nearest training images, the nearest first."
)
_TOLD = {"knn": _NEIGHBOURS, "knn-tuned": _NEIGHBOURS}
"""What a reader of a protocol's picture must know, by the part of its name before the slash."""
_COLOURS, _COLOURS_OF_WIDE = 128, 48
_WIDE = 400  # pixels from which on two panels beside each other are enough
_DPI = 150  # of the PNG, in which a picture is to have all its pixels


@draws("views")
def views(spec: FigureSpec, shown: Shown, against: Shown) -> Drawing:
    """What each method trained on: training images, each before views of it."""
    title = spec.title or "Views"
    caption = (
        "One run a method: in each row a training image and, after the gap, views of it as they were drawn."
    )
    return _panels(spec, title, caption, _found(shown.runs, ("", "")))


@draws("pictures")
def pictures(spec: FigureSpec, shown: Shown, against: Shown) -> Drawing:
    """What an evaluation left to look at: the neighbours of test images, or detections in test scenes."""
    column = shown.table.columns[target_of(spec, shown.declared, shown.table)]
    title = spec.title or f"{column.label}: examples"
    where = f"{column.protocol} on {column.image_set or 'the image set'}"
    told = _TOLD.get(column.protocol.partition("/")[0], "")
    caption = f"One run a method, {where}: the same test images for all.{told}"
    return _panels(spec, title, caption, _found(shown.runs, (column.protocol, column.image_set)))


def _found(runs: Sequence[RunInfo], key: tuple[str, str]) -> dict[str, Path]:
    """For each method and variant the picture of its first run that has one, in the paper's order."""
    found: dict[str, Path] = {}
    for run in sorted(runs, key=lambda run: names.sort_key(run.method)):
        label = names.pretty(run.method) + (f", {run.variant}" if run.variant else "")
        if key in run.pictures:
            found.setdefault(label, run.pictures[key])
    return found


@dataclass(frozen=True)
class _Picture:
    """Pixels ``[h, w, 3]`` and the size that they are shown at, in pixels."""

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    height: int
    width: int


def _read(path: Path) -> _Picture:
    """The picture in a file, in its most suitable colours: it takes half the bytes and looks much the same.

    Without dithering, which would sprinkle views with dots that no method saw. Colours that k-means moved to the middle
    of what they stand for are truer, and make fewer specks. Of one that was enlarged to twice its
    size every other pixel says it all.
    """
    with Image.open(path) as picture:
        whole = np.asarray(picture.convert("RGB"))
    half = whole[::2, ::2]
    enlarged = np.array_equal(half.repeat(2, axis=0).repeat(2, axis=1), whole)
    kept = Image.fromarray(half if enlarged else whole)
    colours = _COLOURS_OF_WIDE if kept.width > _WIDE else _COLOURS
    reduced = kept.quantize(colours, dither=Image.Dither.NONE, kmeans=1).convert("RGB")
    return _Picture(np.asarray(reduced), *whole.shape[:2])


def _panels(spec: FigureSpec, title: str, caption: str, found: dict[str, Path]) -> Drawing:
    if not found:
        return nothing_drawn(spec, title, "no run has left a picture")
    content = {label: _read(path) for label, path in found.items()}
    height = max(picture.height for picture in content.values())
    width = max(picture.width for picture in content.values())

    columns = min(2, len(content)) if width > _WIDE else None

    def paint(figure: Figure) -> None:
        panels = panels_of(figure, len(content), columns)
        for axes, (label, picture) in zip(panels, content.items(), strict=True):
            extent = (0, picture.width, picture.height, 0)
            axes.imshow(picture.pixels, extent=extent, interpolation="none")
            axes.set(xlim=(0, width), ylim=(height, 0))  # so that all are at one scale
            axes.set_title(wrapped(label))
            axes.set_axis_off()

    inches = min(max(3.2, width / _DPI), 4.4 * width / height)
    size = grid_size(len(content), inches, inches * height / width + 0.3, columns)
    return draw(spec, title, caption, size, paint)
