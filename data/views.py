"""The one way from images to batches of views, held in memory or streamed from disk."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from twinbench.data.augment import (
    Normalisation,
    ViewParameters,
    ViewPolicy,
    apply,
    draw_parameters,
    eval_view,
    finish,
    join,
)
from twinbench.data.streaming import CropStream, Images, StreamedImages
from twinbench.foundation.collectives import all_gather_nograd, rank, world_size
from twinbench.foundation.randomness import seeded_generator
from twinbench.foundation.ranks import together
from twinbench.foundation.transfer import to_device

BATCH = 256
"""Images of one forward pass where nothing is trained."""


# a GPU makes views of small images for several steps at a time, up to so many floats of each view
_AT_ONCE_FLOATS = 2**22


@lru_cache(maxsize=2)
def epoch_order(images: int, seed: int, epoch: int) -> Tensor:
    """A fresh permutation of so many images for every epoch, int64 ``[images]``, a function of (seed, epoch)."""
    return torch.randperm(images, generator=seeded_generator(seed, "order", epoch))


class RandomViews:
    """The augmented views of every step of a training, one for each policy.

    ``rows(step)`` gives the images of the step's global batch, int64 ``[N]``, of which ``share`` is this rank's part.
    The parameters of the views are drawn for the global batch and are a function of (seed, step), so neither a resumed
    run nor another number of devices sees other views.

    Images in memory lie on ``device`` whole. Streamed ones are decoded and cropped by ``workers`` processes;
    everything after the crop is batched on the device in both cases. Starting its many small operations costs a GPU
    more than the views of a small batch themselves, so it makes those of several steps at a time.
    """

    def __init__(
        self,
        images: Images,
        rows: Callable[[int], Tensor],
        policies: Sequence[ViewPolicy],
        normalisation: Normalisation,
        seed: int,
        device: torch.device,
        workers: int,
        share: slice = slice(None),
    ) -> None:
        self.images = images if isinstance(images, StreamedImages) else images.to(device)
        self.policies, self.normalisation, self.device = tuple(policies), normalisation, device
        self._rows, self._generator = rows, partial(seeded_generator, seed, "views")
        self._workers, self._share = workers, share

    def steps(self, first: int, total: int) -> Iterator[ViewsOfStep]:
        """The views of the steps ``first`` to ``total - 1``; raises as `CropStream` does where they are streamed."""
        steps = range(first, total)
        at_once = self._steps_at_once(first) if steps else 1
        if at_once > 1:
            for start in steps[::at_once]:
                yield from self._together(range(start, min(start + at_once, total)))
            return
        for step, crops in zip(steps, self._crops(steps), strict=True):
            yield self._of_step(step, crops)

    def _steps_at_once(self, first: int) -> int:
        """For how many steps views are made at a time."""
        if self.device.type != "cuda" or isinstance(self.images, StreamedImages):
            return 1
        largest = max(policy.size for policy in self.policies)
        return max(1, _AT_ONCE_FLOATS // (len(self._rows(first)[self._share]) * 3 * largest**2))

    def _together(self, steps: range) -> Iterator[ViewsOfStep]:
        """The steps with their views, which are made all at once."""
        each = [self._of_step(step, None) for step in steps]
        rows = torch.cat([step.rows for step in each])
        drawn = [join(parameters) for parameters in zip(*(step.drawn for step in each), strict=True)]
        made = ViewsOfStep(self, rows, drawn, None).make()
        sizes = [len(step.rows) for step in each]
        for step, *views in zip(each, *(view.split(sizes) for view in made), strict=True):
            yield replace(step, made=views)

    def _crops(self, steps: range) -> Iterable[list[Tensor] | None]:
        """The crops of each step where they are made by workers, None where the device makes them."""
        if not isinstance(self.images, StreamedImages):
            return itertools.repeat(None, len(steps))
        return CropStream(
            self.images,
            self.policies,
            self._rows,
            self._generator,
            steps.start,
            steps.stop,
            self._workers,
            self._share,
        )

    def _of_step(self, step: int, crops: list[Tensor] | None) -> ViewsOfStep:
        rows, generator = self._rows(step), self._generator(step)
        # of a streamed set all but the crops count, which the workers have drawn by the same calls
        height, width = self.images.shape[-2:]
        drawn = [draw_parameters(policy, len(rows), height, width, generator) for policy in self.policies]
        (own,) = to_device([rows[self._share]], self.device)
        return ViewsOfStep(self, own, [parameters[self._share] for parameters in drawn], crops)


@dataclass(frozen=True)
class ViewsOfStep:
    """A rank's views of one step, made when they are asked for.

    ``rows`` are their images, int64 ``[n]`` on the device, ``drawn`` has the parameters of these views for each policy
    on the CPU, ``crops`` the crops where they are streamed, and ``made`` the views where they are made already.
    """

    source: RandomViews
    rows: Tensor
    drawn: list[ViewParameters]
    crops: list[Tensor] | None
    made: list[Tensor] | None = None

    def make(self, part: slice = slice(None)) -> list[Tensor]:
        """The views of a part of the rows: for each policy ``[n, 3, size, size]``, normalised, on the device."""
        if self.made is not None:
            return [view[part] for view in self.made]
        images = (
            None if isinstance(self.source.images, StreamedImages) else self.source.images[self.rows[part]]
        )
        return [self._view(i, images, part) for i in range(len(self.drawn))]

    def _view(self, i: int, images: Tensor | None, part: slice) -> Tensor:
        parameters, policy = self.drawn[i][part], self.source.policies[i]
        if images is not None:
            return apply(images, parameters, policy, self.source.normalisation)
        assert self.crops is not None
        crops = self.crops[i][part].to(self.source.device, non_blocking=True)
        return finish(crops, parameters, policy, self.source.normalisation)


def plain_views(
    images: Images, rows: Tensor, size: int, normalisation: Normalisation, device: torch.device
) -> Iterator[Tensor]:
    """The views without randomness of the images ``rows`` (int64 ``[N]``), in batches of at most 256.

    Each batch is ``[n, 3, size, size]``, normalised, on ``device``; see `data.augment.eval_view`.
    """
    for chunk in rows.split(BATCH):
        yield eval_view(images[chunk].to(device), size, normalisation)


def in_turns(rows: Tensor, make: Callable[[Tensor], Iterator[Tensor]]) -> Iterator[Tensor]:
    """What ``make`` gives for the images ``rows`` (int64 ``[N]``), computed by the ranks in turns; all of it on each.

    ``make`` takes rows and gives a tensor ``[n, ...]`` for each batch of at most 256 of them, as `plain_views` does.
    The batches are those of one process, and so are the results and their order. What one rank raises, all raise.
    """
    ranks, batches = world_size(), rows.split(BATCH)
    if ranks == 1:
        yield from make(rows)
        return
    rounds = [batches[start : start + ranks] for start in range(0, len(batches), ranks)]
    # in the last round some have nothing to do, and do what another does as well
    own = torch.cat([batches_now[min(rank(), len(batches_now) - 1)] for batches_now in rounds])
    for batches_now, found in zip(rounds, together(make(own)), strict=True):
        largest = len(batches_now[0])
        padded = torch.cat([found, found.new_zeros(largest - len(found), *found.shape[1:])])
        everything = all_gather_nograd(padded).split(largest)
        for batch, result in zip(batches_now, everything, strict=False):
            yield result[: len(batch)]
