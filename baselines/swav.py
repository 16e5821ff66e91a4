"""SwAV (Caron et al., arXiv:2006.09882)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from twinbench.data.augment import ViewPolicy
from twinbench.encoders.backbones import ResNet
from twinbench.foundation.collectives import (
    all_gather_nograd,
    all_reduce_max_nograd,
    all_reduce_sum,
    mean_over_ranks,
    rank,
    world_size,
)
from twinbench.foundation.errors import InputError
from twinbench.pretraining.heads import mlp
from twinbench.pretraining.method import LossParts, Method, MethodOptions, Progress, register_method
from twinbench.pretraining.numerics import in_full_precision
from twinbench.pretraining.queues import check_queue_length
from twinbench.pretraining.view_policies import strong_colour_views

_LOWEST_EXPONENT = -60.0  # far from where fp32 ends (-87), also after a division by the size of a batch


@torch.no_grad()
@in_full_precision
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Codes ``[B, K]`` for scores ``[B, K]``: a soft assignment that spreads the batch over the prototypes.

    Sinkhorn-Knopp on ``exp(scores / epsilon)`` (section 3.1, appendix A): prototypes, then samples are
    normalised in turn, so every row sums to 1 and the columns about equally. Inside a process group B counts
    the samples of all ranks; each rank gets the codes of its own rows. No gradient.
    """
    # The largest score cancels in the result, and without it the exponential cannot overflow.
    codes = (scores - all_reduce_max_nograd(scores.max())).div_(epsilon)
    # A sample far below it would vanish. The scale of a row does not change what the iteration converges to.
    codes.add_((_LOWEST_EXPONENT - codes.amax(dim=1, keepdim=True)).clamp_min_(0.0)).exp_()
    smallest = torch.finfo(codes.dtype).tiny  # a prototype that nobody scores must not become 0 / 0
    for _ in range(iterations):
        codes.div_(all_reduce_sum(codes.sum(dim=0)).clamp_min(smallest))
        codes.div_(codes.sum(dim=1, keepdim=True).clamp_min(smallest))
    return codes


@in_full_precision
def _cross_entropy(codes: Tensor, scores: Tensor, temperature: float) -> Tensor:
    return mean_over_ranks(-(codes * F.log_softmax(scores / temperature, dim=1)).sum(dim=1).mean())


def multi_crop_loss(scores: Sequence[Tensor], codes: Sequence[Tensor], temperature: float = 0.1) -> Tensor:
    """The code of crop i predicted from every other crop (equation 6 of the paper), a scalar.

    ``scores`` has V tensors ``[N, K]``, one for each crop; ``codes`` has the codes ``[N, K]`` of the first
    crops, usually two. The mean over all pairs of a code and another crop.
    """
    terms = [
        _cross_entropy(code, score, temperature)
        for i, code in enumerate(codes)
        for v, score in enumerate(scores)
        if v != i
    ]
    return torch.stack(terms).mean()


def swapped_prediction_loss(
    scores_a: Tensor, scores_b: Tensor, temperature: float = 0.1, epsilon: float = 0.05, iterations: int = 3
) -> Tensor:
    """The SwAV loss of two views' scores ``[N, K]`` and ``[N, K]`` (cosines with the prototypes), a scalar.

    Each view predicts the other's code (equation 1), the mean of both directions. A collapsed network stays
    at ln K.
    """
    codes = [sinkhorn(scores, epsilon, iterations) for scores in (scores_a, scores_b)]
    return multi_crop_loss([scores_a, scores_b], codes, temperature)


@register_method("swav")
class SwAV(Method):
    """Online clustering: each crop predicts the cluster assignment of another one.

    The first two crops give codes and any number of further (smaller) ones may follow, of any number of
    resolutions. Crops of one resolution are forwarded together, and the head runs once over all crops, as in
    the official code. The queue holds the embeddings of the latest ``queue_length`` images of all ranks and
    is the same on every rank, each of which scores its own part; the official code keeps the parts on their
    ranks, which is the same set.

    Micro-batches cannot stand in for a batch: a code depends on every sample that Sinkhorn sees with it.
    """

    class Options(MethodOptions):
        """Hyperparameters of SwAV; without a queue (``queue_length=0``) by default."""

        projector: tuple[int, ...] = Field((2048, 128), min_length=1)
        prototypes: int = Field(3000, ge=2)
        temperature: float = Field(0.1, gt=0)
        epsilon: float = Field(0.05, ge=0.02)
        sinkhorn_iterations: int = Field(3, ge=1)
        queue_length: int = Field(0, ge=0)
        queue_start_epoch: int = Field(15, ge=0)
        freeze_prototypes_steps: int = Field(313, ge=0)

    options: Options
    queue: Tensor

    def __init__(self, backbone: ResNet, options: Options) -> None:
        super().__init__(backbone, options)
        width = options.projector[-1]
        self.projector = mlp((backbone.feature_dim, *options.projector), bias=True, last_bias=True)
        self.prototypes = nn.Linear(width, options.prototypes, bias=False)
        self.register_buffer("queue", torch.zeros(2, options.queue_length, width))
        self._normalise_prototypes()

    @classmethod
    def default_views(cls, size: int) -> tuple[ViewPolicy, ...]:
        """Two full-size crops, without multi-crop; half the colour strength and no blur up to 32 pixels."""
        return strong_colour_views(size, interpolation="bilinear", blur_kernel="pillow")

    def check(self, batch_size: int, views: int, ranks: int = 1) -> None:
        """At least the two views that assignments are made from; the queue must hold whole batches."""
        check_queue_length(self.options.queue_length, batch_size)
        if views < 2:
            raise InputError(
                f"SwAV takes 2 views or more, the recipe gives {views}",
                where="views",
                next_step="list two, and small crops after them for multi-crop, or leave `views` out",
            )

    def before_step(self, progress: Progress) -> None:
        """Bring the prototypes back to unit length."""
        self._normalise_prototypes()

    @torch.no_grad()
    def _normalise_prototypes(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def loss(self, views: list[Tensor], labels: Tensor | None, progress: Progress) -> LossParts:
        """Swapped prediction over all crops."""
        embeddings = self._embed_crops(views)
        scores = [self._score(z) for z in embeddings]
        codes = self._codes(embeddings[:2], scores[:2], progress)
        total = multi_crop_loss(scores, codes, self.options.temperature)
        entropy = torch.stack([-torch.special.xlogy(q, q).sum(1).mean() for q in codes]).mean()
        return LossParts(total, {"code_entropy": entropy})

    def _embed_crops(self, views: list[Tensor]) -> list[Tensor]:
        """Unit embeddings ``[N, D]`` of every crop; one forward pass of the backbone per resolution."""
        count, sizes = views[0].shape[0], [view.shape[-1] for view in views]
        features: dict[int, Tensor] = {}
        for size in dict.fromkeys(sizes):
            crops = [i for i, own in enumerate(sizes) if own == size]
            together = self.backbone(torch.cat([views[i] for i in crops]))
            features.update(zip(crops, together.split(count), strict=True))
        embeddings = self.projector(torch.cat([features[i] for i in range(len(views))]))
        return list(_unit(embeddings).split(count))

    def _score(self, embeddings: Tensor) -> Tensor:
        """Cosines ``[N, K]`` with the prototypes, in full precision."""
        return _product(embeddings, self.prototypes.weight)

    @torch.no_grad()
    def _codes(self, embeddings: list[Tensor], scores: list[Tensor], progress: Progress) -> list[Tensor]:
        """Codes of the two assignment crops, with the queue once it is full; then the queue moves on."""
        options = self.options
        # counted, not looked up in the queue: a GPU would have to be waited for
        pushes = max(0, progress.step - options.queue_start_epoch * progress.steps_per_epoch)
        is_full = 0 < options.queue_length <= pushes * len(scores[0]) * world_size()
        codes = []
        for view, own in enumerate(scores):
            pool = own
            if is_full:
                pool = torch.cat([own, self._score(self.queue[view, rank() :: world_size()])])
            codes.append(sinkhorn(pool, options.epsilon, options.sinkhorn_iterations)[: own.shape[0]])
        if options.queue_length and progress.epoch >= options.queue_start_epoch:
            self._push(torch.stack(embeddings, dim=1))
        return codes

    @torch.no_grad()
    def _push(self, embeddings: Tensor) -> None:
        """Put ``[n, 2, D]`` of every rank at the front of the queue; the oldest fall out."""
        newest = all_gather_nograd(embeddings).transpose(0, 1).to(self.queue.dtype)
        self.queue.copy_(torch.cat([newest, self.queue], dim=1)[:, : self.options.queue_length])

    def before_optimizer(self, progress: Progress) -> None:
        """Leave the prototypes alone during the first steps (appendix A)."""
        if progress.step < self.options.freeze_prototypes_steps:
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def embed(self, view: Tensor) -> Tensor:
        """The projector's output ``[N, D]``, before normalisation."""
        embedding: Tensor = self.projector(self.backbone(view))
        return embedding


@in_full_precision
def _product(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    return embeddings @ prototypes.T


@in_full_precision
def _unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings, dim=1)
