"""Golden values of the schedules, as the official code computes them."""

import math
from itertools import pairwise

import pytest

from pretraining.recipe import ScheduleSpec
from pretraining.schedules import ema_momentum, lr_factor

BARLOW = ScheduleSpec(warmup_epochs=10, final_factor=0.001)
EPOCHWISE = ScheduleSpec(per="epoch")


def test_barlow_twins_schedule():
    factor = [lr_factor(BARLOW, step, 1000, 10) for step in range(1000)]
    assert factor[0] == 0.0
    assert factor[50] == 0.5
    assert factor[100] == 1.0
    assert factor[550] == pytest.approx(0.5 + 0.001 * 0.5)
    assert factor[999] == pytest.approx(0.001, rel=1e-2)
    assert lr_factor(BARLOW, 1000, 1000, 10) == pytest.approx(0.001)
    assert all(a >= b for a, b in pairwise(factor[100:]))


@pytest.mark.parametrize("epoch", [0, 1, 50, 99])
def test_an_epochwise_schedule_changes_only_at_epoch_boundaries(epoch):
    values = {lr_factor(EPOCHWISE, step, 1000, 10) for step in range(10 * epoch, 10 * epoch + 10)}
    assert len(values) == 1
    assert values.pop() == pytest.approx((1 + math.cos(math.pi * epoch / 100)) / 2)


def test_swav_approaches_its_final_rate_from_above():
    spec = ScheduleSpec(final_factor=0.001)
    assert 0.6 * lr_factor(spec, 999, 1000, 10) > 0.0006
    assert 0.6 * lr_factor(spec, 1000, 1000, 10) == pytest.approx(0.0006)


def test_an_epochwise_schedule_still_warms_up_every_step():
    spec = ScheduleSpec(warmup_epochs=2, per="epoch")
    assert [lr_factor(spec, step, 40, 4) for step in range(9)] == [i / 8 for i in range(8)] + [1.0]
    assert lr_factor(spec, 11, 40, 4) == 1.0
    assert lr_factor(spec, 12, 40, 4) == pytest.approx((1 + math.cos(math.pi * 4 / 32)) / 2)


def test_a_warm_up_longer_than_the_run_never_passes_the_peak():
    assert [lr_factor(BARLOW, step, 4, 2) for step in range(4)] == [0, 0.25, 0.5, 0.75]


def test_byol_momentum():
    assert ema_momentum(0.996, 0, 100) == pytest.approx(0.996)
    assert ema_momentum(0.996, 50, 100) == pytest.approx((1 + 0.996) / 2)
    assert ema_momentum(0.996, 100, 100) == 1.0
