"""Few-shot classification of frozen features: a few labelled images of each class, drawn many times."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor
from torch.nn.functional import normalize

from twinbench.data.image_sets import ImageSet
from twinbench.downstream.outcomes import classified
from twinbench.downstream.protocol import (
    EvaluationContext,
    Measurement,
    Protocol,
    register_protocol,
)
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.outcomes import Array, Outcomes, hits
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
        found: dict[str, list[Array]] = {}
        rows = context.features.labelled_rows(encoder, image_set, "test").numpy()
        for draw in range(self.draws):
            means = class_means(
                features, members, self.shots, seeded_generator(context.seed, "few-shot", draw)
            )
            scores = nearest_mean_scores(queries, means).numpy(force=True)
            for metric, right in hits(classified(scores, truth.numpy(force=True), rows).arrays).items():
                found.setdefault(metric, []).append(right)
            context.progress((draw + 1) / self.draws)
        # All draws of all items would take megabytes: how often each item was right, and how many in a draw, is enough.
        arrays: dict[str, Array] = {"rows": rows.astype(np.int32)}
        for metric, by_draw in found.items():
            arrays[f"right/{metric}"] = np.sum(by_draw, axis=0).astype(np.int32)
            arrays[f"by_draw/{metric}"] = np.sum(by_draw, axis=1).astype(np.int32)
        context.outcomes = Outcomes({**arrays, "draws": np.array([self.draws], np.int32)})
        context.details["draws"] = {
            "draws": self.draws,
            "shots": self.shots,
            **self._spreads(context.outcomes),
        }
        return self.measure_again(context.outcomes, image_set)

    def measure_again(self, outcomes: Outcomes, image_set: ImageSet | None) -> list[Measurement]:
        """The means over all draws and test items."""
        measurements = []
        for metric, by_draw, by_item in self._percentages(outcomes):
            n = len(by_item)
            # draws and items are crossed; what is left to both counts twice here, which is next to nothing
            errors = (
                [each.std(ddof=1) / math.sqrt(len(each)) for each in (by_draw, by_item)] if n > 1 else None
            )
            error = None if errors is None else float(math.hypot(*errors))
            measurements.append(Measurement(metric, float(by_draw.mean()), n, error))
        return measurements

    def forward_passes(self, image_set: ImageSet) -> float:
        """One pass over train and test, less where the features are cached."""
        return float(len(image_set.split("train")) + len(image_set.split("test")))

    def _percentages(self, outcomes: Outcomes) -> Iterator[tuple[str, Array, Array]]:
        """For each metric its value in each draw, float64 ``[draws]``, and for each item over all draws, ``[N]``."""
        for metric in self.metrics:
            if f"right/{metric}" in outcomes.arrays:
                by_item, by_draw = (outcomes.arrays[f"{part}/{metric}"] for part in ("right", "by_draw"))
                yield metric, 100 * by_draw / len(by_item), 100 * by_item / len(by_draw)

    def _spreads(self, outcomes: Outcomes) -> dict[str, Any]:
        """What the draws say of each metric by themselves."""
        spreads = {}
        for metric, by_draw, _ in self._percentages(outcomes):
            mean, deviation = float(by_draw.mean()), float(by_draw.std(ddof=1))
            reach = float(stdtrit(len(by_draw) - 1, 0.975)) * deviation / math.sqrt(len(by_draw))
            spreads[metric] = {
                "mean": mean,
                "deviation": deviation,
                "lowest": float(by_draw.min()),
                "highest": float(by_draw.max()),
                "interval_of_mean": [mean - reach, mean + reach],
            }
        return spreads

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
