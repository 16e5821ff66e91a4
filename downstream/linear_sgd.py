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
from twinbench.data.views import BATCH
from twinbench.downstream.features import frozen_copy, pooled
from twinbench.downstream.protocol import (
    EvaluationContext,
    Measurement,
    Protocol,
    register_protocol,
)
from twinbench.downstream.randomness import seeded
from twinbench.downstream.views import (
    EpochOrder,
    all_training_images,
    central_views,
    readable,
    skipped_images,
    training_steps,
)
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.errors import InputError, RunFailure
from twinbench.foundation.lars import LARS

# Below this share of the batch size, steps are no longer those of the protocol, which a remark says.
_NEARLY = 0.9


def linear_head(feature_dim: int, classes: int) -> nn.Linear:
    """A linear classifier that starts at N(0, 0.01) and bias 0, as in the code of all these evaluations."""
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


def drops_at_60_and_80(epoch: float, epochs: int) -> float:
    """The share of the peak learning rate: a tenth after 60 % of ``epochs``, a hundredth after 80 %."""
    return 0.1 ** ((epoch >= 0.6 * epochs) + (epoch >= 0.8 * epochs))


@dataclass(frozen=True)
class LinearEvaluation(Protocol):
    """A linear classifier on the pooled features of a frozen backbone, trained by SGD with momentum 0.9.

    The backbone stays in evaluation mode and is checked afterwards to be the same bit for bit. Every step sees new
    random crops and flips; of the test images the central 224/256 is seen, of those that are held in memory at the
    encoder's input size everything (`downstream.views.central_views`). Nothing is selected, so ``val`` is trained on
    as well. The state after the last epoch is measured, where the official code reports the best epoch on the test
    set.

    ``lr`` is the peak learning rate; ``decay`` gives the share of it after so many of ``epochs``. ``batch`` is the
    number of images of a step; a smaller image set is one step an epoch, with the same rate. With ``batch_norm`` the
    head begins with a batch norm, which has no weight decay. With ``larc`` the steps of weight and bias are scaled as
    by NVIDIA apex's LARC with a trust coefficient of 0.001 and without clipping.
    """

    name: str
    epochs: int
    lr: float
    weight_decay: float
    decay: Callable[[float, int], float]
    batch: int = BATCH
    batch_norm: bool = False
    larc: bool = False
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
        rows = known[counted]
        return context.classified(scores[counted], test.labels[rows], rows)

    def forward_passes(self, image_set: ImageSet) -> float:
        """One pass for every image of every epoch and for the test images; the head costs next to nothing."""
        train, val, test = (len(image_set.split(split)) for split in ("train", "val", "test"))
        return float(self.epochs * (train + val) + test)

    def _head(self, feature_dim: int, classes: int) -> nn.Sequential:
        head = linear_head(feature_dim, classes)
        return nn.Sequential(nn.BatchNorm1d(feature_dim), head) if self.batch_norm else nn.Sequential(head)

    def _optimizer(self, head: nn.Sequential) -> torch.optim.Optimizer:
        groups = [
            {"params": head[-1].parameters(), "weight_decay": self.weight_decay},
            {"params": head[:-1].parameters(), "weight_decay": 0.0},
        ]
        if self.larc:
            return LARS(groups, self.lr, momentum=0.9, trust_coefficient=0.001, variant="larc")
        return torch.optim.SGD(groups, momentum=0.9)

    def _train(
        self,
        head: nn.Sequential,
        backbone: nn.Module,
        train: Split,
        encoder: Encoder,
        context: EvaluationContext,
    ) -> None:
        order = EpochOrder(torch.nonzero(train.labels >= 0).flatten(), context.seed, self.batch)
        steps = self.epochs * order.steps_per_epoch
        images = math.ceil(len(order.rows) / order.steps_per_epoch)
        if images < _NEARLY * self.batch:
            context.remarks.append(
                f"{self.name} has steps of {self.batch} images, these had {images} of the {len(order.rows)} with a "
                "label; its learning rate stayed as it is"
            )
        optimizer = self._optimizer(head)
        head.train()
        batches = training_steps(train.images, order, steps, context.seed, encoder, context.device)
        for step, parts in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * self.decay(step / order.steps_per_epoch, self.epochs)
            labels = train.labels[order(step)].to(context.device)
            features = torch.cat([pooled(backbone, views) for views in parts])
            loss = cross_entropy(head(features), labels)
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


# The linear evaluations that the published scores of the methods belong to. Training on ImageNet's 1.28 million images
# is the published protocol; on another set it is the same work for each image.
#
# Barlow Twins (BT-paper B.1, barlowtwins evaluate.py): 100 epochs, learning rate 0.3 whatever the number of devices,
# cosine to zero in steps of one epoch, weight decay 1e-6.
_cosine = partial(LinearEvaluation, epochs=100, lr=0.3, weight_decay=1e-6, decay=cosine)
register_protocol(_cosine("linear/sgd-v2"))

# SwAV (swav eval_linear.py on 8 devices with 32 images each): the same settings. What differs there, a std of 0.228 for
# the red channel, is the encoder's: one that is imported from SwAV brings it along.
register_protocol(_cosine("linear/swav-v1"))

# MoCo v1 and v2 (moco main_lincls.py): learning rate 30 at batch 256 without weight decay, steps at epochs 60 and 80.
register_protocol(
    LinearEvaluation("linear/moco-v1", epochs=100, lr=30.0, weight_decay=0.0, decay=drops_at_60_and_80)
)

# SimSiam (simsiam main_lincls.py --lars, as its README runs it): LARC, 90 epochs, learning rate 0.1 * 4096 / 256 at
# batch 4096, cosine in steps of one epoch, no weight decay. (The paper has 0.02 in place of 0.1.)
register_protocol(
    LinearEvaluation(
        "linear/simsiam-v1", epochs=90, lr=1.6, weight_decay=0.0, decay=cosine, batch=4096, larc=True
    )
)

# The linear transfer evaluations of BT-paper C.1, "exact PIRL settings", in what sources leave open as VISSL: learning
# rate 0.01, x0.1 at two equally spaced points (the paper; VISSL's configuration has three), weight decay 5e-4, plain
# momentum (VISSL's is Nesterov's), batch 256. The paper names neither layer nor head: as in VISSL's configuration for
# the pooled features the head is batch norm without weight decay, then linear, since unscaled features do not suit this
# learning rate. The linear layer starts as in `linear_head`.
_transfer = partial(LinearEvaluation, lr=0.01, weight_decay=5e-4, decay=two_drops, batch_norm=True)
register_protocol(_transfer("linear/places205-v2", epochs=14))
register_protocol(_transfer("linear/inat18-v2", epochs=84))
