"""The embedded image sets: the same bits everywhere, nothing but the shape tells the class."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torchvision.ops import box_iou

from twinbench.data import digit_scenes
from twinbench.data import scenes as generator
from twinbench.data.digit_scenes import CROWDS, DIGITS, originals
from twinbench.data.scenes import SPLITS, Canvas, Draws, SceneConfig, Scenes

CONFIG = SceneConfig()
classification = partial(generator.classification, glyphs=DIGITS)
scenes = partial(generator.scenes, glyphs=DIGITS)
SMALL = replace(CONFIG, train=1500, val=400, test=800, scene_train=24, scene_val=24, scene_test=24)


def sha(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


PINNED_IMAGES = {"train": "916b7205e57e98c3", "val": "ee494bc56d3b61de", "test": "f1f02470b72bbc84"}
# change GENERATOR_VERSION whenever these change with the same configuration
PINNED_SCENES = {"train": "a2d7a9eec9014cc5", "val": "dc0293692d05a812", "test": "92b9a635379fda63"}


@pytest.mark.parametrize("split", SPLITS)
def test_the_first_images_of_every_split_are_pinned(split: str) -> None:
    images, labels = classification(split, SMALL)
    assert sha(images[:64], labels[:64]) == PINNED_IMAGES[split]
    made = scenes(split, SMALL)
    assert sha(made.images[:8], *made.boxes[:8], *made.labels[:8], *made.masks[:8]) == PINNED_SCENES[split]


FINGERPRINT = "3156b47c953fd1d3e493b4a48eb0b387e1be2e8de323784eccbe0ca37bf110b4"
CROWDS_FINGERPRINT = "69ec4c2dd53a7818232b7d83b9cb6fa10a7be72607bffd1aeb7c7f5ec336323a"
# of the first two scenes of each split
PINNED_CROWDS = {"train": "0be7972c3634aac2", "val": "a9e3e3398d0ec225", "test": "c75d3c2999196e1a"}


def test_the_fingerprints_are_pinned() -> None:
    """Records and pretrained encoders of the sets are found by them."""
    assert SceneConfig().fingerprint() == FINGERPRINT
    assert CROWDS.fingerprint() == CROWDS_FINGERPRINT


@pytest.fixture(params=SPLITS)
def crowds(request) -> Scenes:
    return scenes(request.param, replace(CROWDS, **{f"scene_{request.param}": 6}))


def test_the_first_crowds_of_every_split_are_pinned(crowds, request) -> None:
    found = sha(crowds.images[:2], *crowds.boxes[:2], *crowds.labels[:2], *crowds.masks[:2])
    assert found == PINNED_CROWDS[request.node.callspec.params["crowds"]]


def test_crowds_are_many_small_digits_and_all_are_seen(crowds) -> None:
    counts = np.array([len(boxes) for boxes in crowds.boxes])
    assert counts.min() >= 26
    assert counts.max() <= 40
    assert 29 <= counts.mean() <= 37
    sides = np.concatenate([boxes[:, 2:] - boxes[:, :2] for boxes in crowds.boxes])
    assert 13 <= np.median(np.sqrt(sides.prod(1))) <= 16
    assert sides.min() >= 4
    assert sides.max() <= 32
    for boxes, masks in zip(crowds.boxes, crowds.masks, strict=True):
        assert masks.sum((1, 2)).min() >= 20
        overlap = torch.from_numpy(boxes).float()
        overlap = box_iou(overlap, overlap).fill_diagonal_(0)
        assert overlap.max() < 0.3


def test_another_process_makes_the_same_bits() -> None:
    program = (
        "import hashlib; from twinbench.data.scenes import *; from twinbench.data.digit_scenes import DIGITS;"
        "print(hashlib.sha256(classification('val', SceneConfig(val=64), DIGITS)[0].tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (
        other.stdout.strip()
        == hashlib.sha256(classification("val", replace(CONFIG, val=64))[0].tobytes()).hexdigest()
    )


def test_a_seed_changes_the_images_and_the_fingerprint() -> None:
    other = replace(SMALL, seed=1)
    assert not np.array_equal(classification("val", other)[0], classification("val", SMALL)[0])
    assert other.fingerprint() != SMALL.fingerprint() == replace(SMALL).fingerprint()


@pytest.mark.parametrize("file", [digit_scenes._DIGITS, "no such file"])
def test_the_originals_are_those_of_scikit_learn(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digit_scenes, "_DIGITS", file)
    images, labels = digit_scenes._digits()
    expected = load_digits()
    assert np.array_equal(images, expected.images)
    assert np.array_equal(labels, expected.target)


def test_drawing_digits_imports_no_scikit_learn() -> None:
    program = (
        "import sys; from twinbench.data.digit_scenes import originals; originals('val');"
        "sys.exit('sklearn' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_splits_come_from_disjoint_originals() -> None:
    indices = [set(originals(split)[2].tolist()) for split in SPLITS]
    assert [len(index) for index in indices] == [1197, 200, 400]
    assert set.union(*indices) == set(range(1797))
    pictures = [{image.tobytes() for image in originals(split)[0]} for split in SPLITS]
    assert not pictures[0] & pictures[1]
    assert not pictures[0] & pictures[2]
    assert not pictures[1] & pictures[2]


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_balanced_and_images_use_the_range(split: str) -> None:
    images, labels = classification(split, SMALL)
    assert images.shape == (getattr(SMALL, split), 3, 32, 32)
    assert images.dtype == np.uint8
    counts = np.bincount(labels, minlength=10)
    assert counts.max() - counts.min() <= 1
    assert images.min() == 0
    assert images.max() == 255
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def probe_accuracy(features: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> float:
    """Test accuracy of a logistic regression; chance is 0.1."""
    scaler = StandardScaler().fit(features["train"])
    model = LogisticRegression(C=0.01, max_iter=200).fit(scaler.transform(features["train"]), labels["train"])
    return float(model.score(scaler.transform(features["test"]), labels["test"]))


@pytest.mark.numerics
def test_colour_tells_nothing_about_the_class(seed_offset, margin) -> None:
    small = replace(SMALL, seed=seed_offset)
    made = {split: classification(split, small) for split in ("train", "test")}
    colour = {
        split: np.concatenate([images.mean((2, 3)), images.std((2, 3)), np.abs(images.mean((2, 3)) - 128)], 1)
        for split, (images, _) in made.items()
    }
    # four standard errors of a chance result on 800 images
    accuracy = probe_accuracy(colour, {split: labels for split, (_, labels) in made.items()})
    margin.at_most("accuracy", accuracy, 0.1 + 4 * 0.0106)


@pytest.mark.numerics
def test_raw_pixels_are_a_poor_feature(seed_offset, margin) -> None:
    small = replace(SMALL, seed=seed_offset)
    made = {split: classification(split, small) for split in ("train", "test")}
    pixels = {split: images[:, :, ::2, ::2].reshape(len(images), -1) for split, (images, _) in made.items()}
    accuracy = probe_accuracy(pixels, {split: labels for split, (_, labels) in made.items()})
    margin.at_most("accuracy", accuracy, 0.3)


def test_position_and_size_tell_nothing_about_the_class() -> None:
    made = scenes("train", replace(SMALL, scene_train=300, scene_digits=(1, 1)))
    boxes = np.concatenate(made.boxes).astype(float)
    labels = np.concatenate(made.labels)
    centres = np.stack([boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]], axis=1) / 2
    for digit in range(10):
        mine, others = centres[labels == digit], centres[labels != digit]
        error = np.sqrt(mine.var(0) / len(mine) + others.var(0) / len(others))
        assert (np.abs(mine.mean(0) - others.mean(0)) < 4 * error).all()


@pytest.mark.parametrize("split", SPLITS)
def test_scene_annotations_agree(split: str) -> None:
    made = scenes(split, SMALL)
    assert made.images.shape == (24, 3, 96, 96)
    counts = [len(labels) for labels in made.labels]
    assert set(counts) <= {1, 2, 3, 4}
    assert len(set(counts)) > 2
    for boxes, labels, masks in zip(made.boxes, made.labels, made.masks, strict=True):
        assert boxes.shape == (len(labels), 4)
        assert masks.shape == (len(labels), 96, 96)
        assert ((labels >= 0) & (labels < 10)).all()
        assert (masks.sum(0) <= 1).all(), "visible masks do not overlap"
        for (left, top, right, bottom), mask in zip(boxes, masks, strict=True):
            assert mask.sum() >= 60
            rows, columns = np.nonzero(mask)
            assert (left, top) == (columns.min(), rows.min())
            assert (right, bottom) == (columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize("percent", [8, 25, 80])
def test_paint_stays_within_the_glyph(percent: int) -> None:
    canvas = Canvas(50, 32, SMALL, Draws("test"))
    before = canvas.pixels.copy()
    canvas.add_clutter(generator.fragments(DIGITS, "train"), (1, 1), (percent, percent))
    changed = (canvas.pixels != before).any(1).mean((1, 2))
    assert changed.max() <= 2 * (percent / 100) ** 2 + 0.02
    assert changed.max() > 0


def test_a_digit_differs_from_its_surroundings() -> None:
    made = scenes("val", replace(SMALL, scene_digits=(1, 1), scene_clutter=(0, 0)))
    luma = np.tensordot(made.images, [0.299, 0.587, 0.114], axes=(1, 0))
    lighter = 0
    for grey, masks in zip(luma, made.masks, strict=True):
        difference = grey[masks[0]].mean() - grey[~masks[0]].mean()
        assert abs(difference) > 25
        lighter += difference > 0
    assert 4 <= lighter <= 20


@pytest.mark.parametrize("size", [16, 64])
def test_other_image_sizes(size: int) -> None:
    images, labels = classification("val", replace(SMALL, image_size=size))
    assert images.shape == (400, 3, size, size)
    assert np.array_equal(labels, classification("val", SMALL)[1])
