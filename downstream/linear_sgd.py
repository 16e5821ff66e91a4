"""Linear classification of a frozen backbone by SGD on augmented images: the published linear evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from twinbench.data.image_sets import ImageSet, Split
from twinbench.downstream.features import frozen_copy, pooled
from twinbench.downstream.protocol import (
    EvaluationContext,
    Measurement,
    Protocol,
    accuracies,
    register_protocol,
)
from twinbench.downstream.randomness import seeded
from twinbench.downstream.views import (
    EpochOrder,
    all_training_images,
    central_views,
    readable,
    skipped_images,
    training_views,
)
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.errors import InputError, RunFailure


def linear_head(feature_dim: int, classes: int) -> nn.Linear:
    """A linear classifier that starts at N(0, 0.01) and bias 0 (barlowtwins evaluate.py)."""
    head = nn.Linear(feature_dim, classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head


def cosine(epoch: float, epochs: int) -> float:
    """The share of the peak learning rate after so many of ``epochs``: half a cosine, constant within an epoch."""
    return (1 + math.cos(math.pi * math.floor(epoch) / epochs)) / 2


def two_drops(epoch: float, epochs: int) -> float:
    """The share of the peak learning rate: a tenth after a third of ``epochs``, a hundredth after two thirds.

    Within an epoch if need be.
    """
    return 0.1 ** math.floor(3 * epoch / epochs)


@dataclass(frozen=True)
class LinearEvaluation(Protocol):
    """A linear classifier on the pooled features of a frozen backbone, trained by SGD with momentum 0.9, batch 256.

    The backbone stays in evaluation mode and is checked afterwards to be the same bit for bit. Every step sees new
    random crops and flips; of the test images the central 224/256 is seen, of those that are held in memory at the
    encoder's input size everything (`downstream.views.central_views`). Nothing is selected, so ``val`` is trained on
    as well. The state after the last epoch is measured, where the official code reports the best epoch on the test
    set.

    ``lr`` is the peak learning rate; ``decay`` gives the share of it after so many of ``epochs``. With ``batch_norm``
    the head begins with a batch norm, which has no weight decay.
    """

    name: str
    epochs: int
    lr: float
    weight_decay: float
    decay: Callable[[float, int], float]
    batch_norm: bool = False
    needs = "labels"
    metrics = ("top1", "top5")

    def evaluate(self, encoder: Encoder, context: EvaluationContext) -> list[Measurement]:
        """``top1`` and ``top5`` on the test split; `context.details` says how many corrupt pictures were skipped.

        Raises RunFailure if the loss is not finite.
        """
        train, test = all_training_images(context.image_set), context.image_set.split("test")
        known = torch.nonzero(test.labels >= 0).flatten()
        if not len(known) or not (train.labels >= 0).any():
            raise InputError(
                f"{self.name} needs labelled training and test images",
                where=context.image_set.name,
                next_step="choose an image set with labels, or leave out the protocols that need them",
            )
        backbone = frozen_copy(encoder, context.device)
        with seeded(context.seed, context.device):
            head = self._head(encoder.feature_dim, len(context.image_set.classes)).to(context.device)
        self._train(head, backbone, train, encoder, context)
        scores = _scores(head, backbone, central_views(test.images, known, encoder, context.device))
        _require_unchanged(backbone, encoder)
        if skipped := skipped_images(train, test):
            context.details["skipped_images"] = skipped
        context.progress(1.0)
        counted = readable(test.images, known)
        return accuracies(scores[counted], test.labels[known[counted]])

    def forward_passes(self, image_set: ImageSet) -> float:
        """One pass for every image of every epoch and for the test images; the head costs next to nothing."""
        train, val, test = (len(image_set.split(split)) for split in ("train", "val", "test"))
        return float(self.epochs * (train + val) + test)

    def _head(self, feature_dim: int, classes: int) -> nn.Sequential:
        head = linear_head(feature_dim, classes)
        return nn.Sequential(nn.BatchNorm1d(feature_dim), head) if self.batch_norm else nn.Sequential(head)

    def _train(
        self,
        head: nn.Sequential,
        backbone: nn.Module,
        train: Split,
        encoder: Encoder,
        context: EvaluationContext,
    ) -> None:
        order = EpochOrder(torch.nonzero(train.labels >= 0).flatten(), context.seed)
        steps = self.epochs * order.steps_per_epoch
        optimizer = torch.optim.SGD(
            [
                {"params": head[-1].parameters(), "weight_decay": self.weight_decay},
                {"params": head[:-1].parameters(), "weight_decay": 0.0},
            ],
            momentum=0.9,
        )
        head.train()
        views = training_views(train.images, order, steps, context.seed, encoder, context.device)
        for step, batch in enumerate(views):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * self.decay(step / order.steps_per_epoch, self.epochs)
            labels = train.labels[order(step)].to(context.device)
            loss = cross_entropy(head(pooled(backbone, batch)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if (step + 1) % order.steps_per_epoch == 0 and not torch.isfinite(loss):
                raise RunFailure(f"the loss became {loss.item()} before step {step + 1}", where=self.name)
            context.progress(0.95 * (step + 1) / steps)


@torch.no_grad()
def _scores(head: nn.Module, backbone: nn.Module, views: Iterator[Tensor]) -> Tensor:
    head.eval()
    return torch.cat([head(pooled(backbone, chunk)).cpu() for chunk in views])


def _require_unchanged(backbone: nn.Module, encoder: Encoder) -> None:
    """Raise RunFailure if a parameter or buffer of the backbone in use differs from the encoder's in any bit."""
    original = encoder.backbone.state_dict()
    changed = [
        name
        for name, tensor in backbone.state_dict().items()
        if not torch.equal(tensor.cpu(), original[name].cpu())
    ]
    if changed:
        raise RunFailure(f"the frozen backbone changed during the evaluation: {', '.join(changed[:3])}")


# The linear evaluation of Barlow Twins (BT-paper B.1, barlowtwins evaluate.py): 100 epochs, learning rate 0.3 whatever
# the number of devices, cosine to zero in steps of one epoch, weight decay 1e-6. Training on ImageNet's 1.28 million
# images is the published protocol; on another set it is the same work for each image.
register_protocol(LinearEvaluation("linear/sgd-v2", epochs=100, lr=0.3, weight_decay=1e-6, decay=cosine))

# The linear transfer evaluations of BT-paper C.1, "exact PIRL settings", in what sources leave open as VISSL: learning
# rate 0.01, x0.1 at two equally spaced points (the paper; VISSL's configuration has three), weight decay 5e-4, plain
# momentum (VISSL's is Nesterov's), batch 256. The paper names neither layer nor head: as in VISSL's configuration for
# the pooled features the head is batch norm without weight decay, then linear, since unscaled features do not suit this
# learning rate. The linear layer starts as in `linear_head`.
_transfer = partial(LinearEvaluation, lr=0.01, weight_decay=5e-4, decay=two_drops, batch_norm=True)
register_protocol(_transfer("linear/places205-v2", epochs=14))
register_protocol(_transfer("linear/inat18-v2", epochs=84))
