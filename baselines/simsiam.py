"""SimSiam (Chen and He, arXiv:2011.10566)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from twinbench.data.augment import ViewPolicy
from twinbench.encoders.backbones import ResNet
from twinbench.foundation.collectives import mean_over_ranks
from twinbench.pretraining.heads import mlp
from twinbench.pretraining.method import LossParts, Method, MethodOptions, Progress, register_method
from twinbench.pretraining.numerics import in_full_precision
from twinbench.pretraining.view_policies import moco_views, two_views


@in_full_precision
def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """``-cos(p, stop-gradient(z))``, the mean over the global batch (equation 1), a scalar in [-1, 1].

    ``p [N, D]`` is the prediction, ``z [N, D]`` the projection; it is detached inside.
    """
    return mean_over_ranks(-F.cosine_similarity(p, z.detach(), dim=1).mean())


@register_method("simsiam")
class SimSiam(Method):
    """A predictor and a stop-gradient, without negatives or momentum encoder.

    The projector's last linear layer has no bias: the official code freezes one there, which the batch norm
    without parameters after it cancels. Each view is forwarded separately. Weight decay applies to all
    tensors and the predictor's learning rate stays constant, as in the released runs.
    """

    accumulates: ClassVar[bool] = True
    """The loss is a mean of terms that each concern one image."""

    class Options(MethodOptions):
        """Hyperparameters of SimSiam."""

        projector: tuple[int, ...] = Field((2048, 2048, 2048), min_length=1)
        predictor_hidden: int = Field(512, ge=1)

    options: Options

    def __init__(self, backbone: ResNet, options: Options) -> None:
        super().__init__(backbone, options)
        width = options.projector[-1]
        self.projector = mlp((backbone.feature_dim, *options.projector), last_norm="no_affine")
        self.predictor = mlp((width, options.predictor_hidden, width), last_bias=True)

    @classmethod
    def default_views(cls, size: int) -> tuple[ViewPolicy, ...]:
        """Appendix A of the paper; no blur up to 32 pixels (appendix D)."""
        return moco_views(size)

    def loss(self, views: list[Tensor], labels: Tensor | None, progress: Progress) -> LossParts:
        """The mean of both directions, in [-1, 1].

        ``embedding_std`` is the paper's monitor of collapse (section 4.1): the standard deviation per channel
        of the L2-normalised projection, near 1 / sqrt(D) when healthy and 0 when collapsed.
        """
        view_a, view_b = two_views(views)
        z_a, z_b = self.projector(self.backbone(view_a)), self.projector(self.backbone(view_b))
        p_a, p_b = self.predictor(z_a), self.predictor(z_b)
        total = 0.5 * (negative_cosine(p_a, z_b) + negative_cosine(p_b, z_a))
        spread = F.normalize(z_a.detach().float(), dim=1).std(dim=0).mean()
        return LossParts(total, {"embedding_std": spread})

    @torch.no_grad()
    def embed(self, view: Tensor) -> Tensor:
        """The projection ``[N, D]``."""
        embedding: Tensor = self.projector(self.backbone(view))
        return embedding

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Decay everywhere; the predictor keeps its peak learning rate."""
        predictor = list(self.predictor.parameters())
        rest = [*self.backbone.parameters(), *self.projector.parameters()]
        common = {"weight_decay": weight_decay, "lars_exclude": False, "lr_scale": 1.0}
        return [
            {"name": "weights", "params": rest, "schedule": "scheduled", **common},
            {"name": "predictor", "params": predictor, "schedule": "constant", **common},
        ]
