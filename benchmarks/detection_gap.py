"""Why the C4 detectors of Detectron2 and torchvision differ on pictures of many small objects.

Trains the detectors of ``detection/c4-detectron2`` and ``detection/c4-torchvision`` on ``digit-crowds`` with what the
libraries do differently switched over, one thing at a time or several. A row is a library and its switches: with
``torchvision+predictors`` the predictors begin as Detectron2's do, with ``detectron2+predictors`` as torchvision's do;
``torchvision+all`` has every switch.

    twinbench pretrain supervised --image-set digit-scenes        # encoders to start from, and random_init
    python benchmarks/detection_gap.py RUN/encoder ... --rows torchvision torchvision+predictors --seeds 3 \
        --out detection_gap.jsonl --markdown benchmarks/detection_gap.md

Every finished training is a line of ``--out``, and is not done again. Rows that begin with detectron2 need Detectron2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import measure
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import roi_align

from twinbench.data.catalogue import load_image_set
from twinbench.data.image_sets import ImageSet
from twinbench.downstream.detection.coco_eval import average_precision
from twinbench.downstream.detection.fine_tuning import Detector
from twinbench.downstream.detection.schedules import TINY
from twinbench.downstream.detection.torchvision_rcnn import TorchvisionDetector, c4_detector
from twinbench.downstream.randomness import seeded
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.errors import unknown_name

IMAGE_SET = "digit-crowds"
CPU = torch.device("cpu")


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


def pooled_statistics(detector: Any) -> None:
    """Batch norm's final variance over all batches together, as fvcore has it; ours is the batches' mean variance."""
    detector._estimate_statistics = partial(_pool_statistics, detector.model)


@torch.no_grad()
def _pool_statistics(model: nn.Module, batches: Any) -> None:
    model.train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    sums = {
        norm: [0.0, torch.zeros_like(norm.running_mean), torch.zeros_like(norm.running_mean)]
        for norm in norms
    }

    def add(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        x = inputs[0].double().transpose(0, 1).flatten(1)
        kept = sums[norm]
        kept[0] += x.shape[1]
        kept[1] = kept[1] + x.sum(1)
        kept[2] = kept[2] + x.square().sum(1)

    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    for images, targets in batches:
        model(images, targets)
    for hook, (norm, (n, total, squares)) in zip(hooks, sums.items(), strict=True):
        hook.remove()
        norm.running_mean = (total / n).float()
        norm.running_var = (squares / n - (total / n) ** 2).float()


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
        "statistics": pooled_statistics,
    },
    "detectron2": {
        "predictors": linear_predictors,
        "losses": squared_below_a_ninth,
        "alignment": legacy_regions,
        "anchors": rounded_anchors,
    },
}


def detector_of(row: str, encoder: Encoder, classes: int) -> Detector:
    """The detector of a row, untrained; raises InputError for an unknown library or switch."""
    library, *switches = row.split("+")
    if library not in SWITCHES:
        raise unknown_name("library", library, SWITCHES)
    detector: Any
    if library == "torchvision":
        detector = TorchvisionDetector(c4_detector(encoder, classes, TINY), TINY, CPU)
    else:
        from twinbench.downstream.detection.d2.detector import Detectron2Detector

        detector = Detectron2Detector(encoder, TINY, classes, False, CPU)
    for switch in SWITCHES[library] if switches == ["all"] else switches:
        if switch not in SWITCHES[library]:
            raise unknown_name("switch", switch, SWITCHES[library], where=library)
        SWITCHES[library][switch](detector)
    return detector


def average_precision_of(row: str, encoder: Encoder, image_set: ImageSet, seed: int) -> dict[str, float]:
    """Box AP of a row's detector after its training, as the protocols measure it."""
    train, test = image_set.detection("train"), image_set.detection("test")
    with seeded(seed, CPU):
        detector = detector_of(row, encoder, len(image_set.detection_classes))
        for _ in detector.train(train, seed):
            pass
        detections = [detector.detect(image) for image in test.images]
    return average_precision(test, detections, len(image_set.detection_classes))


def table(measured: list[dict[str, Any]]) -> str:
    """Markdown: for each row the mean box AP over seeds from each encoder, its deviation, and the number of seeds."""
    methods = list(dict.fromkeys(each["encoder"] for each in measured))
    rows = []
    for row in dict.fromkeys(each["row"] for each in measured):
        cells = [row]
        for method in methods:
            values = [each["box_ap"] for each in measured if (each["row"], each["encoder"]) == (row, method)]
            cells.append(_cell(values))
        rows.append(cells)
    return measure.markdown_table(["detector", *methods], rows)


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} ({len(values)})"


def page(measured: list[dict[str, Any]]) -> str:
    """The table with what it is, and where it was measured."""
    known = measure.facts()
    return f"""# The gap between two C4 detectors

Generated by `python benchmarks/detection_gap.py`, whose head explains rows and switches. Box AP on the 60 test scenes
of `{IMAGE_SET}` after the schedule for CPUs on its 180 training scenes, from one encoder each: the mean over seeds of
the detector's training, the standard deviation over them, and their number. A row of one seed is a first look.

{table(measured)}

{measure.device_description()}; {known["machine"]}; Python {known["python"]}, torch {known["torch"]}, torchvision
{known["torchvision"]}.
"""


def main() -> None:
    """Do the trainings that are not done, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoders", type=Path, nargs="+", help="folders of encoders")
    parser.add_argument(
        "--rows", nargs="*", default=["detectron2", "torchvision"], help="libraries with switches"
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--out", type=Path, required=True, help="one line of JSON for each training; grows")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    arguments = parser.parse_args()
    measured = (
        [json.loads(line) for line in arguments.out.read_text().splitlines()]
        if arguments.out.exists()
        else []
    )
    image_set = load_image_set(IMAGE_SET)
    for seed in arguments.seeds:
        for row in arguments.rows:
            for encoder in map(Encoder.load, arguments.encoders):
                job = {"row": row, "encoder": encoder.info.method, "seed": seed}
                if any(job.items() <= each.items() for each in measured):
                    continue
                started = time.monotonic()
                measured.append({**job, **average_precision_of(row, encoder, image_set, seed)})
                with arguments.out.open("a") as out:
                    out.write(json.dumps(measured[-1]) + "\n")
                print(measured[-1], f"{time.monotonic() - started:.0f} s", flush=True)
    print(table(measured))
    if arguments.markdown:
        arguments.markdown.write_text(page(measured))


if __name__ == "__main__":
    measure.run_script(main)
