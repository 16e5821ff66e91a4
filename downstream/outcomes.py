"""How outcomes of test items are made (`foundation.outcomes` is what they are): classes ranked, test sets resampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from twinbench.foundation.outcomes import MOST_PREDICTED, Array, Outcomes

REPLICATES = 200
"""How many resampled test sets a metric that is no mean of items is computed on."""
_SEED = 0


def classified(scores: Array, labels: Array, rows: Array) -> Outcomes:
    """The outcomes of class ``scores`` ``[n, classes]`` for ``labels`` ``[n]`` of the test images ``rows`` ``[n]``.

    Equal scores rank by class number.
    """
    classes = scores.shape[1]
    kind = np.int16 if classes <= np.iinfo(np.int16).max else np.int32
    ranking = np.argsort(-scores, axis=1, kind="stable")[:, :MOST_PREDICTED]
    return Outcomes(
        {
            "predicted": ranking.astype(kind),
            "true": labels.astype(kind),
            "rows": rows.astype(np.int32),
            "classes": np.array([classes], np.int32),
        }
    )


def resamples(items: int) -> Array:
    """How often each of ``items`` test items is in each resampled test set, int64 ``[REPLICATES, items]``.

    The same for all that is measured on as many items.
    """
    return np.random.default_rng(_SEED).multinomial(items, np.full(items, 1 / items), size=REPLICATES)


def replicates(items: int, metrics: Callable[[Array], Mapping[str, float]]) -> dict[str, Array]:
    """Arrays of ``metrics``, which computes them from how often each test item is there, on resampled test sets."""
    found = [metrics(weights) for weights in resamples(items)]
    return {f"replicates/{name}": np.array([each[name] for each in found]) for name in found[0]}
