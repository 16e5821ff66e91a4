"""Randomness that a protocol uses and leaves no trace of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """Seed torch within the block, and restore the random state after it.

    Yields a CPU generator for whatever the caller draws itself. The global state is seeded as well because
    module initialisation and torchvision's region sampling draw from it.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


def shuffled_indices(items: int, draws: int, generator: torch.Generator) -> Tensor:
    """``draws`` indices below ``items``: one random permutation of all of them after another."""
    epochs = -(-draws // items)
    return torch.cat([torch.randperm(items, generator=generator) for _ in range(epochs)])[:draws]
