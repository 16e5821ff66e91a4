"""What a GPU computes, against the CPU: run by ``make test-gpu``, or with the environment variable below.

``TWINBENCH_TEST_GPU=cuda`` lets the tests see the GPU. ``cpu`` rehearses them without one: both sides are then the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from twinbench.data.catalogue import load_image_set
from twinbench.data.image_sets import ImageSet


@pytest.fixture
def gpu() -> torch.device:
    """The device to compare with the CPU."""
    asked = os.environ.get("TWINBENCH_TEST_GPU")
    if asked is None:
        pytest.skip("tests of a GPU run when asked for: make test-gpu")
    if asked != "cpu" and not torch.cuda.is_available():
        pytest.skip("there is no GPU that torch can use")
    return torch.device("cpu" if asked == "cpu" else "cuda")


@pytest.fixture
def full_precision() -> Iterator[None]:
    """Convolutions in fp32 as on a CPU, not in TF32, so that what differs is rounding."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """A block in which trainings do not see the GPU."""

    @contextmanager
    def hidden() -> Iterator[None]:
        with monkeypatch.context() as patched:
            patched.setattr(torch.cuda, "is_available", lambda: False)
            patched.setattr(torch.cuda, "device_count", lambda: 0)
            yield

    return hidden


@pytest.fixture(scope="module")
def image_set() -> ImageSet:
    return load_image_set("digit-scenes", limit={"train": 192, "val": 48, "test": 96})
