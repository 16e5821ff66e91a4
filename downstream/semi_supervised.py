"""Semi-supervised evaluation: fine-tuning on a small labelled share of the training images."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from data.augment import ViewPolicy, augment, eval_view
from data.errors import InputError, RunFailure
from data.image_sets import ImageSet
from downstream.protocol import EvaluationContext, Measurement, Protocol, accuracies, register_protocol
from downstream.randomness import seeded, shuffled_indices
from pretraining.encoder import Encoder

BACKBONE_LR = 0.002
HEAD_LR = 0.1
_LIST_SEED = 0
_BATCH = 256


def labelled_subset(labels: Tensor, fraction: float) -> Tensor:
    """Sorted indices of the share ``fraction`` of the labelled images, drawn class by class.

    Every class gets the rounded share of its images and at least one. The order within a class is drawn once,
    so a smaller fraction is a subset of a larger one. As with the published lists (google-research/simclr,
    imagenet_subsets) the draw does not depend on the seed of the run: all methods and seeds see the same
    images. ``labels`` is ``[N]``, -1 where unlabelled.
    """
    generator = torch.Generator().manual_seed(_LIST_SEED)
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
    """A backbone and a linear classifier on its pooled features; the head starts at N(0, 0.01), bias 0."""

    def __init__(self, backbone: nn.Module, feature_dim: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(feature_dim, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores ``[N, classes]`` of normalised images ``[N, 3, H, W]``."""
        scores: Tensor = self.head(self.backbone(images))
        return scores


class FineTuning(Protocol):
    """Fine-tuning of the whole network on a labelled share, as in BT-paper B.2, shortened.

    SGD with momentum 0.9 without weight decay, separate learning rates for backbone and head, both x0.2 after
    60 % and 80 % of the steps, batch norm in training mode, random resized crops and flips, batches of
    min(256, images) and the backbone's learning rate of 0.002: all as published. Two things differ. The 20
    epochs of ImageNet become a fixed number of steps, which bounds the time on any image set. And the head's
    rate is 0.1 instead of 0.5, from which so few steps do not recover (measured on small ResNets: the loss
    rises to 11 before it falls). Every method gets the same values; nothing is selected, so ``val`` is not
    used. The state after the last step counts.
    """

    needs: ClassVar[Literal["labels", "detection"]] = "labels"
    metrics: ClassVar[tuple[str, ...]] = ("top1", "top5")
    fraction: ClassVar[float]
    steps: ClassVar[int]

    def evaluate(self, encoder: Encoder, context: EvaluationContext) -> list[Measurement]:
        """``top1`` and ``top5`` on the test split. Raises RunFailure if the loss is not finite."""
        image_set = context.image_set
        train, test = image_set.split("train"), image_set.split("test")
        chosen = labelled_subset(train.labels, self.fraction)
        known = test.labels >= 0
        if len(chosen) < 2 or not known.any():
            raise InputError(
                f"{self.name} needs labelled training and test images",
                where=image_set.name,
                next_step="choose an image set with labels, or leave out the protocols that need them",
            )
        with seeded(context.seed, context.device) as generator:
            model = FineTuned(encoder.fresh_backbone(), encoder.feature_dim, len(image_set.classes))
            model.to(context.device)
            self._train(model, train.images[chosen], train.labels[chosen], encoder, context, generator)
        scores = _scores(model, test.images[known], encoder, context.device)
        context.progress(1.0)
        return accuracies(scores, test.labels[known])

    def forward_passes(self, image_set: ImageSet) -> float:
        """Three passes for every image trained on, one over test."""
        train = image_set.split("train")
        batch = min(_BATCH, len(labelled_subset(train.labels, self.fraction)))
        return float(3 * self.steps * batch + len(image_set.split("test")))

    def _train(
        self,
        model: FineTuned,
        images: Tensor,
        labels: Tensor,
        encoder: Encoder,
        context: EvaluationContext,
        generator: torch.Generator,
    ) -> None:
        optimizer = torch.optim.SGD(
            [
                {"params": model.backbone.parameters(), "lr": BACKBONE_LR},
                {"params": model.head.parameters(), "lr": HEAD_LR},
            ],
            momentum=0.9,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, self.steps))
        policy = _crop_and_flip(encoder.input_size)
        batch = min(_BATCH, len(images))
        order = shuffled_indices(len(images), self.steps * batch, generator)
        model.train()
        for step, indices in enumerate(order.split(batch)):
            views = augment(images[indices], policy, encoder.mean, encoder.std, generator)
            loss = cross_entropy(model(views.to(context.device)), labels[indices].to(context.device))
            if not torch.isfinite(loss):
                raise RunFailure(f"the fine-tuning loss became {loss.item()} at step {step}", where=self.name)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            context.progress(0.9 * (step + 1) / self.steps)


def _crop_and_flip(size: int) -> ViewPolicy:
    return ViewPolicy(size=size, flip=0.5, jitter=0.0, grayscale=0.0, interpolation="bilinear")


@torch.no_grad()
def _scores(model: FineTuned, images: Tensor, encoder: Encoder, device: torch.device) -> Tensor:
    model.eval()
    chunks = (
        eval_view(c.to(device), encoder.input_size, encoder.mean, encoder.std) for c in images.split(_BATCH)
    )
    return torch.cat([model(chunk).float().cpu() for chunk in chunks])


@register_protocol
class OnePercent(FineTuning):
    """Fine-tuning on 1 % of the labels."""

    name: ClassVar[str] = "semi-1pct/finetune-v1"
    fraction: ClassVar[float] = 0.01
    steps: ClassVar[int] = 60


@register_protocol
class TenPercent(FineTuning):
    """Fine-tuning on 10 % of the labels."""

    name: ClassVar[str] = "semi-10pct/finetune-v1"
    fraction: ClassVar[float] = 0.1
    steps: ClassVar[int] = 40
