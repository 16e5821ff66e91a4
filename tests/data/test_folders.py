"""Folders of images: layouts, decoding, and what each kind of bad input says."""

import os
import shutil
import unicodedata
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
    rng = np.random.default_rng(list(os.fsencode(folder)))
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


# What is listed.


def test_usual_companions_are_left_out_without_a_word(tree: Path) -> None:
    for name in ("labels.csv", "Thumbs.db", ".DS_Store", "notes.txt"):
        (tree / "train" / "rose" / name).write_text("x")
    (tree / "train" / ".cache").mkdir()
    files = list_images(tree)
    assert (len(files.splits["train"].paths), files.remarks) == (30, ())


@pytest.mark.parametrize("depth", ["", "inner", "inner/most"])
def test_hidden_pictures_are_left_out_and_counted_at_every_depth(tree: Path, depth: str) -> None:
    folder = tree / "train" / "rose" / depth
    write_images(folder / ".ipynb_checkpoints" / "deeper", 4)
    (folder / "._0.png").write_bytes(b"resource fork")
    files = list_images(tree)
    assert len(files.splits["train"].paths) == 30
    (remark,) = files.remarks
    assert "hidden" in remark
    assert "5 pictures, train/rose/" in remark


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "@eaDir", "__MACOSX"])
def test_a_hidden_folder_is_no_class_and_no_part_of_one(tree: Path, name: str) -> None:
    write_images(tree / "train" / name, 2)
    write_images(tree / "test" / "rose" / name / "0.png", 3)
    write_images(tree / name, 1)
    files = list_images(tree)
    assert files.classes == ("daisy", "rose", "tulip")
    assert [len(files.splits[split].paths) for split in ("train", "test")] == [30, 12]
    (remark,) = files.remarks
    assert "hidden" in remark
    assert f"5 pictures, train/{name}/0.png for one" in remark


def test_files_that_may_be_meant_as_pictures_are_counted_by_kind(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.jp2", "b.jp2", "c.HEIC", "d.npy", "e.raw", "0001"):
        (tree / "train" / "rose" / name).write_text("x")
    (remark,) = list_images(tree).remarks
    assert "(.jp2 2, " in remark
    assert "and 2 more)" in remark
    assert "6 files, train/rose/0001 for one" in remark
    assert caplog.text.count(remark) == 1


def test_pictures_are_sorted_by_the_parts_of_their_paths(tree: Path) -> None:
    for inner in ("2", "2.d", "2x/y"):
        write_images(tree / "train" / "rose" / inner, 2)
    paths = list_images(tree).splits["train"].paths
    assert paths == sorted(tree.glob("train/**/*.png"))


def test_pictures_below_class_folders_count_for_the_class_and_are_named(tree: Path) -> None:
    write_images(tree / "train" / "rose" / "masks", 3)
    write_images(tree / "train" / "rose" / "thumbs" / "small", 2)
    write_images(tree / "test" / "daisy" / "masks", 1)
    files = list_images(tree)
    assert files.splits["train"].labels.tolist() == [0] * 10 + [1] * 15 + [2] * 10
    assert files.remarks == (
        "in 3 folders below class folders and counted for those classes: 6 pictures, train/rose/masks/0.png for one",
    )


@pytest.mark.parametrize("above", [["images"], ["data/all"], ["photo", "sketch"], ["photo/a", "sketch/b/c"]])
def test_folders_above_those_of_the_classes_are_refused(tmp_path: Path, above: list[str]) -> None:
    for folder in above:
        for name in ("cat", "dog"):
            write_images(tmp_path / "train" / folder.split("/")[0] / name / folder, 2)
    error = error_of(tmp_path)
    assert "cat, dog" in error.what
    assert error.where == tmp_path / "train" / above[0].split("/")[0]
    assert "directly below train/" in str(error.next_step)


@pytest.mark.parametrize(
    "folders",
    [
        ["animal/cat", "animal/dog", "vehicle/car", "vehicle/bus"],
        ["cat/monday", "cat/friday", "dog/monday"],
        ["n01/images", "n02/images"],
        ["cat/monday", "cat/friday", "dog/monday", "dog/friday", "dog"],
        ["cat", "cat/masks"],
    ],
)
def test_folders_that_may_be_parts_of_a_class_are_said(tmp_path: Path, folders: list[str]) -> None:
    for folder in folders:
        write_images(tmp_path / "train" / folder, 2)
    files = list_images(tmp_path)
    assert set(files.classes) == {folder.split("/")[0] for folder in folders}
    nested = [folder for folder in folders if "/" in folder]
    (remark,) = files.remarks
    assert f"in {len(nested)} folder" in remark
    assert f": {2 * len(nested)} pictures, train/" in remark


def test_links_are_followed_at_every_depth(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for name in ("files", "inner", "class", "split/a"):
        write_images(store / name, 3)
    root = tmp_path / "set"
    (root / "train" / "a").mkdir(parents=True)
    (root / "train" / "a" / "x.png").symlink_to(store / "files" / "0.png")
    (root / "train" / "a" / "inner").symlink_to(store / "inner")
    (root / "train" / "a" / "notes.txt").symlink_to(__file__)  # nothing that is listed
    (root / "train" / "b").symlink_to(store / "class")
    (root / "test").symlink_to(store / "split")
    files = list_images(root)
    assert files.splits["train"].labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert len(files.splits["test"].paths) == 3
    assert files.remarks[1] == "followed: 4 links, train/a/x.png for one"
    assert "1 of the 2 classes: b" in files.remarks[2]
    copied = tmp_path / "copied"
    shutil.copytree(root, copied)  # the files instead of the links
    assert list_images(copied).fingerprint() == files.fingerprint()


@pytest.mark.parametrize("target", ["..", "../..", "../../..", "../../../..", ".", "deep"])
def test_links_in_a_circle_end(tree: Path, target: str) -> None:
    deep = tree / "train" / "rose" / "deep"
    write_images(deep, 2)
    write_images(tree.parent / "beside", 3)
    (deep / "circle").symlink_to(deep if target == "deep" else target, target_is_directory=True)
    files = list_images(tree)
    assert len(files.splits["train"].paths) == 32
    nested, remark = files.remarks
    assert nested.endswith(": 2 pictures, train/rose/deep/0.png for one")
    assert remark.endswith("is listed already or holds them: 1 link, train/rose/deep/circle")


def test_two_circles_through_each_other_end(tree: Path) -> None:
    rose, daisy = tree / "train" / "rose", tree / "train" / "daisy"
    (rose / "x").symlink_to(daisy)
    (daisy / "y").symlink_to(rose)
    files = list_images(tree)
    assert files.splits["train"].labels.tolist() == [0] * 20 + [1] * 20 + [2] * 10
    assert any(
        "20 pictures are listed at two places" in remark and "/rose/" in remark for remark in files.remarks
    )


def test_links_that_lead_nowhere_are_named(tree: Path) -> None:
    for i, folder in enumerate((tree / "train", tree / "train" / "rose", tree)):
        (folder / "gone").symlink_to(tree.parent / "nowhere")
        (folder / "itself").symlink_to("itself")
        assert len(list_images(tree).splits["train"].paths) == 30
        assert any("nowhere" in remark and "gone" in remark for remark in list_images(tree).remarks), i
        (folder / "gone").unlink()
        (folder / "itself").unlink()
    (tree / "train" / "rose" / "0.png").unlink()
    (tree / "train" / "rose" / "0.png").symlink_to("moved.png")
    assert list_images(tree).remarks == ("left out since they lead nowhere: 1 link, train/rose/0.png",)


def test_a_test_picture_that_is_a_training_picture_is_named(tree: Path) -> None:
    for name in ("7.png", "8.png"):
        (tree / "test" / "rose" / name).symlink_to(tree / "train" / "rose" / name)
    (tree / "train" / "rose" / "10.png").symlink_to("9.png")
    remark = list_images(tree).remarks[-1]
    assert "3 pictures are listed at two places" in remark
    assert "test/rose/7.png is train/rose/7.png" in remark


def test_a_folder_that_may_not_be_read_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = tree / "train" / "rose" / "locked"
    locked.mkdir()
    scandir = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder) == locked:
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    error = error_of(tree)
    assert "Permission denied" in error.what
    assert error.where == locked


# The splits.


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_names_of_val(tree: Path, name: str) -> None:
    for kind in ("daisy", "rose", "tulip"):
        write_images(tree / name / kind, 2)
    image_set = load_image_set(f"folder:{tree}")
    assert [len(image_set.split(split)) for split in ("train", "val", "test")] == [30, 6, 12]
    assert image_set.remarks == (f"{name}/ is the validation split",)
    shutil.rmtree(tree / "test")
    image_set = load_image_set(f"folder:{tree}")
    assert [len(image_set.split(split)) for split in ("train", "val", "test")] == [27, 3, 6]
    assert image_set.remarks == (f"{name}/ is the test split, since there is no folder test",)


def test_folders_that_are_not_read_are_named(tree: Path) -> None:
    for name in ("extra", "val", "valid", ".hidden", "Test"):
        write_images(tree / name / "rose", 1)
    (tree / "docs").mkdir()
    write_images(tree, 2)
    files = list_images(tree)
    assert list(files.splits) == ["train", "val", "test"]
    assert "folders that are not read though they hold pictures: Test, extra, valid" in files.remarks
    assert "left out as beside the folders of the splits: 2 pictures, 0.png for one" in files.remarks


@pytest.mark.parametrize("name", ["testing", "Test", "holdout", "dev"])
def test_no_test_images_names_what_may_be_meant(tree: Path, name: str) -> None:
    (tree / "test").rename(tree / name)
    error = error_of(tree, "test")
    assert "no test images" in error.what
    assert error.nearest == str(tree / name)


def test_a_class_may_be_missing_in_the_test_split(tree: Path) -> None:
    """Its folder absent or empty, which is one thing, as is a folder that holds other files only."""
    shutil.rmtree(tree / "test" / "rose")
    absent = list_images(tree)
    (tree / "test" / "rose").mkdir()
    empty = list_images(tree)
    (tree / "test" / "rose" / "notes.txt").write_text("x")
    for files in (absent, empty, list_images(tree)):
        assert files.splits["test"].labels.tolist() == [0] * 4 + [2] * 4
        assert files.remarks == ("test/ has no pictures of 1 of the 3 classes: rose",)
        assert files.fingerprint() == absent.fingerprint()


def test_an_empty_folder_that_is_no_class_is_named(tree: Path) -> None:
    (tree / "test" / "violet").mkdir()
    files = list_images(tree)
    assert files.classes == ("daisy", "rose", "tulip")
    assert "does not have: violet" in files.remarks[0]


def test_messages_stay_short_with_a_thousand_classes(tmp_path: Path) -> None:
    for i in range(1000):
        folder = tmp_path / "train" / f"n{i:08}"
        folder.mkdir(parents=True)
        (folder / "0.jpg").touch()
    write_images(tmp_path / "test" / "n00000000", 1)
    (remark,) = list_images(tmp_path).remarks
    assert "999 of the 1000 classes: n00000001, n00000002, n00000003 and 996 more" in remark
    write_images(tmp_path / "test" / "m00000000", 1)
    error = error_of(tmp_path)
    assert "and 996 more" in error.what
    assert len(str(error)) < 600


def test_a_flat_val_folder_has_no_labels(tree: Path) -> None:
    """ImageNet as it is packed: fit for pretraining; what needs labels says how to sort it."""
    shutil.rmtree(tree / "test")
    write_images(tree / "val", 5)
    image_set = load_image_set(f"folder:{tree}", image_size=16)
    assert [len(image_set.split(name)) for name in ("train", "val")] == [27, 3]
    assert "val/ has no class folders: its 5 pictures have no labels" in image_set.remarks
    error = error_of(tree, "test")
    assert "have no labels" in error.what
    assert error.where == tree / "val"
    assert "val/<class>/" in str(error.next_step)


def test_a_flat_test_folder_beside_a_sorted_val(tree: Path) -> None:
    (tree / "test").rename(tree / "val")
    write_images(tree / "test", 5)
    assert "val/ is the test split" in str(error_of(tree, "test").next_step)
    shutil.rmtree(tree / "test")
    assert len(load_image_set(f"folder:{tree}").split("test")) == 12


def test_the_fingerprint_follows_the_content(tree: Path, tmp_path: Path) -> None:
    before = load_image_set(f"folder:{tree}").fingerprint
    moved = tree.rename(tmp_path / "moved")
    assert load_image_set(f"folder:{moved}").fingerprint == before
    assert load_image_set(f"folder:{moved}", image_size=8).fingerprint != before
    assert load_image_set(f"folder:{moved}", limit={"train": 9}).fingerprint != before
    replaced = moved / "train" / "rose" / "1.png"
    content, times = bytearray(replaced.read_bytes()), replaced.stat()
    content[-30] ^= 1
    replaced.write_bytes(content)
    os.utime(replaced, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load_image_set(f"folder:{moved}").fingerprint != before, "of the same size and time"
    content[-30] ^= 1
    replaced.write_bytes(content)
    assert load_image_set(f"folder:{moved}").fingerprint == before
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
    assert "put images there" in str(error.next_step)
    for name in ("0.heic", "1.heic", "2.jfif"):
        (tree / "train" / "violet" / name).write_text("x")
    error = error_of(tree)
    assert "(.heic 2, .jfif 1): 3 files, train/violet/0.heic for one" in error.what
    assert "convert the files to a kind of picture that is read: .bmp" in str(error.next_step)


@pytest.mark.parametrize(
    ("images", "labels", "where"),
    [("train/images", "train/labels", "train"), ("images/train", "labels/train", ".")],
)
def test_a_detection_set_is_called_so(tmp_path: Path, images: str, labels: str, where: str) -> None:
    write_images(tmp_path / images, 2)
    (tmp_path / labels).mkdir(parents=True)
    assert "detection" not in error_of(tmp_path).what, "labels/ is empty"
    (tmp_path / labels / "0.txt").write_text("0 .5 .5 .1 .1")
    error = error_of(tmp_path)
    assert "YOLO" in error.what
    assert error.where == tmp_path / where
    assert "coco:PATH" in str(error.next_step)


def test_no_images_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty" / "train").mkdir(parents=True)
    error = error_of(tmp_path / "empty")
    assert error.what == "no images here"
    assert error.where == tmp_path / "empty" / "train"
    (tmp_path / "empty" / "train").rmdir()
    assert error_of(tmp_path / "empty").what == "no images here"
    (tmp_path / "empty" / "a.jp2").touch()
    error = error_of(tmp_path / "empty")
    assert "(.jp2 1): 1 file, a.jp2" in error.what
    assert "convert the files" in str(error.next_step)


def test_names_of_any_bytes_can_be_written(tree: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_images(tree / "train" / name, 1)
    (tree / "train" / "rose" / f"{name}.jp2").touch()
    files = list_images(tree)
    assert files.fingerprint()
    assert [remark.encode() for remark in files.remarks if "caf\\xe9" in remark]
    assert len(files.remarks) == 2


def test_a_remark_keeps_to_one_line_whatever_names_it_has(tree: Path) -> None:
    write_images(tree / "train" / "a\nb" / "c\td", 1)
    remarks = list_images(tree).remarks
    assert len(remarks) == 2
    for remark in remarks:
        assert "a\\nb" in remark
        assert remark.isprintable()


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
    assert "only in train: 'rose'" in error.what
    assert "only in test: 'roses'" in error.what
    assert error.nearest == "rose"


def test_a_blank_at_the_end_of_a_name_is_seen(tree: Path) -> None:
    (tree / "test" / "rose").rename(tree / "test" / "rose ")
    error = error_of(tree)
    assert "only in train: 'rose'; only in test: 'rose '" in error.what
    assert error.nearest == "rose"


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_class_whose_accents_are_stored_otherwise_is_the_same(tree: Path, forms: tuple[str, str]) -> None:
    train, test = (unicodedata.normalize(form, "rosé") for form in forms)
    (tree / "train" / "rose").rename(tree / "train" / train)
    (tree / "test" / "rose").rename(tree / "test" / test)
    files = list_images(tree)
    assert files.classes == ("daisy", train, "tulip")
    assert files.splits["test"].labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert files.remarks == (
        "taken for classes of train/ whose accents are stored otherwise: 1 folder, test/rosé",
    )
    write_images(tree / "test" / train, 3)
    assert np.bincount(list_images(tree).splits["test"].labels).tolist() == [4, 7, 4]
    write_images(tree / "train" / test, 3)
    assert "two class folders are called rosé" in error_of(tree).what


def test_images_beside_class_folders(tree: Path) -> None:
    write_images(tree / "train", 1)
    error = error_of(tree)
    assert "beside the class folders" in error.what
    assert error.where == tree / "train"


def test_more_images_than_memory(tree: Path) -> None:
    paths = [tree / "train" / "rose" / "0.png"] * 10
    with pytest.raises(InputError, match="GiB"):
        decode(paths * 100_000, 8192)
