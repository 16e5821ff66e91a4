"""Views as the published protocols cut them: random crops to train on, a central crop of a larger view to test on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from twinbench.data.augment import ViewPolicy
from twinbench.data.folders import central_offset
from twinbench.data.image_sets import ImageSet, Split
from twinbench.data.streaming import Images, StreamedImages
from twinbench.data.views import BATCH, RandomViews, epoch_order, plain_views
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.ranks import cores_each, own_share, require_a_share_each, together

_ENLARGED = 256 / 224


def crop_and_flip(size: int) -> ViewPolicy:
    """torchvision's RandomResizedCrop and RandomHorizontalFlip with their defaults, ``size`` in pixels."""
    return ViewPolicy(size=size, flip=0.5, jitter=0.0, grayscale=0.0, interpolation="bilinear")


def all_training_images(image_set: ImageSet) -> Split:
    """The splits ``train`` and ``val`` in this order, for protocols that select nothing and so need no ``val``.

    What the publications train on is then trained on: a set without validation images of its own lends ``val`` a
    tenth of its training images.
    """
    train, val = image_set.split("train"), image_set.split("val")
    labels = torch.cat([train.labels, val.labels])
    if isinstance(train.images, StreamedImages) and isinstance(val.images, StreamedImages):
        parts = (train.images, val.images)
        paths = [images.path(row) for images in parts for row in range(len(images))]
        first = train.images
        return Split(
            StreamedImages(paths, labels.numpy(), first.size, first.corrupt, oddities=first.oddities), labels
        )
    assert isinstance(train.images, Tensor)
    assert isinstance(val.images, Tensor)
    return Split(torch.cat([train.images, val.images]), labels)


def readable(images: Images, rows: Tensor) -> Tensor:
    """Which of the images ``rows`` (int64 ``[N]``), all seen by now, were seen themselves, bool ``[N]``.

    In a streamed set that skips corrupt pictures another image has stood in for each of them; such rows of a test split
    must not count. Every rank must ask.
    """
    if isinstance(images, StreamedImages):
        images.count_with_ranks()
    skipped = list(images.skipped.paths) if isinstance(images, StreamedImages) else []
    return ~torch.isin(rows, torch.tensor(skipped, dtype=torch.int64))


def skipped_images(**splits: Split) -> dict[str, int]:
    """How many corrupt pictures of each split were met, by the names of the splits; only splits with such pictures.

    Every rank must ask.
    """
    counts = {}
    for name, split in splits.items():
        if isinstance(split.images, StreamedImages):
            split.images.count_with_ranks()
            counts[name] = len(split.images.skipped)
    return {name: count for name, count in counts.items() if count}


class EpochOrder:
    """The images of every step: each epoch is a fresh permutation of all the ``rows``, a function of (seed, epoch).

    An epoch is cut into ceil(N / batch) batches as equal as possible, so that no batch is small. ``rows`` is int64
    ``[N]``. Raises InputError if a batch has no image for one of the ranks.
    """

    def __init__(self, rows: Tensor, seed: int, batch: int = BATCH) -> None:
        self.rows, self.seed = rows, seed
        self.steps_per_epoch = -(-len(rows) // batch)
        require_a_share_each(len(rows) // max(1, self.steps_per_epoch))

    def __call__(self, step: int) -> Tensor:
        """The rows of a step, int64 ``[n]`` with n at most the batch."""
        epoch, part = divmod(step, self.steps_per_epoch)
        order = epoch_order(len(self.rows), self.seed, epoch)
        return self.rows[order.tensor_split(self.steps_per_epoch)[part]]


def training_steps(
    images: Images,
    rows: Callable[[int], Tensor],
    steps: int,
    seed: int,
    encoder: Encoder,
    device: torch.device,
    first: int = 0,
) -> Iterator[Iterator[Tensor]]:
    """Randomly cropped and flipped views of the images ``rows(step)``, for every step in parts of at most 256.

    ``rows`` gives int64 ``[n]``, of which this rank has its share. A part is ``[m, 3, size, size]``, normalised, on
    ``device``, and made when it is asked for; all of them are a function of (seed, step), whatever the ``first`` step.
    Streamed images are decoded and cropped by worker processes; images in memory are taken to the device whole.
    """
    policy = crop_and_flip(encoder.input_size)
    views = RandomViews(
        images, rows, [policy], encoder.normalisation, seed, device, cores_each(), own_share()
    )
    for step in together(views.steps(first, steps)):
        starts = range(0, len(step.rows), BATCH)
        yield (view for start in starts for view in step.make(slice(start, start + BATCH)))


def training_views(
    images: Images,
    rows: Callable[[int], Tensor],
    steps: int,
    seed: int,
    encoder: Encoder,
    device: torch.device,
    first: int = 0,
) -> Iterator[Tensor]:
    """The views of `training_steps` with the whole step in one tensor ``[n, 3, size, size]``."""
    for parts in training_steps(images, rows, steps, seed, encoder, device, first):
        yield torch.cat(list(parts))


def central_views(images: Images, rows: Tensor, encoder: Encoder, device: torch.device) -> Iterator[Tensor]:
    """The central crops of the images ``rows`` (int64 ``[N]``): normalised ``[n, 3, size, size]`` on ``device``.

    The shorter side is resized to 256/224 of the encoder's input size and the centre is cut out, as torchvision's
    Resize(256) and CenterCrop(224) do, to the pixel; of a streamed picture this starts from its full size. Images in
    memory that are stored at the input size have no margin left to cut off: they are seen whole. A corrupt picture is
    refused by name, or where the set skips them, has a substitute and is counted in ``images.skipped`` (`readable`).
    """
    size, large = encoder.input_size, round(_ENLARGED * encoder.input_size)
    if isinstance(images, StreamedImages):
        paths = [images.path(row) for row in range(len(images))]
        central = StreamedImages(paths, images.labels, size, images.corrupt, large, images.oddities)
        central.skipped = images.skipped
        yield from plain_views(central, rows, size, encoder.normalisation, device)
        return
    if images.shape[-1] == size:
        large = size
    centre = slice(central_offset(large, size), central_offset(large, size) + size)
    for views in plain_views(images, rows, large, encoder.normalisation, device):
        yield views[..., centre, centre]
