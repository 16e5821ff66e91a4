"""Images that stay on disk: sets too large for memory, decoded when they are asked for.

`StreamedImages` stands where an uint8 tensor of images would. `CropStream` feeds training: worker processes decode
each picture once and cut, resize and flip a crop for every view from the full picture (Pillow, antialiased); the
photometric operations remain for the device (`data.augment.finish`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from twinbench.data.augment import ViewPolicy, draw_parameters
from twinbench.data.folders import Corrupt, SkippedFiles, all_corrupt, fit_all, noted
from twinbench.data.pixels import (
    CorruptImage,
    Oddities,
    Oddity,
    Picture,
    open_rgb,
    picture_size,
    read_picture,
)
from twinbench.data.worker_processes import worker_context, worker_setup
from twinbench.foundation.errors import ExplainedError, RunFailure
from twinbench.foundation.ranks import everyones

_CHUNK = 64
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Met:
    """What reading some rows met: errors where a substitute was read, and what is odd about the pictures."""

    errors: dict[int, CorruptImage] = field(default_factory=dict)
    odd: dict[int, tuple[Oddity, ...]] = field(default_factory=dict)


class StreamedImages:
    """Image files that are read like a tensor, uint8 ``[N, 3, size, size]``: indexed and sliced.

    What is asked for is decoded in parallel threads to the pixels that a set in memory has: shorter side to ``size``,
    centre cut out. With a ``shorter_side``, larger than ``size``, it is resized to that before. ``labels`` (int64
    ``[N]``) only guide the choice of substitutes. A file that cannot be decoded raises InputError when it is met, or
    with ``skip`` is added to ``skipped`` and the next image of the same label that can be decoded takes its place (of
    any label where there is none): a function of the files alone. What is odd about the pictures met so far is added to
    ``oddities``.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: np.ndarray,
        size: int,
        corrupt: Corrupt = "refuse",
        shorter_side: int | None = None,
        oddities: Oddities | None = None,
    ) -> None:
        # tensors, which go to shared memory when they are sent to the first worker, for a set may have a million files
        names = np.array([os.fsencode(path) for path in paths])
        self._names = torch.from_numpy(names.view(np.uint8).reshape(len(names), names.itemsize))
        self._labels = torch.from_numpy(labels)
        self.size, self.corrupt, self.shorter_side = size, corrupt, shorter_side
        self.skipped = SkippedFiles()
        self.oddities = oddities or Oddities()

    def __len__(self) -> int:
        return len(self._names)

    def path(self, row: int) -> Path:
        """The file of a row."""
        return Path(os.fsdecode(self._names[row].numpy().tobytes().rstrip(b"\0")))

    @property
    def labels(self) -> np.ndarray:
        """The labels, int64 ``[N]``."""
        return self._labels.numpy()

    @property
    def shape(self) -> torch.Size:
        """``[N, 3, size, size]``."""
        return torch.Size((len(self), 3, self.size, self.size))

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """The images that indexing a tensor of all of them would give, uint8 on the CPU."""
        chosen = torch.arange(len(self))[index]
        rows = chosen.flatten().tolist()
        met = Met()
        images = torch.from_numpy(
            fit_all(lambda i: self.read(rows[i], met), len(rows), self.size, self.shorter_side)
        )
        self.count(met)
        return images.view(*chosen.shape, *self.shape[1:])

    def count(self, met: Met) -> None:
        """Add what reading some rows met to ``skipped`` and ``oddities``."""
        self.skipped.add(met.errors)
        self.oddities.add_all((self.path(row), odd) for row, odd in sorted(met.odd.items()))

    def count_with_ranks(self) -> None:
        """Count what every rank has met until now; every rank must call this."""
        for skipped, odd in everyones((self.skipped.paths, self.oddities.paths)):
            self.skipped.include(skipped)
            self.oddities.include(odd)

    def read(self, row: int, met: Met) -> Image.Image:
        """The whole picture of a row in RGB, or with ``skip`` its substitute; what is odd about it goes to ``met``.

        Raises InputError naming the file, with ``skip`` only if no image at all can be decoded.
        """
        try:
            return noted(row, read_picture(self.path(row)), met.odd)
        except CorruptImage as error:
            if self.corrupt == "refuse":
                raise
            met.errors[row] = error
            return noted(row, Picture(self._substitute(row), (error.oddity,)), met.odd)

    def _substitute(self, row: int) -> Image.Image:
        others = (row + np.arange(1, len(self))) % len(self)
        same_label = self.labels[others] == self.labels[row]
        for other in np.concatenate([others[same_label], others[~same_label]]).tolist():
            try:
                return open_rgb(self.path(other))
            except CorruptImage:
                continue
        raise all_corrupt(len(self), self.path(0), self.path(-1))


Images = Tensor | StreamedImages


class CropStream:
    """The crops of every training step, made by worker processes ahead of their use.

    ``rows(step)`` gives the rows of the step's global batch (int64 ``[N]``), of which ``share`` is this rank's part;
    ``generator(step)`` a fresh CPU generator for its augmentation. The latter is sent to the workers, so it must come
    from a module that they can import, not from the main script. A worker calls `draw_parameters` for the whole global
    batch, one policy after the other, so the crops depend neither on workers nor on ranks; whoever makes the same
    calls, whatever the image sizes, has the other parameters of these views. With 0 workers all is done in this
    process.

    Iteration yields for each step from ``first_step`` to ``total_steps - 1`` one tensor per policy, uint8
    ``[n, 3, size, size]`` in the order of the share, in pinned memory where there is a GPU. It raises InputError for an
    image that cannot be decoded and RunFailure when a worker dies.
    """

    def __init__(
        self,
        images: StreamedImages,
        policies: Sequence[ViewPolicy],
        rows: Callable[[int], Tensor],
        generator: Callable[[int], torch.Generator],
        first_step: int,
        total_steps: int,
        workers: int,
        share: slice = slice(None),
    ) -> None:
        self.images, self.policies, self.rows, self.generator = images, tuple(policies), rows, generator
        self.steps, self.workers, self.share = range(first_step, total_steps), workers, share

    def __iter__(self) -> Iterator[list[Tensor]]:
        views: list[Tensor] = []
        with closing(self._results()) as results:
            for chunk, crops in results:
                if chunk.start == 0:
                    views = [self._empty(chunk.share, policy) for policy in self.policies]
                end = chunk.start + len(chunk.rows)
                for view, part in zip(views, crops, strict=True):
                    view[chunk.start : end] = part
                if end == chunk.share:
                    yield views

    def _empty(self, n: int, policy: ViewPolicy) -> Tensor:
        shape = (n, 3, policy.size, policy.size)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())

    def _results(self) -> Generator[tuple[_Chunk, list[Tensor]], None, None]:
        """Every chunk in order with its crops; corrupt images are counted in this process."""
        loader: DataLoader[Any] = DataLoader(
            _Crops(self.images, self.policies, self.generator),
            batch_size=None,
            sampler=self._chunks(),
            num_workers=self.workers,
            collate_fn=_unchanged,
            multiprocessing_context=worker_context() if self.workers else None,
            worker_init_fn=worker_setup(),
            # the loader draws a seed for its workers, by default from the generator of the whole process
            generator=torch.Generator(),
        )
        try:
            for result in loader:
                if isinstance(result, ExplainedError):
                    raise result
                chunk, crops, met = result
                self.images.count(met)
                yield chunk, crops
        except (RuntimeError, ConnectionError) as error:
            raise RunFailure(
                f"decoding images ended: {error}",
                where=f"{self.workers} worker processes",
                next_step="run the same command again, with fewer workers if memory is short",
            ) from error

    def _chunks(self) -> Iterator[_Chunk]:
        """The work of all steps in pieces, which bound the memory."""
        for step in self.steps:
            rows = self.rows(step)
            positions = range(len(rows))[self.share]
            for start in range(0, len(positions), _CHUNK):
                part = list(positions[start : start + _CHUNK])
                yield _Chunk(step, len(rows), part, rows[part].tolist(), start, len(positions))


@dataclass(frozen=True)
class _Chunk:
    """Some images of a step: ``positions`` in the global batch of ``batch`` images, ``start`` in the share."""

    step: int
    batch: int
    positions: list[int]
    rows: list[int]
    start: int
    share: int


class _Box(NamedTuple):
    """A crop in source pixels."""

    left: int
    top: int
    width: int
    height: int
    flip: int


class _Crops(Dataset[Any]):
    """What a worker does; an error is its result, since a loader would rebuild it without its parts."""

    def __init__(
        self,
        images: StreamedImages,
        policies: tuple[ViewPolicy, ...],
        generator: Callable[[int], torch.Generator],
    ) -> None:
        self.images, self.policies, self.generator = images, policies, generator

    def __getitem__(self, chunk: _Chunk) -> tuple[_Chunk, list[Tensor], Met] | ExplainedError:
        try:
            return self._cropped(chunk)
        except ExplainedError as error:
            return error

    def _cropped(self, chunk: _Chunk) -> tuple[_Chunk, list[Tensor], Met]:
        sizes = [_header_size(self.images.path(row)) for row in chunk.rows]
        boxes = self._draw(chunk, chunk.positions, sizes)
        views = [np.empty((len(sizes), 3, p.size, p.size), np.uint8) for p in self.policies]
        met = Met()
        for i, row in enumerate(chunk.rows):
            image = self.images.read(row, met)
            if image.size != sizes[i]:  # a substitute
                boxes[i] = self._draw(chunk, [chunk.positions[i]], [image.size])[0]
            for view, box, policy in zip(views, boxes[i], self.policies, strict=True):
                view[i] = _cut(image, box, policy)
        return chunk, [torch.from_numpy(view) for view in views], met

    def _draw(
        self, chunk: _Chunk, positions: list[int], sizes: list[tuple[int, int]]
    ) -> list[tuple[_Box, ...]]:
        """The crops, one per policy, at some positions of the global batch for images of ``sizes`` (width, height)."""
        mine = torch.tensor(positions)
        width, height = torch.ones(2, chunk.batch, dtype=torch.int64)
        width[mine], height[mine] = torch.tensor(sizes).unbind(1)
        generator = self.generator(chunk.step)
        per_policy = []
        for policy in self.policies:
            drawn = draw_parameters(policy, chunk.batch, height, width, generator)[mine]
            columns = (drawn.left, drawn.top, drawn.width, drawn.height, drawn.flip)
            per_policy.append([_Box(*row) for row in torch.stack(columns, dim=1).tolist()])
        return list(zip(*per_policy, strict=True))


def _unchanged(result: Any) -> Any:
    return result


def _header_size(path: Path) -> tuple[int, int]:
    """Width and height before decoding; (1, 1) for a file that will not open, whose substitute is drawn for later."""
    try:
        return picture_size(path)
    except CorruptImage:
        return 1, 1


def _cut(image: Image.Image, box: _Box, policy: ViewPolicy) -> np.ndarray:
    """Crop, resize and flip: uint8 ``[3, size, size]``."""
    # resize(box=...) would be one call, but its filter reads pixels beyond the crop, which torchvision's does not
    crop = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    pixels = np.asarray(crop.resize((policy.size, policy.size), _RESAMPLING[policy.interpolation]))
    return (pixels[:, ::-1] if box.flip else pixels).transpose(2, 0, 1)
