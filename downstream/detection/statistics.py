"""The final statistics of a detector's batch norms, estimated as Detectron2's trainer does it, with fvcore."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from twinbench.foundation.collectives import all_reduce_sum

T = TypeVar("T")


@torch.no_grad()
def estimate_statistics(model: nn.Module, batches: Iterable[T], forward: Callable[[T], object]) -> None:
    """Set batch norm's mean and variance to those of all positions of some batches together, of every rank's part.

    ``forward`` applies the model, which is left in training mode. Sums are float64.
    """
    model.train()
    moments = {norm: _Moments(norm) for norm in model.modules() if isinstance(norm, _BatchNorm)}
    hooks = [norm.register_forward_pre_hook(kept.add) for norm, kept in moments.items()]
    for batch in batches:
        forward(batch)
    for hook, kept in zip(hooks, moments.values(), strict=True):
        hook.remove()
        kept.set()


class _Moments:
    """Sums over what a batch norm sees."""

    def __init__(self, norm: _BatchNorm) -> None:
        self._norm, self._count = norm, 0
        self._sum = self._squares = torch.zeros(norm.num_features, dtype=torch.float64)

    def add(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        """Count all positions of a batch ``[N, C, H, W]``."""
        positions = inputs[0].transpose(0, 1).flatten(1).double().cpu()
        self._count += positions.shape[1]
        self._sum = self._sum + positions.sum(1)
        self._squares = self._squares + positions.square().sum(1)

    def set(self) -> None:
        """Make those of all ranks the norm's running statistics."""
        assert self._norm.running_mean is not None
        assert self._norm.running_var is not None
        own = torch.cat([self._sum, self._squares, self._sum.new_tensor([self._count])])
        totals = all_reduce_sum(own.to(self._norm.running_mean.device)).cpu()
        mean, squares = (totals[:-1] / totals[-1]).chunk(2)
        self._norm.running_mean.copy_(mean)
        self._norm.running_var.copy_(squares - mean.square())
