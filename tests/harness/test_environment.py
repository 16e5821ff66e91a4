"""What a record says that it was measured on, and with which earlier facts its time compares."""

import sys
from importlib.metadata import version

import pytest
import torch

from twinbench.harness import environment as module
from twinbench.harness.environment import environment, takes_as_long


@pytest.fixture
def with_faster_coco_eval(tmp_path, monkeypatch):
    """A folder in which that package is installed, version 9.9, whether or not it is installed here."""
    about = tmp_path / "faster_coco_eval-9.9.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: faster-coco-eval\nVersion: 9.9\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    module._installed.cache_clear()
    yield
    module._installed.cache_clear()


def test_versions_are_those_that_are_installed(with_faster_coco_eval):
    facts = environment()
    assert facts["faster-coco-eval"] == "9.9"
    for package in ("torch", "scipy", "pillow", "pycocotools"):
        assert facts[package] == version(package)


def test_a_package_that_is_absent_is_left_out(monkeypatch):
    monkeypatch.setattr(module, "_PACKAGES", ("torch", "no-such-package"))
    module._installed.cache_clear()
    facts = environment()
    module._installed.cache_clear()
    assert "torch" in facts
    assert not {"no-such-package", "numpy"} & facts.keys()


def test_times_compare_whatever_the_commit_but_not_across_versions_and_machines():
    here = environment()
    assert takes_as_long(here)
    assert takes_as_long({**here, "commit": "another"})
    assert takes_as_long({key: value for key, value in here.items() if key != "scipy"}), "recorded later"
    assert not takes_as_long({**here, "torch": "1.0"})
    assert not takes_as_long({**here, "machine": "another"})
    assert not takes_as_long({**here, "a-package": "1.0"}), "which is no longer installed"
    assert not takes_as_long({})


def test_the_processor_and_how_torch_computes_are_told():
    facts = environment()
    assert facts["instruction set"].startswith(torch.backends.cpu.get_cpu_capability())
    assert facts["threads"] == str(torch.get_num_threads())
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert environment()["deterministic"] == "yes"
    finally:
        torch.use_deterministic_algorithms(before)
    assert takes_as_long({**facts, "threads": "77"}), "the number of threads is told apart"


def test_a_gpu_tells_its_name_driver_and_tf32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA T1")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 90100)
    module._installed.cache_clear()
    facts = environment()
    module._installed.cache_clear()
    assert facts["gpu"] == "NVIDIA T1"
    assert {"cuda", "driver", "tf32"} <= facts.keys()
