"""Golden values of the schedules, as the official code computes them."""

import math
from itertools import pairwise

import numpy as np
import pytest

from twinbench.pretraining.recipe import ScheduleSpec
from twinbench.pretraining.schedules import ema_momentum, lr_factor

BARLOW = ScheduleSpec(warmup_epochs=10, final_factor=0.001)
SWAV = ScheduleSpec(warmup_epochs=10, warmup_start=0.3 / 4.8, final_factor=0.0048 / 4.8)
EPOCHWISE = ScheduleSpec(per="epoch")
STEPS = 313  # per epoch


@pytest.mark.parametrize(
    ("spec", "peak", "epochs", "golden"),
    [
        # peak * step / 3130, then peak * (q + 0.001 (1 - q)) with q = (1 + cos(pi t / T)) / 2
        (BARLOW, 1.6, 1000, {0: 0.0, 1565: 0.8, 3130: 1.6, 158065: 0.8008, 312999: 1.6e-3}),
        # 0.3 + 4.5 * step / 3130, then 0.0048 + 4.7952 q
        (SWAV, 4.8, 800, {0: 0.3, 1565: 2.55, 3130: 4.8, 126765: 2.4024, 250399: 4.8e-3}),
        # (1 + cos(pi e / E)) / 2 with e whole
        (EPOCHWISE, 0.1, 100, {0: 0.1, 312: 0.1, 15650: 0.05, 15962: 0.05, 31299: 2.4672e-5}),
    ],
    ids=["barlow_twins", "swav", "simsiam"],
)
def test_golden_values_at_the_start_the_peak_the_middle_and_the_end(spec, peak, epochs, golden):
    """First step, middle and end of the warm-up, middle of the cosine, last step."""
    rates = {step: peak * lr_factor(spec, step, epochs * STEPS, STEPS) for step in golden}
    assert rates == pytest.approx(golden, rel=1e-5)


@pytest.mark.parametrize("spec", [BARLOW, SWAV])
def test_the_rate_rises_to_the_peak_and_then_falls(spec):
    factor = [lr_factor(spec, step, 1000, 10) for step in range(1001)]
    assert all(a < b for a, b in pairwise(factor[:101]))
    assert factor[100] == 1.0
    assert all(a > b for a, b in pairwise(factor[100:]))
    assert factor[1000] == pytest.approx(0.001)


def test_the_warm_up_of_swav_is_the_line_of_the_official_code():
    """numpy.linspace(0.3, 4.8, steps) reaches the peak one step earlier: never more than a step's rise away."""
    official = np.linspace(0.3, 4.8, 10 * STEPS)
    ours = [4.8 * lr_factor(SWAV, step, 800 * STEPS, STEPS) for step in range(10 * STEPS)]
    assert np.abs(official - ours).max() <= 4.5 / (10 * STEPS)


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
