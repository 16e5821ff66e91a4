"""Why the C4 detectors of Detectron2 and torchvision differ on pictures of many small objects.

Trains the detectors of ``detection/c4-detectron2`` and ``detection/c4-torchvision`` with what the libraries do
differently switched over, one thing at a time or several. A row is a library and its switches: with
``torchvision+predictors`` the predictors begin as Detectron2's do, with ``detectron2+predictors`` as torchvision's do;
``torchvision+all`` has every switch, and from the same weights the same detections and losses as Detectron2's. The
images are those of ``digit-crowds``, digits apart from each other, or ``spots``: dim spots in clumps on black, some
pictures bright, as cells look under a microscope (see `spots`).

    twinbench pretrain supervised --image-set digit-scenes        # encoders to start from, and random_init
    python benchmarks/detection_gap.py RUN/encoder ... --rows torchvision torchvision+predictors --seeds 0 1 2 \
        --out detection_gap.jsonl --markdown benchmarks/detection_gap.md

``--share 0.5`` trains for half of the schedule. Every finished training is a line of ``--out``, and is not done again.
Rows that begin with detectron2 need Detectron2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import measure
import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import roi_align

from twinbench.data.catalogue import load_image_set
from twinbench.data.detection import DetectionSplit
from twinbench.downstream.detection.coco_eval import average_precision
from twinbench.downstream.detection.fine_tuning import Detector
from twinbench.downstream.detection.schedules import TINY, Schedule
from twinbench.downstream.detection.torchvision_rcnn import TorchvisionDetector, c4_detector
from twinbench.downstream.randomness import seeded
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.errors import unknown_name

CPU = torch.device("cpu")
SIDE = 256


@dataclass(frozen=True)
class Scenes:
    """What a detector trains on and is measured with."""

    train: DetectionSplit
    test: DetectionSplit
    classes: int


def digit_crowds() -> Scenes:
    """The embedded set, 180 scenes for training and 60 for testing."""
    image_set = load_image_set("digit-crowds")
    train, test = image_set.detection("train"), image_set.detection("test")
    return Scenes(train, test, len(image_set.detection_classes))


def spots() -> Scenes:
    """Pictures of about 31 spots of one class (4 to 120, median side 14 pixels of 256), which touch in clumps.

    180 for training and 30 for testing. Spots are a little brighter than a nearly black ground; of six pictures about
    one is bright, with dark spots.
    """
    return Scenes(_spot_pictures(180, seed=0), _spot_pictures(30, seed=1), 1)


def _spot_pictures(n: int, seed: int) -> DetectionSplit:
    generator = np.random.default_rng(seed)
    pictures, boxes = zip(*(_spot_picture(generator) for _ in range(n)), strict=True)
    labels = [torch.zeros(len(each), dtype=torch.int64) for each in boxes]
    return DetectionSplit(torch.stack(pictures), list(boxes), labels)


def _spot_picture(generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    count = int(np.clip(generator.lognormal(np.log(27), 0.6), 4, 120))
    grey = np.full((SIDE, SIDE), generator.uniform(3, 12))
    boxes: list[list[int]] = []
    scale = generator.uniform(0.75, 1.4)
    clumps = generator.uniform(30, SIDE - 30, (max(2, count // 7), 2))
    taken = np.zeros((SIDE, SIDE), bool)
    for _ in range(12 * count):
        if len(boxes) == count:
            break
        centre = clumps[generator.integers(len(clumps))] + generator.normal(0, 28, 2)
        distance = _distance(centre, generator.uniform(4.5, 9.5, 2) * scale, generator.uniform(0, np.pi))
        inside = distance < 1
        if not (10 < centre[0] < SIDE - 10 and 10 < centre[1] < SIDE - 10) or taken[inside].mean() > 0.08:
            continue
        inside &= ~taken
        taken |= inside
        grey[inside] += generator.uniform(12, 60) * (1.1 - 0.5 * distance[inside])
        rows, columns = np.nonzero(inside)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    grey += generator.normal(0, 1.5, grey.shape)
    bright = generator.random() < 0.18
    colours = [215 - 1.3 * grey, 180 - 1.6 * grey, 210 - 0.9 * grey] if bright else [grey] * 3
    pixels = np.stack(colours, axis=2).clip(0, 255).astype(np.uint8)
    blurred = np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.8)))
    return torch.from_numpy(blurred).permute(2, 0, 1), torch.tensor(boxes, dtype=torch.float32)


def _distance(centre: np.ndarray, axes: np.ndarray, turn: float) -> np.ndarray:
    """Squared distances ``[SIDE, SIDE]`` from the centre of a turned ellipse, 1 on its edge."""
    y, x = np.mgrid[:SIDE, :SIDE]
    across, down = x - centre[0], y - centre[1]
    u = (across * np.cos(turn) + down * np.sin(turn)) / axes[0]
    v = (down * np.cos(turn) - across * np.sin(turn)) / axes[1]
    return np.asarray(u * u + v * v)


IMAGES: dict[str, Callable[[], Scenes]] = {"digit-crowds": cache(digit_crowds), "spots": cache(spots)}


def shortened(schedule: Schedule, share: float) -> Schedule:
    """A share of a schedule: fewer iterations and batches for batch norm's statistics, at the same rates."""
    return replace(
        schedule,
        iterations=round(share * schedule.iterations),
        steps=tuple(round(share * step) for step in schedule.steps),
        warmup_iterations=round(share * schedule.warmup_iterations),
        precise_bn=round(share * schedule.precise_bn),
    )


# What makes torchvision's detector do as Detectron2's does.


def small_predictors(detector: Any) -> None:
    """Begin with weights of deviation 0.01 (classes) and 0.001 (boxes) and no bias; torchvision has a Linear's own."""
    predictor = detector.model.roi_heads.box_predictor
    for layer, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=deviation)
        nn.init.zeros_(layer.bias)


def absolute_loss(module: nn.Module, method: str) -> None:
    """Learn boxes by their absolute error in a method of a module; torchvision's is squared below 1/9."""
    original = getattr(module, method)

    def patched(*args: Any, **options: Any) -> Any:
        with mock.patch.object(F, "smooth_l1_loss", absolute):
            return original(*args, **options)

    def absolute(found: Tensor, expected: Tensor, beta: float, reduction: str) -> Tensor:
        return F.l1_loss(found, expected, reduction=reduction)

    setattr(module, method, patched)


class AlignedPool(nn.Module):
    """RoIAlign with pixels' centres at halves (``ROIAlignV2``); torchvision's has them at whole numbers."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        """Regions ``[n, C, 14, 14]`` of the map res4."""
        regions: Tensor = roi_align(maps["res4"], boxes, 14, 1 / self.stride, sampling_ratio=0, aligned=True)
        return regions


def aligned_regions(detector: Any) -> None:
    """Cut regions as `AlignedPool` does."""
    (stride,) = detector.model.rpn.anchor_generator._strides
    detector.model.roi_heads.box_roi_pool = AlignedPool(stride)


def exact_anchors(detector: Any) -> None:
    """Leave the corners of anchors where they are; torchvision rounds them to whole pixels."""
    generator = detector.model.rpn.anchor_generator
    with mock.patch.object(torch.Tensor, "round", lambda corners: corners):
        generator.cell_anchors = [
            generator.generate_anchors(sizes, ratios)
            for sizes, ratios in zip(generator.sizes, generator.aspect_ratios, strict=True)
        ]


class PillowTransform(GeneralizedRCNNTransform):
    """Pictures resized as uint8 by Pillow, which filters when it shrinks; torchvision's interpolation does not."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> Any:
        """A normalised picture ``[3, H, W]`` and its boxes at the size of Detectron2's ``ResizeShortestEdge``."""
        height, width = image.shape[-2:]
        scale = min(self.min_size[-1] / min(height, width), self.max_size / max(height, width))
        size = (int(height * scale + 0.5), int(width * scale + 0.5))
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
        pixels = (255 * (image * std + mean)).round().to(torch.uint8)
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize(
            size[::-1], Image.Resampling.BILINEAR
        )
        resized = self.normalize(torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255)
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], [height, width], list(size))
        return resized, target


def pillow_resizing(detector: Any) -> None:
    """Resize as `PillowTransform` does."""
    old = detector.model.transform
    detector.model.transform = PillowTransform(old.min_size, old.max_size, old.image_mean, old.image_std)


def every_proposal(detector: Any) -> None:
    """Keep proposals that are thinner than a thousandth of a pixel."""
    detector.model.rpn.min_size = 0.0


# What makes Detectron2's detector do as torchvision's does.


def linear_predictors(detector: Any) -> None:
    """Begin with a Linear's own weights and bias."""
    predictor = detector.model.roi_heads.box_predictor
    predictor.cls_score.reset_parameters()
    predictor.bbox_pred.reset_parameters()


def squared_below_a_ninth(detector: Any) -> None:
    """Learn boxes by torchvision's smooth L1 loss, in proposals and regions."""
    detector.model.proposal_generator.smooth_l1_beta = 1 / 9
    detector.model.roi_heads.box_predictor.smooth_l1_beta = 1 / 9


def legacy_regions(detector: Any) -> None:
    """Cut regions with pixels' centres at whole numbers."""
    for pooler in detector.model.roi_heads.pooler.level_poolers:
        pooler.aligned = False


def rounded_anchors(detector: Any) -> None:
    """Round the corners of anchors to whole pixels."""
    for anchors in detector.model.proposal_generator.anchor_generator.cell_anchors:
        anchors.round_()


SWITCHES: dict[str, dict[str, Callable[[Any], None]]] = {
    "torchvision": {
        "predictors": small_predictors,
        "rpn-loss": lambda detector: absolute_loss(detector.model.rpn, "compute_loss"),
        "box-loss": lambda detector: absolute_loss(detector.model.roi_heads, "forward"),
        "alignment": aligned_regions,
        "anchors": exact_anchors,
        "resizing": pillow_resizing,
        "thin-proposals": every_proposal,
    },
    "detectron2": {
        "predictors": linear_predictors,
        "losses": squared_below_a_ninth,
        "alignment": legacy_regions,
        "anchors": rounded_anchors,
    },
}


def detector_of(row: str, encoder: Encoder, classes: int, schedule: Schedule) -> Detector:
    """The detector of a row, untrained; raises InputError for an unknown library or switch."""
    library, *switches = row.split("+")
    if library not in SWITCHES:
        raise unknown_name("library", library, SWITCHES)
    detector: Any
    if library == "torchvision":
        detector = TorchvisionDetector(c4_detector(encoder, classes, schedule), schedule, CPU)
    else:
        from twinbench.downstream.detection.d2.detector import Detectron2Detector

        detector = Detectron2Detector(encoder, schedule, classes, False, CPU)
    for switch in SWITCHES[library] if switches == ["all"] else switches:
        if switch not in SWITCHES[library]:
            raise unknown_name("switch", switch, SWITCHES[library], where=library)
        SWITCHES[library][switch](detector)
    return detector


def average_precision_of(
    row: str, encoder: Encoder, scenes: Scenes, seed: int, schedule: Schedule
) -> dict[str, float]:
    """Box AP of a row's detector after its training, as the protocols measure it."""
    with seeded(seed, CPU):
        detector = detector_of(row, encoder, scenes.classes, schedule)
        for _ in detector.train(scenes.train, seed):
            pass
        detections = [detector.detect(image) for image in scenes.test.images]
    return average_precision(scenes.test, detections, scenes.classes)


def tables(measured: list[dict[str, Any]]) -> str:
    """Markdown: for each kind of images and share of the schedule a table of the mean box AP over seeds."""
    settings = dict.fromkeys((each["images"], each["share"]) for each in measured)
    parts = []
    for images, share in settings:
        mine = [each for each in measured if (each["images"], each["share"]) == (images, share)]
        length = "the whole schedule" if share == 1 else f"{share:g} of the schedule"
        parts.append(f"{images}, {length}:\n\n{_table(mine)}")
    return "\n\n".join(parts)


def _table(measured: list[dict[str, Any]]) -> str:
    methods = list(dict.fromkeys(each["encoder"] for each in measured))
    rows = []
    for row in dict.fromkeys(each["row"] for each in measured):
        mine = [each for each in measured if each["row"] == row]
        cells = [_cell([each["box_ap"] for each in mine if each["encoder"] == method]) for method in methods]
        rows.append([row, *cells])
    return measure.markdown_table(["detector", *methods], rows)


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} ({len(values)})"


def page(measured: list[dict[str, Any]]) -> str:
    """The tables with what they are, and where they were measured."""
    known = measure.facts()
    return f"""# The gap between two C4 detectors

Generated by `python benchmarks/detection_gap.py`, whose head explains images, rows and switches. Box AP on the test
images after the schedule for CPUs or a share of it, from one encoder each: the mean over seeds of the detector's
training, the standard deviation over them, and their number. A row of one seed is a first look. `torchvision-v1` is
version 1 of the protocol, whose final variance of batch norm was the mean of the batches' variances.

{tables(measured)}

{measure.device_description()}; {known["machine"]}; Python {known["python"]}, torch {known["torch"]}, torchvision
{known["torchvision"]}.
"""


def main() -> None:
    """Do the trainings that are not done, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "encoders", type=Path, nargs="*", help="folders of encoders; none: only print the tables"
    )
    parser.add_argument("--images", choices=list(IMAGES), default="digit-crowds")
    parser.add_argument(
        "--rows", nargs="*", default=["detectron2", "torchvision"], help="libraries with switches"
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the schedule")
    parser.add_argument("--out", type=Path, required=True, help="one line of JSON for each training; grows")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    arguments = parser.parse_args()
    measured = (
        [json.loads(line) for line in arguments.out.read_text().splitlines()]
        if arguments.out.exists()
        else []
    )
    for job, encoder in _jobs(arguments, measured):
        started = time.monotonic()
        schedule = shortened(TINY, arguments.share)
        found = average_precision_of(job["row"], encoder, IMAGES[arguments.images](), job["seed"], schedule)
        measured.append({**job, **found})
        with arguments.out.open("a") as out:
            out.write(json.dumps(measured[-1]) + "\n")
        print(measured[-1], f"{time.monotonic() - started:.0f} s", flush=True)
    print(tables(measured))
    if arguments.markdown:
        arguments.markdown.write_text(page(measured))


def _jobs(
    arguments: argparse.Namespace, measured: list[dict[str, Any]]
) -> list[tuple[dict[str, Any], Encoder]]:
    """The trainings that are asked for and not done, each with its encoder."""
    encoders = [Encoder.load(folder) for folder in arguments.encoders]
    jobs = [
        (
            {
                "images": arguments.images,
                "share": arguments.share,
                "row": row,
                "encoder": e.info.method,
                "seed": seed,
            },
            e,
        )
        for seed in arguments.seeds
        for row in arguments.rows
        for e in encoders
    ]
    return [(job, e) for job, e in jobs if not any(job.items() <= each.items() for each in measured)]


if __name__ == "__main__":
    measure.run_script(main)
