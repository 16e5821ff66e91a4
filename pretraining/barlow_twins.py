"""Barlow Twins (Zbontar et al., arXiv:2103.03230)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from twinbench.data.augment import ViewPolicy
from twinbench.encoders.backbones import ResNet
from twinbench.foundation.collectives import all_reduce_sum, standardise, world_size
from twinbench.pretraining.correlation_variants import (
    cross_covariance,
    cross_entropy_terms,
    feature_normalised_covariance,
)
from twinbench.pretraining.heads import mlp
from twinbench.pretraining.method import (
    LossParts,
    Method,
    MethodOptions,
    Progress,
    register_method,
    split_parameter_groups,
)
from twinbench.pretraining.numerics import in_full_precision
from twinbench.pretraining.view_policies import asymmetric_views, two_views


@in_full_precision
def cross_correlation(z_a: Tensor, z_b: Tensor) -> Tensor:
    """The cross-correlation matrix ``[D, D]`` of embeddings ``[N, D]`` and ``[N, D]`` (equation 2).

    Every dimension is standardised over the global batch with its biased variance plus 1e-5, as the official
    code does with a batch norm without parameters (algorithm 1 of the paper uses the unbiased one, which
    keeps the diagonal below (N - 1) / N). A constant dimension gives zeros. Inside a process group N counts
    the images of all ranks, and every rank gets the same matrix.
    """
    a, b = standardise(z_a), standardise(z_b)
    # N divides the small factor: at the paper's width a [D, D] matrix is 256 MiB
    return all_reduce_sum((a / (z_a.shape[0] * world_size())).T @ b)


def correlation_terms(c: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms of the loss for a matrix ``[D, D]``.

    ``sum_i (1 - c_ii)^2`` (invariance) and ``sum_{i != j} c_ij^2`` (redundancy reduction), both plain sums.
    """
    invariance, redundancy = _CorrelationTerms.apply(c)
    return invariance, redundancy


class _CorrelationTerms(torch.autograd.Function):
    """Both terms with a gradient written into one matrix, where autograd would keep four of them."""

    @staticmethod
    def forward(ctx: Any, c: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(c)
        return (1.0 - c.diagonal()).square().sum(), _off_diagonal(c).square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        of_invariance, of_redundancy = grads
        (c,) = ctx.saved_tensors
        gradient: Tensor = c * (2.0 * of_redundancy)
        gradient.diagonal().copy_((c.diagonal() - 1.0) * (2.0 * of_invariance))
        return gradient


def _off_diagonal(c: Tensor) -> Tensor:
    """The D (D - 1) entries off the diagonal of ``[D, D]``, without copying or masking.

    In the flattened matrix without its last entry, the diagonal is every (D + 1)-th one.
    """
    width = c.shape[0]
    return c.flatten()[:-1].view(width - 1, width + 1)[:, 1:]


def barlow_twins_loss(z_a: Tensor, z_b: Tensor, lambd: float = 0.0051) -> Tensor:
    """The Barlow Twins loss of embeddings ``[N, D]`` and ``[N, D]``, a scalar (equation 1).

    ``sum_i (1 - C_ii)^2 + lambd * sum_{i != j} C_ij^2`` with `cross_correlation`. The default ``lambd`` is
    the official code's; the paper gives 5e-3. Inside a process group the statistics are those of all ranks
    and the gradient, averaged over ranks, is exact.
    """
    invariance, redundancy = correlation_terms(cross_correlation(z_a, z_b))
    return invariance + lambd * redundancy


@register_method("barlow_twins")
class BarlowTwins(Method):
    """Two views, one shared network, and a correlation matrix pulled towards the identity.

    The views go through the network one after the other, so batch statistics are per view.

    Micro-batches cannot stand in for a batch: the correlation matrix is a statistic of all its images.
    """

    class Options(MethodOptions):
        """Hyperparameters of Barlow Twins."""

        projector: tuple[int, ...] = Field((8192, 8192, 8192), min_length=1)
        lambd: float = Field(0.0051, ge=0)
        """Weight of the redundancy reduction; 0 leaves the invariance alone."""
        loss_scale: float = Field(1.0, gt=0)
        """Multiplies the loss. Under LARS it only matters for norm parameters, which are not adapted: the
        official code's gradients are 1/W of the true ones on W GPUs, so 1/32 restores the ratio its published
        learning rate of norm parameters was tuned for (32 GPUs in the paper)."""
        norm_lr_scale: float = Field(1.0, gt=0)
        """Learning rate of one-dimensional tensors relative to the weights' (official code: 0.0048 / 0.2)."""

        # What follows are the ablations of tables 5 and 6; the defaults are the method.
        invariance: float = Field(1.0, ge=0)
        """Weight of the invariance; 0 leaves the redundancy reduction alone."""
        projector_norm: bool = True
        """Batch norm in the hidden layers of the projector."""
        normalise: Literal["batch", "features", "none"] = "batch"
        """The matrix: `cross_correlation`, `feature_normalised_covariance` or `cross_covariance`."""
        temperature: float | None = Field(None, gt=0)
        """If given, the terms are those of `cross_entropy_terms`."""
        predictor: tuple[int, ...] = ()
        """Hidden widths of a predictor on the first view's embeddings: batch norm and ReLU, then as wide as these."""
        stop_gradient: bool = False
        """No gradient through the second view's embeddings."""

    options: Options

    def __init__(self, backbone: ResNet, options: Options) -> None:
        super().__init__(backbone, options)
        self.projector = mlp((backbone.feature_dim, *options.projector), norm=options.projector_norm)
        width = options.projector[-1]
        self.predictor = mlp((width, *options.predictor, width)) if options.predictor else nn.Identity()

    @classmethod
    def default_views(cls, size: int) -> tuple[ViewPolicy, ...]:
        """The official code's two views; no blur up to 32 pixels."""
        return asymmetric_views(size, blur_kernel="pillow")

    def loss(self, views: list[Tensor], labels: Tensor | None, progress: Progress) -> LossParts:
        """The scaled loss; the parts are of the matrix, unscaled and unweighted."""
        z_a, z_b = (self.projector(self.backbone(view)) for view in two_views(views))
        c = self._matrix(self.predictor(z_a), z_b.detach() if self.options.stop_gradient else z_b)
        squares = correlation_terms(c)
        temperature = self.options.temperature
        invariance, redundancy = squares if temperature is None else cross_entropy_terms(c, temperature)
        weighted = self.options.invariance * invariance + self.options.lambd * redundancy
        total = self.options.loss_scale * weighted
        off_diagonals = max(1, c.shape[0] * (c.shape[0] - 1))
        parts = {
            "on_diagonal": squares[0].detach(),
            "off_diagonal": squares[1].detach(),
            "diagonal_mean": c.detach().diagonal().mean(),
            "off_diagonal_rms": (squares[1].detach() / off_diagonals).sqrt(),
        }
        return LossParts(total, parts)

    def _matrix(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """``[D, D]``, of which the loss wants ones on the diagonal and zeros off it."""
        if self.options.normalise == "none":
            return cross_covariance(z_a, z_b)
        if self.options.normalise == "features":
            return feature_normalised_covariance(z_a, z_b)
        return cross_correlation(z_a, z_b)

    @torch.no_grad()
    def embed(self, view: Tensor) -> Tensor:
        """The projector's output ``[N, D]``, before the loss standardises it."""
        embedding: Tensor = self.projector(self.backbone(view))
        return embedding

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Weights, and norm parameters at their own learning rate without decay or adaptation."""
        weights, norms = split_parameter_groups(self, weight_decay)
        return [weights, {**norms, "lr_scale": self.options.norm_lr_scale}]
