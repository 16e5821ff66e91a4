"""A batch of pictures that several ranks share: what they must agree on to train as one process does on all of it.

In both libraries the pictures of a batch have four things in common. They are padded to one size; the regions to train
on are drawn from one random generator, for one picture after another; batch norm sees all of them; and losses are means
over the regions of all. Every rank has each W-th picture, and all have equally many, so the pictures that the ranks are
at are neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from twinbench.foundation.collectives import all_gather_nograd, all_reduce_sum, rank, world_size

T = TypeVar("T")


def drawn_in_turn(labels: Tensor, draw: Callable[[], T]) -> T:
    """``draw()``, which chooses from a picture's regions, while the ranks' pictures are drawn for in their order.

    ``labels`` ``[R]`` are 1 or more where a region is an object, 0 where it is background, and negative where it is
    neither. Both libraries choose by one ``torch.randperm`` of the objects and one of the background, whatever these
    are, so what another rank draws needs no more than its two counts. Every rank must call this.
    """
    if world_size() == 1:
        return draw()
    counts = torch.stack([(labels >= 1).sum(), (labels == 0).sum()])
    for place, (objects, background) in enumerate(all_gather_nograd(counts).view(-1, 2).tolist()):
        if place == rank():
            found = draw()
        else:
            torch.randperm(objects, device=labels.device)
            torch.randperm(background, device=labels.device)
    return found


def shares_of_means(losses: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """What this rank adds to the losses of the whole batch; the sum over the ranks is the mean over all regions.

    Each loss is a mean over as many regions of this rank as ``counts`` says. Every rank must call this.
    """
    if world_size() == 1:
        return dict(losses)
    some = next(iter(losses.values()))
    own = torch.tensor([counts[name] for name in losses], dtype=torch.float64, device=some.device)
    # without any region in the batch the loss is 0
    shares = (own / all_reduce_sum(own).clamp_min(1)).to(some.dtype)
    return {name: loss * share for (name, loss), share in zip(losses.items(), shares, strict=True)}
