"""Where a step's views come from: the images of the batch, this rank's share of them, augmented.

The order of images and every augmentation parameter is a function of (seed, step) for the whole global batch, of
which each rank takes its rows. So neither a resumed run nor another number of devices sees other views.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from twinbench.data.augment import ViewParameters, ViewPolicy, apply, draw_parameters, finish
from twinbench.data.image_sets import ImageSet
from twinbench.data.streaming import CropStream, StreamedImages
from twinbench.foundation.cores import usable_cores
from twinbench.foundation.errors import InputError
from twinbench.foundation.randomness import seeded_generator
from twinbench.pretraining.collectives import all_reduce_max_nograd
from twinbench.pretraining.engine import Engine
from twinbench.pretraining.method import Progress
from twinbench.pretraining.recipe import Recipe


class MicroBatch(NamedTuple):
    """Views, each ``[n, 3, H, W]`` normalised, and labels ``[n]``, on this rank's device."""

    views: list[Tensor]
    labels: Tensor


class Batches:
    """The batches of a run, for this rank.

    A set in memory lies on the device whole. A streamed one is decoded and cropped by worker processes, as many as
    there are cores for this rank; everything after the crop is batched on the device in both cases.
    """

    def __init__(
        self, recipe: Recipe, policies: tuple[ViewPolicy, ...], image_set: ImageSet, engine: Engine
    ) -> None:
        self.recipe, self.policies, self.image_set, self.engine = recipe, policies, image_set, engine
        train = image_set.split("train")
        images = train.images
        self.images = images if isinstance(images, StreamedImages) else images.to(engine.device)
        self.labels = train.labels.to(engine.device)
        self.share = engine.share(recipe.batch_size)
        self.steps_per_epoch = steps_in_epoch(recipe, len(train), image_set.name)
        self.total_steps = self.steps_per_epoch * recipe.epochs
        self._generator = partial(seeded_generator, recipe.seed, "views")

    def from_step(self, first_step: int) -> Iterator[list[MicroBatch]]:
        """The micro-batches of each step from ``first_step`` to the last."""
        steps = range(first_step, self.total_steps)
        for step, crops in zip(steps, self._crops(steps), strict=True):
            yield self._batch(step, crops)

    def skipped_images(self) -> int:
        """Corrupt training images that were left out so far, on any rank; every rank must ask."""
        if not isinstance(self.images, StreamedImages):
            return self.image_set.skipped.get("train", 0)
        rows = torch.zeros(len(self.images), device=self.engine.device)
        rows[torch.tensor(list(self.images.skipped.paths), dtype=torch.long)] = 1.0
        return int(all_reduce_max_nograd(rows).sum())

    def _crops(self, steps: range) -> Iterable[list[Tensor] | None]:
        """The crops of each step where they are made by workers, None where the device makes them."""
        if not isinstance(self.images, StreamedImages):
            return itertools.repeat(None, len(steps))
        workers = max(1, usable_cores() // self.engine.hardware.devices)
        return CropStream(
            self.images,
            self.policies,
            self._rows,
            self._generator,
            steps.start,
            steps.stop,
            workers,
            self.share,
        )

    def _rows(self, step: int) -> Tensor:
        progress = Progress(step, self.total_steps, self.steps_per_epoch)
        return batch_rows(len(self.images), self.recipe.batch_size, self.recipe.seed, progress)

    def _batch(self, step: int, crops: list[Tensor] | None) -> list[MicroBatch]:
        rows = self._rows(step)[self.share]
        drawn = [parameters[self.share] for parameters in self._draw(step)]
        return [
            MicroBatch(
                [
                    self._view(rows[part], None if crops is None else crops[i][part], drawn[i][part], policy)
                    for i, policy in enumerate(self.policies)
                ],
                self.labels[rows[part]],
            )
            for part in _parts(self.recipe.accumulate)
        ]

    def _draw(self, step: int) -> list[ViewParameters]:
        """The parameters of the global batch; of a streamed set all but the crops, which the workers have drawn."""
        generator = self._generator(step)
        height, width = self.images.shape[-2:]
        return [
            draw_parameters(policy, self.recipe.batch_size, height, width, generator)
            for policy in self.policies
        ]

    def _view(
        self, rows: Tensor, crops: Tensor | None, parameters: ViewParameters, policy: ViewPolicy
    ) -> Tensor:
        mean, std = self.image_set.mean, self.image_set.std
        if crops is None:
            views = apply(self.images[rows], parameters, policy, mean, std)
        else:
            views = finish(crops.to(self.engine.device, non_blocking=True), parameters, policy, mean, std)
        return views.contiguous(memory_format=torch.channels_last)


def _parts(count: int) -> list[slice]:
    """Micro-batches take turns: every ``count``-th image is the same set for any number of ranks."""
    return [slice(i, None, count) for i in range(count)]


def steps_in_epoch(recipe: Recipe, images: int, where: str) -> int:
    """Full batches in an epoch; the partial last one is dropped, as the statistics of a batch are the method."""
    if images < recipe.batch_size:
        raise InputError(
            f"batch_size {recipe.batch_size} is larger than the {images} training images",
            where=where,
            next_step=f"set batch_size to {images} or less",
            option=f"batch_size={2 ** int(math.log2(max(2, images)))}",
        )
    return images // recipe.batch_size


def batch_rows(images: int, batch_size: int, seed: int, progress: Progress) -> Tensor:
    """Which images make up this step's batch: a fresh permutation every epoch, a function of (seed, step)."""
    order = _order(images, seed, progress.epoch)
    start = (progress.step % progress.steps_per_epoch) * batch_size
    return order[start : start + batch_size]


@lru_cache(maxsize=2)
def _order(images: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(images, generator=seeded_generator(seed, "order", epoch))
