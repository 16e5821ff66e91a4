"""LARS, which pretraining and one of the linear evaluations train with; torch has none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

_LARC_EPSILON = 1e-8

LARSVariant = Literal["lars", "lars_simclr", "larc"]


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling with momentum (You et al., arXiv:1708.03888), as three codes have it.

    With gradient g, parameter p and the norms of whole tensors:

    * ``lars`` (official Barlow Twins and BYOL code): ``d = g + weight_decay * p``, ``q = trust_coefficient *
      |p| / |d|`` (1 if either norm is 0), ``u = momentum * u + q * d`` and ``p -= lr * u``;
    * ``lars_simclr`` (official SimCLR code): the same d and q, but the rate is inside the buffer: ``u =
      momentum * u + lr * q * d`` and ``p -= u``. The two part when the rate changes;
    * ``larc`` (NVIDIA apex, which the official SwAV code uses): ``q = trust_coefficient * |p| / (|g| +
      weight_decay * |p| + 1e-8)`` and then as ``lars``. Where |p| or |g| is 0 the gradient is taken as it is,
      without decay.

    A group with ``lars_exclude=True`` gets neither the scaling nor weight decay: plain SGD with momentum.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        variant: LARSVariant = "lars",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "lars_exclude": False,
        }
        super().__init__(params, defaults)
        self.variant = variant

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        directions = [p.grad for p in params if p.grad is not None]
        if not group["lars_exclude"]:
            adapt = _larc_directions if self.variant == "larc" else _lars_directions
            directions = adapt(params, directions, group["weight_decay"], group["trust_coefficient"])
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        into_buffer, out_of_it = (group["lr"], 1.0) if self.variant == "lars_simclr" else (1.0, group["lr"])
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, directions, alpha=into_buffer)
        torch._foreach_add_(params, buffers, alpha=-out_of_it)


def _lars_directions(
    params: list[Tensor], gradients: list[Tensor], decay: float, trust: float
) -> list[Tensor]:
    """Decayed gradients scaled to ``trust`` times the norm of their parameters."""
    directions = list(torch._foreach_add(gradients, params, alpha=decay))
    parameter_norms, direction_norms = _norms(params), _norms(directions)
    usable = (parameter_norms > 0) & (direction_norms > 0)
    scales = torch.where(usable, trust * parameter_norms / direction_norms, torch.ones_like(parameter_norms))
    torch._foreach_mul_(directions, list(scales.unbind()))
    return directions


def _larc_directions(
    params: list[Tensor], gradients: list[Tensor], decay: float, trust: float
) -> list[Tensor]:
    """Decayed gradients scaled by the norms that the gradients have before the decay."""
    directions = list(torch._foreach_add(gradients, params, alpha=decay))
    parameter_norms, gradient_norms = _norms(params), _norms(gradients)
    scales = trust * parameter_norms / (gradient_norms + decay * parameter_norms + _LARC_EPSILON)
    # Without a parameter the decayed gradient is the gradient; without a gradient only the decay is left.
    scales = torch.where(parameter_norms > 0, scales, torch.ones_like(scales))
    scales = torch.where(gradient_norms > 0, scales, torch.zeros_like(scales))
    torch._foreach_mul_(directions, list(scales.unbind()))
    return directions


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors))
