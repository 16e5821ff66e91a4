"""The contract of a method, and the registry of methods.

A method is an ``nn.Module`` with a backbone, heads, the view policy it wants and a loss over views. It knows
nothing of loops, devices, files or tables. Adding one is a new file in ``baselines/`` with a class under
``@register_method("name")``; packages outside register through the entry-point group ``twinbench.plugins``. The
harness imports both (`harness.plugins`); a name is known once the module that registers it is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from twinbench.data.augment import ViewPolicy
from twinbench.encoders.backbones import ResNet
from twinbench.foundation.errors import InputError
from twinbench.foundation.registry import Registry


class MethodOptions(BaseModel):
    """Hyperparameters that only one method has; subclass it as ``Options``. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LossParts(NamedTuple):
    """A scalar loss to minimise, and detached scalars worth logging."""

    total: Tensor
    parts: dict[str, Tensor]


class Progress(NamedTuple):
    """Where training is: ``step`` counts from 0 and is the step about to be, or just, taken."""

    step: int
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> int:
        """The 0-based epoch of this step."""
        return self.step // self.steps_per_epoch


class Method(nn.Module):
    """Base class of every method."""

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    needs_labels: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    accumulates: ClassVar[bool] = False
    """Whether the loss is a mean over images, so that the gradients of micro-batches average to the batch's."""

    def __init__(self, backbone: ResNet, options: MethodOptions) -> None:
        super().__init__()
        self.backbone = backbone
        self.options = options

    @classmethod
    def default_views(cls, size: int) -> tuple[ViewPolicy, ...]:
        """The method's own view policies for images of ``size`` pixels, one per view."""
        raise TypeError(f"{cls.__name__} must define default_views")

    def loss(self, views: list[Tensor], labels: Tensor | None, progress: Progress) -> LossParts:
        """The loss over the views, each ``[N, 3, H, W]`` normalised; ``labels [N]`` only if needed."""
        raise TypeError(f"{type(self).__name__} must define loss")

    def forward(self, views: list[Tensor], labels: Tensor | None, progress: Progress) -> LossParts:
        """The loss: what data-parallel wrappers must call for gradients to be averaged."""
        return self.loss(views, labels, progress)

    @torch.no_grad()
    def embed(self, view: Tensor) -> Tensor:
        """The embedding ``[N, D]`` on which collapse is measured; the pooled features unless overridden."""
        features: Tensor = self.backbone(view)
        return features

    @property
    def has_embeddings(self) -> bool:
        """Whether a head makes embeddings that are not the pooled features."""
        return type(self).embed is not Method.embed

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer: one-dimensional tensors without decay and LARS adaptation."""
        return split_parameter_groups(self, weight_decay)

    def check(self, batch_size: int, views: int, ranks: int = 1) -> None:
        """Raise InputError if the method cannot work with this global batch, number of views and of ranks."""
        expected = len(self.default_views(32))
        if views != expected:
            raise InputError(
                f"this method takes {expected} view{'s' * (expected > 1)}, the recipe gives {views}",
                where="views",
                next_step=f"list {expected}, or leave `views` out for the method's own",
            )

    def before_step(self, progress: Progress) -> None:
        """Called before the forward pass of a step."""

    def before_optimizer(self, progress: Progress) -> None:
        """Called between the backward pass and the optimizer step."""

    def after_step(self, progress: Progress) -> None:
        """Called after the optimizer step."""


def split_parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: tensors of two dimensions or more, and the rest, which gets neither decay nor adaptation.

    This is the rule of the official Barlow Twins code (every tensor with ``ndim == 1`` is excluded).
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {
            "name": "weights",
            "params": [p for p in parameters if p.ndim > 1],
            "weight_decay": weight_decay,
            "lars_exclude": False,
            "lr_scale": 1.0,
            "schedule": "scheduled",
        },
        {
            "name": "norm_and_bias",
            "params": [p for p in parameters if p.ndim <= 1],
            "weight_decay": 0.0,
            "lars_exclude": True,
            "lr_scale": 1.0,
            "schedule": "scheduled",
        },
    ]


_METHODS = Registry[type[Method]]("method", filled_by="twinbench.harness.plugins.load_plugins()")
M = TypeVar("M", bound=type[Method])


def register_method(name: str) -> Callable[[M], M]:
    """Class decorator that makes a method available under ``name``.

    Raises ValueError if the name belongs to another class.
    """

    def register(cls: M) -> M:
        _METHODS.add(name, cls)
        return cls

    return register


def method_names() -> list[str]:
    """Every method that the modules imported so far have registered."""
    return _METHODS.names()


def method_class(name: str) -> type[Method]:
    """The class registered under ``name``; raises InputError with the nearest name if there is none."""
    return _METHODS[name]
