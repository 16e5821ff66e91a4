"""The peak of a training is what it adds, whatever the process holds or maps besides."""

import errno
import mmap
import sys
from pathlib import Path

import pytest
import torch

from twinbench.data.catalogue import load_image_set
from twinbench.foundation.errors import ShortOfMemory
from twinbench.harness.recipes import load_recipe
from twinbench.pretraining.build import resolve
from twinbench.pretraining.memory import (
    is_out_of_memory,
    peak_memory_mb,
    peak_working_memory_mb,
    reset_peak_memory,
)
from twinbench.pretraining.train import pretrain

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells the peak of a part of a process"
)
MB = 2**20


def added(work) -> float:
    """MiB that a piece of work adds at its peak."""
    reset_peak_memory()
    before = peak_working_memory_mb()
    work()
    return peak_working_memory_mb() - before


def test_the_peak_is_of_what_was_there_at_once_and_not_of_what_is_mapped():
    held = torch.ones(64 * MB // 4)

    def compute():
        torch.ones(96 * MB // 4)

    with (Path(torch.__file__).parent / "lib" / "libtorch_cpu.so").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 96 * MB, access=mmap.ACCESS_READ)  # for good, as a library is

    def read():
        before = peak_memory_mb()
        assert sum(mapped[i] for i in range(0, len(mapped), mmap.PAGESIZE))
        assert peak_memory_mb() > before + 72

    assert added(compute) == pytest.approx(96, abs=24)
    assert added(read) == pytest.approx(0, abs=24)
    assert added(lambda: None) == pytest.approx(0, abs=8), "an earlier peak does not count"
    assert held.sum() == held.numel()


def test_what_the_process_holds_besides_is_not_the_trainings(tmp_path):
    image_set = load_image_set("digit-scenes", limit={"train": 256, "val": 64, "test": 32})
    changes = {"epochs": 1, "batch_size": 128}
    recipe = resolve(
        load_recipe("digit-scenes", "simclr", "digit-scenes", changes, 0), 32, image_set.fingerprint
    )

    def memory(name: str) -> tuple[float, float]:
        summary = pretrain(recipe, "hash", image_set, tmp_path / name)
        return summary.peak_memory_mb, summary.training_memory_mb

    memory("first")  # what is loaded once
    process, training = memory("alone")
    held = torch.ones(256 * MB // 4)
    process_beside, training_beside = memory("beside")
    assert process_beside > process + 150
    assert training > 20
    assert abs(training_beside - training) < 60
    assert held.sum() == held.numel()


def test_what_says_that_memory_is_short():
    def raised(call):
        try:
            call()
        except Exception as error:
            return error

    too_much = raised(lambda: torch.empty(2**60, dtype=torch.uint8))
    assert isinstance(too_much, RuntimeError)
    short = [
        too_much,
        MemoryError(),
        ShortOfMemory("x"),
        OSError(errno.ENOMEM, "x"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ]
    assert all(map(is_out_of_memory, short))
    wrong_shape = raised(lambda: torch.ones(2) @ torch.ones(3))
    assert not any(
        map(is_out_of_memory, [wrong_shape, OSError(errno.ENOSPC, "x"), ValueError("out of memory")])
    )
