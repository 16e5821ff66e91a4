"""Image sets, their splits and limits, and CIFAR-10 in both of its layouts."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from twinbench.data.catalogue import load_image_set
from twinbench.data.detection import AnnotatedImage, AnnotatedSet
from twinbench.data.digit_scenes import CROWDS
from twinbench.data.image_sets import AnnotatedPictures, DigitCrowds, Reading, stratified_subset
from twinbench.foundation.errors import InputError


def test_stratified_subset() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    index = stratified_subset(labels, 10, 0)
    assert np.bincount(labels[index]).tolist() == [5, 3, 2]
    assert len(set(index.tolist())) == 10
    assert np.array_equal(index, np.sort(index))
    assert np.array_equal(index, stratified_subset(labels, 10, 0))
    assert not np.array_equal(index, stratified_subset(labels, 10, 1))
    assert np.array_equal(stratified_subset(labels, 1000, 0), np.arange(100))
    for n in range(1, 100):
        counts = np.bincount(labels[stratified_subset(labels, n, 0)], minlength=3)
        assert counts.sum() == n
        assert (np.abs(counts - n * np.array([0.5, 0.3, 0.2])) < 1).all()


def test_digit_scenes() -> None:
    image_set = load_image_set("digit-scenes", limit={"val": 100, "test": 50})
    val = image_set.split("val")
    assert val.images.shape == (100, 3, 32, 32)
    assert val.images.dtype == torch.uint8
    assert val.images.is_contiguous()
    assert val.labels.dtype == torch.int64
    assert val.labels.bincount().tolist() == [10] * 10
    assert image_set.split("val") is val
    assert image_set.has_detection
    scenes = image_set.detection("test")
    assert len(scenes) == 50 == len(scenes.boxes) == len(scenes.labels) == len(scenes.masks)
    assert scenes.boxes[0].dtype == torch.float32
    assert scenes.labels[0].dtype == torch.int64
    assert scenes.masks[0].dtype == torch.bool
    assert image_set.fingerprint != load_image_set("digit-scenes").fingerprint
    assert load_image_set("digit-scenes").fingerprint == load_image_set("digit-scenes").fingerprint
    mean = (val.images / 255).mean((0, 2, 3))
    assert (mean - torch.tensor(image_set.normalisation.mean)).abs().max() < 0.05


def test_digit_crowds_have_scenes_of_their_own_without_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DigitCrowds, "config", replace(CROWDS, scene_test=3))
    crowds, plain = (
        load_image_set(name, limit={"val": 20, "test": 2}) for name in ("digit-crowds", "digit-scenes")
    )
    assert torch.equal(crowds.split("val").labels, plain.split("val").labels)
    assert crowds.fingerprint != plain.fingerprint
    scenes = crowds.detection("test")
    assert scenes.images.shape == (2, 3, 256, 256)
    assert all(26 <= len(boxes) <= 40 for boxes in scenes.boxes)
    assert scenes.masks is None
    assert plain.detection("test").masks is not None


def test_wrong_use() -> None:
    image_set = load_image_set("digit-scenes")
    for ask in (image_set.split, image_set.detection):
        with pytest.raises(InputError, match="unknown split 'vall'"):
            ask("vall")
    with pytest.raises(InputError, match="unknown split"):
        load_image_set("digit-scenes", limit={"trian": 3})
    with pytest.raises(InputError, match="limit of 0"):
        load_image_set("digit-scenes", limit={"train": 0})
    with pytest.raises(InputError, match="out of range"):
        load_image_set("digit-scenes", image_size=4)


def fake_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Six tiny batches in torchvision's layout, with checksums to match; returns the training pixels."""
    folder = root / CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, content: object) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    pixels = rng.integers(0, 256, (120, 3072), dtype=np.uint8)
    batches = [
        write(name, {"data": pixels[20 * i : 20 * i + 20], "labels": [j % 10 for j in range(20)]})
        for i, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"])
    ]
    names = [f"class{i}" for i in range(10)]
    meta = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "train_list", batches[:5])
    monkeypatch.setattr(CIFAR10, "test_list", batches[5:])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return pixels


def test_cifar10_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = fake_cifar10(tmp_path, monkeypatch)
    image_set = load_image_set("cifar10", tmp_path)
    assert image_set.classes == tuple(f"class{i}" for i in range(10))
    assert not image_set.has_detection
    train, val, test = (image_set.split(name) for name in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (90, 10, 20)
    assert val.labels.bincount().tolist() == [1] * 10
    assert np.array_equal(test.images.numpy().reshape(20, -1), pixels[100:])
    kept = {image.numpy().tobytes() for split in (train, val) for image in split.images}
    assert kept == {image.tobytes() for image in pixels[:100]}
    assert load_image_set("cifar10", tmp_path, image_size=48).split("val").images.shape == (10, 3, 48, 48)
    with pytest.raises(InputError, match="no boxes"):
        image_set.detection("train")


def test_damaged_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cifar10(tmp_path, monkeypatch)
    with (tmp_path / CIFAR10.base_folder / "data_batch_3").open("ab") as handle:
        handle.write(b"!")
    with pytest.raises(InputError, match="checksums") as caught:
        load_image_set("cifar10", tmp_path)
    assert caught.value.where == tmp_path / CIFAR10.base_folder


def test_cifar10_as_folders(tmp_path: Path) -> None:
    for split, n in (("train", 10), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "cifar10-jpeg" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (32, 32), (i, i, i)).save(folder / f"{i}.jpg")
    image_set = load_image_set("cifar10", tmp_path)
    assert image_set.name == "cifar10"
    assert image_set.image_size == 32
    assert [len(image_set.split(name)) for name in ("train", "val", "test")] == [18, 2, 4]
    limited = load_image_set("cifar10", tmp_path, limit={"train": 6})
    assert limited.split("train").labels.bincount().tolist() == [3, 3]


def test_an_annotated_set_has_the_remarks_of_its_reader(tmp_path: Path) -> None:
    assert load_image_set("digit-scenes").remarks == ()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    annotated = AnnotatedSet(("cat",), {"train": [AnnotatedImage(tmp_path / "a.png", 8, 8, ())]}, ("b", "c"))
    assert AnnotatedPictures("voc:x", tmp_path, annotated, Reading()).remarks == ("b", "c")
