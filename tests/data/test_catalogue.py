"""Image sets by name: where each is found, and sets that are registered from elsewhere."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinbench.data import catalogue
from twinbench.data.augment import Normalisation
from twinbench.data.catalogue import (
    image_set_names,
    load_image_set,
    read_image_set,
    register_image_set,
)
from twinbench.data.image_sets import ImageSet, Reading
from twinbench.foundation.errors import InputError


def test_names() -> None:
    assert image_set_names() == [
        "bccd",
        "cifar10",
        "coco",
        "coco:PATH",
        "digit-crowds",
        "digit-scenes",
        "folder:PATH",
        "imagenet",
        "inat18",
        "letter-scenes",
        "places205",
        "shape-scenes",
        "shards:PATH",
        "texture-scenes",
        "val-of:NAME",
        "voc",
        "voc:PATH",
    ]
    with pytest.raises(InputError) as caught:
        load_image_set("digitscenes")
    assert caught.value.nearest == "digit-scenes"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("foldr:/some/long/path", "folder:PATH"), ("cifar-10", "cifar10"), ("folder", "folder:PATH")],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(InputError, match="unknown image set") as caught:
        load_image_set(name)
    assert caught.value.nearest == nearest
    assert "voc:PATH" in str(caught.value.next_step)


def test_a_format_without_a_path_is_refused() -> None:
    """Not taken for the folder that the command happens to run in."""
    with pytest.raises(InputError, match="no path after 'folder:'"):
        load_image_set("folder:")


def test_the_reading_is_what_the_parameters_say() -> None:
    read = read_image_set("digit-scenes", None, Reading(image_size=16, limit={"train": 20}))
    loaded = load_image_set("digit-scenes", image_size=16, limit={"train": 20})
    assert read.fingerprint == loaded.fingerprint
    assert read.split("train").images.shape == (20, 3, 16, 16)


def write_folder(root: Path, level: int) -> Path:
    root.mkdir(parents=True)
    for i in range(12):
        Image.new("RGB", (16, 16), (level, level, i)).save(root / f"{i}.png")
    return root


def test_one_folder_has_one_slug_and_fingerprint_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "a" / "my pictures", 10)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    paths = [folder, ".", "../my pictures", f"{folder}/", "~/a/my pictures", tmp_path / "link"]
    sets = [load_image_set(f"folder:{path}") for path in paths]
    assert {image_set.slug for image_set in sets} == {"folder-my-pictures"}
    assert len({image_set.fingerprint for image_set in sets}) == 1
    assert sets[1].name == "folder:."


def test_folders_of_one_name_are_told_apart_by_their_fingerprint(tmp_path: Path) -> None:
    first, second = (load_image_set(f"folder:{write_folder(tmp_path / n / 'x', 9)}") for n in "ab")
    assert (first.slug, first.fingerprint) == (second.slug, second.fingerprint)
    (tmp_path / "b" / "x" / "11.png").rename(tmp_path / "b" / "x" / "12.png")
    other = load_image_set(f"folder:{tmp_path}/b/x")
    assert other.slug == first.slug
    assert other.fingerprint != first.fingerprint


class Stripes(ImageSet):
    """What a plugin may bring: as many grey images as its name says."""

    classes = ("grey",)
    normalisation = Normalisation((0.5,) * 3, (0.25,) * 3)
    content = "stripes"

    def __init__(self, name: str, n: int, reading: Reading) -> None:
        super().__init__(reading)
        self.name, self.n, self.image_size = name, n, reading.image_size or 8

    def _labels(self, name: str) -> np.ndarray:
        return np.zeros(self.n, np.int64)

    def _images(self, name: str, index: np.ndarray) -> np.ndarray:
        return np.full((len(index), 3, self.image_size, self.image_size), 128, np.uint8)


def load_stripes(name: str, data_root: Path | None, reading: Reading) -> ImageSet:
    return Stripes(name, int(name.partition(":")[2] or 30), reading)


@pytest.fixture
def stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sets that a plugin registers, for one test."""
    monkeypatch.setattr(catalogue.IMAGE_SETS, "_entries", {**catalogue.IMAGE_SETS._entries})
    register_image_set("stripes")(load_stripes)
    register_image_set("lab:")(load_stripes)


@pytest.mark.usefixtures("stripes")
def test_a_set_from_elsewhere_is_loaded_by_its_name() -> None:
    assert {"stripes", "lab:PATH"} < set(image_set_names())
    image_set = load_image_set("stripes", limit={"train": 4}, image_size=16)
    assert image_set.split("train").images.shape == (4, 3, 16, 16)
    assert len(load_image_set("lab:7").split("test")) == 7
    assert (image_set.slug, load_image_set("lab:7").slug) == ("stripes", "lab-7")
    with pytest.raises(InputError) as caught:
        load_image_set("strips")
    assert caught.value.nearest == "stripes"


@pytest.mark.usefixtures("stripes")
def test_a_name_cannot_be_taken_from_its_owner() -> None:
    for name in ("digit-scenes", "folder:", "stripes"):
        with pytest.raises(ValueError, match="already registered"):
            register_image_set(name)(lambda name, data_root, reading: load_stripes(name, data_root, reading))


@pytest.mark.parametrize("folder", ["bccd", "BCCD"])
def test_bccd_is_a_voc_folder_below_the_data_root(tmp_path: Path, folder: str) -> None:
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder / part).mkdir(parents=True)
    size = "<size><width>24</width><height>24</height></size>"
    box = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
    for name, split in (("a", "trainval"), ("b", "test")):
        Image.new("RGB", (24, 24), (200, 30, 30)).save(tmp_path / folder / "JPEGImages" / f"{name}.jpg")
        text = f"<annotation>{size}<object><name>RBC</name>{box}</object></annotation>"
        (tmp_path / folder / "Annotations" / f"{name}.xml").write_text(text)
        (tmp_path / folder / "ImageSets/Main" / f"{split}.txt").write_text(f"{name}\n")
    image_set = load_image_set("bccd", tmp_path)
    assert (image_set.name, image_set.slug, image_set.detection_classes) == ("bccd", "bccd", ("RBC",))
    assert load_image_set(f"voc:{tmp_path / folder}").slug == f"voc-{folder}"
    assert image_set.detection("test").boxes[0].tolist() == [[2, 3, 20, 20]]
    with pytest.raises(InputError, match="bccd is not here") as caught:
        load_image_set("bccd", tmp_path / folder)
    assert "BCCD_Dataset" in str(caught.value.next_step)


def test_cifar10_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data folder"):
        load_image_set("cifar10")
    (tmp_path / "cifar-10-batches").mkdir()
    with pytest.raises(InputError, match="cifar10 is not here") as caught:
        load_image_set("cifar10", tmp_path)
    assert caught.value.nearest == str(tmp_path / "cifar-10-batches")
    with pytest.raises(InputError, match="no such folder"):
        load_image_set("cifar10", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("folder:{}", "train/<class>/"),
        ("voc:{}", "JPEGImages"),
        ("coco:{}", "annotations/instances_"),
        ("cifar10", "cifar-10-batches-py"),
    ],
)
def test_a_folder_that_is_not_there_says_what_it_must_hold(tmp_path, name, holds):
    missing = tmp_path / "nowhere"
    with pytest.raises(InputError, match="there is no such folder") as error:
        load_image_set(name.format(missing), missing)
    assert holds in error.value.next_step
    assert error.value.option == ("data_root" if name == "cifar10" else None)
