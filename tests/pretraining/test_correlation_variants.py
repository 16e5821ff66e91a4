"""The variants of Barlow Twins' tables 5 and 6, each against its formula written out here."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from twinbench.encoders.backbones import build_backbone
from twinbench.pretraining.barlow_twins import BarlowTwins
from twinbench.pretraining.correlation_variants import (
    cross_covariance,
    cross_entropy_terms,
    feature_normalised_covariance,
)
from twinbench.pretraining.method import Progress

N, D = 12, 5


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    z_a = 3 * torch.randn(N, D, generator=generator, dtype=torch.float64) + 1
    return z_a, z_a + torch.randn(N, D, generator=generator, dtype=torch.float64)


def by_entries(z_a, z_b, entry):
    a, b = np.asarray(z_a), np.asarray(z_b)
    return np.array([[entry(a, b, i, j) for j in range(D)] for i in range(D)])


def correlation(a, b, i, j):
    x, y = a[:, i] - a[:, i].mean(), b[:, j] - b[:, j].mean()
    return (x @ y) / N / math.sqrt(x @ x / N + 1e-5) / math.sqrt(y @ y / N + 1e-5)


def covariance(a, b, i, j):
    return sum((a[k, i] - a[:, i].mean()) * (b[k, j] - b[:, j].mean()) for k in range(N)) / N


def of_unit_length(a, b, i, j):
    """Every embedding standardised over the batch, then divided by its own length; D times the mean product."""
    a, b = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (a, b))
    return D * sum(a[k, i] / np.linalg.norm(a[k]) * b[k, j] / np.linalg.norm(b[k]) for k in range(N)) / N


def squares(c, invariance, lambd):
    total = 0.0
    for i in range(D):
        for j in range(D):
            total += invariance * (1 - c[i, i]) ** 2 if i == j else lambd * c[i, j] ** 2
    return total


def entropies(c, temperature, lambd):
    diagonal = sum(math.exp(c[i, i] / temperature) for i in range(D))
    rest = sum(math.exp(max(c[i, j], 0.0) / temperature) for i in range(D) for j in range(D) if i != j)
    return -math.log(diagonal) + lambd * math.log(rest)


LAMBD = 0.3
ROWS = {
    "baseline": ({}, lambda a, b: squares(by_entries(a, b, correlation), 1, LAMBD)),
    "only invariance": ({"lambd": 0.0}, lambda a, b: squares(by_entries(a, b, correlation), 1, 0)),
    "only redundancy": ({"invariance": 0.0}, lambda a, b: squares(by_entries(a, b, correlation), 0, LAMBD)),
    "features": (
        {"normalise": "features"},
        lambda a, b: squares(by_entries(a, b, of_unit_length), 1, LAMBD),
    ),
    "none": ({"normalise": "none"}, lambda a, b: squares(by_entries(a, b, covariance), 1, LAMBD)),
    "entropy": ({"temperature": 0.2}, lambda a, b: entropies(by_entries(a, b, correlation), 0.2, LAMBD)),
}


class Given(nn.Module):
    """Stands for a projector: the embeddings that were given, one view after the other."""

    def __init__(self, *embeddings):
        super().__init__()
        self.left = list(embeddings)

    def forward(self, features):
        return self.left.pop(0)


def loss_of(options, z_a, z_b):
    options = BarlowTwins.Options(projector=(D,), **{"lambd": LAMBD, **options})
    method = BarlowTwins(build_backbone("resnet10", width=4), options).double()
    method.projector = Given(z_a, z_b)
    views = [torch.zeros(2, 3, 32, 32, dtype=torch.float64)] * 2
    return method, method.loss(views, None, Progress(0, 1, 1))


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_table_5_is_what_it_says(pair, name):
    options, formula = ROWS[name]
    _, (total, _) = loss_of(options, *pair)
    assert total.item() == pytest.approx(formula(*pair), rel=1e-12)


@pytest.mark.parametrize("function", [cross_covariance, feature_normalised_covariance])
def test_the_gradient_of_a_matrix_is_the_numerical_one(pair, function):
    torch.autograd.gradcheck(function, [z[:6].clone().requires_grad_() for z in pair])


def test_the_gradient_of_the_entropies_is_the_numerical_one():
    c = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.autograd.gradcheck(lambda c: cross_entropy_terms(c, 0.5), c.requires_grad_())


def test_equal_views_of_unit_length_have_a_diagonal_with_mean_one(pair):
    assert feature_normalised_covariance(pair[0], pair[0]).diagonal().mean().item() == pytest.approx(
        1, rel=1e-9
    )


def test_large_correlations_over_a_small_temperature_stay_finite():
    c = torch.full((3, 3), 1.0, dtype=torch.float32)
    assert all(torch.isfinite(term) for term in cross_entropy_terms(c, 1e-3))


def test_the_projector_without_batch_norm_has_none():
    options = BarlowTwins.Options(projector=(8, 8, D), projector_norm=False)
    method = BarlowTwins(build_backbone("resnet10", width=4), options)
    kinds = [type(layer).__name__ for layer in method.projector]
    assert kinds == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]


def test_a_stop_gradient_is_on_the_second_view_alone(pair):
    z_a, z_b = (z.requires_grad_() for z in pair)
    _, (total, _) = loss_of({"stop_gradient": True}, z_a, z_b)
    total.backward()
    assert z_a.grad.abs().sum() > 0
    assert z_b.grad is None


def test_a_predictor_is_on_the_first_view_alone(pair):
    """Two layers with batch norm and ReLU between them, on z_a; what is compared with z_b is its output."""
    torch.manual_seed(0)
    method, (total, _) = loss_of({"predictor": (7,)}, *pair)
    first, norm, _, second = method.predictor
    hidden = pair[0] @ first.weight.T
    hidden = (hidden - hidden.mean(0)) / torch.sqrt(hidden.var(0, unbiased=False) + norm.eps)
    predicted = hidden.clamp(min=0) @ second.weight.T
    formula = squares(by_entries(predicted.detach(), pair[1], correlation), 1, LAMBD)
    assert total.item() == pytest.approx(formula, rel=1e-9)
    assert {id(p) for p in method.predictor.parameters()} <= {
        id(p) for group in method.parameter_groups(0.0) for p in group["params"]
    }
