"""The set to choose hyperparameters on: made of train and val of another set, whose test images are never read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinbench.data import scenes
from twinbench.data.catalogue import load_image_set
from twinbench.data.image_sets import ImageSet
from twinbench.foundation.errors import InputError


def pictures(image_set: ImageSet, split: str) -> set[bytes]:
    return {image.numpy().tobytes() for image in image_set.split(split).images}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Folders of 60 different images to train on and 12 to test on, in two classes; the test images are no images."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for split in ("train", "test"):
            (tmp_path / split / name).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(0, 255, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{i}.png")
        for i in range(6):
            (tmp_path / "test" / name / f"{i}.png").write_bytes(b"nothing to decode")
    return tmp_path


def test_its_test_split_is_val_and_its_own_train_and_val_lack_that(base: Path) -> None:
    real = load_image_set(f"folder:{base}", image_size=16)
    with pytest.raises(InputError):
        real.split("test")
    tuned = load_image_set(f"val-of:folder:{base}", image_size=16)
    test, val, train = (pictures(tuned, split) for split in ("test", "val", "train"))
    assert test == pictures(real, "val")
    assert val | train == pictures(real, "train")
    assert (len(test), len(val), len(train)) == (6, 5, 49)
    assert not val & train
    for split, stored in (("test", "val"), ("train", "train"), ("val", "train")):
        labels = dict(zip(map(bytes_of, real.split(stored).images), real.split(stored).labels, strict=True))
        found = tuned.split(split)
        assert [labels[bytes_of(image)] for image in found.images] == found.labels.tolist()


def bytes_of(image) -> bytes:
    return image.numpy().tobytes()


def test_the_test_images_are_not_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    generate = scenes.classification

    def watch(split, *how):
        asked.append(split)
        return generate(split, *how)

    monkeypatch.setattr(scenes, "classification", watch)
    tuned = load_image_set("val-of:digit-scenes", limit={"train": 64, "test": 32})
    sizes = {split: len(tuned.split(split)) for split in ("train", "val", "test")}
    assert (sizes["train"], sizes["test"]) == (64, 32)
    assert set(asked) == {"train", "val"}


def test_name_and_fingerprint_are_its_own() -> None:
    real, tuned = (load_image_set(f"{prefix}digit-scenes") for prefix in ("", "val-of:"))
    limited = load_image_set("val-of:digit-scenes", limit={"train": 64})
    assert (tuned.name, tuned.slug) == ("val-of:digit-scenes", "val-of-digit-scenes")
    assert len({real.fingerprint, tuned.fingerprint, limited.fingerprint}) == 3
    assert not tuned.has_detection


def test_wrong_use(base: Path) -> None:
    with pytest.raises(InputError, match="no name after 'val-of:'"):
        load_image_set("val-of:")
    with pytest.raises(InputError) as caught:
        load_image_set("val-of:digitscenes")
    assert caught.value.nearest == "digit-scenes"
    with pytest.raises(InputError, match="kept in memory"):
        load_image_set(f"val-of:folder:{base}", image_size=16, stream=True)
