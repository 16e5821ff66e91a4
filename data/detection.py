"""Images with annotated objects: what detection and instance segmentation train on and are measured with.

A reader of one format (`data.voc`, `data.coco`) gives `AnnotatedImage` records; every box and mask goes through the
rules below, the same for all formats.

Refused (InputError naming the file and the object): a missing image, a picture whose size is not the annotated one, a
box that is not finite or whose right edge is left of its left edge (bottom above top), an unknown class, a mask of
another size than the image or wholly outside it, a picture that cannot be decoded (when it is met).

Repaired, counted and named in a warning, or refused where they are more than 20 and a quarter of all objects: a box
partly outside the image is clipped to it; a box without area, before or after clipping, is left out with its object. A
mask without a pixel is kept, for the reference evaluator counts its object, and named all the same. Pictures are read
as they are stored, without turning them by their EXIF tag, for the annotated boxes refer to the stored pixels.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as run_length
from torch import Tensor

from twinbench.data.pixels import CorruptImage, open_rgb, picture_size
from twinbench.foundation.cores import usable_cores
from twinbench.foundation.errors import InputError

_log = logging.getLogger(__name__)

_NAMED_REPAIRS = 20
_MOST_REPAIRED = 0.25
RESTORE = "restore the file, or take it out of the list of its split"


class PictureFiles(Sequence[Tensor]):
    """Pictures of different sizes on disk; each is decoded when it is asked for, uint8 ``[3, H, W]`` RGB."""

    def __init__(self, paths: Sequence[Path], sizes: Sequence[tuple[int, int]]) -> None:
        self.paths, self.sizes = list(paths), list(sizes)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        """One picture, or a list of them for a slice; raises InputError naming a file that cannot be decoded."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        try:
            picture = open_rgb(self.paths[index])
        except CorruptImage as error:
            # Nothing may stand in for an annotated picture, so the advice to skip it would be wrong.
            raise InputError(error.what, where=error.where, next_step=RESTORE) from error
        return torch.from_numpy(np.array(picture).transpose(2, 0, 1).copy())

    def only(self, index: int) -> PictureFiles:
        """One picture by itself, still on disk: what is sent to a worker process."""
        return PictureFiles([self.paths[index]], [self.sizes[index]])


class CodedMasks(Sequence[Tensor]):
    """The masks of every image as COCO run lengths; an image's masks are bool ``[n, H, W]`` when asked for."""

    def __init__(self, codes: Sequence[list[dict[str, Any]]], sizes: Sequence[tuple[int, int]]) -> None:
        self._codes, self._sizes = codes, sizes

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, index: Any) -> Any:
        """The masks of one image, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not self._codes[index]:
            return torch.zeros(0, *self._sizes[index], dtype=torch.bool)
        decoded = run_length.decode(self._codes[index])
        return torch.from_numpy(decoded.transpose(2, 0, 1).astype(bool))

    def only(self, index: int) -> CodedMasks:
        """The masks of one image by themselves, still coded: what is sent to a worker process."""
        return CodedMasks([self._codes[index]], [self._sizes[index]])


@dataclass(frozen=True)
class DetectionSplit:
    """Images with objects; one tensor per image for each annotation.

    ``images`` uint8 ``[N, 3, H, W]``, or `PictureFiles` where sizes differ; ``boxes`` float32 ``[n, 4]`` xyxy in
    pixels, the far edges exclusive; ``labels`` int64 ``[n]`` from 0; ``masks`` bool ``[n, H, W]``, None where the set
    has none. ``difficult`` (Pascal VOC) and ``crowd`` (COCO) are bool ``[n]``, None where no object is: difficult
    objects are trained on and do not count in the evaluation, crowds are not trained on and excuse detections.
    """

    images: Tensor | PictureFiles
    boxes: list[Tensor]
    labels: list[Tensor]
    masks: Sequence[Tensor] | None = None
    difficult: list[Tensor] | None = None
    crowd: list[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image in pixels, without decoding it."""
        if isinstance(self.images, PictureFiles):
            return self.images.sizes[index]
        return self.images.shape[-2], self.images.shape[-1]

    def ignored(self, index: int) -> Tensor:
        """Which objects of an image are difficult or crowds, bool ``[n]``."""
        ignored = torch.zeros(len(self.labels[index]), dtype=torch.bool)
        for flags in (self.difficult, self.crowd):
            if flags is not None:
                ignored = ignored | flags[index]
        return ignored


@dataclass(frozen=True)
class AnnotatedObject:
    """A checked object: xyxy box in pixels, 0-based label and, in a set with masks, the mask's run lengths."""

    box: tuple[float, float, float, float]
    label: int
    difficult: bool = False
    crowd: bool = False
    mask: dict[str, Any] | None = None


@dataclass(frozen=True)
class AnnotatedImage:
    """A picture's file, its annotated size in pixels and its objects."""

    path: Path
    height: int
    width: int
    objects: tuple[AnnotatedObject, ...]


@dataclass(frozen=True)
class AnnotatedSet:
    """What a reader found: class names, and the images of ``train`` and ``test``.

    ``remarks`` say in plain sentences what reading them left out, repaired or assumed.
    """

    classes: tuple[str, ...]
    splits: dict[str, list[AnnotatedImage]]
    remarks: tuple[str, ...] = ()

    def digest(self) -> str:
        """SHA-256 of the classes and every annotation, whatever the place of the folder."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for split, images in sorted(self.splits.items()):
            for image in images:
                entry = (split, image.path.name, image.height, image.width, image.objects)
                digest.update(repr(entry).encode())
        return digest.hexdigest()


class Repairs:
    """Counts the repaired objects of a set and names the first of them in warnings."""

    def __init__(self) -> None:
        self._count = 0
        self._first = ""

    def add(self, what: str, where: str) -> None:
        """Count one repair."""
        self._count += 1
        self._first = self._first or where
        if self._count <= _NAMED_REPAIRS:
            _log.warning("%s: %s", where, what)
        elif self._count == _NAMED_REPAIRS + 1:
            _log.warning("more than %d repaired objects: the others are counted only", _NAMED_REPAIRS)

    def summarise(self, objects: int) -> None:
        """Say how many of so many objects were repaired; raises InputError if these are too many to be slips."""
        if self._count > _NAMED_REPAIRS:
            _log.warning("repaired objects: %d of %d", self._count, objects)
        if self._count > max(_NAMED_REPAIRS, _MOST_REPAIRED * objects):
            raise InputError(
                f"{self._count} of {objects} objects are outside their image or without area",
                where=self._first,
                next_step="look at the format of the boxes: COCO's are left, top, width, height; VOC's are edges",
            )


def checked_box(
    box: Sequence[float], height: int, width: int, where: str, repairs: Repairs
) -> tuple[float, float, float, float] | None:
    """An xyxy box by the rules of this module; None where the object is left out.

    Raises InputError for a box that is not finite or turned inside out; ``where`` names file and object.
    """
    left, top, right, bottom = box
    if not np.isfinite(box).all() or right < left or bottom < top:
        raise InputError(
            f"not a box: left {left:g}, top {top:g}, right {right:g}, bottom {bottom:g}",
            where=where,
            next_step="correct the annotation",
        )
    clipped = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        repairs.add(
            f"left out a box without area in the image of {width}x{height} pixels: {tuple(box)}", where
        )
        return None
    if clipped != tuple(box):
        repairs.add(f"clipped a box to the image of {width}x{height} pixels: {tuple(box)}", where)
    return clipped


def check_pictures(images: Sequence[AnnotatedImage]) -> None:
    """Compare every picture's header with its annotation, in parallel threads.

    Raises InputError for the first picture that is missing, cannot be opened or has another size.
    """
    with ThreadPoolExecutor(usable_cores()) as pool:
        for _ in pool.map(_check_picture, images, chunksize=64):
            pass


def _check_picture(image: AnnotatedImage) -> None:
    if not image.path.is_file():
        raise InputError(
            "an annotated image is missing",
            where=image.path,
            next_step="unpack the images again, or take the image out of the list of its split",
        )
    try:
        width, height = picture_size(image.path)
    except CorruptImage as error:
        raise InputError(error.what, where=error.where, next_step=RESTORE) from error
    if (height, width) != (image.height, image.width):
        raise InputError(
            f"the picture has {width}x{height} pixels, its annotation says {image.width}x{image.height}",
            where=image.path,
            next_step="the boxes belong to another version of this picture: restore it or correct the annotation",
        )


def detection_split(images: Sequence[AnnotatedImage]) -> DetectionSplit:
    """The annotated images in the form that detectors train on; pictures and masks are decoded when asked for."""
    sizes = [(image.height, image.width) for image in images]

    def flags(name: str) -> list[Tensor] | None:
        rows = [torch.tensor([getattr(o, name) for o in i.objects], dtype=torch.bool) for i in images]
        return rows if any(row.any() for row in rows) else None

    masked = any(o.mask is not None for image in images for o in image.objects)
    codes = [[o.mask for o in image.objects if o.mask is not None] for image in images]
    return DetectionSplit(
        images=PictureFiles([image.path for image in images], sizes),
        boxes=[torch.tensor([o.box for o in i.objects], dtype=torch.float32).view(-1, 4) for i in images],
        labels=[torch.tensor([o.label for o in i.objects], dtype=torch.int64) for i in images],
        masks=CodedMasks(codes, sizes) if masked else None,
        difficult=flags("difficult"),
        crowd=flags("crowd"),
    )
