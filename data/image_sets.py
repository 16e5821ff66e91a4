"""What an image set is: labelled images with the splits ``train``, ``val`` and ``test``. Their names: `data.catalogue`.

Where a set brings no validation images, a tenth of its training images, at most 10,000 (stratified, always the same),
becomes ``val`` and is no longer in ``train``. Hyperparameters are selected on ``val``; ``test`` is for the final
number.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from twinbench.data import digit_scenes, drawn_glyphs, folders, scenes, textures
from twinbench.data.augment import Normalisation
from twinbench.data.detection import AnnotatedSet, DetectionSplit, detection_split
from twinbench.data.folders import Corrupt
from twinbench.data.pixels import Oddities
from twinbench.data.streaming import Images, StreamedImages
from twinbench.foundation.errors import InputError, nearest_name, unknown_name
from twinbench.foundation.files import slug

_log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")

IMAGENET_NORMALISATION = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10_NORMALISATION = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
SCENES_NORMALISATION = Normalisation((0.5, 0.5, 0.5), (0.23, 0.20, 0.25))
CIFAR10_SIZE = 32
CIFAR10_BATCHES = "cifar-10-batches-py"

_IMAGE_SIZES = range(8, 1025)
_IN_MEMORY_BYTES = 4 * 2**30
_HELD_OUT = 0.1
_MOST_HELD_OUT = 10_000
_SUBSET_SEED = 0


@dataclass(frozen=True)
class Reading:
    """How the images of a set are read; the defaults are for a whole set of sound files.

    ``image_size`` is the side of the square images in pixels (None: the set's own). ``limit`` maps split names to the
    largest number of images; a smaller split is a stratified subset. The rest is about images in files: ``corrupt``
    says what becomes of those without usable pixels (`data.pixels`), which are refused by name or skipped; ``stream``
    None streams a set whose decoded splits are larger than 4 GiB together. That depends on the set alone, so another
    machine makes the same views.

    Raises InputError for an image size out of 8 to 1024, an unknown split and a limit below 1.
    """

    image_size: int | None = None
    limit: Mapping[str, int] = field(default_factory=dict)
    corrupt: Corrupt = "refuse"
    stream: bool | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size not in _IMAGE_SIZES:
            raise InputError(
                f"image size {self.image_size} is out of range", next_step="use 8 to 1024 pixels"
            )
        for split, n in self.limit.items():
            if split not in SPLITS:
                raise unknown_name("split", split, SPLITS, where="limit")
            if n < 1:
                raise InputError(f"limit of {n} images", where=split, next_step="give a positive number")


@dataclass(frozen=True)
class Split:
    """``images`` uint8 ``[N, 3, H, W]`` RGB and ``labels`` int64 ``[N]``, -1 where unlabelled.

    The images of a streamed set are a `StreamedImages`, which decodes what is asked of it.
    """

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


class ImageSet(ABC):
    """Images of one kind and size with their splits, loaded when first asked for.

    Every split of a ``streamed`` set is a `StreamedImages`. Whoever reads the set of this name in the same ``reading``
    reads the same images.
    """

    name: str
    classes: tuple[str, ...]
    image_size: int
    normalisation: Normalisation
    streamed: bool = False
    has_detection: bool = False
    detection_classes: tuple[str, ...] = ()

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self._limit = dict(reading.limit)
        self._splits: dict[str, Split] = {}

    @property
    @abstractmethod
    def content(self) -> str:
        """What determines the pixels and labels of the unlimited splits, as text."""

    @abstractmethod
    def _labels(self, name: str) -> np.ndarray:
        """The labels of all the images of a split, int64 ``[N]``."""

    @abstractmethod
    def _images(self, name: str, index: np.ndarray) -> np.ndarray:
        """Some images of a split, uint8 ``[len(index), 3, H, W]``."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the pixels and labels of every split and of training's views.

        Training cuts its views from whole pictures where a set is streamed, else from squares of the image size.
        """
        parts: tuple[object, ...] = (self.content, self.image_size, sorted(self._limit.items()))
        if self.streamed:
            parts += ("streamed",)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def slug(self) -> str:
        """What the set is called in names of files and folders, however its name was written."""
        return slug(self.name)

    @property
    def skipped(self) -> dict[str, int]:
        """How many corrupt images of each split were left out so far; only splits with such images."""
        return {}

    @property
    def remarks(self) -> tuple[str, ...]:
        """A plain sentence, with counts, on each thing that reading the set so far left out, repaired or assumed."""
        return ()

    def split(self, name: str) -> Split:
        """The images and labels of ``train``, ``val`` or ``test``; raises InputError if there are none."""
        if name not in SPLITS:
            raise unknown_name("split", name, SPLITS, where=self.name)
        if name not in self._splits:
            labels = self._labels(name)
            index = stratified_subset(labels, self._limit.get(name, len(labels)), _SUBSET_SEED)
            self._splits[name] = self._load(name, index, labels[index].astype(np.int64))
        return self._splits[name]

    def count(self, name: str) -> int:
        """How many images a split has."""
        return len(self.split(name))

    def _load(self, name: str, index: np.ndarray, labels: np.ndarray) -> Split:
        """Some images of a split with their labels."""
        return Split(torch.from_numpy(self._images(name, index)), torch.from_numpy(labels))

    def detection(self, name: str) -> DetectionSplit:
        """The images with boxes and masks; raises InputError, for most sets have none."""
        raise InputError(
            "this image set has no boxes or masks",
            where=self.name,
            nearest="digit-scenes",
            next_step="use an image set with detection annotations, or leave the detection protocols out",
        )


class _Generated(ImageSet):
    """An embedded set: images are a function of a configuration, whose fingerprint they have."""

    normalisation = SCENES_NORMALISATION
    config: scenes.SceneConfig | textures.TextureConfig

    def __init__(self, reading: Reading) -> None:
        super().__init__(reading)
        if reading.image_size is not None:
            self.config = replace(self.config, image_size=reading.image_size)
        self.image_size = self.config.image_size
        self._made: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def count(self, name: str) -> int:
        """How many images a split has, which needs no image."""
        if name not in SPLITS:
            raise unknown_name("split", name, SPLITS, where=self.name)
        whole: int = getattr(self.config, name)
        return min(whole, self._limit.get(name, whole))

    @abstractmethod
    def _make(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of a split."""

    def _split(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _labels(self, name: str) -> np.ndarray:
        return self._split(name)[1]

    def _images(self, name: str, index: np.ndarray) -> np.ndarray:
        return self._split(name)[0][index]


class GlyphScenes(_Generated):
    """Coloured glyphs with clutter, and scenes of several glyphs with boxes and masks (`data.scenes`)."""

    has_detection = True
    glyphs: scenes.Glyphs
    _drawn: str
    """What the fingerprint calls the glyphs."""
    config: scenes.SceneConfig = scenes.SceneConfig()
    _has_masks = True

    def __init__(self, reading: Reading) -> None:
        super().__init__(reading)
        self.classes = self.detection_classes = self.glyphs.classes
        self._scenes: dict[str, DetectionSplit] = {}

    @property
    def content(self) -> str:
        """The fingerprint of the generator."""
        return self.config.fingerprint(self._drawn)

    def _make(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return scenes.classification(name, self.config, self.glyphs)

    def detection(self, name: str) -> DetectionSplit:
        """The scenes of a split; a limit on the split takes the first scenes."""
        if name not in SPLITS:
            raise unknown_name("split", name, SPLITS, where=self.name)
        if name not in self._scenes:
            made = scenes.scenes(name, self.config, self.glyphs)
            n = self._limit.get(name, len(made.images))
            self._scenes[name] = DetectionSplit(
                images=torch.from_numpy(made.images[:n]),
                boxes=[torch.from_numpy(boxes).float() for boxes in made.boxes[:n]],
                labels=[torch.from_numpy(labels) for labels in made.labels[:n]],
                masks=[torch.from_numpy(masks) for masks in made.masks[:n]] if self._has_masks else None,
            )
        return self._scenes[name]


class DigitScenes(GlyphScenes):
    """Handwritten digits: the set that everything here trains on unless it is told otherwise."""

    name = "digit-scenes"
    glyphs = digit_scenes.DIGITS
    _drawn = "digit-scenes"


class DigitCrowds(DigitScenes):
    """Scenes of many small digits with boxes alone, as their masks would take 400 MB, and images of the same making."""

    name = "digit-crowds"
    config = digit_scenes.CROWDS
    _has_masks = False


class LetterScenes(GlyphScenes):
    """Capital letters: 26 classes that differ in details."""

    name = "letter-scenes"
    glyphs = drawn_glyphs.LETTERS
    _drawn = "letters"
    config = scenes.SceneConfig(train=4096, val=512)


class ShapeScenes(GlyphScenes):
    """Filled shapes, for which the scenes of several are meant: a picture has as many labels as kinds of shapes."""

    name = "shape-scenes"
    glyphs = drawn_glyphs.SHAPES
    _drawn = "shapes"
    config = scenes.SceneConfig(train=4096, val=512, scene_digits=(1, 4), scene_digit_size=(28, 46))


class TextureScenes(_Generated):
    """Surfaces without any object (`data.textures`)."""

    name = "texture-scenes"
    classes = textures.CLASSES
    config: textures.TextureConfig = textures.TextureConfig()

    @property
    def content(self) -> str:
        """The fingerprint of the generator."""
        return self.config.fingerprint()

    def _make(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return textures.textures(name, self.config)


class _HeldOut(ImageSet):
    """A set with training images, perhaps validation images, perhaps test images, under those names."""

    _instead_of_test: str | None = None

    @abstractmethod
    def _stored_labels(self, name: str) -> np.ndarray | None:
        """The labels of a split as it is stored, or None if the set has no such split."""

    @cached_property
    def _validation_index(self) -> np.ndarray:
        """Which of the stored training images are held out, in ascending order."""
        labels = self._stored_labels("train")
        assert labels is not None
        return held_out(labels)

    def _stored(self, name: str) -> tuple[str, np.ndarray]:
        """Where the images of a split are stored: the name there and the indices."""
        labels = self._stored_labels(name)
        if name == "test" and labels is None:
            raise InputError(
                "this image set has no test images",
                where=self.name,
                nearest=self._instead_of_test,
                next_step="put labelled images into a folder test/ beside train/, one folder per class",
            )
        if self._stored_labels("val") is not None or name == "test":
            assert labels is not None
            return name, np.arange(len(labels))
        if name == "val":
            return "train", self._validation_index
        assert labels is not None
        return "train", np.setdiff1d(np.arange(len(labels)), self._validation_index)

    def _labels(self, name: str) -> np.ndarray:
        stored, index = self._stored(name)
        labels = self._stored_labels(stored)
        assert labels is not None
        return labels[index]


class FolderImages(_HeldOut):
    """Images in folders, decoded when a split is first asked for, or streamed.

    A split in memory goes without the corrupt images that are skipped; a streamed one has substitutes for them. The
    set's own image size is that of `data.folders.natural_size`.
    """

    def __init__(
        self, name: str, files: folders.ImageFiles, normalisation: Normalisation, reading: Reading
    ) -> None:
        super().__init__(reading)
        self.name, self.classes, self.normalisation = name, files.classes, normalisation
        self.image_size = reading.image_size or folders.natural_size(files, reading.corrupt)
        self._files, self._corrupt = files, reading.corrupt
        self._oddities = {split: Oddities(files.root, split) for split in SPLITS}
        nearest = nearest_name("test", files.unread) or next(iter(files.unread), None)
        self._instead_of_test = None if nearest is None else str(files.root / nearest)
        self._skipped: dict[str, folders.SkippedFiles] = {}
        stream = reading.stream
        self.streamed = self._decoded_bytes() > _IN_MEMORY_BYTES if stream is None else stream

    @property
    def content(self) -> str:
        """Names below the folder, their labels and what is in the files, and how pixels are made of it."""
        return self._files.fingerprint()

    @property
    def slug(self) -> str:
        """The format and the name of the folder itself, to which many paths and links may lead."""
        kind, colon, _ = self.name.partition(":")
        return slug(f"{kind}-{self._files.root.resolve().name}") if colon else super().slug

    @property
    def skipped(self) -> dict[str, int]:
        """How many corrupt images of each split were left out so far; only splits with such images."""
        return {name: len(files) for name, files in self._skipped.items() if len(files)}

    @property
    def remarks(self) -> tuple[str, ...]:
        """What listing the files left out, followed or assumed, and what was odd about those decoded so far."""
        met = (remark for oddities in self._oddities.values() for remark in oddities.remarks())
        return (*self._files.remarks, *met)

    def split(self, name: str) -> Split:
        """The images and labels of a split; raises InputError for a test split without labels in a set with classes."""
        listed = self._files.splits.get(name)
        if name == "test" and listed is not None and self.classes and (listed.labels < 0).all():
            raise self._unlabelled_test(listed)
        return super().split(name)

    def _unlabelled_test(self, listed: folders.FileList) -> InputError:
        folder = listed.paths[0].parent
        sort = f"sort them into {folder.name}/<class>/ (ImageNet's development kit lists the classes)"
        return InputError(
            f"the {len(listed.paths)} test images have no labels: they are in no class folders",
            where=folder,
            next_step=f"move this folder away, and val/ is the test split; or {sort}"
            if "val" in self._files.splits
            else f"{sort}; pretraining does not need them",
        )

    def _decoded_bytes(self) -> int:
        """Of all the splits together."""
        names = [name for name in SPLITS if name != "test" or name in self._files.splits]
        images = sum(min(len(self._labels(name)), self._limit.get(name, sys.maxsize)) for name in names)
        return images * 3 * self.image_size**2

    def _stored_labels(self, name: str) -> np.ndarray | None:
        listed = self._files.splits.get(name)
        return None if listed is None else listed.labels

    def _paths(self, name: str, index: np.ndarray) -> list[Path]:
        stored, place = self._stored(name)
        listed = self._files.splits[stored].paths
        return [listed[i] for i in place[index]]

    def _images(self, name: str, index: np.ndarray) -> np.ndarray:
        return folders.decode(self._paths(name, index), self.image_size, self._oddities[name])

    def _load(self, name: str, index: np.ndarray, labels: np.ndarray) -> Split:
        oddities = self._oddities[name]
        if self.streamed:
            paths = self._paths(name, index)
            images = StreamedImages(paths, labels, self.image_size, self._corrupt, oddities=oddities)
            self._skipped[name] = images.skipped
            return Split(images, torch.from_numpy(labels))
        if self._corrupt == "refuse":
            return super()._load(name, index, labels)
        self._skipped[name] = folders.SkippedFiles()
        paths = self._paths(name, index)
        pixels, kept = folders.decode_readable(paths, self.image_size, self._skipped[name], oddities)
        if name in self.skipped:
            _log.warning("skipped %d of %d images of %s", self.skipped[name], len(paths), name)
        return Split(torch.from_numpy(pixels), torch.from_numpy(labels[kept]))


class AnnotatedPictures(FolderImages):
    """Pictures with annotated objects: a Pascal VOC folder (`data.voc`) or COCO's (`data.coco`).

    Whole pictures are for detection, which has the splits ``train`` and ``test``. As squares they are unlabelled, fit
    for pretraining, and cut without regard to the annotated size and its orientation.
    """

    has_detection = True

    def __init__(self, name: str, root: Path, annotations: AnnotatedSet, reading: Reading) -> None:
        listed = {
            split: folders.FileList([image.path for image in images], np.full(len(images), -1, np.int64))
            for split, images in annotations.splits.items()
        }
        files = folders.ImageFiles(root, (), listed)
        super().__init__(name, files, IMAGENET_NORMALISATION, reading)
        self.detection_classes = annotations.classes
        self._annotations = annotations
        self._whole: dict[str, DetectionSplit] = {}

    @property
    def content(self) -> str:
        """The contents of the pictures, and every annotation."""
        return f"{super().content} {self._annotations.digest()}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """What reading the annotations left out, repaired or assumed, after what reading the pictures did."""
        return super().remarks + self._annotations.remarks

    def detection(self, name: str) -> DetectionSplit:
        """The annotated pictures of ``train`` or ``test``; a limit on the split takes the first."""
        if name not in self._annotations.splits:
            raise unknown_name("split", name, self._annotations.splits, where=self.name)
        if name not in self._whole:
            images = self._annotations.splits[name]
            self._whole[name] = detection_split(images[: self._limit.get(name, len(images))])
        return self._whole[name]


class Cifar10Batches(_HeldOut):
    """CIFAR-10 in the format of its authors (``cifar-10-batches-py``), read and verified by torchvision."""

    name = "cifar10"
    normalisation = CIFAR10_NORMALISATION

    def __init__(self, root: Path, reading: Reading) -> None:
        super().__init__(reading)
        self.image_size = reading.image_size or CIFAR10_SIZE
        self._arrays = {name: _read_cifar10(root, train=name == "train") for name in ("train", "test")}
        self.classes = self._arrays["train"][2]

    @property
    def content(self) -> str:
        """The name of the release, whose checksums torchvision has verified."""
        return CIFAR10_BATCHES

    def _stored_labels(self, name: str) -> np.ndarray | None:
        return self._arrays[name][1] if name in self._arrays else None

    def _images(self, name: str, index: np.ndarray) -> np.ndarray:
        stored, place = self._stored(name)
        return folders.resize_arrays(self._arrays[stored][0][place[index]], self.image_size)


def _read_cifar10(root: Path, train: bool) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images uint8 ``[N, 32, 32, 3]``, labels, class names; InputError if torchvision finds them damaged."""
    from torchvision.datasets import CIFAR10

    try:
        dataset = CIFAR10(str(root), train=train, download=False)
    except RuntimeError as error:
        raise InputError(
            "CIFAR-10 is incomplete or damaged (its checksums do not match)",
            where=root / CIFAR10.base_folder,
            next_step=f"unpack {CIFAR10.url} there again",
        ) from error
    return dataset.data, np.array(dataset.targets, np.int64), tuple(dataset.classes)


def held_out(labels: np.ndarray) -> np.ndarray:
    """Which of the training images with these labels become ``val``, ascending: stratified, always the same."""
    return stratified_subset(labels, val_count(len(labels)), _SUBSET_SEED)


def val_count(images: int) -> int:
    """How many of so many training images become ``val``."""
    return max(1, min(_MOST_HELD_OUT, round(_HELD_OUT * images)))


def stratified_subset(labels: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Indices of about ``n`` items with every class in its proportion, ascending; all of them if n is larger.

    Exactly ``n`` items: shares are rounded down and the remainders go to the classes with the largest
    fractions. The items of a class are the first of a seeded order, so that a larger subset contains a
    smaller one up to that rounding.
    """
    if n >= len(labels):
        return np.arange(len(labels))
    values, counts = np.unique(labels, return_counts=True)
    exact = counts * n / len(labels)
    shares = np.floor(exact).astype(int)
    by_fraction = np.argsort(shares - exact, kind="stable")
    shares[by_fraction[: n - shares.sum()]] += 1
    order = np.argsort(np.random.Philox(key=seed).random_raw(len(labels)), kind="stable")
    chosen = [order[labels[order] == value][:share] for value, share in zip(values, shares, strict=True)]
    return np.sort(np.concatenate(chosen))
