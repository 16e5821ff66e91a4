"""Linear classification of a frozen backbone by SGD on augmented images: the published linear evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from twinbench.data.image_sets import ImageSet, Split
from twinbench.data.streaming import Images
from twinbench.data.views import BATCH, in_turns
from twinbench.downstream.checkpoints import TrainingState
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
from twinbench.foundation.collectives import all_reduce_sum
from twinbench.foundation.errors import InputError, RunFailure
from twinbench.foundation.lars import LARS
from twinbench.foundation.norms import use_global_batches
from twinbench.foundation.ranks import own_share, sum_gradients

# Below this share of the batch size, steps are no longer those of the protocol, which a remark says.
_NEARLY = 0.9


def linear_head(feature_dim: int, classes: int) -> nn.Linear:
    """A linear classifier that starts at N(0, 0.01) and bias 0, as in the code of most of these evaluations."""
    head = nn.Linear(feature_dim, classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head


def zero_head(feature_dim: int, classes: int) -> nn.Linear:
    """A linear classifier that starts at 0 (simclr, model_util.py ``supervised_head``)."""
    head = nn.Linear(feature_dim, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def cosine(epoch: float, epochs: int) -> float:
    """The share of the peak learning rate after so many of ``epochs``: half a cosine, constant within an epoch."""
    return (1 + math.cos(math.pi * math.floor(epoch) / epochs)) / 2


def cosine_by_step(epoch: float, epochs: int) -> float:
    """The share of the peak learning rate after so many of ``epochs``: half a cosine, another value at every step."""
    return (1 + math.cos(math.pi * epoch / epochs)) / 2


def two_drops(epoch: float, epochs: int) -> float:
    """The share of the peak learning rate: a tenth after a third of ``epochs``, a hundredth after two thirds.

    Within an epoch if need be.
    """
    return 0.1 ** math.floor(3 * epoch / epochs)


def drops_at_60_and_80(epoch: float, epochs: int) -> float:
    """The share of the peak learning rate: a tenth after 60 % of ``epochs``, a hundredth after 80 %."""
    return 0.1 ** ((epoch >= 0.6 * epochs) + (epoch >= 0.8 * epochs))


class FrozenBackbone:
    """An encoder's backbone on the device of an evaluation, and the features ``[n, D]`` that it gives images there."""

    def __init__(self, encoder: Encoder, context: EvaluationContext) -> None:
        self.encoder, self._seed, self._device = encoder, context.seed, context.device
        self._backbone = frozen_copy(encoder, context.device)

    def training(self, images: Images, order: EpochOrder, first: int, steps: int) -> Iterator[Tensor]:
        """The features of random crops, this rank's of every step from the ``first`` on; see `training_steps`."""
        for parts in training_steps(images, order, steps, self._seed, self.encoder, self._device, first):
            yield torch.cat([pooled(self._backbone, views) for views in parts])

    def central(self, images: Images, rows: Tensor) -> Iterator[Tensor]:
        """The features of central crops, in batches, on every rank; see `downstream.views.central_views`."""

        def computed(own: Tensor) -> Iterator[Tensor]:
            for views in central_views(images, own, self.encoder, self._device):
                yield pooled(self._backbone, views)

        return in_turns(rows, computed)

    def require_unchanged(self) -> None:
        """Raise RunFailure if a parameter or buffer of it differs from the encoder's in any bit."""
        original = self.encoder.backbone.state_dict()
        changed = [
            name
            for name, tensor in self._backbone.state_dict().items()
            if not torch.equal(tensor.cpu(), original[name].cpu())
        ]
        if changed:
            raise RunFailure(f"the frozen backbone changed during the evaluation: {', '.join(changed[:3])}")


@dataclass(frozen=True)
class SgdEvaluation(Protocol):
    """What the linear evaluations by SGD share: frozen features of random crops, and a loop that trains heads on them.

    ``decay`` gives the share of the peak learning rate after so many of ``epochs``. ``batch`` is the number of images
    of a step; a smaller image set is one step an epoch, with the same rate. ``nesterov`` is about the momentum of 0.9,
    and ``start`` makes the linear layer (features, classes).
    """

    name: str
    epochs: int
    decay: Callable[[float, int], float]
    batch: int = field(default=BATCH, kw_only=True)
    nesterov: bool = field(default=False, kw_only=True)
    start: Callable[[int, int], nn.Linear] = field(default=linear_head, kw_only=True)
    needs = "labels"
    metrics = ("top1", "top5")

    def require_labels(self, image_set: ImageSet, *splits: Split) -> None:
        """Raise InputError unless each of the splits has a labelled image."""
        if not all((split.labels >= 0).any() for split in splits):
            raise InputError(
                f"{self.name} needs labelled training and test images",
                where=image_set.name,
                next_step="choose an image set with labels, or leave out the protocols that need them",
            )

    def order(self, train: Split, seed: int) -> EpochOrder:
        """The labelled images of every step."""
        return EpochOrder(torch.nonzero(train.labels >= 0).flatten(), seed, self.batch)

    def remark_on_steps(self, order: EpochOrder, context: EvaluationContext) -> None:
        """Say so where a step has far fewer images than the protocol's."""
        images = math.ceil(len(order.rows) / order.steps_per_epoch)
        if images < _NEARLY * self.batch:
            context.remarks.append(
                f"{self.name} has steps of {self.batch} images, these had {images} of the {len(order.rows)} with a "
                "label; its learning rate stayed as it is"
            )

    def sgd(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """SGD over parameter groups, each with its ``peak`` learning rate and its ``weight_decay``."""
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=self.nesterov)

    def train(
        self,
        heads: Sequence[nn.Module],
        optimizer: torch.optim.Optimizer,
        frozen: FrozenBackbone,
        split: Split,
        order: EpochOrder,
        state: TrainingState,
        progress: Callable[[float], None],
    ) -> None:
        """Train each of ``heads`` as if it were alone, on the same views; ``progress`` is told the fraction done.

        Each group of the optimizer has its ``peak`` learning rate. It begins after the first steps of ``state``. Every
        rank has its share of each step's images. Raises RunFailure if the loss of no head is finite.
        """
        steps = self.epochs * order.steps_per_epoch
        for head in heads:
            head.train()
        for step, features in enumerate(
            frozen.training(split.images, order, state.first, steps), state.first
        ):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * self.decay(step / order.steps_per_epoch, self.epochs)
            rows = order(step)
            labels = split.labels[rows[own_share()]].to(features.device)
            # the gradient of a sum with respect to one head is that of its own loss, whatever became of the others
            sums = [cross_entropy(head(features), labels, reduction="sum") for head in heads]
            losses = torch.stack(sums) / len(rows)
            optimizer.zero_grad()
            losses.sum().backward()
            sum_gradients(optimizer)
            optimizer.step()
            if (step + 1) % order.steps_per_epoch == 0:
                self._require_finite(all_reduce_sum(losses.detach()), step)
            state.keep(step + 1)
            progress((step + 1) / steps)

    def _require_finite(self, losses: Tensor, step: int) -> None:
        if not torch.isfinite(losses).any():
            raise RunFailure(f"the loss became {losses[0].item()} before step {step + 1}", where=self.name)

    def measure(
        self, head: nn.Module, frozen: FrozenBackbone, test: Split, context: EvaluationContext
    ) -> list[Measurement]:
        """The accuracies of a head on the labelled test images; raises RunFailure if the backbone has changed."""
        known = torch.nonzero(test.labels >= 0).flatten()
        head.eval()
        with torch.no_grad():
            scores = torch.cat([head(features).cpu() for features in frozen.central(test.images, known)])
        frozen.require_unchanged()
        counted = readable(test.images, known)
        rows = known[counted]
        return context.classified(scores[counted], test.labels[rows], rows)


@dataclass(frozen=True)
class LinearEvaluation(SgdEvaluation):
    """A linear classifier on the pooled features of a frozen backbone, trained by SGD with momentum 0.9.

    The backbone stays in evaluation mode and is checked afterwards to be the same bit for bit. Every step sees new
    random crops and flips; of the test images the central 224/256 is seen, of those that are held in memory at the
    encoder's input size everything (`downstream.views.central_views`). Nothing is selected, so ``val`` is trained on
    as well. The state after the last epoch is measured, where the official code reports the best epoch on the test
    set.

    ``lr`` is the peak learning rate; ``decay`` gives the share of it after so many of ``epochs``. ``batch`` is the
    number of images of a step; a smaller image set is one step an epoch, with the same rate. ``start`` is how the
    linear layer begins. With ``batch_norm`` the head begins with a batch norm, which has no weight decay. With ``larc``
    the steps of weight and bias are scaled as by NVIDIA apex's LARC with a trust coefficient of 0.001 and without
    clipping.
    """

    lr: float
    weight_decay: float
    batch_norm: bool = False
    larc: bool = False

    def evaluate(self, encoder: Encoder, context: EvaluationContext) -> list[Measurement]:
        """``top1`` and ``top5`` on the test split; `context.details` says how many corrupt pictures were skipped.

        Raises RunFailure if the loss is not finite.
        """
        train, test = all_training_images(context.image_set), context.image_set.split("test")
        self.require_labels(context.image_set, train, test)
        frozen, order = FrozenBackbone(encoder, context), self.order(train, context.seed)
        with seeded(context.seed, context.device):
            head = self._head(encoder.feature_dim, len(context.image_set.classes)).to(context.device)
        self.remark_on_steps(order, context)
        use_global_batches(head)
        optimizer = self._optimizer(head)
        state = context.checkpoints.training("training", head=head, optimizer=optimizer)
        self.train([head], optimizer, frozen, train, order, state, lambda done: context.progress(0.95 * done))
        measured = self.measure(head, frozen, test, context)
        if skipped := skipped_images(train=train, test=test):
            context.details["skipped_images"] = skipped
        context.progress(1.0)
        return measured

    def forward_passes(self, image_set: ImageSet) -> float:
        """One pass for every image of every epoch and for the test images; the head costs next to nothing."""
        train, val, test = (len(image_set.split(split)) for split in ("train", "val", "test"))
        return float(self.epochs * (train + val) + test)

    def _head(self, feature_dim: int, classes: int) -> nn.Sequential:
        head = self.start(feature_dim, classes)
        return nn.Sequential(nn.BatchNorm1d(feature_dim), head) if self.batch_norm else nn.Sequential(head)

    def _optimizer(self, head: nn.Sequential) -> torch.optim.Optimizer:
        groups = [
            {"params": head[-1].parameters(), "weight_decay": self.weight_decay, "peak": self.lr},
            {"params": head[:-1].parameters(), "weight_decay": 0.0, "peak": self.lr},
        ]
        if self.larc:
            return LARS(groups, self.lr, momentum=0.9, trust_coefficient=0.001, variant="larc")
        return self.sgd(groups)


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

# SimCLR (SimCLR-paper B.6; what it leaves open as simclr model_util.py and run.py): learning rate 0.1 * 4096 / 256 at
# batch 4096, Nesterov's momentum, 90 epochs, a cosine without warm-up, no weight decay (the README's command has 1e-6),
# a head that starts at 0. Differs: pictures are resized bilinearly, where the code is bicubic.
register_protocol(
    LinearEvaluation(
        "linear/simclr-v1",
        epochs=90,
        lr=1.6,
        weight_decay=0.0,
        decay=cosine_by_step,
        batch=4096,
        nesterov=True,
        start=zero_head,
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
