"""Batch normalisation over groups of the global batch (`foundation.norms` has that over all of it)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinbench.foundation.collectives import mean_over_ranks, world_size
from twinbench.foundation.errors import InputError
from twinbench.foundation.norms import share_state


class SplitBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation in consecutive groups: ``splits`` groups of the *global* batch ``[N, C, H, W]``.

    On one device it equals ``splits`` ranks with local statistics, which MoCo's shuffling needs (He et al.,
    arXiv:1911.05722, section 3.3); on W ranks each normalises ``splits / W`` groups of its share, so the
    groups do not depend on the number of devices. Raises InputError if the division leaves a remainder.
    """

    def __init__(self, num_features: int, splits: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.splits = splits

    def _local_groups(self, batch: int) -> int:
        ranks = world_size()
        if self.splits % ranks or batch % (self.splits // ranks):
            raise InputError(
                f"{self.splits} groups do not divide a batch of {batch * ranks} on {ranks} devices evenly",
                where="options.bn_splits",
                next_step="set it to a multiple of the number of devices that divides batch_size",
            )
        return self.splits // ranks

    def forward(self, input: Tensor) -> Tensor:
        """Normalise every group with its own statistics when training, with the running ones otherwise."""
        if not self.training:
            return super().forward(input)
        groups = self._local_groups(input.shape[0])
        step = 0.1 if self.momentum is None else self.momentum
        outputs = []
        for index, group in enumerate(input.chunk(groups)):
            # These weights make the sequential updates equal to one update with the mean over the groups.
            weight = (step / groups) / (1 - (groups - 1 - index) * step / groups)
            outputs.append(
                F.batch_norm(
                    group, self.running_mean, self.running_var, self.weight, self.bias, True, weight, self.eps
                )
            )
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return torch.cat(outputs)


def split_batch_norms(module: nn.Module, splits: int) -> None:
    """Replace every ``nn.BatchNorm2d`` below ``module`` by a `SplitBatchNorm2d`, in place."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            new = SplitBatchNorm2d(child.num_features, splits, child.eps, child.momentum or 0.1)
            share_state(new, child)
            setattr(module, name, new)
        else:
            split_batch_norms(child, splits)


@torch.no_grad()
def average_running_statistics(module: nn.Module) -> None:
    """Replace running means and variances by their averages over the ranks.

    For norms with per-rank statistics: the update is linear, so averaging after every step gives exactly the
    running statistics of one process with the same groups.
    """
    if world_size() == 1:
        return
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    buffers = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
    averages = mean_over_ranks(torch.cat([b.flatten() for b in buffers]))
    for buffer, average in zip(buffers, averages.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(average.view_as(buffer))
