"""A recipe: every hyperparameter of one pretraining run, checked strictly.

The YAML files in ``recipes/`` hold these fields. Unknown keys are errors. Everything here but ``tuning``
and ``cost`` changes the numbers and therefore enters the recipe hash.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from twinbench.encoders.backbones import Stem
from twinbench.foundation.models import Strict


class BackboneSpec(Strict):
    """Which ResNet, how wide, with which stem."""

    name: str = "resnet18"
    width: int = Field(64, ge=4)
    stem: Stem = "small"
    zero_init: bool = False


class OptimizerSpec(Strict):
    """The optimizer. ``base_lr`` is scaled by global batch / 256 once, in `pretraining.optim.resolved_lr`."""

    name: Literal["sgd", "lars", "lars_simclr", "larc", "adamw"] = "sgd"
    """The variants of LARS are those of `pretraining.optim.LARS`."""
    base_lr: float = Field(gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of the first moment where the optimizer is ``adamw``."""
    weight_decay: float = Field(0.0, ge=0)
    trust_coefficient: float = Field(0.001, gt=0)
    exclude_nothing: bool = False
    """Decay and adapt norm parameters and biases too, where the method's parameter groups leave them out."""


class ScheduleSpec(Strict):
    """Linear warm-up from ``warmup_start`` of the peak, then cosine to ``final_factor`` of it, every ``per``."""

    warmup_epochs: float = Field(0.0, ge=0)
    warmup_start: float = Field(0.0, ge=0, le=1)
    final_factor: float = Field(0.0, ge=0, le=1)
    per: Literal["step", "epoch"] = "step"


class TuningSpec(Strict):
    """How the values of some keys were chosen: by so many ``trials``, measured on val (`twinbench tune` writes it)."""

    trials: int = Field(ge=1)
    keys: tuple[str, ...]


class CostSpec(Strict):
    """What an epoch takes by a publication: GPU-hours on ``gpu``, and where that stands.

    ``memory`` is what was published of a GPU's memory, with how many images it held; empty where nothing was.
    """

    gpu_hours_per_epoch: float = Field(gt=0)
    gpu: str
    source: str
    memory: str = ""


class Recipe(Strict):
    """One pretraining run, fully resolved."""

    method: str
    image_set: str
    image_set_fingerprint: str = ""
    image_size: int | None = Field(None, ge=8)
    backbone: BackboneSpec = BackboneSpec()
    epochs: int = Field(ge=0)
    batch_size: int = Field(256, ge=2)
    optimizer: OptimizerSpec | None = None
    schedule: ScheduleSpec = ScheduleSpec()
    accumulate: int = Field(1, ge=1)
    """Micro-batches per step. Batch norm sees one of them at a time, so this changes the numbers."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    corrupt_images: Literal["refuse", "skip"] = "refuse"
    """What to do with training images that cannot be decoded: end with their name, or leave them out."""
    seed: int = Field(0, ge=0, lt=2**24)
    tuning: TuningSpec | None = None
    """It changes no number, and is therefore not in the hash; nor is ``cost``."""
    cost: CostSpec | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    views: dict[str, Any] | list[dict[str, Any]] | None = None
