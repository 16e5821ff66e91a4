"""What the Barlow Twins paper puts in the place of its loss in table 5, of embeddings ``[N, D]`` of two views.

Inside a process group all statistics are those of the global batch, as in `pretraining.barlow_twins`. The paper does
not say how these variants are scaled; where there was a choice it stands in the docstring.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinbench.foundation.collectives import all_reduce_sum, global_moments, standardise, world_size
from twinbench.pretraining.numerics import in_full_precision


@in_full_precision
def cross_covariance(z_a: Tensor, z_b: Tensor) -> Tensor:
    """The cross-covariance ``[D, D]``: centred over the batch, and not divided by the deviations.

    The row "no normalization" of table 5.
    """
    a, b = (z - global_moments(z)[0] for z in (z_a, z_b))
    return _mean_product(a, b)


@in_full_precision
def feature_normalised_covariance(z_a: Tensor, z_b: Tensor) -> Tensor:
    """The mean product ``[D, D]`` of embeddings that are standardised over the batch, then brought to length 1.

    The row "normalization along feature dim." of table 5: each image's embedding is divided by its own length, and no
    mean is subtracted after that. The entries are multiplied by D, so that the diagonal has mean 1 for equal views, as
    that of a correlation matrix has; otherwise no network could come near a diagonal of ones.
    """
    a, b = (torch.nn.functional.normalize(standardise(z), dim=1) for z in (z_a, z_b))
    return _mean_product(a, b) * a.shape[1]


def _mean_product(a: Tensor, b: Tensor) -> Tensor:
    return all_reduce_sum((a / (a.shape[0] * world_size())).T @ b)


def cross_entropy_terms(c: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The two terms of the row "cross-entropy with temp." for a matrix ``[D, D]``.

    ``-log sum_i exp(c_ii / t)`` and ``log sum_{i != j} exp(max(c_ij, 0) / t)``.
    """
    diagonal = c.diagonal() / temperature
    off_diagonal = c.masked_fill(torch.eye(len(c), dtype=torch.bool, device=c.device), -torch.inf)
    rest = torch.where(off_diagonal.isinf(), off_diagonal, off_diagonal.clamp(min=0) / temperature)
    return -torch.logsumexp(diagonal, dim=0), torch.logsumexp(rest.flatten(), dim=0)
