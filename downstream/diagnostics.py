"""What the features of held-out images look like, without any labels."""

from __future__ import annotations

from dataclasses import asdict

from torch import Tensor

from twinbench.data.image_sets import ImageSet
from twinbench.downstream.features import frozen_copy, pooled, require_finite
from twinbench.downstream.protocol import EvaluationContext, Measurement, Protocol, register_protocol
from twinbench.encoders.encoder import Encoder
from twinbench.encoders.geometry import HELD_OUT_IMAGES, MEASURES, geometry
from twinbench.foundation.errors import InputError

_VIEWS = 3


@register_protocol
class HeldOutGeometry(Protocol):
    """The geometry of the pooled features of images of the split ``val`` (`encoders.geometry`).

    Plain views and two random ones, the same for every encoder of a seed. The measures explain accuracies; none of them
    is an accuracy, or better when it is higher or lower.
    """

    name = "diagnostics/held-out-v1"
    needs = "images"
    metrics = MEASURES

    def check(self, image_set: ImageSet) -> None:
        """Raise InputError if there are not two images whose features could be compared."""
        if len(image_set.split("val")) < 2:
            raise InputError(
                "the diagnostics compare held-out images, and there are not two of them",
                where=f"{image_set.name}, split 'val'",
                next_step="add images, or leave the protocol out",
            )

    def evaluate(self, encoder: Encoder, context: EvaluationContext) -> list[Measurement]:
        """Every measure of the features of at most 1024 images; n is their number."""
        images = context.image_set.split("val").images[:HELD_OUT_IMAGES]
        backbone = frozen_copy(encoder, context.device)
        done = 0

        def embed(views: Tensor) -> Tensor:
            nonlocal done
            features = pooled(backbone, views)
            require_finite(features, encoder, f"the split 'val' of {context.image_set.name}")
            done += len(views)
            context.progress(done / (_VIEWS * len(images)))
            return features

        size, normalisation = encoder.input_size, encoder.normalisation
        found = geometry(embed, images, size, normalisation, context.seed, context.device)
        return [Measurement(metric, value, len(images)) for metric, value in asdict(found).items()]

    def forward_passes(self, image_set: ImageSet) -> float:
        """One pass over each view."""
        return float(_VIEWS * min(HELD_OUT_IMAGES, len(image_set.split("val"))))
