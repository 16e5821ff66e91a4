"""Lists of labelled images for semi-supervised evaluation: the published ones of ImageNet, or the user's own."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from twinbench.data.image_sets import Split
from twinbench.data.streaming import StreamedImages
from twinbench.foundation.errors import InputError, nearest_name
from twinbench.foundation.files import read_document


@dataclass(frozen=True)
class Published:
    """A file of google-research/simclr, imagenet_subsets: its name, SHA-256 and the range of images per class."""

    file: str
    sha256: str
    per_class: tuple[int, int]


PUBLISHED = {
    0.01: Published(
        "1percent.txt", "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17", (12, 13)
    ),
    0.1: Published(
        "10percent.txt", "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091", (128, 129)
    ),
}
"""The lists behind ImageNet's published 1 % and 10 % numbers, by fraction; the first is part of the second."""


@dataclass(frozen=True)
class LabelList:
    """A file with the name of a labelled image on each line; ``own`` says that it is not a published one."""

    path: Path
    own: bool = False

    def digest(self) -> str:
        """The SHA-256 of the file; raises InputError if it cannot be read."""
        return hashlib.sha256(_read(self.path)).hexdigest()


def read_label_list(
    labelled: LabelList, train: Split, classes: Sequence[str], fraction: float
) -> tuple[Tensor, str]:
    """The rows of ``train`` that a list names, ascending int64 ``[n]``, and the SHA-256 of the file.

    Unless the list is the user's own it must be, byte for byte, the published one of this ``fraction`` (0.01 or
    0.1), and the classes must be ImageNet's synsets. Every listed image must be there, once, with a label, and no
    class may go without. Raises InputError otherwise.
    """
    content = _read(labelled.path)
    digest = hashlib.sha256(content).hexdigest()
    if not labelled.own:
        _require_published(digest, fraction, labelled.path)
    # by newline alone: str.splitlines also parts names at characters that a file's name may hold
    lines = map(str.strip, content.decode(errors="replace").split("\n"))
    names = [line for line in lines if line]
    rows = _find(names, train, labelled.path)
    labels = train.labels[rows]
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    low, high = (1, len(rows)) if labelled.own else PUBLISHED[fraction].per_class
    for name, count in zip(classes, counts, strict=True):
        if not low <= count <= high:
            raise InputError(
                f"the list gives class {name!r} {count} images instead of {low} to {high}",
                where=labelled.path,
                next_step="use a list that was made for this image set",
            )
    if not labelled.own:
        _require_synsets(names, rows, train, classes)
    return rows.sort().values, digest


def _read(path: Path) -> bytes:
    try:
        return read_document(path)
    except OSError as error:
        raise InputError(
            f"cannot read this list of images: {error.strerror}",
            where=path,
            next_step="give a text file with the name of one image on each line",
        ) from error


def _require_published(digest: str, fraction: float, path: Path) -> None:
    expected = PUBLISHED[fraction]
    if digest == expected.sha256:
        return
    other = next((each.file for each in PUBLISHED.values() if each.sha256 == digest), None)
    raise InputError(
        f"this is not the published list of {fraction:.0%}: "
        + (f"it is {other}" if other else f"its SHA-256 is {digest}, not {expected.sha256}"),
        where=path,
        next_step=f"take imagenet_subsets/{expected.file} from github.com/google-research/simclr, or declare the "
        "list as your own",
        option="own_list",
    )


def _find(names: Sequence[str], train: Split, where: Path) -> Tensor:
    """The row of every name, int64 ``[n]``."""
    if not isinstance(train.images, StreamedImages):
        raise InputError(
            "a list names image files, but the images of this set were read into memory without their names",
            where=where,
            next_step="leave the list out, or use a folder of images, folder:PATH",
            option="image_set",
        )
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated or not names:
        what = (
            f"{len(repeated)} images are listed twice, {repeated[0]} for one"
            if repeated
            else "no image is listed"
        )
        raise InputError(what, where=where, next_step="list every image once")
    files = _rows_by_name(train.images, set(names), where)
    missing = [name for name in names if name not in files]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(names)} listed images are not among the training images, "
            f"{missing[0]} for one",
            where=where,
            nearest=nearest_name(
                missing[0], (train.images.path(row).name for row in range(min(2000, len(train))))
            ),
            next_step="give the image set that the list was made for, whole: without a limit on train",
        )
    rows = torch.tensor([files[name] for name in names])
    if (train.labels[rows] < 0).any():
        raise InputError(
            "listed images have no label", where=where, next_step="put the images into one folder per class"
        )
    return rows


def _rows_by_name(images: StreamedImages, wanted: set[str], where: Path) -> dict[str, int]:
    files: dict[str, int] = {}
    for row in range(len(images)):
        name = images.path(row).name
        if name not in wanted:
            continue
        if name in files:
            raise InputError(
                f"two training images are called {name}",
                where=images.path(row),
                next_step=f"rename one of them, so that {where.name} names one image",
            )
        files[name] = row
    return files


def _require_synsets(names: Sequence[str], rows: Tensor, train: Split, classes: Sequence[str]) -> None:
    """Raise InputError if the class of a listed image is not the synset that its name begins with."""
    for name, label in zip(names, train.labels[rows].tolist(), strict=True):
        if classes[label] != name.split("_")[0]:
            raise InputError(
                f"{name} is in class {classes[label]!r} instead of {name.split('_')[0]!r}",
                next_step="arrange ImageNet as train/<synset>/*.JPEG",
            )
