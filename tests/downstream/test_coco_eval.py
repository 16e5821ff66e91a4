import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from twinbench.data.image_sets import DetectionSplit
from twinbench.downstream.detection import coco_eval, small_mask_rcnn
from twinbench.downstream.detection.coco_eval import (
    MOST_OF_CLASS,
    Detections,
    average_precision,
    evaluation_remarks,
    run_lengths,
)
from twinbench.downstream.detection.schedules import TINY
from twinbench.downstream.detection.torchvision_rcnn import C4Torchvision
from twinbench.downstream.protocol import EvaluationContext
from twinbench.foundation.errors import InputError

SIDE = 40


def filled(boxes):
    masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def scenes(*boxes_and_labels):
    return DetectionSplit(
        images=torch.zeros(len(boxes_and_labels), 3, SIDE, SIDE, dtype=torch.uint8),
        boxes=[torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) for boxes, _ in boxes_and_labels],
        labels=[torch.tensor(labels, dtype=torch.int64) for _, labels in boxes_and_labels],
        masks=[filled(boxes) for boxes, _ in boxes_and_labels],
    )


def found(boxes, labels, scores=None):
    return Detections(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.ones(len(boxes)) if scores is None else torch.tensor(scores),
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=run_lengths(filled(boxes)),
    )


TRUTH = scenes(([(2, 2, 12, 12), (20, 20, 40, 36)], [0, 1]), ([(5, 5, 25, 15)], [1]))
METRICS = {f"{kind}_{metric}" for kind in ("box", "mask") for metric in ("ap", "ap50", "ap75")}


def test_perfect_detections_give_a_hundred_and_nothing_is_printed(capsys):
    detections = [found([(2, 2, 12, 12), (20, 20, 40, 36)], [0, 1]), found([(5, 5, 25, 15)], [1])]
    results = average_precision(TRUTH, detections, classes=3)
    assert results == dict.fromkeys(METRICS, pytest.approx(100.0))
    assert capsys.readouterr().out == ""


def test_no_detection_gives_zero():
    assert average_precision(TRUTH, [found([], []), found([], [])], classes=2) == dict.fromkeys(METRICS, 0.0)


def test_wrong_classes_give_zero():
    detections = [found([(2, 2, 12, 12), (20, 20, 40, 36)], [1, 0]), found([(5, 5, 25, 15)], [0])]
    assert average_precision(TRUTH, detections, classes=2)["box_ap50"] == 0.0


def test_a_shifted_box_counts_up_to_its_overlap():
    # Shift 2 of 20 pixels: IoU = 18 / 22 = 0.818, right at the 7 thresholds 0.50 ... 0.80 of 10.
    truth = scenes(([(0, 0, 20, 20)], [0]))
    results = average_precision(truth, [found([(2, 0, 22, 20)], [0])], classes=1)
    assert results == {
        **{f"{kind}_ap": pytest.approx(70.0) for kind in ("box", "mask")},
        **{
            f"{kind}_{metric}": pytest.approx(100.0)
            for kind in ("box", "mask")
            for metric in ("ap50", "ap75")
        },
    }


def test_a_confident_false_positive_halves_the_precision():
    truth = scenes(([(0, 0, 20, 20)], [0]))
    detections = [found([(0, 0, 20, 20), (22, 22, 40, 40)], [0, 0], scores=[0.5, 0.9])]
    assert average_precision(truth, detections, classes=1)["box_ap"] == pytest.approx(50.0)


def test_average_is_over_classes_that_occur():
    detections = [found([(2, 2, 12, 12)], [0]), found([], [])]
    assert average_precision(TRUTH, detections, classes=5)["box_ap"] == pytest.approx(50.0)


def test_masks_are_judged_by_their_pixels():
    truth = scenes(([(0, 0, 20, 20)], [0]))
    # The upper 13 of 20 rows: IoU 0.65, right at the 4 thresholds 0.50 ... 0.65, while the box is perfect.
    upper = run_lengths(filled([(0, 0, 20, 13)]))
    detection = replace(found([(0, 0, 20, 20)], [0]), masks=upper)
    results = average_precision(truth, [detection], classes=1)
    assert results["box_ap"] == pytest.approx(100.0)
    assert results["mask_ap"] == pytest.approx(40.0)
    assert results["mask_ap50"] == pytest.approx(100.0)
    assert results["mask_ap75"] == 0.0


@pytest.mark.parametrize("n", [0, 1, 5])
def test_run_lengths_are_pycocotools_and_far_smaller_than_pixels(n):
    masks = torch.rand(n, 7, 11, generator=torch.Generator().manual_seed(0)) < 0.5
    codes = run_lengths(masks)
    assert len(codes) == n
    assert all(
        np.array_equal(mask_codec.decode(code), mask) for code, mask in zip(codes, masks.numpy(), strict=True)
    )
    large = torch.zeros(n, 480, 640, dtype=torch.bool)
    large[:, 100:300, 200:500] = True
    assert sum(len(code["counts"]) for code in run_lengths(large)) <= n * 480 * 640 / 200


def test_ground_truth_without_objects_is_an_error_not_minus_one():
    with pytest.raises(InputError, match="no objects"):
        average_precision(scenes(([], [])), [found([], [])], classes=2)


def test_one_entry_per_image_is_required():
    with pytest.raises(ValueError, match="1 images for 2 images"):
        average_precision(TRUTH, [found([], [])], classes=2)


def random_scenes(seed, images=12, classes=3):
    """Scenes with crowds, and detections: shifted, twice, of the wrong class or of nothing, some with equal scores."""
    generator = np.random.default_rng(seed)

    def boxes(n):
        corners = generator.integers(0, SIDE - 12, (n, 2))
        return np.concatenate([corners, corners + generator.integers(3, 12, (n, 2))], axis=1)

    def moved(original):
        shifted = original + generator.integers(-2, 3, original.shape)
        return np.concatenate(
            [shifted[:, :2].clip(0), np.maximum(shifted[:, 2:], shifted[:, :2].clip(0) + 1)], axis=1
        )

    truth, detections, crowd = [], [], []
    for _ in range(images):
        objects = boxes(generator.integers(0, 6))
        labels = generator.integers(0, classes, len(objects))
        truth.append((objects.tolist(), labels.tolist()))
        crowd.append(torch.from_numpy(generator.random(len(objects)) < 0.2))
        guesses = np.concatenate([moved(objects), moved(objects), boxes(3)])
        guessed = np.concatenate([labels, labels, generator.integers(0, classes, 3)])
        scores = generator.integers(1, 8, len(guesses)) / 8
        detections.append(found(guesses.tolist(), guessed.tolist(), scores.tolist()))
    return replace(scenes(*truth), crowd=crowd), detections


@pytest.mark.skipif(
    importlib.util.find_spec("faster_coco_eval") is None,
    reason="faster-coco-eval is not installed (pip install -e '.[coco]')",
)
@pytest.mark.parametrize("seed", range(4))
def test_both_libraries_give_equal_numbers(seed, monkeypatch):
    truth, detections = random_scenes(seed)
    assert coco_eval.COCOeval is not COCOeval
    faster = average_precision(truth, detections, classes=4)
    monkeypatch.setattr(coco_eval, "COCO", COCO)
    monkeypatch.setattr(coco_eval, "COCOeval", COCOeval)
    assert faster == pytest.approx(average_precision(truth, detections, classes=4), abs=1e-9)
    assert 5 < faster["box_ap"] < 95
    assert 5 < faster["mask_ap"] < 95


def many(*numbers, ignored=0):
    """One scene with so many objects of class 0, 1 ..., all apart, of which the first of class 0 are ignored."""
    labels = torch.arange(len(numbers)).repeat_interleave(torch.tensor(numbers))
    corners = 2 * torch.stack([torch.arange(len(labels)) % 20, torch.arange(len(labels)) // 20], dim=1)
    truth = scenes((torch.cat([corners, corners + 1], dim=1).tolist(), labels.tolist()))
    crowd = torch.arange(len(labels)) < ignored
    return replace(truth, masks=None, crowd=[crowd])


@pytest.mark.parametrize(
    ("numbers", "ignored", "largest", "reached"),
    [
        # Recall ends at 100 of n objects: the points 0, 0.01 ... 1 up to there, of 101, have precision 1.
        ((250,), 0, 250, 41 / 101),
        ((160,), 0, 160, 63 / 101),
        ((200, 10), 0, 200, (51 / 101 + 1) / 2),
        ((200,), 80, 120, 84 / 101),
    ],
)
def test_images_that_cocos_limit_cuts_are_counted_with_what_perfect_detections_reach(
    numbers, ignored, largest, reached, caplog
):
    (remark,) = evaluation_remarks(many(*numbers, ignored=ignored), len(numbers))
    assert f"1 of 1 test images have more objects of a class (up to {largest})" in remark
    assert remark.endswith(f"a box AP of {100 * reached:.2f}")
    assert caplog.messages == [remark]
    assert Params("bbox").maxDets[-1] == MOST_OF_CLASS


@pytest.mark.parametrize(("numbers", "ignored"), [((100,), 0), ((100, 100, 30), 0), ((120,), 20), ((0,), 0)])
def test_a_hundred_objects_of_each_class_are_not_cut(numbers, ignored):
    assert evaluation_remarks(many(*numbers, ignored=ignored), len(numbers)) == ()


class BuildingBegins(Exception):
    """Raised in place of building a detector."""


def begins(*args):
    raise BuildingBegins


@pytest.mark.parametrize(
    ("protocol", "cut"),
    [
        (C4Torchvision("detection/coco-v1", TINY), True),
        (C4Torchvision("detection/voc-v1", TINY, evaluator="voc2007"), False),
        (small_mask_rcnn.SmallMaskRcnn(), True),
    ],
)
def test_protocols_with_cocos_ap_say_what_it_cuts_before_they_train(protocol, cut, monkeypatch):
    monkeypatch.setattr(C4Torchvision, "build", begins)
    monkeypatch.setattr(small_mask_rcnn, "build_detector", begins)
    dense = replace(many(120), masks=[torch.zeros(120, SIDE, SIDE, dtype=torch.bool)])
    images = SimpleNamespace(detection=lambda split: dense, detection_classes=("cell",))
    context = EvaluationContext(images, features=None)
    with pytest.raises(BuildingBegins):
        protocol.evaluate(None, context)
    assert any("COCO's AP counts at most 100" in remark for remark in context.remarks) == cut
