"""How long will the jobs take? A few real steps are timed; finished jobs take no time."""

from __future__ import annotations

import time

import torch

from data.image_sets import ImageSet
from harness.plan import Job
from pretraining.backbones import build_backbone
from pretraining.batches import steps_in_epoch
from pretraining.recipe import BackboneSpec, Recipe
from pretraining.train import pretrain_step_seconds

_BATCH = 256


def estimate_seconds(job: Job, image_set: ImageSet, cache: dict[str, float]) -> float:
    """Seconds this machine will need for a job; ``cache`` keeps what was timed before."""
    recipe = job.run.recipe
    if job.is_finished() or (job.protocol is None and job.run.source is not None):
        return 0.0
    if job.protocol is not None:
        key = f"forward {recipe.backbone} {recipe.image_size}"
        if key not in cache:
            cache[key] = _forward_seconds(recipe.backbone, recipe.image_size or image_set.image_size)
        return job.protocol.forward_passes(image_set) * cache[key]
    key = f"step {recipe.model_copy(update={'seed': 0, 'epochs': 0}).model_dump_json()}"
    if key not in cache:
        cache[key] = pretrain_step_seconds(recipe, image_set)
    return cache[key] * _steps(recipe, image_set)


def _steps(recipe: Recipe, image_set: ImageSet) -> int:
    return recipe.epochs * steps_in_epoch(recipe, len(image_set.split("train")), image_set.name)


def _forward_seconds(spec: BackboneSpec, size: int) -> float:
    """Seconds for one image through the backbone, forward only."""
    backbone = build_backbone(spec.name, spec.width, spec.stem).eval()
    images = torch.rand(_BATCH, 3, size, size)
    with torch.inference_mode():
        backbone(images)
        started = time.perf_counter()
        backbone(images)
    return (time.perf_counter() - started) / _BATCH
