"""Projectors and predictors: multi-layer perceptrons as the papers' code builds them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

LastNorm = Literal["none", "scale_only", "no_affine"]


def mlp(
    dims: Sequence[int],
    *,
    bias: bool = False,
    norm: bool = True,
    last_bias: bool = False,
    last_norm: LastNorm = "none",
) -> nn.Sequential:
    """Linear layers of widths ``dims`` on ``[N, dims[0]]``, with batch norm and ReLU between them.

    ``bias`` and ``norm`` concern the hidden layers; ``last_bias`` and ``last_norm`` the output layer, which
    has no ReLU. ``last_norm`` is batch norm with a scale only (SimCLR) or without any parameter (SimSiam).
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(dims[:-1]):
        layers.append(nn.Linear(width_in, width_out, bias=bias))
        if norm:
            layers.append(nn.BatchNorm1d(width_out))
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(dims[-2], dims[-1], bias=last_bias))
    if last_norm == "scale_only":
        output_norm = nn.BatchNorm1d(dims[-1])
        output_norm.bias.requires_grad_(False)  # stays at its initial zero
        layers.append(output_norm)
    elif last_norm == "no_affine":
        layers.append(nn.BatchNorm1d(dims[-1], affine=False))
    return nn.Sequential(*layers)
