"""Did the method collapse? Feature spread, effective rank, spectrum and cross-correlation.

Spread: the standard deviation of each channel of L2-normalised vectors is near 1/sqrt(d) when they fill the
sphere and 0 when they are constant (SimSiam, arXiv:2011.10566, section 4.1). Effective rank: the exponential
of the entropy of the normalised singular values (Roy and Vetterli 2007; RankMe, arXiv:2210.02885).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import Tensor

from twinbench.encoders.geometry import (
    Geometry,
    correlation,
    correlation_facts,
    effective_rank,
    singular_values,
    spread,
)

MIN_SPREAD = 0.1
"""Below this share of 1/sqrt(d), embeddings count as collapsed."""
MIN_EFFECTIVE_RANK = 2.0
"""Below this effective rank, embeddings count as collapsed to a line."""
FEWEST_FOR_SPREAD = 8
"""The spread is not judged on fewer samples: a single one has none, and a few may well be alike."""
FEWEST_FOR_RANK = 32
"""The rank is not judged on fewer samples: N of them span N - 1 directions at most."""
_LARGEST_MATRIX = 128


class Probe(NamedTuple):
    """What is measured while training; see `spread` and `effective_rank`."""

    feature_std: float
    spread: float
    effective_rank: float

    def collapse(self, samples: int) -> str | None:
        """Why embeddings of so many samples count as collapsed, or None; `unjudged` says what so many cannot tell."""
        if not math.isfinite(self.spread):
            return "the embeddings are not finite"
        if samples >= FEWEST_FOR_SPREAD and not self.spread >= MIN_SPREAD:
            return (
                f"embedding std {self.feature_std:.2e} is {self.spread:.3f} of 1/sqrt(d), below {MIN_SPREAD}"
            )
        if samples >= FEWEST_FOR_RANK and self.effective_rank < MIN_EFFECTIVE_RANK:
            return f"effective rank {self.effective_rank:.2f} of the embeddings, below {MIN_EFFECTIVE_RANK}"
        return None


def unjudged(samples: int) -> str | None:
    """What so many held-out samples are too few to tell about a collapse, or None."""
    if samples < FEWEST_FOR_SPREAD:
        return f"collapse is not judged on {samples} held-out images: it takes {FEWEST_FOR_SPREAD}"
    if samples < FEWEST_FOR_RANK:
        return (
            f"collapse is judged by the spread of the embeddings alone, since their rank takes {FEWEST_FOR_RANK} "
            f"held-out images and there are {samples}"
        )
    return None


@dataclass(frozen=True)
class Diagnostics:
    """Measured on the embeddings ``[N, D]`` of two views of the same held-out images."""

    feature_std: float
    spread: float
    effective_rank: float
    dimensions: int
    samples: int
    spectrum: list[float]
    cross_correlation: list[list[float]]
    diagonal_mean: float
    off_diagonal_rms: float

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    def collapse(self) -> str | None:
        """Why this counts as collapsed, or None."""
        return Probe(self.feature_std, self.spread, self.effective_rank).collapse(self.samples)


def probe(z: Tensor) -> Probe:
    """Spread and effective rank of embeddings ``[N, D]``."""
    return Probe(*spread(z), effective_rank(singular_values(z)))


def diagnose(z_a: Tensor, z_b: Tensor) -> Diagnostics:
    """Measure the embeddings ``[N, D]`` of two views."""
    std, ratio = spread(z_a)
    values = singular_values(z_a)
    matrix = correlation(z_a.double(), z_b.double())
    diagonal_mean, off_diagonal_rms = correlation_facts(matrix)
    keep = _LARGEST_MATRIX
    return Diagnostics(
        feature_std=std,
        spread=ratio,
        effective_rank=effective_rank(values),
        dimensions=z_a.shape[1],
        samples=len(z_a),
        spectrum=[float(v) for v in values],
        cross_correlation=[[round(float(c), 4) for c in row[:keep]] for row in matrix[:keep]],
        diagonal_mean=diagonal_mean,
        off_diagonal_rms=off_diagonal_rms,
    )


def embeddings_document(measured: Geometry | None, images: int) -> dict[str, Any] | None:
    """What ``diagnostics.json`` keeps of embeddings on the views that all methods are compared on; JSON-ready.

    None if the method has no embeddings; a measure that so few images do not have is None.
    """
    if measured is None:
        return None
    finite = {name: value if math.isfinite(value) else None for name, value in asdict(measured).items()}
    return {"images": images, "measures": finite}
