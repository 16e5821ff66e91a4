"""Stop at the first non-finite loss, and say which tensor went wrong first."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from twinbench.foundation.errors import RunFailure
from twinbench.pretraining.batches import MicroBatch
from twinbench.pretraining.engine import Engine
from twinbench.pretraining.method import LossParts, Progress

_LOWER_RATE = "lower optimizer.base_lr or lengthen schedule.warmup_epochs"


def check_finite(
    loss: LossParts, model: nn.Module, batch: list[MicroBatch], progress: Progress, lr: float, engine: Engine
) -> None:
    """Raise RunFailure naming step, learning rate and tensor unless the loss is finite on every rank.

    To be called before the update: the parameters must still be those that the loss was computed with.
    """
    value = loss.total.item()
    if not engine.any_rank(not math.isfinite(value)):
        return
    name = _first_non_finite(model, batch, progress, engine)
    raise RunFailure(
        f"the loss became {value}; the first tensor to go wrong: {name}",
        where=f"step {progress.step}, learning rate {lr:.3g}",
        next_step=_LOWER_RATE,
    )


def check_parameters(method: nn.Module) -> None:
    """Raise RunFailure if the last update left a parameter that is not finite."""
    name = _non_finite_parameter(method)
    if name is not None:
        raise RunFailure(
            f"parameter {name} is not finite", where="after the last step", next_step=_LOWER_RATE
        )


def _non_finite_parameter(module: nn.Module) -> str | None:
    names = (name for name, parameter in module.named_parameters() if not parameter.isfinite().all())
    return next((_plain(name) for name in names), None)


@torch.no_grad()
def _first_non_finite(model: nn.Module, batch: list[MicroBatch], progress: Progress, engine: Engine) -> str:
    """In the order of the computation: views, parameters, module outputs (of a second forward pass).

    Every rank takes the same way, since the forward pass has collectives.
    """
    for index, view in enumerate(view for micro in batch for view in micro.views):
        if engine.any_rank(not bool(view.isfinite().all())):
            return f"view {index}"
    parameter = _non_finite_parameter(model)
    if parameter is not None:
        return f"parameter {parameter}"
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not output.isfinite().all():
                found.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    for views, labels in batch:
        model(views, labels, progress)
    for handle in handles:
        handle.remove()
    return f"output of {_plain(found[0])}" if found else "the loss itself"


def _plain(name: str) -> str:
    """A name without the wrappers' prefixes."""
    for prefix in ("_forward_module.", "module."):
        name = name.removeprefix(prefix)
    return name
