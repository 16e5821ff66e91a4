"""The glyphs of ``letter-scenes`` and ``shape-scenes``: 26 letters of strokes and 10 filled shapes, with some tremor.

Every original is one drawing: its points are moved a little, and strokes have one of several widths. Training,
validation and test originals are drawn from streams of their own. In integers throughout, as `data.scenes` is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from twinbench.data.scenes import Bytes, Draws, Glyphs, Labels

_ORIGINALS_PER_CLASS = {"train": 100, "val": 20, "test": 40}
_SIDE = 128  # of a drawing; 16 for each of the eight cells of an original
_SAMPLES = 4  # of a cell's side
_TREMOR = 7

Points = npt.NDArray[np.int64]

# Lines of points on a grid of five columns and seven rows: "06 20 46" goes from the lower left corner over the middle
# of the top to the lower right corner.
_LETTERS = {
    "A": ("06 20 46", "14 34"),
    "B": ("06 00 30 41 42 33 03", "33 44 45 36 06"),
    "C": ("41 30 10 01 05 16 36 45",),
    "D": ("00 06 26 44 42 20 00",),
    "E": ("40 00 06 46", "03 33"),
    "F": ("40 00 06", "03 33"),
    "G": ("41 30 10 01 05 16 36 45 43 23",),
    "H": ("00 06", "40 46", "03 43"),
    "I": ("10 30", "20 26", "16 36"),
    "J": ("30 35 26 16 05",),
    "K": ("00 06", "40 03 46"),
    "L": ("00 06 46",),
    "M": ("06 00 23 40 46",),
    "N": ("06 00 46 40",),
    "O": ("10 30 41 45 36 16 05 01 10",),
    "P": ("06 00 30 41 42 33 03",),
    "Q": ("10 30 41 45 36 16 05 01 10", "24 46"),
    "R": ("06 00 30 41 42 33 03", "23 46"),
    "S": ("41 30 10 01 02 13 33 44 45 36 16 05",),
    "T": ("00 40", "20 26"),
    "U": ("00 05 16 36 45 40",),
    "V": ("00 26 40",),
    "W": ("00 16 23 36 40",),
    "X": ("00 46", "40 06"),
    "Y": ("00 23 40", "23 26"),
    "Z": ("00 40 06 46",),
}

# Corners of filled outlines on a grid of nine columns and nine rows; a second outline is a hole.
_SHAPES = {
    "arrow": ("03 43 41 84 47 45 05",),
    "crescent": ("20 50 72 74 76 58 28 46 55 54 53 42",),
    "cross": ("30 50 53 83 85 55 58 38 35 05 03 33",),
    "diamond": ("40 84 48 04",),
    "disc": ("20 60 82 86 68 28 06 02",),
    "half disc": ("06 03 21 41 61 83 86",),
    "ring": ("20 60 82 86 68 28 06 02", "32 52 63 65 56 36 25 23"),
    "square": ("11 71 77 17",),
    "star": ("40 53 83 65 78 46 18 35 03 33",),
    "triangle": ("40 88 08",),
}


def _grid(line: str, columns: int, rows: int) -> Points:
    """The points ``[p, 2]`` of a line in a drawing."""
    cells = np.array([[int(digit) for digit in cell] for cell in line.split()])
    margin = _SIDE // 16
    room = np.array([_SIDE - 4 * margin, _SIDE - 2 * margin]) if columns < rows else _SIDE - 2 * margin
    corner = np.array([2 * margin, margin]) if columns < rows else margin
    points: Points = corner + cells * room // (np.array([columns, rows]) - 1)
    return points


def _drawn(lines: Sequence[Points], n: int, draws: Draws) -> list[Points]:
    """The lines ``n`` times, with tremor: each ``[n, p, 2]``; a closed line stays closed."""
    drawn = []
    for line in lines:
        moved = line + draws.integers(-_TREMOR, _TREMOR, n, len(line), 2)
        if (line[0] == line[-1]).all():
            moved[:, -1] = moved[:, 0]
        drawn.append(moved)
    return drawn


def _samples() -> Points:
    """Where a drawing is looked at: ``[s, 2]``, the columns of a row before the next row."""
    centres = _SIDE // (8 * _SAMPLES) * np.arange(8 * _SAMPLES) + _SIDE // (16 * _SAMPLES)
    x, y = np.meshgrid(centres, centres)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _strokes(lines: Sequence[Points], n: int, draws: Draws) -> npt.NDArray[np.bool_]:
    """Where ink is, ``[n, s]``: within half a stroke's width of a line."""
    radius = draws.integers(8, 14, n).astype(np.int64)[:, None]
    samples, ink = _samples(), np.zeros((n, (8 * _SAMPLES) ** 2), bool)
    for line in _drawn(lines, n, draws):
        for start, end in pairwise(line.swapaxes(0, 1)):
            along = (end - start)[:, None]
            offset = samples - start[:, None]
            length = np.maximum((along**2).sum(-1), 1)
            share = np.clip((offset * along).sum(-1), 0, length)
            # the distance to the nearest point of the segment, all in units of 1 / length
            away = offset * length[..., None] - along * share[..., None]
            ink |= (away**2).sum(-1) <= (radius * length) ** 2
    return ink


def _filled(outlines: Sequence[Points], n: int, draws: Draws) -> npt.NDArray[np.bool_]:
    """Where ink is, ``[n, s]``: inside an odd number of outlines, seen along a ray to the right."""
    samples, inside = _samples(), np.zeros((n, (8 * _SAMPLES) ** 2), bool)
    for outline in _drawn(outlines, n, draws):
        ring = np.concatenate([outline, outline[:, :1]], axis=1)
        for start, end in pairwise(ring.swapaxes(0, 1)):
            (x0, y0), (x1, y1) = (point.T[..., None] for point in (start, end))
            x, y = samples.T
            crosses = (y0 > y) != (y1 > y)
            left = (x - x0) * (y1 - y0) < (x1 - x0) * (y - y0)
            inside ^= crosses & (left == (y1 > y0))
    return inside


def _originals(
    split: str,
    key: str,
    drawings: Sequence[Sequence[Points]],
    draw: Callable[[Sequence[Points], int, Draws], npt.NDArray[np.bool_]],
) -> tuple[Bytes, Labels]:
    draws, n = Draws(f"{key}originals/{split}"), _ORIGINALS_PER_CLASS[split]
    images = []
    for lines in drawings:
        ink = draw(lines, n, draws).reshape(n, 8, _SAMPLES, 8, _SAMPLES)
        images.append((ink.sum((2, 4)) * 255 // _SAMPLES**2).astype(np.uint8))
    return np.concatenate(images), np.repeat(np.arange(len(drawings)), n)


@cache
def letters(split: str) -> tuple[Bytes, Labels]:
    """The original letters of a split: images ``[n, 8, 8]`` (0..255) and labels ``[n]``, sorted by label."""
    drawings = [[_grid(line, 5, 7) for line in lines] for lines in _LETTERS.values()]
    return _originals(split, "letters/", drawings, _strokes)


@cache
def shapes(split: str) -> tuple[Bytes, Labels]:
    """The original shapes of a split: images ``[n, 8, 8]`` (0..255) and labels ``[n]``, sorted by label."""
    drawings = [[_grid(line, 9, 9) for line in lines] for lines in _SHAPES.values()]
    return _originals(split, "shapes/", drawings, _filled)


LETTERS = Glyphs(tuple(_LETTERS), letters, key="letters/")
SHAPES = Glyphs(tuple(_SHAPES), shapes, key="shapes/")
