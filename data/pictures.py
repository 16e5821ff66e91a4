"""Pictures for people: rows of small images as one, and PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from twinbench.foundation.files import write_atomically

_GAP = 2
_SMALLEST = 64  # pixels: smaller images are shown with whole pixels enlarged
_LARGEST = 96  # larger ones are shown smaller


def tiled(rows: Sequence[Sequence[Tensor]], apart: int = 0) -> Tensor:
    """Rows of images uint8 ``[3, H, W]``, all of one size, as one on white: uint8 ``[3, H', W']``.

    ``apart`` images at the beginning of each row stand a little apart from the others.
    """
    columns = max(len(row) for row in rows)
    _, height, width = rows[0][0].shape
    times = max(1, _SMALLEST // max(height, width))
    height, width = times * height, times * width
    gap = 3 * _GAP if apart else 0
    canvas = torch.full((3, len(rows) * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP + gap), 255)
    canvas = canvas.to(torch.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + _GAP), j * (width + _GAP) + (gap if j >= apart else 0)
            large = image.repeat_interleave(times, 1).repeat_interleave(times, 2)
            canvas[:, top : top + height, left : left + width] = large
    return canvas


def small(images: Tensor, side: int) -> Tensor:
    """Images ``[N, 3, H, W]``, uint8 or from 0 to 1, as uint8 of ``side`` pixels or as large as is shown."""
    floats = images.float() / 255 if images.dtype == torch.uint8 else images
    resized = interpolate(floats, size=min(side, _LARGEST), mode="bilinear", antialias=True)
    return (255 * resized).round().clamp(0, 255).to(torch.uint8)


def write_picture(path: Path, pixels: Tensor) -> None:
    """Write uint8 ``[3, H, W]`` as a PNG file, whole or not at all."""
    content = io.BytesIO()
    # zlib's usual level: its highest, `optimize`, takes ten times as long and saves one byte in a hundred
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(content, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
