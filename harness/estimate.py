"""How long will the jobs take? A few real steps are timed; finished jobs take no time."""

from __future__ import annotations

import time

import torch

from twinbench.data.image_sets import ImageSet
from twinbench.downstream.protocol import Protocol
from twinbench.encoders.backbones import build_backbone
from twinbench.harness.plan import Job, StudyImages
from twinbench.harness.source import ImportedSource
from twinbench.pretraining.batches import steps_in_epoch
from twinbench.pretraining.recipe import BackboneSpec, Recipe
from twinbench.pretraining.train import pretrain_step_seconds

# Images of 32 pixels; fewer of larger ones.
_BATCH = 256


def estimate_seconds(job: Job, images: StudyImages, cache: dict[str, float]) -> float:
    """Seconds this machine will need for a job; ``cache`` keeps what was timed before."""
    source = job.run.source
    if job.is_finished():
        return 0.0
    if job.protocol is not None:
        size = _forward_size(job.protocol, source.image_size, images.measure)
        key = f"forward {source.backbone} {size}"
        if key not in cache:
            cache[key] = _forward_seconds(source.backbone, size)
        return job.protocol.forward_passes(images.measure) * cache[key]
    if isinstance(source, ImportedSource):
        return 0.0
    key = f"step {source.model_copy(update={'seed': 0, 'epochs': 0}).model_dump_json()}"
    if key not in cache:
        cache[key] = pretrain_step_seconds(source, images.train)
    return cache[key] * _steps(source, images.train)


def _forward_size(chosen: Protocol, input_size: int | None, measured_on: ImageSet) -> int:
    """The side in pixels of the image that a protocol counts its work in; ``input_size`` is the encoder's.

    Detection counts in images of the set's own size, the others in images as the encoder sees them.
    """
    if chosen.needs == "detection" or input_size is None:
        return measured_on.image_size
    return input_size


def _steps(recipe: Recipe, image_set: ImageSet) -> int:
    return recipe.epochs * steps_in_epoch(recipe, len(image_set.split("train")), image_set.name)


def _forward_seconds(spec: BackboneSpec, size: int) -> float:
    """Seconds for one image through the backbone, forward only."""
    backbone = build_backbone(spec.name, spec.width, spec.stem).eval()
    images = torch.rand(max(4, _BATCH * 32**2 // size**2), 3, size, size)
    with torch.inference_mode():
        backbone(images)
        started = time.perf_counter()
        backbone(images)
    return (time.perf_counter() - started) / len(images)
