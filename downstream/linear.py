"""Linear classification of frozen, cached features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from twinbench.data.image_sets import ImageSet
from twinbench.downstream.protocol import (
    EvaluationContext,
    Measurement,
    Protocol,
    register_protocol,
)
from twinbench.encoders.encoder import Encoder

PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(0, -11, -1))
"""The grid of L2 strengths, from 1 down to 1e-5 in half decades: each fit starts from the one before."""


def standardise(reference: Tensor, *features: Tensor) -> list[Tensor]:
    """Each of ``features`` ``[N, D]`` shifted and scaled by mean and standard deviation of ``reference``.

    A constant dimension becomes zero.
    """
    mean, deviation = reference.mean(dim=0), reference.std(dim=0, correction=0)
    scale = torch.where(deviation > 1e-6 * (1 + mean.abs()), 1 / deviation, torch.zeros_like(deviation))
    return [(x - mean) * scale for x in features]


def fit_logistic(
    features: Tensor, labels: Tensor, classes: int, penalty: float, start: Tensor | None = None
) -> Tensor:
    """Multinomial logistic regression of ``features`` ``[N, D]``, by full-batch L-BFGS.

    Minimises mean cross-entropy + penalty / 2 * ||W||^2, the bias unpenalised: scikit-learn's problem with
    C = 1 / (penalty * N). Returns weights and bias as one matrix ``[D + 1, classes]``. ``start`` is such a
    matrix to start from. The computation is in the features' precision and uses no randomness.
    """
    size = (features.shape[1] + 1, classes)
    parameters = features.new_zeros(size) if start is None else start.clone()
    parameters.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=200, tolerance_grad=1e-4, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(predict(parameters, features), labels)
        loss = loss + penalty / 2 * parameters[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    return parameters.detach()


def predict(parameters: Tensor, features: Tensor) -> Tensor:
    """Class scores ``[N, classes]`` of features ``[N, D]`` under parameters from `fit_logistic`."""
    return torch.addmm(parameters[-1], features, parameters[:-1])


def select_penalty(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    classes: int,
    progress: Callable[[float], None],
) -> tuple[float, Tensor]:
    """The L2 strength of `PENALTIES` with the best accuracy on ``val``, and the parameters fitted with it.

    Of equals the strongest wins.
    """
    best_accuracy, best = -1.0, (0.0, torch.empty(0))
    parameters = None
    for done, penalty in enumerate(PENALTIES, start=1):
        parameters = fit_logistic(*train, classes, penalty, start=parameters)
        accuracy = (predict(parameters, val[0]).argmax(dim=1) == val[1]).double().mean().item()
        if accuracy > best_accuracy:
            best_accuracy, best = accuracy, (penalty, parameters)
        progress(done / len(PENALTIES))
    return best


@register_protocol
class CachedLinear(Protocol):
    """Logistic regression on cached features: the fast variant, without augmentation.

    The published linear evaluations (BT-paper B.1) train a linear layer by SGD on random crops; here every
    image is seen once in its evaluation view, so numbers compare among methods but not with published ones.
    Features are standardised with the training statistics, the L2 strength is chosen by accuracy on the split
    ``val``, the classifier is refitted on train and val together and measured once on test.
    """

    name = "linear/cached-v1"
    needs = "labels"
    keeps_features = True
    metrics = ("top1", "top5")

    def evaluate(self, encoder: Encoder, context: EvaluationContext) -> list[Measurement]:
        """``top1`` and ``top5`` on the test split."""
        image_set, classes = context.image_set, len(context.image_set.classes)
        (train, train_labels), (val, val_labels), (test, test_labels) = (
            context.features.labelled(encoder, image_set, split) for split in ("train", "val", "test")
        )
        context.progress(0.3)
        train, val, test = standardise(train, train, val, test)
        penalty, parameters = select_penalty(
            (train, train_labels), (val, val_labels), classes, lambda done: context.progress(0.3 + 0.6 * done)
        )
        everything, everything_labels = torch.cat([train, val]), torch.cat([train_labels, val_labels])
        parameters = fit_logistic(everything, everything_labels, classes, penalty, start=parameters)
        context.progress(1.0)
        rows = context.features.labelled_rows(encoder, image_set, "test")
        return context.classified(predict(parameters, test), test_labels, rows)

    def forward_passes(self, image_set: ImageSet) -> float:
        """One pass over all three splits, less where the features are cached."""
        return float(sum(len(image_set.split(split)) for split in ("train", "val", "test")))
