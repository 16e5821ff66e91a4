"""The batches of a training: which images make up a step, in which micro-batches, with their views and labels.

The order of images is a function of (seed, step) for the whole global batch, as their views are (`data.views`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from twinbench.data.augment import ViewPolicy
from twinbench.data.image_sets import ImageSet
from twinbench.data.streaming import StreamedImages
from twinbench.data.views import RandomViews, ViewsOfStep, epoch_order
from twinbench.foundation.collectives import all_reduce_max_nograd
from twinbench.foundation.cores import own_cores
from twinbench.foundation.errors import InputError
from twinbench.pretraining.engine import Engine
from twinbench.pretraining.method import Progress
from twinbench.pretraining.recipe import Recipe


class MicroBatch(NamedTuple):
    """Views, each ``[n, 3, H, W]`` normalised, and labels ``[n]``, on this rank's device."""

    views: list[Tensor]
    labels: Tensor


class Batches:
    """The batches of a run, for this rank.

    Streamed images are decoded and cropped by as many worker processes as there are cores for this rank.
    """

    def __init__(
        self, recipe: Recipe, policies: tuple[ViewPolicy, ...], image_set: ImageSet, engine: Engine
    ) -> None:
        self.recipe, self.policies, self.image_set, self.engine = recipe, policies, image_set, engine
        train = image_set.split("train")
        self.labels = train.labels.to(engine.device)
        self.steps_per_epoch = steps_in_epoch(recipe, len(train), image_set.name)
        self.total_steps = self.steps_per_epoch * recipe.epochs
        self.views = RandomViews(
            train.images,
            self._rows,
            policies,
            image_set.normalisation,
            recipe.seed,
            engine.device,
            workers=max(1, own_cores() // engine.hardware.devices),
            share=engine.share(recipe.batch_size),
        )

    def from_step(self, first_step: int) -> Iterator[list[MicroBatch]]:
        """The micro-batches of each step from ``first_step`` to the last."""
        for views in self.views.steps(first_step, self.total_steps):
            yield [self._micro_batch(views, part) for part in _parts(self.recipe.accumulate)]

    def _micro_batch(self, views: ViewsOfStep, part: slice) -> MicroBatch:
        made = [view.contiguous(memory_format=torch.channels_last) for view in views.make(part)]
        return MicroBatch(made, self.labels[views.rows[part]])

    def _rows(self, step: int) -> Tensor:
        progress = Progress(step, self.total_steps, self.steps_per_epoch)
        return batch_rows(len(self.labels), self.recipe.batch_size, self.recipe.seed, progress)

    def skipped_images(self) -> int:
        """Corrupt training images that were left out so far, on any rank; every rank must ask."""
        images = self.views.images
        if not isinstance(images, StreamedImages):
            return self.image_set.skipped.get("train", 0)
        rows = torch.zeros(len(images), device=self.engine.device)
        rows[torch.tensor(list(images.skipped.paths), dtype=torch.long)] = 1.0
        return int(all_reduce_max_nograd(rows).sum())


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
    order = epoch_order(images, seed, progress.epoch)
    start = (progress.step % progress.steps_per_epoch) * batch_size
    return order[start : start + batch_size]
