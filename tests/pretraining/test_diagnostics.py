import math

import numpy as np
import pytest
import torch

from twinbench.pretraining.diagnostics import (
    Probe,
    diagnose,
    effective_rank,
    singular_values,
    spread,
    unjudged,
)


def gaussian(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_isotropic_embeddings_have_spread_one():
    std, ratio = spread(gaussian(4096, 64))
    assert ratio == pytest.approx(1.0, abs=0.02)
    assert std == pytest.approx(1 / math.sqrt(64), rel=0.02)


def test_constant_embeddings_are_a_collapse():
    z = torch.ones(256, 32) + 1e-6 * gaussian(256, 32).float()
    assert "1/sqrt(d)" in (diagnose(z, z).collapse() or "")


def test_embeddings_on_a_line_are_a_collapse():
    z = gaussian(256, 1).float() * gaussian(1, 32, seed=1).float()
    assert "effective rank" in (diagnose(z, z).collapse() or "")


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_a_collapse_is_not_judged_on_a_handful_of_images(n):
    z = torch.ones(n, 32)
    assert diagnose(z, z).collapse() is None
    assert unjudged(n) == f"collapse is not judged on {n} held-out images: it takes 8"


@pytest.mark.parametrize("n", [2, 64])
def test_embeddings_that_are_not_finite_are_a_collapse_however_few(n):
    spread_of_nan = Probe(float("nan"), float("nan"), float("nan"))
    assert spread_of_nan.collapse(n) == "the embeddings are not finite"


def test_a_few_images_show_constant_embeddings_and_no_rank():
    constant, line = torch.ones(8, 32), gaussian(31, 1) * gaussian(1, 32, seed=1)
    assert "1/sqrt(d)" in (diagnose(constant, constant).collapse() or "")
    assert diagnose(line, line).collapse() is None
    assert all("rank takes 32 held-out images" in (unjudged(n) or "") for n in (8, 31))
    assert unjudged(32) is None


def test_isotropic_embeddings_are_none():
    assert diagnose(gaussian(512, 32), gaussian(512, 32, seed=1)).collapse() is None


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_effective_rank_counts_equal_directions(rank):
    assert effective_rank(torch.cat([torch.ones(rank), torch.zeros(7)])) == pytest.approx(rank)


def test_correlation_and_spectrum_agree_with_numpy():
    a, b = gaussian(200, 6), gaussian(200, 6, seed=1) + gaussian(200, 6)
    found = diagnose(a, b)
    expected = np.corrcoef(a.T.numpy(), b.T.numpy())[:6, 6:]
    np.testing.assert_allclose(found.cross_correlation, expected, atol=1e-4)
    assert found.diagonal_mean == pytest.approx(expected.diagonal().mean(), abs=1e-9)
    np.testing.assert_allclose(
        singular_values(a).numpy(), np.linalg.svd((a - a.mean(0)).numpy(), compute_uv=False), rtol=1e-9
    )
