"""Work that is shared over the ranks: which part is whose, what each tells the others, and what ends all of them.

Outside a process group there is one rank, which does everything and is told nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from twinbench.foundation.collectives import all_reduce_max_nograd, rank, world_size
from twinbench.foundation.cores import own_cores
from twinbench.foundation.errors import InputError

T = TypeVar("T")


def own_share() -> slice:
    """This rank's part of the images of a step: every W-th, so that the shares differ by one image at most."""
    return slice(rank(), None, world_size())


def require_a_share_each(images: int) -> None:
    """Raise InputError if a step of so many images leaves a rank without any."""
    if images < world_size():
        raise InputError(
            f"a step has {images} images, too few for {world_size()} devices",
            where="devices",
            next_step=f"use {images} devices or fewer",
            option="devices",
        )


def require_equal_shares(images: int, ranks: int) -> None:
    """Raise InputError unless so many ranks can have equally many of the images of a step."""
    if images % ranks:
        able = [str(count) for count in range(1, images + 1) if images % count == 0]
        raise InputError(
            f"the {images} images of a step do not divide evenly over {ranks} devices",
            where="devices",
            next_step=f"choose one of {', '.join(able)}",
            option="devices",
        )


@torch.no_grad()
def sum_gradients(optimizer: Optimizer) -> None:
    """Replace the gradients of everything that is optimised by their sums over the ranks, in one collective.

    If each rank's loss is the sum over its images divided by the images of all, this is the gradient of the mean.
    """
    if world_size() == 1:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    sums = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(sums)
    for gradient, total in zip(gradients, sums.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


def everyones(value: T) -> list[T]:
    """What every rank has for a value, in the order of the ranks; it is pickled."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: T) -> T:
    """Rank 0's value, on every rank; it is pickled."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def together(items: Iterator[T]) -> Iterator[T]:
    """The items of this rank, of which all ranks have equally many; what one of them raises, every rank raises.

    Otherwise the others would wait for it for ever.
    """
    if world_size() == 1:
        yield from items
        return
    while True:
        item, error = _next(items)
        if largest([float(error is not None)]) == [1.0]:
            raise next(each for each in everyones(error) if each is not None)
        if item is None:
            return
        yield item


def in_shares(items: int, compute: Callable[[int], T]) -> Iterator[T]:
    """``compute(i)`` for every i below ``items`` in order, each computed by one of the ranks; all of them on each.

    The results are pickled. What ``compute`` raises on one rank, every rank raises.
    """

    def computed(i: int) -> list[T]:
        return [compute(i)] if i < items else []  # in the last round some ranks have nothing to do

    rounds = range(rank(), items + rank(), world_size())
    for found in together(map(computed, rounds)):
        for results in everyones(found):
            yield from results


def largest(values: list[float]) -> list[float]:
    """Each of the values as large as any rank has it."""
    if world_size() == 1:
        return values
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return all_reduce_max_nograd(torch.tensor(values, dtype=torch.float64, device=device)).tolist()


def _next(items: Iterator[T]) -> tuple[T | None, Exception | None]:
    """The next item, None after the last, and why there is none, if it failed."""
    try:
        return next(items, None), None
    except Exception as error:
        return None, error


def cores_each() -> int:
    """How many cores of those that this machine's ranks may use are this rank's; every rank must ask."""
    name = socket.gethostname()
    return max(1, own_cores() // everyones(name).count(name))
