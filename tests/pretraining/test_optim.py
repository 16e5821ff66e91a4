"""LARS against worked numbers and a plain loop; the scaling of the learning rate."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from pretraining.optim import LARS, build_optimizer, resolved_lr, set_learning_rates
from pretraining.recipe import OptimizerSpec


def parameter(values, gradient):
    p = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    p.grad = torch.tensor(gradient, dtype=torch.float64)
    return p


def test_worked_numbers():
    p = parameter([3.0, 4.0], [-0.8, 0.6])
    LARS([p], lr=1.0, weight_decay=0.1, trust_coefficient=0.001).step()
    moved = torch.tensor([3.0, 4.0], dtype=torch.float64) - p.detach()
    expected = torch.tensor([-0.00223607, 0.00447214], dtype=torch.float64)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-8)


def test_the_learning_rate_stays_outside_the_momentum_buffer():
    """Variant A moves by 1.19 where the variant with the rate inside the buffer moves by 2.0."""
    p = parameter([0.0], [1.0])
    optimizer = LARS([{"params": [p], "lars_exclude": True}], lr=1.0)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert -p.item() == pytest.approx(1.19)


@pytest.mark.parametrize(("values", "gradient"), [([0.0, 0.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 0.0])])
def test_a_zero_norm_means_no_scaling(values, gradient):
    p = parameter(values, gradient)
    LARS([p], lr=0.5).step()
    expected = torch.tensor(values, dtype=torch.float64) - 0.5 * torch.tensor(gradient, dtype=torch.float64)
    torch.testing.assert_close(p.detach(), expected)


def test_excluded_tensors_are_plain_sgd_without_decay():
    torch.manual_seed(0)
    start = torch.randn(5)
    ours, reference = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    lars = LARS([{"params": [ours], "lars_exclude": True, "weight_decay": 0.5}], lr=0.1)
    sgd = SGD([reference], lr=0.1, momentum=0.9)
    for _ in range(4):
        ours.grad = torch.randn(5)
        reference.grad = ours.grad.clone()
        lars.step()
        sgd.step()
    torch.testing.assert_close(ours, reference)


def test_several_steps_equal_a_plain_loop():
    torch.manual_seed(0)
    shapes = [(4, 3), (2, 4), (3,)]
    params = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    plain = [p.detach().clone() for p in params]
    buffers = [torch.zeros_like(p) for p in plain]
    optimizer = LARS(params, lr=0.3, weight_decay=0.01, trust_coefficient=0.02)
    for step in range(5):
        optimizer.param_groups[0]["lr"] = lr = 0.3 / (step + 1)
        for p, q, u in zip(params, plain, buffers, strict=True):
            p.grad = torch.randn(p.shape, dtype=torch.float64)
            d = p.grad + 0.01 * q
            u.mul_(0.9).add_(0.02 * q.norm() / d.norm() * d)
            q.sub_(lr * u)
        optimizer.step()
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p.detach(), q)


def test_scaling_the_loss_changes_only_excluded_tensors():
    steps = []
    for scale in (1.0, 32.0):
        adapted, excluded = parameter([3.0, 4.0], [0.5 * scale, 1.0 * scale]), parameter([1.0], [0.1 * scale])
        LARS([{"params": [adapted]}, {"params": [excluded], "lars_exclude": True}], lr=1.0).step()
        steps.append((adapted.detach(), excluded.detach()))
    torch.testing.assert_close(steps[0][0], steps[1][0])
    assert not torch.allclose(steps[0][1], steps[1][1])


def test_parameters_without_gradient_are_left_alone():
    p = nn.Parameter(torch.ones(2))
    LARS([p], lr=1.0, weight_decay=1.0).step()
    assert torch.equal(p.detach(), torch.ones(2))


def test_state_survives_saving():
    first, second = parameter([3.0, 4.0], [1.0, 1.0]), parameter([3.0, 4.0], [1.0, 1.0])
    optimizer = LARS([first], lr=0.1)
    optimizer.step()
    restored = LARS([second], lr=0.1)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    second.data.copy_(first.data)
    optimizer.step()
    restored.step()
    assert torch.equal(first, second)


def group(params, **changes):
    common = {"name": "weights", "weight_decay": 0.1, "lars_exclude": False, "lr_scale": 1.0}
    return {**common, "params": params, "schedule": "scheduled", **changes}


@pytest.mark.parametrize(("name", "kind"), [("sgd", SGD), ("lars", LARS), ("adamw", AdamW)])
def test_build_optimizer_scales_the_rate_once_and_keeps_group_settings(name, kind):
    spec = OptimizerSpec(name=name, base_lr=0.2)
    assert resolved_lr(spec, 2048) == pytest.approx(1.6)
    first, second = parameter([1.0], [1.0]), parameter([1.0], [1.0])
    groups = [
        group([first]),
        group([second], lr_scale=0.024, weight_decay=0.0, schedule="constant"),
        group([]),
    ]
    optimizer = build_optimizer(spec, groups, 2048)
    assert isinstance(optimizer, kind)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1.6, 0.0384])
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    set_learning_rates(optimizer, 0.5)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.8, 0.0384])
