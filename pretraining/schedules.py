"""Schedules as pure functions of the 0-based step."""

from __future__ import annotations

import math

from twinbench.pretraining.recipe import ScheduleSpec


def lr_factor(spec: ScheduleSpec, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """What the peak learning rate is multiplied by at ``step``.

    Linear warm-up from ``spec.warmup_start`` at step 0 to 1 at the end of the warm-up, then a cosine from 1
    to ``spec.final_factor`` which it reaches at ``total_steps``, one step after the last. (The official SwAV
    code reaches the peak one step earlier.) With ``spec.per == "epoch"`` the cosine only moves at epoch
    boundaries, as in the official SimSiam and MoCo code; the warm-up always moves every step, or its first
    epoch would be lost.
    """
    warmup_steps = min(total_steps, round(spec.warmup_epochs * steps_per_epoch))
    if step < warmup_steps:
        return spec.warmup_start + (1.0 - spec.warmup_start) * (step / warmup_steps)
    if spec.per == "epoch":
        step = max(warmup_steps, step - step % steps_per_epoch)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return cosine + spec.final_factor * (1.0 - cosine)


def ema_momentum(base: float, step: int, total_steps: int) -> float:
    """BYOL's momentum of the target network, from ``base`` at step 0 to 1 at ``total_steps`` by a cosine.

    Grill et al., arXiv:2006.07733, section 3.3.
    """
    return 1.0 - (1.0 - base) * (math.cos(math.pi * step / max(1, total_steps)) + 1.0) / 2.0
