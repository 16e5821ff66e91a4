"""Folders of images: which splits, which classes, and reading them as squares of one size.

The layout is ``train/<class>/*`` with ``test/<class>/*`` or ``val/<class>/*`` or both; ``val`` may be called
``valid`` or ``validation``. With ``val`` but no ``test`` (ImageNet's layout) ``val`` is the test split. Other folders
beside these are not read. Without class folders, directly below a split or the folder itself, the images are
unlabelled: fit for pretraining.

The classes are the folders of ``train``, each with images, perhaps in folders of their own. Where these seem to be the
classes, and the folders of ``train`` a level above, the set is refused. Another split may lack some of the classes (its
accuracy is over the images that it has), but has no others. Which files are images says `data.listing`, what their
pixels are `data.pixels`: a picture's shorter side is resized (bilinear, antialiased) to the image size and the centre
is cut out. What listing leaves out, follows or assumes is in `ImageFiles.remarks`.

A file that cannot be decoded is refused by name, or, where the caller chose ``skip``, left out and counted.
"""

from __future__ import annotations

import hashlib
import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
from PIL import Image

from twinbench.data import contents
from twinbench.data.listing import EXTENSIONS, Listing, holds_pictures, is_hidden, repeated
from twinbench.data.pixels import (
    CorruptImage,
    Oddities,
    Oddity,
    Picture,
    picture_size,
    read_picture,
)
from twinbench.data.remarks import Tally, first_names, shown
from twinbench.foundation.cores import own_cores
from twinbench.foundation.errors import InputError, nearest_name
from twinbench.foundation.machine_memory import usable_memory

_log = logging.getLogger(__name__)

LARGEST_NATURAL_SIZE = 224

Corrupt = Literal["refuse", "skip"]

_LISTED = 5  # files that cannot be decoded
_LOOKED_AT_FOR_SIZE = 64
_FILES_PER_TASK = 8
_NAMED_SKIPPED = 20
_VALIDATION = ("val", "valid", "validation")
# How a file becomes a square of pixels, decoding included: what a change alters gets another fingerprint.
_PIXELS_VERSION = 2


@dataclass(frozen=True)
class FileList:
    """The files of a split and their labels, int64 ``[N]``, -1 where unlabelled."""

    paths: list[Path]
    labels: np.ndarray

    def rows(self) -> Iterator[tuple[Path, int]]:
        """Each file with its label."""
        return zip(self.paths, self.labels.tolist(), strict=True)


@dataclass(frozen=True)
class ImageFiles:
    """A folder of images: the splits that exist (``train``, perhaps ``val`` and ``test``) and the classes.

    ``remarks`` say in plain sentences what listing them left out, followed or assumed. ``unread`` are the names of
    other folders in ``root`` that hold pictures.
    """

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, FileList]
    remarks: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """SHA-256 of every split's relative names, labels and contents (`data.contents`), and of how pixels are made.

        The place and dates of the files do not count. Raises InputError for a file that cannot be read.
        """
        rows = [(name, *row) for name, files in sorted(self.splits.items()) for row in files.rows()]
        found = contents.digests(self.root, [path for _, path, _ in rows])
        return fingerprint_of(
            (split, path.relative_to(self.root).as_posix(), label, content)
            for (split, path, label), content in zip(rows, found, strict=True)
        )


def fingerprint_of(entries: Iterable[tuple[str, str, int, bytes]]) -> str:
    """SHA-256 of the split, the name below the folder, the label and the content of every file, and of the pixels."""
    digest = hashlib.sha256(f"pixels {_PIXELS_VERSION}".encode())
    for entry in entries:
        digest.update(repr(entry).encode())
    return digest.hexdigest()


class SkippedFiles:
    """The images of a split that were left out, by their row: all are counted, the first are named in warnings."""

    def __init__(self) -> None:
        self.paths: dict[int, Path] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def include(self, others: Mapping[int, Path]) -> None:
        """Count what another process has left out, and named."""
        self.paths.update(others)

    def add(self, errors: Mapping[int, CorruptImage]) -> None:
        """Count the rows whose decoding ended in these errors; a row counts once."""
        for row, error in sorted(errors.items()):
            if row in self.paths:
                continue
            self.paths[row] = Path(str(error.where))
            if len(self) <= _NAMED_SKIPPED:
                _log.warning("skipped %s: %s", error.where, error.what)
            elif len(self) == _NAMED_SKIPPED + 1:
                _log.warning("more than %d skipped images: the others are counted only", _NAMED_SKIPPED)


def list_images(root: Path) -> ImageFiles:
    """Find the images below ``root``, sorted by name; which files those are says `data.listing`.

    Raises InputError for a missing folder, no images at all, a class without training images, images beside class
    folders and classes that lie a level too low.
    """
    existing_folder(root, "train/<class>/*.jpg or images")
    listing = Listing(root)
    folder = root / "train" if (root / "train").is_dir() else root
    if folder == root and _subfolders(root):
        _require_no_detection_set(root)
        raise InputError(
            "there is no folder train here",
            where=root,
            nearest=nearest_entry(root, "train"),
            next_step="arrange the images as train/<class>/*.jpg and test/<class>/*.jpg",
        )
    train = _found(listing, folder)
    _require_distinct_names(train)
    for name, paths in train.classes.items():
        if not paths:
            raise _empty_class(root, folder / name)
    _require_no_level_above(train)
    remarks: list[str] = []
    splits = {"train": train.files(tuple(train.classes))}
    unread: tuple[str, ...] = ()
    if folder != root:
        splits |= _other_splits(listing, train, remarks)
        unread = _not_read(root, remarks)
    if listing.followed_links:
        remarks += repeated([(name, files.paths) for name, files in splits.items()], root)
    said = (*listing.remarks(), *remarks)
    for remark in said:
        _log.warning("%s: %s", root, remark)
    return ImageFiles(root, tuple(train.classes), splits, said, unread)


@dataclass(frozen=True)
class _Found:
    """The folder of a split: its images by class, every class folder with them; or without class folders, all."""

    folder: Path
    classes: dict[str, list[Path]]
    unlabelled: list[Path]

    def files(self, classes: tuple[str, ...]) -> FileList:
        """The images with the places of their classes among ``classes``."""
        if not self.classes:
            return FileList(self.unlabelled, np.full(len(self.unlabelled), -1, np.int64))
        counts = [len(self.classes.get(name, ())) for name in classes]
        paths = [path for name in classes for path in self.classes.get(name, ())]
        return FileList(paths, np.repeat(np.arange(len(classes), dtype=np.int64), counts))


def _found(listing: Listing, folder: Path) -> _Found:
    listing.follow(folder)
    loose, inner = listing.here(folder)
    if loose and inner:
        raise InputError(
            f"{len(loose)} images lie beside the class folders, {loose[0].name} for one",
            where=folder,
            next_step="move them into the folders of their classes",
        )
    found = _Found(folder, {path.name: list(listing.below(path)) for path in inner}, loose)
    if not loose and not any(found.classes.values()):
        if inner:
            raise _empty_class(listing.root, inner[0])
        kinds = ", ".join(sorted(EXTENSIONS))
        raise _no_images(
            "no images here", listing.root, folder, f"put images there ({kinds}), in one folder per class"
        )
    return found


def _require_no_level_above(train: _Found) -> None:
    """Raise InputError if the folders of ``train`` seem to hold the classes: one alone, or all the same folders."""
    names = list(train.classes)
    inner = [_inner_folders(train.folder / name, paths) for name, paths in train.classes.items()]
    if not inner or not all(inner) or any(folders != inner[0] for folders in inner):
        return
    below = first_names(sorted(inner[0]))
    if len(names) == 1:
        what = (
            f"the only class is {names[0]!r}, which holds no picture itself but folders of pictures: {below}"
        )
    elif len(inner[0]) > 1:
        what = (
            f"the {len(names)} class folders ({first_names(names)}) hold no picture themselves but all the same "
            f"{len(inner[0])} folders of pictures: {below}"
        )
    else:
        return
    raise InputError(
        what,
        where=train.folder / names[0],
        next_step=f"move the folders of the classes directly below {train.folder.name}/, or, if the classes are "
        f"{first_names(names)}, move the pictures directly into these folders",
    )


def _inner_folders(folder: Path, paths: Sequence[Path]) -> frozenset[str]:
    """The folders directly in the folder of a class in which its pictures lie; none if one lies outside them."""
    depth = len(folder.parts)
    inner = set()
    for path in paths:
        if len(path.parts) == depth + 1:
            return frozenset()
        inner.add(path.parts[depth])
    return frozenset(inner)


def _composed(name: str) -> str:
    """A name with accents as one character; macOS and some archives store them as two."""
    return unicodedata.normalize("NFC", name)


def _require_distinct_names(train: _Found) -> None:
    composed: dict[str, str] = {}
    for name in train.classes:
        other = composed.setdefault(_composed(name), name)
        if other != name:
            raise InputError(
                f"two class folders are called {_composed(name)}, once with accents as one character, once as two",
                where=train.folder / name,
                next_step="move the pictures of one of them into the other",
            )


def _spelled_as(train: _Found, found: _Found, remarks: list[str]) -> _Found:
    """The folder of a split with the classes called as in training where only the accents are stored otherwise."""
    known = {_composed(name): name for name in train.classes}
    classes: dict[str, list[Path]] = {}
    respelled = Tally()
    for name, paths in found.classes.items():
        if name not in train.classes and _composed(name) in known:
            respelled.add(f"{found.folder.name}/{_composed(name)}")
            name = known[_composed(name)]
        classes.setdefault(name, []).extend(paths)
    if respelled.count:
        train_name = train.folder.name
        remarks.append(
            f"taken for classes of {train_name}/ whose accents are stored otherwise: {respelled.said('folder')}"
        )
    return replace(found, classes=classes)


def _empty_class(root: Path, folder: Path) -> InputError:
    _require_no_detection_set(folder.parent)
    return _no_images(
        f"class {folder.name!r} has no images", root, folder, "put images there or remove the folder"
    )


def _no_images(what: str, root: Path, folder: Path, next_step: str) -> InputError:
    """Says in brackets why a folder in which something lies holds no images."""
    listing = Listing(root)
    list(listing.below(folder))
    if listing.other_kinds:
        next_step = f"convert the files to a kind of picture that is read: {', '.join(sorted(EXTENSIONS))}"
    left_out = f" ({'; '.join(listing.remarks())})" if listing.remarks() else ""
    return InputError(f"{what}{left_out}", where=folder, next_step=next_step)


def _require_no_detection_set(folder: Path) -> None:
    """Raise InputError for a folder in which ``labels`` with text files lies beside ``images``."""
    if (folder / "images").is_dir() and any((folder / "labels").rglob("*.txt")):
        raise InputError(
            "this is a detection set in YOLO's layout: images/ beside labels/, which holds .txt files",
            where=folder,
            next_step="convert it to Pascal VOC or COCO (detection sets are read as voc:PATH or coco:PATH), "
            "or give a folder of the images alone to pretrain on",
        )


def _other_splits(listing: Listing, train: _Found, remarks: list[str]) -> dict[str, FileList]:
    """The splits beside ``train``: ``val``, by any of its names, and ``test``, for which ``val`` stands in."""
    root = listing.root
    folders = {"val": _validation_folder(root), "test": root / "test"}
    splits = {
        name: _matched(_spelled_as(train, _found(listing, folder), remarks), train, remarks)
        for name, folder in folders.items()
        if folder.is_dir()
    }
    validation = folders["val"].name
    if "val" in splits and "test" not in splits:
        splits["test"] = splits.pop("val")
        remarks.append(f"{validation}/ is the test split, since there is no folder test")
    elif "val" in splits and validation != "val":
        remarks.append(f"{validation}/ is the validation split")
    return splits


def _validation_folder(root: Path) -> Path:
    there = [root / name for name in _VALIDATION if (root / name).is_dir()]
    return there[0] if there else root / _VALIDATION[0]


def _matched(found: _Found, train: _Found, remarks: list[str]) -> FileList:
    """The images of a split with the labels of training; InputError for a class that training does not have."""
    here, there, classes = found.folder.name, train.folder.name, tuple(train.classes)
    if classes and not found.classes:
        remarks.append(f"{here}/ has no class folders: its {len(found.unlabelled)} pictures have no labels")
    extra = [name for name, paths in found.classes.items() if paths and name not in train.classes]
    missing = [name for name in classes if not found.classes.get(name)]
    if extra:
        raise InputError(
            f"the classes of {there} and {here} differ: "
            f"only in {there}: {_quoted(missing) or 'none'}; only in {here}: {_quoted(extra)}",
            where=found.folder / extra[0],
            nearest=nearest_name(extra[0], classes),
            next_step=f"give {here} no class folders but those of {there}",
        )
    if found.classes and missing:
        remarks.append(
            f"{here}/ has no pictures of {len(missing)} of the {len(classes)} classes: {first_names(missing)}"
        )
    empty = sorted(found.classes.keys() - train.classes.keys())
    if empty:
        remarks.append(f"left out empty folders of {here}/ that {there}/ does not have: {first_names(empty)}")
    return found.files(classes)


def _quoted(names: Sequence[str]) -> str:
    """The first names with their blanks and unprintable characters in sight."""
    return first_names([repr(name) for name in names])


def _not_read(root: Path, remarks: list[str]) -> tuple[str, ...]:
    """The folders beside the splits that hold pictures; of these, and of pictures and broken links there, say so."""
    pictures, folders = Listing(root).here(root)
    broken = [path.name for path in sorted(root.iterdir()) if path.is_symlink() and not path.exists()]
    read = {"train", _validation_folder(root).name, "test"}
    unread = [path.name for path in folders if path.name not in read and holds_pictures(path)]
    if unread:
        remarks.append(f"folders that are not read though they hold pictures: {first_names(unread)}")
    if broken:
        remarks.append(f"links that lead nowhere: {first_names(broken)}")
    if pictures:
        loose = Tally(len(pictures), shown(pictures[0], root))
        remarks.append(f"left out as beside the folders of the splits: {loose.said('picture')}")
    return tuple(unread)


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


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

    Raises InputError naming the images that cannot be opened, or with ``skip`` if none of them can.
    """
    paths = files.splits["train"].paths
    looked_at = paths[:: max(1, len(paths) // _LOOKED_AT_FOR_SIZE)]
    sides, errors = [], list[CorruptImage]()
    for path in looked_at:
        try:
            sides.append(min(picture_size(path)))
        except CorruptImage as error:
            errors.append(error)
    if errors and corrupt == "refuse":
        raise _all_named(errors, len(looked_at))
    if not sides:
        raise all_corrupt(len(paths), paths[0], paths[-1])
    return max(8, min(LARGEST_NATURAL_SIZE, int(median(sides))))


def decode(paths: Sequence[Path], size: int, oddities: Oddities | None = None) -> np.ndarray:
    """Decode files in parallel threads to RGB: uint8 ``[N, 3, size, size]``; what is odd is added to ``oddities``.

    Raises InputError naming the files that cannot be decoded, or if the images cannot fit in memory.
    """
    images, errors, odd = _decoded(paths, size)
    if errors:
        raise _all_named([errors[i] for i in sorted(errors)], len(paths))
    if oddities is not None:
        oddities.add_all((paths[i], odd[i]) for i in sorted(odd))
    return images


def _decoded(
    paths: Sequence[Path], size: int
) -> tuple[np.ndarray, dict[int, CorruptImage], dict[int, tuple[Oddity, ...]]]:
    """The images of files, blank where one cannot be decoded; why, and what is odd, by their places."""
    blank = Image.new("RGB", (size, size))
    errors: dict[int, CorruptImage] = {}
    odd: dict[int, tuple[Oddity, ...]] = {}

    def read(i: int) -> Image.Image:
        try:
            return noted(i, read_picture(paths[i]), odd)
        except CorruptImage as error:
            errors[i], odd[i] = error, (error.oddity,)
            return blank

    return fit_all(read, len(paths), size), errors, odd


def _all_named(errors: Sequence[CorruptImage], n: int) -> CorruptImage:
    """The first of the errors of ``n`` files, which names the other files too, or as many as fit."""
    first, *others = errors
    if others:
        names = [str(error.where) for error in others[:_LISTED]]
        more = ", ".join([*names, "..."] if len(others) > _LISTED else names)
        first.what += f" ({len(others)} more of these {n} cannot be used: {more})"
    return first


def noted(row: int, picture: Picture, odd: dict[int, tuple[Oddity, ...]]) -> Image.Image:
    """The image of a picture, whose oddities are put under its row."""
    if picture.odd:
        odd[row] = picture.odd
    return picture.image


def decode_readable(
    paths: Sequence[Path], size: int, skipped: SkippedFiles, oddities: Oddities
) -> tuple[np.ndarray, np.ndarray]:
    """Decode the files that can be decoded, add the others to ``skipped`` and what is odd to ``oddities``.

    Returns uint8 ``[n, 3, size, size]`` and the ascending int64 indices ``[n]`` of those files. Raises InputError if
    there are none, or if the images cannot fit in memory.
    """
    images, errors, odd = _decoded(paths, size)
    skipped.add(errors)
    oddities.add_all((paths[i], odd[i]) for i in sorted(odd))
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

    with ThreadPoolExecutor(own_cores()) as pool:
        for _ in pool.map(fit_some, range(0, n, _FILES_PER_TASK)):
            pass
    return images


def resize_arrays(images: np.ndarray, size: int) -> np.ndarray:
    """Square images uint8 ``[N, H, H, 3]`` to contiguous ``[N, 3, size, size]``."""
    if images.shape[1] != size:
        images = np.stack([_fit(Image.fromarray(image), size, size) for image in images])
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


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


def all_corrupt(n: int, first: Path, last: Path) -> InputError:
    """The error for ``n`` files, from ``first`` to ``last``, of which not one can be decoded."""
    return InputError(
        f"none of the {n} images can be decoded",
        where=os.path.commonpath([first.parent, last.parent]),
        next_step="check that they were downloaded and unpacked whole",
    )


def _require_memory(n: int, size: int) -> None:
    needed = n * 3 * size * size
    usable = usable_memory()
    if needed > 0.8 * usable:
        raise InputError(
            f"{n} images of {size} pixels need {needed / 2**30:.0f} GiB of memory, "
            f"there are {usable / 2**30:.0f} GiB here",
            next_step="limit the number of images or choose a smaller image size",
        )
