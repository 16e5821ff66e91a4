"""COCO JSON: boxes, polygons, run-length masks and crowds.

Two layouts. COCO's holds ``annotations/instances_train*.json`` and ``instances_test*.json``, with the pictures in
``<name>/`` or ``images/<name>/``, <name> being what follows ``instances_``, or directly in ``images/``. The other, that
of Roboflow, holds ``train/_annotations.coco.json`` and ``test/_annotations.coco.json``, each beside its pictures.
Training is the first file, testing the second or, where there is none, that of ``val`` (``valid``).

Labels number the categories of the training file in the order of their identifiers; the testing file must give them the
same names. A category that has no object in either file and is the ``supercategory`` of another is the root of a tree,
as annotation services write it, and is left out; any other category is a class, with or without objects.

A box is x, y, width, height; the rules about boxes and pictures are those of `data.detection`. A mask is a list of
polygons (x, y, x, y ...), compressed or uncompressed run lengths, which must have the size of the image and decode to
it, whether its object is a crowd or not. A polygon of fewer than three corners is left out, which counts as a repair
unless it is empty; an object that has no polygon then, or an empty list of run lengths, has no mask. A mask without a
polygon that reaches into the image is refused, and so is a corner that lies farther outside than the image is large. If
some objects of a set have a mask and others none, the masks are left out: mask AP is not defined for such a set, and
box AP is.

Malformed JSON, missing keys, identifiers that are no integers, occur twice or refer to nothing, and a category's name
that occurs twice are refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as run_length

from twinbench.data.detection import (
    AnnotatedImage,
    AnnotatedObject,
    AnnotatedSet,
    Repairs,
    annotated_set,
    checked_box,
    require_pixels,
)
from twinbench.data.folders import existing_folder
from twinbench.data.picture_names import FileFinder, name_parts
from twinbench.data.remarks import Tally
from twinbench.foundation.documents import from_json
from twinbench.foundation.errors import InputError
from twinbench.foundation.files import read_document

_LARGEST_FILE = 4 * 2**30  # those of COCO itself have half a GiB
_CORRECT = "correct the annotation"
_ROBOFLOW = "_annotations.coco.json"
LONGEST_SIDE = 2**16 - 1
"""pycocotools counts the pixels of a mask in 32 bits."""
LARGEST_COORDINATE = 2**53
_LARGEST_SHIFT = 60
_LONGEST_OUTLINE = 10**7
"""Pixels along the polygons of a mask: of each pycocotools makes several numbers, so that this is a memory of 1 GB."""


@dataclass
class _Notes:
    """What reading the annotations repaired, found under another name and found to have no mask."""

    repairs: Repairs = field(default_factory=Repairs)
    finder: FileFinder = field(default_factory=FileFinder)
    unmasked: Tally = field(default_factory=Tally)


def list_coco(root: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The annotation files of ``train`` and ``test``, and remarks on that choice.

    Raises InputError if one is missing or ambiguous.
    """
    existing_folder(root, "annotations/instances_*.json and the pictures")
    train, test, val = (_annotation_file(root, *names) for names in (("train",), ("test",), ("val", "valid")))
    measured = test or val
    if train is None or measured is None:
        split = "test" if train else "train"
        raise InputError(
            f"there is no annotations/instances_{split}*.json and no {split}/{_ROBOFLOW}",
            where=root,
            next_step="give the folder that holds annotations/ and the pictures, as COCO unpacks them, or train/ and "
            "test/ with their pictures and annotations, as Roboflow does",
        )
    files = {"train": train, "test": measured}
    names = {split: file.relative_to(root) for split, file in files.items()}
    if test and val:
        what = f"{val.relative_to(root)} is not used: {names['train']} is trained on and {names['test']} is measured"
        return files, (what,)
    if val and val.name == _ROBOFLOW:
        return files, (f"there is no test/{_ROBOFLOW}: {names['test']} is measured",)
    return files, ()


def _annotation_file(root: Path, *splits: str) -> Path | None:
    """The one annotation file of a split, whose name is written in one of these ways."""
    found = sorted((root / "annotations").glob(f"instances_{splits[0]}*.json"))
    found += [file for split in splits if (file := root / split / _ROBOFLOW).is_file()]
    if len(found) > 1:
        raise InputError(
            f"more than one annotation file for {splits[0]}: {', '.join(str(f.relative_to(root)) for f in found)}",
            where=root,
            next_step="leave one of them",
        )
    return found[0] if found else None


def read_coco(root: Path) -> AnnotatedSet:
    """Every annotation of a COCO folder, checked against the pictures' headers.

    Raises InputError naming file and object for whatever `data.detection` and this module refuse.
    """
    files, remarks = list_coco(root)
    documents = {split: _parse(file) for split, file in files.items()}
    roots = _roots(documents, files["train"])
    names = {split: _categories(documents[split], file, roots.keys()) for split, file in files.items()}
    order = sorted(names["train"])
    notes = _Notes()
    splits = {}
    for split, file in files.items():
        _require_same_names(names["train"], names[split], file)
        labels = {identifier: label for label, identifier in enumerate(order) if identifier in names[split]}
        splits[split] = _images(documents[split], file, _picture_folder(root, file), labels, notes)
        _require_pixels(documents[split]["annotations"], splits[split], file)
    splits, of_masks = _masks_of_all(splits, notes.unmasked)
    objects = sum(len(document["annotations"]) for document in documents.values())
    remarks += (
        *_root_remarks(roots, len(order)),
        *of_masks,
        *notes.finder.remarks(),
        *notes.repairs.remarks(objects),
    )
    return annotated_set(root, tuple(names["train"][identifier] for identifier in order), splits, remarks)


def _parse(file: Path) -> dict[str, Any]:
    try:
        content = read_document(file, _LARGEST_FILE)
    except OSError as error:
        raise InputError(
            f"cannot read this file: {error.strerror}", where=file, next_step="make it readable"
        ) from error
    try:
        document = from_json(content)
    except ValueError as error:
        raise InputError(f"malformed JSON: {error}", where=file, next_step="download it again") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise InputError(
                f"this is no COCO file: it has no list {key!r}",
                where=file,
                next_step="use an instances_*.json with images, annotations and categories",
            )
    return document


def _picture_folder(root: Path, file: Path) -> Path:
    if file.name == _ROBOFLOW:
        return file.parent
    name = re.sub(r"^instances_", "", file.stem)
    candidates = (root / name, root / "images" / name, root / "images")
    return next((folder for folder in candidates if folder.is_dir()), candidates[0])


def _by_id(document: dict[str, Any], kind: str, keys: Sequence[str], file: Path) -> dict[Any, dict[str, Any]]:
    """The entries of a list by their identifier; raises InputError for a missing key or a repeated identifier."""
    entries: dict[Any, dict[str, Any]] = {}
    for position, entry in enumerate(document[kind]):
        where = f"{file}, {kind}[{position}]"
        missing = [key for key in ("id", *keys) if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise InputError(f"missing key: {', '.join(missing)}", where=where, next_step=_CORRECT)
        if type(entry["id"]) is not int:
            raise InputError(
                f"the identifier is not an integer: {entry['id']!r}", where=where, next_step=_CORRECT
            )
        if entry["id"] in entries:
            raise InputError(f"the identifier {entry['id']!r} occurs twice", where=where, next_step=_CORRECT)
        entries[entry["id"]] = entry
    return entries


def _roots(documents: dict[str, dict[str, Any]], train: Path) -> dict[int, str]:
    """The names of categories that are only the parents of others, by their identifiers."""
    categories = _by_id(documents["train"], "categories", ("name",), train)
    owners = {
        annotation["category_id"]
        for document in documents.values()
        for annotation in document["annotations"]
        if isinstance(annotation, dict) and type(annotation.get("category_id")) is int
    }
    parents = [
        other["supercategory"] for other in categories.values() if isinstance(other.get("supercategory"), str)
    ]
    named = Counter(parents)
    return {
        identifier: category["name"]
        for identifier, category in categories.items()
        if identifier not in owners
        and isinstance(category["name"], str)
        and named[category["name"]] > (category.get("supercategory") == category["name"])
    }


def _root_remarks(roots: dict[int, str], classes: int) -> tuple[str, ...]:
    if not roots:
        return ()
    names = ", ".join(f"{name} ({identifier})" for identifier, name in sorted(roots.items()))
    return (
        f"left out as no classes, for they own no object and are only the supercategory of others: {len(roots)} of "
        f"{classes + len(roots)} categories, {names}",
    )


def _categories(document: dict[str, Any], file: Path, roots: Set[int]) -> dict[int, str]:
    """The names of a file's categories by their identifiers, without the roots; at least one, and each once."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for identifier, category in _by_id(document, "categories", ("name",), file).items():
        if identifier in roots:
            continue
        name = category["name"]
        where = f"{file}, category {identifier}"
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"not a name: {name!r}", where=where, next_step=_CORRECT)
        if name in taken:
            raise InputError(f"two categories are called {name!r}", where=where, next_step=_CORRECT)
        names[identifier] = name
        taken.add(name)
    if not names:
        raise InputError("this file has no category", where=file, next_step="use a file with categories")
    return names


def _require_same_names(train: dict[int, str], theirs: dict[int, str], file: Path) -> None:
    for identifier, name in theirs.items():
        if train.get(identifier, name) != name:
            raise InputError(
                f"this category is called {name!r} here and {train[identifier]!r} in the training file",
                where=f"{file}, category {identifier}",
                next_step="use two files of one data set",
            )


def _images(
    document: dict[str, Any], file: Path, folder: Path, labels: dict[Any, int], notes: _Notes
) -> list[AnnotatedImage]:
    images = _by_id(document, "images", ("file_name", "height", "width"), file)
    if not images:
        raise InputError("this file lists no image", where=file, next_step="use a file with images")
    for identifier, image in images.items():
        sides = (image["height"], image["width"])
        if not all(type(side) is int and 0 < side <= LONGEST_SIDE for side in sides):
            what = f"not a size: {image['width']!r}x{image['height']!r}"
            raise InputError(what, where=f"{file}, image {identifier}", next_step=_CORRECT)
    objects: dict[Any, list[AnnotatedObject]] = {identifier: [] for identifier in images}
    annotations = _by_id(document, "annotations", ("image_id", "category_id", "bbox"), file)
    for identifier, annotation in annotations.items():
        where = f"{file}, annotation {identifier}"
        image = _referred(images, annotation["image_id"], "image", where)
        label = _referred(labels, annotation["category_id"], "category", where)
        found = _object(annotation, label, image["height"], image["width"], where, notes.repairs)
        if found is not None:
            objects[annotation["image_id"]].append(found)
            if found.mask is None:
                notes.unmasked.add(where)
    return [
        AnnotatedImage(
            _picture(folder, image["file_name"], f"{file}, image {identifier}", notes.finder),
            image["height"],
            image["width"],
            tuple(objects[identifier]),
        )
        for identifier, image in images.items()
    ]


def _require_pixels(annotations: list[dict[str, Any]], images: list[AnnotatedImage], file: Path) -> None:
    """Raise InputError if the checked boxes, or the polygons, of a file are in shares of the image."""
    require_pixels((number for each in annotations for number in each["bbox"]), "box", images, file)
    masks = (each.get("segmentation") for each in annotations)
    polygons = (polygon for mask in masks if isinstance(mask, list) for polygon in mask)
    # The mask of an object that is left out for its box was not looked at.
    corners = (number for polygon in polygons if isinstance(polygon, list) for number in polygon)
    require_pixels((number for number in corners if _is_coordinate(number)), "mask", images, file)


def _picture(folder: Path, name: Any, where: str, finder: FileFinder) -> Path:
    if not isinstance(name, str) or not name.isprintable() or not name_parts(name):
        raise InputError(f"not a file name: {name!r}", where=where, next_step=_CORRECT)
    if ".." in name_parts(name):
        raise InputError(f"the file name {name!r} leads out of {folder}", where=where, next_step=_CORRECT)
    return finder.find(folder, [name], where)


def _referred(table: dict[Any, Any], identifier: Any, kind: str, where: str) -> Any:
    if type(identifier) is not int or identifier not in table:
        raise InputError(f"there is no {kind} {identifier!r}", where=where, next_step=_CORRECT)
    return table[identifier]


def _object(
    annotation: dict[str, Any], label: int, height: int, width: int, where: str, repairs: Repairs
) -> AnnotatedObject | None:
    box = annotation["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(_is_coordinate(side) for side in box):
        raise InputError(f"bbox is not x, y, width, height: {box!r}", where=where, next_step=_CORRECT)
    left, top, box_width, box_height = box
    edges = checked_box((left, top, left + box_width, top + box_height), height, width, where, repairs)
    if edges is None:
        return None
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise InputError(f"iscrowd is {crowd!r}, not 0 or 1", where=where, next_step=_CORRECT)
    mask = _mask(annotation.get("segmentation"), height, width, where, repairs)
    if mask is not None and not run_length.area(mask):
        repairs.add("mask", "kept a mask without a pixel", where)
    return AnnotatedObject(edges, label, crowd=bool(crowd), mask=mask)


def _is_coordinate(side: Any) -> bool:
    return type(side) in (int, float) and not abs(side) > LARGEST_COORDINATE


def _mask(segmentation: Any, height: int, width: int, where: str, repairs: Repairs) -> dict[str, Any] | None:
    """A mask's compressed run lengths, None where there is no mask."""
    if segmentation is None or (isinstance(segmentation, dict) and segmentation.get("counts") == []):
        return None
    if isinstance(segmentation, dict):
        return _run_lengths(segmentation, height, width, where)
    polygons = _polygons(segmentation, height, width, where, repairs)
    if not polygons:
        return None
    merged: dict[str, Any] = run_length.merge(run_length.frPyObjects(polygons, height, width))
    return merged


def _run_lengths(code: dict[str, Any], height: int, width: int, where: str) -> dict[str, Any]:
    if code.get("size") != [height, width]:
        raise InputError(
            f"the mask is of size {code.get('size')}, the image of {[height, width]} (height, width)",
            where=where,
            next_step=_CORRECT,
        )
    try:
        runs = runs_of(code.get("counts"))
        if sum(runs) != height * width:
            raise ValueError(f"the runs cover {sum(runs)} of {height * width} pixels")
    except ValueError as error:
        raise InputError(f"the mask cannot be decoded: {error}", where=where, next_step=_CORRECT) from error
    compressed: dict[str, Any] = run_length.frPyObjects(
        {"size": [height, width], "counts": runs}, height, width
    )
    return compressed


def runs_of(counts: Any) -> list[int]:
    """The lengths of runs, a list or a compressed string; raises ValueError for what is neither."""
    if isinstance(counts, str):
        counts = _unpacked(counts)
    if not isinstance(counts, list) or not all(type(run) is int for run in counts):
        raise ValueError("counts is neither a list of integers nor a string")
    if any(run < 0 for run in counts):
        raise ValueError("a run is negative")
    return counts


def _unpacked(counts: str) -> list[int]:
    """The runs in a compressed string: signed numbers of five bits a character, from the third on differences.

    pycocotools reads a string that was cut short as if the rest were background; so it is read here. Raises ValueError
    for a string that is none.
    """
    runs: list[int] = []
    position = 0
    while position < len(counts):
        number, shift, more = 0, 0, True
        while more:
            if position == len(counts):
                raise ValueError("the string ends within a number")
            bits = ord(counts[position]) - 48
            if not 0 <= bits < 64:
                raise ValueError(f"{counts[position]!r} at position {position}")
            if shift > _LARGEST_SHIFT:
                raise ValueError(f"a number of more than {_LARGEST_SHIFT} bits")
            number |= (bits & 31) << shift
            position, shift, more = position + 1, shift + 5, bool(bits & 32)
        if bits & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
    return runs


def _polygons(segmentation: Any, height: int, width: int, where: str, repairs: Repairs) -> list[list[float]]:
    """The polygons of three corners and more, if there are any, at least one of them inside the image."""
    try:
        corners = [_corners(polygon) for polygon in segmentation if polygon != []]
    except (ValueError, TypeError) as error:
        raise InputError(
            "a polygon is not a list of points x, y, x, y", where=where, next_step=_CORRECT
        ) from error
    # Very far away pycocotools needs all memory, or crashes.
    far = max(height, width)
    if any((p < -far).any() or (p > far + np.array((width, height))).any() for p in corners):
        raise InputError(
            f"a corner of the mask lies more than {far} pixels outside the image of {width}x{height} pixels",
            where=where,
            next_step=_CORRECT,
        )
    outline = sum(
        float(np.abs(np.diff(p, axis=0, append=p[:1])).max(axis=1).sum()) for p in corners if len(p)
    )
    if outline > _LONGEST_OUTLINE:
        raise InputError(
            f"the outline of the mask is {outline:.0f} pixels long", where=where, next_step=_CORRECT
        )
    proper = [polygon for polygon in corners if len(polygon) >= 3]
    if len(proper) < len(corners):
        repairs.add("mask", "left out a polygon of fewer than three corners", where)
    if proper and not any((p.max(0) >= 0).all() and (p.min(0) <= (width, height)).all() for p in proper):
        raise InputError(
            f"no polygon of the mask lies inside the image of {width}x{height} pixels",
            where=where,
            next_step=_CORRECT,
        )
    return [polygon.ravel().tolist() for polygon in proper]


def _corners(polygon: list[float]) -> np.ndarray:
    """The corners ``[n, 2]`` of a polygon; raises ValueError or TypeError where it is none."""
    if not isinstance(polygon, list) or not all(type(number) in (int, float) for number in polygon):
        raise ValueError
    numbers = np.array(polygon)
    if numbers.ndim != 1 or numbers.dtype.kind not in "if" or not np.isfinite(numbers).all():
        raise ValueError
    return numbers.astype(np.float64).reshape(-1, 2)


def _masks_of_all(
    splits: dict[str, list[AnnotatedImage]], unmasked: Tally
) -> tuple[dict[str, list[AnnotatedImage]], tuple[str, ...]]:
    """The images with their masks if every object has one, else without, and a remark if that leaves masks out."""
    objects = sum(len(image.objects) for images in splits.values() for image in images)
    if unmasked.count in (0, objects):
        return splits, ()
    without = {
        split: [
            replace(image, objects=tuple(replace(o, mask=None) for o in image.objects)) for image in images
        ]
        for split, images in splits.items()
    }
    remark = (
        f"no mask: {unmasked.of(objects, 'objects')}; so the masks of the others are left out, and boxes alone are "
        "trained on and measured (give every object a mask, and masks are measured too)"
    )
    return without, (remark,)
