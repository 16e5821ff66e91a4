"""Pascal VOC average precision of boxes, with the metric of 2007 (eleven points) or of 2010 (the whole curve).

Follows the devkit as Detectron2's PascalVOCDetectionEvaluator implements it: pixel coordinates are 1-based and
inclusive, scores are rounded to three decimals and boxes to one, a detection belongs to the object that it overlaps
most, and one that belongs to a difficult object counts neither as right nor as wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twinbench.data.detection import DetectionSplit
from twinbench.downstream.detection.coco_eval import THRESHOLDS, Detections, require_objects


@dataclass(frozen=True)
class _Objects:
    """The objects of one class in one image: boxes ``[n, 4]``, 1-based and inclusive, and which are difficult."""

    boxes: np.ndarray
    difficult: np.ndarray


def voc_average_precision(
    truth: DetectionSplit, detections: Sequence[Detections], classes: int, eleven_points: bool = True
) -> dict[str, float]:
    """``box_ap``, ``box_ap50`` and ``box_ap75`` in percent.

    AP is the mean over the classes that occur, at IoU 0.50, 0.55 ... 0.95 and over those; ``eleven_points`` takes the
    metric of VOC 2007 at each of them. Raises InputError if no object counts, for which the AP is not defined, and
    ValueError where the numbers of images differ.
    """
    if len(detections) != len(truth):
        raise ValueError(f"detections of {len(detections)} images for {len(truth)} images")
    require_objects(truth)
    curves = []
    for label in range(classes):
        objects = _objects_of(truth, label)
        if any((~each.difficult).any() for each in objects):
            found = _ranked(detections, label)
            curves.append([_class_ap(objects, found, iou, eleven_points) for iou in THRESHOLDS])
    by_threshold = 100 * np.mean(curves, axis=0)
    return {
        "box_ap": float(by_threshold.mean()),
        "box_ap50": float(by_threshold[THRESHOLDS.index(0.5)]),
        "box_ap75": float(by_threshold[THRESHOLDS.index(0.75)]),
    }


def resampled_voc_average_precision(
    truth: DetectionSplit, detections: Sequence[Detections], classes: int, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """What the metric of 2007 would be, float64 ``[r]`` by metric, of images that occur ``weights`` ``[r, N]`` times.

    A class of which no object is left does not count.
    """
    curves = []
    for label in range(classes):
        objects = _objects_of(truth, label)
        counts = weights @ np.array([int((~each.difficult).sum()) for each in objects])
        if counts.any():
            found = _ranked(detections, label)
            curves.append([_resampled_class_ap(objects, found, iou, weights, counts) for iou in THRESHOLDS])
    by_threshold = 100 * np.nanmean(curves, axis=0)
    return {
        "box_ap": by_threshold.mean(axis=0),
        "box_ap50": by_threshold[THRESHOLDS.index(0.5)],
        "box_ap75": by_threshold[THRESHOLDS.index(0.75)],
    }


def _resampled_class_ap(
    objects: list[_Objects],
    found: tuple[np.ndarray, np.ndarray],
    iou: float,
    weights: np.ndarray,
    counts: np.ndarray,
) -> np.ndarray:
    """The eleven-point AP of a class for each resample, float64 ``[r]``; NaN where it has no object."""
    right, wrong = _judged(objects, found, iou)
    result = np.full(len(weights), np.nan)
    for r in np.flatnonzero(counts):  # one by one: all at once would take gigabytes for many detections
        often = weights[r, found[0]]
        hits, misses = np.cumsum(often * right), np.cumsum(often * wrong)
        precision = hits / np.maximum(hits + misses, np.finfo(np.float64).eps)
        result[r] = _eleven_point_ap(hits / counts[r], precision)
    return result


def _objects_of(truth: DetectionSplit, label: int) -> list[_Objects]:
    objects = []
    for image, (boxes, labels) in enumerate(zip(truth.boxes, truth.labels, strict=True)):
        mine = (labels == label).numpy()
        one_based = boxes.double().numpy()[mine] + (1, 1, 0, 0)
        objects.append(_Objects(one_based, truth.ignored(image).numpy()[mine]))
    return objects


def _ranked(detections: Sequence[Detections], label: int) -> tuple[np.ndarray, np.ndarray]:
    """The detections of a class, best first: image numbers ``[n]`` and 1-based boxes ``[n, 4]``."""
    images, scores, boxes = [np.zeros(0, int)], [np.zeros(0)], [np.zeros((0, 4))]
    for image, found in enumerate(detections):
        mine = found.labels == label
        images.append(np.full(int(mine.sum()), image))
        scores.append(_rounded(found.scores[mine].numpy(), 3))
        # Shifted in single precision and then rounded, as the reference does.
        boxes.append(
            _rounded(found.boxes[mine].float().numpy() + np.array((1, 1, 0, 0), np.float32), 1).reshape(-1, 4)
        )
    # The default sort, though it is not stable: rounding makes ties, and the reference breaks them this way.
    order = np.argsort(-np.concatenate(scores))
    return np.concatenate(images)[order], np.concatenate(boxes)[order]


def _rounded(values: np.ndarray, decimals: int) -> np.ndarray:
    """Rounded as by printing, which for halves differs from numpy's rounding in binary."""
    return np.array([float(f"{value:.{decimals}f}") for value in values.ravel().tolist()]).reshape(
        values.shape
    )


def _class_ap(
    objects: list[_Objects], found: tuple[np.ndarray, np.ndarray], iou: float, eleven_points: bool
) -> float:
    right, wrong = _judged(objects, found, iou)
    true_positives, false_positives = np.cumsum(right), np.cumsum(wrong)
    recall = true_positives / sum((~each.difficult).sum() for each in objects)
    # A first detection on a difficult object is neither: precision 0 then, not 0 / 0.
    precision = true_positives / np.maximum(true_positives + false_positives, np.finfo(np.float64).eps)
    return _eleven_point_ap(recall, precision) if eleven_points else _area(recall, precision)


def _judged(
    objects: list[_Objects], found: tuple[np.ndarray, np.ndarray], iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections are right and which are wrong, float ``[n]`` each, by descending score."""
    taken = [np.zeros(len(each.boxes), bool) for each in objects]
    right, wrong = np.zeros(len(found[0])), np.zeros(len(found[0]))
    for rank, (image, box) in enumerate(zip(*found, strict=True)):
        overlaps = _overlaps(objects[image].boxes, box)
        best = int(overlaps.argmax()) if len(overlaps) else -1
        if best < 0 or not overlaps[best] > iou:
            wrong[rank] = 1
        elif not objects[image].difficult[best]:
            (wrong if taken[image][best] else right)[rank] = 1
            taken[image][best] = True
    return right, wrong


def _overlaps(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union ``[n]`` of boxes with inclusive edges ``[n, 4]`` and one box."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = np.maximum(high - low + 1, 0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1)
    return shared / ((box[2:] - box[:2] + 1).prod() + areas - shared)


def _eleven_point_ap(recall: np.ndarray, precision: np.ndarray) -> float:
    """The mean of the best precision at recall of at least 0, 0.1 ... 1 (VOC 2007)."""
    # Not linspace: 3 * 0.1 is a little more than 0.3, and the reference does not count a recall of exactly 0.3 there.
    points = np.arange(0.0, 1.1, 0.1)
    return float(np.mean([precision[recall >= point].max(initial=0.0) for point in points]))


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    """The area under the monotone envelope of the curve (VOC 2010 and later)."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())
