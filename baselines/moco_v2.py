"""MoCo v2 (Chen et al., arXiv:2003.04297; He et al., arXiv:1911.05722)."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from twinbench.data.augment import ViewPolicy
from twinbench.encoders.backbones import ResNet
from twinbench.foundation.collectives import all_gather_nograd, mean_over_ranks, rank, world_size
from twinbench.foundation.errors import InputError
from twinbench.foundation.transfer import to_device
from twinbench.pretraining.heads import mlp
from twinbench.pretraining.method import LossParts, Method, MethodOptions, Progress, register_method
from twinbench.pretraining.momentum import ema_update, momentum_copy
from twinbench.pretraining.norms import average_running_statistics, split_batch_norms
from twinbench.pretraining.numerics import in_full_precision
from twinbench.pretraining.queues import check_queue_length
from twinbench.pretraining.view_policies import moco_views, two_views


@in_full_precision
def info_nce_logits(q: Tensor, k: Tensor, queue: Tensor, temperature: float = 0.2) -> Tensor:
    """Logits ``[N, 1 + K]`` of queries ``[N, D]``: the own key ``[N, D]`` first, then the queue ``[K, D]``.

    Queries and keys are L2-normalised inside; the queue holds unit vectors. Only the queries get a gradient.
    """
    q, k = F.normalize(q, dim=1), F.normalize(k.detach(), dim=1)
    positive = (q * k).sum(dim=1, keepdim=True)
    # The clone keeps the backward pass valid when the queue is overwritten before it.
    negative = q @ queue.detach().clone().to(q.dtype).T
    return torch.cat([positive, negative], dim=1) / temperature


def _first_is_right(logits: Tensor) -> Tensor:
    targets = torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
    return mean_over_ranks(F.cross_entropy(logits, targets))


def info_nce_loss(q: Tensor, k: Tensor, queue: Tensor, temperature: float = 0.2) -> Tensor:
    """The contrastive loss of queries ``[N, D]`` with their keys ``[N, D]`` and a queue ``[K, D]``, a scalar.

    (K + 1)-way cross-entropy (arXiv:1911.05722, equation 1), the mean over the global batch. See
    `info_nce_logits`.
    """
    return _first_is_right(info_nce_logits(q, k, queue, temperature))


@register_method("moco_v2")
class MoCoV2(Method):
    """Queries recognise their key among a queue of keys from a momentum encoder.

    In a step the key encoder first follows the query encoder, then keys are made from a shuffled batch and
    put into the queue after the logits. Batch norm works in ``bn_splits`` groups of the global batch in both
    encoders, and shuffling gives a query and its key different company, so that the statistics cannot give
    the answer away (arXiv:1911.05722, section 3.3). The groups are the same on one device as on many: with as
    many devices as groups this is the official shuffling batch norm. ``bn_splits=1`` uses the whole batch.

    The loss goes one way, as in the paper. ``symmetric=True`` takes the mean of both directions and puts both
    views' keys into the one queue: more work and a better result from a short run.

    Micro-batches cannot stand in for a batch: every forward pass moves the queue on.
    """

    class Options(MethodOptions):
        """Hyperparameters of MoCo v2; ``queue_length`` must be a multiple of the keys made in a step."""

        projector: tuple[int, ...] = Field((2048, 128), min_length=1)
        temperature: float = Field(0.2, gt=0)
        queue_length: int = Field(65536, ge=1)
        momentum: float = Field(0.999, ge=0, le=1)
        bn_splits: int = Field(8, ge=1)
        symmetric: bool = False

    options: Options
    queue: Tensor
    queue_pointer: Tensor

    def __init__(self, backbone: ResNet, options: Options) -> None:
        if options.bn_splits > 1:
            split_batch_norms(backbone, options.bn_splits)
        super().__init__(backbone, options)
        dims = (backbone.feature_dim, *options.projector)
        self.projector = mlp(dims, bias=True, norm=False, last_bias=True)
        self.key_backbone = momentum_copy(self.backbone)
        self.key_projector = momentum_copy(self.projector)
        self.register_buffer("queue", F.normalize(torch.randn(options.queue_length, dims[-1]), dim=1))
        self.register_buffer("queue_pointer", torch.zeros((), dtype=torch.long))

    @classmethod
    def default_views(cls, size: int) -> tuple[ViewPolicy, ...]:
        """The official code's views; no blur up to 32 pixels."""
        return moco_views(size)

    def check(self, batch_size: int, views: int, ranks: int = 1) -> None:
        """Two views; the queue must hold whole steps of keys, the batch whole groups, a rank whole groups."""
        super().check(batch_size, views, ranks)
        check_queue_length(self.options.queue_length, batch_size * (2 if self.options.symmetric else 1))
        splits = self.options.bn_splits
        if splits > 1 and (batch_size % splits or splits % ranks):
            working = [n for n in range(1, batch_size) if batch_size % n == 0 and (n == 1 or n % ranks == 0)]
            raise InputError(
                f"bn_splits={splits} does not divide batch_size={batch_size} on {ranks} device(s) evenly",
                where="options.bn_splits",
                next_step=f"set options.bn_splits to one of {', '.join(map(str, working))}",
            )

    def before_step(self, progress: Progress) -> None:
        """Move the key encoder towards the query encoder as it is now."""
        pairs: list[tuple[nn.Module, nn.Module]] = [
            (self.key_backbone, self.backbone),
            (self.key_projector, self.projector),
        ]
        for key, query in pairs:
            ema_update(key, query, self.options.momentum)

    def loss(self, views: list[Tensor], labels: Tensor | None, progress: Progress) -> LossParts:
        """Contrast with the queue of the steps before; the keys of this step enter it afterwards.

        ``accuracy`` is the share of queries whose own key beats the whole queue.
        """
        view_a, view_b = two_views(views)
        directions = [(view_a, view_b), (view_b, view_a)] if self.options.symmetric else [(view_a, view_b)]
        check_queue_length(self.options.queue_length, view_a.shape[0] * world_size() * len(directions))
        losses, accuracies, new_keys = [], [], []
        for index, (query_view, key_view) in enumerate(directions):
            q = self.projector(self.backbone(query_view))
            keys = self._keys(key_view, seed=2 * progress.step + index)
            own = keys.chunk(world_size())[rank()]
            logits = info_nce_logits(q, own, self.queue, self.options.temperature)
            losses.append(_first_is_right(logits))
            accuracies.append((logits.detach().argmax(dim=1) == 0).float().mean())
            new_keys.append(keys)
        self._enqueue(torch.cat(new_keys))
        return LossParts(torch.stack(losses).mean(), {"accuracy": torch.stack(accuracies).mean()})

    @torch.no_grad()
    def _keys(self, images: Tensor, seed: int) -> Tensor:
        """Unit keys ``[N, D]`` of the global batch, in its order, made from shuffled shares ``[n, 3, H, W]``.

        The permutation depends on the step alone: all ranks know it and a resumed run repeats it.
        """
        everyone = all_gather_nograd(images)
        generator = torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(everyone.shape[0], generator=generator)
        (order,) = to_device([shuffled], images.device)
        share = everyone[order.chunk(world_size())[rank()]]
        if images.is_contiguous(memory_format=torch.channels_last):
            share = share.contiguous(memory_format=torch.channels_last)
        keys = self.key_projector(self.key_backbone(share))
        return all_gather_nograd(_unit(keys))[order.argsort()]

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        """Overwrite the oldest keys; indices stay on the device, so nothing waits for it."""
        slots = self.queue_pointer + torch.arange(keys.shape[0], device=keys.device)
        self.queue.index_copy_(0, slots % self.options.queue_length, keys.to(self.queue.dtype))
        self.queue_pointer.add_(keys.shape[0]).remainder_(self.options.queue_length)

    def after_step(self, progress: Progress) -> None:
        """Give all ranks the same running statistics, those of one process with the same groups."""
        if self.options.bn_splits > 1:
            average_running_statistics(self)

    @torch.no_grad()
    def embed(self, view: Tensor) -> Tensor:
        """The query head's output ``[N, D]``, before normalisation."""
        embedding: Tensor = self.projector(self.backbone(view))
        return embedding

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """One group: the official code decays every tensor."""
        return [
            {
                "name": "weights",
                "params": [p for p in self.parameters() if p.requires_grad],
                "weight_decay": weight_decay,
                "lars_exclude": False,
                "lr_scale": 1.0,
                "schedule": "scheduled",
            }
        ]


@in_full_precision
def _unit(keys: Tensor) -> Tensor:
    return F.normalize(keys, dim=1)
