from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from twinbench.data.augment import Normalisation
from twinbench.data.image_sets import DetectionSplit, ImageSet, Reading, Split
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.protocol import EvaluationContext
from twinbench.encoders.backbones import build_backbone
from twinbench.encoders.encoder import Encoder, EncoderInfo

SIZE = 16
GREY = (0.5, 0.5, 0.5)


class MemorySet(ImageSet):
    """Three classes of noisy images that differ in colour, and scenes with one or two coloured squares."""

    name = "memory"
    classes = ("red", "green", "blue")
    image_size = SIZE
    normalisation = Normalisation(GREY, (0.25, 0.25, 0.25))
    has_detection = True
    detection_classes = classes
    content = "memory"

    def __init__(self, splits: dict[str, Split], scenes: dict[str, DetectionSplit]) -> None:
        super().__init__(Reading())
        self.splits, self.scenes = splits, scenes

    def _labels(self, name: str) -> np.ndarray:
        return self.splits[name].labels.numpy()

    def _images(self, name: str, index: np.ndarray) -> np.ndarray:
        return self.splits[name].images.numpy()[index]

    def split(self, name: str) -> Split:
        return self.splits[name]

    def detection(self, name: str) -> DetectionSplit:
        return self.scenes[name]


def coloured_images(n: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randint(0, 160, (n, 3, SIZE, SIZE), generator=generator)
    images[torch.arange(n), labels] += 95
    return Split(images.to(torch.uint8), labels)


def square_scenes(n: int, seed: int, side: int = 64) -> DetectionSplit:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    images = torch.randint(0, 60, (n, 3, side, side), generator=generator).to(torch.uint8)
    boxes: list[Tensor] = []
    labels: list[Tensor] = []
    masks: list[Tensor] = []
    for image in images:
        count = draw(1, 3)
        scene_masks = torch.zeros(count, side, side, dtype=torch.bool)
        scene_labels = torch.randint(0, 3, (count,), generator=generator)
        scene_boxes = []
        for i in range(count):
            size, half = draw(12, 24), side // 2
            left, top = i * half + draw(0, half - size), draw(0, side - size)
            scene_masks[i, top : top + size, left : left + size] = True
            image[scene_labels[i], top : top + size, left : left + size] = 230
            scene_boxes.append([left, top, left + size, top + size])
        boxes.append(torch.tensor(scene_boxes, dtype=torch.float32))
        labels.append(scene_labels)
        masks.append(scene_masks)
    return DetectionSplit(images, boxes, labels, masks)


def easy_scene(seed: int, side: int = 64, size: int = 16) -> DetectionSplit:
    """One scene to be learned by heart: two squares of different classes on noise.

    The anchors nearest in size cover them by no more than about 0.6, so their boxes have to be learned too.
    """
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 60, (3, side, side), generator=generator).to(torch.uint8)
    labels = torch.randperm(3, generator=generator)[:2]
    masks = torch.zeros(2, side, side, dtype=torch.bool)
    boxes = []
    for i, label in enumerate(labels):
        left = i * side // 2 + int(torch.randint(1, side // 2 - size, (1,), generator=generator))
        top = int(torch.randint(1, side - size, (1,), generator=generator))
        masks[i, top : top + size, left : left + size] = True
        image[label, masks[i]] = 230
        boxes.append([left, top, left + size, top + size])
    return DetectionSplit(image[None], [torch.tensor(boxes, dtype=torch.float32)], [labels], [masks])


def build_encoder(seed: int) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = build_backbone("resnet10", width=8, stem="stride2")
    info = EncoderInfo(
        architecture="resnet10",
        width=8,
        stem="stride2",
        feature_dim=backbone.feature_dim,
        input_size=SIZE,
        mean=GREY,
        std=(0.25, 0.25, 0.25),
        method="random",
        recipe_hash="none",
    )
    return Encoder(backbone, info, checksum=f"seed-{seed}")


@pytest.fixture
def image_set(seed_offset: int) -> MemorySet:
    return MemorySet(
        splits={
            "train": coloured_images(300, seed_offset + 1),
            "val": coloured_images(60, seed_offset + 2),
            "test": coloured_images(90, seed_offset + 3),
        },
        scenes={"train": square_scenes(12, seed_offset + 4), "test": square_scenes(6, seed_offset + 5)},
    )


@pytest.fixture
def scene(seed_offset: int) -> DetectionSplit:
    return easy_scene(seed_offset)


@pytest.fixture
def make_encoder(seed_offset: int) -> Callable[[int], Encoder]:
    return lambda seed: build_encoder(seed_offset + seed)


@pytest.fixture
def encoder(make_encoder: Callable[[int], Encoder]) -> Encoder:
    return make_encoder(0)


@pytest.fixture
def context(image_set: MemorySet, seed_offset: int) -> EvaluationContext:
    return EvaluationContext(image_set, FeatureStore(None), seed=seed_offset)
