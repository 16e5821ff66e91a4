"""Every collective a loss may use; outside a process group each of them is the identity.

Convention: the trainer averages parameter gradients over the ranks, as DistributedDataParallel does, and
every rank holds an equal share of the global batch. A loss that only reaches other ranks through the
functions below then has, after that averaging, exactly the gradient of one process on the concatenated batch:

* statistics go through `all_reduce_sum`, candidates through `all_gather_cat`, whose backward passes sum the
  gradients of all ranks (a raw ``all_reduce`` has no backward pass and leaves 1/W of the true gradient);
* a mean over the own share goes through `mean_over_ranks`, so that every rank reports the global loss.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_EPSILON = 1e-5  # of batch norm


def world_size() -> int:
    """The number of ranks; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The index of this rank; 0 outside a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        gradient = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient


class _AllGatherCat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _gather(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        gradient = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]


def _gather(x: Tensor) -> Tensor:
    shares = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(shares, x.contiguous())
    return torch.cat(shares)


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of ``x`` over the ranks; its backward pass sums the gradients over the ranks."""
    if world_size() == 1:
        return x
    result: Tensor = _AllReduceSum.apply(x)
    return result


def all_gather_cat(x: Tensor) -> Tensor:
    """``[n, ...]`` of every rank, concatenated in rank order to ``[W * n, ...]``.

    The backward pass sums the gathered tensor's gradient over the ranks and keeps the own share. Every rank
    must bring the same shape.
    """
    if world_size() == 1:
        return x
    result: Tensor = _AllGatherCat.apply(x)
    return result


@torch.no_grad()
def all_gather_nograd(x: Tensor) -> Tensor:
    """As `all_gather_cat`, but the result carries no gradient (keys, queues, shuffled images)."""
    return x.detach() if world_size() == 1 else _gather(x.detach())


@torch.no_grad()
def all_reduce_max_nograd(x: Tensor) -> Tensor:
    """The elementwise maximum over the ranks, without gradient."""
    largest = x.detach().clone(memory_format=torch.contiguous_format)
    if world_size() > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of ``x`` over the ranks.

    Applied to the mean loss of each rank's share it gives the loss of the global batch on every rank, while
    the gradient stays that of the own share.
    """
    return all_reduce_sum(x) / world_size()


def global_moments(x: Tensor, dims: tuple[int, ...] = (0,)) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the global batch over ``dims``, which are kept with length 1.

    Two passes, because the one-pass formula cancels badly in fp32.
    """
    mean = mean_over_ranks(x.mean(dims, keepdim=True))
    variance = mean_over_ranks((x - mean).square().mean(dims, keepdim=True))
    return mean, variance


def standardise(x: Tensor) -> Tensor:
    """Each column of ``[n, D]`` to mean 0 and variance 1 over the global batch (biased variance plus 1e-5)."""
    mean, variance = global_moments(x)
    return (x - mean) * torch.rsqrt(variance + _EPSILON)
