"""Image sets by name.

``digit-scenes``, ``digit-crowds``, ``letter-scenes``, ``shape-scenes`` and ``texture-scenes`` are embedded
(`data.scenes`, `data.textures`); those of `KNOWN_SETS` are read from a data folder (``bccd`` are blood cells under a
microscope, with boxes). A name that ends in a colon stands for any folder of a format, whose path follows:
``folder:PATH`` are images in folders (`data.folders`), which stay on disk if they are large (`data.streaming`), and
``shards:PATH`` the same in tar files (`data.shards`);
``voc:PATH`` and ``coco:PATH`` are pictures with annotated objects (`data.voc`, `data.coco`). ``val-of:NAME`` is another
set without its test images, measured on its validation images (`data.validation`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from twinbench.data import folders
from twinbench.data.coco import read_coco
from twinbench.data.detection import AnnotatedSet
from twinbench.data.folders import Corrupt
from twinbench.data.image_sets import (
    CIFAR10_BATCHES,
    CIFAR10_NORMALISATION,
    CIFAR10_SIZE,
    IMAGENET_NORMALISATION,
    AnnotatedPictures,
    Cifar10Batches,
    DigitCrowds,
    DigitScenes,
    FolderImages,
    ImageSet,
    LetterScenes,
    Reading,
    ShapeScenes,
    TextureScenes,
)
from twinbench.data.shards import holds_shards, list_shards
from twinbench.data.validation import VAL_OF, ValidationAsTest
from twinbench.data.voc import read_voc
from twinbench.foundation.errors import InputError, unknown_name
from twinbench.foundation.registry import Registry

Loader = Callable[[str, Path | None, Reading], ImageSet]
"""Makes the image set of a name, which it is given whole, with the data root (if there is one) and the reading."""

IMAGE_SETS = Registry[Loader]("image set")


@dataclass(frozen=True)
class KnownSet:
    """A published set that is read from the data root: the folders it may be in, where it comes from, and its size."""

    folders: tuple[str, ...]
    source: str
    train: int
    test: int
    has_detection: bool = False


KNOWN_SETS = {
    "cifar10": KnownSet(
        (CIFAR10_BATCHES, "cifar10-jpeg", "cifar10"),
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        train=50_000,
        test=10_000,
    ),
    "bccd": KnownSet(
        ("bccd", "BCCD"),
        "the folder BCCD of https://github.com/Shenggan/BCCD_Dataset",
        train=292,
        test=72,
        has_detection=True,
    ),
    "imagenet": KnownSet(
        ("imagenet", "ILSVRC2012"),
        "https://www.image-net.org (train/<synset>/, and the validation images as test/<synset>/)",
        train=1_281_167,
        test=50_000,
    ),
    "places205": KnownSet(
        ("places205",),
        "http://places.csail.mit.edu (train/<class>/, test/<class>/)",
        train=2_448_873,
        test=20_500,
    ),
    "inat18": KnownSet(
        ("inat18",),
        "https://github.com/visipedia/inat_comp (train/<class>/, and the validation images as test/<class>/)",
        train=437_513,
        test=24_426,
    ),
    "voc": KnownSet(
        ("VOCdevkit", "voc"),
        "http://host.robots.ox.ac.uk/pascal/VOC (VOC2007 and VOC2012 in one folder)",
        train=16_551,
        test=4_952,
        has_detection=True,
    ),
    "coco": KnownSet(
        ("coco", "COCO"), "https://cocodataset.org (2017)", train=118_287, test=5_000, has_detection=True
    ),
}
"""The sets that are not embedded, by name; the sizes are those that were published."""


def register_image_set(name: str) -> Callable[[Loader], Loader]:
    """Make a loader available under a name, or for every ``name:PATH`` under one that ends in a colon.

    Raises ValueError if the name belongs to another image set.
    """
    return lambda loader: IMAGE_SETS.add(name, loader)


def image_set_names() -> list[str]:
    """The names `load_image_set` knows; with ``PATH`` they stand for any folder of that format."""
    return [f"{name}{_what_follows(name)}" for name in IMAGE_SETS.names()]


def _what_follows(name: str) -> str:
    return "" if not name.endswith(":") else "NAME" if name == VAL_OF else "PATH"


def load_image_set(
    name: str,
    data_root: Path | None = None,
    image_size: int | None = None,
    limit: Mapping[str, int] | None = None,
    corrupt: Corrupt = "refuse",
    stream: bool | None = None,
) -> ImageSet:
    """The image set called ``name``, read as `Reading` says of the other parameters.

    ``data_root`` is the folder that holds ``cifar10`` and ``bccd``. Raises InputError for an unknown name and for
    missing or unreadable files, and what `Reading` raises.
    """
    return read_image_set(name, data_root, Reading(image_size, limit or {}, corrupt, stream))


def read_image_set(name: str, data_root: Path | None, reading: Reading) -> ImageSet:
    """`load_image_set` for a caller who was given the reading."""
    prefix, colon, path = name.partition(":")
    if prefix + colon not in IMAGE_SETS:
        raise unknown_name("image set", prefix + colon, image_set_names())
    if colon and not path:
        follows = _what_follows(name)
        also = f", or {name}. for this folder" if follows == "PATH" else ""
        raise InputError(f"no {follows.lower()} after {name!r}", next_step=f"write {name}{follows}{also}")
    return IMAGE_SETS[prefix + colon](name, data_root, reading)


@register_image_set("digit-scenes")
def _digit_scenes(name: str, data_root: Path | None, reading: Reading) -> ImageSet:
    return DigitScenes(reading)


@register_image_set("digit-crowds")
def _digit_crowds(name: str, data_root: Path | None, reading: Reading) -> ImageSet:
    return DigitCrowds(reading)


@register_image_set("letter-scenes")
def _letter_scenes(name: str, data_root: Path | None, reading: Reading) -> ImageSet:
    return LetterScenes(reading)


@register_image_set("shape-scenes")
def _shape_scenes(name: str, data_root: Path | None, reading: Reading) -> ImageSet:
    return ShapeScenes(reading)


@register_image_set("texture-scenes")
def _texture_scenes(name: str, data_root: Path | None, reading: Reading) -> ImageSet:
    return TextureScenes(reading)


@register_image_set("cifar10")
def _cifar10(name: str, data_root: Path | None, reading: Reading) -> ImageSet:
    root = _below_data_root(data_root, name)
    if root.name == CIFAR10_BATCHES:
        return Cifar10Batches(root.parent, reading)
    sized = replace(reading, image_size=reading.image_size or CIFAR10_SIZE)
    return FolderImages(name, folders.list_images(root), CIFAR10_NORMALISATION, sized)


@register_image_set("imagenet")
@register_image_set("places205")
@register_image_set("inat18")
def _published_folder(name: str, data_root: Path | None, reading: Reading) -> ImageSet:
    root = _below_data_root(data_root, name)
    files = list_shards(root) if holds_shards(root) else folders.list_images(root)
    return FolderImages(name, files, IMAGENET_NORMALISATION, reading)


@register_image_set("bccd")
@register_image_set("voc")
def _published_voc(name: str, data_root: Path | None, reading: Reading) -> ImageSet:
    root = _below_data_root(data_root, name)
    return AnnotatedPictures(name, root, read_voc(root), reading)


@register_image_set("coco")
def _published_coco(name: str, data_root: Path | None, reading: Reading) -> ImageSet:
    root = _below_data_root(data_root, name)
    return AnnotatedPictures(name, root, read_coco(root), reading)


@register_image_set("folder:")
def _folder(name: str, data_root: Path | None, reading: Reading) -> ImageSet:
    return FolderImages(name, folders.list_images(_path(name)), IMAGENET_NORMALISATION, reading)


@register_image_set("shards:")
def _shards(name: str, data_root: Path | None, reading: Reading) -> ImageSet:
    return FolderImages(name, list_shards(_path(name)), IMAGENET_NORMALISATION, reading)


@register_image_set("voc:")
def _voc(name: str, data_root: Path | None, reading: Reading) -> ImageSet:
    return _annotated(name, read_voc, reading)


@register_image_set("coco:")
def _coco(name: str, data_root: Path | None, reading: Reading) -> ImageSet:
    return _annotated(name, read_coco, reading)


@register_image_set(VAL_OF)
def _val_of(name: str, data_root: Path | None, reading: Reading) -> ImageSet:
    whole = replace(reading, limit={})
    return ValidationAsTest(read_image_set(name.removeprefix(VAL_OF), data_root, whole), reading)


def _annotated(name: str, read: Callable[[Path], AnnotatedSet], reading: Reading) -> ImageSet:
    root = _path(name)
    return AnnotatedPictures(name, root, read(root), reading)


def _path(name: str) -> Path:
    """The path in ``kind:PATH``."""
    return Path(name.partition(":")[2]).expanduser()


def is_here(name: str, data_root: Path | None) -> bool:
    """Whether a set's images are here, as far as a look at the data root tells; embedded sets always are."""
    known = KNOWN_SETS.get(name.removeprefix(VAL_OF))
    return known is None or (
        data_root is not None and any((data_root / folder).is_dir() for folder in known.folders)
    )


def _below_data_root(data_root: Path | None, name: str) -> Path:
    """The folder of a known set in the data root; InputError, with where to get the set, if there is none."""
    known = KNOWN_SETS[name]
    if data_root is None:
        raise InputError(
            f"{name} is not embedded and no data folder is given",
            nearest="digit-scenes",
            next_step=f"give the folder that holds {known.folders[0]} as the data root",
            option="data_root",
        )
    folders.existing_folder(data_root, known.folders[0], option="data_root")
    for candidate in known.folders:
        if (data_root / candidate).is_dir():
            return data_root / candidate
    raise InputError(
        f"{name} is not here: none of {', '.join(known.folders)} is a folder",
        where=data_root,
        nearest=folders.nearest_entry(data_root, known.folders[0]),
        next_step=f"unpack {known.source} into the data root",
    )
