"""Folders of images: which files, which classes, and decoding them.

The layout is ``train/<class>/*`` with ``test/<class>/*`` or ``val/<class>/*`` or both. With ``val`` but no
``test`` (ImageNet's layout) ``val`` is the test split. Without class folders, directly below ``train`` or the
folder itself, the images are unlabelled: fit for pretraining. A picture's shorter side is resized (bilinear,
antialiased) to the image size and the centre is cut out.

A file that cannot be decoded is refused by name, or, where the caller chose ``skip``, left out and counted.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
from PIL import Image

from twinbench.foundation.cores import usable_cores
from twinbench.foundation.errors import InputError, nearest_name

_log = logging.getLogger(__name__)

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})
LARGEST_NATURAL_SIZE = 224

Corrupt = Literal["refuse", "skip"]

_LOOKED_AT_FOR_SIZE = 64
_FILES_PER_TASK = 8
_NAMED_SKIPPED = 20
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class FileList:
    """The files of a split and their labels, int64 ``[N]``, -1 where unlabelled."""

    paths: list[Path]
    labels: np.ndarray


@dataclass(frozen=True)
class ImageFiles:
    """A folder of images: the splits that exist (``train``, perhaps ``val`` and ``test``) and the classes.

    ``remarks`` say in plain sentences what listing them left out, followed or assumed.
    """

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, FileList]
    remarks: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """SHA-256 of every split's relative names and sizes in bytes; the place and dates do not count."""
        digest = hashlib.sha256()
        for split, files in sorted(self.splits.items()):
            for path, label in zip(files.paths, files.labels.tolist(), strict=True):
                entry = (split, path.relative_to(self.root).as_posix(), label, path.stat().st_size)
                digest.update(repr(entry).encode())
        return digest.hexdigest()


class CorruptImage(InputError):
    """A file whose content cannot be decoded; not one that cannot be read, which no recipe may skip."""


class SkippedFiles:
    """The corrupt images of a split that were left out, by their row: counted all, named in a warning the first."""

    def __init__(self) -> None:
        self.paths: dict[int, Path] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def add(self, errors: Mapping[int, CorruptImage]) -> None:
        """Count the rows whose decoding ended in these errors; a row counts once."""
        for row, error in sorted(errors.items()):
            if row in self.paths:
                continue
            self.paths[row] = Path(str(error.where))
            if len(self) <= _NAMED_SKIPPED:
                _log.warning("skipped %s: %s", error.where, error.what)
            elif len(self) == _NAMED_SKIPPED + 1:
                _log.warning("more than %d corrupt images: the others are counted only", _NAMED_SKIPPED)


def list_images(root: Path) -> ImageFiles:
    """Find the images below ``root``, sorted by name.

    Raises InputError for a missing folder, no images at all, an empty class folder, images beside class
    folders, and for classes that differ between the splits.
    """
    existing_folder(root, "train/<class>/*.jpg or images")
    train = root / "train" if (root / "train").is_dir() else root
    if train == root and _subfolders(root):
        raise InputError(
            "there is no folder train here",
            where=root,
            nearest=nearest_entry(root, "train"),
            next_step="arrange the images as train/<class>/*.jpg and test/<class>/*.jpg",
        )
    classes, files = _list_split(train)
    splits = {"train": files}
    for name in ("val", "test"):
        if (root / name).is_dir():
            their_classes, splits[name] = _list_split(root / name)
            _require_same_classes(classes, their_classes, train, root / name)
    if "val" in splits and "test" not in splits:
        splits["test"] = splits.pop("val")
    return ImageFiles(root, classes, splits)


def _list_split(folder: Path) -> tuple[tuple[str, ...], FileList]:
    direct = [path for path in sorted(folder.iterdir()) if _is_image(path)]
    classes = _subfolders(folder)
    if direct and classes:
        raise InputError(
            f"{len(direct)} images lie beside the class folders, {direct[0].name} for one",
            where=folder,
            next_step="move them into the folders of their classes",
        )
    if not classes:
        if not direct:
            raise InputError(
                "no images here",
                where=folder,
                next_step=f"put images there ({', '.join(sorted(EXTENSIONS))}), in one folder per class",
            )
        return (), FileList(direct, np.full(len(direct), -1, np.int64))
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        mine = sorted(_images_below(folder / name))
        if not mine:
            raise InputError(
                f"class {name!r} has no images",
                where=folder / name,
                next_step="put images there or remove the folder",
            )
        paths += mine
        labels += [label] * len(mine)
    return tuple(classes), FileList(paths, np.array(labels, np.int64))


def _require_same_classes(
    classes: tuple[str, ...], theirs: tuple[str, ...], train: Path, other: Path
) -> None:
    if classes == theirs:
        return
    extra, missing = sorted(set(theirs) - set(classes)), sorted(set(classes) - set(theirs))
    raise InputError(
        f"the classes of {train.name} and {other.name} differ: "
        f"only in {train.name}: {', '.join(missing) or 'none'}; "
        f"only in {other.name}: {', '.join(extra) or 'none'}",
        where=other / extra[0] if extra else other,
        nearest=nearest_name(extra[0], classes) if extra else None,
        next_step=f"give {other.name} the same class folders as {train.name}",
    )


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()


def _images_below(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("."):
                yield Path(parent, name)


def existing_folder(path: Path, holds: str, option: str | None = None) -> None:
    """Raise InputError with the nearest name beside it if ``path`` is not a folder, which ``holds`` what is said."""
    if path.is_dir():
        return
    what = "this is a file, not a folder" if path.exists() else "there is no such folder"
    parent = path.absolute().parent
    raise InputError(
        what,
        where=path,
        nearest=nearest_entry(parent, path.name) if parent.is_dir() else None,
        next_step=f"check the path; it must hold {holds}",
        option=option,
    )


def nearest_entry(folder: Path, name: str) -> str | None:
    """The subfolder of ``folder`` whose name is most like ``name``, as a path."""
    nearest = nearest_name(name, _subfolders(folder))
    return None if nearest is None else str(folder / nearest)


def natural_size(files: ImageFiles, corrupt: Corrupt = "refuse") -> int:
    """The median shorter side of about 64 training images spread over the list, at most 224.

    Raises InputError naming an image that cannot be opened, or with ``skip`` if none of them can.
    """
    paths = files.splits["train"].paths
    sides = []
    for path in paths[:: max(1, len(paths) // _LOOKED_AT_FOR_SIZE)]:
        try:
            sides.append(min(picture_size(path)))
        except CorruptImage:
            if corrupt == "refuse":
                raise
    if not sides:
        raise all_corrupt(len(paths), paths[0], paths[-1])
    return max(8, min(LARGEST_NATURAL_SIZE, int(median(sides))))


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height by the file's header; raises as `open_rgb` does."""
    with opened(path) as image:
        return image.size


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A picture of which no more than the header is decoded; raises as `open_rgb` does."""
    try:
        with Image.open(path) as image:
            yield image
    except _DECODING_ERRORS as error:
        raise _unreadable(path, error) from error


def decode(paths: Sequence[Path], size: int) -> np.ndarray:
    """Decode files in parallel threads to RGB: uint8 ``[N, 3, size, size]``.

    Raises InputError naming the first file that cannot be decoded, or if the images cannot fit in memory.
    """
    return fit_all(lambda i: open_rgb(paths[i]), len(paths), size)


def decode_readable(paths: Sequence[Path], size: int, skipped: SkippedFiles) -> tuple[np.ndarray, np.ndarray]:
    """Decode the files that can be decoded and add the others to ``skipped``.

    Returns uint8 ``[n, 3, size, size]`` and the ascending int64 indices ``[n]`` of those files. Raises InputError if
    there are none, or if the images cannot fit in memory.
    """
    blank = Image.new("RGB", (size, size))
    errors: dict[int, CorruptImage] = {}

    def read(i: int) -> Image.Image:
        try:
            return open_rgb(paths[i])
        except CorruptImage as error:
            errors[i] = error
            return blank

    images = fit_all(read, len(paths), size)
    skipped.add(errors)
    kept = np.array([i for i in range(len(paths)) if i not in errors], np.int64)
    if len(kept) == 0:
        raise all_corrupt(len(paths), paths[0], paths[-1])
    return images if len(kept) == len(paths) else images[kept], kept


def fit_all(
    read: Callable[[int], Image.Image], n: int, size: int, shorter_side: int | None = None
) -> np.ndarray:
    """Pictures ``read(0)`` to ``read(n - 1)``, read in parallel threads: uint8 ``[n, 3, size, size]``.

    The shorter side is resized to ``shorter_side``, by default ``size``, and the centre of ``size`` is cut out.

    Raises the first error of ``read``, and InputError if the result cannot fit in memory.
    """
    _require_memory(n, size)
    images = np.empty((n, 3, size, size), np.uint8)

    def fit_some(start: int) -> None:
        for i in range(start, min(n, start + _FILES_PER_TASK)):
            images[i] = _fit(read(i), size, shorter_side or size).transpose(2, 0, 1)

    with ThreadPoolExecutor(usable_cores()) as pool:
        for _ in pool.map(fit_some, range(0, n, _FILES_PER_TASK)):
            pass
    return images


def resize_arrays(images: np.ndarray, size: int) -> np.ndarray:
    """Square images uint8 ``[N, H, H, 3]`` to contiguous ``[N, 3, size, size]``."""
    if images.shape[1] != size:
        images = np.stack([_fit(Image.fromarray(image), size, size) for image in images])
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def open_rgb(path: Path) -> Image.Image:
    """The decoded picture in RGB at its full size; raises CorruptImage, or InputError for a file it may not read."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except _DECODING_ERRORS as error:
        raise _unreadable(path, error) from error


def _fit(image: Image.Image, size: int, shorter_side: int) -> np.ndarray:
    """torchvision's ``Resize(shorter_side)`` and ``CenterCrop(size)``, to the pixel: uint8 ``[size, size, 3]``."""
    shorter = min(image.size)
    if shorter != shorter_side:
        width, height = (int(shorter_side * side / shorter) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (central_offset(side, size) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def central_offset(length: int, size: int) -> int:
    """Where the centre of ``size`` pixels begins in ``length`` of them, by the rounding of torchvision's CenterCrop."""
    return round((length - size) / 2)


def _unreadable(path: Path, error: BaseException) -> InputError:
    if isinstance(error, OSError) and error.errno is not None:
        return InputError(
            f"cannot read this file: {error.strerror}", where=path, next_step="make it readable"
        )
    return CorruptImage(
        f"cannot decode this image: {error}",
        where=path,
        next_step="replace the file or remove it; a training leaves such files out if its recipe says "
        "corrupt_images: skip",
        option="corrupt_images=skip",
    )


def all_corrupt(n: int, first: Path, last: Path) -> InputError:
    """The error for ``n`` files, from ``first`` to ``last``, of which not one can be decoded."""
    return InputError(
        f"none of the {n} images can be decoded",
        where=os.path.commonpath([first.parent, last.parent]),
        next_step="check that they were downloaded and unpacked whole",
    )


def _require_memory(n: int, size: int) -> None:
    needed = n * 3 * size * size
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.8 * installed:
        raise InputError(
            f"{n} images of {size} pixels need {needed / 2**30:.0f} GiB of memory, "
            f"this machine has {installed / 2**30:.0f} GiB",
            next_step="limit the number of images or choose a smaller image size",
        )
