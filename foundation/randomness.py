"""Generators that depend on what they are for, never on what was drawn before."""

from __future__ import annotations

import hashlib

import torch


def seed_for(seed: int, purpose: str, counter: int) -> int:
    """A 32-bit seed that depends on nothing but the arguments, and on every one of them.

    Hashed, since torch's CPU generator looks at no more than the low 32 bits of its seed.
    """
    digest = hashlib.sha256(repr((seed, purpose, counter)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def seeded_generator(seed: int, purpose: str, counter: int) -> torch.Generator:
    """A CPU generator seeded with `seed_for`."""
    return torch.Generator().manual_seed(seed_for(seed, purpose, counter))
