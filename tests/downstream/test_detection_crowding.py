"""What is said of images with more objects than a detector trains on or finds, whatever the library."""

from dataclasses import replace

import pytest
import torch

from twinbench.data.detection import DetectionSplit
from twinbench.downstream.detection.fine_tuning import DETECTIONS, POSITIVE_SHARE, ObjectLimits, crowding
from twinbench.downstream.detection.schedules import COCO_1X, TINY, VOC_24K
from twinbench.downstream.detection.small_mask_rcnn import build_detector
from twinbench.downstream.detection.torchvision_rcnn import c4_detector, fpn_detector
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.protocol import EvaluationContext, protocol

LIMITS = ObjectLimits(proposals=20, regions=16, examined=10)


def split(*counts, crowd=None, difficult=None):
    return DetectionSplit(
        images=torch.zeros(len(counts), 3, 8, 8, dtype=torch.uint8),
        boxes=[torch.zeros(n, 4) for n in counts],
        labels=[torch.zeros(n, dtype=torch.int64) for n in counts],
        crowd=crowd,
        difficult=difficult,
    )


def flags(*counts):
    """The first of each image's 30 objects."""
    return [torch.arange(30) < n for n in counts]


def test_nothing_is_said_where_every_object_has_its_region():
    assert crowding(split(4, 4), split(10, 0), LIMITS) == []


def test_images_with_more_objects_are_counted():
    assert crowding(split(5, 21, 4), split(11, 10), LIMITS) == [
        "2 of 3 training images have more than 4 objects (up to 21): "
        "of the 16 regions of an image that train the box head no more are objects",
        "1 of 3 training images has more than 20 objects (up to 21): no more regions of an image are proposed",
        "1 of 2 test images has more than 10 objects (up to 11): "
        "no more regions of an image are examined, so the rest is missed",
    ]


def test_the_number_of_detections_is_a_limit_too():
    limits = replace(LIMITS, regions=4000, proposals=2000, examined=1000)
    (said,) = crowding(split(250), split(250, 100, 101), limits)
    assert said == (
        "2 of 3 test images have more than 100 objects (up to 250): "
        "no more detections of an image are returned, so the rest is missed"
    )


def test_crowds_are_not_counted_and_difficult_objects_only_in_training():
    crowds = flags(26, 25)
    (said,) = crowding(split(30, 30, crowd=crowds), split(30, 30, crowd=flags(20, 20)), LIMITS)
    assert said.startswith("1 of 2 training images has more than 4 objects (up to 5)")
    said = crowding(split(30, 30, difficult=flags(30, 30)), split(30, 30, difficult=flags(20, 19)), LIMITS)
    assert [sentence[:9] for sentence in said] == ["2 of 2 tr", "2 of 2 tr", "1 of 2 te"]


@pytest.mark.parametrize(
    ("schedule", "positives", "examined"), [(TINY, 8, 60), (VOC_24K, 128, 1000), (COCO_1X, 128, 1000)]
)
def test_the_limits_are_those_of_the_schedule(schedule, positives, examined):
    limits = ObjectLimits.of(schedule)
    assert (limits.positives, limits.examined, limits.proposals) == (
        positives,
        examined,
        schedule.train_proposals,
    )


def test_the_limits_are_those_of_torchvisions_detectors(encoder):
    detectors = [c4_detector(encoder, 3, TINY), fpn_detector(encoder, 3, True, TINY)]
    for detector in [*detectors, build_detector(encoder, 3, 64, 64)]:
        assert detector.roi_heads.fg_bg_sampler.positive_fraction == POSITIVE_SHARE
    assert {detector.roi_heads.detections_per_img for detector in detectors} == {DETECTIONS}


@pytest.mark.parametrize("name", ["c4-torchvision-v2", "small-mask-rcnn-torchvision-v2"])
def test_an_evaluation_says_so(name, encoder, image_set, monkeypatch):
    """Scenes of one or two objects, and one test scene that is full of them."""
    chosen = protocol(f"detection/{name}")
    monkeypatch.setattr("twinbench.downstream.detection.small_mask_rcnn.STEPS", 2)
    if hasattr(chosen, "schedule"):
        chosen = replace(
            chosen, schedule=replace(TINY, iterations=1, precise_bn=1, train_sizes=(64,), test_size=64)
        )
    context = EvaluationContext(image_set, FeatureStore(None))
    chosen.evaluate(encoder, context)
    assert context.remarks == []
    test = image_set.detection("test")
    many = [torch.cat([each] * 70) if i == 0 else each for i, each in enumerate(test.boxes)]
    labels = [torch.cat([each] * 70) if i == 0 else each for i, each in enumerate(test.labels)]
    masks = [torch.cat([each] * 70) if i == 0 else each for i, each in enumerate(test.masks)]
    monkeypatch.setitem(image_set.scenes, "test", replace(test, boxes=many, labels=labels, masks=masks))
    context = EvaluationContext(image_set, FeatureStore(None))
    chosen.evaluate(encoder, context)
    (said,) = [remark for remark in context.remarks if "COCO" not in remark]
    assert said.startswith("1 of 6 test images has more than ")
