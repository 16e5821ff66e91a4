"""Speed of augmentation: our batched pipeline against torchvision's, one image at a time; and of reading images.

``python benchmarks/augmentation.py --size 32 224`` counts pairs of views: the two views of Barlow Twins from uint8
images in memory to normalised floats, on one core and on all. torchvision's side is the pipeline that the official
Barlow Twins code composes, on PIL images (``v1``), and the same by transforms.v2 on tensors (``v2``); with all cores
it runs in a DataLoader with as many workers. ``--stream`` counts JPEG files of 500 x 375 pixels that are decoded,
cropped, resized and flipped in workers, against torchvision's ImageFolder. No side touches a GPU. Every measurement
is a fresh process, and the sides take turns.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import (
    START_METHOD,
    Document,
    Spread,
    device_description,
    facts,
    footnote,
    markdown_table,
    positive,
    publish,
    run_script,
    take_turns,
)
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from twinbench.data.augment import ViewPolicy, augment, blur_taps
from twinbench.data.catalogue import load_image_set
from twinbench.data.image_sets import IMAGENET_NORMALISATION, Images
from twinbench.data.streaming import CropStream, StreamedImages
from twinbench.foundation.cores import usable_cores
from twinbench.foundation.randomness import seeded_generator
from twinbench.pretraining.view_policies import asymmetric_views

SIDES = ("ours", "v1", "v2")
_STREAM_BATCH = 64
_ENDLESS = 2**30
_WARM_UP = 2
_PHOTOGRAPH = 256  # the side of the images from which views of 224 pixels are cut
_JPEG_SIZE = (500, 375)
# about ImageNet's 110 kB for a picture of that size
_JPEG_QUALITY, _JPEG_GRAIN = 90, 21


@dataclass(frozen=True)
class Job:
    """One measurement: ``views`` of ``size`` pixels by a side, on ``cores`` cores or by as many workers."""

    side: str
    size: int
    cores: int
    seconds: float
    images: int
    views: int = 2
    folder: str | None = None
    stream: bool = False


def rate(job: Job) -> float:
    """Images a second through ``job.views`` views each."""
    torch.manual_seed(0)
    torch.set_num_threads(job.cores if job.side == "ours" and not job.stream else 1)
    if job.cores == 1 and not job.stream:
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:1]))
    batches = (_streamed_batches if job.stream else _view_batches)(job)
    for _ in range(_WARM_UP):
        next(batches)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < job.seconds:
        done += next(batches)
    return done / (time.perf_counter() - started)


# Views from images in memory


def _view_batches(job: Job) -> Iterator[int]:
    """Makes batches of views for ever; yields how many images each was made of."""
    images, policies = source(job), asymmetric_views(job.size, "pillow")
    batch_size = 256 if job.size < _PHOTOGRAPH // 2 else 64
    if job.side == "ours":
        generator = torch.Generator().manual_seed(0)
        while True:
            rows = torch.randint(len(images), (batch_size,), generator=generator)
            for policy in policies:
                augment(images[rows], policy, IMAGENET_NORMALISATION, generator)
            yield batch_size
    compose = v1_pipeline if job.side == "v1" else v2_pipeline
    dataset = _PerImage(images, [compose(policy) for policy in policies], as_pil=job.side == "v1")
    if job.cores == 1:
        # without a loader, which would only add the cost of collating
        for row in RandomSampler(dataset, replacement=True, num_samples=_ENDLESS):
            dataset[row]
            yield 1
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=RandomSampler(dataset, replacement=True, num_samples=_ENDLESS),
        num_workers=job.cores,
        multiprocessing_context=START_METHOD,
    )
    for batch in loader:
        yield len(batch[0])


class _PerImage(Dataset[list[Tensor]]):
    """Each image through a transform for every view, as the two-crop datasets of the field do it."""

    def __init__(self, images: Tensor, transforms: Sequence[Callable[..., Tensor]], as_pil: bool) -> None:
        arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
        # a tensor as a whole: sent to workers one by one, images would take a file descriptor each
        self._images = [Image.fromarray(array) for array in arrays] if as_pil else images
        self._transforms = transforms

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> list[Tensor]:
        return [transform(self._images[row]) for transform in self._transforms]


def source(job: Job) -> Tensor:
    """uint8 ``[N, 3, side, side]``: a folder's training images, digit-scenes, or smooth random pictures."""
    if job.folder is not None:
        side = job.size if job.size < _PHOTOGRAPH // 2 else _PHOTOGRAPH
        images: Images = load_image_set(f"folder:{job.folder}", image_size=side).split("train").images
        return images[: job.images]
    if job.size == 32:
        images = load_image_set("digit-scenes", limit={"train": job.images}).split("train").images
        return images[:]
    return torch.stack([smooth_picture(seed, _PHOTOGRAPH, _PHOTOGRAPH) for seed in range(job.images)])


def smooth_picture(seed: int, height: int, width: int) -> Tensor:
    """Colours that vary at several scales, with a little grain: uint8 ``[3, height, width]``."""
    generator = torch.Generator().manual_seed(seed)
    layers = [(1 / side) * torch.randn(1, 3, side, side, generator=generator) for side in (4, 8, 16, 32, 64)]
    smooth = sum(interpolate(layer, (height, width), mode="bicubic") for layer in layers)
    assert isinstance(smooth, Tensor)
    grain = _JPEG_GRAIN * torch.randn(3, height, width, generator=generator)
    return (128 + 200 * smooth[0] + grain).clamp(0, 255).to(torch.uint8)


class _PillowBlur:
    """The official code's blur: Pillow's, with a standard deviation from U(0.1, 2)."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        if torch.rand(()) >= self.probability:
            return image
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(0.1, 2.0))))


class _PillowSolarize:
    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image) if torch.rand(()) < self.probability else image


def v1_pipeline(policy: ViewPolicy) -> Callable[..., Tensor]:
    """The official Barlow Twins pipeline for one view, of a PIL image."""
    jitter = v1.ColorJitter(policy.brightness, policy.contrast, policy.saturation, policy.hue)
    return v1.Compose(
        [
            v1.RandomResizedCrop(
                policy.size, policy.crop_scale, interpolation=v1.InterpolationMode(policy.interpolation)
            ),
            v1.RandomHorizontalFlip(policy.flip),
            v1.RandomApply([jitter], policy.jitter),
            v1.RandomGrayscale(policy.grayscale),
            *([_PillowBlur(policy.blur)] if policy.blur else []),
            *([_PillowSolarize(policy.solarize)] if policy.solarize else []),
            v1.ToTensor(),
            v1.Normalize(IMAGENET_NORMALISATION.mean, IMAGENET_NORMALISATION.std),
        ]
    )


def v2_pipeline(policy: ViewPolicy) -> Callable[..., Tensor]:
    """The same pipeline by transforms.v2, of a uint8 tensor ``[3, H, W]``."""
    jitter = v2.ColorJitter(policy.brightness, policy.contrast, policy.saturation, policy.hue)
    blur = v2.GaussianBlur(blur_taps(policy.size), policy.blur_sigma)
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                policy.size, policy.crop_scale, interpolation=v2.InterpolationMode(policy.interpolation)
            ),
            v2.RandomHorizontalFlip(policy.flip),
            v2.RandomApply([jitter], policy.jitter),
            v2.RandomGrayscale(policy.grayscale),
            *([v2.RandomApply([blur], policy.blur)] if policy.blur else []),
            *([v2.RandomSolarize(128, policy.solarize)] if policy.solarize else []),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_NORMALISATION.mean, IMAGENET_NORMALISATION.std),
        ]
    )


# Crops from files


def _streamed_batches(job: Job) -> Iterator[int]:
    """Reads batches of crops for ever; yields how many images each was made of."""
    assert job.folder is not None
    policies = asymmetric_views(job.size, "pillow")[: job.views]
    if job.side == "ours":
        images = load_image_set(f"folder:{job.folder}", stream=True).split("train").images
        assert isinstance(images, StreamedImages)
        stream = CropStream(
            images,
            policies,
            _Rows(len(images)),
            partial(seeded_generator, 0, "views"),
            first_step=0,
            total_steps=_ENDLESS,
            workers=job.cores,
        )
        for views in stream:
            yield len(views[0])
    dataset = ImageFolder(str(Path(job.folder, "train")), _Crops(policies))
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=_STREAM_BATCH,
        sampler=RandomSampler(dataset, replacement=True, num_samples=_ENDLESS),
        num_workers=job.cores,
        multiprocessing_context=START_METHOD,
    )
    for _, labels in loader:
        yield len(labels)


class _Rows:
    def __init__(self, images: int) -> None:
        self.images = images

    def __call__(self, step: int) -> Tensor:
        return torch.randint(self.images, (_STREAM_BATCH,), generator=torch.Generator().manual_seed(step))


class _Crops:
    """torchvision's crop and flip for every view, to uint8 tensors."""

    def __init__(self, policies: Sequence[ViewPolicy]) -> None:
        self._views = [
            v1.Compose(
                [
                    v1.RandomResizedCrop(
                        policy.size,
                        policy.crop_scale,
                        interpolation=v1.InterpolationMode(policy.interpolation),
                    ),
                    v1.RandomHorizontalFlip(policy.flip),
                    v1.PILToTensor(),
                ]
            )
            for policy in policies
        ]

    def __call__(self, image: Image.Image) -> list[Tensor]:
        return [view(image) for view in self._views]


def write_jpegs(folder: Path, n: int) -> None:
    """A training folder of ``n`` generated pictures."""
    target = folder / "train" / "pictures"
    target.mkdir(parents=True)
    width, height = _JPEG_SIZE
    for seed in range(n):
        picture = np.ascontiguousarray(smooth_picture(seed, height, width).permute(1, 2, 0).numpy())
        Image.fromarray(picture).save(target / f"{seed:05}.jpg", quality=_JPEG_QUALITY)


# The whole run


def view_jobs(options: argparse.Namespace) -> list[Job]:
    """Every side at every size, on one core and on all."""
    return [
        Job(side, size, cores, options.seconds, options.images, folder=options.folder)
        for size in options.size
        for cores in sorted({1, usable_cores()})
        for side in SIDES
    ]


def stream_jobs(options: argparse.Namespace, folder: str) -> list[Job]:
    """Reading files for one view and for two, by one worker and by two."""
    return [
        Job(side, 224, workers, options.seconds, options.images, views, folder, stream=True)
        for views in (1, 2)
        for workers in (1, 2)
        for side in SIDES[:2]
    ]


def measure_all(jobs: Sequence[Job], repetitions: int) -> Document:
    """Measure every job; returns the document that `render` shows."""
    answers = take_turns(__file__, [(asdict(job), {}) for job in jobs], repetitions)
    rows = []
    for job, repeated in zip(jobs, answers, strict=True):
        shown = {key: value for key, value in asdict(job).items() if key != "folder"}
        rows.append({**shown, "images_per_second": [answer["images_per_second"] for answer in repeated]})
    return {
        "facts": facts(),
        "device": device_description(),
        "repetitions": repetitions,
        "rows": rows,
        "ratios": ratios(rows),
    }


def _case(row: Document) -> str:
    cores = f"{row['cores']} {'worker' if row['stream'] else 'core'}{'s' if row['cores'] > 1 else ''}"
    if row["stream"]:
        return f"{row['views']} view{'s' if row['views'] > 1 else ''}, {cores}"
    return f"{row['size']} px, {cores}"


def ratios(rows: Sequence[Document]) -> dict[str, float]:
    """Ours over each other side, by the medians."""
    medians = {(_case(row), row["side"]): Spread.of(row["images_per_second"]).median for row in rows}
    return {
        f"{case}, ours / {side}": medians[case, "ours"] / median
        for (case, side), median in medians.items()
        if side != "ours"
    }


def render(document: Document) -> str:
    """The table of a document, in Markdown."""
    sides = {"ours": "twinbench", "v1": "torchvision v1 (PIL)", "v2": "torchvision v2 (tensors)"}
    unit = "images/s" if document["rows"][0]["stream"] else "pairs of views/s"
    lines = []
    for row in document["rows"]:
        ratio = document["ratios"].get(f"{_case(row)}, ours / {row['side']}", math.nan)
        lines.append(
            [
                _case(row),
                "ImageFolder" if row["stream"] and row["side"] == "v1" else sides[row["side"]],
                Spread.of(row["images_per_second"]).text(0),
                "" if math.isnan(ratio) else f"{ratio:.2f}",
            ]
        )
    table = markdown_table(["case", "pipeline", f"{unit}, median (min to max)", "twinbench / this"], lines)
    return f"{table}\n\n{footnote(document)}"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", type=positive, nargs="+", default=[32, 224], help="sides of the views in pixels"
    )
    parser.add_argument(
        "--images", type=positive, default=256, help="how many source images (default %(default)s)"
    )
    parser.add_argument("--folder", help="use the images of this folder instead of generated ones")
    parser.add_argument("--stream", action="store_true", help="measure reading JPEG files instead")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement (default %(default)s)")
    parser.add_argument(
        "--repetitions", type=positive, default=5, help="of each measurement (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="write the measurements there as JSON")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    """Measure one job in a fresh process, or all of them and print the table."""
    options = parse(sys.argv[1:])
    if options.job is not None:
        job = Job(**json.loads(options.job))
        print(json.dumps({"images_per_second": rate(job)}))
    elif options.stream:
        with tempfile.TemporaryDirectory() as folder:
            if options.folder is None:
                write_jpegs(Path(folder), options.images)
            document = measure_all(stream_jobs(options, options.folder or folder), options.repetitions)
        publish(document, render(document), "augmentation", options.out, None)
    else:
        document = measure_all(view_jobs(options), options.repetitions)
        publish(document, render(document), "augmentation", options.out, None)


if __name__ == "__main__":
    run_script(main)
