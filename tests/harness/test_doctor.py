"""What `doctor` says of image sets, and of Detectron2 with it, without it and with one that cannot be imported."""

import sys
from importlib.machinery import EXTENSION_SUFFIXES

import pytest

from twinbench.data.catalogue import IMAGE_SETS, register_image_set
from twinbench.downstream.detection.detectron2_c4 import detectron2_found, require_detectron2
from twinbench.foundation.errors import InputError
from twinbench.harness import doctor
from twinbench.harness.doctor import examine


def test_a_format_from_a_plugin_is_named_and_not_looked_for(monkeypatch):
    monkeypatch.setattr(IMAGE_SETS, "_entries", {**IMAGE_SETS._entries})

    @register_image_set("lab:")
    def load(name, data_root, reading):
        raise AssertionError("there is no such folder")

    assert "image set   lab:PATH: any folder of this format" in examine(None)


@pytest.mark.parametrize("is_there", [True, False])
def test_what_shards_need_is_said_where_it_is_missing(monkeypatch, is_there):
    monkeypatch.setattr(doctor, "find_spec", lambda name: object() if is_there else None)
    monkeypatch.setattr(doctor, "_detectron2", lambda: "")
    monkeypatch.setattr(doctor, "version", lambda name: "1.2.3")
    (said,) = [each for each in examine(None) if each.startswith("image set   shards:PATH")]
    assert ('pip install "twinbench[webdataset]"' in said) == (not is_there)


def line():
    (found,) = [line for line in examine(None) if line.startswith("Detectron2")]
    return found


def assert_says_how_to_get_it(text):
    for part in (
        "detectron2.readthedocs.io/en/latest/tutorials/install.html",
        "from its public source against the installed torch",
        "--no-build-isolation",
        "setuptools<81",
        "detection/*-torchvision-*",
    ):
        assert part in text, part


def test_without_detectron2(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    text = line()
    assert "is not installed" in text
    assert_says_how_to_get_it(text)


@pytest.fixture
def nothing_imported():
    """No module of Detectron2 imported; afterwards those that were before."""

    def forget():
        return {
            name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "detectron2"
        }

    before = forget()
    yield
    forget()
    sys.modules.update(before)


@pytest.mark.usefixtures("nothing_imported")
def test_with_a_detectron2_that_does_not_load(tmp_path, monkeypatch):
    """A compiled part that the linker refuses, as one built against another torch is."""
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / f"_C{EXTENSION_SUFFIXES[0]}").touch()
    monkeypatch.syspath_prepend(tmp_path)
    text = line()
    assert "built against another torch" in text
    assert "file too short" in text
    assert_says_how_to_get_it(text)
    assert not detectron2_found()
    with pytest.raises(InputError, match="built against another torch") as error:
        require_detectron2("detection/c4-detectron2-v1")
    assert error.value.nearest == "detection/c4-torchvision-v2"


@pytest.mark.detectron2
def test_with_detectron2(monkeypatch):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    assert line().startswith("Detectron2  found, 0.")
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    assert "setuptools<81" in line()


def test_a_store_that_can_be_written_need_not_be_there(cli, tmp_path):
    ended = cli("doctor", "--runs", "deep/down/runs")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.endswith("run store   deep/down/runs: writable, not there yet\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("store", ["file", "file/below"])
def test_a_file_in_the_place_of_the_store_is_an_error_after_all_else(cli, tmp_path, store):
    (tmp_path / "file").write_text("mine")
    ended = cli("doctor", "--runs", store)
    assert ended.code == 1
    assert "image set   val-of:NAME" in ended.out
    assert "a file is where a folder would be" in ended.err
    assert "give another folder" in ended.err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_bucket_that_cannot_be_used_is_an_error_after_all_else(cli):
    ended = cli("doctor", "--runs", "nothing://bucket/runs")
    assert ended.code != 0
    assert "image set   val-of:NAME" in ended.out
    assert "nothing://bucket/runs" in ended.err


@pytest.mark.parametrize("is_there", [True, False])
def test_what_buckets_need_is_said_where_it_is_missing(monkeypatch, is_there):
    monkeypatch.setattr(doctor, "find_spec", lambda name: object() if is_there else None)
    monkeypatch.setattr(doctor, "version", lambda name: "1.2.3")
    (said,) = [each for each in examine(None) if each.startswith("S3")]
    assert ("s3fs found, 1.2.3" if is_there else "pip install 'twinbench[objects]'") in said
