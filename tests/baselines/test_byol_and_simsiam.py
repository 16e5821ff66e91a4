"""BYOL and SimSiam: the two losses, stop-gradients, the target network and the parameter groups."""

import copy
import math

import numpy as np
import pytest
import torch

from twinbench.baselines.byol import BYOL, byol_loss
from twinbench.baselines.simsiam import SimSiam, negative_cosine
from twinbench.encoders.backbones import build_backbone
from twinbench.pretraining.method import Progress
from twinbench.pretraining.optim import build_optimizer, set_learning_rates
from twinbench.pretraining.recipe import OptimizerSpec, ScheduleSpec
from twinbench.pretraining.schedules import lr_factor


def vectors(n=6, d=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2)]


def cosines(p, z):
    return np.mean(
        [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(p.numpy(), z.numpy(), strict=True)]
    )


def test_losses_equal_the_formula_row_by_row():
    p, z = vectors()
    assert byol_loss(p, z).item() == pytest.approx(2 - 2 * cosines(p, z))
    assert negative_cosine(p, z).item() == pytest.approx(-cosines(p, z))
    squared = (p / p.norm(dim=1, keepdim=True) - z / z.norm(dim=1, keepdim=True)).square().sum(1).mean()
    torch.testing.assert_close(byol_loss(p, z), squared)


def test_bounds():
    p, _ = vectors()
    assert byol_loss(p, p).item() == pytest.approx(0, abs=1e-12)
    assert byol_loss(p, -p).item() == pytest.approx(4)
    assert negative_cosine(p, p).item() == pytest.approx(-1)
    assert negative_cosine(p, -p).item() == pytest.approx(1)


def test_byol_is_four_plus_four_times_simsiam():
    (p_a, z_b), (p_b, z_a) = vectors(seed=0), vectors(seed=1)
    byol = byol_loss(p_a, z_b) + byol_loss(p_b, z_a)
    simsiam = 0.5 * (negative_cosine(p_a, z_b) + negative_cosine(p_b, z_a))
    torch.testing.assert_close(byol, 4 + 4 * simsiam)


@pytest.mark.parametrize("loss", [byol_loss, negative_cosine])
def test_gradients(loss):
    p, z = (v.requires_grad_() for v in vectors())
    grad_p, grad_z = torch.autograd.grad(loss(p, z), (p, z), allow_unused=True)
    assert grad_z is None
    torch.testing.assert_close((grad_p * p).sum(1), torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)
    tripled = (3 * p).detach().requires_grad_()
    torch.testing.assert_close(loss(tripled, z), loss(p, z))
    (grad_tripled,) = torch.autograd.grad(loss(tripled, z), (tripled,))
    torch.testing.assert_close(grad_tripled, grad_p / 3)
    torch.autograd.gradcheck(lambda x: loss(x, z.detach()), (p,))


def byol(tau_base=0.9):
    torch.manual_seed(0)
    options = BYOL.Options(projector=(16, 8), predictor_hidden=12, tau_base=tau_base)
    return BYOL(build_backbone("resnet10", width=4), options)


def images(seed=0, n=8):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, 16, 16, generator=generator) for _ in range(2)]


def test_byol_loss_is_the_sum_of_both_directions_over_separate_passes():
    method = byol()
    twin = copy.deepcopy(method)
    a, b = images()
    total = method.loss([a, b], None, Progress(0, 10, 5)).total
    p_a, p_b = (twin.predictor(twin.projector(twin.backbone(x))) for x in (a, b))
    z_a, z_b = (twin.target_projector(twin.target_backbone(x)) for x in (a, b))
    expected = (2 - 2 * torch.cosine_similarity(p_a, z_b)).mean() + (
        2 - 2 * torch.cosine_similarity(p_b, z_a)
    ).mean()
    torch.testing.assert_close(total, expected)
    swapped = copy.deepcopy(twin).loss([b, a], None, Progress(0, 10, 5)).total
    torch.testing.assert_close(swapped, total)


def test_byol_target_gets_no_gradient_but_its_own_statistics():
    method = byol()
    before = method.target_backbone.bn1.running_mean.clone()
    method.loss(images(), None, Progress(0, 10, 5)).total.backward()
    online = [*method.backbone.parameters(), *method.projector.parameters(), *method.predictor.parameters()]
    assert all(p.grad is not None for p in online)
    for module in (method.target_backbone, method.target_projector):
        assert not any(p.requires_grad or p.grad is not None for p in module.parameters())
    assert not torch.equal(method.target_backbone.bn1.running_mean, before)
    assert method.target_backbone.bn1.num_batches_tracked == 2
    statistics = method.target_backbone.bn1.running_mean.clone()
    method.after_step(Progress(0, 10, 5))
    assert torch.equal(method.target_backbone.bn1.running_mean, statistics)


@pytest.mark.parametrize("step", [0, 5, 9])
def test_byol_target_follows_the_updated_online_network(step):
    method = byol()
    old = method.target_backbone.conv1.weight.clone()
    method.backbone.conv1.weight.data.normal_()
    method.after_step(Progress(step, 10, 5))
    tau = 1 - 0.1 * (math.cos(math.pi * step / 10) + 1) / 2
    expected = tau * old + (1 - tau) * method.backbone.conv1.weight.detach()
    torch.testing.assert_close(method.target_backbone.conv1.weight, expected)


def simsiam():
    torch.manual_seed(0)
    return SimSiam(
        build_backbone("resnet10", width=4), SimSiam.Options(projector=(16, 16, 8), predictor_hidden=4)
    )


def test_simsiam_loss_is_the_mean_of_both_directions():
    method = simsiam()
    a, b = images()
    result = method.loss([a, b], None, Progress(0, 1, 1))
    z_a, z_b = (method.projector(method.backbone(x)) for x in (a, b))
    p_a, p_b = method.predictor(z_a), method.predictor(z_b)
    expected = -(torch.cosine_similarity(p_a, z_b) + torch.cosine_similarity(p_b, z_a)).mean() / 2
    torch.testing.assert_close(result.total, expected)
    torch.testing.assert_close(method.loss([b, a], None, Progress(0, 1, 1)).total, expected)
    spread = torch.nn.functional.normalize(z_a, dim=1).std(0).mean()
    torch.testing.assert_close(result.parts["embedding_std"], spread.detach())


def test_simsiam_decays_everything_and_keeps_the_predictor_rate():
    method = simsiam()
    weights, predictor = method.parameter_groups(1e-4)
    assert (weights["schedule"], predictor["schedule"]) == ("scheduled", "constant")
    assert {weights["weight_decay"], predictor["weight_decay"]} == {1e-4}
    assert {id(p) for p in predictor["params"]} == {id(p) for p in method.predictor.parameters()}
    assert method.projector[6].bias is None
    assert method.predictor[-1].bias is not None


def test_simsiam_encoder_learns_through_the_predictor_alone():
    """The gradient is the one with the projections as constants; without the predictor's path there is none."""
    method = simsiam()
    twin = copy.deepcopy(method)
    a, b = images()
    method.loss([a, b], None, Progress(0, 1, 1)).total.backward()
    z_a, z_b = (twin.projector(twin.backbone(x)) for x in (a, b))
    constants = z_a.detach(), z_b.detach()
    p_a, p_b = twin.predictor(z_a), twin.predictor(z_b)
    loss = -sum(
        torch.cosine_similarity(p, z).mean() for p, z in zip((p_a, p_b), constants[::-1], strict=True)
    )
    (loss / 2).backward()
    for (name, p), q in zip(method.named_parameters(), twin.parameters(), strict=True):
        assert p.grad.abs().sum() > 0, name
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("epoch", [0, 50, 99])
def test_simsiam_encoder_follows_the_cosine_and_the_predictor_does_not(epoch):
    optimizer = build_optimizer(OptimizerSpec(base_lr=0.05), simsiam().parameter_groups(1e-4), 512)
    for step in (10 * epoch, 10 * epoch + 9):
        set_learning_rates(optimizer, lr_factor(ScheduleSpec(per="epoch"), step, 1000, 10))
        encoder, predictor = (group["lr"] for group in optimizer.param_groups)
        assert encoder == pytest.approx(0.1 * (1 + math.cos(math.pi * epoch / 100)) / 2)
        assert predictor == 0.1
