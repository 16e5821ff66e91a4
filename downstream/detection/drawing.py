"""Detections drawn on test pictures, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from twinbench.data.detection import DetectionSplit
from twinbench.data.pictures import tiled
from twinbench.downstream.detection.coco_eval import Detections, pixel_masks

_SHOWN, _SIDE, _SUREST = 6, 192, 3  # test pictures, pixels of each one's longer side, detections in each


def drawn(test: DetectionSplit, detections: Sequence[Detections], classes: Sequence[str]) -> Tensor:
    """A few test pictures with the surest detections in each, named and with scores: uint8 ``[3, H, W]``."""
    shown = torch.linspace(0, len(test) - 1, min(_SHOWN, len(test))).long().tolist()
    pictures = [_with_detections(test.images[i].cpu(), detections[i], classes) for i in shown]
    half = (len(pictures) + 1) // 2
    return tiled([row for row in (pictures[:half], pictures[half:]) if row])


def _with_detections(image: Tensor, found: Detections, classes: Sequence[str]) -> Tensor:
    height, width = image.shape[-2:]
    scale = _SIDE / max(height, width)
    picture = _resized(image, scale, "bilinear")
    sure = found.scores.argsort(descending=True)[:_SUREST].tolist()
    if sure and found.masks is not None:
        masks = _resized(pixel_masks([found.masks[i] for i in sure]).to(torch.uint8), scale, "nearest").bool()
        picture = draw_segmentation_masks(picture, masks, alpha=0.3, colors="yellow")
    if sure:
        names = [f"{classes[int(found.labels[i])]} {found.scores[i]:.2f}" for i in sure]
        picture = draw_bounding_boxes(picture, scale * found.boxes[sure], names, colors="yellow")
    return pad(picture, (0, _SIDE - picture.shape[-1], 0, _SIDE - picture.shape[-2]), value=255)


def _resized(pixels: Tensor, scale: float, mode: str) -> Tensor:
    """Uint8 ``[n, H, W]`` at another size; with antialiasing unless ``nearest``."""
    size = [max(1, round(scale * side)) for side in pixels.shape[-2:]]
    smooth = mode != "nearest"
    return interpolate(pixels[None].float(), size, mode=mode, antialias=smooth)[0].round().to(torch.uint8)
