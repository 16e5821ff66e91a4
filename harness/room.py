"""The memory that jobs share which are done at the same time: of the machine, or of each GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from twinbench.foundation.machine_memory import usable_memory
from twinbench.harness.estimate import Use
from twinbench.harness.plan import Job

_MIB = 2**20


@dataclass(frozen=True)
class Room:
    """What jobs have together, and the largest that is not done alone, both in MiB."""

    together_mb: float
    largest_mb: float

    def taken_by(self, mb: float) -> float:
        """What a job that needs so much takes of ``together_mb``; without end if it is to be done alone.

        Where a GPU is shared by several workers nobody knows which of them is next, so each has a share of its own.
        """
        if mb > self.largest_mb:
            return math.inf
        return mb if self.largest_mb == self.together_mb else self.largest_mb

    def of(self, runs: Sequence[Sequence[Job]], use: Mapping[str, Use]) -> list[list[float]]:
        """What the jobs of each run take, of which ``use`` knows by their labels what they need."""
        return [[self.taken_by(use.get(job.label, Use()).memory_mb) for job in run] for run in runs]

    def too_large(self, use: Mapping[str, Use]) -> str:
        """A line on the jobs that are done alone; empty if there are none."""
        large = {label: each.memory_mb for label, each in use.items() if each.memory_mb > self.largest_mb}
        if not large:
            return ""
        first = max(large, key=large.__getitem__)
        jobs = "1 job is" if len(large) == 1 else f"{len(large)} jobs are"
        return (
            f"{jobs} done alone, for want of memory: {first} needs about {large[first] / 1024:.1f} GiB, "
            f"and there are {self.largest_mb / 1024:.1f} GiB"
        )


def room_for(workers: int) -> Room:
    """The room of so many workers: with a GPU of its own or a share of one for each, or else with the machine's memory.

    Of a machine with GPUs only their memory counts, as it is their memory that is measured there.
    """
    gpus = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    if not gpus:
        machine = usable_memory() / _MIB
        return Room(machine, machine)
    share = min(gpus) / _MIB / math.ceil(workers / len(gpus))
    return Room(share * workers, share)


def gpu_of_each(workers: int, visible: str | None) -> list[str | None]:
    """Which GPU each of so many workers computes on, as CUDA_VISIBLE_DEVICES says it; None where there is none.

    ``visible`` is what this process has in that variable. Where workers are more than GPUs, they share them.
    """
    count = torch.cuda.device_count()
    if not count:
        return [None] * workers
    names = [name.strip() for name in visible.split(",")] if visible else list(map(str, range(count)))
    return [names[worker % count] for worker in range(workers)]
