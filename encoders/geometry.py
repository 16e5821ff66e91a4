"""The geometry of features: how many directions they use, how evenly, and what a mild change of view does to them.

The same measures serve the backbone's features and a method's embeddings, on the same views of the same held-out
images, so that encoders and methods compare. None of them is better higher or lower by itself: constant features are
perfectly aligned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import normalize

from twinbench.data.augment import Normalisation, ViewPolicy, augment, eval_view
from twinbench.data.views import BATCH
from twinbench.foundation.randomness import seeded_generator

HELD_OUT_IMAGES = 1024
"""At most so many images of the split ``val`` are looked at, the first ones."""


@dataclass(frozen=True)
class Geometry:
    """Measures of vectors ``[N, D]`` of plain views and of two random views of the same N images.

    ``effective_rank`` and ``feature_spread`` (a share of 1/sqrt(D)) are of the plain views, and so is ``uniformity``,
    log E exp(-2 |x - y|^2) over pairs of different images. ``alignment`` is E |x - y|^2 over the two random views of
    an image; both are of vectors of unit length (Wang and Isola, arXiv:2005.10242, with their alpha and t of 2).
    ``diagonal_mean`` and ``off_diagonal_rms`` are of the correlation between the channels of the two random views, in
    which a channel that never changes counts as 0.
    """

    effective_rank: float
    alignment: float
    uniformity: float
    diagonal_mean: float
    off_diagonal_rms: float
    feature_spread: float


MEASURES = tuple(field.name for field in fields(Geometry))


def common_view(size: int) -> ViewPolicy:
    """The random view that all are compared on: a mild crop and mild colours, which no method is trained on.

    Nothing is flipped, blurred or made grey, since for some images and methods that is another thing.
    """
    return ViewPolicy(
        size=size,
        crop_scale=(0.5, 1.0),
        flip=0.0,
        jitter=1.0,
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
        hue=0.02,
        grayscale=0.0,
        interpolation="bilinear",
    )


@torch.no_grad()
def geometry(
    embed: Callable[[Tensor], Tensor],
    images: Tensor,
    size: int,
    normalisation: Normalisation,
    seed: int,
    device: torch.device,
) -> Geometry:
    """Measure what ``embed`` makes of normalised views ``[n, 3, size, size]`` on the device: vectors ``[n, D]``.

    ``images`` are uint8 ``[N, 3, H, W]``; the views are a function of the seed and of nothing else.
    """
    generator = seeded_generator(seed, "common views", 0)
    policy = common_view(size)
    vectors: list[list[Tensor]] = [[], [], []]
    for chunk in images.split(BATCH):
        chunk = chunk.to(device)
        views = [eval_view(chunk, size, normalisation)]
        views += [augment(chunk, policy, normalisation, generator) for _ in range(2)]
        for found, view in zip(vectors, views, strict=True):
            found.append(embed(view).float().cpu())
    return measure(*(torch.cat(found) for found in vectors))


def measure(plain: Tensor, first: Tensor, second: Tensor) -> Geometry:
    """The measures of the vectors ``[N, D]`` of the plain and the two random views of N >= 2 images, in float64."""
    diagonal, off_diagonal = correlation_facts(correlation(first.double(), second.double()))
    return Geometry(
        effective_rank=effective_rank(singular_values(plain)),
        alignment=alignment(first, second),
        uniformity=uniformity(plain),
        diagonal_mean=diagonal,
        off_diagonal_rms=off_diagonal,
        feature_spread=spread(plain)[1],
    )


def alignment(first: Tensor, second: Tensor) -> float:
    """The mean squared distance between the rows of two ``[N, D]`` after each is scaled to unit length."""
    difference = normalize(first.double(), dim=1) - normalize(second.double(), dim=1)
    return difference.square().sum(dim=1).mean().item()


def uniformity(vectors: Tensor) -> float:
    """log E exp(-2 |x - y|^2) over pairs of different rows of ``[N, D]`` of unit length: 0 if all are one point."""
    distances = torch.pdist(normalize(vectors.double(), dim=1))
    return distances.square().mul(-2).exp().mean().log().item()


def spread(vectors: Tensor) -> tuple[float, float]:
    """Mean channel standard deviation of the L2-normalised ``[N, D]`` rows, and its ratio to 1/sqrt(D)."""
    std = normalize(vectors.double(), dim=1).std(dim=0, unbiased=False).mean().item()
    return std, std * vectors.shape[1] ** 0.5


def singular_values(vectors: Tensor) -> Tensor:
    """Singular values of the centred ``[N, D]`` matrix, largest first."""
    centred = vectors.double() - vectors.double().mean(dim=0)
    return torch.linalg.svdvals(centred)


def effective_rank(values: Tensor) -> float:
    """The exponential of the entropy of normalised singular values; 1 for a line, D for an isotropic cloud."""
    share = values / values.sum().clamp_min(1e-300)
    share = share[share > 0]
    return float(torch.exp(-(share * share.log()).sum()))


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """The correlation ``[D, D]`` between the channels of two ``[N, D]``."""
    first, second = ((z - z.mean(dim=0)) / (z.std(dim=0, unbiased=False) + 1e-12) for z in (first, second))
    return first.T @ second / len(first)


def correlation_facts(matrix: Tensor) -> tuple[float, float]:
    """The mean of the diagonal of ``[D, D]``, and the root mean square of the rest (0 if there is none)."""
    rest = matrix[~torch.eye(len(matrix), dtype=torch.bool)]
    return matrix.diagonal().mean().item(), rest.square().mean().sqrt().item() if len(rest) else 0.0
