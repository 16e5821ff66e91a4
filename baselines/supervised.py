"""The reference row with labels: cross-entropy training of the backbone."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from twinbench.data.augment import ViewPolicy
from twinbench.encoders.backbones import ResNet
from twinbench.foundation.collectives import mean_over_ranks
from twinbench.foundation.errors import InputError
from twinbench.pretraining.method import LossParts, Method, MethodOptions, Progress, register_method
from twinbench.pretraining.numerics import in_full_precision


@in_full_precision
def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return mean_over_ranks(F.cross_entropy(logits, labels))


@register_method("supervised")
class Supervised(Method):
    """A linear classifier on the backbone, trained with it on one randomly cropped and flipped view."""

    needs_labels: ClassVar[bool] = True
    accumulates: ClassVar[bool] = True
    """The loss is a mean of terms that each concern one image."""

    class Options(MethodOptions):
        """``classes`` is the width of the classifier: at least the number of classes of the image set."""

        classes: int = Field(1000, ge=2)

    options: Options

    def __init__(self, backbone: ResNet, options: Options) -> None:
        super().__init__(backbone, options)
        self.classifier = nn.Linear(backbone.feature_dim, options.classes)

    @classmethod
    def default_views(cls, size: int) -> tuple[ViewPolicy, ...]:
        """One view: random crop and flip only, as in torchvision's reference training."""
        return (
            ViewPolicy(
                size=size, jitter=0.0, grayscale=0.0, blur=0.0, solarize=0.0, interpolation="bilinear"
            ),
        )

    def loss(self, views: list[Tensor], labels: Tensor | None, progress: Progress) -> LossParts:
        """Cross-entropy of the first view; ``accuracy`` is top-1 on it."""
        if labels is None:
            raise InputError("supervised training needs labels", next_step="choose an image set with labels")
        if progress.step == 0:
            self._check(labels)
        logits = self.classifier(self.backbone(views[0]))
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        return LossParts(_cross_entropy(logits, labels), {"accuracy": accuracy})

    def _check(self, labels: Tensor) -> None:
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0:
            raise InputError("supervised training met an unlabelled image", next_step="use a labelled split")
        if highest >= self.options.classes:
            raise InputError(
                f"label {highest} does not fit a classifier of {self.options.classes} classes",
                where="options.classes",
                next_step=f"set options.classes to at least {highest + 1}",
            )
