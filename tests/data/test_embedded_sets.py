"""The embedded sets to transfer to: the same bits everywhere, fair splits, and nothing but form tells the class."""

import hashlib

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from twinbench.data.catalogue import load_image_set
from twinbench.data.drawn_glyphs import letters, shapes
from twinbench.foundation.errors import InputError

NAMES = ("letter-scenes", "shape-scenes", "texture-scenes")
# a change of these bits is a change of the set: raise the version of its generator
PINNED = {
    "letter-scenes": "5784e4d111cd55a7",
    "shape-scenes": "3285f344cc6e6a16",
    "texture-scenes": "c0e38684da444f8f",
}
SMALL = {"train": 1300, "val": 260, "test": 520}


@pytest.fixture(scope="module")
def splits():
    sets = {name: load_image_set(name, limit=SMALL) for name in NAMES}
    return {
        name: {split: (s.split(split).images[:].numpy(), s.split(split).labels.numpy()) for split in SMALL}
        for name, s in sets.items()
    }


def sha(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[
        :16
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_images_are_pinned(splits, name) -> None:
    assert sha(*(array[:32] for split in SMALL for array in splits[name][split])) == PINNED[name]


@pytest.mark.parametrize("name", NAMES)
def test_classes_are_equally_frequent_and_splits_differ(splits, name) -> None:
    for _, labels in splits[name].values():
        counts = np.bincount(labels)
        assert counts.max() - counts.min() <= 1
    train, test = (splits[name][split][0] for split in ("train", "test"))
    seen = {image.tobytes() for image in train}
    assert not any(image.tobytes() in seen for image in test)


@pytest.mark.parametrize("name", NAMES)
def test_images_are_counted_without_being_drawn(splits, name, monkeypatch) -> None:
    image_set = load_image_set(name, limit=SMALL)
    monkeypatch.setattr(image_set, "_make", None)
    assert {split: image_set.count(split) for split in SMALL} == {
        split: len(labels) for split, (_, labels) in splits[name].items()
    }
    assert load_image_set(name, limit={"train": 10**6}).count("train") == 4096
    with pytest.raises(InputError, match="unknown split"):
        image_set.count("tran")


@pytest.mark.parametrize("originals", [letters, shapes])
def test_originals_of_a_class_are_alike_and_those_of_the_splits_are_others(originals) -> None:
    """The nearest mean of the training originals tells the class of nearly all test originals."""
    (train, train_labels), (test, test_labels) = originals("train"), originals("test")
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}
    classes = range(train_labels.max() + 1)
    means = np.stack([train[train_labels == label].astype(float).mean(0).ravel() for label in classes])
    flat = test.astype(float).reshape(len(test), -1)
    nearest = ((flat[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == test_labels).mean() > 0.95


@pytest.mark.parametrize("name", NAMES)
def test_mean_colours_and_contrasts_tell_next_to_nothing(splits, name) -> None:
    def features(split: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels = splits[name][split]
        # texture: the spread of the noise and of the pattern is the form itself, so colours alone
        return images.mean((2, 3)) / 64, labels

    (x, y), (x_test, y_test) = features("train"), features("test")
    accuracy = LogisticRegression(max_iter=300).fit(x, y).score(x_test, y_test)
    assert accuracy < 2 / len(set(y)) + 0.03


def test_scenes_of_shapes_have_several_labels_and_boxes_around_their_masks() -> None:
    scenes = load_image_set("shape-scenes").detection("test")
    kinds = [len(set(labels.tolist())) for labels in scenes.labels]
    assert set(kinds) == {1, 2, 3, 4}
    for boxes, masks in zip(scenes.boxes[:20], scenes.masks[:20], strict=True):
        for (left, top, right, bottom), mask in zip(boxes.int().tolist(), masks, strict=True):
            assert mask[top:bottom, left:right].sum() == mask.sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_another_size_is_another_set(name) -> None:
    small, large = load_image_set(name), load_image_set(name, image_size=48)
    assert large.image_size == 48
    assert small.fingerprint != large.fingerprint
