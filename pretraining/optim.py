"""The optimizer of a recipe, and the one place where the learning rate is scaled with the batch."""

from __future__ import annotations

from typing import Any

from torch.optim import SGD, AdamW, Optimizer

from twinbench.foundation.lars import LARS
from twinbench.pretraining.recipe import OptimizerSpec

_REFERENCE_BATCH = 256


def resolved_lr(spec: OptimizerSpec, batch_size: int) -> float:
    """The peak learning rate handed to the optimizer: ``base_lr * global batch / 256``.

    This is the only place where a learning rate is scaled.
    """
    return spec.base_lr * batch_size / _REFERENCE_BATCH


def build_optimizer(
    spec: OptimizerSpec, groups: list[dict[str, Any]], batch_size: int, precision: str = "fp32"
) -> Optimizer:
    """The optimizer of a recipe over a method's parameter groups (see `Method.parameter_groups`).

    Each group keeps its peak learning rate under ``peak_lr`` for `set_learning_rates`. ``batch_size`` is the
    global one. Empty groups are left out. In fp16 a step whose scaled gradients overflow leaves no trace.
    """
    lr = resolved_lr(spec, batch_size)
    used = [
        {**group, "lr": lr * group["lr_scale"], "peak_lr": lr * group["lr_scale"]}
        for group in groups
        if group["params"]
    ]
    if spec.exclude_nothing:
        used = [{**group, "weight_decay": spec.weight_decay, "lars_exclude": False} for group in used]
    match spec.name:
        case "lars" | "lars_simclr" | "larc":
            return LARS(used, lr, spec.momentum, spec.weight_decay, spec.trust_coefficient, spec.name)
        case "sgd":
            # the fused kernel takes for a momentum what its memory held, after a step that the scaler skips
            fused = precision != "fp16"
            return SGD(used, lr, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=fused)
        case "adamw":
            return AdamW(used, lr, betas=(spec.momentum, 0.999), weight_decay=spec.weight_decay, fused=True)


def set_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Set each group to ``factor`` times its peak; ``schedule == "constant"`` keeps a group at its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * (1.0 if group["schedule"] == "constant" else factor)
