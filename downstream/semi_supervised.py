"""Semi-supervised evaluation: fine-tuning on a small labelled share of the training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from twinbench.data.augment import apply, draw_parameters
from twinbench.data.image_sets import ImageSet, Split
from twinbench.data.views import in_turns, plain_views
from twinbench.downstream.label_lists import read_label_list
from twinbench.downstream.linear_sgd import linear_head
from twinbench.downstream.protocol import (
    EvaluationContext,
    Measurement,
    Protocol,
    register_protocol,
)
from twinbench.downstream.randomness import seeded, shuffled_indices
from twinbench.downstream.views import (
    EpochOrder,
    all_training_images,
    central_views,
    crop_and_flip,
    readable,
    skipped_images,
    training_views,
)
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.collectives import all_reduce_sum
from twinbench.foundation.errors import InputError, RunFailure
from twinbench.foundation.norms import use_global_batches
from twinbench.foundation.randomness import seeded_generator
from twinbench.foundation.ranks import own_share, require_a_share_each, sum_gradients, together

BACKBONE_LR = 0.002
_BATCH = 256


def labelled_subset(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Sorted indices of the share ``fraction`` of the labelled images, drawn class by class.

    Every class gets the rounded share of its images and at least one. The order within a class is drawn once,
    so a smaller fraction is a subset of a larger one. With the seed of the run the draw is the same for all methods and
    another for every seed. ``labels`` is ``[N]``, -1 where unlabelled.
    """
    generator = seeded_generator(seed, "labelled subset", 0)
    chosen = []
    for label in labels[labels >= 0].unique():
        members = torch.nonzero(labels == label).flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        chosen.append(shuffled[: max(1, round(fraction * len(members)))])
    return torch.cat(chosen).sort().values if chosen else torch.empty(0, dtype=torch.int64)


def lr_factor(step: int, steps: int) -> float:
    """The share of the peak learning rate at a 0-based step: x0.2 after 60 % and again after 80 %."""
    return 0.2 ** ((step >= 0.6 * steps) + (step >= 0.8 * steps))


class FineTuned(nn.Module):
    """A backbone and a linear classifier on its pooled features."""

    def __init__(self, backbone: nn.Module, feature_dim: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = linear_head(feature_dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores ``[N, classes]`` of normalised images ``[N, 3, H, W]``."""
        scores: Tensor = self.head(self.backbone(images))
        return scores


class Batch(NamedTuple):
    """This rank's share of a step: views ``[n, 3, H, W]`` and labels ``[n]``, of the ``images`` that all ranks have."""

    views: Tensor
    labels: Tensor
    images: int


def fine_tune(
    model: FineTuned,
    batches: Callable[[int], Iterator[Batch]],
    steps: int,
    head_lr: float,
    context: EvaluationContext,
) -> None:
    """Train backbone and head with the cross-entropy of ``steps`` batches, which ``batches`` gives from a first one on.

    SGD with momentum 0.9, no weight decay, batch norm in training mode, both learning rates times `lr_factor`. Goes on
    from the checkpoint of the context. Raises RunFailure if the loss is not finite.
    """
    use_global_batches(model)
    optimizer = torch.optim.SGD(
        [
            {"params": model.backbone.parameters(), "peak": BACKBONE_LR},
            {"params": model.head.parameters(), "peak": head_lr},
        ],
        lr=0.0,
        momentum=0.9,
        fused=True,
    )
    state = context.checkpoints.training("training", model=model, optimizer=optimizer)
    model.train()
    for step, (views, labels, images) in enumerate(batches(state.first), state.first):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * lr_factor(step, steps)
        loss = cross_entropy(model(views), labels, reduction="sum") / images
        _require_finite(all_reduce_sum(loss.detach()), step)
        optimizer.zero_grad()
        loss.backward()
        sum_gradients(optimizer)
        optimizer.step()
        state.keep(step + 1)
        context.progress(0.9 * (step + 1) / steps)


def _require_finite(loss: Tensor, step: int) -> None:
    if not torch.isfinite(loss):
        raise RunFailure(f"the fine-tuning loss became {loss.item()} at step {step}")


@torch.no_grad()
def _measure(
    model: FineTuned,
    views: Callable[[Tensor], Iterator[Tensor]],
    test: Split,
    known: Tensor,
    context: EvaluationContext,
) -> list[Measurement]:
    """The accuracies on the test images ``known``; ``views`` gives those of some rows."""
    model.eval()

    def computed(rows: Tensor) -> Iterator[Tensor]:
        for chunk in views(rows):
            yield model(chunk).float()

    scores = torch.cat([chunk.cpu() for chunk in in_turns(known, computed)])
    counted = readable(test.images, known)
    rows = known[counted]
    return context.classified(scores[counted], test.labels[rows], rows)


def _require_labels(chosen: Tensor, known: Tensor, protocol: str, image_set: ImageSet) -> None:
    """Raise InputError unless there are labelled images to train on and to test on."""
    if len(chosen) < 2 or not len(known):
        raise InputError(
            f"{protocol} needs labelled training and test images",
            where=image_set.name,
            next_step="choose an image set with labels, or leave out the protocols that need them",
        )


@dataclass(frozen=True)
class FineTuning(Protocol):
    """Fine-tuning of the whole network on a labelled share, as in BT-paper B.2, shortened.

    SGD with momentum 0.9 without weight decay, separate learning rates for backbone and head, both x0.2 after
    60 % and 80 % of the steps, batch norm in training mode, random resized crops and flips, batches of
    min(256, images) and the backbone's learning rate of 0.002: all as published. Two things differ. The 20
    epochs of ImageNet become a fixed number of steps, which bounds the time on any image set. And the head's
    rate is 0.1 instead of 0.5, from which so few steps do not recover (measured on small ResNets: the loss
    rises to 11 before it falls). Every method gets the same values; nothing is selected, so ``val`` is not
    used. The state after the last step counts.

    The share is drawn class by class (`labelled_subset`), another one for every seed of the run, so that the spread
    over seeds has it in it.
    """

    name: str
    fraction: float
    steps: int
    head_lr: float = 0.1
    needs = "labels"
    metrics = ("top1", "top5")

    def evaluate(self, encoder: Encoder, context: EvaluationContext) -> list[Measurement]:
        """``top1`` and ``top5`` on the test split. Raises RunFailure if the loss is not finite."""
        train, test = context.image_set.split("train"), context.image_set.split("test")
        chosen = labelled_subset(train.labels, self.fraction, context.seed)
        known = torch.nonzero(test.labels >= 0).flatten()
        _require_labels(chosen, known, self.name, context.image_set)
        with seeded(context.seed, context.device) as generator:
            model = FineTuned(encoder.fresh_backbone(), encoder.feature_dim, len(context.image_set.classes))
            model.to(context.device).to(memory_format=torch.channels_last)

            def batches(first: int) -> Iterator[Batch]:
                return together(self._batches(train, chosen, encoder, context.device, generator, first))

            fine_tune(model, batches, self.steps, self.head_lr, context)

        def views(rows: Tensor) -> Iterator[Tensor]:
            size, device = encoder.input_size, context.device
            return plain_views(test.images, rows, size, encoder.normalisation, device)

        measured = _measure(model, views, test, known, context)
        if skipped := skipped_images(train=train, test=test):
            context.details["skipped_images"] = skipped
        context.progress(1.0)
        return measured

    def forward_passes(self, image_set: ImageSet) -> float:
        """Three passes for every image trained on, one over test."""
        batch = min(_BATCH, max(1, round(self.fraction * len(image_set.split("train")))))
        return float(3 * self.steps * batch + len(image_set.split("test")))

    def _batches(
        self,
        train: Split,
        chosen: Tensor,
        encoder: Encoder,
        device: torch.device,
        generator: torch.Generator,
        first: int,
    ) -> Iterator[Batch]:
        """The batches from the ``first`` on; what the earlier ones draw is drawn as well, for one follows the other."""
        policy = crop_and_flip(encoder.input_size)
        batch = min(_BATCH, len(chosen))
        require_a_share_each(batch)
        order = shuffled_indices(len(chosen), self.steps * batch, generator)
        height, width = train.images.shape[-2:]
        for step, rows in enumerate(chosen[order].split(batch)):
            drawn = draw_parameters(policy, len(rows), height, width, generator)
            if step < first:
                continue
            own = rows[own_share()]
            views = apply(train.images[own], drawn[own_share()], policy, encoder.normalisation)
            yield Batch(views.to(device), train.labels[own].to(device), len(rows))


@dataclass(frozen=True)
class PublishedFineTuning(Protocol):
    """Fine-tuning of the whole network on a labelled share, as published (BT-paper B.2), for sets like ImageNet.

    20 epochs, batch 256, SGD with momentum 0.9 without weight decay, learning rates 0.002 (backbone) and 0.5 (head)
    for both shares, x0.2 after epochs 12 and 16, batch norm in training mode. The official code's later command has
    0.005 with a cosine instead. Differs: batch norm sees the whole batch, in the official code on 8 devices the 32
    images of each. The labelled images are those of `context.label_list`, or where there is none a
    stratified share (`labelled_subset`), drawn from ``train`` and ``val``, for nothing is selected,
    another one for every seed of the run. Views are those of the linear evaluation (`downstream.views`). The state
    after the last epoch counts.
    """

    name: str
    fraction: float
    epochs: int = 20
    head_lr: float = 0.5
    needs = "labels"
    metrics = ("top1", "top5")
    uses_label_list = True

    def evaluate(self, encoder: Encoder, context: EvaluationContext) -> list[Measurement]:
        """``top1`` and ``top5`` on the test split; `context.details` says which labels were used.

        Raises InputError for a list that does not fit, and RunFailure if the loss is not finite.
        """
        device = context.device
        train, test = all_training_images(context.image_set), context.image_set.split("test")
        chosen = self._chosen(train, context)
        known = torch.nonzero(test.labels >= 0).flatten()
        _require_labels(chosen, known, self.name, context.image_set)
        order = EpochOrder(chosen, context.seed)
        steps = self.epochs * order.steps_per_epoch

        def batches(first: int) -> Iterator[Batch]:
            views = training_views(train.images, order, steps, context.seed, encoder, device, first)
            for step, own in enumerate(views, first):
                rows = order(step)
                yield Batch(own, train.labels[rows[own_share()]].to(device), len(rows))

        with seeded(context.seed, device):
            model = FineTuned(encoder.fresh_backbone(), encoder.feature_dim, len(context.image_set.classes))
        model.to(device).to(memory_format=torch.channels_last)
        fine_tune(model, batches, steps, self.head_lr, context)
        measured = _measure(
            model, lambda rows: central_views(test.images, rows, encoder, device), test, known, context
        )
        if skipped := skipped_images(train=train, test=test):
            context.details["skipped_images"] = skipped
        context.progress(1.0)
        return measured

    def forward_passes(self, image_set: ImageSet) -> float:
        """Three passes for every image trained on, one over test."""
        images = len(image_set.split("train")) + len(image_set.split("val"))
        return float(3 * self.epochs * self.fraction * images + len(image_set.split("test")))

    def _chosen(self, train: Split, context: EvaluationContext) -> Tensor:
        """The rows of the labelled images, int64 ``[n]``."""
        if context.label_list is None:
            chosen = labelled_subset(train.labels, self.fraction, context.seed)
            source = f"stratified, drawn by seed {context.seed}"
        else:
            chosen, digest = read_label_list(
                context.label_list, train, context.image_set.classes, self.fraction
            )
            source = f"{'own' if context.label_list.own else 'published'} list, SHA-256 {digest}"
        context.details["labels"] = {"source": source, "images": len(chosen)}
        return chosen


register_protocol(FineTuning("semi-1pct/finetune-v2", fraction=0.01, steps=60))
register_protocol(FineTuning("semi-10pct/finetune-v2", fraction=0.1, steps=40))
register_protocol(PublishedFineTuning("semi-1pct/paper-v3", fraction=0.01))
register_protocol(PublishedFineTuning("semi-10pct/paper-v3", fraction=0.1))
