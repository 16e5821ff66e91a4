"""Batch normalisation over the global batch of all ranks, on any device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twinbench.foundation.collectives import all_reduce_sum, world_size


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation with the statistics of all ranks: inputs ``[n, C]`` or ``[n, C, H, W]``.

    What ``nn.SyncBatchNorm`` does on GPUs, for every device; n may differ from rank to rank. Statistics are fp32
    (float64 for float64 input). Its state dict is that of ``nn.BatchNorm2d``.
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
        dims, shape = (0, *range(2, x.ndim)), [1, -1] + [1] * (x.ndim - 2)
        with torch.autocast(input.device.type, enabled=False):
            own = x.new_tensor([x.numel() // x.shape[1]])
            totals = all_reduce_sum(torch.cat([x.sum(dims), own]))
            count = totals[-1].detach()
            mean = totals[:-1] / count
            # in two passes, because the one-pass formula cancels badly in fp32
            centred = x - mean.view(shape)
            variance = all_reduce_sum(centred.square().sum(dims)) / count
            self._update_running_statistics(mean, variance * (count / (count - 1).clamp_min(1)))
            y = centred * torch.rsqrt(variance + self.eps).view(shape)
            if self.affine:
                y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, unbiased: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        weight = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), weight)


def use_global_batches(module: nn.Module) -> None:
    """Where there are several ranks, let every batch norm below ``module``, which is none, use the global batch."""
    if world_size() > 1:
        synchronise_batch_norms(module, next(module.parameters()).device.type)


def synchronise_batch_norms(module: nn.Module, device_type: str) -> nn.Module:
    """Make every plain batch norm below ``module`` use the global batch; returns the module.

    ``nn.SyncBatchNorm`` on CUDA, `GlobalBatchNorm` elsewhere. A subclass of torch's norms stays as it is (torch's own
    converter would replace it): its batch is meant to be another one.
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
    share_state(new, norm)
    return new


def share_state(new: nn.modules.batchnorm._BatchNorm, old: nn.modules.batchnorm._BatchNorm) -> None:
    """Hand over the very parameters and buffers, so that optimizers and ties keep working."""
    for name in ("weight", "bias"):
        setattr(new, name, getattr(old, name))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(old, name))
    new.train(old.training)
