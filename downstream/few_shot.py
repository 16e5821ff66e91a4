"""Few-shot classification of frozen features: a few labelled images of each class, drawn many times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor
from torch.nn.functional import normalize

from twinbench.data.image_sets import ImageSet
from twinbench.downstream.protocol import (
    EvaluationContext,
    Measurement,
    Protocol,
    hits,
    register_protocol,
)
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.randomness import seeded_generator


def class_means(
    features: Tensor, members: Sequence[Tensor], shots: int, generator: torch.Generator
) -> Tensor:
    """The mean of ``shots`` random features of each class, ``[C, D]``, from features ``[N, D]``.

    ``members`` has the rows of each class. A class with fewer gives all it has; the mean of one without any is nan. The
    order within a class is drawn whole, so more shots with the same generator include those of fewer.
    """
    drawn = [rows[torch.randperm(len(rows), generator=generator)[:shots]] for rows in members]
    return torch.stack([features[rows].mean(dim=0) for rows in drawn])


def nearest_mean_scores(queries: Tensor, means: Tensor) -> Tensor:
    """Class scores ``[Q, C]``: the less the squared Euclidean distance to a class's mean, the more; -inf without one.

    Up to a constant of each query ``[Q, D]``.
    """
    scores = 2 * queries @ means.T - means.square().sum(dim=1)
    return scores.nan_to_num(nan=-math.inf)


@dataclass(frozen=True)
class FewShot(Protocol):
    """Nearest class mean of ``shots`` labelled images a class, on cached features, over many ``draws`` of them.

    The classifier is that of SimpleShot (arXiv:1911.04623, section 3, its variant CL2N): features are centred by the
    mean of the training images, whose labels play no part in it, and scaled to unit length; the class of the nearest
    mean counts, by Euclidean distance. It has no setting, so nothing is selected and ``val`` is not used. The images
    are drawn from ``train``, of every class ``shots``, anew for each draw by (seed, draw): the same for all methods,
    others for another seed of the run, and part of those that the protocol with more shots draws.

    The value is the mean over draws. ``stderr`` is its error from the finite test set and the finite number of draws
    together; `context.details` has the spread over draws, and the 95% interval that the draws alone leave.
    """

    name: str
    shots: int
    draws: int = 100
    needs = "labels"
    keeps_features = True
    metrics = ("top1", "top5")

    def evaluate(self, encoder: Encoder, context: EvaluationContext) -> list[Measurement]:
        """``top1`` and ``top5`` on the test split, each the mean over all draws."""
        image_set = context.image_set
        features, labels = context.features.labelled(encoder, image_set, "train")
        queries, truth = context.features.labelled(encoder, image_set, "test")
        centre = context.features.get(encoder, image_set, "train")[0].mean(dim=0)
        features, queries = normalize(features - centre, dim=1), normalize(queries - centre, dim=1)
        members = [torch.nonzero(labels == label).flatten() for label in range(len(image_set.classes))]
        self._remark_on_small_classes(members, context)
        found: dict[str, list[Tensor]] = {}
        for draw in range(self.draws):
            means = class_means(
                features, members, self.shots, seeded_generator(context.seed, "few-shot", draw)
            )
            for metric, right in hits(nearest_mean_scores(queries, means), truth).items():
                found.setdefault(metric, []).append(right)
            context.progress((draw + 1) / self.draws)
        return [self._measurement(metric, torch.stack(right), context) for metric, right in found.items()]

    def forward_passes(self, image_set: ImageSet) -> float:
        """One pass over train and test, less where the features are cached."""
        return float(len(image_set.split("train")) + len(image_set.split("test")))

    def _measurement(self, metric: str, right: Tensor, context: EvaluationContext) -> Measurement:
        """The mean of bool ``[draws, N]``; its spread over draws goes to the details."""
        percent = 100 * right.double()
        by_draw, by_item = percent.mean(dim=1), percent.mean(dim=0)
        mean, n = by_draw.mean().item(), len(by_item)
        # draws and items are crossed; what is left to both counts twice here, which is next to nothing
        error_of_draws = by_draw.std().item() / math.sqrt(self.draws)
        error = math.hypot(error_of_draws, by_item.std().item() / math.sqrt(n)) if n > 1 else None
        reach = float(stdtrit(self.draws - 1, 0.975)) * error_of_draws
        context.details.setdefault("draws", {"draws": self.draws, "shots": self.shots})[metric] = {
            "mean": mean,
            "deviation": by_draw.std().item(),
            "lowest": by_draw.min().item(),
            "highest": by_draw.max().item(),
            "interval_of_mean": [mean - reach, mean + reach],
        }
        return Measurement(metric, mean, n, error)

    def _remark_on_small_classes(self, members: Sequence[Tensor], context: EvaluationContext) -> None:
        """Say of how many classes there are too few images, or none."""
        few = sum(0 < len(rows) < self.shots for rows in members)
        none = sum(len(rows) == 0 for rows in members)
        if few:
            context.remarks.append(
                f"{few} of {len(members)} classes have fewer than {self.shots} labelled training images: "
                f"{self.name} takes all of theirs in every draw"
            )
        if none:
            context.remarks.append(
                f"{none} of {len(members)} classes have no labelled training image: {self.name} never finds them"
            )


register_protocol(FewShot("few-shot/1-v1", shots=1))
register_protocol(FewShot("few-shot/5-v1", shots=5))
register_protocol(FewShot("few-shot/10-v1", shots=10))
