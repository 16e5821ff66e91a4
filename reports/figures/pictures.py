"""Pictures that runs and evaluations have left: views, nearest neighbours, detections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
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
)
from twinbench.reports.figures.measured import target_of
from twinbench.reports.records import RunInfo
from twinbench.reports.study import FigureSpec

_COLOURS = 64


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
    caption = f"One run a method, {where}: the same test images for all."
    return _panels(spec, title, caption, _found(shown.runs, (column.protocol, column.image_set)))


def _found(runs: Sequence[RunInfo], key: tuple[str, str]) -> dict[str, Path]:
    """For each method and variant the picture of its first run that has one, in the paper's order."""
    found: dict[str, Path] = {}
    for run in sorted(runs, key=lambda run: names.sort_key(run.method)):
        label = names.pretty(run.method) + (f", {run.variant}" if run.variant else "")
        if key in run.pictures:
            found.setdefault(label, run.pictures[key])
    return found


def _pixels(path: Path) -> npt.NDArray[np.uint8]:
    """A picture ``[H, W, 3]`` in its 64 most suitable colours: it takes half the bytes, and looks much the same."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB").quantize(_COLOURS).convert("RGB"))


def _panels(spec: FigureSpec, title: str, caption: str, found: dict[str, Path]) -> Drawing:
    if not found:
        return nothing_drawn(spec, title, "no run has left a picture")
    content = {label: _pixels(path) for label, path in found.items()}
    height, width = max(
        (image.shape[:2] for image in content.values()), key=lambda shape: shape[0] / shape[1]
    )

    def paint(figure: Figure) -> None:
        for axes, (label, image) in zip(panels_of(figure, len(content)), content.items(), strict=True):
            axes.imshow(image, interpolation="none")
            axes.set_title(label)
            axes.set_axis_off()

    return draw(spec, title, caption, grid_size(len(content), 3.2, 3.2 * height / width + 0.3), paint)
