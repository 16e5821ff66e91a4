"""What a record says that it was measured on, and with which earlier facts its time compares."""

import sys
from importlib.metadata import version

import pytest

from twinbench.harness import environment as module
from twinbench.harness.environment import environment, takes_as_long


@pytest.fixture
def with_faster_coco_eval(tmp_path, monkeypatch):
    """A folder in which that package is installed, version 9.9, whether or not it is installed here."""
    about = tmp_path / "faster_coco_eval-9.9.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: faster-coco-eval\nVersion: 9.9\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    environment.cache_clear()
    yield
    environment.cache_clear()


def test_versions_are_those_that_are_installed(with_faster_coco_eval):
    facts = environment()
    assert facts["faster-coco-eval"] == "9.9"
    for package in ("torch", "scipy", "pillow", "pycocotools"):
        assert facts[package] == version(package)


def test_a_package_that_is_absent_is_left_out(monkeypatch):
    monkeypatch.setattr(module, "_PACKAGES", ("torch", "no-such-package"))
    environment.cache_clear()
    facts = environment()
    environment.cache_clear()
    assert set(facts) == {"torch", "python", "commit", "machine"}


def test_times_compare_whatever_the_commit_but_not_across_versions_and_machines():
    here = environment()
    assert takes_as_long(here)
    assert takes_as_long({**here, "commit": "another"})
    assert takes_as_long({key: value for key, value in here.items() if key != "scipy"}), "recorded later"
    assert not takes_as_long({**here, "torch": "1.0"})
    assert not takes_as_long({**here, "machine": "another"})
    assert not takes_as_long({**here, "a-package": "1.0"}), "which is no longer installed"
    assert not takes_as_long({})
