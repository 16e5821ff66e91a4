"""Stop at the first non-finite loss, and say which tensor went wrong first."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from twinbench.foundation.errors import RunFailure
from twinbench.pretraining.batches import MicroBatch
from twinbench.pretraining.engine import Engine
from twinbench.pretraining.method import Progress

_LOWER_RATE = "lower optimizer.base_lr or lengthen schedule.warmup_epochs"


class Diverged(RunFailure):
    """A training whose numbers are no longer finite: its settings are to blame, not the machine."""


class _Unread(NamedTuple):
    progress: Progress
    lr: float
    loss: Tensor


class LossWatch:
    """Ends a run at the first loss that is not finite, without waiting for the device more often than it must.

    Whoever reads a number waits until the device has computed it. On a CPU it has, so each loss is read before its
    update; on a GPU losses stay there until somebody needs one (``each_step`` says which of the two; the device by
    default). ``latest`` is the last loss that was read, None before the first.
    """

    def __init__(self, model: nn.Module, engine: Engine, each_step: bool | None = None) -> None:
        self._model, self._engine = model, engine
        self.each_step = engine.device.type != "cuda" if each_step is None else each_step
        self.latest: float | None = None
        self._unread: list[_Unread] = []

    def add(self, loss: Tensor, progress: Progress, lr: float) -> None:
        """Note the loss of a step, a scalar, and the learning rate of its update."""
        self._unread.append(_Unread(progress, lr, loss.detach()))

    def check(self, batch: list[MicroBatch], progress: Progress) -> None:
        """Read every loss since the last time; ``batch`` and ``progress`` are those of the step at hand.

        Raises Diverged naming step, learning rate and tensor unless they are finite on every rank. The tensor is
        looked for with the parameters as they are now. Before the update of the step at hand these are the ones that
        its loss was computed with; of a loss further back the error says how many steps later it looked. Every rank
        must call this after the same step.
        """
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        values = torch.stack([one.loss for one in unread]).tolist()
        self.latest = values[-1]
        wrong = next((i for i, value in enumerate(values) if not math.isfinite(value)), len(values) - 1)
        if self._engine.any_rank(not math.isfinite(values[wrong])):
            self._fail(unread[wrong], values[wrong], batch, progress)

    def _fail(self, step: _Unread, value: float, batch: list[MicroBatch], now: Progress) -> None:
        name = _first_non_finite(self._model, batch, now, self._engine)
        late = now.step - step.progress.step
        raise Diverged(
            f"the loss became {value}; the first tensor to go wrong"
            + (f", looked for {late} step{'s' * (late > 1)} later" if late else "")
            + f": {name}",
            where=f"step {step.progress.step}, learning rate {step.lr:.3g}",
            next_step=_LOWER_RATE,
        )


def check_parameters(method: nn.Module, steps: int) -> None:
    """Raise Diverged if the last of so many updates left a parameter that is not finite."""
    name = _non_finite_parameter(method)
    if name is not None:
        raise Diverged(f"parameter {name} is not finite", where=f"after step {steps}", next_step=_LOWER_RATE)


def _non_finite_parameter(module: nn.Module) -> str | None:
    names = [name for name, _ in module.named_parameters()]
    finite = torch.stack([parameter.isfinite().all() for parameter in module.parameters()]).tolist()
    return next((_plain(name) for name, good in zip(names, finite, strict=True) if not good), None)


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
