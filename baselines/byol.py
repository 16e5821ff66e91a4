"""BYOL (Grill et al., arXiv:2006.07733)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from twinbench.data.augment import ViewPolicy
from twinbench.encoders.backbones import ResNet
from twinbench.foundation.collectives import mean_over_ranks
from twinbench.pretraining.heads import mlp
from twinbench.pretraining.method import LossParts, Method, MethodOptions, Progress, register_method
from twinbench.pretraining.momentum import ema_update, momentum_copy
from twinbench.pretraining.numerics import in_full_precision
from twinbench.pretraining.schedules import ema_momentum
from twinbench.pretraining.view_policies import asymmetric_views, two_views


@in_full_precision
def byol_loss(p: Tensor, z: Tensor) -> Tensor:
    """``2 - 2 cos(p, z)``, the mean over the global batch: one direction (equation 2), a scalar in [0, 4].

    ``p [N, D]`` is the online prediction, ``z [N, D]`` the target's projection, which gets no gradient.
    """
    return mean_over_ranks((2.0 - 2.0 * F.cosine_similarity(p, z.detach(), dim=1)).mean())


@register_method("byol")
class BYOL(Method):
    """An online network predicts the projections of its own slow moving average.

    The loss is the sum of both directions. Each view is forwarded separately. The target runs in training
    mode with its own batch-norm statistics and follows the online network after every optimizer step; it
    starts as a copy (the official code draws it anew, "no significant difference").
    """

    accumulates: ClassVar[bool] = True
    """The loss is a mean of terms that each concern one image."""

    class Options(MethodOptions):
        """Hyperparameters of BYOL; ``tau_base`` is the momentum of the target at the first step."""

        projector: tuple[int, ...] = Field((4096, 256), min_length=1)
        predictor_hidden: PositiveInt | tuple[PositiveInt, ...] = 4096
        """The width of the predictor's hidden layer, or those of several (BT-paper table 7)."""
        tau_base: float = Field(0.996, ge=0, le=1)

    options: Options

    def __init__(self, backbone: ResNet, options: Options) -> None:
        super().__init__(backbone, options)
        width = options.projector[-1]
        self.projector = mlp((backbone.feature_dim, *options.projector), bias=True)
        hidden = options.predictor_hidden
        self.predictor = mlp((width, *([hidden] if isinstance(hidden, int) else hidden), width), bias=True)
        self.target_backbone = momentum_copy(self.backbone)
        self.target_projector = momentum_copy(self.projector)

    @classmethod
    def default_views(cls, size: int) -> tuple[ViewPolicy, ...]:
        """Table 6 of the paper; no blur up to 32 pixels."""
        return asymmetric_views(size, blur_kernel="truncated")

    def loss(self, views: list[Tensor], labels: Tensor | None, progress: Progress) -> LossParts:
        """Both directions, in [0, 8]."""
        view_a, view_b = two_views(views)
        p_a, p_b = self._predict(view_a), self._predict(view_b)
        with torch.no_grad():
            z_a = self.target_projector(self.target_backbone(view_a))
            z_b = self.target_projector(self.target_backbone(view_b))
        total = byol_loss(p_a, z_b) + byol_loss(p_b, z_a)
        return LossParts(total, {"similarity": 1.0 - total.detach() / 4.0})

    def _predict(self, view: Tensor) -> Tensor:
        prediction: Tensor = self.predictor(self.projector(self.backbone(view)))
        return prediction

    @torch.no_grad()
    def embed(self, view: Tensor) -> Tensor:
        """The online projection ``[N, D]``."""
        embedding: Tensor = self.projector(self.backbone(view))
        return embedding

    def after_step(self, progress: Progress) -> None:
        """Move the target towards the updated online network."""
        tau = ema_momentum(self.options.tau_base, progress.step, progress.total_steps)
        pairs: list[tuple[nn.Module, nn.Module]] = [
            (self.target_backbone, self.backbone),
            (self.target_projector, self.projector),
        ]
        for target, online in pairs:
            ema_update(target, online, tau)
