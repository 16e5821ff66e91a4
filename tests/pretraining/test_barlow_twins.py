"""Barlow Twins against a float64 loop, and the invariants of its loss."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from twinbench.encoders.backbones import build_backbone
from twinbench.pretraining.barlow_twins import (
    BarlowTwins,
    barlow_twins_loss,
    correlation_terms,
    cross_correlation,
)
from twinbench.pretraining.method import Progress
from twinbench.pretraining.optim import build_optimizer, set_learning_rates
from twinbench.pretraining.recipe import OptimizerSpec


def embeddings(n=12, d=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z_a = torch.randn(n, d, generator=generator, dtype=dtype)
    return z_a, z_a + 0.7 * torch.randn(n, d, generator=generator, dtype=dtype)


def loss_by_loops(z_a, z_b, lambd):
    """Equation 1 with biased variance and eps 1e-5, entry by entry."""
    a, b = np.asarray(z_a, dtype=np.float64), np.asarray(z_b, dtype=np.float64)
    n, d = a.shape
    total = 0.0
    for i in range(d):
        for j in range(d):
            x, y = a[:, i], b[:, j]
            covariance = sum((x[k] - x.mean()) * (y[k] - y.mean()) for k in range(n)) / n
            c = covariance / math.sqrt(x.var() + 1e-5) / math.sqrt(y.var() + 1e-5)
            total += (1 - c) ** 2 if i == j else lambd * c**2
    return total


@pytest.mark.parametrize("lambd", [0.0, 0.0051, 1.0])
@pytest.mark.parametrize(("n", "d"), [(12, 5), (4, 9), (7, 1)])
def test_loss_equals_the_formula_entry_by_entry(n, d, lambd):
    z_a, z_b = embeddings(n, d)
    assert barlow_twins_loss(z_a, z_b, lambd).item() == pytest.approx(
        loss_by_loops(z_a, z_b, lambd), rel=1e-12
    )


def test_standardisation_is_the_official_batch_norm_without_parameters():
    z_a, z_b = embeddings(64, 16)
    norm = nn.BatchNorm1d(16, affine=False).double()
    expected = norm(z_a).T @ norm(z_b) / 64
    torch.testing.assert_close(cross_correlation(z_a, z_b), expected, rtol=1e-12, atol=1e-13)


def test_gradient_is_the_numerical_one():
    z_a, z_b = embeddings(6, 4)
    torch.autograd.gradcheck(barlow_twins_loss, (z_a.requires_grad_(), z_b.requires_grad_()))


def test_identical_views_have_a_unit_diagonal():
    z, _ = embeddings(64, 8)
    variance = z.var(0, unbiased=False)
    c = cross_correlation(z, z)
    torch.testing.assert_close(c.diagonal(), variance / (variance + 1e-5))
    assert correlation_terms(c)[0] < 1e-6 * 8


def test_opposite_views_cost_four_per_dimension():
    z, _ = embeddings(64, 8)
    assert correlation_terms(cross_correlation(z, -z))[0].item() == pytest.approx(32, rel=1e-4)


def test_invariances():
    z_a, z_b = embeddings(32, 6)
    loss = barlow_twins_loss(z_a, z_b)
    scale, shift = torch.tensor([1.0, 2.0, 5.0, 3.0, 1.5, 9.0], dtype=torch.float64), torch.arange(6.0)
    torch.testing.assert_close(barlow_twins_loss(z_a * scale + shift, z_b), loss, rtol=1e-4, atol=0)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(barlow_twins_loss(z_a[order], z_b[order]), loss)
    torch.testing.assert_close(barlow_twins_loss(z_b, z_a), loss)
    dims = torch.tensor([3, 1, 0, 5, 2, 4])
    c = cross_correlation(z_a, z_b)
    torch.testing.assert_close(cross_correlation(z_a[:, dims], z_b[:, dims]), c[dims][:, dims])


def test_independent_embeddings_have_the_expected_terms():
    generator = torch.Generator().manual_seed(0)
    z_a, z_b = (torch.randn(256, 512, generator=generator) for _ in range(2))
    on_diagonal, off_diagonal = correlation_terms(cross_correlation(z_a, z_b))
    assert on_diagonal.item() == pytest.approx(512 * (1 + 1 / 255), rel=0.03)
    assert off_diagonal.item() == pytest.approx(512 * 511 / 255, rel=0.03)


def test_a_collapsed_dimension_gives_zeros_and_costs_one():
    z_a, z_b = embeddings(16, 4)
    z_a = z_a.clone()
    z_a[:, 2] = 3.0
    c = cross_correlation(z_a, z_b)
    assert torch.equal(c[2], torch.zeros(4, dtype=torch.float64))
    assert ((1 - c[2, 2]) ** 2).item() == 1.0


def test_off_diagonal_sum_equals_a_masked_sum():
    c = torch.arange(25.0, dtype=torch.float64).view(5, 5)
    masked = c[~torch.eye(5, dtype=torch.bool)]
    assert correlation_terms(c)[1] == masked.square().sum()


def test_both_branches_get_a_gradient_and_swap_with_the_views():
    z_a, z_b = (z.requires_grad_() for z in embeddings())
    grad_a, grad_b = torch.autograd.grad(barlow_twins_loss(z_a, z_b), (z_a, z_b))
    swapped_b, swapped_a = torch.autograd.grad(barlow_twins_loss(z_b, z_a), (z_b, z_a))
    assert grad_a.abs().sum() > 0
    assert grad_b.abs().sum() > 0
    torch.testing.assert_close(grad_a, swapped_a)
    torch.testing.assert_close(grad_b, swapped_b)


def test_half_precision_and_autocast_compute_in_fp32():
    z_a, z_b = embeddings(64, 16, dtype=torch.float32)
    expected = barlow_twins_loss(z_a, z_b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(barlow_twins_loss(z_a, z_b), expected)
        half = barlow_twins_loss(z_a.bfloat16(), z_b.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, barlow_twins_loss(z_a.bfloat16().float(), z_b.bfloat16().float()))


@pytest.fixture
def method():
    torch.manual_seed(0)
    options = BarlowTwins.Options(projector=(16, 16, 8), loss_scale=0.5, norm_lr_scale=0.024)
    return BarlowTwins(build_backbone("resnet10", width=4), options)


def test_the_method_has_no_bias_vectors_and_its_norms_their_own_rate(method):
    weights, norms = method.parameter_groups(1e-6)
    assert not [
        name for name, _ in method.projector.named_parameters() if name.endswith("bias") and "0." in name
    ]
    linears = [m for m in method.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert all(layer.bias is None for layer in linears)
    assert {p.ndim for p in norms["params"]} == {1}
    assert norms["lars_exclude"]
    assert norms["weight_decay"] == 0
    assert (weights["lr_scale"], norms["lr_scale"]) == (1.0, 0.024)


def test_the_method_forwards_views_separately_and_scales_the_loss(method):
    views = [torch.randn(8, 3, 16, 16) for _ in range(2)]
    result = method.loss(views, None, Progress(0, 1, 1))
    z_a, z_b = (method.projector(method.backbone(view)) for view in views)
    torch.testing.assert_close(result.total, 0.5 * barlow_twins_loss(z_a, z_b))
    parts = result.parts
    torch.testing.assert_close(
        result.total.detach(), 0.5 * (parts["on_diagonal"] + 0.0051 * parts["off_diagonal"])
    )
    c = cross_correlation(z_a, z_b).detach()
    torch.testing.assert_close(parts["diagonal_mean"], c.diagonal().mean())
    off = c[~torch.eye(8, dtype=torch.bool)]
    torch.testing.assert_close(parts["off_diagonal_rms"], off.square().mean().sqrt())


def test_a_smaller_batch_is_divided_by_its_own_size():
    """The official code divides by the nominal batch: there the diagonal of a half batch stops at one half."""
    z, _ = embeddings(64, 8)
    assert cross_correlation(z[:32], z[:32]).diagonal().min() > 0.999


def test_the_rate_of_norm_parameters_keeps_its_ratio_through_the_schedule(method):
    spec = OptimizerSpec(name="lars", base_lr=0.2)
    optimizer = build_optimizer(spec, method.parameter_groups(1e-6), 2048)
    for factor in (0.0, 0.3, 1.0, 0.001):
        set_learning_rates(optimizer, factor)
        weights, norms = (group["lr"] for group in optimizer.param_groups)
        assert weights == pytest.approx(1.6 * factor)
        assert norms == pytest.approx(0.024 * weights)
