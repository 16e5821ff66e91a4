"""Workers and GPUs: each process sees one GPU, and together they see all of them."""

from __future__ import annotations

import os

import pytest
import torch

from twinbench.harness import workers
from twinbench.harness.room import room_for

pytestmark = pytest.mark.gpu


def seen_by_worker() -> tuple[str | None, int, float]:
    """In a worker: which GPU it was given, how many it sees, and what one of them computes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return (
        os.environ.get("CUDA_VISIBLE_DEVICES"),
        torch.cuda.device_count(),
        torch.ones(8, device=device).sum().item(),
    )


def test_each_worker_has_a_gpu_of_its_own(gpu: torch.device) -> None:
    count = workers.workers_here() if gpu.type == "cuda" else 1
    with workers._started(None, count, threads=1) as crew:
        seen = [each.result() for each in [crew.submit(seen_by_worker) for _ in range(count)]]
    assert {computed for _, _, computed in seen} == {8.0}
    assert {visible for _, visible, _ in seen} == {1 if gpu.type == "cuda" else 0}
    assert len({given for given, _, _ in seen}) == count


def test_the_room_of_a_worker_is_the_memory_of_its_gpu(gpu: torch.device) -> None:
    if gpu.type == "cuda":
        sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
        assert room_for(len(sizes)).largest_mb == min(sizes) / 2**20
    else:
        assert room_for(2).largest_mb == room_for(2).together_mb
