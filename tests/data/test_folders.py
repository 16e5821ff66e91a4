"""Folders of images: layouts, decoding, and what each kind of bad input says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from twinbench.data.catalogue import load_image_set
from twinbench.data.folders import decode, fit_all, list_images
from twinbench.foundation.errors import InputError


def write_images(folder: Path, n: int = 3, size: tuple[int, int] = (20, 16), suffix: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(folder.as_posix().encode()))
    for i in range(n):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.{suffix}")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "flowers"
    for split, n in (("train", 10), ("test", 4)):
        for name in ("daisy", "rose", "tulip"):
            write_images(root / split / name, n)
    return root


def error_of(root: Path, split: str | None = None) -> InputError:
    def load() -> None:
        image_set = load_image_set(f"folder:{root}", image_size=16)
        if split is not None:
            image_set.split(split)

    with pytest.raises(InputError) as caught:
        load()
    assert str(caught.value).count("\n") >= 2, "where and next step are given"
    return caught.value


def test_train_val_test(tree: Path) -> None:
    image_set = load_image_set(f"folder:{tree}")
    assert image_set.classes == ("daisy", "rose", "tulip")
    assert image_set.image_size == 16
    assert image_set.name == f"folder:{tree}"
    train, val, test = (image_set.split(name) for name in ("train", "val", "test"))
    assert train.labels.bincount().tolist() == [9, 9, 9]
    assert val.labels.bincount().tolist() == [1, 1, 1]
    assert test.labels.bincount().tolist() == [4, 4, 4]
    assert train.images.shape == (27, 3, 16, 16)
    assert train.images.dtype == torch.uint8
    assert train.images.is_contiguous()
    together = {image.numpy().tobytes() for split in (train, val) for image in split.images}
    assert len(together) == 30, "train and val are disjoint and together all the training images"


def test_the_last_split_named_val_is_the_test_split(tree: Path) -> None:
    (tree / "test").rename(tree / "val")
    image_set = load_image_set(f"folder:{tree}")
    assert len(image_set.split("test")) == 12
    assert len(image_set.split("val")) == 3


def test_val_and_test_folders_leave_train_whole(tree: Path) -> None:
    for name in ("daisy", "rose", "tulip"):
        write_images(tree / "val" / name, 2)
    image_set = load_image_set(f"folder:{tree}")
    assert [len(image_set.split(name)) for name in ("train", "val", "test")] == [30, 6, 12]


@pytest.mark.parametrize("below", [".", "train"])
def test_unlabelled_images(tmp_path: Path, below: str) -> None:
    write_images(tmp_path / "pictures" / below, 20)
    image_set = load_image_set(f"folder:{tmp_path / 'pictures'}")
    assert image_set.classes == ()
    assert image_set.split("train").labels.tolist() == [-1] * 18
    assert len(image_set.split("val")) == 2
    assert "no test images" in error_of(tmp_path / "pictures", "test").what


def test_files_are_decoded_to_the_pixels_of_torchvision(tmp_path: Path) -> None:
    for i, size in enumerate([(40, 30), (30, 40), (33, 33), (16, 16), (16, 90), (37, 24)]):
        write_images(tmp_path / str(i), 1, size)
    paths = sorted(tmp_path.rglob("*.png"))
    reference = v2.Compose([v2.Resize(16), v2.CenterCrop(16)])
    for path, image in zip(paths, decode(paths, 16), strict=True):
        assert np.array_equal(image, np.asarray(reference(Image.open(path))).transpose(2, 0, 1))


def assert_cut_by_torchvision(sizes: np.ndarray, size: int, shorter_side: int) -> None:
    """Pictures of noise, ``sizes`` (width, height) ``[N, 2]``: any other resizing or cut shows."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]
    cut = fit_all(lambda i: pictures[i], len(pictures), size, shorter_side)
    pipeline = v2.Compose([v2.Resize(shorter_side), v2.CenterCrop(size)])
    for picture, ours in zip(pictures, cut, strict=True):
        expected = np.asarray(pipeline(picture)).transpose(2, 0, 1)
        assert np.array_equal(ours, expected), picture.size


@pytest.mark.parametrize(("size", "shorter_side"), [(16, 16), (16, 18), (17, 20), (20, 23), (32, 37)])
def test_thousands_of_sizes_are_cut_as_by_torchvision(size: int, shorter_side: int) -> None:
    assert_cut_by_torchvision(np.random.default_rng(size).integers(2, 90, (1000, 2)), size, shorter_side)


@pytest.mark.parametrize("size", [224, 256])
def test_photographs_are_cut_as_by_torchvision(size: int) -> None:
    """Of 224 pixels, the view of ImageNet's test images, or as a set in memory holds them."""
    sizes = np.random.default_rng(size).integers(60, 700, (40, 2))
    assert_cut_by_torchvision(
        np.array([*sizes, (500, 375), (375, 500), (500, 333)]), size=224, shorter_side=size
    )


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "bmp", "webp", "ppm", "PNG"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    write_images(tmp_path / "train" / "a", 2, suffix=suffix)
    assert len(list_images(tmp_path).splits["train"].paths) == 2
    assert decode(list_images(tmp_path).splits["train"].paths, 16).shape == (2, 3, 16, 16)


def test_other_files_are_ignored(tree: Path) -> None:
    (tree / "train" / "rose" / "notes.txt").write_text("x")
    (tree / "train" / "rose" / "._0.png").write_bytes(b"resource fork")
    (tree / "train" / ".cache").mkdir()
    assert len(list_images(tree).splits["train"].paths) == 30


def test_the_fingerprint_follows_the_content(tree: Path, tmp_path: Path) -> None:
    before = load_image_set(f"folder:{tree}").fingerprint
    moved = tree.rename(tmp_path / "moved")
    assert load_image_set(f"folder:{moved}").fingerprint == before
    assert load_image_set(f"folder:{moved}", image_size=8).fingerprint != before
    assert load_image_set(f"folder:{moved}", limit={"train": 9}).fingerprint != before
    (moved / "train" / "rose" / "0.png").unlink()
    assert load_image_set(f"folder:{moved}").fingerprint != before


def test_missing_folder(tree: Path) -> None:
    error = error_of(tree.parent / "flower")
    assert "no such folder" in error.what
    assert error.nearest == str(tree)
    assert error.where == tree.parent / "flower"


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "archive.zip").write_bytes(b"x")
    assert "a file" in error_of(tmp_path / "archive.zip").what


def test_misspelt_train_folder(tree: Path) -> None:
    (tree / "train").rename(tree / "training")
    error = error_of(tree)
    assert "train" in error.what
    assert error.nearest == str(tree / "training")


def test_empty_class_folder(tree: Path) -> None:
    (tree / "train" / "violet").mkdir()
    error = error_of(tree)
    assert "'violet' has no images" in error.what
    assert error.where == tree / "train" / "violet"


def test_no_images_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty" / "train").mkdir(parents=True)
    error = error_of(tmp_path / "empty")
    assert "no images" in error.what
    assert error.where == tmp_path / "empty" / "train"


def test_truncated_image(tree: Path) -> None:
    path = tree / "train" / "rose" / "big.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    error = error_of(tree, "train")
    assert error.where == path
    assert "truncated" in error.what


@pytest.mark.parametrize("content", [b"this is not an image", b""])
def test_not_an_image(tree: Path, content: bytes) -> None:
    path = tree / "train" / "rose" / "fake.png"
    path.write_bytes(content)
    assert error_of(tree, "train").where == path
    with pytest.raises(InputError, match="fake"):
        decode([path], 16)


def test_classes_differ_between_train_and_test(tree: Path) -> None:
    (tree / "test" / "rose").rename(tree / "test" / "roses")
    error = error_of(tree)
    assert "only in train: rose" in error.what
    assert "only in test: roses" in error.what
    assert error.nearest == "rose"


def test_images_beside_class_folders(tree: Path) -> None:
    write_images(tree / "train", 1)
    error = error_of(tree)
    assert "beside the class folders" in error.what
    assert error.where == tree / "train"


def test_more_images_than_memory(tree: Path) -> None:
    paths = [tree / "train" / "rose" / "0.png"] * 10
    with pytest.raises(InputError, match="GiB"):
        decode(paths * 100_000, 8192)
