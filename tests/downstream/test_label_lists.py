import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from twinbench.data.image_sets import Split
from twinbench.data.streaming import StreamedImages
from twinbench.downstream import label_lists
from twinbench.downstream.label_lists import LabelList, Published, read_label_list
from twinbench.foundation.errors import InputError

CLASSES = ("n01", "n02", "n03")


@pytest.fixture
def train():
    """Ten images of each synset, in no order; the files need not exist, only their names count."""
    names = [f"{synset}_{i}.JPEG" for i in range(10) for synset in reversed(CLASSES)]
    labels = np.array([CLASSES.index(name[:3]) for name in names])
    paths = [Path("train") / name[:3] / name for name in names]
    return Split(StreamedImages(paths, labels, 16), torch.from_numpy(labels))


@pytest.fixture
def write(tmp_path):
    def write(*names):
        path = tmp_path / "list.txt"
        path.write_text("".join(f"{name}\n" for name in names))
        return path

    return write


def publish(monkeypatch, path, per_class):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(label_lists.PUBLISHED, 0.1, Published("10percent.txt", digest, per_class))
    return digest


NAMES = ("n02_3.JPEG", "n01_9.JPEG", "n03_0.JPEG")


def test_the_rows_are_those_of_the_listed_files(train, write, monkeypatch):
    path = write(*NAMES)
    digest = publish(monkeypatch, path, (1, 1))
    rows, read = read_label_list(LabelList(path), train, CLASSES, 0.1)
    assert read == digest
    assert rows.tolist() == sorted(rows.tolist())
    assert {train.images.path(row).name for row in rows.tolist()} == set(NAMES)


def test_a_name_is_a_line_whatever_is_in_it(tmp_path):
    names = ["my dog.png", "my cat.png", "dog.png", "next\u2028line.png"]
    labels = np.array([0, 1, 0, 1])
    train = Split(
        StreamedImages([Path("train") / name for name in names], labels, 16), torch.from_numpy(labels)
    )
    path = tmp_path / "list.txt"
    path.write_bytes("\r\n  my dog.png \r\n\n\tmy cat.png\r\nnext\u2028line.png".encode())
    rows, _ = read_label_list(LabelList(path, own=True), train, ("dog", "cat"), 0.1)
    assert rows.tolist() == [0, 1, 3]


def test_a_changed_list_is_not_the_published_one(train, write):
    path = write(*NAMES)
    with pytest.raises(InputError, match="not the published list of 10%: its SHA-256 is"):
        read_label_list(LabelList(path), train, CLASSES, 0.1)
    rows, _ = read_label_list(LabelList(path, own=True), train, CLASSES, 0.1)
    assert len(rows) == 3


def test_the_list_of_the_other_share_is_recognised(train, write, monkeypatch):
    path = write(*NAMES)
    publish(monkeypatch, path, (1, 1))
    with pytest.raises(InputError, match=r"published list of 1%: it is 10percent\.txt"):
        read_label_list(LabelList(path), train, CLASSES, 0.01)


def test_the_published_checksums_are_sha256_of_two_lists():
    digests = {published.sha256 for published in label_lists.PUBLISHED.values()}
    assert len(digests) == 2
    assert all(len(bytes.fromhex(digest)) == 32 for digest in digests)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((*NAMES, NAMES[0]), "1 images are listed twice, n02_3.JPEG"),
        ((*NAMES, "n02_33.JPEG"), "1 of the 4 listed images are not among the training images, n02_33.JPEG"),
        (NAMES[:2], "class 'n03' 0 images"),
        ((), "no image is listed"),
    ],
)
def test_a_list_that_does_not_fit_the_set_is_refused(train, write, names, message):
    with pytest.raises(InputError, match=message) as error:
        read_label_list(LabelList(write(*names), own=True), train, CLASSES, 0.1)
    assert error.value.next_step
    if "33" in message:
        assert error.value.nearest == "n02_3.JPEG"


def test_the_counts_of_a_published_list_are_checked(train, write, monkeypatch):
    path = write(*NAMES, "n01_1.JPEG")
    publish(monkeypatch, path, (1, 1))
    with pytest.raises(InputError, match="class 'n01' 2 images instead of 1 to 1"):
        read_label_list(LabelList(path), train, CLASSES, 0.1)


def test_the_published_list_needs_the_synsets_as_classes(train, write, monkeypatch):
    path = write(*NAMES)
    publish(monkeypatch, path, (1, 1))
    with pytest.raises(InputError, match="is in class 'dog'"):
        read_label_list(LabelList(path), train, ("dog", "n02", "n03"), 0.1)


def test_two_files_of_one_name_are_ambiguous(write):
    paths = [Path("train/a/1.jpg"), Path("train/b/1.jpg"), Path("train/b/2.jpg"), Path("train/a/2.jpg")]
    labels = np.array([0, 1, 1, 0])
    train = Split(StreamedImages(paths, labels, 16), torch.from_numpy(labels))
    with pytest.raises(InputError, match=r"two training images are called 1\.jpg"):
        read_label_list(LabelList(write("1.jpg"), own=True), train, ("a", "b"), 0.1)


def test_images_in_memory_have_no_names(image_set, write):
    with pytest.raises(InputError, match="without their names"):
        read_label_list(LabelList(write(*NAMES), own=True), image_set.split("train"), image_set.classes, 0.1)


def test_a_missing_list_is_an_input_error(train, tmp_path):
    with pytest.raises(InputError, match="No such file") as error:
        read_label_list(LabelList(tmp_path / "none.txt"), train, CLASSES, 0.1)
    assert error.value.where == tmp_path / "none.txt"
