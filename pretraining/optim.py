"""Optimizers, and the one place where the learning rate is scaled with the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from pretraining.recipe import OptimizerSpec

_REFERENCE_BATCH = 256


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling with momentum (You et al., arXiv:1708.03888).

    The variant of the official Barlow Twins and BYOL code: with ``d = gradient + weight_decay * p`` and
    ``q = trust_coefficient * |p| / |d|`` (1 if either norm is 0), ``u = momentum * u + q * d`` and ``p -= lr
    * u``. A group with ``lars_exclude=True`` gets neither the scaling nor weight decay: plain SGD with
    momentum.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "lars_exclude": False,
        }
        super().__init__(params, defaults)

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
            directions = _adapted(params, directions, group["weight_decay"], group["trust_coefficient"])
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, directions)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])


def _adapted(params: list[Tensor], gradients: list[Tensor], decay: float, trust: float) -> list[Tensor]:
    """Decayed gradients scaled to ``trust`` times the norm of their parameters."""
    directions = list(torch._foreach_add(gradients, params, alpha=decay))
    parameter_norms = torch.stack(torch._foreach_norm(params))
    direction_norms = torch.stack(torch._foreach_norm(directions))
    usable = (parameter_norms > 0) & (direction_norms > 0)
    scales = torch.where(usable, trust * parameter_norms / direction_norms, torch.ones_like(parameter_norms))
    torch._foreach_mul_(directions, list(scales.unbind()))
    return directions


def resolved_lr(spec: OptimizerSpec, batch_size: int) -> float:
    """The peak learning rate handed to the optimizer: ``base_lr * global batch / 256``.

    This is the only place where a learning rate is scaled.
    """
    return spec.base_lr * batch_size / _REFERENCE_BATCH


def build_optimizer(spec: OptimizerSpec, groups: list[dict[str, Any]], batch_size: int) -> Optimizer:
    """The optimizer of a recipe over a method's parameter groups (see `Method.parameter_groups`).

    Each group keeps its peak learning rate under ``peak_lr`` for `set_learning_rates`. ``batch_size`` is the
    global one. Empty groups are left out.
    """
    lr = resolved_lr(spec, batch_size)
    used = [
        {**group, "lr": lr * group["lr_scale"], "peak_lr": lr * group["lr_scale"]}
        for group in groups
        if group["params"]
    ]
    if spec.name == "lars":
        return LARS(used, lr, spec.momentum, spec.weight_decay, spec.trust_coefficient)
    if spec.name == "sgd":
        return SGD(used, lr, momentum=spec.momentum, weight_decay=spec.weight_decay)
    return AdamW(used, lr, weight_decay=spec.weight_decay)


def set_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Set each group to ``factor`` times its peak; ``schedule == "constant"`` keeps a group at its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * (1.0 if group["schedule"] == "constant" else factor)
