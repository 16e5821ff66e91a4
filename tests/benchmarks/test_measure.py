"""What every benchmark shares counts and clocks what it says."""

import itertools
from pathlib import Path

import pytest
import torch
from torch.nn.functional import conv2d

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measure

    return measure


def test_the_operations_of_a_step_are_those_of_its_products_forward_and_backward(measure):
    images = torch.ones(2, 3, 8, 8)
    kernels = torch.ones(4, 3, 3, 3, requires_grad=True)
    head = torch.ones(4, 5, requires_grad=True)
    forward = 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3) + 2 * 2 * 4 * 5
    # the head's gradient has two sides, that of the first layer one: images need no gradient
    backward = 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3) + 2 * 2 * 2 * 4 * 5

    def step():
        features = conv2d(images, kernels, padding=1).mean((2, 3))
        (features @ head).sum().backward()

    assert measure.flops_of(step) == forward + backward


def test_the_rate_of_products_is_that_of_the_fastest_round_after_the_first(measure, monkeypatch):
    seconds = itertools.accumulate([0.0, 0.25, 0.0, 4.0, 0.0, 0.5, 0.0, 1.0])  # pairs of start and duration
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(seconds))
    rate = measure.matmul_rate(torch.device("cpu"), torch.bfloat16, size=16, rounds=3)
    assert rate == 2 * 16**3 / 0.5
