"""Pascal VOC folders: XML annotations, ImageSets lists, the union of 2007 and 2012.

Two layouts. A devkit holds ``VOC2007`` and ``VOC2012`` or one of them: training is the union of their ``trainval``
lists, testing the ``test`` list of 2007 (that of 2012 has no public annotations; without 2007 training is ``train``
and testing ``val`` of 2012), the classes are the twenty of VOC. A single folder holds ``Annotations``,
``ImageSets/Main`` and ``JPEGImages``: training is ``trainval`` and testing ``test``, or ``train`` and ``val`` where
there is no ``test``; the classes are the names that occur in training, sorted.

Coordinates in the files are 1-based and inclusive: a box from 1 to W covers the image. One is subtracted from the left
and top edges alone, which makes the box [0, W) (as Detectron2 does). Difficult objects are kept and flagged. The
rules about boxes and pictures are those of `data.detection`; malformed XML, and an object without name or box, are
refused. A picture is ``<name>.jpg``, or ``.jpeg`` or ``.png`` where there is no such file, or one that these names or
the annotation's ``<filename>`` mean in another spelling (`data.picture_names`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from twinbench.data.detection import (
    AnnotatedImage,
    AnnotatedObject,
    AnnotatedSet,
    Repairs,
    annotated_set,
    checked_box,
    require_pixels,
)
from twinbench.data.folders import existing_folder, nearest_entry
from twinbench.data.picture_names import FileFinder, name_parts
from twinbench.data.remarks import Tally
from twinbench.foundation.errors import InputError, unknown_name
from twinbench.foundation.files import read_document

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

_EDGES = ("xmin", "ymin", "xmax", "ymax")
_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Listed:
    """An image that a list names, and the folder that holds ``Annotations`` and ``JPEGImages``."""

    folder: Path
    name: str
    file: Path
    """The list."""


@dataclass(frozen=True)
class _Parsed:
    """An image's annotation: the file and what it holds."""

    listed: Listed
    file: Path
    tree: ElementTree.Element


def list_voc(root: Path) -> tuple[dict[str, list[Listed]], tuple[str, ...] | None, tuple[str, ...]]:
    """The images of ``train`` and ``test``, the classes if the layout fixes them, and remarks on the choice of lists.

    Raises InputError for a folder of neither layout, and a list that is missing, empty or names an image twice.
    """
    existing_folder(root, "Annotations, ImageSets and JPEGImages, or VOC2007 and VOC2012 with these")
    years = [year for year in ("VOC2007", "VOC2012") if (root / year / "Annotations").is_dir()]
    if not years and not (root / "Annotations").is_dir():
        raise InputError(
            "this is no Pascal VOC folder: there is no Annotations, VOC2007 or VOC2012",
            where=root,
            nearest=nearest_entry(root, "Annotations"),
            next_step="give the folder that holds Annotations, ImageSets and JPEGImages, or the VOCdevkit",
        )
    if not years:
        splits, remarks = _single_folder(root)
        return splits, None, remarks
    if "VOC2007" in years:
        splits = {
            "train": [listed for year in years for listed in _list(root / year, "trainval")],
            "test": _list(root / "VOC2007", "test"),
        }
    else:
        splits = {"train": _list(root / "VOC2012", "train"), "test": _list(root / "VOC2012", "val")}
    return splits, VOC_CLASSES, ()


def _single_folder(root: Path) -> tuple[dict[str, list[Listed]], tuple[str, ...]]:
    there = {split for split in ("trainval", "train", "val", "test") if _list_file(root, split).is_file()}
    test = "test" if "test" in there else "val"
    if test not in there:
        raise InputError(
            "there is no list of test images: neither test.txt nor val.txt",
            where=root / "ImageSets" / "Main",
            next_step="write the names of the images to test on to test.txt, one a line",
        )
    train = "trainval" if test == "test" and "trainval" in there else "train"
    remarks = []
    if test == "val":
        remarks.append("there is no test.txt; train.txt is trained on and val.txt is measured")
    elif train == "train" and "val" in there:
        remarks.append("val.txt is not used: train.txt is trained on and test.txt is measured")
    return {"train": _list(root, train), "test": _list(root, test)}, tuple(remarks)


def _list_file(folder: Path, split: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{split}.txt"


def _list(folder: Path, split: str) -> list[Listed]:
    file = _list_file(folder, split)
    if not file.is_file():
        raise InputError("this list of images is missing", where=file, next_step="write one name a line")
    # The lists of a class have a second column.
    names = [line.split()[0] for line in file.read_text(errors="replace").splitlines() if line.strip()]
    if not names:
        raise InputError("this list names no image", where=file, next_step="write one name a line")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise InputError(f"the image {name} is listed {times} times", where=file, next_step="list it once")
    odd = next((name for name in names if Path(name).name != name or not name.isprintable()), None)
    if odd is not None:
        raise InputError(
            f"{odd!r} is not the name of an image",
            where=file,
            next_step="write one name a line, without folder",
        )
    return [Listed(folder, name, file) for name in names]


def read_voc(root: Path) -> AnnotatedSet:
    """Every annotation of a Pascal VOC folder, checked against its picture's header.

    Raises InputError naming file and object for whatever `data.detection` and this module refuse.
    """
    listed, classes, remarks = list_voc(root)
    finder = FileFinder()
    parsed = {split: [_parsed(each, finder) for each in images] for split, images in listed.items()}
    if classes is None:
        names = (_name(obj, each, i) for each in parsed["train"] for i, obj in _objects(each))
        classes = tuple(sorted(set(names)))
        _require_distinct_classes(classes, root)
    repairs = Repairs()
    labels = {name: label for label, name in enumerate(classes)}
    splits = {
        split: [_image(each, labels, finder, repairs) for each in images] for split, images in parsed.items()
    }
    for split, images in parsed.items():
        edges = (
            edge for each in images for i, obj in _objects(each) for edge in _edges(obj, _where(each, i))
        )
        require_pixels(edges, "box", splits[split], images[0].file.parent)
    objects = [(each, i, obj) for images in parsed.values() for each in images for i, obj in _objects(each)]
    remarks += (*_zero_remarks(objects), *finder.remarks(), *repairs.remarks(len(objects)))
    return annotated_set(root, classes, splits, remarks)


def _parsed(listed: Listed, finder: FileFinder) -> _Parsed:
    file = finder.find(listed.folder / "Annotations", [f"{listed.name}.xml"], listed.file)
    return _Parsed(listed, file, _parse(file))


def _picture(parsed: _Parsed, finder: FileFinder) -> Path:
    listed = parsed.listed
    written = (parsed.tree.findtext("filename") or "").strip()
    others = [written] if name_parts(written) and ".." not in name_parts(written) else []
    names = [f"{listed.name}{suffix}" for suffix in _SUFFIXES]
    return finder.find(listed.folder / "JPEGImages", names, parsed.file, others)


def _require_distinct_classes(classes: Sequence[str], root: Path) -> None:
    """Raise InputError for names that differ in case alone: a slip that would become a class of its own."""
    spelled: dict[str, str] = {}
    for name in classes:
        other = spelled.setdefault(name.casefold(), name)
        if other != name:
            raise InputError(
                f"the training objects have the classes {other!r} and {name!r}",
                where=root / "Annotations",
                next_step="spell them alike",
            )


def _read(file: Path) -> bytes:
    try:
        return read_document(file)
    except OSError as error:
        raise InputError(
            f"cannot read this annotation: {error.strerror}",
            where=file,
            next_step="restore it, or take its image out of the list in ImageSets/Main",
        ) from error


def _parse(file: Path) -> ElementTree.Element:
    content = _read(file)
    try:
        tree = ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        # Entities that would make much of little are refused by expat, and external ones are not read. The last two are
        # raised for an encoding that Python does not know or expat does not take.
        raise InputError(f"malformed XML: {error}", where=file, next_step="correct or restore it") from error
    if tree.tag != "annotation":
        raise InputError(
            f"this is no VOC annotation: it begins with <{tree.tag}>",
            where=file,
            next_step="restore the file, which begins with <annotation>",
        )
    return tree


def _objects(parsed: _Parsed) -> Iterable[tuple[int, ElementTree.Element]]:
    return enumerate(parsed.tree.findall("object"), start=1)


def _where(parsed: _Parsed, index: int, name: str = "") -> str:
    return f"{parsed.file}, object {index}{f' ({name})' if name else ''}"


def _name(obj: ElementTree.Element, parsed: _Parsed, index: int) -> str:
    name = (obj.findtext("name") or "").strip()
    if not name:
        raise InputError("an object without name", where=_where(parsed, index), next_step="name its class")
    return name


def _image(
    parsed: _Parsed, labels: Mapping[str, int], finder: FileFinder, repairs: Repairs
) -> AnnotatedImage:
    height, width = (_side(parsed.tree, side, str(parsed.file)) for side in ("height", "width"))
    objects = []
    for index, obj in _objects(parsed):
        name = _name(obj, parsed, index)
        where = _where(parsed, index, name)
        if name not in labels:
            raise unknown_name("class", name, labels, where=where)
        left, top, right, bottom = _edges(obj, where)
        box = checked_box((left - 1, top - 1, right, bottom), height, width, where, repairs)
        if box is not None:
            objects.append(AnnotatedObject(box, labels[name], difficult=_difficult(obj, where)))
    return AnnotatedImage(_picture(parsed, finder), height, width, tuple(objects))


def _edges(obj: ElementTree.Element, where: str) -> list[float]:
    """Left, top, right and bottom as the file has them."""
    return [_number(obj, f"bndbox/{edge}", where) for edge in _EDGES]


def _zero_remarks(objects: Sequence[tuple[_Parsed, int, ElementTree.Element]]) -> tuple[str, ...]:
    """A remark on objects with an edge that coordinates from 1 do not have."""
    zero = Tally()
    for parsed, index, obj in objects:
        where = _where(parsed, index)
        if 0 in _edges(obj, where)[:2]:
            zero.add(where)
    if not zero.count:
        return ()
    count = zero.of(len(objects), "objects")
    return (
        f"left or top is 0, which looks like coordinates from 0, and VOC's are from 1: {count}; "
        "if so, every box is read one pixel too far to the left and to the top (add 1 to all coordinates)",
    )


def _difficult(obj: ElementTree.Element, where: str) -> bool:
    flag = (obj.findtext("difficult") or "0").strip()
    if flag not in ("0", "1"):
        raise InputError(
            f"difficult is {flag!r}, not 0 or 1", where=where, next_step="correct the annotation"
        )
    return flag == "1"


def _side(tree: ElementTree.Element, side: str, where: str) -> int:
    number = _number(tree, f"size/{side}", where)
    if number < 1 or not number.is_integer():
        raise InputError(f"size/{side} is {number:g}", where=where, next_step="correct the annotation")
    return int(number)


def _number(element: ElementTree.Element, path: str, where: str) -> float:
    text = element.findtext(path)
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        what = f"{path} is missing" if text is None else f"{path} is not a number: {text.strip()!r}"
        raise InputError(what, where=where, next_step="correct the annotation")
    return number
