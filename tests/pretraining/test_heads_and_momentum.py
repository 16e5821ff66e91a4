"""Projector sizes as the papers give them; the moving average."""

import pytest
import torch
from torch import nn

from twinbench.pretraining.heads import mlp
from twinbench.pretraining.momentum import ema_update, momentum_copy


def count(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("head", "parameters"),
    [
        (lambda: mlp((2048, 8192, 8192, 8192)), 150_994_944 + 32_768),
        (lambda: mlp((2048, 2048, 128), last_norm="scale_only"), 4_460_672),
        (lambda: mlp((2048, 4096, 256), bias=True), 9_449_472),
        (lambda: mlp((256, 4096, 256), bias=True), 2_109_440),
        (lambda: mlp((2048, 2048, 128), bias=True, last_bias=True), 4_462_720),
        (lambda: mlp((2048, 512, 2048), last_bias=True), 2_100_224),
        (lambda: mlp((2048, 2048, 128), bias=True, norm=False, last_bias=True), 4_458_624),
    ],
    ids=["barlow", "simclr", "byol-projector", "byol-predictor", "swav", "simsiam-predictor", "moco"],
)
def test_head_sizes(head, parameters):
    with torch.device("meta"):
        assert count(head()) == parameters


def test_simsiam_projector_ends_in_a_norm_without_parameters():
    projector = mlp((6, 5, 4, 3), last_norm="no_affine")
    assert [type(layer).__name__ for layer in projector] == [
        *("Linear", "BatchNorm1d", "ReLU") * 2,
        *("Linear", "BatchNorm1d"),
    ]
    x = torch.randn(8, 6)
    shifted = projector(x)
    projector[6].bias = nn.Parameter(torch.randn(3))
    torch.testing.assert_close(projector(x), shifted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.99, 1.0])
def test_moving_average_of_parameters_only(momentum):
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    target = momentum_copy(online)
    assert not any(p.requires_grad for p in target.parameters())
    old = [p.clone() for p in target.parameters()]
    for p in online.parameters():
        p.data.normal_()
    online(torch.randn(6, 3))
    ema_update(target, online, momentum)
    for p, before, new in zip(target.parameters(), old, online.parameters(), strict=True):
        expected = momentum * before + (1 - momentum) * new.detach()
        torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-7)
        if momentum in (0.0, 1.0):
            assert torch.equal(p, expected)
    assert torch.equal(target[1].running_mean, torch.zeros(4))
