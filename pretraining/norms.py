"""Batch normalisation over the global batch, or over groups of it, on any device."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinbench.foundation.errors import InputError
from twinbench.pretraining.collectives import global_moments, mean_over_ranks, world_size


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation with the statistics of all ranks: inputs ``[n, C]`` or ``[n, C, H, W]``.

    What ``nn.SyncBatchNorm`` does on GPUs, for every device; every rank brings the same shape. Statistics are
    fp32 (float64 for float64 input). Its state dict is that of ``nn.BatchNorm2d``.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected [n, C, ...], got {input.ndim} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise over the batch and spatial dimensions."""
        if world_size() == 1 or not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        x = input if input.dtype == torch.float64 else input.float()
        with torch.autocast(input.device.type, enabled=False):
            mean, variance = global_moments(x, (0, *range(2, x.ndim)))
            self._update_running_statistics(mean, variance, world_size() * x.numel() // x.shape[1])
            y = (x - mean) * torch.rsqrt(variance + self.eps)
            if self.affine:
                shape = [1, -1] + [1] * (x.ndim - 2)
                y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        weight = 0.1 if self.momentum is None else self.momentum
        unbiased = variance.flatten() * (count / max(1, count - 1))
        self.running_mean.lerp_(mean.flatten().to(self.running_mean.dtype), weight)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), weight)


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


def synchronise_batch_norms(module: nn.Module, device_type: str) -> nn.Module:
    """Make every plain batch norm below ``module`` use the global batch; returns the module.

    ``nn.SyncBatchNorm`` on CUDA, `GlobalBatchNorm` elsewhere. `SplitBatchNorm2d` stays as it is: its groups
    are meant to be smaller than the batch (torch's own converter would replace it).
    """
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
        if device_type == "cuda":
            return nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return _as_global(module)  # type: ignore[arg-type]
    for name, child in module.named_children():
        setattr(module, name, synchronise_batch_norms(child, device_type))
    return module


def _as_global(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> GlobalBatchNorm:
    new = GlobalBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    _share_state(new, norm)
    return new


def split_batch_norms(module: nn.Module, splits: int) -> None:
    """Replace every ``nn.BatchNorm2d`` below ``module`` by a `SplitBatchNorm2d`, in place."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            new = SplitBatchNorm2d(child.num_features, splits, child.eps, child.momentum or 0.1)
            _share_state(new, child)
            setattr(module, name, new)
        else:
            split_batch_norms(child, splits)


def _share_state(new: nn.modules.batchnorm._BatchNorm, old: nn.modules.batchnorm._BatchNorm) -> None:
    """Hand over the very parameters and buffers, so that optimizers and ties keep working."""
    for name in ("weight", "bias"):
        setattr(new, name, getattr(old, name))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(old, name))
    new.train(old.training)


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
