"""What a detector trains on: images drawn one epoch after another, each with its own seed for augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from twinbench.data.detection import CodedMasks, DetectionSplit, PictureFiles
from twinbench.data.worker_processes import worker_context, worker_setup
from twinbench.downstream.detection.schedules import Schedule
from twinbench.downstream.randomness import shuffled_indices
from twinbench.foundation.errors import ExplainedError, InputError, RunFailure
from twinbench.foundation.ranks import cores_each

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


@dataclass(frozen=True)
class _Undecoded:
    """A draw before its picture and masks are decoded: what is sent to a worker, in arrays, since tensors would take
    shared memory. ``images`` and ``masks`` have one entry; ``kept`` are the objects to train on, bool ``[n]``."""

    images: Tensor | Sequence[Tensor]
    boxes: np.ndarray
    labels: np.ndarray
    masks: Tensor | Sequence[Tensor] | None
    kept: np.ndarray
    seed: int

    def decoded(self) -> Draw:
        """The draw; raises InputError for a picture that cannot be decoded."""
        kept = torch.from_numpy(self.kept)
        return Draw(
            image=self.images[0],
            boxes=torch.from_numpy(self.boxes)[kept],
            labels=torch.from_numpy(self.labels)[kept],
            masks=None if self.masks is None else self.masks[0][kept],
            seed=self.seed,
        )


class Draws:
    """Everything that a training draws, in order; each item depends on the seed and its position alone.

    Crowds are left out, and with them images that have no other object, as in Detectron2. ``prepare`` turns a draw
    into what the detector wants; it goes to worker processes. There are enough draws for the training, for the
    statistics of batch norm, and for two batches that a grouping by shape may leave incomplete. Raises InputError
    if no image has an object.
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
        return self._prepare(self._undecoded(position).decoded())

    def _undecoded(self, position: int) -> _Undecoded:
        i = int(self.order[position])
        images, masks = self._split.images, self._split.masks
        if masks is not None:
            masks = masks.only(i) if isinstance(masks, CodedMasks) else masks[i : i + 1]
        return _Undecoded(
            images=images.only(i) if isinstance(images, PictureFiles) else images[i : i + 1],
            boxes=self._split.boxes[i].numpy(),
            labels=self._split.labels[i].numpy(),
            masks=masks,
            kept=self._kept(i).numpy(),
            seed=int(np.random.SeedSequence((self._seed, position)).generate_state(1)[0]),
        )

    def shape(self, position: int) -> tuple[int, int]:
        """Height and width of the picture at a position, which is not decoded for that."""
        return self._split.size(int(self.order[position]))

    def _kept(self, i: int) -> Tensor:
        crowd = self._split.crowd
        everything = torch.arange(len(self._split.labels[i]))
        return everything if crowd is None else everything[~crowd[i]]

    def loader(self, device: torch.device, positions: Iterable[int]) -> Iterator[Any]:
        """The prepared draws at some positions, in their order.

        Worker processes decode them where a GPU waits for pictures on disk. Raises InputError for a picture that cannot
        be decoded and RunFailure where a worker dies. Every rank must call this.
        """
        if device.type == "cuda" and isinstance(self._split.images, PictureFiles):
            tasks = map(self._undecoded, positions)
            return _from_workers(tasks, self._prepare, min(_MOST_WORKERS, cores_each()))
        return map(self.__getitem__, positions)


class _Answers(Dataset[Any]):
    """What a worker does; an error is its result, since a loader would rebuild it without its parts."""

    def __init__(self, prepare: Callable[[Draw], Any]) -> None:
        self._prepare = prepare

    def __getitem__(self, task: _Undecoded) -> Any:
        try:
            return self._prepare(task.decoded())
        except ExplainedError as error:
            return error


def _from_workers(tasks: Iterator[_Undecoded], prepare: Callable[[Draw], Any], workers: int) -> Iterator[Any]:
    loader: DataLoader[Any] = DataLoader(
        _Answers(prepare),
        batch_size=None,
        sampler=tasks,
        num_workers=workers,
        multiprocessing_context=worker_context(),
        worker_init_fn=worker_setup(),
        # Its own, for otherwise starting the loader would draw from the generator that the detector uses.
        generator=torch.Generator(),
    )
    try:
        for answer in loader:
            if isinstance(answer, ExplainedError):
                raise answer
            yield answer
    except (RuntimeError, ConnectionError) as error:
        raise RunFailure(
            f"decoding images ended: {error}",
            where=f"{workers} worker processes",
            next_step="run the same command again, with more memory if it is short",
        ) from error
