"""COCO average precision of boxes and masks, computed by pycocotools on objects in memory."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools import mask as run_length
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from data.errors import InputError
from data.image_sets import DetectionSplit


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image: boxes ``[n, 4]`` as x1, y1, x2, y2 in pixels, scores ``[n]``,
    0-based labels ``[n]`` and masks ``[n, H, W]`` (bool)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor


def average_precision(
    truth: DetectionSplit, detections: Sequence[Detections], classes: int
) -> dict[str, float]:
    """AP, AP50 and AP75 of boxes and of masks, in percent, as ``box_ap``, ``box_ap50`` ... ``mask_ap75``.

    AP is COCO's: the mean over IoU 0.50, 0.55 ... 0.95 and over the classes that occur, with at most 100
    detections an image. Raises InputError where the ground truth holds no object at all, for which the AP is
    not defined, and ValueError where the numbers of images differ.
    """
    if len(detections) != len(truth.images):
        raise ValueError(f"detections of {len(detections)} images for {len(truth.images)} images")
    if not any(len(labels) for labels in truth.labels):
        raise InputError(
            "average precision is not defined: the ground truth has no objects",
            next_step="check the annotations of the test split",
        )
    # pycocotools prints its progress to standard output, which belongs to the command.
    with contextlib.redirect_stdout(io.StringIO()):
        expected = _coco(truth, classes, _truth_annotations(truth))
        found = _coco(truth, classes, _detection_annotations(detections))
        results = {}
        for kind, name in (("bbox", "box"), ("segm", "mask")):
            evaluation = COCOeval(expected, found, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            for metric, value in zip(("ap", "ap50", "ap75"), evaluation.stats, strict=False):
                results[f"{name}_{metric}"] = 100 * float(value)
    return results


def _coco(truth: DetectionSplit, classes: int, annotations: Iterable[dict[str, Any]]) -> COCO:
    height, width = truth.images.shape[-2:]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "height": height, "width": width} for i in range(len(truth.images))],
        "categories": [{"id": c} for c in range(classes)],
        # Identifiers start at 1: COCOeval takes the identifier 0 for "not matched".
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco


def _truth_annotations(truth: DetectionSplit) -> Iterable[dict[str, Any]]:
    for image, (boxes, labels, masks) in enumerate(zip(truth.boxes, truth.labels, truth.masks, strict=True)):
        for annotation in _annotations(image, boxes, labels, masks):
            yield {**annotation, "iscrowd": 0}


def _detection_annotations(detections: Sequence[Detections]) -> Iterable[dict[str, Any]]:
    for image, found in enumerate(detections):
        annotations = _annotations(image, found.boxes, found.labels, found.masks)
        for annotation, score in zip(annotations, found.scores.tolist(), strict=True):
            yield {**annotation, "score": score}


def _annotations(image: int, boxes: Tensor, labels: Tensor, masks: Tensor) -> Iterable[dict[str, Any]]:
    if not len(boxes):
        return
    sizes = boxes[:, 2:] - boxes[:, :2]
    # encode wants [H, W, n] in column order.
    encoded = run_length.encode(np.asfortranarray(masks.permute(1, 2, 0).to(torch.uint8).numpy()))
    boxes_xywh = torch.cat([boxes[:, :2], sizes], dim=1).double().tolist()
    for box, label, code in zip(boxes_xywh, labels.tolist(), encoded, strict=True):
        yield {
            "image_id": image,
            "category_id": label,
            "bbox": box,
            "area": box[2] * box[3],
            "segmentation": code,
        }
