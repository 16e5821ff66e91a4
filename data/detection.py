"""Images with annotated objects: what detection and instance segmentation train on and are measured with.

A reader of one format (`data.voc`, `data.coco`) gives `AnnotatedImage` records; every box and mask goes through the
rules below, the same for all formats.

Refused (InputError naming the file and the object): a missing image, one that is listed twice or for training and for
testing, a picture whose size is not the annotated one, a box that is not finite or whose right edge is left of its left
edge (bottom above top), boxes or masks of a split that are all in shares of the image (`require_pixels`), an unknown
class, a mask of another size than the image or wholly outside it, a picture that cannot be decoded (when it is met).

Repaired, counted and named in a warning, or refused where they are more than 20 and a quarter of all objects: a box
partly outside the image is clipped to it; a box without area, before or after clipping, is left out with its object. A
mask without a pixel is kept, for the reference evaluator counts its object, and named all the same.

A picture with an orientation tag is read in the way that has the annotated size (`data.orientation`), and one that the
annotations name in another spelling is looked for (`data.picture_names`). Whatever was repaired, left out, assumed or
found so is said with counts in the remarks of the set, and so are classes without an object.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as run_length
from torch import Tensor

from twinbench.data.orientation import Header, choose_turned, read_header
from twinbench.data.pixels import CorruptImage, Oddity, TooLargeImage, UnknownRange, open_rgb
from twinbench.data.remarks import Tally, shown
from twinbench.foundation.cores import own_cores
from twinbench.foundation.errors import InputError

_log = logging.getLogger(__name__)

_NAMED_REPAIRS = 20
_MOST_REPAIRED = 0.25
_NAMED_CLASSES = 5
_FEW_PIXELS = 4
RESTORE = "restore the file, or take it out of the list of its split"
_SAVE_AGAIN = "save it with 8 or 16 unsigned bits a channel, or take it out of the list of its split"
_TAKE_OUT = "take it out of the list of its split, or cut it and its annotation into smaller ones"
Part = Literal["box", "mask"]
_TOO_MANY: Mapping[Part, tuple[str, str]] = {
    "box": (
        "are outside their image or without area",
        "look at the format of the boxes: COCO's are left, top, width, height; VOC's are edges, from 1",
    ),
    "mask": (
        "have a mask without a pixel or with a polygon of fewer than three corners",
        "look at the format of the masks: corners are x, y, x, y ... in pixels",
    ),
}


def unusable(error: CorruptImage) -> InputError:
    """The error for an annotated picture: nothing may stand in for it, so the advice to skip it would be wrong."""
    next_steps: dict[type[CorruptImage], str] = {UnknownRange: _SAVE_AGAIN, TooLargeImage: _TAKE_OUT}
    return InputError(error.what, where=error.where, next_step=next_steps.get(type(error), RESTORE))


class PictureFiles(Sequence[Tensor]):
    """Pictures of different sizes on disk; each is decoded when it is asked for, uint8 ``[3, H, W]`` RGB.

    ``transpositions`` are what makes each decoded picture the annotated one, None where it is that already.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        sizes: Sequence[tuple[int, int]],
        transpositions: Sequence[Image.Transpose | None] | None = None,
    ) -> None:
        self.paths, self.sizes = list(paths), list(sizes)
        self._transpositions = list(transpositions or [None] * len(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        """One picture, or a list of them for a slice; raises InputError naming a file that cannot be decoded."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        try:
            picture = open_rgb(self.paths[index])
        except CorruptImage as error:
            raise unusable(error) from error
        transposition = self._transpositions[index]
        if transposition is not None:
            picture = picture.transpose(transposition)
        return torch.from_numpy(np.array(picture).transpose(2, 0, 1).copy())

    def only(self, index: int) -> PictureFiles:
        """One picture by itself, still on disk: what is sent to a worker process."""
        return PictureFiles([self.paths[index]], [self.sizes[index]], [self._transpositions[index]])


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
    """A picture's file, its annotated size in pixels, its objects, and what makes it that picture once decoded."""

    path: Path
    height: int
    width: int
    objects: tuple[AnnotatedObject, ...]
    transposition: Image.Transpose | None = None


@dataclass(frozen=True)
class AnnotatedSet:
    """What a reader found: class names, and the images of ``train`` and ``test``.

    ``remarks`` say in plain sentences what reading them left out, repaired or assumed.
    """

    classes: tuple[str, ...]
    splits: dict[str, list[AnnotatedImage]]
    remarks: tuple[str, ...] = ()

    def digest(self) -> str:
        """SHA-256 of the classes, every annotation and how pictures are turned, whatever the place of the folder."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for split, images in sorted(self.splits.items()):
            for image in images:
                entry: tuple[object, ...] = (split, image.path.name, image.height, image.width, image.objects)
                if image.transposition is not None:
                    entry += (image.transposition.name,)
                digest.update(repr(entry).encode())
        return digest.hexdigest()


class Repairs:
    """Counts the repaired objects of a set by what was repaired, and names the first of them in warnings."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[Part, str], Tally] = {}

    def add(self, part: Part, what: str, where: str, details: str = "") -> None:
        """Count one repair of a box or mask."""
        self._tallies.setdefault((part, what), Tally()).add(where)
        count = sum(tally.count for tally in self._tallies.values())
        if count <= _NAMED_REPAIRS:
            _log.warning("%s: %s%s", where, what, details)
        elif count == _NAMED_REPAIRS + 1:
            _log.warning("more than %d repaired objects: the others are counted only", _NAMED_REPAIRS)

    def remarks(self, objects: int) -> tuple[str, ...]:
        """What was repaired of so many objects; raises InputError if these are too many to be slips."""
        for part, (what, next_step) in _TOO_MANY.items():
            tallies = [tally for (repaired, _), tally in self._tallies.items() if repaired == part]
            count = sum(tally.count for tally in tallies)
            if count > max(_NAMED_REPAIRS, _MOST_REPAIRED * objects):
                raise InputError(
                    f"{count} of {objects} objects {what}", where=tallies[0].first, next_step=next_step
                )
        return tuple(f"{what}: {tally.of(objects, 'objects')}" for (_, what), tally in self._tallies.items())


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
    details = f" of {width}x{height} pixels: {tuple(box)}"
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        repairs.add("box", "left out a box without area in the image", where, details)
        return None
    if clipped != tuple(box):
        repairs.add("box", "clipped a box to the image", where, details)
    return clipped


def require_pixels(
    numbers: Iterable[float], kind: str, images: Sequence[AnnotatedImage], where: Path
) -> None:
    """Raise InputError if the numbers of the boxes or masks of a split are shares of an image's sides, from 0 to 1.

    Single boxes may well be so small; a split in which no number is larger than 1 has none in pixels, unless its images
    have but a few.
    """
    if max(max(image.height, image.width) for image in images) <= _FEW_PIXELS:
        return
    largest = 0.0
    for number in numbers:
        largest = max(largest, number)
        if largest > 1:
            return
    if largest > 0:
        raise InputError(
            f"no number of any {kind} is larger than 1: they are in shares of the image's width and height, not pixels",
            where=where,
            next_step="multiply x by the width of the image and y by its height",
        )


def annotated_set(
    root: Path, classes: tuple[str, ...], splits: dict[str, list[AnnotatedImage]], remarks: Sequence[str]
) -> AnnotatedSet:
    """The set below ``root`` by the rules of this module that concern whole pictures and the set.

    ``remarks`` are those of its reader; each remark is a warning as well. Raises InputError for a picture that is
    listed twice, is missing, cannot be opened or has another size than the annotated one.
    """
    _require_pictures_once(splits)
    oriented, of_orientation = _oriented([image for images in splits.values() for image in images], root)
    rest = iter(oriented)
    splits = {split: [next(rest) for _ in images] for split, images in splits.items()}
    said = tuple(
        _fit_for_a_record(remark, root)
        for remark in (*remarks, *of_orientation, *_class_remarks(classes, splits))
    )
    for remark in said:
        _log.warning("%s: %s", root, remark)
    return AnnotatedSet(classes, splits, said)


def _fit_for_a_record(remark: str, root: Path) -> str:
    """Without where the set lies, and with the bytes of names that are no text written out."""
    return remark.replace(f"{root}/", "").encode("utf-8", "backslashreplace").decode()


def _require_pictures_once(splits: Mapping[str, Sequence[AnnotatedImage]]) -> None:
    for split, images in splits.items():
        path, times = Counter(image.path for image in images).most_common(1)[0]
        if times > 1:
            what = f"{times} images of the split {split} are this picture"
            raise InputError(what, where=path, next_step="list every picture once")
    both = {image.path for image in splits["train"]} & {image.path for image in splits["test"]}
    if both:
        raise InputError(
            f"{len(both)} images are listed for training and for testing",
            where=min(both),
            next_step="take them out of one of the two lists",
        )


def _oriented(images: Sequence[AnnotatedImage], root: Path) -> tuple[list[AnnotatedImage], tuple[str, ...]]:
    """The images with what makes them the annotated pictures; every header is read, in parallel threads."""
    with ThreadPoolExecutor(own_cores()) as pool:
        headers = list(pool.map(_checked_header, images, chunksize=64))
    fitting = [
        header.fitting(image.height, image.width) for header, image in zip(headers, images, strict=True)
    ]
    turned, of_tags = choose_turned(headers, fitting, [shown(image.path, root) for image in images])
    oriented = [
        replace(image, transposition=header.transposition(way))
        for image, header, way in zip(images, headers, turned, strict=True)
    ]
    return oriented, (*of_tags, *_odd_remarks(images, headers, root))


def _odd_remarks(images: Sequence[AnnotatedImage], headers: Sequence[Header], root: Path) -> Iterator[str]:
    tallies: dict[Oddity, Tally] = {}
    for image, header in zip(images, headers, strict=True):
        for kind in header.odd:
            tallies.setdefault(kind, Tally()).add(shown(image.path, root))
    for kind, tally in tallies.items():
        yield f"{kind.value}: {tally.said('picture')}"


def _checked_header(image: AnnotatedImage) -> Header:
    if not os.path.isfile(image.path):
        raise InputError(
            "an annotated image is missing",
            where=image.path,
            next_step="unpack the images again, or take the image out of the list of its split",
        )
    try:
        header = read_header(image.path)
    except CorruptImage as error:
        raise unusable(error) from error
    if not header.fitting(image.height, image.width):
        raise InputError(
            f"the picture has {header.width}x{header.height} pixels, its annotation says {image.width}x{image.height}",
            where=image.path,
            next_step="the boxes belong to another version of this picture: restore it or correct the annotation",
        )
    return header


def _class_remarks(classes: Sequence[str], splits: Mapping[str, Sequence[AnnotatedImage]]) -> Iterator[str]:
    trained = {o.label for image in splits["train"] for o in image.objects if not o.crowd}
    measured = {o.label for image in splits["test"] for o in image.objects if not (o.crowd or o.difficult)}
    for labels, what in (
        (trained, "have no object to train on"),
        (measured, "have no test object that counts, and average precision is the mean over the others"),
    ):
        without = [name for label, name in enumerate(classes) if label not in labels]
        if labels and without:
            rest = f" and {len(without) - _NAMED_CLASSES} more" if len(without) > _NAMED_CLASSES else ""
            names = ", ".join(without[:_NAMED_CLASSES])
            yield f"{len(without)} of {len(classes)} classes {what}: {names}{rest}"


def detection_split(images: Sequence[AnnotatedImage]) -> DetectionSplit:
    """The annotated images in the form that detectors train on; pictures and masks are decoded when asked for."""
    sizes = [(image.height, image.width) for image in images]

    def flags(name: str) -> list[Tensor] | None:
        rows = [torch.tensor([getattr(o, name) for o in i.objects], dtype=torch.bool) for i in images]
        return rows if any(row.any() for row in rows) else None

    masked = any(o.mask is not None for image in images for o in image.objects)
    codes = [[o.mask for o in image.objects if o.mask is not None] for image in images]
    return DetectionSplit(
        images=PictureFiles([i.path for i in images], sizes, [i.transposition for i in images]),
        boxes=[torch.tensor([o.box for o in i.objects], dtype=torch.float32).view(-1, 4) for i in images],
        labels=[torch.tensor([o.label for o in i.objects], dtype=torch.int64) for i in images],
        masks=CodedMasks(codes, sizes) if masked else None,
        difficult=flags("difficult"),
        crowd=flags("crowd"),
    )
