"""COCO average precision of boxes and masks of objects in memory.

Computed by faster-coco-eval where it is installed, in a fraction of the time, else by pycocotools, with equal numbers.
The environment in a record has the version of faster-coco-eval if it was that.

An object that is ignored, a crowd or a difficult one, counts as a crowd: it is not missed when nothing finds it, and
detections inside it are excused.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_codec
from pycocotools.cocoeval import COCOeval as MatchingEvaluation
from torch import Tensor

from twinbench.data.coco import LARGEST_COORDINATE, LONGEST_SIDE, runs_of
from twinbench.data.detection import DetectionSplit
from twinbench.foundation.errors import InputError

try:
    from faster_coco_eval import COCO
    from faster_coco_eval import COCOeval_faster as COCOeval
except ImportError:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

_log = logging.getLogger(__name__)

THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
_KINDS = (("bbox", "box"), ("segm", "mask"))
MOST_OF_CLASS = 100
"""How many detections of a class in a picture COCO's AP counts, the best (the last of COCOeval's maxDets)."""
_AT_ONCE = 20  # resampled test sets: for all at once, as many detections as COCO's persons take 1.5 GB


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image: boxes ``[n, 4]`` as x1, y1, x2, y2 in pixels, scores ``[n]``,
    0-based labels ``[n]`` and, if it finds masks, n `run_lengths`: all the masks of a test split as pixels would not
    fit in memory."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: list[dict[str, Any]] | None = None


def run_lengths(masks: Tensor) -> list[dict[str, Any]]:
    """COCO run lengths of bool masks ``[n, H, W]`` on the CPU, as ``pycocotools.mask`` encodes them."""
    # encode wants [H, W] in column order.
    return [mask_codec.encode(np.asfortranarray(mask.numpy(), np.uint8)) for mask in masks]


def pixel_masks(encoded: Sequence[dict[str, Any]]) -> Tensor:
    """The bool masks ``[n, H, W]`` of at least one of COCO's run lengths."""
    return torch.stack([torch.from_numpy(mask_codec.decode(mask).astype(bool)) for mask in encoded])


def require_objects(truth: DetectionSplit) -> None:
    """Raise InputError if no object counts, being neither crowd nor difficult: the AP is not defined for it."""
    if all(truth.ignored(i).all() for i in range(len(truth))):
        raise InputError(
            "average precision is not defined: the ground truth has no objects that count",
            next_step="check the annotations of the test split",
        )


def evaluation_remarks(truth: DetectionSplit, classes: int) -> tuple[str, ...]:
    """What COCO's limit of 100 detections cuts off where pictures have more objects of a class; a warning as well.

    The evaluation applies the limit to each image and category. Objects that are ignored do not count.
    """
    counting = [~truth.ignored(i) for i in range(len(truth))]
    perfect = [
        Detections(boxes[mine], torch.ones(len(boxes[mine])), labels[mine])
        for boxes, labels, mine in zip(truth.boxes, truth.labels, counting, strict=True)
    ]
    most = [int(torch.bincount(found.labels, minlength=classes).max()) for found in perfect]
    pictures = sum(objects > MOST_OF_CLASS for objects in most)
    if not pictures:
        return ()
    reached = average_precision(replace(truth, masks=None), perfect, classes)["box_ap"]
    remark = (
        f"COCO's AP counts at most {MOST_OF_CLASS} detections of a class in an image, and {pictures} of {len(truth)} "
        f"test images have more objects of a class (up to {max(most)}): perfect detections would reach a box AP of "
        f"{reached:.2f}"
    )
    _log.warning("%s", remark)
    return (remark,)


def average_precision(
    truth: DetectionSplit, detections: Sequence[Detections], classes: int
) -> dict[str, float]:
    """AP, AP50 and AP75 of boxes and of masks, in percent, as ``box_ap``, ``box_ap50`` ... ``mask_ap75``.

    The masks' are left out where ground truth or detections have none.

    AP is COCO's: the mean over IoU 0.50, 0.55 ... 0.95 and over the classes that occur, with at most 100
    detections of a class an image. Raises InputError if the ground truth holds no object that counts, for which the
    AP is not defined, and ValueError where the numbers of images differ.
    """
    if len(detections) != len(truth.images):
        raise ValueError(f"detections of {len(detections)} images for {len(truth.images)} images")
    require_objects(truth)
    results = {}
    # pycocotools prints its progress to standard output, which belongs to the command.
    with contextlib.redirect_stdout(io.StringIO()):
        for name, evaluation in _evaluations(COCOeval, truth, detections, classes):
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            for metric, value in zip(("ap", "ap50", "ap75"), evaluation.stats, strict=False):
                results[f"{name}_{metric}"] = 100 * float(value)
    return results


def resampled_average_precision(
    truth: DetectionSplit, detections: Sequence[Detections], classes: int, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """What `average_precision` would be, float64 ``[r]`` by metric, of images that occur ``weights`` ``[r, N]`` times.

    Detections are matched to objects once, by pycocotools; a class of which no object is left does not count.
    """
    results = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for name, evaluation in _evaluations(MatchingEvaluation, truth, detections, classes):
            evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
            evaluation.params.maxDets = [MOST_OF_CLASS]
            evaluation.evaluate()
            by_class = np.array(evaluation.evalImgs, dtype=object).reshape(classes, len(truth))
            recalls = evaluation.params.recThrs
            curves = np.stack([_weighted_precision(row, weights, recalls) for row in by_class])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # a resample without any object: NaN
                by_threshold = 100 * np.nanmean(curves, axis=0)
            results[f"{name}_ap"] = by_threshold.mean(axis=0)
            for metric, place in (("ap50", 0), ("ap75", 5)):
                results[f"{name}_{metric}"] = by_threshold[place]
    return results


def _evaluations(
    evaluator: Callable[..., Any], truth: DetectionSplit, detections: Sequence[Detections], classes: int
) -> Iterator[tuple[str, Any]]:
    """What evaluates boxes, and masks where both have them, each with its name in metrics."""
    masked = truth.masks is not None and all(found.masks is not None for found in detections)
    expected = _coco(truth, classes, _truth_annotations(truth, masked))
    found = _coco(truth, classes, _detection_annotations(detections, masked))
    for kind, name in _KINDS[: 1 + masked]:
        yield name, evaluator(expected, found, kind)


def _weighted_precision(matched: Any, weights: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """The mean interpolated precision of a class at every IoU, float64 ``[t, r]``; NaN where it has no object.

    ``matched`` is what pycocotools says of each image, objects ``[images]``.
    """
    there = [image for image, found in enumerate(matched) if found is not None]
    if not there:
        return np.full((len(THRESHOLDS), len(weights)), np.nan)
    objects = weights[:, there] @ np.array([(matched[i]["gtIgnore"] == 0).sum() for i in there])
    scores = np.concatenate([matched[i]["dtScores"] for i in there])
    order = np.argsort(-scores, kind="mergesort")
    images = np.repeat(there, [len(matched[i]["dtScores"]) for i in there])[order]
    hit = np.concatenate([matched[i]["dtMatches"] for i in there], axis=1)[:, order] != 0
    counts = np.concatenate([matched[i]["dtIgnore"] for i in there], axis=1)[:, order] == 0
    blocks = [slice(first, first + _AT_ONCE) for first in range(0, len(weights), _AT_ONCE)]
    return np.concatenate(
        [_interpolated(weights[block, images], objects[block], hit, counts, recalls) for block in blocks],
        axis=1,
    )


def _interpolated(
    often: np.ndarray, objects: np.ndarray, hit: np.ndarray, counts: np.ndarray, recalls: np.ndarray
) -> np.ndarray:
    """The mean over ``recalls`` of the interpolated precision, float64 ``[t, r]``; NaN where there is no object.

    ``often`` ``[r, d]`` is how often each detection is there, the best first, and ``objects`` ``[r]`` how many there
    are; ``hit`` and ``counts`` ``[t, d]`` say which detections are right and which are judged.
    """
    result = np.full((len(hit), len(often)), np.nan)
    for t in range(len(hit)):
        right = np.cumsum(often * (hit[t] & counts[t]), axis=1)
        wrong = np.cumsum(often * (~hit[t] & counts[t]), axis=1)
        precision = right / np.maximum(right + wrong, np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.pad(envelope, ((0, 0), (0, 1)))  # no precision at a recall that is not reached
        for r in np.flatnonzero(objects):
            places = np.searchsorted(right[r] / objects[r], recalls, side="left")
            result[t, r] = padded[r, places].mean()
    return result


def coco_results(detections: Sequence[Detections]) -> list[dict[str, Any]]:
    """COCO's results format: ``image_id`` is the place of the image in its split, ``category_id`` that of the class."""
    masked = all(found.masks is not None for found in detections)
    results = []
    for annotation in _detection_annotations(detections, masked):
        del annotation["area"]
        results.append(_as_json(annotation))
    return results


def coco_ground_truth(truth: DetectionSplit, class_names: Sequence[str]) -> dict[str, Any]:
    """COCO's annotation format with the numbers of `coco_results`; ignored objects are crowds, as they count here."""
    annotations = []
    for number, annotation in enumerate(_truth_annotations(truth, truth.masks is not None), start=1):
        annotations.append({"id": number, **_as_json(annotation)})
    sizes = [truth.size(i) for i in range(len(truth))]
    return {
        "images": [{"id": i, "height": height, "width": width} for i, (height, width) in enumerate(sizes)],
        "categories": [{"id": place, "name": name} for place, name in enumerate(class_names)],
        "annotations": annotations,
    }


def _as_json(annotation: dict[str, Any]) -> dict[str, Any]:
    """An annotation whose run lengths, if it has any, are text and not bytes."""
    if "segmentation" not in annotation:
        return annotation
    code = annotation["segmentation"]
    text = {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}
    return {**annotation, "segmentation": text}


def from_coco_results(results: Sequence[dict[str, Any]], images: int) -> list[Detections]:
    """The detections in COCO's results format, with float64 boxes, of so many images.

    Raises InputError for a detection in an image that is none of them, and for what is no detection.
    """
    by_image: list[list[dict[str, Any]]] = [[] for _ in range(images)]
    for place, result in enumerate(results):
        if not _is_detection(result):
            raise InputError(
                "not a detection with image_id, category_id, bbox and score, and a mask of its size if any",
                where=f"detection {place}",
                next_step="evaluate the encoder again",
            )
        if result["image_id"] not in range(images):
            raise InputError(
                f"a detection is in image {result['image_id']}, and there are {images}",
                where=f"detection {place}",
                next_step="evaluate the encoder again",
            )
        by_image[result["image_id"]].append(result)
    return [_detections(found) for found in by_image]


def _is_detection(result: object) -> bool:
    """Whether it is whole: pycocotools reads beyond a mask that is cut short."""
    if not isinstance(result, dict):
        return False
    box, score, code = result.get("bbox"), result.get("score"), result.get("segmentation")
    return (
        all(type(result.get(key)) is int and abs(result[key]) < 2**31 for key in ("image_id", "category_id"))
        and isinstance(box, list)
        and len(box) == 4
        and all(
            type(number) in (int, float) and abs(number) <= LARGEST_COORDINATE for number in (*box, score)
        )
        and ("segmentation" not in result or _is_mask(code))
    )


def _is_mask(code: object) -> bool:
    if not isinstance(code, dict) or not isinstance(code.get("counts"), str):
        return False
    size = code.get("size")
    if (
        not isinstance(size, list)
        or len(size) != 2
        or not all(type(n) is int and 0 < n <= LONGEST_SIDE for n in size)
    ):
        return False
    try:
        return sum(runs_of(code["counts"])) == size[0] * size[1]
    except ValueError:
        return False


def _detections(found: Sequence[dict[str, Any]]) -> Detections:
    boxes = torch.tensor([result["bbox"] for result in found], dtype=torch.float64).reshape(-1, 4)
    masks = None
    if all("segmentation" in result for result in found):
        codes = [result["segmentation"] for result in found]
        masks = [{"size": code["size"], "counts": code["counts"].encode("ascii")} for code in codes]
    return Detections(
        torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
        torch.tensor([result["score"] for result in found], dtype=torch.float32),
        torch.tensor([result["category_id"] for result in found], dtype=torch.int64),
        masks,
    )


def _coco(truth: DetectionSplit, classes: int, annotations: Iterable[dict[str, Any]]) -> COCO:
    sizes = [truth.size(i) for i in range(len(truth))]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "height": height, "width": width} for i, (height, width) in enumerate(sizes)],
        "categories": [{"id": c} for c in range(classes)],
        # Identifiers start at 1: COCOeval takes the identifier 0 for "not matched".
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco


def _truth_annotations(truth: DetectionSplit, masked: bool) -> Iterable[dict[str, Any]]:
    for image, (boxes, labels) in enumerate(zip(truth.boxes, truth.labels, strict=True)):
        masks = run_lengths(truth.masks[image]) if masked and truth.masks is not None else None
        annotations = _annotations(image, boxes, labels, masks)
        for annotation, ignored in zip(annotations, truth.ignored(image).tolist(), strict=True):
            yield {**annotation, "iscrowd": int(ignored)}


def _detection_annotations(detections: Sequence[Detections], masked: bool) -> Iterable[dict[str, Any]]:
    for image, found in enumerate(detections):
        annotations = _annotations(image, found.boxes, found.labels, found.masks if masked else None)
        for annotation, score in zip(annotations, found.scores.tolist(), strict=True):
            yield {**annotation, "score": score}


def _annotations(
    image: int, boxes: Tensor, labels: Tensor, masks: list[dict[str, Any]] | None
) -> Iterable[dict[str, Any]]:
    sizes = boxes[:, 2:] - boxes[:, :2]
    boxes_xywh = torch.cat([boxes[:, :2], sizes], dim=1).double().tolist()
    for i, (box, label) in enumerate(zip(boxes_xywh, labels.tolist(), strict=True)):
        # COCOeval asks for the area, but only AP of small, medium and large objects depends on it.
        annotation = {"image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3]}
        if masks is not None:
            annotation["segmentation"] = masks[i]
        yield annotation
