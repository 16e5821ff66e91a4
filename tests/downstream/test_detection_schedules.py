import pytest

from twinbench.downstream.detection.schedules import COCO_1X, TINY, TINY_PYRAMID, VOC_24K, VOC_24K_BT
from twinbench.downstream.protocol import protocol
from twinbench.foundation.errors import InputError


def numbers(schedule):
    return (
        schedule.images_per_batch,
        pytest.approx(schedule.base_lr),
        schedule.steps,
        schedule.warmup_iterations,
        schedule.iterations,
        schedule.precise_bn,
    )


@pytest.mark.parametrize(
    ("schedule", "devices", "expected"),
    [
        (VOC_24K, 8, (16, 0.02, (18_000, 22_000), 100, 24_000, 200)),
        (VOC_24K, 4, (8, 0.01, (36_000, 44_000), 200, 48_000, 400)),
        (VOC_24K, 1, (2, 0.0025, (144_000, 176_000), 800, 192_000, 1600)),
        (VOC_24K_BT, 8, (16, 0.1, (18_000, 22_000), 1000, 24_000, 200)),
        (VOC_24K_BT, 1, (2, 0.0125, (144_000, 176_000), 8000, 192_000, 1600)),
        (COCO_1X, 8, (16, 0.03, (60_000, 80_000), 1000, 90_000, 200)),
        (COCO_1X, 1, (2, 0.00375, (480_000, 640_000), 8000, 720_000, 1600)),
    ],
)
def test_published_schedules_and_the_linear_rule(schedule, devices, expected):
    assert numbers(schedule.scaled(devices)) == expected


@pytest.mark.parametrize("schedule", [VOC_24K, COCO_1X])
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_scaling_keeps_the_images_and_the_shape_of_the_schedule(schedule, devices):
    scaled = schedule.scaled(devices)
    assert scaled.images_per_batch * scaled.iterations == schedule.images_per_batch * schedule.iterations
    factor = schedule.images_per_batch // scaled.images_per_batch
    for iteration in (0, 1, 50, 99, 100, 1000, 18_000, 21_999, 22_000, 23_999):
        assert scaled.learning_rate(factor * iteration) == pytest.approx(
            schedule.learning_rate(iteration) / factor
        )


def test_the_learning_rate_by_hand():
    rate = VOC_24K.learning_rate
    assert rate(0) == pytest.approx(0.02 * 0.001)
    assert rate(50) == pytest.approx(0.02 * (0.5 * 0.001 + 0.5))
    assert [rate(i) for i in (100, 17_999)] == pytest.approx([0.02, 0.02])
    assert [rate(i) for i in (18_000, 21_999)] == pytest.approx([0.002, 0.002])
    assert [rate(i) for i in (22_000, 23_999)] == pytest.approx([0.0002, 0.0002])


def test_the_warm_up_of_barlow_twins_by_hand():
    rate = VOC_24K_BT.learning_rate
    assert [rate(i) for i in (0, 500, 1000)] == pytest.approx([0.0333, 0.06665, 0.1])
    alone = VOC_24K_BT.scaled(1).learning_rate
    assert [alone(i) for i in (0, 4000, 7999, 8000)] == pytest.approx(
        [0.0041625, 0.00833125, 0.0124989578125, 0.0125]
    )


def test_sizes_and_anchors():
    assert VOC_24K.train_sizes == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert COCO_1X.train_sizes == (640, 672, 704, 736, 768, 800)
    assert VOC_24K.anchor_sizes == COCO_1X.anchor_sizes == (32, 64, 128, 256, 512)
    assert TINY.anchor_sizes == pytest.approx([192 * side / 800 for side in (32, 64, 128, 256, 512)])


@pytest.mark.parametrize("devices", [0, 3, 16])
def test_devices_that_do_not_divide_the_batch_are_refused(devices):
    with pytest.raises(InputError, match=f"{devices} devices"):
        VOC_24K.scaled(devices)


@pytest.mark.detectron2
@pytest.mark.parametrize(
    "schedule", [VOC_24K, VOC_24K.scaled(1), VOC_24K_BT, VOC_24K_BT.scaled(1), COCO_1X, TINY]
)
def test_the_learning_rate_is_detectron2s(schedule):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    import torch
    from detectron2.config import get_cfg
    from detectron2.solver import build_lr_scheduler

    cfg = get_cfg()
    cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER = schedule.steps, schedule.iterations
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = schedule.warmup_iterations, schedule.warmup_factor
    theirs = build_lr_scheduler(cfg, torch.optim.SGD([torch.zeros(1)], schedule.base_lr))
    first, last = schedule.steps
    warmup, end = schedule.warmup_iterations, schedule.iterations
    for iteration in (0, 1, warmup - 1, warmup + 1, first - 1, first, last - 1, last, end - 1):
        theirs.last_epoch = iteration
        assert schedule.learning_rate(iteration) == pytest.approx(theirs.get_lr()[0], rel=1e-9)


def test_a_pyramid_has_the_usual_rate_for_an_image():
    assert TINY_PYRAMID.base_lr / TINY_PYRAMID.images_per_batch == pytest.approx(0.02 / 16)
    assert protocol("detection/fpn-torchvision-v2").schedule == TINY_PYRAMID
