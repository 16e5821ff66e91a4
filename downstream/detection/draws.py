"""What a detector trains on: images drawn one epoch after another, each with its own seed for augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from twinbench.data.detection import DetectionSplit, PictureFiles
from twinbench.data.streaming import leave_signals_to_parent
from twinbench.downstream.detection.schedules import Schedule
from twinbench.downstream.randomness import shuffled_indices
from twinbench.foundation.cores import usable_cores
from twinbench.foundation.errors import InputError, RunFailure

_MOST_WORKERS = 8


@dataclass(frozen=True)
class Draw:
    """A picture uint8 ``[3, H, W]`` with the objects to train on: boxes ``[n, 4]``, 0-based labels ``[n]``, perhaps
    masks ``[n, H, W]``. ``seed`` determines its augmentation."""

    image: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor | None
    seed: int


class Draws(Dataset[Any]):
    """Everything that a training draws, in order; each item depends on the seed and its position alone.

    Crowds are left out, and with them images that have no other object, as in Detectron2. ``prepare`` turns a draw
    into what the detector wants; it goes to worker processes. There are enough draws for the training, for the
    statistics of batch norm, and for two batches that a grouping by shape may leave incomplete. Raises InputError
    where no image has an object.
    """

    def __init__(
        self, split: DetectionSplit, schedule: Schedule, seed: int, prepare: Callable[[Draw], Any]
    ) -> None:
        self._split, self._prepare, self._seed = split, prepare, seed
        usable = torch.tensor([i for i in range(len(split)) if len(self._kept(i))], dtype=torch.int64)
        if not len(usable):
            raise InputError(
                "no training image has an object to train on",
                next_step="check the annotations of the training split",
            )
        batches = schedule.iterations + schedule.precise_bn + 2
        generator = torch.Generator().manual_seed(seed)
        drawn = shuffled_indices(len(usable), batches * schedule.images_per_batch, generator)
        self.order = usable[drawn]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> Any:
        """The draw at a position, prepared; raises InputError for a picture that cannot be decoded."""
        i = int(self.order[position])
        kept = self._kept(i)
        masks = self._split.masks
        draw = Draw(
            image=self._split.images[i],
            boxes=self._split.boxes[i][kept],
            labels=self._split.labels[i][kept],
            masks=None if masks is None else masks[i][kept],
            seed=int(np.random.SeedSequence((self._seed, position)).generate_state(1)[0]),
        )
        return self._prepare(draw)

    def _kept(self, i: int) -> Tensor:
        crowd = self._split.crowd
        everything = torch.arange(len(self._split.labels[i]))
        return everything if crowd is None else everything[~crowd[i]]

    def loader(self, device: torch.device) -> Iterator[Any]:
        """The prepared draws in order; decoded by worker processes where a GPU waits for pictures on disk.

        Raises InputError for a picture that cannot be decoded and RunFailure where a worker dies.
        """
        if device.type == "cuda" and isinstance(self._split.images, PictureFiles):
            return _from_workers(self, min(_MOST_WORKERS, usable_cores()))
        return map(self.__getitem__, range(len(self)))


class _Answers(Dataset[Any]):
    """What a worker does; an error is its result, since a loader would rebuild it without its parts."""

    def __init__(self, draws: Draws) -> None:
        self._draws = draws

    def __len__(self) -> int:
        return len(self._draws)

    def __getitem__(self, position: int) -> Any:
        try:
            return self._draws[position]
        except InputError as error:
            return error


def _from_workers(draws: Draws, workers: int) -> Iterator[Any]:
    loader = DataLoader(
        _Answers(draws),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=leave_signals_to_parent,
        # Its own, for otherwise starting the loader would draw from the generator that the detector uses.
        generator=torch.Generator(),
    )
    try:
        for answer in loader:
            if isinstance(answer, InputError):
                raise answer
            yield answer
    except (RuntimeError, ConnectionError) as error:
        raise RunFailure(
            f"decoding images ended: {error}",
            where=f"{workers} worker processes",
            next_step="run the same command again, with more memory if it is short",
        ) from error
