"""The embedded image sets ``digit-scenes`` and ``digit-crowds``: handwritten digits in coloured, cluttered scenes.

The 1,797 8x8 digits that come with scikit-learn are what `data.scenes` draws. The scenes of ``digit-crowds``
have many small digits (`CROWDS`), and its digits are turned and sheared more.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

from twinbench.data.scenes import Bytes, Draws, Glyphs, Labels, SceneConfig

CLASSES = tuple(str(digit) for digit in range(10))
_DIGITS = "sklearn/datasets/data/digits.csv.gz"
_ORIGINALS_PER_CLASS = {"val": 20, "test": 40}

CROWDS = SceneConfig(
    digit_size=(50, 84),
    clutter=(0, 3),
    texture_contrast=(3, 14),
    tilt=15,
    shear=12,
    scene_size=256,
    scene_train=180,
    scene_val=60,
    scene_test=60,
    scene_digits=(26, 40),
    scene_digit_size=(6, 9),
    scene_clutter=(4, 12),
    scene_clutter_size=(2, 5),
)
"""Scenes of about 33 digits, whose boxes have a median side of 14 pixels of 256."""


@cache
def originals(split: str) -> tuple[Bytes, Labels, Labels]:
    """The original digits of a split: images ``[n, 8, 8]`` (0..255), labels ``[n]``, indices into the 1,797.

    Of every class 20 originals are for validation, 40 for testing and the rest for training, chosen once and
    for all. Sorted by label.
    """
    greys, labels = _digits()
    images = (greys.astype(np.int32) * 255 // 16).astype(np.uint8)
    order = Draws("originals").permutation(len(labels))
    val, test = np.cumsum([_ORIGINALS_PER_CLASS["val"], _ORIGINALS_PER_CLASS["test"]])
    part = {"val": slice(0, val), "test": slice(val, test), "train": slice(test, None)}[split]
    index = np.concatenate([order[labels[order] == digit][part] for digit in range(len(CLASSES))])
    return images[index], labels[index], index


def _digits() -> tuple[Labels, Labels]:
    """All digits ``[1797, 8, 8]`` (0..16) and their labels ``[1797]``, as scikit-learn's ``load_digits`` gives them.

    They are read from its file: importing scikit-learn takes a second, in every process that draws.
    """
    file = Path(str(distribution("scikit-learn").locate_file(_DIGITS)))
    if file.is_file():
        rows = np.loadtxt(file, np.int64, delimiter=",")
        return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]
    from sklearn.datasets import load_digits  # another version may keep it elsewhere

    digits = load_digits()
    return digits.images.astype(np.int64), digits.target.astype(np.int64)


DIGITS = Glyphs(CLASSES, lambda split: originals(split)[:2], key="")
