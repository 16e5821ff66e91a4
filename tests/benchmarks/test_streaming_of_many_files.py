"""The benchmark of many files makes the folder that it says, and measures every part of the way to a batch."""

import os
from pathlib import Path

import pytest

from twinbench.data import contents
from twinbench.data.folders import list_images
from twinbench.data.shards import list_shards

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def streaming(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import streaming

    return streaming


def test_the_files_are_links_to_a_few_pictures_spread_over_the_classes(streaming, monkeypatch, tmp_path):
    monkeypatch.setattr(streaming, "_ORIGINALS", 2)
    monkeypatch.setattr(streaming, "_LINKS", 7)
    streaming.write_folder(tmp_path, files=20, classes=6)
    listed = list_images(tmp_path / "set")
    paths = listed.splits["train"].paths
    assert len(paths) == 20
    assert len(listed.classes) == 6
    assert (
        sorted(len(list(folder.iterdir())) for folder in (tmp_path / "set" / "train").iterdir())
        == [3] * 4 + [4] * 2
    )
    links = [os.stat(path).st_nlink - 1 for path in {path.stat().st_ino: path for path in paths}.values()]
    assert len(links) == 3, "no file has more links than a file system allows"
    assert max(links) <= 7


def test_the_shards_are_those_of_the_folder_with_holes(streaming, monkeypatch, tmp_path):
    pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    monkeypatch.setattr(streaming, "_ORIGINALS", 2)
    monkeypatch.setattr(streaming, "_READ", 2)
    monkeypatch.setattr(streaming, "_SHARD", 8)
    streaming.write_folder(tmp_path / "a", files=20, classes=3)
    streaming.write_shards(tmp_path / "b", files=20, classes=3)
    listed, expected = list_shards(tmp_path / "b" / "set"), list_images(tmp_path / "a" / "set")
    ours, theirs = listed.splits["train"], expected.splits["train"]
    assert [path.name for path in ours.paths] == [path.name for path in theirs.paths]
    assert ours.labels.tolist() == theirs.labels.tolist()
    digests = dict(listed.entries["train"])
    folder = tmp_path / "a" / "set"
    for path, digest in zip(theirs.paths, contents.digests(folder, theirs.paths), strict=True):
        is_there = digests[path.relative_to(folder).as_posix()] == digest
        assert is_there == (int(path.stem) < 2 * 3)


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_small_set_is_measured_from_its_list_to_its_batches(streaming, monkeypatch, tmp_path, kind):
    if kind == "shards":
        pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    monkeypatch.setattr(streaming, "_ORIGINALS", 2)
    monkeypatch.setattr(streaming, "_BATCH", 4)
    monkeypatch.setattr(streaming, "_SIZE", 32)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    getattr(streaming, f"write_{kind}")(tmp_path, files=30, classes=3)
    found = streaming.measure(kind, str(tmp_path / "set"))
    assert found["files"] == 30
    assert all(
        found[key] > 0 for key in ("listing", "fingerprint", "again", "first_batch", "images_per_second")
    )
    assert found["worker_mb"] > 1
    document = {
        "facts": dict.fromkeys(("machine", "python", "torch", "commit", "date", "command"), "x"),
        "device": "a processor",
        "classes": 3,
        "repetitions": 1,
        "rows": [{"kind": kind, "files": 30, "answers": [found]}],
    }
    assert f"| {kind} " in streaming.render(document)
