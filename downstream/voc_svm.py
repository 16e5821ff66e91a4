"""Multi-label transfer: one linear SVM per class on frozen features, measured by mean average precision."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from twinbench.data.detection import DetectionSplit, PictureFiles, unusable
from twinbench.data.image_sets import ImageSet
from twinbench.data.pixels import CorruptImage
from twinbench.data.streaming import Images, StreamedImages
from twinbench.data.views import in_turns
from twinbench.downstream.features import frozen_copy, pooled, require_finite
from twinbench.downstream.outcomes import replicates
from twinbench.downstream.protocol import EvaluationContext, Measurement, Protocol, register_protocol
from twinbench.downstream.views import central_views
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.errors import InputError
from twinbench.foundation.outcomes import Outcomes
from twinbench.foundation.ranks import cores_each, everyones, own_share

# scikit-learn takes most of a second to import, which only a measurement should wait for: so it is, below.
if TYPE_CHECKING:
    from sklearn.svm import LinearSVC

PENALTIES = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)
"""The grid of C, as in VISSL's configuration of VOC07."""
FOLDS = 3


def multi_labels(labels: Sequence[Tensor], difficult: Sequence[Tensor] | None, classes: int) -> np.ndarray:
    """What VOC's own class lists say of every image: int8 ``[N, classes]``.

    1 present, -1 absent, 0 present in objects that are all difficult. ``labels`` int64 and ``difficult`` bool are
    one tensor ``[n]`` of objects for each image; None means that no object is difficult.
    """
    table = np.full((len(labels), classes), -1, np.int8)
    for row, present in enumerate(labels):
        flagged = torch.zeros(len(present), dtype=torch.bool) if difficult is None else difficult[row]
        table[row, present[flagged]] = 0
        table[row, present[~flagged]] = 1
    return table


def precision_recall(
    present: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """True positives and precision at every distinct score, from the highest: int64 ``[T]`` and float64 ``[T]``.

    ``present`` bool ``[N]``, ``scores`` ``[N]``; ``weights`` int64 ``[N]`` is how often each image is there, once by
    default. Images of equal score are retrieved together, so that the order of the images is of no consequence.
    """
    weights = np.ones(len(scores), np.int64) if weights is None else weights
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.nonzero(np.diff(scores[order]))[0], len(scores) - 1)
    hits = np.cumsum((present * weights)[order])[last_of_ties]
    retrieved = np.cumsum(weights[order])[last_of_ties]
    return hits, hits / np.maximum(retrieved, 1)


def average_precision_all_points(
    present: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Area under precision made monotone, at every recall (VOC since 2010, VISSL), in [0, 1].

    At least the average precision of scikit-learn, which does not make it monotone. ``present`` bool ``[N]``,
    ``scores`` ``[N]`` and ``weights`` as in `precision_recall`; NaN if nothing is present.
    """
    hits, precision = precision_recall(present, scores, weights)
    if not hits[-1]:
        return math.nan
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(hits, prepend=0) * envelope) / hits[-1])


def average_precision_11point(
    present: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Mean of the highest precision at a recall of at least 0, 0.1, ... 1 (VOC 2007), in [0, 1].

    ``present`` bool ``[N]``, ``scores`` ``[N]`` and ``weights`` as in `precision_recall`; NaN if nothing is present.
    """
    hits, precision = precision_recall(present, scores, weights)
    if not hits[-1]:
        return math.nan
    # in integers, for 0.1 * 3 is not 0.3
    return float(np.mean([precision[10 * hits >= tenths * hits[-1]].max() for tenths in range(11)]))


_PRECISIONS = {"ap_all_points": average_precision_all_points, "ap_11point": average_precision_11point}


def unit_rows(features: Tensor) -> np.ndarray:
    """Features ``[N, D]`` divided by their norm + 1e-5, float64 (vissl svm_utils)."""
    rows = features.double().numpy()
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-5)


def linear_svm(penalty: float, seed: int) -> LinearSVC:
    """VISSL's classifier: squared hinge, L2 penalty, dual, positives count twice; ``seed`` orders its updates."""
    from sklearn.svm import LinearSVC

    return LinearSVC(
        C=penalty,
        class_weight={1: 2, -1: 1},
        loss="squared_hinge",
        penalty="l2",
        dual=True,
        intercept_scaling=1.0,
        max_iter=2000,
        tol=1e-4,
        random_state=seed,
    )


def fit_class(features: np.ndarray, targets: np.ndarray, seed: int) -> tuple[float, LinearSVC]:
    """The C of `PENALTIES` with the best average precision in 3-fold cross-validation, and the SVM fitted with it.

    ``features`` ``[N, D]`` and ``targets`` ``[N]`` (1 or -1) are training images only. Of equals the smallest C wins.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import cross_val_score

    with warnings.catch_warnings():
        # 2000 iterations are the published protocol, whether they suffice for a large C or not
        warnings.simplefilter("ignore", ConvergenceWarning)
        validated = [
            cross_val_score(
                linear_svm(penalty, seed), features, targets, cv=FOLDS, scoring="average_precision"
            ).mean()
            for penalty in PENALTIES
        ]
        chosen = PENALTIES[int(np.argmax(validated))]
        return chosen, linear_svm(chosen, seed).fit(features, targets)


@register_protocol
class VocSvm(Protocol):
    """VOC07 classification with linear SVMs, as in VISSL's configuration (BT-paper C.1 follows it).

    Training uses every trainval image, those with only difficult objects of a class as negatives of it; testing
    leaves those images out for that class. Images are resized to 256/224 of the input size and cropped centrally
    (SwAV-paper A.5), features are pooled and scaled to unit length. C is chosen for each class on the training
    images alone. ``map_all_points`` is the published number of Barlow Twins, SwAV and VISSL; ``map_11point`` is the
    convention of VOC 2007, used by SimCLR and BYOL with another classifier. A devkit with both years is used as if
    it held 2007 alone; any other set with annotated objects works as well.
    """

    name = "svm/voc07-v2"
    needs = "detection"
    metrics = ("map_all_points", "map_11point")

    def evaluate(self, encoder: Encoder, context: EvaluationContext) -> list[Measurement]:
        """Both mAPs on the test split; `context.details` gets the C and the average precisions of every class."""
        image_set = context.image_set
        train, test = image_set.detection("train"), image_set.detection("test")
        classes = image_set.detection_classes
        chosen = _rows_of_2007(train)
        table = multi_labels(train.labels, train.difficult, len(classes))[chosen.numpy()]
        truth = multi_labels(test.labels, test.difficult, len(classes))
        _require_examples(table, truth, classes, image_set.name)
        features = _features(encoder, train, chosen, context)
        context.progress(0.2)
        test_features = _features(encoder, test, torch.arange(len(test)), context)
        context.progress(0.3)

        own = range(len(classes))[own_share()]
        found = {}
        fits = _fit_all(features, table.T[own_share()], context.seed)
        for label, (penalty, svm) in zip(own, fits, strict=True):
            found[label] = penalty, svm.decision_function(test_features)
            context.progress(0.3 + 0.6 * (label + 1) / len(classes))
        fitted = {label: each for share in everyones(found) for label, each in share.items()}
        penalties, by_class = zip(*(fitted[label] for label in range(len(classes))), strict=True)
        scores = np.stack(by_class, axis=1)
        resampled = replicates(len(test), lambda weights: _mean_precisions(truth, scores, weights))
        context.outcomes = Outcomes({"scores": scores, "truth": truth, **resampled})
        by_kind = {kind: _precisions(truth, scores, kind) for kind in _PRECISIONS}
        context.details["classes"] = {
            name: {"C": penalty, **{kind: by_kind[kind][place] for kind in _PRECISIONS}}
            for place, (name, penalty) in enumerate(zip(classes, penalties, strict=True))
        }
        context.progress(1.0)
        return self.measure_again(context.outcomes, image_set)

    def measure_again(self, outcomes: Outcomes, image_set: ImageSet | None) -> list[Measurement]:
        """Both mAPs of the scores in the outcomes."""
        truth, scores = outcomes.arrays["truth"], outcomes.arrays["scores"]
        return [Measurement(metric, v, len(truth)) for metric, v in _mean_precisions(truth, scores).items()]

    def forward_passes(self, image_set: ImageSet) -> float:
        """One pass for every image; the SVMs, whose time hardly depends on the encoder, come on top."""
        return float(len(image_set.detection("train")) + len(image_set.detection("test")))


def _precisions(
    truth: np.ndarray, scores: np.ndarray, kind: str, weights: np.ndarray | None = None
) -> list[float]:
    """The average precision of each class in percent; images with only difficult objects of it do not count."""
    found = []
    for present, scored in zip(truth.T, scores.T, strict=True):
        counted = present != 0
        often = None if weights is None else weights[counted]
        found.append(100 * _PRECISIONS[kind](present[counted] == 1, scored[counted], often))
    return found


def _mean_precisions(
    truth: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, float]:
    """Both mAPs in percent, over the classes that are present."""
    return {f"m{kind}": float(np.nanmean(_precisions(truth, scores, kind, weights))) for kind in _PRECISIONS}


def _fit_all(features: np.ndarray, classes: np.ndarray, seed: int) -> Iterator[tuple[float, LinearSVC]]:
    """`fit_class` for some classes ``[C, N]`` (see `multi_labels`) in order, difficult images as negatives."""
    from sklearn.utils.parallel import Parallel, delayed

    # processes, since liblinear's random numbers are global; as many as this process may use threads
    pool = Parallel(n_jobs=min(torch.get_num_threads(), cores_each()), return_as="generator")
    return pool(delayed(fit_class)(features, np.where(row == 1, 1, -1), seed) for row in classes)


def _rows_of_2007(split: DetectionSplit) -> Tensor:
    """The images of VOC2007, all of them where there is none, int64 ``[n]``."""
    everything = torch.arange(len(split))
    if not isinstance(split.images, PictureFiles):
        return everything
    # A picture may be found in any folder below <year>/JPEGImages. A folder of 2012 alone has nothing else to offer.
    of_2007 = torch.tensor([("VOC2007", "JPEGImages") in pairwise(path.parts) for path in split.images.paths])
    return everything[of_2007] if of_2007.any() else everything


def _features(
    encoder: Encoder, split: DetectionSplit, rows: Tensor, context: EvaluationContext
) -> np.ndarray:
    """Normalised features float64 ``[n, D]`` of some images of a split; InputError for a picture that is corrupt."""
    images: Images
    if isinstance(split.images, PictureFiles):
        images = StreamedImages(split.images.paths, np.zeros(len(split), np.int64), encoder.input_size)
    else:
        images = split.images
    backbone = frozen_copy(encoder, context.device)

    def computed(own: Tensor) -> Iterator[Tensor]:
        for views in central_views(images, own, encoder, context.device):
            yield pooled(backbone, views)

    try:
        features = torch.cat([chunk.cpu() for chunk in in_turns(rows, computed)])
    except CorruptImage as error:
        raise unusable(error) from error
    require_finite(features, encoder, f"images of {context.image_set.name}")
    return unit_rows(features)


def _require_examples(table: np.ndarray, truth: np.ndarray, classes: Sequence[str], where: str) -> None:
    """Raise InputError if a class is too rare, or too common, to be cross-validated or measured."""
    for label, name in enumerate(classes):
        present, tested = table[:, label] == 1, truth[:, label] == 1
        if min(present.sum(), (~present).sum()) < FOLDS or not tested.any():
            raise InputError(
                f"class {name!r} is in {present.sum()} of {len(table)} training and {tested.sum()} test images: "
                f"{FOLDS} training images with it, {FOLDS} without it and a test image with it are needed",
                where=where,
                next_step="use a larger share of the set, or leave this protocol out",
            )
