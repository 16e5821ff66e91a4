"""What `doctor` says of image sets, and of Detectron2 with it, without it and with one that cannot be imported."""

import sys
from importlib.machinery import EXTENSION_SUFFIXES

import pytest

from twinbench.data.catalogue import IMAGE_SETS, register_image_set
from twinbench.downstream.detection.detectron2_c4 import detectron2_found, require_detectron2
from twinbench.foundation.errors import InputError
from twinbench.harness import doctor
from twinbench.harness.doctor import examine


def test_a_format_from_a_plugin_is_named_and_not_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(IMAGE_SETS, "_entries", {**IMAGE_SETS._entries})

    @register_image_set("lab:")
    def load(name, data_root, reading):
        raise AssertionError("there is no such folder")

    assert "image set   lab:PATH: any folder of this format" in examine(None, tmp_path / "runs")


@pytest.mark.parametrize("is_there", [True, False])
def test_what_shards_need_is_said_where_it_is_missing(tmp_path, monkeypatch, is_there):
    monkeypatch.setattr(doctor, "find_spec", lambda name: object() if is_there else None)
    monkeypatch.setattr(doctor, "_detectron2", lambda: "")
    (said,) = [each for each in examine(None, tmp_path) if each.startswith("image set   shards:PATH")]
    assert ('pip install "twinbench[webdataset]"' in said) == (not is_there)


def line(tmp_path):
    (found,) = [line for line in examine(None, tmp_path / "runs") if line.startswith("Detectron2")]
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


def test_without_detectron2(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    text = line(tmp_path)
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
    text = line(tmp_path)
    assert "built against another torch" in text
    assert "file too short" in text
    assert_says_how_to_get_it(text)
    assert not detectron2_found()
    with pytest.raises(InputError, match="built against another torch") as error:
        require_detectron2("detection/c4-detectron2-v1")
    assert error.value.nearest == "detection/c4-torchvision-v2"


@pytest.mark.detectron2
def test_with_detectron2(tmp_path, monkeypatch):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    assert line(tmp_path).startswith("Detectron2  found, 0.")
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    assert "setuptools<81" in line(tmp_path)
