"""LARS against worked numbers and a plain loop; the scaling of the learning rate."""

import ast
import copy
import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

import twinbench.pretraining.optim
from twinbench.pretraining.optim import LARS, build_optimizer, resolved_lr, set_learning_rates
from twinbench.pretraining.recipe import OptimizerSpec


def parameter(values, gradient):
    p = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    p.grad = torch.tensor(gradient, dtype=torch.float64)
    return p


@pytest.mark.parametrize(
    ("variant", "moved"),
    [
        ("lars", [-0.00223607, 0.00447214]),
        ("lars_simclr", [-0.00223607, 0.00447214]),
        ("larc", [-0.00166667, 0.00333333]),
    ],
)
def test_worked_numbers(variant, moved):
    """|p| = 5, |g| = 1, g + 0.1 p = (-0.5, 1)."""
    p = parameter([3.0, 4.0], [-0.8, 0.6])
    LARS([p], lr=1.0, weight_decay=0.1, trust_coefficient=0.001, variant=variant).step()
    step = torch.tensor([3.0, 4.0], dtype=torch.float64) - p.detach()
    torch.testing.assert_close(step, torch.tensor(moved, dtype=torch.float64), rtol=0, atol=1e-8)


def displacement(variant, rates):
    """How far a tensor moves whose adapted gradient is 1 at every step."""
    p = parameter([0.0], [1.0])
    optimizer = LARS([{"params": [p], "lars_exclude": True}], lr=1.0, variant=variant)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return -p.item()


def test_only_simclr_has_the_learning_rate_inside_the_momentum_buffer():
    """By hand, momentum 0.9: 1 + 0.1 * 1.9 where the rate is outside, 1 + (0.9 + 0.1) where it is inside."""
    assert displacement("lars", [1.0, 0.1]) == pytest.approx(1.19)
    assert displacement("larc", [1.0, 0.1]) == pytest.approx(1.19)
    assert displacement("lars_simclr", [1.0, 0.1]) == pytest.approx(2.0)
    assert displacement("lars_simclr", [0.3] * 5) == pytest.approx(displacement("lars", [0.3] * 5))


@pytest.mark.parametrize("variant", ["lars", "lars_simclr", "larc"])
@pytest.mark.parametrize(("values", "gradient"), [([0.0, 0.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 0.0])])
def test_a_zero_norm_means_no_scaling(values, gradient, variant):
    p = parameter(values, gradient)
    LARS([p], lr=0.5, variant=variant).step()
    expected = torch.tensor(values, dtype=torch.float64) - 0.5 * torch.tensor(gradient, dtype=torch.float64)
    torch.testing.assert_close(p.detach(), expected)


@pytest.mark.parametrize(("variant", "left"), [("lars", 5 - 0.001 * 5), ("larc", 5.0)])
def test_without_a_gradient_only_larc_leaves_the_decay_out(variant, left):
    """LARS scales the decay alone to 0.001 of the norm; LARC takes the gradient, zero, as it is."""
    p = parameter([3.0, 4.0], [0.0, 0.0])
    LARS([p], lr=1.0, weight_decay=0.1, variant=variant).step()
    assert p.detach().norm().item() == pytest.approx(left, abs=1e-12)


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


def plain_step(variant, p, g, buffer, lr):
    """One tensor at a time, as the three official codes write it; weight decay 0.01, trust 0.02."""
    if variant == "larc":
        direction = g
        if p.norm() > 0 and g.norm() > 0:
            direction = 0.02 * p.norm() / (g.norm() + 0.01 * p.norm() + 1e-8) * (g + 0.01 * p)
    else:
        d = g + 0.01 * p
        direction = 0.02 * p.norm() / d.norm() * d if p.norm() > 0 and d.norm() > 0 else d
    if variant == "lars_simclr":
        buffer.mul_(0.9).add_(lr * direction)
        p.sub_(buffer)
    else:
        buffer.mul_(0.9).add_(direction)
        p.sub_(lr * buffer)


@pytest.mark.parametrize("variant", ["lars", "lars_simclr", "larc"])
def test_several_steps_equal_a_plain_loop(variant):
    torch.manual_seed(0)
    start = [torch.randn(4, 3), torch.randn(2, 4), torch.randn(3), torch.zeros(5)]
    params = [nn.Parameter(values.double()) for values in start]
    plain = [p.detach().clone() for p in params]
    buffers = [torch.zeros_like(p) for p in plain]
    optimizer = LARS(params, lr=0.3, weight_decay=0.01, trust_coefficient=0.02, variant=variant)
    for step in range(5):
        optimizer.param_groups[0]["lr"] = lr = 0.3 / (step + 1)
        for p, q, buffer in zip(params, plain, buffers, strict=True):
            p.grad = torch.randn(p.shape, dtype=torch.float64) * (step != 2 or p.ndim > 1)
            plain_step(variant, q, p.grad, buffer, lr)
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


KINDS = {"sgd": SGD, "lars": LARS, "lars_simclr": LARS, "larc": LARS, "adamw": AdamW}


@pytest.mark.parametrize("name", get_args(OptimizerSpec.model_fields["name"].annotation))
def test_build_optimizer_scales_the_rate_once_and_keeps_group_settings(name):
    spec = OptimizerSpec(name=name, base_lr=0.2)
    assert resolved_lr(spec, 2048) == pytest.approx(1.6)
    first, second = parameter([1.0], [1.0]), parameter([1.0], [1.0])
    groups = [
        group([first]),
        group([second], lr_scale=0.024, weight_decay=0.0, schedule="constant"),
        group([]),
    ]
    optimizer = build_optimizer(spec, groups, 2048)
    assert isinstance(optimizer, KINDS[name])
    assert getattr(optimizer, "variant", name) == name
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1.6, 0.0384])
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    set_learning_rates(optimizer, 0.5)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.8, 0.0384])


@pytest.mark.parametrize("name", KINDS)
def test_the_momentum_of_a_recipe_reaches_every_optimizer(name):
    optimizer = build_optimizer(
        OptimizerSpec(name=name, base_lr=0.2, momentum=0.7), [group([parameter([1.0], [1.0])])], 256
    )
    (settings,) = optimizer.param_groups
    assert settings.get("momentum", settings.get("betas", (None,))[0]) == 0.7


def test_excluding_nothing_decays_and_adapts_the_groups_that_a_method_leaves_out():
    groups = [group([parameter([1.0], [1.0])], weight_decay=0.0, lars_exclude=True)]
    for nothing, expected in ((False, (0.0, True)), (True, (0.5, False))):
        spec = OptimizerSpec(name="larc", base_lr=0.2, weight_decay=0.5, exclude_nothing=nothing)
        (settings,) = build_optimizer(spec, groups, 256).param_groups
        assert (settings["weight_decay"], settings["lars_exclude"]) == expected


def test_the_learning_rate_of_a_recipe_is_read_in_one_place():
    root = Path(twinbench.pretraining.optim.__file__).parents[1]
    readers = [
        (path.name, node.lineno)
        for folder in ("pretraining", "baselines", "harness")
        for path in (root / folder).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "base_lr"
    ]
    assert [name for name, _ in readers] == ["optim.py"]


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_a_step_that_overflows_in_fp16_leaves_no_trace(name):
    """The first step and a later one overflow; the weights are those of the other steps alone, in fp32."""
    gradients = [math.inf, 1.0, -2.0, math.nan, 0.5, 3.0]
    spec = OptimizerSpec(name=name, base_lr=0.1, momentum=0.9, weight_decay=0.01)

    def weights_after(precision: str, gradients: list[float]) -> Tensor:
        weights = nn.Parameter(torch.linspace(1.0, 2.0, 64))
        optimizer = build_optimizer(spec, [group([weights])], 256, precision)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=precision == "fp16")
        for gradient in gradients:
            optimizer.zero_grad()
            scaler.scale((weights * gradient).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        return weights.detach()

    found = weights_after("fp16", gradients)
    torch.testing.assert_close(found, weights_after("fp32", [g for g in gradients if math.isfinite(g)]))
    assert not torch.equal(found, torch.linspace(1.0, 2.0, 64))
