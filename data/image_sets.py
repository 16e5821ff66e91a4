"""Image sets: labelled images by name.

``digit-scenes`` is embedded (`data.digit_scenes`), ``cifar10`` and ``bccd`` (blood cells under a microscope, with
boxes) are read from a data folder, ``folder:PATH`` is any folder of images (`data.folders`), which stays on disk when
it is large (`data.streaming`). ``voc:PATH`` and ``coco:PATH`` are pictures with annotated objects (`data.voc`,
`data.coco`). Every set has the
splits ``train``, ``val`` and ``test``. Where a set brings no validation images, a tenth of its training images, at
most 10,000 (stratified, always the same), becomes ``val`` and is no longer in ``train``. Hyperparameters are
selected on ``val``; ``test`` is for the final number.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from twinbench.data import digit_scenes, folders
from twinbench.data.coco import read_coco
from twinbench.data.detection import AnnotatedSet, DetectionSplit, detection_split
from twinbench.data.folders import Corrupt
from twinbench.data.streaming import Images, StreamedImages
from twinbench.data.voc import read_voc
from twinbench.foundation.errors import InputError, unknown_name

_log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
Channels = tuple[float, float, float]

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
CIFAR10_MEAN: Channels = (0.4914, 0.4822, 0.4465)
CIFAR10_STD: Channels = (0.2470, 0.2435, 0.2616)
DIGIT_SCENES_MEAN: Channels = (0.5, 0.5, 0.5)
DIGIT_SCENES_STD: Channels = (0.23, 0.20, 0.25)

_IN_MEMORY_BYTES = 4 * 2**30
_HELD_OUT = 0.1
_MOST_HELD_OUT = 10_000
_SUBSET_SEED = 0
_CIFAR10_SIZE = 32
_CIFAR10_FOLDERS = ("cifar10-jpeg", "cifar10")
_CIFAR10_BATCHES = "cifar-10-batches-py"
_CIFAR10_SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
_BCCD_FOLDERS = ("bccd", "BCCD")
_BCCD_SOURCE = "the folder BCCD of https://github.com/Shenggan/BCCD_Dataset"
_FOLDER_PREFIX = "folder:"
_ANNOTATED = {"voc:": read_voc, "coco:": read_coco}


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

    ``limits`` maps split names to the largest number of images; a smaller split is a stratified subset. Every
    split of a ``streamed`` set is a `StreamedImages`.
    """

    name: str
    classes: tuple[str, ...]
    image_size: int
    mean: Channels
    std: Channels
    streamed: bool = False
    has_detection: bool = False
    detection_classes: tuple[str, ...] = ()

    def __init__(self, limits: Mapping[str, int]) -> None:
        self._limits = dict(limits)
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
        parts: tuple[object, ...] = (self.content, self.image_size, sorted(self._limits.items()))
        if self.streamed:
            parts += ("streamed",)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def skipped(self) -> dict[str, int]:
        """How many corrupt images of each split were left out so far; only splits with such images."""
        return {}

    def split(self, name: str) -> Split:
        """The images and labels of ``train``, ``val`` or ``test``; raises InputError if there are none."""
        if name not in SPLITS:
            raise unknown_name("split", name, SPLITS, where=self.name)
        if name not in self._splits:
            labels = self._labels(name)
            index = stratified_subset(labels, self._limits.get(name, len(labels)), _SUBSET_SEED)
            self._splits[name] = self._load(name, index, labels[index].astype(np.int64))
        return self._splits[name]

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


class DigitScenes(ImageSet):
    """The embedded set: coloured digits with clutter, and scenes of several digits with boxes and masks."""

    name = "digit-scenes"
    classes = digit_scenes.CLASSES
    mean, std = DIGIT_SCENES_MEAN, DIGIT_SCENES_STD
    has_detection = True
    detection_classes = digit_scenes.CLASSES

    def __init__(self, config: digit_scenes.DigitScenesConfig, limits: Mapping[str, int]) -> None:
        super().__init__(limits)
        self.config = config
        self.image_size = config.image_size
        self._generated: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._scenes: dict[str, DetectionSplit] = {}

    @property
    def content(self) -> str:
        """The fingerprint of the generator."""
        return self.config.fingerprint()

    def _generate(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        if name not in self._generated:
            self._generated[name] = digit_scenes.classification(name, self.config)
        return self._generated[name]

    def _labels(self, name: str) -> np.ndarray:
        return self._generate(name)[1]

    def _images(self, name: str, index: np.ndarray) -> np.ndarray:
        return self._generate(name)[0][index]

    def detection(self, name: str) -> DetectionSplit:
        """The scenes of a split; a limit on the split takes the first scenes."""
        if name not in SPLITS:
            raise unknown_name("split", name, SPLITS, where=self.name)
        if name not in self._scenes:
            made = digit_scenes.scenes(name, self.config)
            n = self._limits.get(name, len(made.images))
            self._scenes[name] = DetectionSplit(
                images=torch.from_numpy(made.images[:n]),
                boxes=[torch.from_numpy(boxes).float() for boxes in made.boxes[:n]],
                labels=[torch.from_numpy(labels) for labels in made.labels[:n]],
                masks=[torch.from_numpy(masks) for masks in made.masks[:n]],
            )
        return self._scenes[name]


class _HeldOut(ImageSet):
    """A set with training images, perhaps validation images, perhaps test images, under those names."""

    @abstractmethod
    def _stored_labels(self, name: str) -> np.ndarray | None:
        """The labels of a split as it is stored, or None where the set has no such split."""

    @cached_property
    def _validation_index(self) -> np.ndarray:
        """Which of the stored training images are held out, in ascending order."""
        labels = self._stored_labels("train")
        assert labels is not None
        return stratified_subset(
            labels, max(1, min(_MOST_HELD_OUT, round(_HELD_OUT * len(labels)))), _SUBSET_SEED
        )

    def _stored(self, name: str) -> tuple[str, np.ndarray]:
        """Where the images of a split are stored: the name there and the indices."""
        labels = self._stored_labels(name)
        if name == "test" and labels is None:
            raise InputError(
                "this image set has no test images",
                where=self.name,
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

    ``stream`` None streams a set whose decoded splits are larger than 4 GiB together. That depends on the set
    alone, so another machine makes the same views. What becomes of corrupt images says ``corrupt``: ``refuse`` them
    by name, or ``skip``: a split in memory goes without them, a streamed one has substitutes.
    """

    def __init__(
        self,
        name: str,
        files: folders.ImageFiles,
        image_size: int,
        normalisation: tuple[Channels, Channels],
        limits: Mapping[str, int],
        corrupt: Corrupt = "refuse",
        stream: bool | None = None,
    ) -> None:
        super().__init__(limits)
        self.name, self.classes, self.image_size = name, files.classes, image_size
        self.mean, self.std = normalisation
        self._files, self._corrupt = files, corrupt
        self._skipped: dict[str, folders.SkippedFiles] = {}
        self.streamed = self._decoded_bytes() > _IN_MEMORY_BYTES if stream is None else stream

    @property
    def content(self) -> str:
        """Names below the folder and their sizes in bytes."""
        return self._files.fingerprint()

    @property
    def skipped(self) -> dict[str, int]:
        """How many corrupt images of each split were left out so far; only splits with such images."""
        return {name: len(files) for name, files in self._skipped.items() if len(files)}

    def _decoded_bytes(self) -> int:
        """Of all the splits together."""
        names = [name for name in SPLITS if name != "test" or name in self._files.splits]
        images = sum(min(len(self._labels(name)), self._limits.get(name, sys.maxsize)) for name in names)
        return images * 3 * self.image_size**2

    def _stored_labels(self, name: str) -> np.ndarray | None:
        listed = self._files.splits.get(name)
        return None if listed is None else listed.labels

    def _paths(self, name: str, index: np.ndarray) -> list[Path]:
        stored, place = self._stored(name)
        listed = self._files.splits[stored].paths
        return [listed[i] for i in place[index]]

    def _images(self, name: str, index: np.ndarray) -> np.ndarray:
        return folders.decode(self._paths(name, index), self.image_size)

    def _load(self, name: str, index: np.ndarray, labels: np.ndarray) -> Split:
        if self.streamed:
            images = StreamedImages(self._paths(name, index), labels, self.image_size, self._corrupt)
            self._skipped[name] = images.skipped
            return Split(images, torch.from_numpy(labels))
        if self._corrupt == "refuse":
            return super()._load(name, index, labels)
        self._skipped[name] = folders.SkippedFiles()
        paths = self._paths(name, index)
        pixels, kept = folders.decode_readable(paths, self.image_size, self._skipped[name])
        if name in self.skipped:
            _log.warning("skipped %d of %d images of %s", self.skipped[name], len(paths), name)
        return Split(torch.from_numpy(pixels), torch.from_numpy(labels[kept]))


class AnnotatedPictures(FolderImages):
    """Pictures with annotated objects: a Pascal VOC folder (`data.voc`) or COCO's (`data.coco`).

    Whole pictures are for detection, which has the splits ``train`` and ``test``. As squares they are unlabelled:
    fit for pretraining.
    """

    has_detection = True

    def __init__(
        self,
        name: str,
        root: Path,
        annotations: AnnotatedSet,
        image_size: int | None,
        limits: Mapping[str, int],
        corrupt: Corrupt = "refuse",
        stream: bool | None = None,
    ) -> None:
        listed = {
            split: folders.FileList([image.path for image in images], np.full(len(images), -1, np.int64))
            for split, images in annotations.splits.items()
        }
        files = folders.ImageFiles(root, (), listed)
        size = image_size or folders.natural_size(files, corrupt)
        super().__init__(name, files, size, (IMAGENET_MEAN, IMAGENET_STD), limits, corrupt, stream)
        self.detection_classes = annotations.classes
        self._annotations = annotations

    @property
    def content(self) -> str:
        """Names and sizes of the pictures, and every annotation."""
        return f"{super().content} {self._annotations.digest()}"

    def detection(self, name: str) -> DetectionSplit:
        """The annotated pictures of ``train`` or ``test``; a limit on the split takes the first."""
        if name not in self._annotations.splits:
            raise unknown_name("split", name, self._annotations.splits, where=self.name)
        images = self._annotations.splits[name]
        return detection_split(images[: self._limits.get(name, len(images))])


class Cifar10Batches(_HeldOut):
    """CIFAR-10 in the format of its authors (``cifar-10-batches-py``), read and verified by torchvision."""

    name = "cifar10"
    mean, std = CIFAR10_MEAN, CIFAR10_STD

    def __init__(self, root: Path, image_size: int, limits: Mapping[str, int]) -> None:
        super().__init__(limits)
        self.image_size = image_size
        self._arrays = {name: _read_cifar10(root, train=name == "train") for name in ("train", "test")}
        self.classes = self._arrays["train"][2]

    @property
    def content(self) -> str:
        """The name of the release, whose checksums torchvision has verified."""
        return "cifar-10-batches-py"

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


def image_set_names() -> list[str]:
    """The names `load_image_set` knows; with ``PATH`` they stand for any folder of that format."""
    return ["bccd", "cifar10", "coco:PATH", "digit-scenes", "folder:PATH", "voc:PATH"]


def load_image_set(
    name: str,
    data_root: Path | None = None,
    image_size: int | None = None,
    limit: Mapping[str, int] | None = None,
    corrupt: Corrupt = "refuse",
    stream: bool | None = None,
) -> ImageSet:
    """The image set called ``name``.

    ``data_root`` is the folder that holds ``cifar10`` and ``bccd``; ``image_size`` the side of the square images in
    pixels (default: 32 for ``cifar10`` and ``digit-scenes``, see `data.folders.natural_size` for folders); ``limit``
    the largest number of images of a split. ``corrupt`` and ``stream`` are about images in files, see
    `FolderImages`. Raises InputError for an unknown name, missing or unreadable files and limits that make no
    sense.
    """
    limits = _checked_limits(limit or {})
    if image_size is not None and not 8 <= image_size <= 1024:
        raise InputError(f"image size {image_size} is out of range", next_step="use 8 to 1024 pixels")
    if name == "digit-scenes":
        config = digit_scenes.DigitScenesConfig()
        return DigitScenes(replace(config, image_size=image_size or config.image_size), limits)
    if name == "cifar10":
        return _load_cifar10(data_root, image_size or _CIFAR10_SIZE, limits, corrupt, stream)
    if name == "bccd":
        root = _below_data_root(data_root, name, _BCCD_FOLDERS, _BCCD_SOURCE)
        return AnnotatedPictures(name, root, read_voc(root), image_size, limits, corrupt, stream)
    if name.startswith(_FOLDER_PREFIX):
        files = folders.list_images(Path(name.removeprefix(_FOLDER_PREFIX)).expanduser())
        size = image_size or folders.natural_size(files, corrupt)
        return FolderImages(name, files, size, (IMAGENET_MEAN, IMAGENET_STD), limits, corrupt, stream)
    for prefix, read in _ANNOTATED.items():
        if name.startswith(prefix):
            root = Path(name.removeprefix(prefix)).expanduser()
            return AnnotatedPictures(name, root, read(root), image_size, limits, corrupt, stream)
    raise unknown_name("image set", name, image_set_names())


def _checked_limits(limits: Mapping[str, int]) -> Mapping[str, int]:
    for split, n in limits.items():
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS, where="limit")
        if n < 1:
            raise InputError(f"limit of {n} images", where=split, next_step="give a positive number")
    return limits


def _load_cifar10(
    data_root: Path | None, image_size: int, limits: Mapping[str, int], corrupt: Corrupt, stream: bool | None
) -> ImageSet:
    root = _below_data_root(data_root, "cifar10", (_CIFAR10_BATCHES, *_CIFAR10_FOLDERS), _CIFAR10_SOURCE)
    if root.name == _CIFAR10_BATCHES:
        return Cifar10Batches(root.parent, image_size, limits)
    files = folders.list_images(root)
    return FolderImages("cifar10", files, image_size, (CIFAR10_MEAN, CIFAR10_STD), limits, corrupt, stream)


def _below_data_root(data_root: Path | None, name: str, candidates: Sequence[str], source: str) -> Path:
    """The first of some folders that the data root holds; InputError, with where to get the set, if it has none."""
    if data_root is None:
        raise InputError(
            f"{name} is not embedded and no data folder is given",
            nearest="digit-scenes",
            next_step=f"give the folder that holds {candidates[0]} as the data root",
            option="data_root",
        )
    folders.existing_folder(data_root)
    for candidate in candidates:
        if (data_root / candidate).is_dir():
            return data_root / candidate
    raise InputError(
        f"{name} is not here: none of {', '.join(candidates)} is a folder",
        where=data_root,
        nearest=folders.nearest_entry(data_root, candidates[0]),
        next_step=f"unpack {source} into the data root",
    )
