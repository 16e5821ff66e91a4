"""SimCLR (Chen et al., arXiv:2002.05709)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from twinbench.data.augment import ViewPolicy
from twinbench.encoders.backbones import ResNet
from twinbench.foundation.collectives import all_gather_cat, mean_over_ranks, rank
from twinbench.pretraining.heads import mlp
from twinbench.pretraining.method import LossParts, Method, MethodOptions, Progress, register_method
from twinbench.pretraining.numerics import in_full_precision
from twinbench.pretraining.view_policies import strong_colour_views, two_views


@in_full_precision
def nt_xent_loss(z_a: Tensor, z_b: Tensor, temperature: float = 0.5) -> Tensor:
    """The normalised-temperature cross-entropy of embeddings ``[N, D]`` and ``[N, D]`` (equation 1), a
    scalar.

    The mean over the 2N anchors; each one's candidates are the 2N - 1 other embeddings of the global batch.
    (The official code adds the means of the two views, which is twice this.) Embeddings are L2-normalised
    inside.
    """
    own = torch.stack([F.normalize(z_a, dim=1), F.normalize(z_b, dim=1)])
    everyone = all_gather_cat(own.transpose(0, 1)).transpose(0, 1)
    n, total = own.shape[1], everyone.shape[1]
    similarity = own.flatten(0, 1) @ everyone.flatten(0, 1).T / temperature
    index = torch.arange(n, device=z_a.device) + rank() * n
    itself, partner = torch.cat([index, index + total]), torch.cat([index + total, index])
    similarity = similarity.scatter(1, itself[:, None], -torch.inf)
    return mean_over_ranks(F.cross_entropy(similarity, partner))


@register_method("simclr")
class SimCLR(Method):
    """Two views that must recognise each other among the batch.

    Both views go through the network together, as in the official code: batch statistics mix them. The
    projector ends in batch norm with a scale and no shift, also as there.

    Micro-batches cannot stand in for a batch: the other images of the batch are the candidates.
    """

    class Options(MethodOptions):
        """Hyperparameters of SimCLR. The projector is the paper's two layers (the later code has three)."""

        projector: tuple[int, ...] = Field((2048, 128), min_length=1)
        temperature: float = Field(0.1, gt=0)
        loss_scale: float = Field(1.0, gt=0)
        """Multiplies the loss. The official code has 2, from its first public version on: it adds the means of the
        two views. Under LARS it matters for norm parameters, which are not adapted, and against the weight decay."""

    options: Options

    def __init__(self, backbone: ResNet, options: Options) -> None:
        super().__init__(backbone, options)
        self.projector = mlp((backbone.feature_dim, *options.projector), last_norm="scale_only")

    @classmethod
    def default_views(cls, size: int) -> tuple[ViewPolicy, ...]:
        """Appendix A of the paper; half the colour strength and no blur up to 32 pixels (appendix B.9)."""
        return strong_colour_views(size, interpolation="bicubic", blur_kernel="truncated")

    def loss(self, views: list[Tensor], labels: Tensor | None, progress: Progress) -> LossParts:
        """The scaled NT-Xent over the two views."""
        z_a, z_b = self.projector(self.backbone(torch.cat(two_views(views)))).chunk(2)
        similarity = F.cosine_similarity(z_a.detach().float(), z_b.detach().float()).mean()
        total = self.options.loss_scale * nt_xent_loss(z_a, z_b, self.options.temperature)
        return LossParts(total, {"positive_similarity": similarity})

    @torch.no_grad()
    def embed(self, view: Tensor) -> Tensor:
        """The projector's output ``[N, D]``."""
        embedding: Tensor = self.projector(self.backbone(view))
        return embedding
