"""Images in the shards of WebDataset: the same images, views and fingerprint as in a folder, and what is refused."""

import io
import os
import random
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twinbench.data import contents, shards
from twinbench.data.augment import ViewPolicy
from twinbench.data.catalogue import load_image_set
from twinbench.data.pixels import picture_size, read_picture
from twinbench.data.streaming import CropStream, StreamedImages
from twinbench.data.tar_members import member_path, opened_file
from twinbench.foundation.errors import InputError

wds = pytest.importorskip("webdataset", reason="the package webdataset is not installed")

POLICIES = (ViewPolicy(24), ViewPolicy(16, crop_scale=(0.05, 0.3), interpolation="bilinear"))
ENDINGS = ("jpg", "png", "jpeg", "webp")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "twinbench" / "shards"


def picture(rng, ending="jpg"):
    """A file of a random size and colours."""
    width, height = rng.integers(30, 60, 2)
    out = io.BytesIO()
    kind = {"jpg": "JPEG", "jpeg": "JPEG"}.get(ending.lower(), ending.upper())
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(out, kind)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path):
    """A folder set in which names, depths and kinds of pictures differ."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 8), ("val", 4), ("test", 4)):
        for label in ("ant", "bee"):
            for i in range(n):
                inner = tmp_path / "set" / split / label / ("deep" if i == 1 else "")
                inner.mkdir(parents=True, exist_ok=True)
                ending = ENDINGS[i % len(ENDINGS)]
                (inner / f"{label}-{i}.{ending}").write_bytes(picture(rng, ending))
    return tmp_path / "set"


def packed(folder, out, labels=False, per_shard=5):
    """The pictures of a folder set in shuffled order, in shards that webdataset writes, perhaps with ``.cls``."""
    out.mkdir()
    for split in sorted(path.name for path in folder.iterdir()):
        files = [path for path in sorted((folder / split).rglob("*")) if path.is_file()]
        random.Random(0).shuffle(files)
        classes = sorted({path.relative_to(folder / split).parts[0] for path in files})
        for place in range(0, len(files), per_shard):
            with wds.TarWriter(str(out / f"mine-{split}-{place:03}.tar")) as writer:
                for path in files[place : place + per_shard]:
                    name = path.relative_to(folder / split)
                    key, ending = os.fspath(name.with_suffix("")), path.suffix[1:]
                    said = {"cls": str(classes.index(name.parts[0])).encode()} if labels else {}
                    writer.write({"__key__": key, ending: path.read_bytes(), **said})
    return out


def rows_of(step, images):
    return torch.randperm(images, generator=torch.Generator().manual_seed(step))[:6]


def generator_of(step):
    return torch.Generator().manual_seed(step)


def crops(images, workers=0):
    assert isinstance(images, StreamedImages)
    stream = CropStream(images, POLICIES, partial(rows_of, images=len(images)), generator_of, 0, 3, workers)
    return [[view.clone() for view in step] for step in stream]


@pytest.mark.parametrize("stream", [False, True])
def test_shards_have_the_images_labels_and_fingerprint_of_the_folder(folder, tmp_path, stream):
    packed(folder, tmp_path / "shards")
    ours = load_image_set(f"shards:{tmp_path}/shards", image_size=20, stream=stream)
    theirs = load_image_set(f"folder:{folder}", image_size=20, stream=stream)
    assert ours.classes == theirs.classes == ("ant", "bee")
    assert ours.fingerprint == theirs.fingerprint
    assert ours.slug == "shards-shards"
    for split in ("train", "val", "test"):
        assert torch.equal(ours.split(split).labels, theirs.split(split).labels)
        assert torch.equal(ours.split(split).images[:], theirs.split(split).images[:])


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_have_the_views_of_the_folder_bit_for_bit(folder, tmp_path, workers):
    packed(folder, tmp_path / "shards", per_shard=3)
    ours, theirs = (
        load_image_set(name, image_size=20, stream=True).split("train").images
        for name in (f"shards:{tmp_path}/shards", f"folder:{folder}")
    )
    for step, expected in zip(crops(ours, workers), crops(theirs), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(step, expected, strict=True))


def test_the_images_are_those_that_webdataset_reads_in_sequence(folder, tmp_path):
    packed(folder, tmp_path / "shards", labels=True)
    ours = load_image_set(f"shards:{tmp_path}/shards", image_size=20, stream=True).split("train")
    read = {}
    for shard in (tmp_path / "shards").glob("mine-train-*.tar"):
        with shard.open("rb") as file:  # `wds.WebDataset` leaves its files open
            files = ({**each, "__url__": ""} for each in wds.tariterators.tar_file_iterator(file))
            for sample in wds.tariterators.group_by_keys(files):
                (content,) = (value for ending, value in sample.items() if ending in ENDINGS)
                read[sample["__key__"]] = (int(sample["cls"]), content)
    assert len(read) == len(ours.images)
    for row, label in enumerate(ours.labels.tolist()):
        path = ours.images.path(row)
        key = os.fspath(
            Path(*path.parts[len((tmp_path / "shards" / "x.tar" / "place").parts) :]).with_suffix("")
        )
        assert read[key][0] == label
        expected = Image.open(io.BytesIO(read[key][1])).convert("RGB")
        assert np.array_equal(np.asarray(read_picture(path).image), np.asarray(expected))


def test_classes_may_be_numbers_in_files_of_their_own(folder, tmp_path):
    packed(folder, tmp_path / "shards", labels=True)
    ours = load_image_set(f"shards:{tmp_path}/shards", image_size=20)
    theirs = load_image_set(f"folder:{folder}", image_size=20)
    assert ours.classes == ("0", "1")
    assert ours.fingerprint == theirs.fingerprint
    assert torch.equal(ours.split("train").images, theirs.split("train").images)


def write_shard(path, *members):
    """A tar file of (name, content), or of what tarfile is told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


JPEG = picture(np.random.default_rng(1))


def test_numbers_are_in_the_order_of_their_values_and_ten_comes_after_nine(tmp_path):
    members = [
        (f"{i:02}.{end}", body) for i in range(12) for end, body in (("jpg", JPEG), ("cls", b"%d\n" % i))
    ]
    write_shard(tmp_path / "s" / "train" / "0.tar", *members)
    ours = load_image_set(f"shards:{tmp_path}/s", image_size=16)
    assert ours.classes == tuple(map(str, range(12)))


def test_without_classes_the_images_are_unlabelled_and_without_a_split_all_is_train(tmp_path):
    write_shard(tmp_path / "s" / "000.tar", *((f"{i:02}.jpg", JPEG) for i in range(20)))
    ours = load_image_set(f"shards:{tmp_path}/s", image_size=16)
    assert ours.classes == ()
    assert (ours.count("train"), ours.count("val")) == (18, 2)
    assert set(ours.split("train").labels.tolist()) == {-1}


def test_val_is_the_test_split_where_there_is_none_and_is_said_to_be(folder, tmp_path):
    for path in sorted((folder / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / "test").rmdir()
    (folder / "val").rename(folder / "validation")
    packed(folder, tmp_path / "shards")
    ours = load_image_set(f"shards:{tmp_path}/shards", image_size=16)
    assert ours.fingerprint == load_image_set(f"folder:{folder}", image_size=16).fingerprint
    assert ours.remarks[0].startswith("the shards of validation are the test split")


def test_what_is_not_read_is_counted(tmp_path):
    link, folder = tarfile.TarInfo("cat/link.jpg"), tarfile.TarInfo("cat")
    link.type, link.linkname, folder.type = tarfile.LNKTYPE, "cat/0.jpg", tarfile.DIRTYPE
    names = ("__meta__", "README", "cat/0.jpg", "cat/0.seg.png", "cat/0.json", "cat/1.mp3", "cat/2.jpg")
    members = [(folder, b""), *((name, JPEG) for name in names), (link, b"")]
    write_shard(tmp_path / "s" / "train.tar", *members)
    ours = shards.list_shards(tmp_path / "s")
    assert [path.name for path in ours.splits["train"].paths] == ["0.jpg", "2.jpg"]
    (remark,) = ours.remarks
    assert remark.startswith("files in the shards that are not read: 4 (")
    assert shards._read_shard(tmp_path / "s" / "train.tar", shards._grouping()).left_out == {
        "no ending": 1,
        "seg.png": 1,
        "mp3": 1,
        "links and devices": 1,
    }


def test_a_published_set_may_lie_in_shards_in_the_data_root(folder, tmp_path):
    packed(folder, tmp_path / "imagenet")
    ours = load_image_set("imagenet", data_root=tmp_path, image_size=16)
    assert ours.fingerprint == load_image_set(f"folder:{folder}", image_size=16).fingerprint


def test_a_damaged_picture_in_a_shard_is_refused_by_its_name_or_skipped(tmp_path):
    members = [(f"cat/{i}.jpg", JPEG if i != 3 else JPEG[:200]) for i in range(12)]
    write_shard(tmp_path / "s" / "train-0.tar", *members)
    with pytest.raises(InputError, match="cannot decode this image") as caught:
        load_image_set(f"shards:{tmp_path}/s", image_size=16).split("train")
    assert str(caught.value.where).endswith("+200/cat/3.jpg")
    skipping = load_image_set(f"shards:{tmp_path}/s", image_size=16, corrupt="skip")
    assert skipping.count("train") + skipping.count("val") == 11


# What is refused


def refused(tmp_path, match):
    with pytest.raises(InputError, match=match) as caught:
        shards.list_shards(tmp_path / "s")
    assert caught.value.next_step
    return caught.value


def test_shards_that_are_none(tmp_path):
    (tmp_path / "s").mkdir()
    refused(tmp_path, "no tar files here")
    (tmp_path / "s" / "train.tar").write_bytes(JPEG)
    refused(tmp_path, "no whole tar file")
    (tmp_path / "s" / "train.tar").write_bytes(b"")
    refused(tmp_path, "no whole tar file")
    write_shard(tmp_path / "s" / "train.tar")
    refused(tmp_path, "there is nothing in it")
    write_shard(tmp_path / "s" / "train.tar", ("0.txt", b"x"))
    refused(tmp_path, "no pictures in the shards of train")
    (tmp_path / "s" / "more-train.tar.gz").write_bytes(b"")
    refused(tmp_path, "compressed")


@pytest.mark.parametrize("left", [700, 1024, 2560, 5000])
def test_a_shard_that_was_cut_is_not_taken_for_a_shorter_one(tmp_path, left):
    whole = write_shard(tmp_path / "s" / "train.tar", *((f"cat/{i}.jpg", bytes([i]) * 300) for i in range(9)))
    os.truncate(whole, left)
    refused(tmp_path, "no whole tar file")


MANY = [(f"cat/{i}.jpg", JPEG) for i in range(40)]


def zero_filled(shard):
    """From the second member on, with its size kept."""
    size = shard.stat().st_size
    with tarfile.open(shard) as tar:
        start = tar.getmembers()[1].offset
    os.truncate(shard, start)
    os.truncate(shard, size)


def sparse(shard):
    os.truncate(shard, 0)
    os.truncate(shard, 2**40)


def sparse_after_its_end(shard):
    os.truncate(shard, 2**40)


def two_in_one(shard):
    shard.write_bytes(shard.read_bytes() * 2)


def not_zero_after_one_block(shard):
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        last = tar.getmembers()[-1]
    content[last.offset_data + -(-last.size // 512) * 512 + 600] = 1
    shard.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (zero_filled, "bytes follow the mark of its end"),
        (sparse_after_its_end, "bytes follow the mark of its end"),
        (two_in_one, "bytes follow the mark of its end"),
        (not_zero_after_one_block, "bytes follow the mark of its end"),
        (lambda shard: shard.write_bytes(bytes(10240)), "there is nothing in it"),
        (sparse, "there is nothing in it"),
    ],
)
def test_what_lies_behind_the_end_is_not_left_out_unnoticed(tmp_path, harm, says):
    shard = write_shard(tmp_path / "s" / "train.tar", *MANY)
    harm(shard)
    assert refused(tmp_path, says).where == shard


@pytest.mark.parametrize("record", [512, 10240, 2**16, 2**20])
def test_padding_to_a_record_of_any_size_is_read(tmp_path, record):
    shard = write_shard(tmp_path / "s" / "train.tar", *MANY)
    with tarfile.open(shard) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512 + 1024
    os.truncate(shard, -(-end // record) * record)
    assert len(shards.list_shards(tmp_path / "s").splits["train"].paths) == 40


def test_a_shard_is_a_regular_file_or_a_link_to_one(tmp_path):
    shard = tmp_path / "s" / "train.tar"
    shard.parent.mkdir()
    shard.symlink_to("/dev/zero")
    refused(tmp_path, "not a regular file")
    shard.unlink()
    os.mkfifo(shard)
    refused(tmp_path, "not a regular file")
    shard.unlink()
    shard.symlink_to(write_shard(tmp_path / "elsewhere.tar", *MANY))
    assert len(shards.list_shards(tmp_path / "s").splits["train"].paths) == 40


def test_a_shard_with_a_damaged_header_in_the_middle(tmp_path):
    whole = write_shard(tmp_path / "s" / "train.tar", *((f"cat/{i}.jpg", b"x" * 512) for i in range(9)))
    content = bytearray(whole.read_bytes())
    content[4 * 1024 + 10] ^= 1
    whole.write_bytes(content)
    refused(tmp_path, "no whole tar file")


@pytest.mark.parametrize("name", ["../cat/0.jpg", "/cat/0.jpg", "cat/../../0.jpg", f"cat/{'x' * 2000}.jpg"])
def test_names_that_lead_out_or_are_too_long(tmp_path, name):
    write_shard(tmp_path / "s" / "train.tar", (name, JPEG))
    refused(tmp_path, "leads out of it, or is too long")


def test_samples_and_classes_that_make_no_sense(tmp_path):
    write_shard(tmp_path / "s" / "train.tar", ("0.jpg", JPEG), ("0.png", JPEG))
    assert refused(tmp_path, "a sample has 2 pictures").where == f"{tmp_path / 's' / 'train.tar'}, 0"
    write_shard(tmp_path / "s" / "train.tar", ("0.jpg", JPEG), ("0.jpg", JPEG))
    refused(tmp_path, "duplicate file name")
    write_shard(tmp_path / "s" / "train.tar", ("0.jpg", JPEG), ("1.jpg", JPEG), ("0.jpg", JPEG))
    refused(tmp_path, "duplicate file name")
    write_shard(tmp_path / "s" / "train.tar", ("0.jpg", JPEG), ("0.cls", b"\xff\xfe"))
    refused(tmp_path, "not a number or a name")
    write_shard(tmp_path / "s" / "train.tar", ("0.jpg", JPEG), ("0.cls", b"7" * 5000))
    refused(tmp_path, "not a number or a name")
    write_shard(tmp_path / "s" / "train.tar", ("0.jpg", JPEG), ("cat/0.jpg", JPEG))
    refused(tmp_path, "some pictures have a class and others have none")
    write_shard(tmp_path / "s" / "train.tar", ("cat/0.jpg", JPEG), ("dog/0.jpg", JPEG))
    write_shard(tmp_path / "s" / "test.tar", ("cow/0.jpg", JPEG))
    assert refused(tmp_path, "classes that train does not have: 'cow'")
    write_shard(tmp_path / "s" / "odd.tar", ("cow/0.jpg", JPEG))
    refused(tmp_path, "does not say which split")


def test_the_package_is_named_where_it_is_missing(tmp_path, monkeypatch):
    write_shard(tmp_path / "s" / "train.tar", ("0.jpg", JPEG))
    monkeypatch.setitem(__import__("sys").modules, "webdataset.tariterators", None)
    assert "twinbench[webdataset]" in refused(tmp_path, "webdataset, which is not installed").next_step


# The index


@pytest.fixture
def indexed(tmp_path, monkeypatch):
    """A set of any size has an index, of shards that were written long ago."""
    monkeypatch.setattr(contents, "WORTH_AN_INDEX", 1)
    monkeypatch.setattr(contents, "_SETTLED_NS", 0)
    read = []
    once = shards._read_shard
    monkeypatch.setattr(
        shards, "_read_shard", lambda shard, group: read.append(shard.name) or once(shard, group)
    )
    for i in range(3):
        write_shard(tmp_path / "s" / f"train-{i}.tar", (f"cat/{i}.jpg", JPEG))
    return read


def test_only_what_changed_is_read_again(indexed, tmp_path, cache):
    first = shards.list_shards(tmp_path / "s")
    assert sorted(indexed) == ["train-0.tar", "train-1.tar", "train-2.tar"]
    indexed.clear()
    again = shards.list_shards(tmp_path / "s")
    assert indexed == []
    assert again.splits["train"].paths == first.splits["train"].paths
    assert again.fingerprint() == first.fingerprint()
    write_shard(tmp_path / "s" / "train-1.tar", ("cat/1.jpg", picture(np.random.default_rng(2))))
    changed = shards.list_shards(tmp_path / "s")
    assert indexed == ["train-1.tar"]
    assert changed.fingerprint() != first.fingerprint()
    (tmp_path / "s" / "train-2.tar").unlink()
    write_shard(tmp_path / "s" / "train-3.tar", ("cat/3.jpg", JPEG))
    shards.list_shards(tmp_path / "s")
    assert len(list(next(cache.iterdir()).iterdir())) == 3, "nothing is kept of shards that are gone"


@pytest.mark.parametrize("damage", [b"", b"x", b"0" * 64 + b"\n[1, {}]"])
def test_a_damaged_index_costs_time_alone(indexed, tmp_path, cache, damage):
    first = shards.list_shards(tmp_path / "s")
    for file in next(cache.iterdir()).iterdir():
        file.write_bytes(damage)
    indexed.clear()
    assert shards.list_shards(tmp_path / "s").fingerprint() == first.fingerprint()
    assert len(indexed) == 3


def test_an_index_of_a_version_that_checked_less_is_not_read(indexed, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as before:
        before.setattr(shards, "_VERSION", 1)
        shards.list_shards(tmp_path / "s")
    indexed.clear()
    shards.list_shards(tmp_path / "s")
    assert len(indexed) == 3
    assert not caplog.records


# A member as a file


def test_a_member_is_a_file_of_its_own_for_whoever_reads_it(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"before" + JPEG + b"after")
    path = member_path(tmp_path / "x.tar", 6, len(JPEG), "cat/0.jpg")
    with opened_file(path) as file:
        assert file.read() == JPEG
        assert file.seek(-5, os.SEEK_END) == len(JPEG) - 5
        assert file.read(100) == JPEG[-5:]
        assert file.read(1) == b""
        file.seek(3)
        assert file.read(4) == JPEG[3:7]
        with pytest.raises(ValueError, match="negative"):
            file.seek(-1)
    assert picture_size(path) == Image.open(io.BytesIO(JPEG)).size
    (tmp_path / "y.tar" / "1+2").mkdir(parents=True)
    (tmp_path / "y.tar" / "1+2" / "a.jpg").write_bytes(JPEG)
    with opened_file(tmp_path / "y.tar" / "1+2" / "a.jpg") as file:
        assert file.read() == JPEG
    assert picture_size(tmp_path / "y.tar" / "1+2" / "a.jpg") == picture_size(path)
    with pytest.raises(InputError, match="cannot read this file: No such file"):
        picture_size(member_path(tmp_path / "z.tar", 0, 5, "a.jpg"))
