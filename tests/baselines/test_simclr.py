"""NT-Xent against a loop over anchors, and its closed forms."""

import math

import numpy as np
import pytest
import torch

from twinbench.baselines.simclr import SimCLR, nt_xent_loss
from twinbench.encoders.backbones import build_backbone
from twinbench.pretraining.method import Progress


def embeddings(n=6, d=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2)]


def loss_by_loops(z_a, z_b, temperature):
    z = [row / np.linalg.norm(row) for row in np.concatenate([z_a.numpy(), z_b.numpy()])]
    n = len(z) // 2
    losses = []
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        others = sum(math.exp(z[i] @ z[j] / temperature) for j in range(2 * n) if j != i)
        losses.append(-math.log(math.exp(z[i] @ z[partner] / temperature) / others))
    return sum(losses) / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_loss_equals_the_formula_anchor_by_anchor(temperature):
    z_a, z_b = embeddings()
    assert nt_xent_loss(z_a, z_b, temperature).item() == pytest.approx(loss_by_loops(z_a, z_b, temperature))


def test_gradient_is_the_numerical_one():
    z_a, z_b = (z.requires_grad_() for z in embeddings(4, 3))
    torch.autograd.gradcheck(nt_xent_loss, (z_a, z_b))


def test_equal_embeddings():
    ones = torch.ones(8, 5)
    assert nt_xent_loss(ones, ones).item() == pytest.approx(math.log(15), rel=1e-6)
    assert math.log(15) == pytest.approx(2.70805, abs=1e-5)


def test_aligned_positives_and_orthogonal_negatives():
    z = torch.eye(8)
    expected = math.log(1 + 14 * math.exp(-2))
    assert nt_xent_loss(z, z, 0.5).item() == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(1.06288, abs=1e-5)


def test_one_pair_has_no_other_candidate():
    """With the anchor itself among the candidates this would be log(1 + exp(...)) > 0."""
    z_a, z_b = embeddings(1)
    assert nt_xent_loss(z_a, -z_a).item() == 0.0
    assert nt_xent_loss(z_a, z_b).item() == 0.0


def test_the_official_loss_is_twice_this_one():
    """Its two cross-entropies: a view's anchors against the other view, then against their own, masked."""
    z_a, z_b = (z / z.norm(dim=1, keepdim=True) for z in embeddings())
    masked = torch.diag(torch.full((6,), 1e9, dtype=torch.float64))
    labels = torch.arange(6)
    official = sum(
        torch.nn.functional.cross_entropy(torch.cat([a @ b.T / 0.5, a @ a.T / 0.5 - masked], dim=1), labels)
        for a, b in ((z_a, z_b), (z_b, z_a))
    )
    torch.testing.assert_close(official, 2 * nt_xent_loss(z_a, z_b, 0.5))


def test_the_loss_scale_multiplies_loss_and_gradient_alone():
    views = [torch.randn(8, 3, 16, 16) for _ in range(2)]
    totals, gradients, parts = [], [], []
    for scale in (1.0, 2.0):
        torch.manual_seed(0)
        options = SimCLR.Options(projector=(16, 8), loss_scale=scale)
        method = SimCLR(build_backbone("resnet10", width=4), options)
        loss = method.loss(views, None, Progress(0, 1, 1))
        loss.total.backward()
        totals.append(loss.total)
        parts.append(loss.parts["positive_similarity"])
        gradients.append(torch.cat([p.grad.flatten() for p in method.parameters() if p.requires_grad]))
    torch.testing.assert_close(totals[1], 2 * totals[0])
    torch.testing.assert_close(gradients[1], 2 * gradients[0])
    assert torch.equal(*parts)


def test_symmetries():
    z_a, z_b = embeddings()
    loss = nt_xent_loss(z_a, z_b)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(nt_xent_loss(z_b, z_a), loss)
    torch.testing.assert_close(nt_xent_loss(z_a[order], z_b[order]), loss)
    torch.testing.assert_close(nt_xent_loss(z_a * torch.arange(1.0, 7.0)[:, None], z_b), loss)


def test_computes_in_full_precision_under_autocast():
    z_a, z_b = (z.float() for z in embeddings())
    expected = nt_xent_loss(z_a, z_b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nt_xent_loss(z_a, z_b), expected)


def test_views_share_one_forward_pass_and_the_last_norm_has_no_shift():
    torch.manual_seed(0)
    method = SimCLR(build_backbone("resnet10", width=4), SimCLR.Options(projector=(16, 8)))
    views = [torch.randn(8, 3, 16, 16) for _ in range(2)]
    method.loss(views, None, Progress(0, 1, 1))
    assert method.backbone.bn1.num_batches_tracked == 1
    last = method.projector[-1]
    assert last.weight.requires_grad
    assert not last.bias.requires_grad
    assert torch.equal(last.bias, torch.zeros(8))
    linears = [m for m in method.projector if isinstance(m, torch.nn.Linear)]
    assert all(layer.bias is None for layer in linears)
